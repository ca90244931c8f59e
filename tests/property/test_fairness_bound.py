"""VTC keeps its published bound against an adversary, under both gates."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, gates, operations

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

weights = st.lists(st.sampled_from([1, 1, 2, 3, 8, 100]), min_size=4, max_size=4)
predictions = st.one_of(
    st.just(PredictionSettings(kind="None")),
    st.builds(lambda prior: PredictionSettings(prior_tokens=prior), st.sampled_from([1, 30, 10_000])),
)


def vtc(prediction, each, *, charge_predicted):
    tenants = {name: TenantSettings(weight=weight) for name, weight in zip(TENANTS, each, strict=True)}
    return VTC(VTCSettings(prediction=prediction, charge_predicted=charge_predicted), tenants)


@settings(max_examples=300, deadline=None)
@given(operations, gates, weights, predictions, st.booleans())
def test_no_pair_of_backlogged_tenants_ever_exceeds_the_bound(ops, gate, each, prediction, charge_predicted):
    scheduler = vtc(prediction, each, charge_predicted=charge_predicted)
    chaos = Chaos.over(scheduler, gate, dict(zip(TENANTS, each, strict=True))).run(ops)
    reach, lag = scheduler.watch.reach, scheduler.watch.lag
    for (f, g), gap in chaos.widest_gaps().items():
        limit = reach / chaos.weights[f] + reach / chaos.weights[g] + lag
        assert gap <= limit + 1e-3, f"{f} and {g} are {gap} apart, bound {limit}"
    scheduler.tick(chaos.now + 2)
    assert scheduler.bound(chaos.now).met


@settings(max_examples=300, deadline=None)
@given(operations, gates, weights, predictions, st.booleans())
def test_lift_lags_by_no_more_than_what_can_be_refunded(ops, gate, each, prediction, charge_predicted):
    scheduler = vtc(prediction, each, charge_predicted=charge_predicted)
    Chaos.over(scheduler, gate, dict(zip(TENANTS, each, strict=True)), requeues=False).run(ops)
    refundable = max(
        (seat.charged.value / seat.weight for seat in scheduler.watch._seats.values()), default=0
    )
    assert scheduler.watch.lag <= refundable + 1e-3
