"""Connections to the engine: framing, keep-alive, retries, back-pressure, and engines that misbehave."""

import asyncio

import pytest
from engine_fakes import Connection, answer, chunk, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_sidecar.engine.errors import EngineGarbageError, EngineLostError, EngineUnreachableError
from equipoise_sidecar.engine.http1 import HIGH_WATER, EngineConnection
from equipoise_sidecar.engine.pool import EngineAddress, EnginePool

REQUEST = b"GET /x HTTP/1.1\r\nhost: e\r\n\r\n"


def pool_to(it, **options) -> EnginePool:
    return EnginePool(EngineAddress.parse(it.url), **options)


async def whole(connection: EngineConnection) -> bytes:
    return b"".join([piece async for piece in pieces(connection)])


async def pieces(connection: EngineConnection):
    while data := await connection.read():
        yield data


async def get(pool: EnginePool) -> bytes:
    connection = await pool.exchange(REQUEST)
    try:
        return await whole(connection)
    finally:
        pool.release(connection)


def always(response: bytes):
    async def script(connection: Connection) -> None:
        while await connection.request():
            connection.send(response)

    return script


@pytest.mark.parametrize(
    "response",
    [
        answer(b"hello"),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(b"hel")
        + chunk(b"lo")
        + b"0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"hello"),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-length: 0\r\n\r\n" + answer(b"hello"),
    ],
)
async def test_a_body_comes_whole_and_its_connection_is_used_again(response):
    async with engine(always(response)) as it:
        pool = pool_to(it)
        for _ in range(3):
            assert await get(pool) == b"hello"
        assert len(it.connections) == 1
        assert pool.idle == 1
        pool.close()


async def test_over_a_unix_socket(tmp_path):
    async with engine(always(answer(b"hello")), uds=tmp_path / "engine.sock") as it:
        pool = pool_to(it)
        assert await get(pool) == b"hello"
        pool.close()


async def test_a_body_that_ends_with_its_connection():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with engine(script) as it:
        pool = pool_to(it)
        assert await get(pool) == b"all of it"
        assert pool.idle == 0


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body(status):
    async with engine(always(b"HTTP/1.1 " + status + b"\r\n\r\n")) as it:
        pool = pool_to(it)
        assert await get(pool) == b""
        assert await get(pool) == b""
        assert len(it.connections) == 1
        pool.close()


async def test_a_head_request_takes_no_body_whatever_the_headers_say():
    async with engine(always(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) as it:
        pool = pool_to(it)
        connection = await pool.exchange(REQUEST, no_body=True)
        assert (connection.header(b"content-length"), await whole(connection)) == (b"5", b"")
        pool.release(connection)


async def test_headers_keep_their_order_and_repetitions():
    headers = b"X-One: 1\r\nset-cookie: a\r\nSet-Cookie: b\r\n"
    async with engine(always(answer(b"", b"429 Too Many", headers))) as it:
        pool = pool_to(it)
        connection = await pool.exchange(REQUEST)
        assert connection.status == 429
        assert connection.headers[1:] == [(b"x-one", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
        pool.release(connection)
        pool.close()


async def test_connection_close_is_obeyed():
    async with engine(always(answer(b"x", headers=b"connection: close\r\n"))) as it:
        pool = pool_to(it)
        await get(pool)
        await get(pool)
        assert len(it.connections) == 2


@pytest.mark.looptime
async def test_an_idle_connection_is_closed_before_the_engine_does():
    transport = FakeTransport()
    pool = EnginePool(EngineAddress.parse("unix:/nowhere"), idle_seconds=4.0)
    connection = used(transport)
    pool.release(connection)
    await asyncio.sleep(3.9)
    assert (pool.idle, transport.closed) == (1, False)
    await asyncio.sleep(0.2)
    assert (pool.idle, transport.closed) == (0, True)


@pytest.mark.looptime
async def test_connections_expire_one_by_one():
    pool = EnginePool(EngineAddress.parse("unix:/nowhere"), idle_seconds=4.0)
    pool.release(used(FakeTransport()))
    await asyncio.sleep(3)
    pool.release(used(FakeTransport()))
    await asyncio.sleep(2)
    assert pool.idle == 1
    await asyncio.sleep(2.1)
    assert pool.idle == 0


async def test_a_reset_on_a_fresh_connection_is_not_tried_again():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.reset()

    async with engine(script) as it:
        with pytest.raises(EngineLostError) as caught:
            await get(pool_to(it))
        assert not caught.value.unread
        assert len(it.connections) == 1


async def test_nothing_is_tried_again_once_a_byte_came():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(answer(b"1"))
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncon")
        await connection.writer.drain()
        connection.writer.close()

    async with engine(script) as it:
        pool = pool_to(it)
        assert await get(pool) == b"1"
        with pytest.raises(EngineLostError) as caught:
            await get(pool)
        assert not caught.value.unread
        assert len(it.connections) == 1


async def test_a_connection_that_the_engine_closed_meanwhile_is_not_used():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(answer(b"%d" % connection.number))

    async with engine(script) as it:
        pool = pool_to(it)
        assert await get(pool) == b"1"
        await it.connections[0].writer.wait_closed()
        assert await get(pool) == b"2"


@pytest.mark.parametrize("address", ["unix:/no/such/socket", "http://127.0.0.1:1"])
async def test_nobody_at_the_address(address):
    with pytest.raises(EngineUnreachableError, match=r"127\.0\.0\.1:1|/no/such/socket"):
        await get(EnginePool(EngineAddress.parse(address)))


async def test_a_body_cut_short():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    async with engine(script) as it:
        connection = await (pool := pool_to(it)).exchange(REQUEST)
        assert await connection.read() == b"half"
        with pytest.raises(EngineLostError):
            await connection.read()
        pool.release(connection)
        assert pool.idle == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe this is no HTTP \r\n\r\n{]",
        b"HTTP/1.1 20 Odd\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \x01\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http(garbage):
    async with engine(always(garbage)) as it:
        pool = pool_to(it)
        with pytest.raises(EngineGarbageError):
            await get(pool)
        assert pool.idle == 0


async def test_a_broken_chunk_ends_the_body_with_an_error():
    response = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"good") + b"zz\r\n"
    async with engine(always(response)) as it:
        connection = await (pool := pool_to(it)).exchange(REQUEST)
        assert await connection.read() == b"good"
        with pytest.raises(EngineGarbageError):
            await connection.read()
        pool.release(connection)


async def test_a_second_answer_spoils_the_connection_and_not_the_first():
    async with engine(always(answer(b"first") + answer(b"second"))) as it:
        pool = pool_to(it)
        assert await get(pool) == b"first"
        assert pool.idle == 0


async def test_an_answer_left_unread_closes_its_connection():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await connection.left()
        gone.set()

    gone = asyncio.Event()
    async with engine(script) as it:
        pool = pool_to(it)
        connection = await pool.exchange(REQUEST)
        pool.release(connection)
        assert pool.idle == 0
        await asyncio.wait_for(gone.wait(), 60)


async def test_a_cancelled_exchange_is_seen_by_the_engine():
    async def script(connection: Connection) -> None:
        await connection.request()
        asked.set()
        await connection.left()
        gone.set()

    asked, gone = asyncio.Event(), asyncio.Event()
    async with engine(script) as it:
        task = asyncio.create_task(get(pool_to(it)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 60)


async def test_a_large_request_body_arrives_whole():
    async def script(connection: Connection) -> None:
        _, body = await connection.request()
        connection.send(answer(b"%d" % len(body)))

    async with engine(script) as it:
        body = b"x" * 8_000_000
        head = b"POST /x HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        pool = pool_to(it)
        connection = await pool.exchange(head, body)
        assert await whole(connection) == b"8000000"
        pool.release(connection)
        pool.close()


async def test_the_engine_is_read_no_faster_than_the_client_reads():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
        for _ in range(50):
            connection.send(b"x" * 1_000_000)
            sent.append(1)
            await connection.writer.drain()

    sent: list[int] = []
    async with engine(script) as it:
        pool = pool_to(it)
        connection = await pool.exchange(REQUEST)
        before = -1
        while before != len(sent):  # until the engine makes no more headway
            before = len(sent)
            await asyncio.sleep(0.05)
        assert len(sent) < 40
        assert connection._buffered < HIGH_WATER + 1_000_000
        assert len(await whole(connection)) == 50_000_000
        pool.release(connection)
        assert pool.idle == 1
        pool.close()


async def test_an_engine_that_closed_with_bytes_unwritten_can_be_shut_down():
    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 50_000_000)

    async with engine(script) as it:
        pool = pool_to(it)
        connection = await pool.exchange(REQUEST)
        assert len(await whole(connection)) == 50_000_000
        await asyncio.gather(*(served.left() for served in it.connections))
        pool.close()


def parsed(data: list[bytes]) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
    connection = EngineConnection()
    connection.connection_made(FakeTransport())
    connection.busy = True
    for piece in data:
        connection.data_received(piece)
    return connection.status, connection.headers, b"".join(connection._buffer), connection.complete


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5), st.data())
@settings(max_examples=50)
async def test_however_an_answer_is_cut_into_segments_it_reads_the_same(chunks, data):
    stream = b"HTTP/1.1 200 OK\r\nX-A: b\r\ntransfer-encoding: chunked\r\n\r\n"
    stream += b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=10, unique=True)))
    segments = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parsed(segments) == (
        200,
        [(b"x-a", b"b"), (b"transfer-encoding", b"chunked")],
        b"".join(chunks),
        True,
    )


class FakeTransport(asyncio.Transport):
    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...


def used(transport: FakeTransport) -> EngineConnection:
    connection = EngineConnection()
    connection.connection_made(transport)
    connection.busy = True
    connection.data_received(answer(b""))
    return connection


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("unix:/run/engine.sock", "", 0, "/run/engine.sock"),
        ("http://127.0.0.1:8001", "127.0.0.1", 8001, None),
        ("http://[::1]:8001/", "::1", 8001, None),
        ("http://engine", "engine", 80, None),
    ],
)
def test_addresses(text, host, port, path):
    address = EngineAddress.parse(text)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert EngineAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "engine:8000",
        "https://x",
        "unix:engine.sock",
        "http://",
        "http://x:99999",
        "http://x/v1",
        "http://u@x",
    ],
)
def test_an_address_that_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match="engine address"):
        EngineAddress.parse(text)
