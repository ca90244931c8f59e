"""Connections to one engine: made when needed, kept a little, tried again where that is safe.

The engine (uvicorn) closes a connection that idles for 5 s; ours expire sooner, so that a request rarely meets a closing
one. When it does, the engine has not read it, and the way the connection ends says so (`http1`): it is sent once more on a
fresh connection. A request that was read, and brought a connection's end instead of an answer, may be what the engine died
of: it is not given to it again, however long the connection had been used.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from typing_extensions import override

from equipoise_sidecar.engine.errors import EngineAbandonedError, EngineLostError, EngineUnreachableError
from equipoise_sidecar.engine.http1 import EngineConnection

IDLE_SECONDS = 4.0
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where the engine listens: a Unix socket, or a host and port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `unix:/run/engine.sock` or `http://127.0.0.1:8001`. Raises ValueError that says what is wrong."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/"):
                raise ValueError(f"engine address {text!r}: the socket's path must be absolute")
            return cls(path=path)
        parts = urlsplit(text)
        try:
            port = parts.port or 80
        except ValueError as error:
            raise ValueError(f"engine address {text!r}: {error}") from None
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"engine address {text!r} must be unix:/path or http://host:port")
        if parts.path.rstrip("/") or parts.query or parts.username:
            raise ValueError(f"engine address {text!r} must end after the port")
        return cls(host=parts.hostname, port=port)

    @property
    def authority(self) -> bytes:
        """For a Host header where no client gave one."""
        if self.path is not None:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()

    @override
    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"unix:{self.path}" if self.path is not None else f"http://{self.authority.decode()}"


class EnginePool:
    """Connections to one engine. Use on one event loop."""

    def __init__(self, address: EngineAddress, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.address = address
        self.idle_seconds = idle_seconds
        self._idle: deque[EngineConnection] = deque()  # the last used one last
        self._busy: set[EngineConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    async def exchange(self, head: bytes, body: bytes = b"", *, no_body: bool = False) -> EngineConnection:
        """Send a request and return the connection with the answer's head on it; `release` it in a `finally`.

        Raises EngineUnreachableError where no connection can be made, EngineLostError where it ended before an
        answer, EngineGarbageError for an answer that is not HTTP.
        """
        connection = self._reuse()
        if connection is not None:
            try:
                return await self._send(connection, head, body, no_body=no_body)
            except EngineLostError as error:
                if not error.unread:
                    raise
        return await self._send(await self._connect(), head, body, no_body=no_body)

    def release(self, connection: EngineConnection) -> None:
        """Take a connection back, for reuse if its answer was read to the end; else the engine sees it closed."""
        self._busy.discard(connection)
        if connection.released():
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = loop.call_later(self.idle_seconds, self._sweep)

    def abandon(self) -> None:
        """Give up every answer that is not there yet; who awaits it gets EngineAbandonedError."""
        for connection in list(self._busy):
            connection.give_up(EngineAbandonedError("the sidecar is shutting down"))

    def close(self) -> None:
        """Close the idle connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._idle:
            self._idle.pop().abort()

    def _reuse(self) -> EngineConnection | None:
        oldest = asyncio.get_running_loop().time() - self.idle_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > oldest and connection.reusable:
                return connection
            connection.abort()
        return None

    async def _send(
        self, connection: EngineConnection, head: bytes, body: bytes, *, no_body: bool
    ) -> EngineConnection:
        self._busy.add(connection)
        try:
            await connection.send(head, body, no_body=no_body)
        except BaseException:
            self._busy.discard(connection)
            connection.abort()
            raise
        return connection

    async def _connect(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        address = self.address
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if address.path is not None:
                    _, connection = await loop.create_unix_connection(EngineConnection, address.path)
                else:
                    _, connection = await loop.create_connection(EngineConnection, address.host, address.port)
        except TimeoutError:
            raise EngineUnreachableError(f"{address}: no connection within {CONNECT_SECONDS:.0f} s") from None
        except OSError as error:
            raise EngineUnreachableError(f"{address}: {error}") from None
        return connection

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self.idle_seconds
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().abort()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since + self.idle_seconds, self._sweep)
        else:
            self._sweeper = None
