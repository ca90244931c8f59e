"""What RPM, DRR and ExFairS hold to whatever happens."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, gates, operations
from scheduling_harness import make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.request import Reason
from equipoise_scheduling.schedulers.drr import DRR, DRRSettings
from equipoise_scheduling.schedulers.exfairs import ExFairS, ExFairSSettings
from equipoise_scheduling.schedulers.rpm import RPM, RPMSettings

many = settings(max_examples=200, deadline=None)


@many
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.booleans()), max_size=80),
    st.integers(1, 6),
)
def test_rpm_accepts_as_many_as_its_limit_in_any_minute_and_no_fewer(arrivals, limit):
    scheduler = RPM(RPMSettings(requests_per_minute=limit))
    now, accepted = 0.0, {"a": [], "b": []}
    for number, (gap, tenant, tick) in enumerate(arrivals):
        now += gap
        if tick:
            scheduler.tick(now)
        refusal = scheduler.enqueue(make_request(str(number), tenant, arrival=now), now)
        recent = [at for at in accepted[tenant] if at > now - 60]
        assert (refusal is None) == (len(recent) < limit)
        if refusal is None:
            accepted[tenant].append(now)
        else:
            assert refusal.reason is Reason.RATE_LIMITED
            assert now + refusal.retry_after_seconds == min(recent) + 60
    for times in accepted.values():
        for start in times:
            assert sum(start <= at < start + 60 for at in times) <= limit


@many
@given(
    operations,
    gates,
    st.sampled_from([20, 300]),
    st.lists(st.sampled_from([1, 2, 5]), min_size=4, max_size=4),
)
def test_drr_admits_only_out_of_debt_and_never_owns_more_than_a_quantum_and_what_was_given_back(
    ops, gate, quantum, weights
):
    tenants = {name: TenantSettings(weight=w) for name, w in zip(TENANTS, weights, strict=True)}
    scheduler = DRR(DRRSettings(quantum=quantum), tenants)
    given_back = dict.fromkeys(TENANTS, 0)
    charge = scheduler._charge

    def counted(flight, cost):
        name = flight.tenant.name
        before = scheduler._deficits.get(name, 0)
        charge(flight, cost)
        given_back[name] += max(0, scheduler._deficits[name] - before)

    scheduler._charge = counted

    class Checked(Chaos):
        def _moved(self, request):
            flight = scheduler.books.flights[request.id]
            assert scheduler._deficits[request.tenant] + flight.charge.after > 0, "admitted in debt"

    Checked.over(scheduler, gate, dict(zip(TENANTS, weights, strict=True))).run(ops)
    for name, deficit in scheduler._deficits.items():
        assert deficit <= quantum * SCALE + given_back[name]


@many
@given(operations, gates)
def test_drr_debts_are_what_was_used_less_the_quanta_of_whole_turns(ops, gate):
    scheduler = DRR(DRRSettings(quantum=50))
    chaos = Chaos.over(scheduler, gate, {}).run(ops)
    chaos.finish_all()
    for name, deficit in scheduler._deficits.items():
        owed = deficit / SCALE + chaos.received[name]
        assert owed >= 0
        assert owed % 50 == 0


class TurnByTurn(DRR):
    def _skip_rounds(self, quantum):
        """Pass every turn."""


@many
@given(operations, gates, st.sampled_from([1, 3, 50]))
def test_drr_skips_rounds_as_if_it_had_passed_every_turn(ops, gate, quantum):
    quick, slow = (kind(DRRSettings(quantum=quantum)) for kind in (DRR, TurnByTurn))
    first, second = (Chaos.over(scheduler, gate, {}).run(ops) for scheduler in (quick, slow))
    assert first.dispatched == second.dispatched
    assert quick._deficits == slow._deficits
    assert list(quick._active) == list(slow._active)


rounds = st.lists(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1),
    min_size=1,
    max_size=30,
)


@many
@given(rounds, st.sampled_from([1, 7, 50]))
def test_exfairs_priorities_are_bounded_and_what_one_lends_another_borrows(history, limit):
    scheduler = ExFairS(ExFairSSettings(priority_limit=limit))
    number = 0
    for at, round_ in enumerate(history):
        scheduler.tick(100.0 * at)
        for tenant, (kept, missed) in round_.items():
            for late in [False] * kept + [True] * missed:
                number += 1
                now = 100.0 * at + 1
                request = make_request(str(number), tenant, arrival=now, e2e_budget=10.0)
                scheduler.enqueue(request, now)
                scheduler.cancel(request, now + (11 if late else 5))
        scheduler.tick(100.0 * at + 99)
        priorities = [scheduler.priority_of(name) for name in "abcdef"]
        assert sum(priorities) == 0
        assert max(map(abs, priorities)) <= limit


@many
@given(operations, gates, st.lists(st.integers(-9, 9), min_size=4, max_size=4), st.sampled_from([1, 4, 50]))
def test_exfairs_overtakes_nobody_too_often(ops, gate, priorities, overtakes):
    scheduler = ExFairS(ExFairSSettings(overtakes=overtakes, round_seconds=1e9))
    for name, priority in zip(TENANTS, priorities, strict=True):
        scheduler._experience(name).priority = priority
    passed = {}

    class Checked(Chaos):
        def _moved(self, request):
            for sent in self.queued.values():
                older = sent.request
                if older.number < request.number:
                    passed[older.id] = passed.get(older.id, 0) + 1
                    assert passed[older.id] <= overtakes
                    mine, other = (scheduler.priority_of(each.tenant) for each in (request, older))
                    assert mine < other, "FIFO among equals"

    Checked.over(scheduler, gate, {}, requeues=False).run(ops)
