"""However often estimates of cached tokens change: whoever goes is the most urgent head by the estimates of that moment."""

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings

TENANTS = "abc"
operation = st.tuples(
    st.sampled_from(["send", "go", "shut", "look", "end", "leave"]), st.integers(0, 2), st.integers(0, 90)
)


@settings(deadline=None)
@given(st.lists(operation, max_size=80), st.sampled_from(["Deadline", "FIFO"]), st.sampled_from([None, 5.0]))
def test_the_head_that_goes_is_the_most_urgent_by_what_is_cached_then(operations, ordering, slo):
    scheduler = Equipoise(
        EquipoiseSettings(band=10**9, ordering=ordering, prediction=PredictionSettings(kind="None")), {}
    )
    waiting, flying = [], []
    for number, (what, place, cached) in enumerate(operations):
        tenant = TENANTS[place]
        if what == "send":
            request = Request(
                id=str(number),
                tenant=tenant,
                arrival=0.0,
                prompt_tokens=100,
                max_tokens=10,
                ttft_budget=slo,
                cached_tokens=cached,
            )
            assert scheduler.enqueue(request, 0.0) is None
            waiting.append(request)
        elif what == "look":
            scheduler.look_again(tenant, lambda _, cached=cached: cached)
        elif what == "shut":

            def shut(request, cached=cached):
                request.cached_tokens = (cached + request.number) % 100
                return False

            assert scheduler.next(0.0, shut) is None
        elif what == "end" and flying:
            scheduler.settle(flying.pop(place % len(flying)), Usage(100, 5), Outcome.FINISHED, 0.0)
        elif what == "leave" and waiting:
            scheduler.cancel(waiting.pop(place % len(waiting)), 0.0)
        elif what == "go" and waiting:
            first = min(scheduler.choice, key=scheduler._urgency)
            assert scheduler.next(0.0, lambda _: True).tenant == first
            flying.append(next(r for r in waiting if r.dispatched is not None))
            waiting.remove(flying[-1])
        for name in scheduler.choice:
            place_of_head, _ = scheduler._queue(name).first()
            assert place_of_head[2] == -scheduler._queue(name).head().cached_tokens
