"""One HTTP/1.1 connection to the engine: an asyncio protocol on httptools' response parser.

One exchange at a time: `send` writes a request and returns when the answer's head is there, `read` returns the body
as it comes, b"" at its end. While nobody reads, the socket is read no further than `HIGH_WATER` bytes, so a slow client
slows the engine's answer instead of filling memory. Chunked encoding is removed; nothing else is changed.

How a connection ends says whether the request was read. Linux closes one whose process has read everything in order, whether
that process closed it or was killed; one with bytes unread it resets, and what is written to a closed one is answered with an
error. That holds for TCP and Unix sockets.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import cast

import httptools
from typing_extensions import override

from equipoise_sidecar.engine.errors import EngineError, EngineGarbageError, EngineLostError

HIGH_WATER = 256 * 1024
"""Bytes of an answer held for a reader before the socket is paused."""

Headers = list[tuple[bytes, bytes]]

_UNREAD = (ConnectionResetError, BrokenPipeError)


class EngineConnection(asyncio.Protocol):
    """A connection, and the answer that is on it."""

    __slots__ = (
        "_buffer",
        "_buffered",
        "_error",
        "_framed",
        "_heard",
        "_keep_alive",
        "_no_body",
        "_parser",
        "_paused",
        "_transport",
        "_waiter",
        "busy",
        "complete",
        "headers",
        "headers_complete",
        "idle_since",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        """Of the answer; names in lower case."""
        self.headers_complete = False
        self.complete = False
        """The whole answer came; some of it may still have to be read."""
        self.busy = False
        self.idle_since = 0.0
        """When the pool took it back; the pool's."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._error: EngineError | None = None
        self._heard = False
        self._framed = False
        self._keep_alive = False
        self._no_body = False

    # -- for the user ---------------------------------------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on it."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._error is None
            and (self.complete and self._keep_alive if self.busy else True)
        )

    def header(self, name: bytes) -> bytes:
        """Return the answer's first header of this (lower-case) name, or b""."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    async def send(self, head: bytes, body: bytes = b"", *, no_body: bool = False) -> None:
        """Write a request; return when the answer's status and headers are there.

        `no_body`: the answer has none whatever its headers say (HEAD). Raises EngineLostError, EngineGarbageError.
        """
        assert not self.busy, "one exchange at a time"
        self.busy = True
        self.complete = self.headers_complete = self._heard = self._framed = self._keep_alive = False
        self._no_body = no_body
        self.headers = []
        transport = self._transport
        assert transport is not None
        if transport.is_closing():
            raise self._error or EngineLostError("the engine had closed the connection", unread=True)
        if len(body) < HIGH_WATER:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        while not self.headers_complete:
            await self._wait()

    async def read(self) -> bytes:
        """Return what came of the body since, at least one byte; b"" at its end.

        Raises EngineLostError or EngineGarbageError where the answer breaks off, after all that came was read.
        """
        while not self._buffer:
            if self.complete:
                return b""
            await self._wait()
        buffer = self._buffer
        data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        buffer.clear()
        self._buffered = 0
        if self._paused:
            self._paused = False
            assert self._transport is not None
            self._transport.resume_reading()
        return data

    def released(self) -> bool:
        """End the exchange. True: the connection may carry another; False: it was closed."""
        if self.reusable:
            self.busy = False
            self._buffer.clear()
            self._buffered = 0
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            return True
        self.abort()
        return False

    def give_up(self, error: EngineError) -> None:
        """Close at once; whoever waits for the answer gets `error`."""
        self._fail(error)
        self.abort()

    def abort(self) -> None:
        """Close at once; the engine sees its client leave."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, error: EngineError) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        if not self.busy or self.complete:
            # Nothing was asked: whatever this is, the next answer would start with it.
            self._fail(EngineGarbageError("the engine sent data that no request asked for"))
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(EngineGarbageError(f"the engine's answer is not HTTP: {error}"))
            self.abort()
            return
        if self._buffered > HIGH_WATER and not self._paused and not self.complete:
            self._paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    @override
    def eof_received(self) -> bool:
        self._ended(unread=not self._heard and not self.complete and self._undelivered())
        return False

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc, unread=not self._heard and isinstance(exc, _UNREAD))

    def _ended(self, exc: Exception | None = None, *, unread: bool) -> None:
        if self.headers_complete and not self._framed and not self._no_body and exc is None:
            self.complete = True  # a body that ends with the connection
        reason = f": {exc}" if exc else ""
        if not self.complete:
            self._fail(EngineLostError(f"the engine closed the connection{reason}", unread=unread))
        else:
            self._keep_alive = False
            self._wake()

    def _undelivered(self) -> bool:
        """Say whether the engine had closed before the request arrived: its answer to that follows the end of what it sent."""
        transport = self._transport
        assert transport is not None
        if transport.get_write_buffer_size():
            return True
        # a socket of our own, for uvloop's is none
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
            return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    # -- httptools' side --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self.complete:
            raise EngineGarbageError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the head; 1xx answers precede the real one and are dropped."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        if status > 599:
            raise EngineGarbageError(f"status {status}")
        self.status = status
        self._keep_alive = self._parser.should_keep_alive() and not self._no_body
        self.headers_complete = True
        if status in (204, 304):
            self._framed = True
        if self._no_body:
            self.complete = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._buffer.append(body)
        self._buffered += len(body)
        self._wake()

    def on_message_complete(self) -> None:
        """Take the end."""
        if self.headers_complete:
            self.complete = True
            self._wake()
        else:
            self.headers = []
            self._framed = False
