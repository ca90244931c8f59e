"""One port: a uvicorn server that leaves signals to us and shows a peer's own address, whatever its headers say.

uvicorn's httptools protocol takes a head of any length, and each piece of a long header costs a copy of it so far: 20 MB
of one header hold the event loop for seconds, before anybody is asked for a key. So heads have a limit here.
"""

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
MOST_HEAD_BYTES = 65_536
"""Request line and headers, or trailers, of one request."""


class ListenError(Exception):
    """A port cannot be opened: which, why, and how to choose another."""


class HeadTooLargeError(Exception):
    """Inside the parser: the request ends here."""


class LimitedHeadProtocol(HttpToolsProtocol):
    """HTTP that answers 431 to a head of more than `MOST_HEAD_BYTES` and closes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = 0
        """Bytes since a head was complete or a piece of a body came: the parser may hold all of them."""
        self._too_large = False

    @override
    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")

    @override
    def on_headers_complete(self) -> None:
        self._unread = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._too_large = True
            raise HeadTooLargeError
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    @override
    def send_400_response(self, msg: str) -> None:
        if not self._too_large:
            super().send_400_response(msg)
            return
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()


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
        protocol: type[LimitedHeadProtocol] = LimitedHeadProtocol,
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
