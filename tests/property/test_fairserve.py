"""FairServe against an adversary that names users, applications and interactions."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import TENANTS, Chaos, Numbers, assert_put_back_leaves_no_trace, gates, operations
from scheduling_harness import make_request

from equipoise_scheduling.contract import ApplicationSettings, TenantSettings
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.fairserve import FairServe, FairServeSettings
from equipoise_scheduling.typical import PRIOR_INPUT

TYPICAL = {"chat": (10, 20), "rag": (60, 5), "": (30, 30)}
"""Declared prompt and output of each application."""
APPLICATIONS = {
    name: ApplicationSettings(expected_input=prompt, expected_output=output)
    for name, (prompt, output) in TYPICAL.items()
}
weights = st.lists(st.sampled_from([1, 1, 2, 3, 8]), min_size=4, max_size=4)
predictions = st.one_of(
    st.just(PredictionSettings(kind="None")),
    st.builds(lambda prior: PredictionSettings(prior_tokens=prior), st.sampled_from([1, 30, 10_000])),
)


class Facts(Chaos):
    """Clients that name users, applications and interactions, and judge the order inside a tenant."""

    def _facts(self, op: Numbers):
        return {
            "user": ("", "ann", "bob")[op.z % 3],
            "application": tuple(TYPICAL)[op.y % 3],
            "interaction": ("", "i", "j")[op.x % 3],
            "call_index": 1 + op.z // 3 % 4,
        }

    def begun(self, request):
        """Say whether an earlier call of the request's interaction was dispatched, and the dispatch stands."""
        if not request.interaction or request.call_index == 1:
            return False
        earlier = (
            other.request
            for other in self.accepted.values()
            if other.request.dispatched is not None and other.request is not request
        )
        return any(
            (other.tenant, other.user, other.interaction)
            == (request.tenant, request.user, request.interaction)
            and other.call_index < request.call_index
            for other in earlier
        )

    def _moved(self, request):
        mine = [sent.request for sent in self.queued.values() if sent.request.tenant == request.tenant]
        if not self.begun(request):
            assert not any(self.begun(other) for other in mine if not self.just_begun(other, request))
        older = [other for other in mine if other.user == request.user and other.number < request.number]
        assert all(self.begun(request) and not self.begun(other) for other in older)

    @staticmethod
    def just_begun(other, request):
        """`request` itself is what made `other` one in the middle."""
        return (other.user, other.interaction) == (request.user, request.interaction)


def fairserve(prediction=None, each=(1, 1, 1, 1)):
    tenants = {
        name: TenantSettings(weight=weight, applications=APPLICATIONS)
        for name, weight in zip(TENANTS, each, strict=True)
    }
    return FairServe(FairServeSettings(prediction=prediction or PredictionSettings()), tenants)


@settings(max_examples=200, deadline=None)
@given(operations, gates)
def test_begun_interactions_go_first_a_user_is_served_in_order_and_nothing_is_lost(ops, gate):
    scheduler = fairserve()
    chaos = Facts.over(scheduler, gate, {}).run(ops)
    chaos.finish_all()
    assert {name: sent.request.outcome for name, sent in chaos.accepted.items()} == chaos.ended
    assert (scheduler.queued, scheduler.in_flight) == (0, 0)
    assert scheduler._bills == {}
    assert scheduler.books.interactions._living == {}


@settings(max_examples=200, deadline=None)
@given(operations, gates)
def test_put_back_is_as_if_never_dispatched_for_users_and_interactions_too(ops, gate):
    busy, quiet = (Facts.over(fairserve(), gate, {}).run(ops) for _ in range(2))
    assert_put_back_leaves_no_trace(busy, quiet)


@settings(max_examples=200, deadline=None)
@given(operations, gates)
def test_snapshot_of_users_and_applications_restores_to_itself(ops, gate):
    snapshot = Facts.over(fairserve(), gate, {}).run(ops).scheduler.snapshot()
    fresh = fairserve()
    fresh.restore(json.loads(json.dumps(snapshot)))
    assert fresh.snapshot() == snapshot


class InTypicalRequests(Facts):
    """Counts what is received as FairServe's counter does, apart from it."""

    prior_output = 256

    def _show(self, sent, prompt, generated):
        typical_prompt, typical_output = TYPICAL[sent.request.application]
        scale = (PRIOR_INPUT + 2 * self.prior_output) / (typical_prompt + 2 * typical_output)
        before = self.received[sent.request.tenant]
        super()._show(sent, prompt, generated)
        received = self.received[sent.request.tenant] - before
        self.received[sent.request.tenant] = before + received * scale


@settings(max_examples=300, deadline=None)
@given(operations, gates, weights, predictions)
def test_no_pair_of_backlogged_tenants_exceeds_the_bound_in_typical_requests(ops, gate, each, prediction):
    scheduler = fairserve(prediction, each)
    chaos = InTypicalRequests.over(scheduler, gate, dict(zip(TENANTS, each, strict=True)))
    chaos.prior_output = prediction.prior_tokens
    chaos.run(ops)
    for (f, g), gap in chaos.widest_gaps().items():
        limit = scheduler.watch.limit(chaos.weights[f], chaos.weights[g])
        assert gap <= limit * (1 + 1e-9) + 1e-3, f"{f} and {g} are {gap} apart, bound {limit}"
    scheduler.tick(chaos.now + 2)
    assert scheduler.bound(chaos.now).met


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=200))
def test_waiting_users_of_a_tenant_are_never_further_apart_than_their_largest_charges(arrivals):
    """All wait from the start: then no user is more than two requests ahead of another."""
    scheduler = FairServe(FairServeSettings(prediction=PredictionSettings(kind="None")))
    for at, (user, prompt) in enumerate(arrivals):
        request = make_request(str(at), user=f"user-{user}", prompt=prompt)
        assert scheduler.enqueue(request, 0.0) is None
    served = {request.user: 0 for request in scheduler.books.waiting.values()}
    waiting = list(scheduler.books.waiting.values())
    while waiting:
        request = scheduler.next(0.0, lambda _: True)
        waiting.remove(request)
        served[request.user] += request.prompt_tokens
        still = {other.user for other in waiting}
        if still:
            assert max(served.values()) - min(served[user] for user in still) <= 60
