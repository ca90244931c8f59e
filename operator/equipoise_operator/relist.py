"""Listings of our own: all objects once before anything is compiled, then names and uids again and again.

kopf needs most of a millisecond an object, so what it lists at its start would take a quarter of a minute for 20,000.
Later it tells no handler of a deletion that happened while its watch was down, and nothing at all of a kind that is empty.
So names and uids are listed when kopf lists any kind again, when the API server answers again after it did not, and every
60 seconds; what a watch missed is gone from the store within a minute, mostly at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from equipoise_operator.kube import ApiError, Kube, Listing, path
from equipoise_operator.observe import Channel, Channels

PERIOD_SECONDS = 60.0
AGAIN_SECONDS = 1.0
"""After a listing that failed."""
QUIET_SECONDS = 0.3
LONGEST_SECONDS = 5.0
"""Requests are one until none has come for the first, at most for the second: kopf's listing makes one an object."""
OBJECTS = 500
"""Whole objects in one page: between pages others get their turn."""
DEADLINE = 30.0

log = structlog.get_logger(__name__)


class Relister:
    """Lists and drops, on every replica."""

    def __init__(self, kube: Kube, channels: Channels, namespaces: tuple[str, ...] = ()) -> None:
        self._kube = kube
        self._channels = channels
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._wanted = asyncio.Event()
        self.filled = asyncio.Event()
        """Set once every kind was listed whole."""

    def request(self) -> None:
        """Have everything listed soon."""
        self._wanted.set()

    async def fill(self) -> None:
        """List every kind whole, before kopf starts: then no event can come before an older listing. Tries for ever."""
        while True:
            try:
                for channel in self._channels.all():
                    await self._fill(channel)
            except ApiError as error:
                log.warning("not-listed", error=str(error))
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.filled.set()
                return

    async def run(self) -> None:
        """List names for ever, from when all is filled."""
        await self.filled.wait()
        pause = AGAIN_SECONDS
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                await self._settle()
            except TimeoutError:
                pass
            self._wanted.clear()
            pause = PERIOD_SECONDS
            try:
                await self.relist()
            except ApiError as error:
                log.warning("not-listed", error=str(error))
                pause = AGAIN_SECONDS

    async def _settle(self) -> None:
        ends = asyncio.get_running_loop().time() + LONGEST_SECONDS
        while asyncio.get_running_loop().time() < ends:
            self._wanted.clear()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                return

    async def relist(self) -> None:
        """List every kind once and drop what is gone. Raises ApiError."""
        for channel in self._channels.all():
            gone = channel.reconcile(await self._listing(channel))
            if gone:
                log.info("gone-unseen", kind=channel.plural, count=gone)

    async def _fill(self, channel: Channel[Any]) -> None:
        for namespace in self._namespaces:
            where = path(channel.group_version, channel.plural, namespace)
            async for page in self._kube.pages(
                where, selector=channel.selector, size=OBJECTS, deadline=DEADLINE
            ):
                for body in page["items"] or ():
                    channel.event(None, body)

    async def _listing(self, channel: Channel[Any]) -> Listing:
        parts = [
            await self._kube.names(
                path(channel.group_version, channel.plural, namespace),
                selector=channel.selector,
                deadline=DEADLINE,
            )
            for namespace in self._namespaces
        ]
        uids = {key: uid for part in parts for key, uid in part.uids.items()}
        return Listing(uids, min(part.version for part in parts))
