"""Names and uids, listed again: what a watch missed is gone from the store within a minute, mostly at once.

kopf tells no handler of a deletion that happened while its watch was down, and nothing at all of a kind that is empty. So
all kinds are listed at start, when kopf lists any of them again, when the API server answers again after it did not, and
every 60 seconds. Only names and uids travel.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from equipoise_operator.kube import ApiError, Kube, Listing, path
from equipoise_operator.observe import Channel, Channels
from equipoise_operator.store import Store

PERIOD_SECONDS = 60.0
AGAIN_SECONDS = 1.0
"""After a listing that failed, or while something that was listed has not been seen."""
SETTLE_SECONDS = 0.2
"""Requests within this are one."""
LOOK_SECONDS = 0.02
DEADLINE = 30.0

log = structlog.get_logger(__name__)


class Relister:
    """Lists and drops, on every replica."""

    def __init__(
        self, kube: Kube, store: Store, channels: Channels, namespaces: tuple[str, ...] = ()
    ) -> None:
        self._kube = kube
        self._store = store
        self._channels = channels
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._wanted = asyncio.Event()

    def request(self) -> None:
        """Have everything listed soon."""
        self._wanted.set()

    async def complete(self) -> None:
        """Wait until every kind was listed and all of it seen."""
        while not self._store.complete:  # noqa: ASYNC110 - set by any event of any kind
            await asyncio.sleep(LOOK_SECONDS)

    async def run(self) -> None:
        """List for ever."""
        while True:
            self._wanted.clear()
            pause = PERIOD_SECONDS
            try:
                await self.relist()
            except ApiError as error:
                log.warning("not-listed", error=str(error))
                pause = AGAIN_SECONDS
            if not self._store.complete:
                pause = AGAIN_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                continue

    async def relist(self) -> None:
        """List every kind once and drop what is gone. Raises ApiError."""
        for channel in self._channels.all():
            gone = channel.reconcile(await self._listing(channel))
            if gone:
                log.info("gone-unseen", kind=channel.plural, count=gone)

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
