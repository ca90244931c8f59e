"""One port: a uvicorn server that leaves signals to us and shows a peer's own address, whatever its headers say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75


class ListenError(Exception):
    """A port cannot be opened: which, why, and how to choose another."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Listener:
    """Serves one application on one port."""

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        setting: str,
        tls: ssl.SSLContext | None = None,
        protocol: type[HttpToolsProtocol] = HttpToolsProtocol,
    ) -> None:
        """Prepare it; `setting` names the variable to change where the port is taken."""
        self._address = (host, port)
        self._setting = setting
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the port. Raises ListenError."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        opened = socket.socket(family)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(self._address)
            opened.listen(_BACKLOG)
            opened.setblocking(False)
        except OSError as error:
            opened.close()
            raise ListenError(f"{self._setting}: {host}:{port} cannot be opened: {error.strerror}") from error
        self._serving = asyncio.create_task(self._server.serve(sockets=[opened]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise ListenError(f"{self._setting}: {host}:{port}: the server ended at once")
            await asyncio.sleep(0.01)

    async def stop(self, grace_seconds: float) -> None:
        """Close the port; give answers `grace_seconds` to end, then cut them off."""
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        await self._serving
