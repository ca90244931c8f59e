"""L: what preemptions take and quiet gives back."""

from equipoise_scheduling.kv_limit import ALLOWANCE, KvLimit


def test_a_preemption_takes_two_points_at_most_once_in_ten_seconds_and_quiet_minutes_give_one_back():
    limit = KvLimit(95.0)
    for second in (0.0, 4.0, 9.9):
        limit.preempted(second, None)
    assert limit.percent == 93
    limit.preempted(10.0, None)
    assert limit.percent == 91
    limit.tick(69.0)
    assert limit.percent == 91
    limit.tick(70.0)
    limit.tick(71.0)
    assert limit.percent == 92
    limit.preempted(125.0, None)
    limit.tick(130.0)
    assert limit.percent == 90
    for minute in range(1, 20):
        limit.tick(125.0 + 60 * minute)
    assert limit.percent == 95


def test_it_never_falls_below_seventy_or_below_a_setting_that_is_lower():
    for start, least in ((95.0, 70.0), (60.0, 60.0)):
        limit = KvLimit(start)
        for at in range(40):
            limit.preempted(at * 10.0, None)
        assert limit.percent == least


def test_preemptions_count_once_they_cost_more_than_a_fiftieth_of_the_time():
    limit = KvLimit(95.0)
    for second in range(31):
        limit.tick(float(second))
    limit.preempted(30.0, 29 * ALLOWANCE)
    assert limit.percent == 95
    limit.preempted(30.0, 2 * ALLOWANCE)
    assert limit.percent == 93


def test_what_is_not_used_is_saved_up_for_a_minute_only():
    limit = KvLimit(95.0)
    for second in range(1000):
        limit.tick(float(second))
    limit.preempted(1000.0, 61 * ALLOWANCE)
    assert limit.percent == 93


def test_cheap_preemptions_do_not_disturb_the_recovery():
    limit = KvLimit(95.0)
    limit.tick(0.0)
    limit.preempted(0.0, None)
    for second in range(1, 61):
        limit.tick(float(second))
        limit.preempted(float(second), ALLOWANCE / 2)
    assert limit.percent == 94


def test_another_setting_begins_anew():
    limit = KvLimit(95.0)
    limit.preempted(0.0, None)
    limit.restart(80.0)
    assert limit.percent == 80


def test_a_preemption_that_cost_much_is_paid_for_at_once_and_leaves_no_debt():
    limit = KvLimit(95.0)
    limit.tick(0.0)
    limit.preempted(0.0, 1_000.0)
    assert limit.percent == 93
    limit.tick(30.0)
    limit.preempted(30.0, 29 * ALLOWANCE)
    assert limit.percent == 93
