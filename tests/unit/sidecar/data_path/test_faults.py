"""Engines that fail and clients that leave, in every phase of a request: nobody waits for ever, nothing stays held."""

import asyncio
import gzip
import json

import pytest
from engine_fakes import Connection, answer, chunk, engine
from stack import CHAT, HELLO, NOTHING, head, stack

from equipoise_scheduling.request import Outcome
from equipoise_sidecar.facts import EngineProfile
from equipoise_simulator.standin import Faults, StandIn

STREAM = {**HELLO, "stream": True}
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n'
BUSY = answer(
    b'{"error":{"message":"The engine is currently busy"}}',
    b"503 Service Unavailable",
    b"content-type: application/json\r\n",
)


class Scripted:
    """An engine that acts on the n-th request of all."""

    def __init__(self, *acts):
        self.acts = acts
        self.asked = 0
        self.heads: list[bytes] = []
        self.left = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        while request := await connection.request():
            self.heads.append(request[0].lower())
            self.asked += 1
            act = self.acts[min(self.asked, len(self.acts)) - 1]
            if isinstance(act, bytes):
                connection.send(act)
            elif await act(self, connection) is not None:
                return


async def reset(_script: Scripted, connection: Connection) -> bool:
    connection.reset()
    return True


async def idle_too_long(_script: Scripted, connection: Connection) -> bool:
    connection.read_no_more()
    connection.send(answer(b"{}"))
    await connection.close_unread()
    return True


def cut_after(data: bytes):
    async def act(_script: Scripted, connection: Connection) -> bool:
        connection.send(data)
        await connection.writer.drain()
        connection.writer.close()
        return True

    return act


def then_wait(data: bytes):
    async def act(script: Scripted, connection: Connection) -> bool:
        connection.send(data)
        script.reached.set()
        await connection.left()
        script.left.set()
        return True

    return act


# -- the engine


async def test_an_engine_that_is_down_at_start_gets_its_requests_when_it_comes(tmp_path):
    address = tmp_path / "engine.sock"
    async with stack(f"unix:{address}", watch_engine=True) as way:
        asked = asyncio.create_task(way.ask())
        streamed = asyncio.create_task(way.ask(document=STREAM))
        async with asyncio.timeout(60):
            while way.dispatcher.scheduler.queued < 2:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        assert not asked.done()
        assert way.dispatcher.scheduler.queued == 2
        async with StandIn(profile="fast", speed=50, uds=address):
            assert (await asked).status == 200
            assert b'"system_fingerprint"' in (await streamed).body
            await way.settled(finished=2)


@pytest.mark.parametrize(("path", "shape"), [(CHAT, "openai"), ("/v1/messages", "anthropic")])
async def test_an_engine_that_never_comes_is_waited_for_only_so_long(path, shape):
    async with stack("http://127.0.0.1:1", watch_engine=True, queue={"maxWaitSeconds": 1}) as way:
        got = await way.ask(path)
        assert (got.status, got.headers["x-equipoise-reason"]) == (503, "engine-unreachable")
        assert 1 <= int(got.headers["retry-after"]) <= 120
        document = got.json()
        assert document["type"] == "error" if shape == "anthropic" else document["error"]["code"] == 503
        await way.settled(failed=1)


async def test_an_engine_that_restarts_between_two_requests_costs_nobody_anything(tmp_path):
    address = tmp_path / "engine.sock"
    async with stack(f"unix:{address}", watch_engine=True) as way:
        for _ in range(2):
            async with StandIn(profile="fast", speed=50, uds=address):
                assert (await way.ask()).status == 200
            # while it is gone, the next one waits
        await way.settled(finished=2)


async def test_busy_is_not_the_clients_business():
    script = Scripted(BUSY, BUSY, BUSY, answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask()
        assert (got.status, got.body) == (200, b"{}")
        assert script.asked == 4
        assert len(it.connections) == 1
        assert int(got.headers["x-equipoise-queue-ms"]) >= 300
        await way.settled(finished=1)


async def test_busy_for_too_long_is():
    async with engine(Scripted(BUSY)) as it, stack(it.url, queue={"maxWaitSeconds": 1}) as way:
        got = await way.ask()
        assert (got.status, got.headers["x-equipoise-reason"]) == (503, "wait-limit")
        await way.settled(expired=1)


@pytest.mark.parametrize("before", [(), (answer(b"{}"),)], ids=["a fresh connection", "a used one"])
async def test_an_engine_that_dies_of_a_request_is_not_given_it_again(before):
    script = Scripted(*before, reset)
    async with engine(script) as it, stack(it.url) as way:
        for _ in before:
            assert (await way.ask()).status == 200
        got = await way.ask()
        assert (got.status, got.headers["x-equipoise-reason"]) == (502, "engine-failed")
        assert got.json()["error"]["type"] == "BadGatewayError"
        assert script.asked == len(before) + 1
        assert way.outcomes()[Outcome.FAILED] == 1
        assert way.held() == NOTHING


async def test_a_connection_that_idled_too_long_is_replaced_unseen():
    script = Scripted(idle_too_long, answer(b"2"))
    async with engine(script) as it, stack(it.url) as way:
        assert (await way.ask()).body == b"{}"
        assert (await way.ask()).body == b"2"
        assert len(it.connections) == 2
        await way.settled(finished=2)


@pytest.mark.parametrize(
    ("path", "events"),
    [
        (CHAT, (b'data: {"error":{"message":', b'"type":"BadGatewayError"')),
        ("/v1/messages", (b'event: error\ndata: {"type":"error","error":{"type":"api_error"',)),
        ("/v1/responses", (b'event: error\ndata: {"type":"error","code":"502"',)),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_a_closed_connection(path, events):
    whole = EVENTS + chunk(b": begun\n\n") + chunk(b'data: {"half a')
    async with engine(Scripted(cut_after(whole))) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(STREAM).encode()
        writer.write(head(path, body) + body)
        got = await reader.read()  # to the end: closed, though the client would keep it
        writer.close()
        assert b": begun\n\n" in got
        assert b"half a" not in got
        assert all(event in got for event in events)
        assert not got.endswith(b"0\r\n\r\n")
        await way.settled(failed=1)


async def test_a_stream_that_breaks_off_charges_what_was_seen():
    whole = EVENTS + chunk(TOKEN % 1) + chunk(TOKEN % 2)
    async with engine(Scripted(cut_after(whole))) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(STREAM).encode()
        writer.write(head(CHAT, body) + body)
        assert (await reader.read()).count(b'"content":"a"') == 2
        writer.close()
        await way.settled(failed=1)
        total = way.dispatcher.scheduler.shares(0.0)[0].total
        assert (total.prompt, total.generated) == (9, 2)


async def test_an_answer_that_breaks_off_leaves_the_client_with_a_broken_answer():
    half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    async with engine(Scripted(cut_after(half))) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(HELLO).encode()
        writer.write(head(CHAT, body) + body)
        assert (await reader.read()).endswith(b"\r\n\r\n{")
        writer.close()
        await way.settled(failed=1)


async def test_the_engines_failure_inside_a_stream_passes_and_is_settled_as_one():
    event = b'data: {"error":{"message":"Internal server error","code":500}}\n\n'
    whole = EVENTS + chunk(TOKEN % 1) + chunk(event) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with engine(Scripted(whole)) as it, stack(it.url) as way:
        got = await way.ask(document=STREAM)
        assert got.body.endswith(event + b"data: [DONE]\n\n")
        await way.settled(failed=1)


async def test_a_500_passes_and_is_settled_as_a_failure():
    async with engine(Scripted(answer(b"oops", b"500 Internal Server Error"))) as it, stack(it.url) as way:
        got = await way.ask()
        assert (got.status, got.body) == (500, b"oops")
        await way.settled(failed=1)


async def test_an_engine_that_speaks_no_http():
    async with StandIn(faults=Faults(garbage=True)) as it, stack(it.url) as way:
        assert (await way.ask()).status == 502
        assert (await way.ask("/v1/models", None)).status == 502
        await way.settled(failed=1)


@pytest.mark.parametrize("document", [HELLO, STREAM])
async def test_garbage_inside_an_answer_passes_as_the_engine_sent_it(document):
    faults = Faults(garbage_events=True)
    async with StandIn(profile="fast", speed=50, faults=faults) as it:
        async with stack(it.url) as way:
            got = await way.ask(document=document)
            assert b"\xff\xfe" in got.body
            await way.settled(finished=1)
        faults.garbage_events = False


@pytest.mark.parametrize("document", [HELLO, STREAM])
async def test_an_answer_that_cannot_be_read_passes_and_is_charged_by_the_clock(document):
    packed = gzip.compress(TOKEN % 1 + TOKEN % 2)
    kind = b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
    script = Scripted(answer(packed, headers=kind))
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask(document=document, headers={"accept-encoding": "gzip"})
        assert got.body == packed
        assert got.headers["content-encoding"] == "gzip"
        await way.settled(finished=1)
        assert b"accept-encoding" not in script.heads[0]
        assert way.dispatcher.scheduler.shares(0.0)[0].total.prompt > 0


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_answers_that_the_end_of_the_sidecar_cuts_off_say_so(path):
    script = Scripted(then_wait(b""), then_wait(EVENTS + chunk(TOKEN % 1)))
    async with engine(script) as it, stack(it.url) as way:
        first = asyncio.create_task(way.ask(path))
        await script.reached.wait()
        reader, writer = await way.connect()
        body = json.dumps(STREAM).encode()
        writer.write(head(path, body) + body)
        await reader.readuntil(b'"content":"a"')
        way.pool.abandon()
        got = await first
        assert (got.status, got.headers["x-equipoise-reason"]) == (503, "draining")
        assert got.headers["retry-after"] == "1"
        rest = await reader.read()
        writer.close()
        assert b"the sidecar is shutting down" in rest
        assert not rest.endswith(b"0\r\n\r\n")
        await way.settled(failed=2)


async def test_an_engine_that_dies_in_the_middle_and_comes_back(tmp_path):
    address = tmp_path / "engine.sock"
    async with stack(f"unix:{address}", watch_engine=True) as way:
        faults = Faults(die_after_tokens=2)
        async with StandIn(profile="fast", speed=50, uds=address, faults=faults):
            reader, writer = await way.connect()
            body = json.dumps(STREAM).encode()
            writer.write(head(CHAT, body) + body)
            assert b'data: {"error"' in await reader.read()
            writer.close()
        waiting = asyncio.create_task(way.ask())
        await asyncio.sleep(0.1)
        async with StandIn(profile="fast", speed=50, uds=address):
            assert (await waiting).status == 200
            await way.settled(failed=1, finished=1)


# -- the client


async def test_a_client_that_leaves_while_it_sends_its_body():
    script = Scripted(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        _, writer = await way.connect()
        writer.write(head(CHAT, b"x" * 1000) + b"half of it")
        async with asyncio.timeout(60):
            while way.dispatcher.admission.reading == 0:
                await asyncio.sleep(0.005)
        writer.close()
        await way.settled()
        assert script.asked == 0


async def test_a_client_that_leaves_while_it_is_queued():
    script = Scripted(then_wait(b""), answer(b"{}"))
    async with engine(script) as it, stack(it.url, capacity={"maxInFlight": 1}) as way:
        first = asyncio.create_task(way.ask())
        await script.reached.wait()
        _, writer = await way.connect()
        body = json.dumps(HELLO).encode()
        writer.write(head(CHAT, body) + body)
        while way.dispatcher.scheduler.queued == 0:
            await asyncio.sleep(0.005)
        writer.close()
        while way.dispatcher.scheduler.queued == 1:
            await asyncio.sleep(0.005)
        assert script.asked == 1
        first.cancel()
        await asyncio.wait({first})
        await way.settled(cancelled=2)


@pytest.mark.parametrize(
    ("begin", "document"),
    [
        (b"", HELLO),
        (b"", STREAM),
        (EVENTS, STREAM),
        (EVENTS + chunk(TOKEN % 1), STREAM),
        (EVENTS + chunk(b'data: {"half'), STREAM),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", HELLO),
    ],
    ids=["no answer", "no stream yet", "head", "first token", "half an event", "half a body"],
)
async def test_a_client_that_leaves_in_flight_frees_its_slot_at_once(begin, document):
    script = Scripted(then_wait(begin))
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(document).encode()
        writer.write(head(CHAT, body) + body)
        await script.reached.wait()
        if begin.startswith(b"HTTP"):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await asyncio.wait_for(script.left.wait(), 60)
        await way.settled(cancelled=1)
        assert way.pool.idle == 0


async def test_a_client_that_leaves_while_the_engine_is_busy():
    script = Scripted(BUSY)
    async with engine(script) as it, stack(it.url) as way:
        _, writer = await way.connect()
        body = json.dumps(HELLO).encode()
        writer.write(head(CHAT, body) + body)
        while script.asked < 2:
            await asyncio.sleep(0.005)
        writer.close()
        await way.settled(cancelled=1)


async def test_leaving_late_is_not_free():
    script = Scripted(then_wait(EVENTS + chunk(TOKEN % 1) + chunk(TOKEN % 4)))
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(STREAM).encode()
        writer.write(head(CHAT, body) + body)
        await reader.readuntil(b'"content":"a"')
        await reader.readuntil(b'"content":"a"')
        writer.close()
        await way.settled(cancelled=1)
        total = way.dispatcher.scheduler.shares(0.0)[0].total
        assert (total.prompt, total.generated) == (9, 4)


async def test_a_client_that_stops_reading_is_cut_off_in_the_end(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.client.STALL_SECONDS", 0.2)

    async def flood(script: Scripted, connection: Connection) -> bool:
        connection.send(EVENTS)
        try:
            while True:
                connection.send(chunk(b": " + b"x" * 100_000 + b"\n\n"))
                await connection.writer.drain()
        except ConnectionError:
            script.left.set()
        return True

    script = Scripted(flood)
    async with engine(script) as it, stack(it.url) as way:
        _, writer = await way.connect()
        writer.transport.pause_reading()
        body = json.dumps(STREAM).encode()
        writer.write(head(CHAT, body) + body)
        await asyncio.wait_for(script.left.wait(), 60)
        await way.settled(cancelled=1)
        writer.transport.abort()


async def test_a_client_that_reads_slowly_is_not(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.client.STALL_SECONDS", 1.5)
    size, count = 100_000, 60
    whole = EVENTS + b"".join(chunk(b": " + b"x" * size + b"\n\n") for _ in range(count)) + b"0\r\n\r\n"
    async with engine(Scripted(whole)) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        body = json.dumps(STREAM).encode()
        writer.write(head(CHAT, body) + body)
        got = 0
        while got < size * count:
            got += len(await reader.read(300_000))
            await asyncio.sleep(0.15)
        writer.close()
        await way.settled(finished=1)


async def test_a_client_that_leaves_an_unscheduled_request():
    script = Scripted(then_wait(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"))
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(head("/v1/models", b"", "GET"))
        await reader.readuntil(b"half")
        writer.close()
        await asyncio.wait_for(script.left.wait(), 60)


async def test_the_client_may_ask_again_on_its_connection_after_every_outcome():
    script = Scripted(
        answer(b"no", b"404 Not Found"),
        reset,
        EVENTS + chunk(TOKEN % 1) + b"0\r\n\r\n",
        answer(b"{}"),
    )
    profile = EngineProfile(max_model_len=4096)
    async with engine(script) as it, stack(it.url, profile=profile) as way:
        reader, writer = await way.connect()
        for document, end in (
            (HELLO, b"no"),
            (b"[]", b"}}"),
            (STREAM, b"}}"),
            (STREAM, b"0\r\n\r\n"),
            (HELLO, b"{}"),
        ):
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            writer.write(head(CHAT, body) + body)
            await reader.readuntil(end)
        writer.close()
        await way.settled(finished=3, failed=1)
