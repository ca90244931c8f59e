"""A used connection ends without an answer: what the engine has not read is sent again, what it may have died of is not.

Over real sockets of both kinds and on both event loops, with an engine of plain blocking sockets: nothing is read that its
script does not read.
"""

import asyncio
import contextlib
import select
import socket
import subprocess
import sys
import threading

import pytest
import uvloop
from engine_fakes import answer
from stack import HELLO, stack

from equipoise_sidecar.engine.errors import EngineLostError
from equipoise_sidecar.engine.pool import EngineAddress, EnginePool

SMALL, LARGE = 100, 3_000_000
"""Bytes of a body: into the kernel at once, and not."""


def request(size: int) -> bytes:
    return b"POST /x HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n" % size


def read(connection: socket.socket) -> bytes:
    """Read one request; return its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65_536)
    return body


class Engine:
    """Answers the first request of its first connection, does `act` there, and answers all that comes on a second one."""

    def __init__(self, listening: socket.socket, act) -> None:
        self.listening = listening
        self.act = act
        self.bodies: list[int] = []
        """Lengths of those that were read whole."""
        self.first: socket.socket | None = None
        self.thread = threading.Thread(target=self.run)

    def take(self, connection: socket.socket) -> None:
        self.bodies.append(len(read(connection)))

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.first, _ = self.listening.accept()
            self.take(self.first)
            self.first.sendall(answer(b"1"))
            self.act(self)
            second, _ = self.listening.accept()
            with second:
                self.take(second)
                second.sendall(answer(b"2", headers=b"connection: close\r\n"))

    @contextlib.contextmanager
    def running(self):
        self.thread.start()
        try:
            yield self
        finally:
            # wakes who waits in `accept`
            with contextlib.suppress(OSError):
                self.listening.shutdown(socket.SHUT_RDWR)
            self.listening.close()
            self.thread.join()


def close_unread(engine: Engine) -> None:
    select.select([engine.first], [], [], 5)
    engine.first.close()


def close_half_read(engine: Engine) -> None:
    engine.first.recv(50)
    engine.first.close()


def close_when_read(engine: Engine) -> None:
    engine.take(engine.first)
    engine.first.close()


def leave_open(_: Engine) -> None:
    pass


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main, 20))

    return run


@pytest.fixture(params=["TCP", "Unix"])
def place(request, tmp_path) -> tuple[socket.socket, EngineAddress]:
    if request.param == "TCP":
        listening = socket.create_server(("127.0.0.1", 0))
        return listening, EngineAddress(None, *listening.getsockname())
    path = str(tmp_path / "engine.sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    return listening, EngineAddress(path)


async def send(pool: EnginePool, size: int) -> bytes:
    connection = await pool.exchange(request(size), b"x" * size)
    try:
        return await connection.read()
    finally:
        pool.release(connection)


@pytest.mark.parametrize(
    ("act", "size"),
    [(close_unread, SMALL), (close_unread, LARGE), (close_half_read, SMALL), (close_half_read, LARGE)],
)
def test_what_was_not_read_whole_is_sent_again(run, place, act, size):
    listening, address = place

    async def main():
        pool = EnginePool(address)
        assert await send(pool, SMALL) == b"1"
        assert await send(pool, size) == b"2"
        pool.close()

    with Engine(listening, act).running() as engine:
        run(main())
    assert engine.bodies == [SMALL, size]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_so_is_what_was_written_after_the_engine_had_closed(run, place, size):
    listening, address = place

    async def main():
        pool = EnginePool(address)
        assert await send(pool, SMALL) == b"1"
        engine.first.close()  # and our loop, which looks again after the request is written, has not seen it
        assert await send(pool, size) == b"2"
        pool.close()

    with Engine(listening, leave_open).running() as engine:
        run(main())
    assert engine.bodies == [SMALL, size]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_was_read_whole_is_not_sent_again(run, place, size):
    listening, address = place

    async def main():
        pool = EnginePool(address)
        assert await send(pool, SMALL) == b"1"
        with pytest.raises(EngineLostError) as caught:
            await send(pool, size)
        assert not caught.value.unread

    with Engine(listening, close_when_read).running() as engine:
        run(main())
    assert engine.bodies == [SMALL, size]


MORTAL = """
import os, socket, sys
path, seen = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen()
print("up", flush=True)
while True:
    connection, _ = listening.accept()
    while data := connection.recv(65536):
        if b"deadly" in data:
            with open(seen, "a") as file:
                file.write("deadly\\n")
            listening.close()
            os.kill(os.getpid(), 9)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
"""


@contextlib.contextmanager
def mortal_engine(path, seen):
    """Run an engine that is killed by whatever says `deadly`, once it has read it."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-S", "-E", "-c", MORTAL, str(path), str(seen)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


async def test_a_request_that_kills_the_engine_is_given_to_it_once(tmp_path):
    path, seen = tmp_path / "engine.sock", tmp_path / "seen"
    deadly = {**HELLO, "messages": [{"role": "user", "content": "deadly"}]}
    async with stack(f"unix:{path}") as way:
        with mortal_engine(path, seen) as process:
            assert (await way.ask()).status == 200
            assert way.pool.idle == 1  # the deadly one goes over a used connection
            got = await asyncio.wait_for(way.ask(document=deadly), 5)
            assert (got.status, got.headers["x-equipoise-reason"]) == (502, "engine-failed")
            assert process.wait(5) == -9
        with mortal_engine(path, seen) as process:
            assert (await way.ask()).status == 200
            assert process.poll() is None
        assert seen.read_text() == "deadly\n"
        await way.settled(finished=2, failed=1)
