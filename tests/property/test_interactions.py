"""Interactions: exactly the calls whose standing a dispatch changes are looked at, whatever indices a client sends."""

from hypothesis import example, given
from hypothesis import strategies as st

from equipoise_scheduling import interactions as module
from equipoise_scheduling.interactions import Interactions
from equipoise_scheduling.request import Request


def call(number, index):
    request = Request(
        id=str(number),
        tenant="blue",
        arrival=0.0,
        prompt_tokens=1,
        max_tokens=1,
        interaction="run",
        call_index=index,
    )
    request.number = number
    return request


@given(
    indices=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    steps=st.lists(st.tuples(st.sampled_from(["dispatch", "undo", "end"]), st.integers(0, 11)), max_size=40),
    preferred=st.integers(1, 20),
)
@example(indices=[1, 1, 2], steps=[("dispatch", 0), ("dispatch", 0), ("undo", 0)], preferred=3)
def test_calls_that_a_dispatch_or_its_undoing_makes_begun_or_not_are_the_affected_ones(
    indices, steps, preferred
):
    before_patch, module.MOST_PREFERRED = module.MOST_PREFERRED, preferred
    try:
        interactions = Interactions()
        waiting = [call(number, index) for number, index in enumerate(indices)]
        flying = []
        for request in waiting:
            interactions.joined(request)
        for step, place in steps:
            source = waiting if step == "dispatch" else flying
            if not source:
                continue
            request = source.pop(place % len(source))
            before = {each.id: interactions.begun(each) for each in waiting}
            if step == "dispatch":
                interactions.dispatched(request)
                flying.append(request)
            elif step == "undo":
                interactions.undone(request)
            else:
                interactions.ended(request, 1.0)
            changed = {each.id for each in waiting if interactions.begun(each) is not before[each.id]}
            if step == "end":
                assert not changed
                continue
            affected = {each.id for each in interactions.affected(request)}
            if interactions._living["blue", "", "run"].calls < preferred - 1:
                assert affected == changed
            assert affected >= changed
            if step == "undo":
                interactions.joined(request)
                waiting.append(request)
    finally:
        module.MOST_PREFERRED = before_patch
