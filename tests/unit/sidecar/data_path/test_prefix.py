"""Shared beginnings of prompts, over real sockets, before an engine that caches them as vLLM does."""

import asyncio

import pytest
from stack import CHAT, stack

from equipoise_api.names import DEFAULT_TENANT
from equipoise_simulator.standin import Settings, StandIn

SYSTEM = {"role": "system", "content": "Answer in a friendly tone. " * 100}
"""800 tokens of the stand-in."""


def turn(text: str) -> dict:
    messages = [SYSTEM, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": 2, "ignore_eos": True}


def caching(*, reports: bool = True, enabled: bool = True) -> StandIn:
    settings = Settings(model="m", prompt_tokens_details=reports, prefix_caching=enabled)
    return StandIn(profile="fast", speed=100, settings=settings)


async def known(way, *, reports: bool) -> None:
    """Wait until the sidecar knows its engine."""
    async with asyncio.timeout(10):
        while way.dispatcher.engine_profile.reports_cached_tokens is not reports:
            await asyncio.sleep(0.01)


def requests_of(way) -> list:
    """Collect the requests that the scheduler gets from here on."""
    seen, enqueue = [], way.dispatcher.scheduler.enqueue
    way.dispatcher.scheduler.enqueue = lambda request, now: seen.append(request) or enqueue(request, now)
    return seen


@pytest.mark.parametrize("reports", [True, False])
async def test_a_shared_system_prompt_is_expected_from_the_engines_cache(reports):
    async with (
        caching(reports=reports) as engine,
        stack(engine.url, watch_engine=True, capacity={"maxInFlight": 4}) as way,
    ):
        await known(way, reports=reports)
        seen = requests_of(way)
        for number in range(16):
            assert (await way.ask(CHAT, turn(f"Where is order {number}?"))).status == 200
        hits = engine.stats.prefix_cache.hits
        await way.settled(finished=16)
        prefixes = way.dispatcher.prefixes
        assert seen[0].cached_tokens == 0
        # with the prompt's tokens known from 8 requests, less than a block and what is behind it is missed
        expected = [request.cached_tokens for request in seen[8:]]
        assert all(800 - 48 <= tokens <= 800 for tokens in expected), expected
        if reports:
            assert prefixes.reported_tokens == 15 * 800 <= hits
            assert way.dispatcher.scheduler.shares(0.0)[0].total.cached == 15 * 800
        else:
            assert prefixes.reported_tokens == 0
        assert prefixes.agreement.ratio > 0.95


async def test_an_engine_without_a_prefix_cache_is_expected_to_serve_nothing():
    async with caching(enabled=False) as engine, stack(engine.url, watch_engine=True) as way:
        await known(way, reports=True)
        seen = requests_of(way)
        for _ in range(3):
            await way.ask(CHAT, turn("Where is it?"))
        assert [request.cached_tokens for request in seen] == [0, 0, 0]
        assert not way.dispatcher.prefixes.active


async def test_the_text_is_let_go_while_the_request_waits():
    async with caching() as engine, stack(engine.url, watch_engine=True) as way:
        await known(way, reports=True)
        held = []
        take = way.dispatcher.submit

        def submit(tenant, facts, reservation):
            held.append(facts)
            assert facts.prompt_bytes is not None
            return take(tenant, facts, reservation)

        way.dispatcher.submit = submit
        assert (await way.ask(CHAT, turn("Hello"))).status == 200
        assert held[0].prompt_bytes is None
        assert way.dispatcher.accounting[DEFAULT_TENANT].rejected == {}
