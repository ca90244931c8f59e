"""Why a Secret that somebody names is not in the store: it is missing, or it lacks the credential label.

The watch shows labelled Secrets alone. Here the metadata, never the data, of those that are missed is read, slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from equipoise_api.names import CREDENTIAL_LABEL
from equipoise_operator.budget import Budget
from equipoise_operator.kube import ApiError, Kube, path
from equipoise_operator.objects import Key

RATE, BURST = 10.0, 20.0
AGAIN_SECONDS = 60.0

log = structlog.get_logger(__name__)


class UnlabelledSecrets:
    """Keeps the set `found` up to date for the Secrets that are missed; tells `on_change` of each that joins or leaves."""

    def __init__(
        self,
        kube: Kube,
        found: set[Key],
        *,
        leads: Callable[[], bool],
        clock: Callable[[], float],
        on_change: Callable[[Key], None],
    ) -> None:
        self._kube = kube
        self._found = found
        self._leads = leads
        self._clock = clock
        self._on_change = on_change
        self._budget = Budget(RATE, BURST, clock)
        self._missed: dict[Key, frozenset[Key]] = {}
        self._looked: dict[Key, float] = {}
        self._wake = asyncio.Event()

    def miss(self, policy: Key, secrets: frozenset[Key]) -> None:
        """Set what a policy's compile missed."""
        self._missed[policy] = secrets
        if secrets - self._looked.keys():
            self._wake.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self._wake.clear()
            missed = frozenset().union(*self._missed.values())
            for key in list(self._looked):
                if key not in missed:
                    del self._looked[key]
                    self._found.discard(key)
            for key in sorted(missed):
                if self._leads() and self._clock() - self._looked.get(key, float("-inf")) >= AGAIN_SECONDS:
                    await self._budget.wait()
                    await self._look(key)
            try:
                async with asyncio.timeout(AGAIN_SECONDS / 10):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self, key: Key) -> None:
        self._looked[key] = self._clock()
        try:
            metadata = await self._kube.metadata(path("v1", "secrets", *key))
            present = (metadata.get("labels") or {}).get(CREDENTIAL_LABEL) != "true"
        except ApiError as error:
            if error.status != 404:
                log.warning("secret-not-looked-up", secret="/".join(key), error=str(error))
                return
            present = False
        if present != (key in self._found):
            (self._found.add if present else self._found.discard)(key)
            self._on_change(key)
