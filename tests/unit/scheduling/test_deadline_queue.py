"""Queues by deadline against a plain list, the clock that says whose time has come, and the engine's pace."""

import random

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.deadline_queue import OVERDUE, Alarms, DeadlineQueue, TimedFifoQueue
from equipoise_scheduling.pace import PROMPT_SECONDS, STEP_SECONDS, Pace


def by_deadline(request):
    return (1, int(request.deadline), 0)


def test_head_and_oldest_overdue_are_those_of_a_sorted_list_whatever_happens():
    rng = random.Random(3)
    queue, waiting, late, gone = DeadlineQueue(by_deadline), {}, set(), []
    for number in range(4_000):
        what = rng.randrange(6)
        if what <= 1 or not waiting:
            budget = rng.choice([None, 5.0])
            again = gone and rng.random() < 0.3
            request = gone.pop() if again else make_request(f"r{number}", ttft_budget=budget)
            if request.number < 0:
                request.number, request.deadline = number, float(rng.randrange(50))
            waiting[request.number] = request
            queue.push(request, 2.0)
        else:
            request = waiting[rng.choice(sorted(waiting))]
            if what == 2:
                queue.expire(request)
                late.add(request.number)
            elif what == 3:
                request.deadline = float(rng.randrange(50))
                queue.move(request)
                late.discard(request.number)
            else:
                queue.remove(request)
                gone.append(waiting.pop(request.number))
                late.discard(request.number)
        assert len(queue) == len(waiting)
        assert queue.expected_cost == 2.0 * len(waiting)
        assert queue.overdue() is (waiting[min(late)] if late else None)
        if waiting:
            line = [r for r in waiting.values() if r.ttft_budget is None]
            heads = [r for r in waiting.values() if r.ttft_budget is not None]
            if line:
                heads.append(min(line, key=lambda r: (int(r.deadline), r.number)))
            head = min(heads, key=lambda r: (r.number in late, int(r.deadline), r.number))
            assert queue.head() is head
            assert queue.late(head) == (head.number in late)
            place = (OVERDUE if head.number in late else 1, int(head.deadline), 0)
            assert queue.first() == (place, head.number)
    with pytest.raises(IndexError):
        DeadlineQueue(by_deadline).head()


def test_entries_of_requests_that_come_back_again_and_again_do_not_pile_up():
    queue, request = DeadlineQueue(by_deadline), make_request("r")
    other = make_request("other")
    for number, each in enumerate((request, other)):
        each.number, each.deadline = number, 1.0
        queue.push(each, 1.0)
    for _ in range(1_000):
        queue.remove(request)
        queue.push(request, 1.0)
    assert sum(map(len, queue._lines)) < 50


def test_by_arrival_only_a_head_that_is_overdue_is():
    queue = TimedFifoQueue(by_deadline)
    first, second = make_request("1", deadline=9.0), make_request("2", deadline=1.0)
    for number, request in enumerate((first, second)):
        request.number = number
        queue.push(request, 1.0)
    queue.expire(second)
    assert (queue.head(), queue.overdue(), queue.first()) == (first, None, ((1, 9, 0), 0))
    queue.remove(first)
    assert (queue.head(), queue.overdue(), queue.first()) == (second, second, ((OVERDUE, 1, 0), 1))
    queue.move(second)
    assert queue.overdue() is None


def test_alarms_ring_once_in_order_for_those_that_still_wait():
    alarms, waiting = Alarms(), {}
    for number, at in enumerate((3.0, 1.0, 2.0)):
        request = make_request(f"r{number}")
        request.number = number
        waiting[request.id] = request
        alarms.set(at, request, waiting)
    stranger = waiting.pop("r2")
    assert list(alarms.passed(0.5, waiting)) == []
    assert [request.id for request in alarms.passed(9.0, waiting)] == ["r1", "r0"]
    assert list(alarms.passed(9.0, waiting)) == []
    # Another request under the same id is not the one that was watched.
    alarms.set(10.0, stranger, waiting)
    again = waiting["r2"] = make_request("r2")
    again.number = 7
    assert list(alarms.passed(99.0, waiting)) == []


def test_alarms_of_those_that_left_do_not_pile_up():
    alarms = Alarms()
    for number in range(2_000):
        request = make_request(f"r{number}")
        request.number = number
        alarms.set(1e9, request, {request.id: request})
    assert len(alarms._heap) < 100


class TestPace:
    def test_starts_with_its_prior(self):
        assert Pace().service_seconds(100, 10) == pytest.approx(100 * PROMPT_SECONDS + 10 * STEP_SECONDS)

    def test_learns_prompt_and_step_from_when_tokens_came(self):
        pace = Pace()
        for at in range(200):
            name, now = str(at), 10.0 * at
            pace.first(name, 1000, STEP_SECONDS + 0.5, 1, now)
            pace.seen(name, 101, now + 5.0)
            pace.ended(name)
        assert pace.step.value == pytest.approx(0.05, rel=0.05)
        assert pace.prompt.value == pytest.approx(0.0005, rel=0.05)

    def test_forgets_what_is_old_but_never_all(self):
        pace = Pace()
        pace.tick(0.0)
        for second in range(1, 300):
            pace.first(str(second), 0, 0.0, 1, float(second))
            pace.seen(str(second), 11, second + (1.0 if second < 200 else 0.2))
            pace.tick(float(second))
        assert pace.step.value == pytest.approx(0.02, rel=0.05)
        pace.tick(1e6)
        assert pace.step.value == pytest.approx(0.02, rel=0.05)

    def test_an_answer_that_came_in_one_piece_says_nothing(self):
        pace = Pace()
        pace.first("r", 1000, 60.0, 500, 60.0)
        pace.seen("r", 900, 61.0)
        assert pace.snapshot() == Pace().snapshot()
