"""The control socket: how `equipoise sidecar drain`, in the pod's preStop hook, reaches the process.

One line in, one line out: `drain` answers `drained` when nothing is queued or in flight any more, or `timeout` with what is
left. The process goes on refusing new work until it is told to end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

Drain = Callable[[], Awaitable[str]]


class ControlError(Exception):
    """The sidecar could not be reached or did not do as told."""


class ControlSocket:
    """Serves the socket."""

    def __init__(self, path: Path, drain: Drain) -> None:
        self._path = path
        self._drain = drain
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Open it, for this user alone. A former process's is replaced. Raises ControlError."""
        before = os.umask(0o177)
        try:
            self._path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self._path)
        except OSError as error:
            raise ControlError(f"{self._path} cannot be opened: {error.strerror or error}") from error
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Close and remove it."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                line = await reader.readline()
            said = await self._drain() if line == b"drain\n" else "unknown command: say drain"
            writer.write(said.encode() + b"\n")
            await writer.drain()
        except (TimeoutError, OSError, ValueError) as error:
            log.warning("control connection ended", error=repr(error))
        finally:
            writer.close()


async def ask_to_drain(path: Path, timeout: float) -> str:
    """Have the process at `path` drain; return what it said. Raises ControlError."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"drain\n")
            said = (await reader.readline()).decode(errors="replace").strip()
            writer.close()
    except TimeoutError:
        raise ControlError(f"{path}: nothing within {timeout:.0f} s") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}: is the sidecar running?") from error
    if not said:
        raise ControlError(f"{path}: the sidecar ended before it was drained")
    return said
