"""What never becomes a request is counted once, by reason."""

import asyncio
import json

import pytest
from engine_fakes import answering, engine
from prometheus_client import CollectorRegistry, generate_latest
from stack import CHAT, HELLO, stack

from equipoise_api.names import DEFAULT_TENANT
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.listener import MOST_HEAD_BYTES, HttpRefusal
from equipoise_sidecar.metrics import SidecarMetrics
from equipoise_sidecar.report import Reporter

BODY = json.dumps(HELLO).encode()
POST = f"POST {CHAT} HTTP/1.1\r\nhost: service\r\n".encode()


async def said(way, *pieces: bytes) -> bytes:
    """Send pieces, each a read of its own; return all that comes until the connection is closed."""
    reader, writer = await way.connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def rejected(way) -> dict[str, int]:
    return way.dispatcher.accounting[DEFAULT_TENANT].rejected


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)],
        [b"hello\r\n\r\n"],
        [b"GET /he alth HTTP/1.1\r\nhost: x\r\n\r\n"],
        [POST + b"no colon\r\n\r\n"],
        [POST + b"x: \x00\r\n\r\n"],
        [POST + b"content-length: many\r\n\r\n"],
        [POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n"],
        [POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"],
        [POST + b"transfer-encoding: gzip\r\n\r\n"],
        [POST + b"transfer-encoding: chunked\r\n\r\n", b"zz\r\n"],
        [POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY + b"and more\r\n\r\n"],
    ],
    ids=[
        "TLS",
        "HTTP/2",
        "no request line",
        "a space in the path",
        "no header",
        "a zero byte",
        "a length that is none",
        "two lengths",
        "a length and chunks",
        "another encoding",
        "a bad chunk",
        "more than its length",
    ],
)
async def test_what_is_no_http_is_malformed(pieces):
    async with engine(answering()) as it, stack(it.url) as way:
        assert (await said(way, *pieces)).startswith(b"HTTP/1.1 400 ")
        assert way.listener.refusals == {HttpRefusal.MALFORMED: 1}
        assert rejected(way) == {}


@pytest.mark.parametrize(
    "pieces",
    [
        [POST + b"x: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n"],
        [b"GET /", *[b"a" * 16_384] * 4],
        [
            POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
            *[b"x: " + b"x" * 30_000 + b"\r\n"] * 3,
        ],
    ],
    ids=["at once", "without end", "trailers"],
)
async def test_a_head_too_large_is_counted(pieces):
    async with engine(answering()) as it, stack(it.url) as way:
        assert (await said(way, *pieces)).startswith(b"HTTP/1.1 431 ")
        assert way.listener.refusals == {HttpRefusal.HEAD_TOO_LARGE: 1}


@pytest.mark.parametrize("sent", [b"", POST], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come_is_counted(sent, monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.HEAD_SECONDS", 0.2)
    async with engine(answering()) as it, stack(it.url) as way:
        assert await said(way, sent) == b""
        assert way.listener.refusals == {HttpRefusal.HEAD_TIMEOUT: 1}


async def test_a_connection_too_many_is_counted(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.most_connections", lambda: 1)
    async with engine(answering()) as it, stack(it.url) as way:
        _, held = await way.connect()
        await asyncio.sleep(0.05)
        for _ in range(2):
            assert (await said(way)).startswith(b"HTTP/1.1 503 ")
        held.close()
        assert way.listener.refusals == {HttpRefusal.TOO_MANY_CONNECTIONS: 2}


async def test_clients_that_are_served_or_leave_are_not_counted(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.HEAD_SECONDS", 1.5)
    async with engine(answering()) as it, stack(it.url) as way:
        assert (await way.ask()).status == 200
        for sent in (b"", POST):
            _, writer = await way.connect()
            writer.write(sent)
            await writer.drain()
            writer.close()
        await asyncio.sleep(2)
        assert way.listener.refusals == {}


async def test_every_reason_is_exposed_from_the_start():
    async with engine(answering()) as it, stack(it.url) as way:
        await said(way, b"hello\r\n\r\n")
        store = ConfigStore(way.dispatcher.apply, None)
        reporter = Reporter(way.dispatcher, Feedback(way.dispatcher, way.pool), store, "uid", "x")
        registry = CollectorRegistry()
        registry.register(SidecarMetrics(reporter, listeners={"data": way.listener}))
        text = generate_latest(registry).decode()
        await store.close()
    for reason in HttpRefusal:
        count = 1.0 if reason is HttpRefusal.MALFORMED else 0.0
        assert f'equipoise_http_refusals_total{{port="data",reason="{reason}"}} {count}\n' in text
