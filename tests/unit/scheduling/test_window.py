"""The in-flight window beside a model of vLLM of known size, under steady overload, and its single steps."""

from functools import cache
from itertools import pairwise

import pytest
from window_world import WindowWorld, profile

from equipoise_scheduling.window import InFlightWindow, Observation
from equipoise_simulator.engine_model import EngineModel

SECONDS = 150
WARM_UP = 60
ENGINES = [4, 8, 32, 256]


def world(slots, window, *, kv_tokens=400_000, **load):
    return WindowWorld(EngineModel(profile(slots, kv_tokens=kv_tokens)), window, **load)


def speed(world, start=WARM_UP, end=SECONDS - 1):
    """Output tokens a second."""
    return (world.made[end] - world.made[start]) / (end - start)


@cache
def known(slots, seed, **load):
    """What the engine does when somebody says how many it runs."""
    return speed(world(slots, None, seed=seed, **dict(load)).run(SECONDS))


@pytest.mark.parametrize("slots", ENGINES)
@pytest.mark.parametrize("seed", [0, 1])
def test_within_two_percent_of_a_known_engine(slots, seed):
    found = world(slots, InFlightWindow(), seed=seed).run(SECONDS)
    assert speed(found) >= 0.98 * known(slots, seed)
    assert slots <= min(found.sizes[WARM_UP:])
    assert max(found.sizes[WARM_UP:]) <= slots * 1.15 + InFlightWindow.TARGET


@pytest.mark.parametrize("slots", ENGINES)
def test_requests_sent_a_moment_ago_do_not_count_as_waiting(slots):
    load = {"prompts": (5, 60), "outputs": (5, 30)}
    found = world(slots, InFlightWindow(), bursts=True, **load).run(SECONDS)
    assert speed(found) >= 0.98 * speed(world(slots, None, **load).run(SECONDS))


@pytest.mark.parametrize("slots", [32, 256])
def test_long_prompts_that_hold_up_admission_do_not_shrink_it_for_good(slots):
    load = {"prompts": (200, 3000), "outputs": (5, 60)}
    found = world(slots, InFlightWindow(), **load).run(SECONDS)
    assert speed(found) >= 0.95 * speed(world(slots, None, **load).run(SECONDS))
    found.prompts, found.outputs = (20, 60), (200, 300)
    found.run(40)
    assert found.size >= slots


@pytest.mark.parametrize("slots", ENGINES)
@pytest.mark.parametrize("event", ["preempted", "busy"])
def test_recovers_within_thirty_seconds_however_often_it_was_shrunk(slots, event):
    found = world(slots, InFlightWindow()).run(120)
    for _ in range(10):
        found.window._proven = (0, 0)
        getattr(found.window, event)(found.now)
        found.run(10 if event == "preempted" else 1)
    assert found.size < slots
    found.run(30)
    assert found.size >= slots


def test_preemptions_shrink_it_and_quiet_brings_it_back():
    found = world(32, InFlightWindow()).run(60)
    for _ in range(3):
        found.window.preempted(found.now)
        found.run(10)
    assert found.size == 24
    found.run(30)
    assert found.size >= 32


def test_an_engine_full_of_kv_keeps_it_near_what_runs():
    found = world(256, InFlightWindow(), kv_tokens=10_000).run(SECONDS)
    running = 10_000 / 410  # half an output and a prompt each
    assert 0.5 * running < found.size < 2 * running


def test_without_metrics_throughput_alone_guides_it():
    found = world(32, InFlightWindow(), metrics=False).run(300)
    assert 16 <= found.sizes[-1] <= 80
    assert speed(found) >= 0.85 * known(32, 0)


def test_an_idle_engine_teaches_nothing():
    found = world(32, InFlightWindow(), demand=4).run(SECONDS)
    assert set(found.sizes) == {4}
    assert found.window.size == 8


# -- single steps


def look(window, now, *, waiting=0, generated=0, in_flight=None, queued=50, running=None, widest=1):
    window.observe(
        now,
        Observation(
            in_flight=window.size if in_flight is None else in_flight,
            queued=queued,
            running=running,
            waiting=waiting,
            generated=generated,
            widest=widest,
        ),
    )


def test_one_look_at_a_full_engine_queue_changes_nothing_and_three_shrink_by_the_least_excess():
    window = InFlightWindow(start=40)
    for now, waiting in enumerate((12, 0, 30, 12)):
        look(window, float(now), waiting=waiting)
    assert window.size == 40
    look(window, 4.0, waiting=20)
    assert window.size == 30
    look(window, 4.5, waiting=20)
    look(window, 5.0, waiting=20)
    look(window, 6.0, waiting=20)
    assert window.size == 30, "three new looks, a second apart"


def test_it_never_falls_below_what_was_seen_running_until_something_is_preempted():
    window = InFlightWindow(start=40)
    look(window, 0.0, running=35)
    for now in range(1, 5):
        look(window, float(now), running=10, waiting=30)
        window.busy(float(now))
    assert window.size == 35
    window.preempted(5.0)
    assert window.size == 31
    for now in range(6, 9):
        look(window, float(now), running=10, waiting=25)
    assert window.size == 10


def test_what_others_run_in_the_engine_proves_nothing():
    window = InFlightWindow(start=10)
    look(window, 0.0, running=300)
    for now in range(1, 4):
        look(window, float(now), running=300, waiting=8)
    assert window.size == 10
    window.busy(5.0)
    assert window.size == 10


def test_a_window_too_narrow_for_the_widest_request_is_full():
    window = InFlightWindow(start=9)
    for now in range(5):
        look(window, float(now), in_flight=8, widest=4, generated=now * 100)
    assert window.size > 9


def test_a_long_silence_begins_a_new_stretch():
    window = InFlightWindow()
    for now in (0.0, 1.0, 2.0):
        look(window, now)
    look(window, 60.0)
    assert window.size == 8


def test_growth_that_brings_nothing_is_taken_back_and_tried_ever_less_often():
    window, generated, grown = InFlightWindow(), 0, []
    for now in range(1000):
        generated += 100 * min(window.size, 16)
        before = window.size
        look(window, float(now), generated=generated)
        if window.size > before:
            grown.append(now)
    pauses = [later - earlier for earlier, later in pairwise(grown) if later - earlier > 20]
    assert pauses == sorted(pauses)
    assert pauses[0] < 60
    assert pauses[-1] >= 300
    assert window.size <= 32


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
