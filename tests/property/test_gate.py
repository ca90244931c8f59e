"""With true lengths the peak gate never lets the cache overflow, and its formula is the definition."""

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_harness import make_request

from equipoise_scheduling.gate import Gate, GateSettings

sizes = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 80), st.integers(1, 3)), min_size=1, max_size=30
)


def requests_of(each):
    return [
        make_request(f"r{at}", prompt=prompt, max_tokens=output, predicted_tokens=output, sequences=n)
        for at, (prompt, output, n) in enumerate(each)
    ]


def gate(pool, block=1, kind="peak"):
    made = Gate(GateSettings(kind=kind, utilisation_percent=100.0, headroom_percent=0.0))
    made.set_pool(pool, block)
    return made


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(100, 600), st.sampled_from([1, 16]), st.sampled_from(["peak", "reserve"]))
def test_cache_never_overflows_when_lengths_are_known(each, pool, block, kind):
    made, waiting, running = gate(pool, block, kind), requests_of(each), {}
    while waiting or running:
        while waiting and made.fits(waiting[0], 0.0):
            made.start(waiting[0])
            running[waiting.pop(0)] = 0
        # A request alone is always admitted; blocks are rounded where requests stand, not where they will end.
        slack = (block - 1) * made.sequences
        assert made.used <= pool + slack or len(running) == 1
        for request in list(running):
            running[request] += 1
            made.progress(request, request.prompt_tokens, running[request] * request.sequences)
            if running[request] == request.max_tokens:
                made.finish(request)
                del running[request]


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(0, 29))
def test_peak_is_the_largest_use_of_any_step_to_come(each, progressed):
    made, requests = gate(10_000), requests_of(each)
    for request in requests:
        made.start(request)
        generated = min(progressed, request.max_tokens - 1)
        made.progress(request, request.prompt_tokens, generated * request.sequences)
    states = [(held.kv, held.remaining, held.sequences) for held in made._held.values()]
    steps = range(1, max(remaining for _, remaining, _ in states) + 1)
    use = [sum(kv + n * step for kv, remaining, n in states if remaining >= step) for step in steps]
    assert made.peak == max(use)
    for candidate in requests_of([(7, 33, 2)]):
        candidate.id = "candidate"
        together = [*states, (7, 33, 2)]
        steps = range(1, max(remaining for _, remaining, _ in together) + 1)
        want = max(sum(kv + n * step for kv, remaining, n in together if remaining >= step) for step in steps)
        made.set_pool(want, 1)
        assert made.fits(candidate, 0.0) == (made.outstanding + 66 <= want)
        made.set_pool(want - 1, 1)
        assert not made.fits(candidate, 0.0)
