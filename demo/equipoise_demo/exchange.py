"""One streamed chat completion on a connection of its own: raw HTTP and SSE, counted rather than decoded.

An OpenAI SDK costs about 0.5 ms a chunk; here a chunk costs a few microseconds: events are counted by their empty lines, and only the
end of the stream, which has the usage, is looked into.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, cast

import httptools
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_USAGE = re.compile(rb'"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
_TAIL = 1_024
"""Bytes of a stream's end that are kept; the usage chunk has about 300."""
_BEFORE_TEXT = 1
"""Events before the first token: the role."""


class Exchange(asyncio.Protocol):
    """Sends `request` once connected, and follows the answer until it ends."""

    def __init__(self, request: bytes, clock: Callable[[], float]) -> None:
        self._request = request
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._events = 0
        self._line_ended = False
        self._tail = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.error: str | None = None
        self.first_at: float | None = None
        self.ended_at = 0.0
        self.tokens: list[tuple[float, int]] = []
        """When how many tokens came."""
        self.usage: tuple[int, int] | None = None
        """Prompt and generated tokens as the server counts them; None unless the stream was complete."""

    def abort(self, reason: str) -> None:
        """Give up: the connection is cut."""
        self._end(reason)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    @override
    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"no HTTP: {error}")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc}" if exc else "connection closed before the end of the answer")

    # -- what the parser calls

    def on_headers_complete(self) -> None:
        """Note the status."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Count the events that end in this piece."""
        ends = body.count(b"\n\n") + (self._line_ended and body[:1] == b"\n")
        self._line_ended = body[-1:] == b"\n" and body[-2:] != b"\n\n"
        self._tail = (self._tail + body)[-_TAIL:]
        if not ends:
            return
        before, self._events = self._events, self._events + ends
        tokens = self._events - max(before, _BEFORE_TEXT)
        if tokens > 0:
            now = self._clock()
            if self.first_at is None:
                self.first_at = now
            self.tokens.append((now, tokens))

    def on_message_complete(self) -> None:
        """Read the usage, or the error."""
        found = _USAGE.search(self._tail)
        if self.status == 200 and found and self._tail.endswith(b"data: [DONE]\n\n"):
            self.usage = int(found[1]), int(found[2])
            self._end(None)
        else:
            self._end(self._tail[-300:].decode(errors="replace").strip() or "an empty answer")

    def _end(self, error: str | None) -> None:
        if self.ended.done():
            return
        self.error = error
        self.ended_at = self._clock()
        self.ended.set_result(None)
        if self._transport is not None:
            self._transport.abort()


def chat_request(host: str, port: int, key: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a request that closes its connection, with these headers beside the needed ones."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
