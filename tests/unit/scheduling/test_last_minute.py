from equipoise_scheduling.last_minute import LastMinute


def test_what_happened_within_five_seconds_is_one_slice():
    minute = LastMinute(list[str])
    minute.at(10.0).append("a")
    minute.at(14.9).append("b")
    minute.at(15.0).append("c")
    assert minute.slices(15.0) == [["a", "b"], ["c"]]


def test_a_slice_counts_for_55_to_60_seconds_and_no_longer():
    minute = LastMinute(list[str])
    minute.at(10.0).append("first")
    minute.at(14.9).append("last")
    assert minute.slices(69.9) == [["first", "last"]]
    assert minute.slices(70.0) == []


def test_slices_that_nobody_looks_at_are_forgotten_as_new_ones_come():
    minute = LastMinute(list[str])
    for second in range(10_000):
        minute.at(second).append("x")
    assert len(minute._slices) == 12
