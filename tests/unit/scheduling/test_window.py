"""The in-flight window beside engines of known size, on a fake clock."""

import pytest

from equipoise_scheduling.window import InFlightWindow, Observation


def look(window, now, *, waiting=0, tokens=0, in_flight=None, queued=50):
    window.observe(
        now,
        Observation(
            in_flight=window.size if in_flight is None else in_flight,
            queued=queued,
            waiting=waiting,
            tokens=tokens,
        ),
    )


def run(window, *, slots, seconds, saturation=10_000, metrics=True, now=0.0):
    """An engine that runs `slots` sequences at a token a step; more than `saturation` run no faster."""
    tokens = 0.0
    sizes = []
    for second in range(seconds):
        running = min(window.size, slots)
        tokens += 100 * min(running, saturation)
        look(window, now + second, waiting=window.size - running if metrics else None, tokens=int(tokens))
        sizes.append(window.size)
    return sizes


@pytest.mark.parametrize("slots", [3, 8, 60, 256])
def test_settles_with_one_or_two_requests_waiting_in_the_engine(slots):
    sizes = run(InFlightWindow(), slots=slots, seconds=90)
    assert all(slots <= size <= slots + InFlightWindow.TARGET for size in sizes[-20:])


def test_finds_a_large_engine_quickly():
    sizes = run(InFlightWindow(), slots=256, seconds=30)
    assert sizes[20] >= 256


def test_stops_growing_where_throughput_no_longer_rises():
    sizes = run(InFlightWindow(), slots=1000, seconds=300, saturation=20)
    assert max(sizes[60:]) <= 40


def test_without_metrics_throughput_alone_guides_it():
    sizes = run(InFlightWindow(), slots=1000, seconds=400, saturation=40, metrics=False)
    assert 24 <= sizes[-1] <= 48


def test_does_not_grow_while_it_is_not_full_or_nobody_waits():
    window = InFlightWindow()
    for second in range(30):
        look(window, float(second), in_flight=4, tokens=second * 1000)
        look(window, second + 0.5, queued=0, tokens=second * 1000)
    assert window.size == 8


def test_waiting_above_the_target_shrinks_it_by_the_excess():
    window = InFlightWindow(start=40)
    look(window, 0.0, waiting=12)
    assert window.size == 30
    look(window, 0.5, waiting=12)
    assert window.size == 30, "one scrape acts once"


def test_busy_engine_takes_a_tenth_once_a_second():
    window = InFlightWindow(start=100)
    for now in (0.0, 0.2, 0.9):
        window.busy(now)
    assert window.size == 90
    window.busy(1.0)
    assert window.size == 81


def test_preemption_takes_a_tenth_once_in_ten_seconds():
    window = InFlightWindow(start=100)
    for now in (0.0, 3.0, 9.0):
        window.preempted(now)
    assert window.size == 90
    window.preempted(10.0)
    assert window.size == 81


def test_never_falls_below_one():
    window = InFlightWindow(start=2)
    for second in range(20):
        window.busy(float(second))
        look(window, float(second), waiting=50)
    assert window.size == 1


def test_recovers_after_the_engine_was_busy():
    window = InFlightWindow()
    run(window, slots=32, seconds=40)
    for at in range(10):
        window.busy(40.0 + at)
    assert window.size < 20
    assert run(window, slots=32, seconds=60, now=60.0)[-1] >= 32
