"""Equinox against an adversary: its bound, its parts, and that nothing leaks."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, gates, operations

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.holistic import UNIT, WHOLE
from equipoise_scheduling.mapper import Load
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.equinox import Equinox, EquinoxSettings

weights = st.lists(st.sampled_from([1, 1, 2, 8, 100]), min_size=4, max_size=4)
predictions = st.one_of(
    st.just(PredictionSettings(kind="None")),
    st.builds(
        lambda kind, prior: PredictionSettings(kind=kind, prior_tokens=prior),
        st.sampled_from(["MovingAverage", "Mixture"]),
        st.sampled_from([1, 30, 10_000]),
    ),
)
alphas = st.sampled_from([0.0, 0.333, 0.7, 1.0])
parameters = st.fixed_dictionaries(
    {"prediction": predictions, "delay_discount": st.sampled_from([0.0, 0.1, 5.0]), "alpha": alphas}
)


def equinox(kind=Equinox, each=(1,) * 4, **own):
    tenants = {name: TenantSettings(weight=weight) for name, weight in zip(TENANTS, each, strict=True)}
    return kind(EquinoxSettings(**own), tenants)


class Watched(Chaos):
    """Compares the counters of the backlogged after every event, not only at ticks."""

    def note(self):
        super().note()
        scheduler = self.scheduler
        counters = [scheduler._accounts[name].value / UNIT for name in scheduler.choice]
        if len(counters) > 1:
            assert max(counters) - min(counters) <= scheduler.watch.limit * (1 + 1e-6) + 0.01


@settings(max_examples=300, deadline=None)
@given(operations, gates, weights, parameters)
def test_backlogged_tenants_never_drift_further_apart_than_the_bound(ops, gate, each, own):
    scheduler = equinox(each=each, **own)
    Watched.over(scheduler, gate, dict(zip(TENANTS, each, strict=True))).run(ops)
    assert scheduler.bound(0.0).met


@settings(max_examples=150, deadline=None)
@given(operations, gates, predictions, alphas)
def test_parts_add_up_to_the_whole_and_nothing_is_left_in_flight(ops, gate, prediction, alpha):
    scheduler = equinox(prediction=prediction, alpha=alpha)
    chaos = Chaos.over(scheduler, gate, {}).run(ops)
    chaos.finish_all()
    share = round(alpha * WHOLE)
    for account in scheduler._accounts.values():
        whole = share * account.user + (WHOLE - share) * account.resource
        assert abs(account.value - whole) <= WHOLE * (len(ops) * 8 + 1)
        assert account.value >= account.floor >= 0
    assert scheduler._load.now == Load()
    assert (scheduler._trips, scheduler._heads._put_back) == ({}, {})


@settings(max_examples=150, deadline=None)
@given(operations, gates, predictions)
def test_without_lifts_the_resource_counter_is_the_tokens_delivered(ops, gate, prediction):
    class NoLift(Equinox):
        def _lift_level(self, name):
            return None

    scheduler = equinox(NoLift, alpha=0.0, r0=1.0, prediction=prediction)
    chaos = Chaos.over(scheduler, gate, {}).run(ops)
    chaos.finish_all()
    for row in scheduler.shares(chaos.now):
        tokens = row.total.prompt + row.total.generated
        assert abs(scheduler.counters(row.tenant)[1] - tokens) < 0.01
