"""What is passed on at once: its body is held within bounds, and a drain waits for it."""

import asyncio

import pytest
from engine_fakes import Connection, answer, answering, engine
from stack import NOTHING, head, stack


async def holding(way, size):
    """Send a body that is not scheduled, and wait until its bytes are counted; return the connection's writer."""
    _, writer = await way.connect()
    writer.write(head("/tokenize", b"x" * size))
    async with asyncio.timeout(60):
        while way.dispatcher.admission.held_bytes < size:
            await asyncio.sleep(0.005)
    return writer


@pytest.mark.parametrize("mode", ["Enforce", "PassThrough"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/health"), ("OPTIONS", "/v1/chat/completions")])
async def test_whoever_need_not_prove_anything_may_send_no_more_than_64_kilobytes(method, path, mode):
    script = answering()
    async with engine(script) as it, stack(it.url, mode=mode) as way:
        for size, status in ((65_536, 200), (65_537, 413)):
            body = b"x" * size
            assert (await way.ask(path, body, method=method)).status == status
        assert len(script.seen) == 1
        assert way.held() == NOTHING


async def test_bodies_that_are_not_scheduled_count_against_the_queues_bytes():
    async with engine(answering()) as it, stack(it.url, queue={"maxBytes": 1_048_576}) as way:
        slow = await holding(way, 1_000_000)
        got = await way.ask("/tokenize", b"x" * 100_000)
        assert (got.status, got.headers["x-equipoise-reason"]) == (429, "queue-bytes-full")
        slow.close()
        async with asyncio.timeout(60):
            while way.held() != NOTHING:
                await asyncio.sleep(0.005)
        assert (await way.ask("/tokenize", b"x" * 100_000)).status == 200


async def test_one_in_chunks_without_end_is_stopped_where_the_bytes_are():
    async with engine(answering()) as it, stack(it.url, queue={"maxBytes": 1_048_576}) as way:
        first = await holding(way, 1_000_000)
        reader, writer = await way.connect()
        writer.write(b"POST /tokenize HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"19000\r\n" + b"x" * 0x19000 + b"\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429 ")
        writer.close()
        first.close()


async def test_too_large_a_body_is_refused_as_such_however_full_the_queue():
    async with (
        engine(answering()) as it,
        stack(it.url, queue={"maxBytes": 1_048_576, "maxBodyBytes": 1024}) as way,
    ):
        writer = await holding(way, 1000)
        assert (await way.ask("/tokenize", b"x" * 2_000_000)).status == 413
        writer.close()


async def test_a_drain_waits_for_them_and_takes_no_more():
    go = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await go.wait()
        connection.send(answer(b"{}"))

    async with engine(script) as it, stack(it.url) as way:
        asked = asyncio.create_task(way.ask("/tokenize", b"{}"))
        async with asyncio.timeout(60):
            while not it.connections:
                await asyncio.sleep(0.005)
        way.dispatcher.drain()
        drained = asyncio.create_task(way.dispatcher.drained())
        got = await way.ask("/tokenize", b"{}")
        assert (got.status, got.headers["x-equipoise-reason"]) == (503, "draining")
        assert not drained.done()
        go.set()
        assert (await asked).status == 200
        await asyncio.wait_for(drained, 60)
