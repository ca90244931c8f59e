"""A scripted engine: raw bytes over a socket, for what no well-behaved server does."""

import asyncio
import contextlib
import fcntl
import termios
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Script = Callable[["Connection"], Awaitable[None]]


class Connection:
    """The engine's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        """Counts connections from 1."""

    async def request(self) -> tuple[bytes, bytes] | None:
        """Read one request's head and body; None when the client has left."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head, await self.reader.readexactly(length)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def reset(self) -> None:
        self.writer.transport.abort()

    def read_no_more(self) -> None:
        """Leave what comes in the kernel, as a server does whose time for an idle connection is over."""
        self.writer.transport.pause_reading()

    async def close_unread(self) -> None:
        """Close once something came that nobody has read."""
        came = array("i", [0])
        async with asyncio.timeout(5):
            while not came[0]:
                await asyncio.sleep(0.001)
                fcntl.ioctl(self.writer.get_extra_info("socket").fileno(), termios.FIONREAD, came)
        self.reset()

    async def left(self) -> bytes:
        """Wait until the client closes; return what it sent before."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


class Engine:
    """A listening scripted engine."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[Connection] = []
        self.requests: list[tuple[bytes, bytes]] = []


@contextlib.asynccontextmanager
async def engine(script: Script, uds: Path | None = None) -> AsyncIterator[Engine]:
    """Run `script` for each connection."""
    it = Engine()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, len(it.connections) + 1)
        it.connections.append(connection)
        tasks.add(asyncio.current_task())
        try:
            await script(connection)
        finally:
            writer.close()

    if uds is not None:
        server = await asyncio.start_unix_server(serve, str(uds))
        it.url = f"unix:{uds}"
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield it
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in it.connections:
            connection.writer.close()
            # One that was closed while it still had bytes to write, and has written them since, must not be aborted:
            # its transport has forgotten its loop (CPython 3.11).
            if connection.writer.transport.get_write_buffer_size():
                connection.reset()


def answer(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answering():
    """An engine that answers every request with an empty object, and counts them."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            seen.append(request)
            connection.send(answer(b"{}"))

    script.seen = seen
    return script
