"""A request that the engine would not take, whose tenant came back in between: its charge is undone, the lift stays.

It is as if the request had not been there before its tenant came back, and had come with what brought it back.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_harness import drain, finish, make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.schedulers.equipoise import EquipoiseSettings

TENANTS = ("a", "b", "c")
LIFTING = ("VTC", "Equipoise", "FairServe", "Equinox")
sizes = st.tuples(st.sampled_from(TENANTS), st.integers(1, 500), st.integers(0, 40))
"""Tenant, prompt tokens and generated tokens of a request."""


def world(algorithm, weights, history):
    """Serve what is in `history`, then have the others wait."""
    kind = SCHEDULERS[algorithm]
    settings = EquipoiseSettings(band=300) if algorithm == "Equipoise" else kind.settings_type()
    scheduler = kind(settings, {n: TenantSettings(weight=w) for n, w in zip(TENANTS, weights, strict=True)})
    for number, (tenant, prompt, generated) in enumerate(history):
        send(scheduler, f"h{number}", tenant, prompt)
        finish(scheduler, drain(scheduler), generated)
    return scheduler


def send(scheduler, name, tenant, prompt):
    request = make_request(name, tenant, prompt=prompt, max_tokens=64)
    assert scheduler.enqueue(request, 0.0) is None
    return request


def counters(scheduler):
    return {row.tenant: row.counter for row in scheduler.shares(0.0)}


def until(scheduler, wanted):
    """Dispatch all that goes before `wanted`, and look at that."""
    seen, gone = [], []

    def fits(request):
        seen.append(request)
        return wanted not in seen

    while (request := scheduler.next(0.0, fits)) is not None:
        gone.append(request)
    assert wanted in seen
    return gone


@dataclass(frozen=True)
class Case:
    """Who was served, who waits, and what happens while the request is away."""

    weights: tuple[int, int, int]
    history: list[tuple[str, int, int]]
    waiting: list[tuple[str, int, int]]
    """Of the other tenants; what goes before the request is in flight meanwhile."""
    prompt: int
    elsewhere: list[tuple[str, int]]
    """Service that tenants have elsewhere."""
    settles: list[bool]
    """Which of those in flight end."""
    early: bool
    """Whether this happens before the tenant is back."""


cases = st.builds(
    Case,
    weights=st.tuples(*[st.sampled_from([1, 2, 8])] * 3),
    history=st.lists(sizes, max_size=12),
    waiting=st.lists(sizes.filter(lambda size: size[0] != "a"), max_size=8),
    prompt=st.integers(1, 500),
    elsewhere=st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 1000)), max_size=3),
    settles=st.lists(st.booleans(), min_size=8, max_size=8),
    early=st.booleans(),
)


@pytest.mark.parametrize("algorithm", LIFTING)
@given(case=cases)
def test_the_charge_is_undone_and_the_lift_stays(algorithm, case):
    both = put_back, twin = [world(algorithm, case.weights, case.history) for _ in range(2)]
    firsts, flights = [], []
    for scheduler in both:
        for number, (tenant, prompt, _) in enumerate(case.waiting):
            send(scheduler, f"{number}", tenant, prompt)
        firsts.append(send(scheduler, "first", "a", case.prompt))
        flights.append(until(scheduler, firsts[-1]))

    def meanwhile():
        for scheduler, gone in zip(both, flights, strict=True):
            for tenant, cost in case.elsewhere:
                scheduler.add_service(tenant, float(cost), 0.0)
            for flight, ends in zip(gone, case.settles, strict=False):
                if ends:
                    finish(scheduler, [flight], case.waiting[int(flight.id)][2])

    assert put_back.next(0.0, lambda _: True) is firsts[0]
    twin.cancel(firsts[1], 0.0)
    if case.early:
        meanwhile()
    for scheduler in both:
        send(scheduler, "second", "a", 1)
    if not case.early:
        meanwhile()
    put_back.requeue(firsts[0], 0.0)
    send(twin, "again", "a", case.prompt)
    assert counters(put_back) == pytest.approx(counters(twin), rel=1e-9, abs=1e-3)
