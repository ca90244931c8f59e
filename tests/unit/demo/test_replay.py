"""The replayer against stand-in engines and against servers that misbehave: what it sends, counts, times and gives up on."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest

from equipoise_demo.exchange import Exchange
from equipoise_demo.places import DemoError
from equipoise_demo.replay import CPU_LIMIT, Replay, Target, body_of, headers_of, replay
from equipoise_demo.sdk import Sdk, chosen
from equipoise_simulator.standin import Faults, StandIn, answer, count_tokens
from equipoise_simulator.traces import Row, Trace

MODEL = "standin"


def trace_of(*rows, seconds=2.0):
    return Trace("made", tuple(Row(*row) for row in rows), seconds)


def target_of(*engines, keys=None):
    return Target(
        [(engine.host, engine.port) for engine in engines], keys or {"a": "key-a", "b": "key-b"}, MODEL
    )


@asynccontextmanager
async def scripted(answer_bytes, *, then_close=True):
    """A server that reads a request and answers with given bytes."""
    requests = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        requests.append(head + await reader.readexactly(length))
        writer.write(answer_bytes)
        await writer.drain()
        if then_close:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target([server.sockets[0].getsockname()], {"a": "key-a"}, MODEL), requests


async def test_every_token_is_counted_once_and_times_are_the_traces():
    trace = trace_of((0.0, "a", 20, 15), (1.0, "b", 7, 1), (1.9, "a", 300, 40))
    for _ in range(5):  # on a machine that now and then stands still: its notes and times are asserted
        async with StandIn(speed=50) as engine:
            found = await replay(trace, target_of(engine), speed=1.25, timeout=60.0)
            generated = engine.stats.generation_tokens
        if not found.notes and found.late_seconds < 1.0:
            break
    assert [outcome.error for outcome in found.outcomes] == [None] * 3
    assert [sum(count for _, count in outcome.tokens) for outcome in found.outcomes] == [15, 1, 40]
    assert generated == 56
    assert [outcome.input_tokens for outcome in found.outcomes] == [20, 7, 300]
    for outcome, row in zip(found.outcomes, trace.rows, strict=True):
        assert outcome.arrival == row.arrival
        assert (
            outcome.arrival <= outcome.first_token <= outcome.tokens[-1][0] <= outcome.end < row.arrival + 4
        )
    assert (found.notes, found.late_seconds < 1.0) == ([], True)


async def test_requests_are_dealt_in_turn_with_each_tenants_key():
    end = b'data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":10,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    body = b'data: {"role"}\n\ndata: {"token"}\n\n' + end
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with scripted(reply) as (one, first), scripted(reply) as (two, second):
        target = Target([*one.endpoints, *two.endpoints], {"a": "key-a", "b": "key-b"}, MODEL)
        found = await replay(
            trace_of((0.0, "a", 9, 1), (0.1, "b", 9, 1), (0.2, "a", 9, 1)), target, speed=5, timeout=9
        )
    assert [outcome.error for outcome in found.outcomes] == [None] * 3
    assert [len(first), len(second)] == [2, 1]
    assert b"Authorization: Bearer key-b\r\n" in second[0]
    assert all(b"x-equipoise" not in request.lower() for request in (*first, *second))
    sent = json.loads(first[0].partition(b"\r\n\r\n")[2])
    assert (sent["stream"], sent["ignore_eos"], sent["max_tokens"], sent["model"]) == (True, True, 1, MODEL)


async def test_interactive_requests_name_the_application_that_was_promised_something():
    async with scripted(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n") as (server, requests):
        target = Target(server.endpoints, server.keys, MODEL, interactive={1})
        found = await replay(trace_of((0.0, "a", 9, 1), (0.5, "a", 9, 1)), target, speed=5, timeout=9)
    assert [outcome.interactive for outcome in found.outcomes] == [False, True]
    assert [b"\r\nX-Equipoise-Application: chat\r\n" in request for request in requests] == [False, True]


async def test_the_end_of_the_trace_is_told_while_answers_are_still_to_come():
    told = []
    trace = trace_of((0.0, "a", 20, 200), seconds=2.0)
    async with StandIn(speed=1) as engine:

        def at_end():
            told.append((engine.stats.generation_tokens, engine.stats.generation_tokens < 200))

        found = await replay(trace, target_of(engine), speed=1.0, timeout=60.0, at_end=at_end)
    ((generated, early),) = told
    assert early
    assert 0 < generated < 200
    assert (found.outcomes[0].error, sum(count for _, count in found.outcomes[0].tokens)) == (None, 200)


async def test_an_error_at_the_end_of_the_trace_ends_the_replay():
    def at_end():
        raise DemoError("no sidecar answers")

    async with StandIn(speed=1) as engine:
        trace = trace_of((0.0, "a", 20, 200), seconds=0.2)
        with pytest.raises(DemoError, match="no sidecar answers"):
            await replay(trace, target_of(engine), speed=1.0, timeout=60.0, at_end=at_end)


@pytest.mark.parametrize("input_tokens", [1, 6, 7, 50, 900])
def test_a_prompt_has_the_tokens_of_its_row_from_seven_on(input_tokens):
    row = Row(0.0, "a", input_tokens, 1)
    message = body_of(row, 3, target_of())["messages"][0]["content"]
    assert count_tokens(message) + 6 == max(7, input_tokens)
    assert message != body_of(row, 4, target_of())["messages"][0]["content"] or input_tokens < 9


async def test_many_tokens_in_an_event_are_settled_by_the_usage():
    events = b"".join(b"data: {%d}\n\n" % n for n in range(3))
    events += b'data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":19,"completion_tokens":10}}\n\ndata: [DONE]\n\n'
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(events) + events
    async with scripted(reply) as (target, _):
        found = await replay(trace_of((0.0, "a", 9, 10)), target, speed=1, timeout=9)
    (outcome,) = found.outcomes
    assert (outcome.error, sum(count for _, count in outcome.tokens)) == (None, 10)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_events_are_counted_however_the_stream_is_cut(size):
    events = b'data: {"role"}\n\n' + b'data: {"t"}\n\n' * 5
    events += (
        b'data: {"usage":{"prompt_tokens":1,"total_tokens":6,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
    )
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(events) + events
    exchange = Exchange(b"", lambda: 1.0)
    for start in range(0, len(whole), size):
        exchange.data_received(whole[start : start + size])
    assert (exchange.error, exchange.usage) == (None, (1, 5))
    assert (
        sum(count for _, count in exchange.tokens) == 5 + 2
    )  # usage and end mark, which the replayer leaves out


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nslow", "slow"),
        (b"\x00\x01 garbage", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: {}\n\n", "closed before the end"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\ndata: {"error":1}\n\n\n', "error"),
        (b"", "closed before the end"),
    ],
    ids=["refused", "garbage", "cut", "error event", "nothing"],
)
async def test_an_answer_that_is_none_is_a_failure_with_its_reason(reply, complaint):
    async with scripted(reply) as (target, _):
        found = await replay(trace_of((0.0, "a", 9, 1)), target, speed=1, timeout=9)
    assert complaint in found.outcomes[0].error


async def test_a_silent_server_is_given_up_on_and_a_missing_one_named():
    async with scripted(b"", then_close=False) as (target, _):
        found = await replay(trace_of((0.0, "a", 9, 1)), target, speed=10, timeout=3)
    assert found.outcomes[0].error == "no complete answer within 3 s"
    found = await replay(trace_of((0.0, "a", 9, 1)), target, speed=10, timeout=3)
    assert "no connection" in found.outcomes[0].error


async def test_an_engine_that_dies_costs_its_requests_alone():
    trace = trace_of(*((n / 10, "a", 20, 30) for n in range(10)))
    async with StandIn(speed=50) as well, StandIn(speed=50, faults=Faults(die_after_tokens=5)) as sick:
        found = await replay(trace, target_of(well, sick), speed=4, timeout=60)
    failed = [outcome.error is not None for outcome in found.outcomes]
    assert failed == [False, True] * 5
    assert all(outcome.tokens for outcome in found.outcomes)


async def test_progress_is_told_until_the_end():
    seen = []
    async with StandIn(speed=100) as engine:
        await replay(
            trace_of((0.0, "a", 20, 5), (0.5, "a", 20, 5)),
            target_of(engine),
            speed=2,
            timeout=60,
            follow=lambda state: seen.append((state.sent, state.ended, state.failed, state.total)),
        )
    assert seen[0][3] == 2
    assert seen[-1] == (2, 2, 0, 2)


def test_a_replayer_that_burns_its_core_is_not_to_be_trusted():
    assert 0 < CPU_LIMIT < 1
    assert Replay([], 0.2, 0.0).notes == []


async def test_a_busy_replayer_says_so(monkeypatch):
    """Its own CPU clock runs as fast as real time."""
    import equipoise_demo.replay as module

    monkeypatch.setattr(module.time, "process_time", module.time.perf_counter)
    async with StandIn(speed=100) as engine:
        found = await replay(trace_of((0.0, "a", 20, 5)), target_of(engine), speed=1, timeout=60)
    assert math.isclose(found.cpu_share, 1.0, rel_tol=0.1)
    assert "latencies are not to be trusted" in found.notes[0]


async def test_the_sdk_sends_some_requests_and_checks_their_texts():
    rows = [(n / 20, "ab"[n % 2], 20, 10 + n) for n in range(20)]
    trace = trace_of(*rows)
    async with StandIn(speed=50) as engine:
        target = target_of(engine)
        sdks = [
            Sdk(
                endpoints=target.endpoints,
                keys=target.keys,
                body=lambda row, index: body_of(row, index, target),
                headers=lambda index: headers_of(index, target),
                expected=expected,
                timeout=60.0,
            )
            for expected in (answer, lambda _prompt, _tokens: "something else")
        ]
        for sdk in sdks:
            picked = chosen(trace)
            found = await replay(trace, target, speed=2, timeout=60, others=dict.fromkeys(picked, sdk.send))
            await sdk.close()
    assert len(picked) == 2
    assert {trace.rows[index].client for index in picked} == {"a", "b"}
    assert (sdks[0].right, sdks[0].wrong) == (2, [])
    assert (sdks[1].right, len(sdks[1].wrong)) == (0, 2)
    for index in picked:
        outcome = found.outcomes[index]
        assert sum(count for _, count in outcome.tokens) == trace.rows[index].output_tokens
        assert outcome.input_tokens == 20
