"""How long tests wait for a process of ours, and for how long it may take."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

WITHIN = 2.0
"""Seconds within which every selected sidecar has the right revision, on a machine that is not overloaded."""
SLACK = 60.0
"""Until a test gives up waiting for what has no limit of its own."""


def within() -> float:
    """Return WITHIN, stretched where more than two tasks a core want to run: then seconds are not the operator's."""
    return WITHIN * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


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
