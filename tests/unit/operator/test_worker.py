"""One worker a key, on the loop's own clock."""

import asyncio

import pytest

from equipoise_operator.worker import Workers

pytestmark = pytest.mark.looptime


class Recorder:
    def __init__(self, seconds=0.0, fail=0):
        self.done = []
        self.running = set()
        self.seconds = seconds
        self.fail = fail

    async def __call__(self, key):
        assert key not in self.running, "two at once for one key"
        self.running.add(key)
        try:
            await asyncio.sleep(self.seconds)
            if self.fail:
                self.fail -= 1
                raise RuntimeError("not this time")
            self.done.append((key, asyncio.get_running_loop().time()))
        finally:
            self.running.discard(key)

    @property
    def keys(self):
        return [key for key, _ in self.done]


async def test_a_burst_of_ten_thousand_marks_is_one_piece_of_work():
    work = Recorder()
    workers = Workers("w", work)
    workers.start()
    for _ in range(10_000):
        workers.mark("a")
    await asyncio.sleep(1)
    assert work.keys == ["a"]
    workers.stop()


async def test_work_begins_soon_after_a_lone_mark():
    work = Recorder()
    workers = Workers("w", work, quiet=0.05)
    workers.start()
    began = asyncio.get_running_loop().time()
    workers.mark("a")
    await asyncio.sleep(1)
    assert work.done[0][1] - began == pytest.approx(0.05, abs=0.01)
    workers.stop()


async def test_a_burst_that_goes_on_is_cut():
    work = Recorder()
    workers = Workers("w", work, quiet=0.05, longest=0.5)
    workers.start()
    for _ in range(100):
        workers.mark("a")
        await asyncio.sleep(0.02)
    assert 3 <= len(work.done) <= 5
    workers.stop()


async def test_work_that_takes_long_is_done_less_often_in_a_burst():
    work = Recorder(seconds=0.7)
    workers = Workers("w", work, quiet=0.05, longest=0.5)
    workers.start()
    for _ in range(500):
        workers.mark("a")
        await asyncio.sleep(0.02)
    # Ten seconds: 0.5 + 0.7 once, then 1.4 + 0.7.
    assert 4 <= len(work.done) <= 6
    workers.stop()


async def test_a_mark_during_the_work_has_it_done_again():
    work = Recorder(seconds=1.0)
    workers = Workers("w", work)
    workers.start()
    workers.mark("a")
    await asyncio.sleep(0.5)
    workers.mark("a")
    await asyncio.sleep(5)
    assert work.keys == ["a", "a"]
    workers.stop()


async def test_keys_do_not_wait_for_each_other():
    work = Recorder(seconds=1.0)
    workers = Workers("w", work)
    workers.start()
    workers.mark("a")
    workers.mark("b")
    await asyncio.sleep(1.2)
    assert sorted(work.keys) == ["a", "b"]
    workers.stop()


async def test_what_is_marked_before_the_start_is_done_at_the_start_once():
    work = Recorder()
    workers = Workers("w", work)
    workers.mark("a")
    workers.mark("a")
    await asyncio.sleep(1)
    assert work.done == []
    workers.start()
    await asyncio.sleep(1)
    assert work.keys == ["a"]
    workers.stop()


async def test_what_fails_is_tried_again_after_a_pause_that_grows():
    work = Recorder(fail=3)
    workers = Workers("w", work)
    failures = []
    workers.on_failure = lambda: failures.append(1)
    workers.start()
    workers.mark("a")
    await asyncio.sleep(0.5 + 0.4)
    assert len(failures) == 2
    await asyncio.sleep(10)
    assert (len(failures), work.keys) == (3, ["a"])
    workers.stop()


async def test_a_retired_key_ends_and_may_come_back():
    seen = []
    workers = Workers("w", None)

    async def work(key):
        seen.append(key)
        workers.retire(key)

    workers._work = work
    workers.start()
    workers.mark("a")
    await asyncio.sleep(1)
    assert workers._tasks == {}
    workers.mark("a")
    await asyncio.sleep(1)
    assert seen == ["a", "a"]
    workers.stop()


async def test_a_key_marked_again_while_it_retires_is_worked_on():
    seen = []
    workers = Workers("w", None)

    async def work(key):
        seen.append(key)
        if len(seen) == 1:
            workers.mark(key)
        workers.retire(key)

    workers._work = work
    workers.start()
    workers.mark("a")
    await asyncio.sleep(1)
    assert seen == ["a", "a"]
    workers.stop()
