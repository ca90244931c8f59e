"""A request's way, on real sockets: what the engine gets, what the client gets back, what is settled."""

import asyncio
import json
from pathlib import Path

import pytest
from engine_fakes import Connection, answer, chunk, engine
from stack import CHAT, HELLO, head, stack

from equipoise_sidecar.facts import EngineProfile
from equipoise_simulator.standin import StandIn

RECORDINGS = Path(__file__).parents[3] / "data" / "vllm"
ENTRIES = {entry["name"]: entry for entry in json.loads((RECORDINGS / "recordings.json").read_text())}
FINGERPRINT = json.loads((RECORDINGS / "chat.json.body").read_text())["system_fingerprint"]
PROFILE = EngineProfile(system_fingerprint=FINGERPRINT, max_model_len=4096, models=("m",), priorities=True)
EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def recorded(name: str) -> bytes:
    return (RECORDINGS / f"{name}.body").read_bytes()


def streaming(events: bytes) -> bytes:
    """An event stream as the engine sends it: a chunk an event."""
    parts = [part + b"\n\n" for part in events.split(b"\n\n") if part]
    return EVENTS + b"".join(map(chunk, parts)) + b"0\r\n\r\n"


def replying(*responses: bytes):
    """An engine that answers with one response after the other, the last one for ever."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            seen.append(request)
            connection.send(responses[min(len(seen), len(responses)) - 1])

    script.seen = seen
    return script


def sent_headers(script) -> dict[bytes, bytes]:
    lines = script.seen[-1][0].split(b"\r\n")[1:-2]
    return dict(line.split(b": ", 1) for line in lines)


@pytest.mark.parametrize("name", sorted(name for name in ENTRIES if name.endswith(".json")))
async def test_a_whole_answer_comes_back_as_the_engine_sent_it_and_its_usage_is_settled(name):
    entry = ENTRIES[name]
    body = recorded(name)
    script = replying(answer(body, headers=b"content-type: application/json\r\nvary: Origin\r\n"))
    async with engine(script) as it, stack(it.url, profile=PROFILE) as way:
        got = await way.ask(entry["path"], entry["request"].encode())
        assert (got.status, got.body) == (200, body)
        assert got.headers["vary"] == "Origin"
        assert script.seen[0][1] == entry["request"].encode()
        await way.settled(finished=1)
        usage = json.loads(body)["usage"]
        share = way.dispatcher.scheduler.shares(0.0)[0]
        assert share.total.prompt == usage.get("prompt_tokens", usage.get("input_tokens"))
        assert share.total.generated == usage.get("completion_tokens", usage.get("output_tokens"))


@pytest.mark.parametrize("name", sorted(name for name in ENTRIES if name.endswith(".stream")))
async def test_a_stream_comes_back_as_if_nobody_had_asked_for_usage(name):
    entry = ENTRIES[name]
    edited = f"{name}-continuous" in ENTRIES
    script = replying(streaming(recorded(f"{name}-continuous" if edited else name)))
    async with engine(script) as it, stack(it.url, profile=PROFILE) as way:
        got = await way.ask(entry["path"], entry["request"].encode())
        sent = json.loads(script.seen[0][1])
        if edited:
            assert sent.pop("stream_options") == {"include_usage": True, "continuous_usage_stats": True}
            direct = recorded(name)
            assert b'"usage"' not in got.body
            assert got.body.count(FINGERPRINT.encode()) == direct.count(FINGERPRINT.encode())
            assert got.body.endswith(b"data: [DONE]\n\n")
        else:
            assert got.body == recorded(name)
        assert sent == json.loads(entry["request"])
        await way.settled(finished=1)
        share = way.dispatcher.scheduler.shares(0.0)[0]
        assert share.total.generated > 0
        assert share.total.prompt > 0


@pytest.mark.parametrize(
    ("options", "variant"),
    [
        ({"include_usage": True}, "stream-usage"),
        ({"include_usage": True, "continuous_usage_stats": True}, "stream-continuous"),
    ],
)
async def test_a_client_gets_the_usage_that_it_asked_for(options, variant):
    script = replying(streaming(recorded("chat.stream-continuous")))
    document = {**json.loads(ENTRIES["chat.stream"]["request"]), "stream_options": options}
    async with engine(script) as it, stack(it.url, profile=PROFILE) as way:
        got = await way.ask(document=document)
        direct = recorded(f"chat.{variant}")
        assert len(got.body) == len(direct)
        assert got.body.count(b'"usage":{') == direct.count(b'"usage":{')
        if variant == "stream-continuous":
            assert script.seen[0][1] == json.dumps(document).encode()
            assert got.body == direct


async def test_where_the_engine_sends_usage_always_nothing_is_asked_and_nothing_cut():
    script = replying(streaming(recorded("chat.stream-continuous")))
    profile = EngineProfile(system_fingerprint=FINGERPRINT, forces_usage=True)
    async with engine(script) as it, stack(it.url, profile=profile) as way:
        got = await way.ask(document=ENTRIES["chat.stream"]["request"].encode())
        assert got.body == recorded("chat.stream-continuous")
        assert script.seen[0][1] == ENTRIES["chat.stream"]["request"].encode()
        await way.settled(finished=1)


@pytest.mark.parametrize("options", ["yes", 7, {"include_usage": "perhaps"}, ["include_usage"]])
async def test_options_that_the_engine_will_refuse_reach_it_untouched(options):
    script = replying(answer(recorded("error-bad-field"), b"400 Bad Request"))
    async with engine(script) as it, stack(it.url, profile=PROFILE) as way:
        document = {**HELLO, "stream": True, "stream_options": options}
        got = await way.ask(document=document)
        assert (got.status, got.body) == (400, recorded("error-bad-field"))
        assert json.loads(script.seen[0][1]) == document
        await way.settled(finished=1)


@pytest.mark.parametrize(
    ("name", "status"),
    [("error-unknown-model", b"404 Not Found"), ("error-too-many-tokens", b"400 Bad Request")],
)
async def test_the_engines_own_refusal_passes_and_costs_nothing(name, status):
    script = replying(answer(recorded(name), status, b"content-type: application/json\r\n"))
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask()
        assert (got.status, got.body) == (int(status[:3]), recorded(name))
        await way.settled(finished=1)
        share = way.dispatcher.scheduler.shares(0.0)[0]
        assert (share.total.cost, share.counter) == (0, 0)


# -- headers


async def test_credentials_and_scheduling_headers_of_the_client_never_reach_the_engine():
    script = replying(answer(b"{}"))
    headers = {
        "Authorization": "Bearer key",
        "X-API-Key": "key",
        "Cookie": "session=1",
        "X-Vllm-Priority": "-99",
        "X-Data-Parallel-Rank": "3",
        "X-Equipoise-Tenant": "team/other",
        "X-Gateway-Tenant": "team/other",
        "X-llm-d-inference-fairness-id": "team/other",
        "TE": "trailers",
        "Connection": "keep-alive, x-hop",
        "X-Request-Id": "r-1",
        "X-Session-ID": "s-1",
        "Accept": "a, b",
    }
    trusted = {"name": "X-Gateway-Tenant", "peers": ["10.0.0.0/8"]}
    async with engine(script) as it, stack(it.url, trustedHeader=trusted, engineApiKey="engine-key") as way:
        await way.ask(f"{CHAT}?a=b%20c", headers=headers)
        sent = sent_headers(script)
        assert script.seen[0][0].startswith(b"POST /v1/chat/completions?a=b%20c HTTP/1.1\r\n")
        assert sent.pop(b"x-vllm-priority").isdigit()
        assert sent == {
            b"host": b"service",
            b"content-type": b"application/json",
            b"content-length": b"%d" % len(script.seen[0][1]),
            b"authorization": b"Bearer engine-key",
            b"x-request-id": b"r-1",
            b"x-session-id": b"s-1",
            b"accept": b"a, b",
        }


@pytest.mark.parametrize("priorities", [True, False])
async def test_an_engine_is_sent_priorities_only_where_it_is_known_to_take_them(priorities):
    script = replying(answer(b'{"usage":{"prompt_tokens":40,"completion_tokens":5}}'))
    profile = EngineProfile(priorities=priorities)
    async with engine(script) as it, stack(it.url, profile=profile) as way:
        await way.ask()
        await way.ask()
        assert sent_headers(script)[b"x-vllm-priority"] == (b"50" if priorities else b"0")


@pytest.mark.parametrize(
    ("path", "passes"),
    [("/v1/embeddings", False), ("/rerank", False), ("/v1/chat/completions/batch", False), (CHAT, True)],
)
async def test_a_priority_in_the_body_passes_only_where_the_header_beats_it(path, passes):
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        document = {"model": "m", "priority": -99, "input": "x", "messages": []}
        await way.ask(path, document)
        assert ("priority" in json.loads(script.seen[0][1])) is passes
        await way.ask(path, {"input": [1.50]})
        assert script.seen[1][1] == json.dumps({"input": [1.50]}).encode()


async def test_a_form_is_scheduled_and_passes_as_it_is():
    script = replying(answer(b'{"text":"hi","usage":{"type":"duration","seconds":1}}'))
    form = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n\x00\xff\r\n--b--\r\n'
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask("/v1/audio/transcriptions", form)
        assert (got.status, got.json()["text"]) == (200, "hi")
        assert script.seen[0][1] == form
        await way.settled(finished=1)


async def test_an_answer_says_whose_it_was_and_how_long_it_waited():
    headers = b"connection: keep-alive\r\nkeep-alive: timeout=5\r\nserver: uvicorn\r\ndate: today\r\n"
    async with engine(replying(answer(b"{}", headers=headers))) as it, stack(it.url) as way:
        got = await way.ask()
        assert got.headers == {
            "server": "uvicorn",
            "date": "today",
            "content-length": "2",
            "x-equipoise-tenant": "default",
            "x-equipoise-queue-ms": "0",
            "x-equipoise-scheduler": "VTC",
        }


# -- identity


async def test_a_header_that_claims_a_tenant_counts_only_from_a_trusted_peer():
    tenants = [{"id": "team/blue", "headerValues": ["blue"]}]
    for peers, tenant in ((["127.0.0.0/8"], "team/blue"), (["10.0.0.0/8"], "default")):
        trusted = {"name": "X-Tenant", "peers": peers}
        script = replying(answer(b"{}"))
        async with (
            engine(script) as it,
            stack(it.url, tenants=tenants, trustedHeader=trusted) as way,
        ):
            got = await way.ask(headers={"X-Tenant": "blue"})
            assert got.headers["x-equipoise-tenant"] == tenant
            assert b"x-tenant" not in sent_headers(script)


async def test_where_everyone_must_prove_themselves_probes_still_need_not():
    script = replying(answer(b"ok"))
    async with engine(script) as it, stack(it.url, defaultTenant={"mode": "Reject"}) as way:
        for path in ("/health", "/metrics", "/version"):
            assert (await way.ask(path, None)).body == b"ok"
        assert (await way.ask(CHAT, None, method="OPTIONS")).body == b"ok"
        for path, document in ((CHAT, HELLO), ("/v1/models", None), ("/tokenize", HELLO)):
            assert (await way.ask(path, document)).status == 401
        got = await way.ask("/v1/messages")
        assert got.json() == {
            "type": "error",
            "error": {"type": "authentication_error", "message": got.json()["error"]["message"]},
        }
        assert got.headers["x-should-retry"] == "false"
        assert len(script.seen) == 4


# -- bodies that are wrong


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nonsense", "JSON object"),
        (b'{"model":"\xff"}', "UTF-8"),
        ('{"model":"m"}'.encode("utf-16"), "UTF-8"),
        (b"", "JSON"),
        (b'{"a":' * 50_000, "too deep"),
    ],
)
async def test_a_body_that_is_not_json_is_refused_here(body, message):
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        client = way.client()
        got = await way.ask(document=body, client=client)
        error = got.json()["error"]
        assert (got.status, error["type"], error["code"]) == (400, "BadRequestError", 400)
        assert message in error["message"]
        assert got.headers["x-equipoise-reason"] == "bad-body"
        assert (await way.ask(client=client)).status == 200  # the connection goes on
        assert len(script.seen) == 1
        await way.settled(finished=1)


@pytest.mark.parametrize("declared", [True, False])
async def test_fifty_megabytes_are_refused_before_they_are_read(declared):
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        length = b"content-length: 50000000" if declared else b"transfer-encoding: chunked"
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n\r\n")
        if not declared:
            for _ in range(17):
                writer.write(chunk(b" " * 1_000_000))
                await writer.drain()
        response = await reader.readuntil(b"}}")
        assert response.startswith(b"HTTP/1.1 413 ")
        assert b"x-equipoise-reason: body-too-large" in response
        writer.close()
        assert script.seen == []
        await way.settled()


async def test_a_large_body_within_the_limit_arrives_byte_for_byte():
    script = replying(answer(b"{}"))
    document = json.dumps({**HELLO, "messages": [{"role": "user", "content": "é\n" * 3_000_000}]}).encode()
    async with engine(script) as it, stack(it.url, queue={"maxBodyBytes": 40_000_000}) as way:
        assert len(document) > 20_000_000
        way.dispatcher.engine.capacity.enforced = False  # a prompt of that size fits no cache
        assert (await way.ask(document=document)).status == 200
        assert script.seen[0][1] == document


async def test_a_slow_body_times_out_and_its_room_is_given_back():
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url, queue={"bodyTimeoutSeconds": 1}) as way:
        reader, writer = await way.connect()
        writer.write(head(CHAT, b"x" * 1000) + b'{"model":')
        response = await reader.read()  # to the end: the connection is closed
        assert response.startswith(b"HTTP/1.1 408 ")
        assert b"(9 of 1000 bytes did)" in response
        writer.close()
        assert script.seen == []
        await way.settled()


async def test_a_body_in_chunks_is_sent_on_with_its_length():
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        reader, writer = await way.connect()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        document = json.dumps(HELLO).encode()
        for start in range(0, len(document), 10):
            writer.write(chunk(document[start : start + 10]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert script.seen[0][1] == document
        assert sent_headers(script)[b"content-length"] == b"%d" % len(document)
        assert b"transfer-encoding" not in sent_headers(script)


async def test_an_expectant_client_is_told_to_go_on_only_if_it_may():
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url, queue={"maxBodyBytes": 2000}) as way:
        for size, first in ((1000, b"HTTP/1.1 100 "), (5000, b"HTTP/1.1 413 ")):
            reader, writer = await way.connect()
            writer.write(head(CHAT, b" " * size, headers={"Expect": "100-continue"}))
            assert (await reader.readuntil(b"\r\n")).startswith(first)
            writer.close()
        await way.settled()


# -- paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/sleep",
        "/invocations",
        "/collective_rpc",
        "/v1/load_lora_adapter",
        "/v1/chat/completions/",
        "/docs",
        "/v1/responses/../models",
        "/v1/responses/a%2F..%2Fcancel",
        "/v1//models",
        "/inference/v1/generate",
    ],
)
async def test_what_is_not_on_the_list_is_not_there(path):
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask(path)
        assert (got.status, got.headers["x-equipoise-reason"]) == (404, "unknown-path")
        assert script.seen == []


async def test_what_is_not_scheduled_passes_untouched():
    body = b"\x00 anything \xff"
    script = replying(answer(body, b"405 Method Not Allowed", b"allow: POST\r\n"))
    async with engine(script) as it, stack(it.url) as way:
        for path, method in (
            (CHAT, "GET"),
            ("/v1/models", "GET"),
            ("/v1/responses/resp_1", "GET"),
            ("/v1/responses/resp_1/cancel", "POST"),
            ("/tokenize", "POST"),
        ):
            got = await way.ask(path, b"not json" if method == "POST" else None, method=method)
            assert (got.status, got.body, got.headers["allow"]) == (405, body, "POST")
            assert script.seen[-1][1] == (b"not json" if method == "POST" else b"")
        assert way.outcomes() == {}


async def test_a_head_request_is_answered_without_a_body():
    async with StandIn(profile="fast") as it, stack(it.url) as way:
        client = way.client()
        got = await way.ask("/v1/models", None, method="HEAD", client=client)
        assert got.body == b""
        assert (await way.ask("/health", None, client=client)).status == 200


async def test_a_background_response_is_refused():
    script = replying(answer(b"{}"))
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask("/v1/responses", {"model": "m", "input": "x", "background": "true"})
        assert got.status == 400
        assert "background" in got.json()["error"]["message"]
        assert script.seen == []


# -- passing through


async def test_passing_through_edits_nothing_and_refuses_nothing():
    script = replying(streaming(recorded("chat.stream")), answer(b"no", b"503 Busy"), answer(b"big"))
    async with engine(script) as it, stack(it.url, mode="PassThrough") as way:
        request = ENTRIES["chat.stream"]["request"].encode()
        got = await way.ask(document=request)
        assert got.body == recorded("chat.stream")
        assert script.seen[0][1] == request
        assert b"x-vllm-priority" not in sent_headers(script)
        assert got.headers["x-equipoise-scheduler"] == "PassThrough"
        got = await way.ask(document=b"no json at all")
        assert (got.status, got.body) == (503, b"no")
        assert (await way.ask(document=b" " * 17_000_000)).body == b"big"
        await way.settled(finished=2, failed=1)
        assert way.dispatcher.scheduler.shares(0.0)[0].total.generated == 5


async def test_passing_through_to_nobody_answers_at_once():
    async with stack("http://127.0.0.1:1", mode="PassThrough") as way:
        got = await way.ask()
        assert (got.status, got.headers["x-equipoise-reason"]) == (503, "engine-unreachable")
        await way.settled(failed=1)


# -- many at once


async def test_two_hundred_requests_at_once_get_each_its_own_answer():
    async def script(connection: Connection) -> None:
        while request := await connection.request():
            await asyncio.sleep(0.001)
            connection.send(answer(json.dumps({"echo": json.loads(request[1])["seed"]}).encode()))

    async with engine(script) as it, stack(it.url, capacity={"maxInFlight": 7, "kvTokens": 100_000}) as way:
        client = way.client()
        asked = [way.ask(document={**HELLO, "seed": i}, client=client) for i in range(200)]
        assert [got.json()["echo"] for got in await asyncio.gather(*asked)] == list(range(200))
        assert len(it.connections) <= 8
        await way.settled(finished=200)


async def test_with_the_stand_in_a_stream_is_what_the_stand_in_alone_sends():
    async with StandIn(profile="fast", speed=50) as it:
        for document in (HELLO, {**HELLO, "n": 2}, {**HELLO, "stream_options": {"include_usage": True}}):
            request = {**document, "stream": True, "seed": 1}
            async with stack(it.url, watch_engine=True) as way, stack(it.url, mode="PassThrough") as straight:
                through = await way.ask(document=request)
                direct = await straight.ask(document=request)
                assert shape(through.body) == shape(direct.body)
                await way.settled(finished=1)


def shape(stream: bytes) -> list[str]:
    """Events without what differs from one run to the next, a choice's own in their order."""
    events = []
    for event in stream.split(b"\n\n"):
        if event.startswith(b"data: {"):
            document = json.loads(event[6:])
            document["id"] = document["created"] = None
            place = [choice["index"] for choice in document["choices"]]
            events.append((place or [99], json.dumps(document)))
        else:
            events.append(([100], event.decode()))
    return [text for _, text in sorted(events, key=lambda pair: pair[0])]
