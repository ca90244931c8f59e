"""Builders for the sidecar's tests: configurations, request facts, and a dispatcher on the test loop's clock."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from equipoise_api.sidecar_config import SidecarConfig, TenantConfig
from equipoise_sidecar.accounting import TenantAccount
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.facts import EndpointKind, Facts, Rejection
from equipoise_sidecar.policy import Policy, compile_policy
from equipoise_sidecar.ticket import Ticket

BLUE, RED = "team/blue", "team/red"


def make_tenant(name: str, **settings: Any) -> TenantConfig:
    return TenantConfig.model_validate({"id": name, **settings})


def make_config(*, tenants: list[TenantConfig] | None = None, **settings: Any) -> SidecarConfig:
    """Blue and red under VTC, one sequence in flight, unless told otherwise."""
    settings.setdefault("mode", "Enforce")
    settings.setdefault("algorithm", {"type": "VTC"})
    settings.setdefault("capacity", {"maxInFlight": 1})
    config = SidecarConfig.model_validate(settings)
    tenants = [make_tenant(BLUE), make_tenant(RED)] if tenants is None else tenants
    return config.model_copy(update={"tenants": tenants})


def make_policy(**settings: Any) -> Policy:
    config = make_config(**settings)
    return compile_policy(config, config.revision)


def make_facts(**facts: Any) -> Facts:
    """A chat request with a prompt of 100 token ids and at most 50 tokens of output."""
    return Facts(
        **{
            "path": "/v1/chat/completions",
            "kind": EndpointKind.CHAT,
            "prompt_ids": 100,
            "max_tokens": 50,
            "stream": True,
            "body_bytes": 1000,
            **facts,
        }
    )


@dataclass
class Line:
    """A dispatcher and short ways to send it requests."""

    dispatcher: Dispatcher

    def configure(self, **settings: Any) -> Policy:
        policy = make_policy(**settings)
        self.dispatcher.apply(policy)
        return policy

    def try_to_send(self, tenant: str = BLUE, **facts: Any) -> Ticket | Rejection:
        what = make_facts(**facts)
        reservation = self.dispatcher.reserve(tenant, what.body_bytes)
        if isinstance(reservation, Rejection):
            return reservation
        return self.dispatcher.submit(tenant, what, reservation)

    def send(self, tenant: str = BLUE, **facts: Any) -> Ticket:
        ticket = self.try_to_send(tenant, **facts)
        assert isinstance(ticket, Ticket), ticket
        return ticket

    def refused(self, tenant: str = BLUE, **facts: Any) -> Rejection:
        rejection = self.try_to_send(tenant, **facts)
        assert isinstance(rejection, Rejection), rejection
        return rejection

    def account(self, tenant: str = BLUE) -> TenantAccount:
        return self.dispatcher.accounting[tenant]

    def counter(self, tenant: str) -> float:
        shares = self.dispatcher.scheduler.shares(asyncio.get_running_loop().time())
        return next(share.counter for share in shares if share.tenant == tenant)

    def assert_nothing_left(self) -> None:
        dispatcher = self.dispatcher
        assert list(dispatcher.tickets()) == []
        assert (dispatcher.scheduler.queued, dispatcher.scheduler.in_flight) == (0, 0)
        assert (dispatcher.admission.held_bytes, dispatcher.admission.reading) == (0, 0)
        assert dispatcher.engine.capacity.gate.sequences == 0
        for _tenant, each in dispatcher.accounting.items():  # noqa: PERF102 - no dict
            assert (each.queued, each.running) == (0, 0)


@pytest.fixture
async def line() -> Line:
    """A dispatcher with blue and red under VTC, one sequence in flight, an engine that answers."""
    dispatcher = Dispatcher(clock=asyncio.get_running_loop().time)
    line = Line(dispatcher)
    line.configure()
    dispatcher.engine_answers(reachable=True)
    return line


@pytest.fixture
def config() -> Callable[..., SidecarConfig]:
    return make_config


@pytest.fixture
def policy() -> Callable[..., Policy]:
    return make_policy


@pytest.fixture
def tenant() -> Callable[..., TenantConfig]:
    return make_tenant


@pytest.fixture
def facts() -> Callable[..., Facts]:
    return make_facts
