"""Rates on a clock that the test moves."""

import pytest

from equipoise_sidecar.rates import DecayingRate, MinuteLimit


def test_a_steady_rate_is_measured_from_its_first_seconds_on():
    rate = DecayingRate(30)
    for tenth in range(100):
        rate.add(1, tenth / 10)
    assert rate.per_second(10) == pytest.approx(10, rel=0.05)


def test_nothing_is_claimed_before_anything_was_seen():
    rate = DecayingRate(30)
    assert rate.per_second(5) is None
    rate.add(1, 5)
    assert rate.per_second(5.1) is None


def test_a_rate_that_stops_is_forgotten():
    rate = DecayingRate(30)
    for second in range(100):
        rate.add(5, second)
    assert rate.per_second(100) == pytest.approx(5, rel=0.05)
    assert rate.per_second(190) < 0.5


def test_no_more_than_the_limit_in_any_sixty_seconds():
    minute, taken = MinuteLimit(), []
    for step in range(4000):
        now = step * 0.1
        if minute.wait(5, now) == 0:
            minute.add(now)
            taken.append(now)
    assert len(taken) > 5
    for first, sixth in zip(taken, taken[5:], strict=False):
        assert sixth - first >= 60


def test_the_wait_is_as_long_as_it_says_and_no_longer():
    minute = MinuteLimit()
    for now in (0.2, 10.5, 20.9):
        minute.add(now)
    wait = minute.wait(3, 30)
    assert wait == pytest.approx(31)
    assert minute.wait(3, 30 + wait - 0.01) > 0
    assert minute.wait(3, 30 + wait) == 0


def test_a_lowered_limit_waits_for_as_many_as_are_too_many():
    minute = MinuteLimit()
    for now in (0, 10, 20):
        minute.add(now)
    assert minute.wait(1, 30) == pytest.approx(20 + 61 - 30)
