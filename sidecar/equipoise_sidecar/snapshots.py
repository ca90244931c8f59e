"""Counters and what was learnt, on disk every few seconds and at the end of a drain, so that a restart forgets no debt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from equipoise_sidecar.files import write_atomically
from equipoise_sidecar.history import Snapshot

VERSION = 1
INTERVAL_SECONDS = 5.0
_FILE = "counters.json"

log = structlog.get_logger(__name__)


class Snapshots:
    """Writes what `take` returns; hands back what was written."""

    def __init__(self, take: Callable[[], Snapshot], directory: Path) -> None:
        self._take = take
        self._file = directory / _FILE
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        """One, so that a write that was called off ends before the next begins."""
        self._written: Snapshot | None = None
        self.write_errors = 0
        """Snapshots that could not be written."""

    def read(self) -> Snapshot | None:
        """Return the last snapshot of a former process; None where there is none that can be read."""
        try:
            document = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("counters on disk cannot be read", file=str(self._file), error=str(error))
            return None
        if not isinstance(document, dict) or document.get("version") != VERSION:
            log.warning("counters on disk are of another version", file=str(self._file), wanted=VERSION)
            return None
        state = document.get("state")
        return state if isinstance(state, dict) else None

    async def write(self) -> None:
        """Write the present state, unless it is what was written last. A failing disk is logged and counted."""
        async with self._turn:
            state = self._take()
            if state == self._written:
                return
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._store, state)
            except OSError as error:
                self.write_errors += 1
                log.error("counters not written", file=str(self._file), error=str(error))  # noqa: TRY400
            else:
                self._written = state

    async def run(self) -> None:
        """Write every few seconds until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await self.write()

    def _store(self, state: Snapshot) -> None:
        write_atomically(self._file, json.dumps({"version": VERSION, "state": state}).encode())
