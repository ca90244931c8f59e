"""The list of ExFairS against a naive one, and the tally against counting."""

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.priority_list import PriorityList
from equipoise_scheduling.tally import Tally

LIMIT = 6


class NaiveList:
    """Rows of [id, tenant, priority, times overtaken], first to last; O(n) in everything, written from the rule."""

    def __init__(self):
        self.rows = []

    def join(self, name, tenant, priority, overtakes):
        queued = sorted({row[2] for row in self.rows} | {priority})
        over = sum(row[2] > priority for row in self.rows)
        rank, worst = queued.index(priority), max(1, len(queued) - 1)
        jump = min(2 * (over * (worst - rank) // worst), overtakes, over)
        place = len(self.rows)
        while jump and place:
            row = self.rows[place - 1]
            if row[2] <= priority or row[3] >= overtakes or row[1] == tenant:
                break
            row[3] += 1
            place -= 1
            jump -= 1
        self.rows.insert(place, [name, tenant, priority, 0])

    def remove(self, name):
        self.rows = [row for row in self.rows if row[0] != name]


joins = st.tuples(st.just("join"), st.sampled_from("abcde"), st.integers(-LIMIT, LIMIT))
leaves = st.tuples(st.sampled_from(["leave", "first"]), st.integers(0, 50), st.just(0))
moves = st.lists(st.one_of(joins, joins, joins, leaves), max_size=120)


@settings(max_examples=300, deadline=None)
@given(moves, st.sampled_from([1, 2, 5, 50]))
def test_list_is_what_the_naive_one_is(operations, overtakes):
    quick, naive = PriorityList(LIMIT), NaiveList()
    for number, (what, who, priority) in enumerate(operations):
        if what == "join":
            quick.join(str(number), who, priority, overtakes)
            naive.join(str(number), who, priority, overtakes)
        elif naive.rows:
            name = naive.rows[0 if what == "first" else who % len(naive.rows)][0]
            assert quick.remove(name).name == name
            naive.remove(name)
        order = quick.order()
        assert order == [row[0] for row in naive.rows]
        positions = [quick[name].position for name in order]
        assert positions == sorted(set(positions))


@settings(max_examples=300, deadline=None)
@given(moves, st.sampled_from([1, 3, 50]))
def test_nobody_is_overtaken_too_often_and_equals_and_own_requests_go_in_order(operations, overtakes):
    """Judged by who leaves before whom, not by the list's own count."""
    quick = PriorityList(LIMIT)
    waiting, passed = {}, {}
    for number, (what, who, priority) in enumerate(operations):
        if what == "join":
            quick.join(str(number), who, priority, overtakes)
            waiting[number] = (who, priority)
            passed[number] = 0
        elif waiting:
            first = int(quick.order()[0])
            quick.remove(str(first))
            tenant, best = waiting.pop(first)
            for older in [other for other in waiting if other < first]:
                assert waiting[older][1] > best, "only a better priority overtakes"
                assert waiting[older][0] != tenant, "a tenant's own go in order"
                passed[older] += 1
                assert passed[older] <= overtakes


@settings(max_examples=200, deadline=None)
@given(moves, st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_put_back_stands_where_it_stood(operations, places):
    quick = PriorityList(LIMIT)
    for number, (what, who, priority) in enumerate(operations):
        if what == "join":
            quick.join(str(number), who, priority, 50)
    before = quick.order()
    taken = [quick.remove(quick.order()[place % len(quick)]) for place in places if len(quick)]
    for place in taken:
        quick.put_back(place)
    assert quick.order() == before


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-LIMIT, LIMIT), max_size=60), st.data())
def test_tally_counts(values, data):
    tally, members = Tally(LIMIT), []
    for value in values:
        if members and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(members))
            members.remove(gone)
            tally.remove(gone)
        members.append(value)
        tally.add(value)
        for probe in range(-LIMIT, LIMIT + 1):
            assert tally.above(probe) == sum(member > probe for member in members)
            assert tally.rank(probe) == len({member for member in members if member < probe})
            assert (probe in tally) == (probe in members)
        assert (len(tally), tally.distinct) == (len(members), len(set(members)))
