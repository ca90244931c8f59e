"""A shadow of the enforced scheduler's own algorithm changes nothing; one of another never starts more than was started."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shadow_rig import WEIGHTED, Rig

from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome

EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"),
            st.sampled_from(["blue", "red", "green", "stranger"]),
            st.integers(1, 200),
            st.integers(1, 60),
            st.sampled_from(["", "a", "b"]),
        ),
        st.tuples(st.just("generate"), st.integers(0, 9), st.integers(1, 30)),
        st.tuples(st.just("finish"), st.integers(0, 9), st.integers(1, 60)),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("give back"), st.integers(0, 9)),
        st.tuples(st.just("tick"), st.floats(0.01, 30)),
    ),
    max_size=80,
)


def play(rig, events):
    for kind, *facts in events:
        place = facts[0] if facts else 0
        if kind == "send":
            tenant, prompt, most, user = facts
            rig.send(tenant, prompt, most, user=user)
        elif kind == "tick":
            rig.tick(place)
        elif kind == "leave":
            if rig.waiting:
                rig.leave(rig.waiting[place % len(rig.waiting)])
        elif rig.running:
            request = rig.running[place % len(rig.running)]
            if kind == "generate":
                rig.generate(request, facts[1])
            elif kind == "finish":
                rig.finish(request, facts[1])
            elif kind == "abort":
                rig.finish(request, 1, Outcome.CANCELLED)
            elif request.id not in rig.generated:
                rig.give_back(request)


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
@given(events=EVENTS, slots=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_shadow_of_the_enforced_algorithm_changes_nothing(algorithm, events, slots):
    rig = Rig(algorithm, algorithm, slots=slots, tenants=WEIGHTED)
    play(rig, events)
    report = rig.report(algorithm)
    assert report.off is None
    assert (report.changed_total, report.refused_total) == (0, 0)
    assert report.compared_total == len(rig.started)
    (shadow,) = rig.shadows
    assert shadow.scheduler.queued == rig.scheduler.queued


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
@given(events=EVENTS, slots=st.integers(1, 4), enforced=st.sampled_from(sorted(SCHEDULERS)))
@settings(max_examples=40, deadline=None)
def test_no_shadow_fails_loses_a_request_or_starts_more_than_there_was_room_for(
    algorithm, events, slots, enforced
):
    rig = Rig(enforced, algorithm, slots=slots, tenants=WEIGHTED)
    (shadow,) = rig.shadows
    play(rig, events)
    assert shadow.off is None
    if not any(kind == "give back" for kind, *_ in events):
        assert shadow._room >= 0
    while rig.waiting or rig.running:
        rig.tick()
        for request in list(rig.running):
            rig.finish(request)
    assert shadow.scheduler.queued == 0
    assert shadow._mirrors == {}
    assert shadow.scheduler.in_flight == 0
    assert rig.shadows._seen == {}
