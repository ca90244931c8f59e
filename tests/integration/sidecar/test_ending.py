"""The real process at its end and at its limits: what clients get who wait, who read slowly, who are too many."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from equipoise_cluster import ports

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds that a busy machine may need for what takes a moment."""

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\n'
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
METRICS = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
PIECE = b": " + b"x" * 250_000 + b"\n\n"


async def soon(awaited: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaited, PATIENCE)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Engine:
    """A raw engine: chat requests are given to the test, the rest gets an empty answer."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(path))

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
                if b"/v1/chat/completions" in head:
                    await self.asked.put(writer)
                else:
                    writer.write(METRICS)


class Sidecar:
    """A process with a configuration file, before `engine`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = Engine()
        self.data, self.health = ports.choose(2)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *, files: int | None = None, drain_seconds: float = 120, **config) -> None:
        await self.engine.start(self.directory / "engine.sock")
        document = {"mode": "Enforce", "algorithm": {"type": "VTC"}, **config}
        (self.directory / "policy.json").write_text(json.dumps(document))
        environment = {
            "EQUIPOISE_ENGINE": f"unix:{self.directory / 'engine.sock'}",
            "EQUIPOISE_HOST": "127.0.0.1",
            "EQUIPOISE_DATA_PORT": str(self.data),
            "EQUIPOISE_HEALTH_PORT": str(self.health),
            "EQUIPOISE_CONFIG_FILE": str(self.directory / "policy.json"),
            "EQUIPOISE_DRAIN_SECONDS": str(drain_seconds),
        }
        limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        with (self.directory / "sidecar.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "equipoise_sidecar",
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                preexec_fn=limit,
            )
        await self.until("/readyz", "ok\n")

    async def until(self, path: str, text: str) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while text not in (found := await self.read(path)):
            if asyncio.get_running_loop().time() > deadline:
                log = (self.directory / "sidecar.log").read_text()
                pytest.fail(f"no {text!r} at {path} within {PATIENCE:g} s, but\n{found}\n{log}")
            await asyncio.sleep(0.05)

    async def read(self, path: str) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.health)
        except OSError:
            return ""
        writer.write(f"GET {path} HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n".encode())
        got = await reader.read()
        writer.close()
        return got.decode()

    async def chat(self, *, stream: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.data)
        writer.write(_chat(stream=stream))
        return reader, writer

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self.engine.stop()


def _chat(*, stream: bool) -> bytes:
    document = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "stream": stream,
    }
    body = json.dumps(document).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: s\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


@pytest.fixture
async def sidecar(tmp_path):
    it = Sidecar(tmp_path)
    yield it
    await it.stop()


async def test_a_slow_reader_gets_the_end_of_its_answer_though_the_engine_is_done(sidecar):
    await sidecar.start()
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", sidecar.data))
    reader, writer = await asyncio.open_connection(sock=opened, limit=16_384)
    writer.write(_chat(stream=True))
    engine = await soon(sidecar.engine.asked.get())
    engine.write(EVENTS)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:  # until nobody takes any more
            engine.write(chunk(PIECE))
            sent += 1
            async with asyncio.timeout(0.5):
                await engine.drain()
    engine.write(chunk(TOKEN) + b"0\r\n\r\n")
    got = b""
    while 'outcome="finished"' not in await sidecar.read("/metrics"):
        got += await reader.read(16_384)
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(3)
    got += await reader.read()
    writer.close()
    assert got.endswith(b"0\r\n\r\n")
    assert got.count(b"\n\n") == sent + 1
    assert await soon(sidecar.process.wait()) == 0


async def test_whom_the_drain_had_no_time_for_is_told_so(sidecar):
    await sidecar.start(drain_seconds=1, capacity={"maxInFlight": 2})
    streamed, stream = await sidecar.chat(stream=True)
    engine = await soon(sidecar.engine.asked.get())
    engine.write(EVENTS + chunk(TOKEN))
    await soon(streamed.readuntil(b'"content":"a"'))
    unanswered, one = await sidecar.chat()
    await soon(sidecar.engine.asked.get())
    queued, two = await sidecar.chat()
    await sidecar.until("/metrics", 'equipoise_queued_requests{tenant="default"} 1.0')
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGTERM)
    for reader in (unanswered, queued):
        said = await soon(reader.read())
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"x-equipoise-reason: draining\r\n" in said
        assert b"retry-after: 1\r\n" in said
        assert b'{"error":{"message":"This replica is shutting down."' in said
    rest = await soon(streamed.read())
    assert b'data: {"error":{"message":"the sidecar is shutting down"' in rest
    assert not rest.endswith(b"0\r\n\r\n"), "nobody takes it for a whole answer"
    assert await soon(sidecar.process.wait()) == 0
    for writer in (stream, one, two):
        writer.close()
    assert "Traceback" not in (sidecar.directory / "sidecar.log").read_text()


async def test_idle_connections_never_keep_the_sidecar_from_its_engine(sidecar):
    await sidecar.start(files=256)
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.data)
    idle = []
    for _ in range(300):
        with contextlib.suppress(OSError):
            idle.append(await asyncio.open_connection("127.0.0.1", sidecar.data))
    await asyncio.sleep(2)  # two looks at the engine
    assert "ok\n" in await sidecar.read("/readyz")
    writer.write(_chat(stream=False))
    engine = await soon(sidecar.engine.asked.get())
    engine.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert (await soon(reader.readuntil(b"{}"))).startswith(b"HTTP/1.1 200 ")
    told, last = idle[-1]
    assert b"x-equipoise-reason: too-many-connections\r\n" in await soon(told.read())
    for _, each in (*idle, (None, last), (None, writer)):
        each.close()
    asked = asyncio.ensure_future(sidecar.engine.asked.get())
    async with asyncio.timeout(PATIENCE):
        while not asked.done():  # it sees one after the other that they are closed
            told, again = await sidecar.chat()
            answered = asyncio.ensure_future(told.read())
            await asyncio.wait({asked, answered}, return_when=asyncio.FIRST_COMPLETED)
            answered.cancel()
            again.close()
