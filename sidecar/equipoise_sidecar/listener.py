"""One port: a uvicorn server that leaves signals to us and shows a peer's own address, whatever its headers say.

What uvicorn's httptools protocol leaves open is closed here, before anybody is asked for a key: a head of any length (each
piece of a long header costs a copy of it so far: 20 MB of one hold the event loop for seconds), a head that never comes,
connections without number, an offer to speak HTTP/2, and a client that leaves after it sent a second request ahead of the
first one's answer. What ends so is counted by reason: it never becomes a request that anything else could count.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections import Counter
from collections.abc import Generator
from enum import StrEnum
from functools import partial
from typing import Any

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from equipoise_sidecar.open_files import most_connections

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
MOST_HEAD_BYTES = 65_536
"""Request line and headers, or trailers, of one request."""
HEAD_SECONDS = 75.0
"""For a head to come whole, from the connection on or from the first byte after an answer."""
_GONE_SECONDS = 0.05
"""Between looks at whether connections are closed."""
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class ListenError(Exception):
    """A port cannot be opened: which, why, and how to choose another."""


class HeadTooLargeError(Exception):
    """Inside the parser: the request ends here."""


class HttpRefusal(StrEnum):
    """Why a connection was ended before it held a request, or in the middle of one."""

    MALFORMED = "malformed"
    """Not HTTP/1: TLS or HTTP/2 at a plain port, a bad request line, header or chunk, lengths that contradict each other."""
    HEAD_TOO_LARGE = "head-too-large"
    HEAD_TIMEOUT = "head-timeout"
    TOO_MANY_CONNECTIONS = "too-many-connections"


class GuardedProtocol(HttpToolsProtocol):
    """HTTP with limits: 431 to a head of more than `MOST_HEAD_BYTES`, 503 to a connection too many, `HEAD_SECONDS`."""

    def __init__(self, *args: Any, refusals: Counter[HttpRefusal], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusals = refusals
        self._unread = 0
        """Bytes since a head was complete or a piece of a body came: the parser may hold all of them."""
        self._too_large = False
        self._between = True
        """The next byte begins a request: what comes is its head, not the rest of another's body."""
        self._head_due: asyncio.TimerHandle | None = None
        self._served: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the newest one."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._refuse(
                HttpRefusal.TOO_MANY_CONNECTIONS,
                b"503 Service Unavailable",
                b"x-equipoise-reason: too-many-connections\r\nretry-after: 1\r\n",
            )
        else:
            self._expect_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()
        served = self._served
        if served is not None and not served.response_complete:
            served.disconnected = True
            served.message_event.set()

    @override
    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(_without_upgrade(data) if self._between else data)
        if self._unread > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._too_large = True
            self.send_400_response("")
        elif self._head_due is None and not self._serving:
            self._expect_head()

    @override
    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    @override
    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    @override
    def on_headers_complete(self) -> None:
        self._unread = 0
        self._forget_head()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._too_large = True
            raise HeadTooLargeError
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            # read on: while nothing is read nobody sees the client leave
            self.flow.resume_reading()

    @override
    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    @override
    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse(HttpRefusal.HEAD_TOO_LARGE, b"431 Request Header Fields Too Large")
        else:
            self._refusals[HttpRefusal.MALFORMED] += 1
            super().send_400_response(msg)

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _serving(self) -> bool:
        return self._served is not None and not self._served.response_complete

    def _refuse(self, refusal: HttpRefusal, status: bytes, headers: bytes = b"") -> None:
        self._refusals[refusal] += 1
        self.transport.write(
            b"HTTP/1.1 %s\r\n%scontent-length: 0\r\nconnection: close\r\n\r\n" % (status, headers)
        )
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_due = self.loop.call_later(HEAD_SECONDS, self._give_up_on_head)

    def _give_up_on_head(self) -> None:
        self._refusals[HttpRefusal.HEAD_TIMEOUT] += 1
        self.transport.close()

    def _forget_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


def _without_upgrade(data: bytes) -> bytes:
    """Leave an offer to upgrade out of a head that begins here: uvicorn's parser drops the body of a request that has one.

    Java's HttpClient offers HTTP/2 with each request on a new connection, and is content without.
    """
    found = _UPGRADE.search(data, 0, max(0, data.find(b"\r\n\r\n")))
    return data if found is None else data[: found.start()] + data[found.end() :]


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
        protocol: type[GuardedProtocol] = GuardedProtocol,
    ) -> None:
        """Prepare it; `setting` names the variable to change where the port is taken."""
        self.refusals: Counter[HttpRefusal] = Counter()
        """Since the start."""
        self._address = (host, port)
        self._setting = setting
        config = uvicorn.Config(
            app,
            http=partial(protocol, refusals=self.refusals),  # type: ignore[arg-type] # uvicorn only calls it
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

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

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

    async def drain(self) -> None:
        """Take no more connections, close the idle ones, and return when the others have taken their answers."""
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.shutdown()
        while self.connections:  # noqa: ASYNC110 - uvicorn keeps them, and tells nobody
            await asyncio.sleep(_GONE_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Close the port; give answers `grace_seconds` to end, then cut them off."""
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        await self._serving
