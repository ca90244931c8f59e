"""Overload throttling against an adversary, under every scheduler."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_chaos import Chaos, Numbers, gates, operations

from equipoise_scheduling.overload import Arrivals, OverloadSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome

EVERY = sorted(SCHEDULERS)
many = settings(max_examples=60, deadline=None)
limits = st.builds(
    lambda user, application: OverloadSettings(user_per_minute=user, application_per_minute=application),
    st.sampled_from([None, 1, 1, 2]),
    st.sampled_from([None, 1, 2, 5]),
)


class Throttled(Chaos):
    """Clients with users, applications and interactions; checks each refusal where it happens."""

    def _facts(self, op: Numbers):
        return {
            "user": ("", "ann", "bob")[op.z % 3],
            "application": ("", "chat")[op.y % 2],
            "interaction": ("", "i", "j")[op.x % 3],
            "call_index": 1 + op.z // 3 % 3,
        }

    def begun(self, request):
        """Say whether a dispatch of a call of the request's interaction stands."""
        mine = (request.tenant, request.user, request.interaction)
        return bool(request.interaction) and any(
            other.request.dispatched is not None
            and (other.request.tenant, other.request.user, other.request.interaction) == mine
            for other in self.accepted.values()
        )

    def _throttled(self, request):
        assert self.flying, "refused although nothing is in flight"
        assert not self.begun(request), "refused in the middle of its interaction"
        settings = self.scheduler.books.settings.overload
        assert settings.user_per_minute or settings.application_per_minute

    def _turned_away(self, request):
        assert request.interaction
        assert request.call_index > 1
        assert request.outcome is None


@pytest.mark.parametrize("algorithm", EVERY)
@many
@given(ops=operations, gate=gates, overload=limits, slots=st.integers(1, 3))
def test_nothing_is_lost_and_an_interaction_once_begun_is_never_throttled(
    algorithm, ops, gate, overload, slots
):
    own = {"requests_per_minute": 1_000_000} if algorithm == "RPM" else {}
    scheduler = SCHEDULERS[algorithm](SCHEDULERS[algorithm].settings_type(overload=overload, **own))
    chaos = Throttled.over(scheduler, gate, {})
    chaos.gate.max_in_flight = slots
    chaos.run(ops)
    chaos.finish_all()
    assert {name: sent.request.outcome for name, sent in chaos.accepted.items()} == chaos.ended
    counted = Counter(chaos.ended.values())
    assert {outcome: count for outcome, count in scheduler.books.outcomes.items() if count} == counted
    assert (scheduler.queued, scheduler.in_flight) == (0, 0)
    if overload == OverloadSettings():
        assert counted[Outcome.REFUSED] == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 30)), min_size=1, max_size=60), st.integers(1, 8))
def test_window_is_the_minute_before_the_newest_arrival(steps, limit):
    """Against counting all arrivals anew."""
    arrivals = Arrivals(limit)
    came: dict[int, list[float]] = {}
    now = 0.0
    for sender, step in steps:
        now += step
        arrivals.add("t", str(sender), now)
        came.setdefault(sender, []).append(now)
        for each, times in came.items():
            *before, newest = times
            above = sum(newest - 60 < time for time in before) >= limit
            wait = arrivals.retry_after("t", str(each), now)
            assert (wait is not None) == above
            if wait is not None and wait > 1:
                # Another arrival then would find the sender within its limit, and a little earlier above it.
                assert sum(now + wait - 60 < time - 1e-6 for time in times) < limit
                assert sum(now + wait - 60 - 1e-3 < time for time in times) >= limit
