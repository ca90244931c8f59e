"""Work by key, one worker a key: whoever marks a key dirty any number of times gets it done once, after the last.

A mark starts a short wait, so that a burst is one piece of work; a burst that goes on is cut after `longest`, later where
the work itself takes long: it would eat the time in which the burst is taken in. What fails is marked again, after a pause
that grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

K = TypeVar("K", bound=Hashable)

QUIET_SECONDS = 0.05
LONGEST_SECONDS = 0.5
STRETCHED_SECONDS = 1.5
"""The most that `longest` grows to."""
LONGEST_PAUSE = 30.0

log = structlog.get_logger(__name__)


class Workers(Generic[K]):
    """Does `work(key)` for every key that is marked; never twice at once for one key.

    `expected` errors are logged without a traceback.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[K], Awaitable[None]],
        *,
        expected: tuple[type[Exception], ...] = (),
        quiet: float = QUIET_SECONDS,
        longest: float = LONGEST_SECONDS,
    ) -> None:
        self._name = name
        self._work = work
        self._expected = expected
        self._quiet, self._longest = quiet, longest
        self._marks: dict[K, asyncio.Event] = {}
        self._tasks: dict[K, asyncio.Task[None]] = {}
        self._started = False
        self.on_failure: Callable[[], None] | None = None

    def mark(self, key: K) -> None:
        """Have the key worked on, soon after `start`."""
        if key not in self._marks:
            self._marks[key] = asyncio.Event()
            if self._started:
                self._spawn(key)
        self._marks[key].set()

    def start(self) -> None:
        """Begin with what was marked so far."""
        self._started = True
        for key in self._marks:
            self._spawn(key)

    def stop(self) -> None:
        """Cancel all work."""
        self._started = False
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def retire(self, key: K) -> None:
        """End a key's worker unless the key is marked again; for the key's own work to call when it is gone."""
        mark = self._marks.get(key)
        if mark is not None and not mark.is_set():
            del self._marks[key]

    def _spawn(self, key: K) -> None:
        self._tasks[key] = asyncio.create_task(self._run(key), name=f"{self._name} {key}")

    async def _run(self, key: K) -> None:
        mark = self._marks[key]
        pause = spent = 0.0
        loop = asyncio.get_running_loop()
        while self._marks.get(key) is mark:
            await mark.wait()
            await self._settle(mark, max(self._longest, min(2 * spent, STRETCHED_SECONDS)))
            began = loop.time()
            try:
                await self._work(key)
            except Exception as error:
                pause = min(LONGEST_PAUSE, 2 * pause or 0.5)
                unexpected = not isinstance(error, self._expected)
                log.warning(
                    "work-failed",
                    worker=self._name,
                    key=str(key),
                    error=str(error),
                    again_in_seconds=pause,
                    exc_info=unexpected,
                )
                if self.on_failure is not None:
                    self.on_failure()
                mark.set()
                await asyncio.sleep(pause)
            else:
                pause, spent = 0.0, loop.time() - began
        del self._tasks[key]

    async def _settle(self, mark: asyncio.Event, longest: float) -> None:
        """Wait until no mark has come for `quiet` seconds, but for no longer than `longest`."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + longest
        while True:
            mark.clear()
            wait = min(self._quiet, ends - loop.time())
            if wait <= 0:
                return
            try:
                async with asyncio.timeout(wait):
                    await mark.wait()
            except TimeoutError:
                return
