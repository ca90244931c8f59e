"""Heads have a limit: whoever sends endless headers gets 431 before anybody holds them."""

import asyncio
import json

import pytest
from engine_fakes import answering, engine
from stack import CHAT, HELLO, stack

from equipoise_sidecar.listener import MOST_HEAD_BYTES

BODY = json.dumps(HELLO).encode()
START = f"POST {CHAT} HTTP/1.1\r\nhost: service\r\ncontent-length: {len(BODY)}\r\n".encode()


async def exchange(way, *pieces):
    """Send pieces, the last of which is one too many; return the answer."""
    reader, writer = await way.connect()
    try:
        async with asyncio.timeout(60):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)  # so that it is a read of its own
            return await reader.read(4096)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [START, b"x-junk: ", *[b"j" * 16_384] * 4],
        [START, b"".join(b"x-junk-%d: 1\r\n" % at for at in range(1000, 5100))],
        [START + b"x-junk: " + b"j" * MOST_HEAD_BYTES + b"\r\n\r\n" + BODY],
        [b"GET /", *[b"a" * 16_384] * 4],
    ],
    ids=["one long header", "many headers", "all at once", "a long path"],
)
async def test_a_head_without_end_is_answered_431_and_closed(pieces):
    script = answering()
    async with engine(script) as it, stack(it.url) as way:
        got = await exchange(way, *pieces)
        assert got.startswith(b"HTTP/1.1 431 ")
        assert not script.seen
        assert way.held() == (0, 0, 0, 0, 0, 0)


async def test_trailers_without_end_are_cut_off():
    chunked = START.replace(f"content-length: {len(BODY)}".encode(), b"transfer-encoding: chunked")
    body = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    async with engine(answering()) as it, stack(it.url) as way:
        got = await exchange(way, chunked + b"\r\n" + body, *[b"x-junk: " + b"j" * 30_000 + b"\r\n"] * 3)
        assert got.startswith(b"HTTP/1.1 431 ")
        assert way.held() == (0, 0, 0, 0, 0, 0)


async def test_a_long_head_within_the_limit_and_a_second_one_on_the_connection_are_served():
    script = answering()
    async with engine(script) as it, stack(it.url) as way:
        client = way.client()
        for _ in range(2):
            got = await way.ask(headers={"x-long": "j" * 60_000}, client=client)
            assert got.status == 200
        assert len(script.seen) == 2
