"""Clients' connections: how many, how long without a request, and who sends the next request before the answer."""

import asyncio
import json
import resource

import pytest
from engine_fakes import Connection, answer, engine
from stack import CHAT, HELLO, head, stack

from equipoise_sidecar.open_files import most_connections, raise_limit

BODY = json.dumps(HELLO).encode()
REQUEST = head(CHAT, BODY) + BODY


class Holding:
    """An engine that answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.left = 0
        self.go = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        while await connection.request():
            self.asked += 1
            going = asyncio.create_task(self.go.wait())
            leaving = asyncio.create_task(connection.left())
            await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                self.left += 1
                return
            leaving.cancel()
            await asyncio.wait({leaving})
            connection.send(answer(b"{}"))


async def until(check) -> None:
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.005)


# -- a second request before the first one's answer


async def test_a_client_that_sent_a_second_request_and_leaves_gives_up_the_first():
    script = Holding()
    async with engine(script) as it, stack(it.url) as way:
        _, writer = await way.connect()
        writer.write(REQUEST + REQUEST)
        await until(lambda: script.asked == 1)
        writer.close()
        await way.settled(cancelled=1)
        await until(lambda: script.left == 1)
        assert script.asked == 1


async def test_requests_sent_ahead_are_answered_in_their_order():
    script = Holding()
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(REQUEST * 3)
        await until(lambda: script.asked == 1)
        script.go.set()
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(2) == b"{}"
        writer.close()
        await way.settled(finished=3)


# -- another protocol


async def test_a_client_that_offers_http_2_is_served_over_http_1():
    script = Holding()
    script.go.set()
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        for _ in range(2):  # and once more on the connection
            writer.write(head(CHAT, BODY, headers=offer) + BODY)
            said = await asyncio.wait_for(reader.readuntil(b"}"), 60)
            assert said.startswith(b"HTTP/1.1 200 "), said
        writer.close()
        await way.settled(finished=2)


@pytest.mark.parametrize("path", [CHAT, "/nowhere"], ids=["too large", "not there"])
async def test_a_body_that_looks_like_an_offer_keeps_its_length(path):
    script = Holding()
    script.go.set()
    text = b"x" * 3000 + b"\r\nUpgrade: h2c\r\n\r\n" + b"y" * 3000
    async with engine(script) as it, stack(it.url, queue={"maxBodyBytes": 1024}) as way:
        reader, writer = await way.connect()
        writer.write(head(path, text))
        await reader.readuntil(b"}}")  # refused, and the body is still to come
        for piece in (text[:2000], text[2000:], REQUEST):
            writer.write(piece)
            await asyncio.sleep(0.02)
        said = await asyncio.wait_for(reader.readuntil(b"}"), 60)
        assert said.startswith(b"HTTP/1.1 200 "), said
        writer.close()


# -- no request at all


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/chat", b"\r\n"], ids=["nothing", "half a head", "an empty line"]
)
async def test_a_connection_without_a_request_is_closed(sent, monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.HEAD_SECONDS", 0.2)
    async with engine(Holding()) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_after_an_answer_half_a_head_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.HEAD_SECONDS", 0.2)
    script = Holding()
    script.go.set()
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(REQUEST)
        await reader.readuntil(b"{}")
        writer.write(b"POST /v1")
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_an_answer_may_take_longer_than_a_head(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.HEAD_SECONDS", 0.1)
    script = Holding()
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(REQUEST + b"POST /v1")  # and the beginning of a next one
        await asyncio.sleep(0.3)
        script.go.set()
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await way.settled(finished=1)


# -- too many


async def test_a_connection_too_many_is_told_so_and_the_others_are_served(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.listener.most_connections", lambda: 3)
    script = Holding()
    script.go.set()
    async with engine(script) as it, stack(it.url) as way:
        first, *_ = held = [await way.connect() for _ in range(3)]
        reader, writer = await way.connect()
        said = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"x-equipoise-reason: too-many-connections\r\n" in said
        first[1].write(REQUEST)
        assert (await first[0].readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        for _, each in held:
            each.close()
        await asyncio.sleep(0.05)
        assert (await way.ask()).status == 200


def test_the_limit_of_open_files_is_raised_and_leaves_some_for_the_engine():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        raised = raise_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == min(hard, 1_048_576) or hard == resource.RLIM_INFINITY
        assert raised / 2 < most_connections() < raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- another replica


@pytest.mark.parametrize("body", [BODY, b"x" * 300_000], ids=["small", "large"])
async def test_who_is_refused_by_a_replica_that_ends_gets_the_answer_and_a_closed_connection(body):
    script = Holding()
    async with engine(script) as it, stack(it.url) as way:
        way.dispatcher.drain()
        reader, writer = await way.connect()
        writer.write(head(CHAT, body) + body)
        said = await asyncio.wait_for(reader.read(), 60)  # to the end, though the client would keep it
        writer.close()
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"x-equipoise-reason: draining\r\n" in said
        assert b"connection: close\r\n" in said


async def test_who_is_served_by_a_replica_that_ends_is_sent_elsewhere_with_the_next_request():
    script = Holding()
    async with engine(script) as it, stack(it.url) as way:
        asked = asyncio.create_task(way.ask())
        await until(lambda: script.asked == 1)
        way.dispatcher.drain()
        script.go.set()
        got = await asked
        assert (got.status, got.headers["connection"]) == (200, "close")


async def test_an_expectant_client_is_refused_without_being_told_to_go_on():
    async with engine(Holding()) as it, stack(it.url) as way:
        way.dispatcher.drain()
        reader, writer = await way.connect()
        writer.write(head(CHAT, BODY, headers={"expect": "100-continue"}))
        said = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert said.startswith(b"HTTP/1.1 503 ")
