"""The bounds hold, and their watches never cry wolf, while everything around them changes: weights, tenants, parameters,
service elsewhere, long waits. Generations are a few looks long here, so that forgetting is tried too.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import KINDS, TENANTS, Chaos, gates
from scheduling_harness import make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.generations import KEPT
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.holistic import UNIT
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.equinox import Equinox, EquinoxSettings
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

GENERATION, MAX_AGE = 5, 4
MORE = ("weigh", "elsewhere", "remove", "leave", "wait", "retune", "idle")
ALL = (*KINDS, *MORE)
operations = st.lists(
    st.integers(0, len(ALL) * 2**18 - 1).map(
        lambda number: (
            ALL[number % len(ALL)],
            *(number // len(ALL) >> shift & 63 for shift in (0, 6, 12)),
        )
    ),
    min_size=20,
    max_size=150,
)
predictions = st.one_of(
    st.just(PredictionSettings(kind="None")),
    st.builds(lambda prior: PredictionSettings(prior_tokens=prior), st.sampled_from([1, 30, 10_000])),
)
WEIGHTS = (1, 2, 8, 100)
weights = st.lists(st.sampled_from(WEIGHTS), min_size=4, max_size=4)


@contextmanager
def short_generations():
    with (
        mock.patch("equipoise_scheduling.bound.GENERATION", GENERATION),
        mock.patch("equipoise_scheduling.bound.MAX_AGE", MAX_AGE),
        mock.patch("equipoise_scheduling.counter_bound.GENERATION", GENERATION),
    ):
        yield


@dataclass
class Unruly(Chaos):
    """Reconfigures as it goes; counts each request's service over the weight that it was dispatched with."""

    tenants: dict = field(default_factory=dict)
    had: dict = field(default_factory=lambda: dict.fromkeys(TENANTS, 0.0))
    weight_of: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    retuned: Callable = lambda settings, _: settings

    def note(self):
        ticks = self.scheduler.watch._ticks
        self.history.append((ticks, dict(self.had), set(self.scheduler.choice)))
        self.history = [entry for entry in self.history if entry[0] >= ticks - MAX_AGE]
        self.check()

    def check(self):
        watch = self.scheduler.watch
        for (f, g), gap in self.recent_gaps().items():
            lightest = sum(watch._seats[name].lightest.value for name in (f, g))
            limit = watch.reach * lightest + watch.allowance
            assert gap <= limit * (1 + 1e-9) + 1e-3, f"{f} and {g} are {gap} apart, bound {limit}"

    def recent_gaps(self):
        """Largest difference of each pair over the intervals that end here, of at most MAX_AGE ticks."""
        gaps = {}
        now, backlogged = self.history[-1][1:]
        for at, f in enumerate(TENANTS):
            for g in TENANTS[at + 1 :]:
                if not {f, g} <= backlogged:
                    continue
                worst = 0.0
                for _, then, waiting in reversed(self.history):
                    if not {f, g} <= waiting:
                        break
                    worst = max(worst, abs(now[f] - now[g] - then[f] + then[g]))
                gaps[f, g] = worst
        return gaps

    def _facts(self, op):
        return {
            "ttft_budget": (None, 0.1, 1.0, 60.0)[op.z % 4],
            "interaction": ("", "i", "j", "k")[op.y % 4],
            "call_index": 1 + op.y % 3,
            "cached_tokens": op.x // 8,
        }

    def _moved(self, request):
        self.weight_of[request.id] = self.scheduler.books.flights[request.id].weight

    def _show(self, sent, prompt, generated):
        tenant = sent.request.tenant
        before = self.received[tenant]
        super()._show(sent, prompt, generated)
        self.had[tenant] += (self.received[tenant] - before) / self.weight_of[sent.request.id]

    def _reconfigure(self):
        settings = self.scheduler.books.settings
        self.scheduler.reconfigure(settings, self.tenants, self.now)

    def _weigh(self, op):
        name = TENANTS[op.x % 4]
        limit = (None, None, 1, 3)[op.z % 4]
        self.tenants[name] = TenantSettings(weight=WEIGHTS[op.y % 4], max_in_flight=limit)
        self._reconfigure()

    def _remove(self, op):
        self.tenants.pop(TENANTS[op.x % 4], None)
        self._reconfigure()

    def _elsewhere(self, op):
        name, cost = TENANTS[op.x % 4], float(op.y * op.z)
        weight = self.scheduler.books.open(name).settings.weight
        self.scheduler.add_service(name, cost, self.now)
        self.had[name] += cost / weight

    def _leave(self, op):
        for sent in [each for each in self.queued.values() if each.request.tenant == TENANTS[op.x % 4]]:
            self.scheduler.cancel(sent.request, self.now)
            self.ended[sent.request.id] = sent.request.outcome
            del self.queued[sent.request.id]

    def _wait(self, op):
        for _ in range(1 + op.x % 8):
            self._tick(op)
            self.note()

    def _retune(self, op):
        settings = self.retuned(self.scheduler.books.settings, op)
        self.scheduler.reconfigure(settings, self.tenants, self.now)

    def _idle(self, op):
        """Nothing for longer than anything is remembered."""
        self.now += 100
        for _ in range(KEPT * GENERATION + 1):
            self._tick(op)
            self.note()


def over(scheduler, gate, kind=Unruly):
    return kind.over(scheduler, gate, {})


@settings(max_examples=300, deadline=None)
@given(operations, gates, predictions, st.booleans())
def test_vtc(ops, gate, prediction, charge_predicted):
    with short_generations():
        scheduler = VTC(VTCSettings(prediction=prediction, charge_predicted=charge_predicted))
        over(scheduler, gate).run(ops)
        assert scheduler.bound(0.0).met


@settings(max_examples=300, deadline=None)
@given(
    operations,
    gates,
    st.builds(
        EquipoiseSettings,
        band=st.sampled_from([None, 0, 1, 300]),
        ordering=st.sampled_from(["Deadline", "FIFO"]),
        skips=st.sampled_from([0, 4]),
        prediction=predictions,
    ),
)
def test_equipoise(ops, gate, chosen):
    with short_generations():
        scheduler = Equipoise(chosen)
        chaos = over(scheduler, gate)
        chaos.retuned = lambda old, op: EquipoiseSettings(
            prediction=old.prediction,
            band=(None, 0, 40, 300)[op.x % 4],
            ordering=("FIFO", "Deadline")[op.y % 2],
        )
        chaos.run(ops)
        assert scheduler.bound(0.0).met


class Caching(VTC):
    """What the engine's prefix cache served turns out otherwise than estimated."""

    def settle(self, request, usage, outcome, now):
        usage = replace(usage, cached=usage.prompt * (request.number % 4) // 4)
        super().settle(request, usage, outcome, now)


class OneWeight(Unruly):
    """Service is what the books say, since prompts have two prices."""

    def note(self):
        tenants = self.scheduler.books.tenants
        self.had = {name: tenants[name].service.total_cost if name in tenants else 0.0 for name in TENANTS}
        super().note()

    def _elsewhere(self, op):
        pass

    def _weigh(self, op):
        pass


@settings(max_examples=200, deadline=None)
@given(operations, gates, predictions, st.sampled_from([0.0, 0.1, 3.0]))
def test_vtc_with_a_price_of_its_own_for_cached_tokens(ops, gate, prediction, price):
    with short_generations():
        scheduler = Caching(VTCSettings(prediction=prediction, cost=LinearCost(cached=price)))
        over(scheduler, gate, OneWeight).run(ops)
        assert scheduler.bound(0.0).met


class Distances(Unruly):
    """Compares counters, not service."""

    def check(self):
        scheduler = self.scheduler
        counters = [scheduler._accounts[name].value / UNIT for name in scheduler.choice]
        if len(counters) > 1:
            assert max(counters) - min(counters) <= scheduler.watch.limit * (1 + 1e-6) + 0.01


@settings(max_examples=300, deadline=None)
@given(operations, gates, predictions, st.sampled_from([0.0, 0.7, 1.0]))
def test_equinox(ops, gate, prediction, alpha):
    with short_generations():
        scheduler = Equinox(EquinoxSettings(prediction=prediction, alpha=alpha))
        over(scheduler, gate, Distances).run(ops)
        assert scheduler.bound(0.0).met


rounds = st.lists(
    st.tuples(
        st.sets(st.sampled_from(TENANTS), min_size=1),  # who waits
        st.integers(0, 12),  # requests served
        st.sampled_from([1, 1, 1, 4, 16]),  # looks
        st.sampled_from([1, 1, 10, 200]),  # prompt tokens
    ),
    min_size=4,
    max_size=40,
)
ALONE = {"VTC": VTCSettings, "Equipoise": EquipoiseSettings, "Equinox": EquinoxSettings}


@pytest.mark.parametrize("algorithm", sorted(ALONE))
@settings(max_examples=150, deadline=None)
@given(
    story=rounds, before=st.lists(st.sampled_from([0, 50, 2_000]), min_size=4, max_size=4), weights=weights
)
def test_tenants_that_begin_far_apart_come_and_go(algorithm, story, before, weights):
    """Little is ever in flight, so that distances from before are most of the bound."""
    with short_generations():
        tenants = {n: TenantSettings(weight=w) for n, w in zip(TENANTS, weights, strict=True)}
        chosen = ALONE[algorithm](prediction=PredictionSettings(kind="None"))
        former, scheduler = (SCHEDULERS[algorithm](chosen, tenants) for _ in range(2))
        for name, cost in zip(TENANTS, before, strict=True):
            former.add_service(name, cost, 0.0)
        scheduler.restore(former.snapshot())
        now, sent = 0.0, 0
        for waits, count, looks, prompt in story:
            for request in [r for r in scheduler.books.waiting.values() if r.tenant not in waits]:
                scheduler.cancel(request, now)
            for _ in range(count + 1):
                for name in sorted(waits):
                    while len(scheduler.books.open(name).queue) < 2:
                        sent += 1
                        request = make_request(str(sent), name, arrival=now, prompt=prompt, max_tokens=1)
                        assert scheduler.enqueue(request, now) is None
                if count:
                    request = scheduler.next(now, lambda _: True)
                    scheduler.settle(request, Usage(request.prompt_tokens, 0), Outcome.FINISHED, now)
            for _ in range(looks):
                now += 1
                scheduler.tick(now)
                bound = scheduler.bound(now)
                assert bound.met, bound


class Unwatched(Unruly):
    """Nothing is compared."""

    def note(self):
        pass


@pytest.mark.parametrize("after", ["VTC", "Equipoise", "Equinox", "FairServe"])
@settings(max_examples=60, deadline=None)
@given(ops=operations, gate=gates, cut=st.integers(10, 60), before=st.sampled_from(sorted(SCHEDULERS)))
def test_change_of_algorithm(after, ops, gate, cut, before):
    """By the watches' own comparison: what FairServe counts is not what the engine delivers."""
    with short_generations():
        chaos = over(make(before), gate, Unwatched).run(ops[:cut])
        scheduler = chaos.scheduler = carry_over(chaos.scheduler, make(after), chaos.now)
        for op in ops[cut:]:
            chaos.apply(*op)
            bound = scheduler.bound(chaos.now)
            assert bound.met, bound


def make(algorithm):
    own = {"requests_per_minute": 1_000_000} if algorithm == "RPM" else {}
    return SCHEDULERS[algorithm](SCHEDULERS[algorithm].settings_type(**own))
