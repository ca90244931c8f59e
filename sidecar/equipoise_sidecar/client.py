"""The client's side of one request, over raw ASGI: its body, its leaving, the answer.

uvicorn says nothing to a sender whose client has left, and tells of it only to who awaits `receive`. So a watch awaits it
while the request is queued and served, and cancels the task that serves it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from equipoise_sidecar.admission import Refused, too_large
from equipoise_sidecar.errors import error_body, error_headers
from equipoise_sidecar.facts import EndpointKind, Rejection
from equipoise_sidecar.headers import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLOSE = (b"connection", b"close")
_ENDING = frozenset((408, 503))
"""After these the connection is closed: the rest of the body may never come; another replica may serve where this one
cannot, and who tries again on the same connection would not get there."""
_REST_SECONDS = 1.0
STALL_SECONDS = 120.0
"""A client that takes nothing of its answer for so long, at most twice, is cut off: it holds a place in the engine."""


class ClientLeftError(Exception):
    """The client left while its body was read."""


class BodyRefusedError(Exception):
    """The body was not read to its end."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


class Client:
    """One request's client."""

    __slots__ = (
        "_left",
        "_receive",
        "_send",
        "_sending",
        "_sent",
        "_sent_before",
        "_stall",
        "_task",
        "_watch",
        "_whole",
        "scope",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.started = False
        """The answer's head was sent."""
        self._receive = receive
        self._send = send
        self._left = False
        self._whole = False
        """The body was read to its end."""
        self._sending = False
        self._sent = 0
        self._sent_before = -1
        self._stall: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def headers(self) -> Headers:
        """The request's headers, names in lower case."""
        headers: Headers = self.scope["headers"]
        return headers

    @property
    def peer(self) -> str | None:
        """The address that it connects from; None on a Unix socket."""
        client = self.scope.get("client")
        return client[0] if client else None

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of this name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def content_length(self) -> int | None:
        """What the client says its body has; None where it says nothing (chunked)."""
        value = self.header(b"content-length")
        return int(value) if value is not None and value.isdigit() else None

    @property
    def has_body(self) -> bool:
        """Whether one is announced."""
        return bool(self.content_length) or self.header(b"transfer-encoding") is not None

    async def body(
        self, *, limit: int | None, timeout: float, grown: Callable[[int], Rejection | None] | None = None
    ) -> bytes:
        """Read the body. `grown` is told the length so far where the client did not declare it, and may refuse.

        Raises ClientLeftError, and BodyRefusedError: over `limit` bytes (413) or not there in `timeout` seconds (408).
        """
        declared = self.content_length
        if limit is not None and declared is not None and declared > limit:
            raise BodyRefusedError(too_large(limit))
        pieces: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    piece = message.get("body", b"")
                    length += len(piece)
                    if limit is not None and length > limit:
                        raise BodyRefusedError(too_large(limit))
                    if declared is None and grown is not None and (refused := grown(length)) is not None:
                        raise BodyRefusedError(refused)
                    pieces.append(piece)
                    if not message.get("more_body"):
                        self._whole = True
                        break
        except TimeoutError:
            came = f"{length} bytes" if declared is None else f"{length} of {declared} bytes"
            text = f"The body did not come within {timeout:.0f} s ({came} did)."
            raise BodyRefusedError(Rejection(408, Refused.BODY_TIMEOUT, text)) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the answer's head."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of the answer; returns when there is room for the next."""
        self._sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = False
        self._sent += 1

    async def finish(self, data: bytes = b"") -> None:
        """Send the answer's last piece."""
        self._sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})
        self._sending = False

    async def refuse(self, kind: EndpointKind, rejection: Rejection, headers: Headers | None = None) -> None:
        """Answer with an error of the sidecar's own."""
        body = error_body(kind, rejection.status, rejection.message)
        head = [*error_headers(rejection), *(headers or []), (b"content-length", b"%d" % len(body))]
        if rejection.status in _ENDING:
            head.append(CLOSE)
        if rejection.status == 503:
            await self._take_rest()
        await self.start(rejection.status, head)
        await self.finish(body)

    async def _take_rest(self) -> None:
        """Read what is left of the body, for a moment: the end of a connection with bytes unread may overtake the answer."""
        if self._whole or not self.has_body or self.header(b"expect") is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get(
                    "more_body"
                ):
                    pass

    def watched(self) -> Self:
        """Cancel the calling task when the client leaves: `async with client.watched():`, once the body is read.

        The cancellation ends inside the block's exit; `left` tells.
        """
        return self

    @property
    def left(self) -> bool:
        """Whether the watch saw the client leave, or cut it off."""
        return self._left

    async def __aenter__(self) -> Self:
        """Begin to watch."""
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._wait_for_disconnect(), name="client watch")
        self._stall = asyncio.get_running_loop().call_later(STALL_SECONDS, self._check_stall)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the watch; swallow the cancellation that it caused."""
        assert self._watch is not None
        assert self._stall is not None
        self._watch.cancel()
        self._stall.cancel()
        if not self._left:
            return False
        assert self._task is not None
        return self._task.uncancel() == 0 and kind is asyncio.CancelledError

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cut()

    def _cut(self) -> None:
        if not self._left:
            self._left = True
            assert self._task is not None
            self._task.cancel()

    def _check_stall(self) -> None:
        if self._sending and self._sent == self._sent_before:
            self._cut()
            return
        self._sent_before = self._sent if self._sending else -1
        self._stall = asyncio.get_running_loop().call_later(STALL_SECONDS, self._check_stall)
