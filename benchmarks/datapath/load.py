"""The client: streams over kept connections, counted and timed without parsing more than the event's mark."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from typing_extensions import override

MARK = b"data: "
END = b"0\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What is sent: `streams` at a time, each request of `chunks` chunks, for `seconds` seconds.

    `interval_ms` is the engine's pace; 0 means as fast as it goes.
    """

    streams: int
    chunks: int
    seconds: float
    interval_ms: float


@dataclass
class Seen:
    """What the client saw: engine chunks asked for, and seconds to the first event of each request."""

    chunks: int = 0
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Stream(asyncio.Protocol):
    """One connection. `request()` resolves to (events, seconds to the first one)."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[tuple[int, float]] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from neither
        self._transport = cast("asyncio.Transport", transport)

    def request(self, data: bytes) -> asyncio.Future[tuple[int, float]]:
        """Send a request; resolves when its answer is complete."""
        self._events, self._first, self._tail = 0, 0.0, b""
        self._waiter = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(data)
        return self._waiter

    @override
    def data_received(self, data: bytes) -> None:
        text = self._tail + data
        self._events += text.count(MARK)
        if self._events and not self._first:
            self._first = time.perf_counter() - self._began
        # Shorter than the mark, so that none is counted twice.
        self._tail = text[-(len(MARK) - 1) :]
        if self._waiter and text.endswith(END):
            self._waiter.set_result((self._events, self._first))
            self._waiter = None

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter:
            self._waiter.set_exception(exc or ConnectionError("the proxy closed the connection"))


async def run(load: Load, port: int, headers: Mapping[str, str]) -> Seen:
    """Send a load to a port on loopback. Raises ValueError when events are missing from an answer."""
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello, how are you?"}],
            "max_tokens": load.chunks,
            "stream": True,
        }
    ).encode()
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body
    seen, began = Seen(), time.perf_counter()

    async def stream(number: int) -> None:
        # Spread, so that the streams' chunks do not come in step.
        await asyncio.sleep(load.interval_ms / 1000 * number / load.streams)
        _, protocol = await asyncio.get_running_loop().create_connection(Stream, "127.0.0.1", port)
        while time.perf_counter() - began < load.seconds:
            events, first = await protocol.request(request)
            # A proxy may drop the role chunk, not a token.
            if events < load.chunks:
                raise ValueError(f"port {port}: {events} events of {load.chunks} chunks")
            seen.chunks += load.chunks
            seen.first.append(first)

    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(stream(number))
    seen.seconds = time.perf_counter() - began
    return seen
