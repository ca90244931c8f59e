"""Whether the engine takes requests: somebody answers at its address, and it did not just say that it is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

BUSY_SECONDS = 0.1

log = structlog.get_logger(__name__)


class Availability:
    """What is known of it; `again` is called when the pause after a 503 is over."""

    def __init__(self, again: Callable[[], None]) -> None:
        self.reachable: bool | None = None
        """None before the first try."""
        self.lost = asyncio.Event()
        """Set when a request found nobody at the engine's address: look at once."""
        self.times_busy = 0
        """Requests that the engine would not take."""
        self.pause: asyncio.TimerHandle | None = None
        """The end of the pause after a 503, while there is one."""
        self._again = again

    def answers(self, *, reachable: bool) -> None:
        """Note whether anybody is at the engine's address."""
        if self.reachable is not reachable:
            tell = log.info if reachable else log.warning
            tell("engine reachable" if reachable else "engine unreachable")
        self.reachable = reachable

    def refused(self) -> None:
        """Note a 503: nothing goes until one of our requests ends, or for 100 ms."""
        self.times_busy += 1
        if self.pause is None:
            self.pause = asyncio.get_running_loop().call_later(BUSY_SECONDS, self._over)

    def resume(self) -> None:
        """End the pause: the engine has room again."""
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None

    def _over(self) -> None:
        self.pause = None
        self._again()
