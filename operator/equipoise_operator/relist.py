"""Listings of our own: all objects once before anything is compiled, then names and uids again and again.

kopf needs most of a millisecond an object, so what it lists at its start would take a quarter of a minute for 20,000.
Later it tells no handler of a deletion that happened while its watch was down, and nothing at all of a kind that is empty.
So names and uids are listed when kopf lists any kind again, when the API server answers again after it did not, and every
60 seconds; what a watch missed is gone from the store within a minute, mostly at once.
"""

from __future__ import annotations

import asyncio

import structlog

from equipoise_operator.kube import ApiError, Kube, path
from equipoise_operator.observe import Channels

PERIOD_SECONDS = 60.0
AGAIN_SECONDS = 1.0
"""After a listing that failed."""
QUIET_SECONDS = 0.3
LONGEST_SECONDS = 5.0
"""Requests are one until none has come for the first, at most for the second: kopf's listing makes one an object."""
OBJECTS = 500
"""Whole objects in one page: between pages others get their turn."""
DEADLINE = 30.0
PATIENCE_SECONDS = 20.0
"""How long the start waits for a namespace that refuses: its Role may be on its way."""

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
        """List every kind whole, before kopf starts: then no event can come before an older listing. Tries for ever.

        A namespace that refuses every kind, as one that was deleted with its Role does, is waited for a while only.
        """
        began = asyncio.get_running_loop().time()
        missing = list(self._namespaces)
        while True:
            try:
                missing = [namespace for namespace in missing if not await self._fill(namespace)]
            except ApiError as error:
                log.warning("not-listed", error=str(error))
            else:
                if missing:
                    log.warning("namespaces-closed", namespaces=missing)
                patient = asyncio.get_running_loop().time() - began < PATIENCE_SECONDS
                if not missing or (len(missing) < len(self._namespaces) and not patient):
                    self.filled.set()
                    return
            await asyncio.sleep(AGAIN_SECONDS)

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
        """List every kind once and drop what is gone; what is in a namespace that refuses stays. Raises ApiError."""
        for channel in self._channels.all():
            for namespace in self._namespaces:
                where = path(channel.group_version, channel.plural, namespace)
                try:
                    listing = await self._kube.names(where, selector=channel.selector, deadline=DEADLINE)
                except ApiError as error:
                    if not _closed(error, namespace):
                        raise
                    continue
                gone = channel.reconcile(listing, namespace)
                if gone:
                    log.info("gone-unseen", kind=channel.plural, count=gone)

    async def _fill(self, namespace: str | None) -> bool:
        """List all kinds of one namespace; False if it refuses all. Raises ApiError, also where it refuses some."""
        refused: list[ApiError] = []
        for channel in self._channels.all():
            where = path(channel.group_version, channel.plural, namespace)
            pages = self._kube.pages(where, selector=channel.selector, size=OBJECTS, deadline=DEADLINE)
            try:
                async for page in pages:
                    for body in page["items"] or ():
                        channel.event(None, body)
            except ApiError as error:
                if not _closed(error, namespace):
                    raise
                refused.append(error)
        if refused and len(refused) < len(self._channels.all()):
            raise refused[0]
        return not refused


def _closed(error: ApiError, namespace: str | None) -> bool:
    return namespace is not None and error.status == 403
