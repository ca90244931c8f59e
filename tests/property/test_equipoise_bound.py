"""Equipoise keeps its bound against an adversary, with any band; and without a band it is VTC."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, Numbers, gates, operations

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

weights = st.lists(st.sampled_from([1, 1, 2, 3, 8, 100]), min_size=4, max_size=4)
predictions = st.one_of(
    st.just(PredictionSettings(kind="None")),
    st.builds(lambda prior: PredictionSettings(prior_tokens=prior), st.sampled_from([1, 30, 10_000])),
)
equipoises = st.builds(
    EquipoiseSettings,
    band=st.sampled_from([None, 0, 1, 40, 300]),
    ordering=st.sampled_from(["Deadline", "FIFO"]),
    stretch=st.sampled_from([0, 5]),
    overdue_every=st.sampled_from([2, 5]),
    skips=st.sampled_from([0, 1, 4]),
    prediction=predictions,
)


class Demanding(Chaos):
    """An adversary whose requests have deadlines of their own, cached prefixes and interactions."""

    def _enqueue(self, op):
        before = set(self.accepted)
        original = self.scheduler.enqueue

        def enqueue(request, now):
            request.ttft_budget = (None, 0.1, 1.0, 60.0)[op.z % 4]
            request.cached_tokens = min(request.prompt_tokens, op.x // 8)
            request.interaction, request.call_index = ("", "i", "j", "k")[op.y % 4], 1 + op.y % 3
            return original(request, now)

        self.scheduler.enqueue = enqueue
        super()._enqueue(op)
        self.scheduler.enqueue = original
        assert before <= set(self.accepted)


def tenants_of(each):
    return {name: TenantSettings(weight=weight) for name, weight in zip(TENANTS, each, strict=True)}


def chaos_of(scheduler, gate, each, **kwargs):
    return Demanding.over(scheduler, gate, dict(zip(TENANTS, each, strict=True)), **kwargs)


class Prompt(Demanding):
    """Each request ends as it is dispatched, so that little is ever in flight and the band is most of the bound."""

    def _moved(self, request):
        self._end(Numbers(list(self.flying).index(request.id), 0, 0))


@settings(max_examples=400, deadline=None)
@given(operations, gates, weights, equipoises, st.sampled_from([Demanding, Prompt]))
def test_no_pair_of_backlogged_tenants_ever_exceeds_the_bound(ops, gate, each, chosen, adversary):
    scheduler = Equipoise(chosen, tenants_of(each))
    chaos = adversary.over(scheduler, gate, dict(zip(TENANTS, each, strict=True))).run(ops)
    for (f, g), gap in chaos.widest_gaps().items():
        limit = scheduler.watch.limit(chaos.weights[f], chaos.weights[g])
        assert gap <= limit + 1e-3, f"{f} and {g} are {gap} apart, bound {limit}"
    scheduler.tick(chaos.now + 2)
    assert scheduler.bound(chaos.now).met


@settings(max_examples=200, deadline=None)
@given(operations, gates, weights, equipoises)
def test_choice_strays_by_no_more_than_the_band_and_what_can_be_refunded(ops, gate, each, chosen):
    farthest = widest = 0.0

    class Watched(Equipoise):
        def _dispatch(self, request, now):
            nonlocal farthest, widest
            counters = {name: self._accounts[name].value / SCALE for name in self.choice}
            farthest = max(farthest, counters[request.tenant] - min(counters.values()))
            widest = max(widest, self.band_units / SCALE)
            assert counters[request.tenant] - min(counters.values()) <= self._slack
            return super()._dispatch(request, now)

    scheduler = Watched(chosen, tenants_of(each))
    chaos_of(scheduler, gate, each, requeues=False).run(ops)
    refundable = max(
        (seat.charged.value / seat.weight for seat in scheduler.watch._seats.values()), default=0
    )
    assert scheduler.watch.slack <= widest + refundable + 1e-3
    assert farthest <= scheduler.watch.slack


@settings(max_examples=100, deadline=None)
@given(operations, gates, weights, equipoises)
def test_never_lifts_below_the_virtual_time_and_it_never_falls(ops, gate, each, chosen):
    scheduler = Equipoise(chosen, tenants_of(each))
    highest = 0

    class Watched(Demanding):
        def note(self):
            nonlocal highest
            super().note()
            assert scheduler._virtual_time >= highest
            highest = scheduler._virtual_time

    Watched.over(scheduler, gate, dict(zip(TENANTS, each, strict=True))).run(ops)


@pytest.mark.parametrize("stretch", [0, 5])
@settings(max_examples=150, deadline=None)
@given(ops=operations, gate=gates, each=weights, prediction=predictions)
def test_without_a_band_it_is_vtc(stretch, ops, gate, each, prediction):
    ours = Equipoise(
        EquipoiseSettings(band=0, ordering="FIFO", stretch=stretch, prediction=prediction), tenants_of(each)
    )
    theirs = VTC(VTCSettings(prediction=prediction), tenants_of(each))
    urgent, patient = (chaos_of(scheduler, gate, each) for scheduler in (ours, theirs))
    # The gate keeps room for urgent requests: only what has a deadline shows it which are.
    for chaos in (urgent, patient):
        chaos.gate.settings = type(chaos.gate.settings)(kind=gate[0], headroom_percent=0)
        chaos.run(ops)
    assert urgent.dispatched == patient.dispatched
    assert {row.tenant: row.counter for row in ours.shares(0.0)} == {
        row.tenant: row.counter for row in theirs.shares(0.0)
    }
