"""What the stand-in engine does: texts, lengths, leniency, queue, priorities, leaving clients, faults."""

import asyncio
import json
import stat
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest

from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.standin import Faults, Settings, StandIn, answer, count_tokens

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello there"}]}


@asynccontextmanager
async def serving(**options):
    """A stand-in and a client of it."""
    async with StandIn(**{"speed": 100, **options}) as engine:
        connector = aiohttp.UnixConnector(str(engine.uds)) if engine.uds else None
        async with aiohttp.ClientSession(engine.url, connector=connector) as session:
            yield engine, session


async def until(condition):
    """Wait until something is true, at most a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def ask(session, path, body, **headers):
    """Post a body (JSON or raw bytes); return status and decoded answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(path, data=data, headers=headers) as reply:
        return reply.status, await reply.json()


async def stream(session, path, body, **headers):
    """Post a body with stream; return the decoded chunks."""
    async with session.post(path, json={**body, "stream": True}, headers=headers) as reply:
        text = (await reply.read()).decode()
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    assert blocks.pop() == "[DONE]"
    return [json.loads(block) for block in blocks]


async def test_the_text_follows_from_the_prompt_streamed_or_not():
    body = {"prompt": "once upon", "max_tokens": 7, "ignore_eos": True}
    async with serving() as (_, session):
        _, whole = await ask(session, COMPLETIONS, body)
        chunks = await stream(session, COMPLETIONS, body)
        _, two = await ask(session, COMPLETIONS, {**body, "n": 2, "seed": 5})
    assert whole["choices"][0]["text"] == answer("once upon", 7)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer("once upon", 7)
    assert [choice["text"] for choice in two["choices"]] == [
        answer("once upon", 7, n, seed=5) for n in (0, 1)
    ]


async def test_usage_tokenizer_and_text_agree():
    body = {**HELLO, "max_tokens": 9, "ignore_eos": True}
    async with serving() as (_, session):
        _, whole = await ask(session, CHAT, body)
        _, chat = await ask(session, "/tokenize", HELLO)
        text = whole["choices"][0]["message"]["content"]
        _, generated = await ask(session, "/tokenize", {"prompt": text})
    assert chat["count"] == len(chat["tokens"]) == whole["usage"]["prompt_tokens"] == 4 + 6
    assert generated["count"] == count_tokens(text) == whole["usage"]["completion_tokens"] == 9


async def test_an_answer_ends_at_max_tokens_or_by_itself():
    async with serving() as (_, session):
        _, cut = await ask(session, CHAT, {**HELLO, "max_tokens": 3})
        _, natural = await ask(session, CHAT, HELLO)
        _, longer = await ask(session, CHAT, {**HELLO, "min_tokens": 900})
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)
    assert natural["choices"][0]["finish_reason"] == "stop"
    generated = natural["usage"]["completion_tokens"]
    assert natural["choices"][0]["message"]["content"] == answer("hello there", generated - 1)
    assert longer["usage"]["completion_tokens"] == 901


async def test_a_stop_string_ends_the_text_before_it_even_across_tokens():
    text = answer("hello there", 20)
    stop = text[
        text.index(" ", 30) - 2 : text.index(" ", 30) + 3
    ]  # the end of a word and the beginning of the next
    body = {**HELLO, "max_tokens": 20, "ignore_eos": True, "stop": [stop, "never"]}
    async with serving() as (_, session):
        _, whole = await ask(session, CHAT, body)
        chunks = await stream(session, CHAT, body)
    wanted = text[: text.index(stop)]
    assert whole["choices"][0]["message"]["content"] == wanted
    assert (whole["choices"][0]["finish_reason"], whole["choices"][0]["stop_reason"]) == ("stop", stop)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == wanted
    assert chunks[-1]["choices"][0]["stop_reason"] == stop


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a", "max_tokens": 2, "stream": "true"}',
        b'{"prompt": "a", "max_tokens": 2, "stream": 1}',
        b'{"prompt": "a", "max_tokens": 2, "stream": false, "stream": true}',
        b'{"prompt": "a", "max_tokens": 2, "stream": true, "temperature": NaN}',
        b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 2, "stream": true}',
        '{"prompt": "a", "max_tokens": 2, "stream": true}'.encode("utf-16"),
    ],
    ids=["true as text", "1", "the last of two keys", "NaN", "byte order mark", "UTF-16"],
)
async def test_bodies_that_vllm_accepts_are_accepted(raw):
    async with serving() as (_, session), session.post(COMPLETIONS, data=raw) as reply:
        assert (reply.status, reply.content_type) == (200, "text/event-stream")
        assert (await reply.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "raw", "status", "param"),
    [
        (CHAT, b"{", 400, "body.1"),
        (CHAT, b"[]", 400, "body"),
        (CHAT, b"{}", 400, "body.messages"),
        (CHAT, b'{"messages": [{"content": "x"}]}', 400, "body.messages.role"),
        (COMPLETIONS, b'{"prompt": ""}', 200, None),
        (COMPLETIONS, b'{"prompt": []}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 4096}', 400, "input_tokens"),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 5000}', 400, "max_tokens"),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": "many"}', 400, "body.max_tokens"),
        (COMPLETIONS, b'{"prompt": "a", "stream": "perhaps"}', 400, "body.stream"),
        (COMPLETIONS, b'{"prompt": "a", "stop": ""}', 400, "stop"),
        (COMPLETIONS, b'{"prompt": "a", "n": 0}', 400, "n"),
        (COMPLETIONS, b'{"prompt": "a", "n": 100000}', 400, "n"),
        (COMPLETIONS, b'{"prompt": "a", "priority": 3}', 400, "priority"),
        (COMPLETIONS, b'{"prompt": "a", "stream_options": {"include_usage": true}}', 400, "stream_options"),
        (COMPLETIONS, b'{"prompt": "a", "model": "other"}', 404, "model"),
        ("/v1/messages", b'{"messages": [{"role": "user", "content": "x"}]}', 400, "body.max_tokens"),
        ("/v1/embeddings", b'{"input": 3}', 400, "prompt"),
        ("/tokenize", b"{}", 400, "body.prompt"),
    ],
)
async def test_a_bad_request_is_refused_and_names_its_field(path, raw, status, param):
    async with serving() as (engine, session):
        got, body = await ask(session, path, raw)
        assert engine.model.idle
    assert got == status
    assert body.get("error", {}).get("param") == param


async def test_a_full_queue_answers_503_without_retry_after():
    profile = replace(PROFILES["fast"], max_num_seqs=1)
    async with serving(profile=profile, max_num_queued_reqs=1, speed=1) as (engine, session):
        body = {**HELLO, "max_tokens": 400, "ignore_eos": True}
        requests = [asyncio.create_task(stream(session, CHAT, body))]
        await until(lambda: engine.model.running)
        requests.append(asyncio.create_task(stream(session, CHAT, body)))
        await until(lambda: engine.model.waiting)
        async with session.post(CHAT, json=HELLO) as reply:
            assert reply.status == 503
            assert "retry-after" not in reply.headers
            assert (await reply.json())["error"]["code"] == 503
        async with session.get("/metrics") as reply:
            assert (
                'admission_rejections_total{model_name="standin",reason="max_num_queued_reqs"} 1.0'
                in await reply.text()
            )
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def test_the_priority_header_beats_the_body_and_orders_the_queue():
    profile = replace(PROFILES["fast"], max_num_seqs=1)
    ended = []

    async def one(session, name, header, body_priority=0):
        await ask(
            session,
            CHAT,
            {**HELLO, "max_tokens": 5, "priority": body_priority},
            **{"X-Vllm-Priority": header},
        )
        ended.append(name)

    async with serving(profile=profile, priority_scheduling=True, speed=5) as (engine, session):
        running = asyncio.create_task(ask(session, CHAT, {**HELLO, "max_tokens": 60, "ignore_eos": True}))
        await until(lambda: engine.model.running)
        waiting = [
            asyncio.create_task(one(session, "late", "7", body_priority=-100)),
            asyncio.create_task(one(session, "soon", str(-(2**63)))),
            asyncio.create_task(one(session, "then", "0")),
        ]
        await asyncio.gather(running, *waiting)
        status, _ = await ask(session, CHAT, HELLO, **{"X-Vllm-Priority": "high"})
    assert ended == ["soon", "then", "late"]
    assert status == 400


async def test_the_request_id_is_the_stem_of_the_answers_id():
    async with serving() as (_, session):
        _, chat = await ask(session, CHAT, {**HELLO, "max_tokens": 1}, **{"X-Request-Id": "abc"})
        _, completion = await ask(session, COMPLETIONS, {"prompt": "a"}, **{"X-Request-Id": "abc"})
    assert (chat["id"], completion["id"]) == ("chatcmpl-abc", "cmpl-abc")


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_frees_its_slot(streams):
    async with serving(speed=2) as (engine, session):
        request = asyncio.create_task(
            stream(session, CHAT, {**HELLO, "max_tokens": 3_000, "ignore_eos": True, "stream": streams})
            if streams
            else ask(session, CHAT, {**HELLO, "max_tokens": 3_000, "ignore_eos": True})
        )
        await until(lambda: engine.model.running)
        request.cancel()
        await until(lambda: engine.model.idle)
        assert engine.model.kv_usage == 0


async def test_an_interval_puts_several_tokens_in_a_chunk_after_the_first():
    body = {"prompt": "a", "max_tokens": 8, "ignore_eos": True, "stream_options": {"include_usage": True}}
    body["stream_options"]["continuous_usage_stats"] = True
    async with serving(settings=Settings(stream_interval=3)) as (_, session):
        *chunks, last = await stream(session, COMPLETIONS, body)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 4, 7, 8]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer("a", 8)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)


async def test_an_engine_may_send_usage_unasked_and_report_cached_tokens():
    settings = Settings(force_include_usage=True, prompt_tokens_details=True)
    async with serving(settings=settings) as (_, session):
        *_, last = await stream(session, COMPLETIONS, {"prompt": "a b", "max_tokens": 2})
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_an_api_key_guards_v1_alone():
    async with serving(settings=Settings(api_key="secret")) as (_, session):
        assert (await ask(session, CHAT, HELLO))[0] == 401
        assert (await ask(session, CHAT, {**HELLO, "max_tokens": 1}, Authorization="Bearer secret"))[0] == 200
        assert (await ask(session, "/tokenize", HELLO))[0] == 200


async def test_a_unix_socket_has_vllms_mode_and_goes_with_the_engine(tmp_path):
    path = tmp_path / "vllm.sock"
    async with serving(uds=path) as (_, session):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert (await ask(session, CHAT, {**HELLO, "max_tokens": 1}))[0] == 200
    assert not path.exists()


async def test_a_taken_port_is_an_error_that_names_it():
    async with StandIn() as first:
        with pytest.raises(OSError, match=f"Address already in use: 127.0.0.1:{first.port}"):
            await StandIn(port=first.port).start()


async def test_embeddings_prefill_the_prompt_alone():
    async with serving() as (engine, session):
        status, body = await ask(session, "/v1/embeddings", {"input": ["a b c", "d"]})
        prompt_tokens = engine.stats.prompt_tokens
    assert (status, len(body["data"]), body["usage"]["prompt_tokens"]) == (200, 2, 4)
    assert prompt_tokens == 4


async def test_time_passes_as_the_model_says():
    profile = replace(PROFILES["fast"], a0=0.01, a1=0.0, a2=0.0, a3=0.0)
    loop = asyncio.get_running_loop()
    async with serving(profile=profile, speed=1) as (engine, session):
        began = loop.time()
        await ask(session, COMPLETIONS, {"prompt": "a", "max_tokens": 40, "ignore_eos": True})
        took = loop.time() - began
    assert took >= 0.4
    assert engine.stats.busy_seconds == pytest.approx(0.4), "no more either, where the machine is not late"


async def test_a_paused_engine_takes_requests_and_goes_on_with_them():
    body = {"prompt": "once upon", "max_tokens": 500, "ignore_eos": True}
    async with serving(speed=10) as (engine, session):
        asked = asyncio.create_task(ask(session, COMPLETIONS, body))
        await until(lambda: engine.stats.generation_tokens)
        engine.loop.pause()
        late = asyncio.create_task(ask(session, COMPLETIONS, {**body, "max_tokens": 1}))
        await until(lambda: engine.model.waiting)
        await asyncio.sleep(0.1)  # the step that was on its way
        made = engine.stats.generation_tokens
        await asyncio.sleep(0.1)
        assert engine.stats.generation_tokens == made < 500
        engine.loop.resume()
        for answered, tokens in ((asked, 500), (late, 1)):
            status, whole = await answered
            assert (status, whole["usage"]["completion_tokens"]) == (200, tokens)


async def test_an_engine_that_dies_cuts_the_stream_and_frees_its_slots():
    async with serving(faults=Faults(die_after_tokens=5)) as (engine, session):
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream(session, CHAT, {**HELLO, "max_tokens": 500, "ignore_eos": True})
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(session, CHAT, {**HELLO, "max_tokens": 6, "ignore_eos": True})
        assert engine.model.idle


async def test_faults_of_the_connection_and_of_the_answer():
    async with serving() as (engine, session):
        engine.faults.busy = True
        assert (await ask(session, CHAT, HELLO))[0] == 503
        engine.faults.busy = False
        engine.faults.garbage = True
        with pytest.raises(aiohttp.ClientResponseError, match="Bad status line"):
            await ask(session, CHAT, HELLO)
        engine.faults.garbage = False
        engine.faults.garbage_events = True
        async with session.post(CHAT, json={**HELLO, "stream": True, "max_tokens": 4}) as reply:
            assert b"\xff" in await reply.read()
        engine.faults.garbage_events = False
        engine.faults.close_connections = True
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(session, CHAT, HELLO)
        engine.faults.close_connections = False
        engine.faults.accept_delay_seconds = 0.2
        began = asyncio.get_running_loop().time()
        assert (await ask(session, CHAT, {**HELLO, "max_tokens": 1}))[0] == 200
        assert asyncio.get_running_loop().time() - began >= 0.2
