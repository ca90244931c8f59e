"""How long tests wait for a process of ours, and for how long it may take."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

WITHIN = 2.0
"""Seconds within which every selected sidecar has the right revision, on a machine that is neither slow nor overloaded."""
SLACK = 120.0
"""Until a test gives up waiting for what has no limit of its own."""


YARDSTICK = 0.018
"""Seconds that `_work` takes on an idle core of the machine on which the limits were found."""


def _work() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(300_000):
        total += number
    return time.perf_counter() - began


def stretch() -> float:
    """Say how many times longer work takes here and at this instant: then seconds are not the operator's.

    By the tasks that want to run, two a core being usual, and by what a fixed piece of work takes: a core may be slow, or
    another machine's at times.
    """
    crowd = os.getloadavg()[0] / (2 * (os.cpu_count() or 1))
    return max(1.0, crowd, statistics.median(_work() for _ in range(5)) / YARDSTICK)


@contextlib.asynccontextmanager
async def lateness() -> AsyncIterator[Callable[[], float]]:
    """Meanwhile, sum the seconds by which this process was woken too late: so long the machine stood still for it."""
    late = 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.05)
            late += time.monotonic() - began - 0.05

    watching = asyncio.create_task(watch())
    try:
        yield lambda: late
    finally:
        watching.cancel()


async def eventually(
    holds: Callable[[], Any],
    *,
    seconds: float = SLACK,
    what: str = "",
    also: Callable[[], str] = lambda: "",
) -> Any:
    """Wait until it holds; fail with what was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        result = holds()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what or holds}\n{also()}")
        await asyncio.sleep(0.02)
