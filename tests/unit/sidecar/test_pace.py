"""The measured tokens a second of one sequence, which charges what does not stream."""

import pytest

from equipoise_sidecar.pace import Pace


def test_nothing_is_known_before_anything_was_measured():
    assert Pace().tokens_per_second(0) is None


def test_the_engines_counter_over_our_own_sequence_seconds():
    pace = Pace()
    pace.read_counter(1000, 0)
    pace.started(4, 0)
    pace.read_counter(1000 + 4 * 30, 1)
    assert pace.tokens_per_second(1) == pytest.approx(30)


def test_what_waits_in_the_engine_lowers_the_pace_of_all():
    pace = Pace()
    pace.read_counter(0, 0)
    pace.started(8, 0)
    pace.read_counter(120, 1)
    assert pace.tokens_per_second(1) == pytest.approx(15)


def test_a_restarted_engines_counter_counts_from_its_next_reading():
    pace = Pace()
    pace.started(1, 0)
    pace.read_counter(5000, 0)
    pace.read_counter(5030, 1)
    pace.read_counter(3, 2)
    pace.read_counter(33, 3)
    assert pace.tokens_per_second(3) == pytest.approx(30)


def test_without_metrics_our_own_answers_tell():
    pace = Pace()
    pace.started(2, 0)
    pace.ended(2, 4, seconds=4, generated=160)
    assert pace.tokens_per_second(4) == pytest.approx(20)


def test_old_metrics_yield_to_our_own_answers():
    pace = Pace()
    pace.read_counter(0, 0)
    pace.started(1, 0)
    pace.read_counter(100, 1)
    pace.started(1, 50)
    pace.ended(1, 60, seconds=10, generated=200)
    assert pace.tokens_per_second(60) == pytest.approx(20)


def test_an_idle_engine_changes_nothing():
    pace = Pace()
    pace.read_counter(0, 0)
    pace.started(1, 0)
    pace.read_counter(25, 1)
    pace.ended(1, 1, seconds=1, generated=None)
    for second in range(2, 100):
        pace.read_counter(25, second)
    assert pace.tokens_per_second(100) == pytest.approx(25)
