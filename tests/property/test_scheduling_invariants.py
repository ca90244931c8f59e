"""What holds for every scheduler whatever happens, and for VTC's counters."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, assert_put_back_leaves_no_trace, gates, operations

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

EVERY = sorted(SCHEDULERS)
BY_DEADLINE = {"Equipoise"}
"""A tenant's own requests go by deadline, and other heads are tried where one does not fit."""
limits = st.lists(st.sampled_from([None, None, 1, 3]), min_size=4, max_size=4)
many = settings(max_examples=60, deadline=None)


def build(algorithm, each=(None,) * 4):
    tenants = {name: TenantSettings(max_in_flight=limit) for name, limit in zip(TENANTS, each, strict=True)}
    own = {"requests_per_minute": 1_000_000} if algorithm == "RPM" else {}
    return SCHEDULERS[algorithm](SCHEDULERS[algorithm].settings_type(**own), tenants)


def chaos_of(scheduler, gate):
    return Chaos.over(scheduler, gate, {})


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates, each=limits)
def test_each_accepted_request_ends_in_exactly_one_outcome_and_nobody_starves(algorithm, ops, gate, each):
    scheduler = build(algorithm, each)
    chaos = chaos_of(scheduler, gate).run(ops)
    chaos.finish_all()
    assert {name: sent.request.outcome for name, sent in chaos.accepted.items()} == chaos.ended
    assert sum(scheduler.books.outcomes.values()) == len(chaos.accepted)
    assert (scheduler.queued, scheduler.in_flight, chaos.gate.sequences) == (0, 0, 0)


@pytest.mark.parametrize("algorithm", [name for name in EVERY if name not in BY_DEADLINE])
@many
@given(ops=operations, gate=gates, each=limits)
def test_dispatch_takes_the_tenants_oldest_and_never_exceeds_its_limit(algorithm, ops, gate, each):
    limit = dict(zip(TENANTS, each, strict=True))

    class Checked(Chaos):
        def _moved(self, request):
            older = [s for s in self.queued.values() if s.request.tenant == request.tenant]
            assert all(request.number < sent.request.number for sent in older)
            mine = sum(sent.request.tenant == request.tenant for sent in self.flying.values())
            assert mine <= (limit[request.tenant] or 10_000)

    Checked.over(build(algorithm, each), gate, {}).run(ops)


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates)
def test_never_idle_while_somebody_fits(algorithm, ops, gate):
    scheduler = build(algorithm)
    chaos = chaos_of(scheduler, gate).run(ops)
    while chaos.queued:
        asked = []

        def fits(request, asked=asked):
            asked.append(request)
            return False

        assert scheduler.next(chaos.now, fits) is None
        assert len(asked) == 1 or algorithm in BY_DEADLINE, (
            "the head is offered to the gate, and only the head"
        )
        assert len(asked) == len({request.tenant for request in asked}), "one request a tenant"
        head = asked[0]
        assert scheduler.next(chaos.now, lambda _: True) is head
        chaos.flying[head.id] = chaos.queued.pop(head.id)


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates, each=limits)
def test_same_events_same_decisions(algorithm, ops, gate, each):
    first, second = (chaos_of(build(algorithm, each), gate).run(ops) for _ in range(2))
    assert first.dispatched == second.dispatched
    assert first.scheduler.snapshot() == second.scheduler.snapshot()


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates)
def test_snapshot_survives_json_and_restores_to_itself(algorithm, ops, gate):
    snapshot = chaos_of(build(algorithm), gate).run(ops).scheduler.snapshot()
    fresh = build(algorithm)
    fresh.restore(json.loads(json.dumps(snapshot)))
    assert fresh.snapshot() == snapshot


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates, cut=st.integers(0, 250), each=limits)
def test_reconfiguration_keeps_the_queue(algorithm, ops, gate, cut, each):
    scheduler = build(algorithm)
    chaos = chaos_of(scheduler, gate).run(ops[:cut])
    before = (scheduler.queued, scheduler.in_flight)
    tenants = {
        name: TenantSettings(weight=2, max_in_flight=limit) for name, limit in zip("ab", each, strict=False)
    }
    scheduler.reconfigure(scheduler.settings_type(max_queued=10_000), tenants, chaos.now)
    assert (scheduler.queued, scheduler.in_flight) == before
    chaos.run(ops[cut:])
    chaos.finish_all()
    assert scheduler.queued == scheduler.in_flight == 0


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates, each=limits)
def test_put_back_is_as_if_never_dispatched(algorithm, ops, gate, each):
    busy, quiet = (chaos_of(build(algorithm, each), gate).run(ops) for _ in range(2))
    for chaos in (busy, quiet):  # a pass in which nobody fits may move turns on
        assert chaos.scheduler.next(chaos.now, lambda _: False) is None
    assert_put_back_leaves_no_trace(busy, quiet)


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates)
def test_service_adds_up_to_what_was_reported(algorithm, ops, gate):
    chaos = chaos_of(build(algorithm), gate).run(ops)
    rows = {row.tenant: row for row in chaos.scheduler.shares(chaos.now)}
    for name, cost in chaos.received.items():
        assert (rows[name].total.cost if name in rows else 0) == pytest.approx(cost)


@settings(max_examples=200, deadline=None)
@given(operations, gates, st.booleans(), st.sampled_from(TENANTS))
def test_tenant_that_comes_back_is_level_with_the_least_of_the_backlogged(
    ops, gate, charge_predicted, tenant
):
    scheduler = VTC(VTCSettings(charge_predicted=charge_predicted))
    chaos = chaos_of(scheduler, gate).run(ops)
    for sent in [s for s in chaos.queued.values() if s.request.tenant == tenant]:
        scheduler.cancel(sent.request, chaos.now)
        del chaos.queued[sent.request.id]
    others = [scheduler._accounts[name].value for name in scheduler.choice]
    was = scheduler._account(tenant).value
    chaos.apply("enqueue", TENANTS.index(tenant), 5, 5)
    if others:
        assert scheduler._accounts[tenant].value == max(was, min(others))


@settings(max_examples=200, deadline=None)
@given(operations, gates, st.booleans())
def test_counter_is_what_was_used_once_everything_has_ended(ops, gate, charge_predicted):
    """Without lifts nothing may leak: charges, corrections and refunds cancel out to the unit."""

    class NoLift(VTC):
        def _lift_level(self, name):
            return None

    chaos = chaos_of(NoLift(VTCSettings(charge_predicted=charge_predicted)), gate).run(ops)
    chaos.finish_all()
    for row in chaos.scheduler.shares(chaos.now):
        assert row.counter == pytest.approx(chaos.received[row.tenant])
