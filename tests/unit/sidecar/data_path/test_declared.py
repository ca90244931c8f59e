"""What clients declare: headers, metadata, what their libraries send anyway, and what of it a trusted peer may say."""

import json

import pytest
from engine_fakes import Connection, answer, engine
from stack import HELLO, stack

from equipoise_sidecar.body import Body
from equipoise_sidecar.declared import DeclarationError, declare, read_headers
from equipoise_sidecar.facts import EndpointKind, Facts
from equipoise_sidecar.reading import read_facts

NONE = {"llm_d": False}


def headers(**values):
    return [
        (f"x-equipoise-{name.replace('_', '-')}".encode(), value.encode()) for name, value in values.items()
    ]


def read(headers=None, **members):
    raw = json.dumps({"messages": [], **members}).encode()
    return read_facts("/v1/chat/completions", EndpointKind.CHAT, Body.parse(raw), headers)


def test_headers_say_what_a_request_belongs_to():
    said = read_headers(
        headers(
            application="rag", user="zoë", interaction="run-7", call="2", calls="5", ttft_milliseconds="800"
        ),
        **NONE,
    )
    facts = read(said)
    assert (facts.application, facts.user, facts.interaction) == ("rag", "zoë", "run-7")
    assert (facts.call_index, facts.call_count, facts.ttft_milliseconds) == (2, 5, 800)


def test_metadata_says_the_same_for_clients_that_cannot_set_headers():
    facts = read(
        metadata={
            "equipoise.application": "rag",
            "equipoise.user": "ann",
            "equipoise.interaction": "run-7",
            "equipoise.call": "2",
            "equipoise.calls": 5,
            "equipoise.e2e_milliseconds": "90000",
        }
    )
    assert (facts.application, facts.user, facts.interaction) == ("rag", "ann", "run-7")
    assert (facts.call_index, facts.call_count, facts.e2e_milliseconds) == (2, 5, 90_000)


def test_a_header_beats_metadata_and_metadata_beats_the_clients_own_members():
    metadata = {"equipoise.user": "metadata", "application": "plain", "equipoise.application": "ours"}
    facts = read(read_headers(headers(user="header"), **NONE), user="member", metadata=metadata)
    assert (facts.user, facts.application) == ("header", "ours")
    assert read(user="member", metadata=metadata).user == "metadata"


@pytest.mark.parametrize(
    ("members", "user"),
    [
        ({"user": "u"}, "u"),
        ({"safety_identifier": "s"}, "s"),
        ({"user": "u", "safety_identifier": "s"}, "u"),
        ({"user": 7, "metadata": {"user_id": "m"}}, "m"),
        ({"user": "x" * 1000}, "x" * 256),
        ({"metadata": "no object"}, ""),
        ({}, ""),
    ],
)
def test_the_end_user_comes_from_what_client_libraries_send(members, user):
    assert read(**members).user == user


def test_who_reports_nothing_is_outside_of_any_interaction():
    facts = read()
    assert (facts.application, facts.interaction, facts.call_index, facts.call_count) == ("", "", None, None)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"call": "zero"},
            "X-Equipoise-Call: 'zero' is not a whole number from 1 to 100000: send which call",
        ),
        ({"call": "0"}, "X-Equipoise-Call: '0'"),
        ({"call": "-1"}, "X-Equipoise-Call: '-1'"),
        ({"call": "٣"}, "X-Equipoise-Call"),
        ({"calls": "1e9"}, "X-Equipoise-Calls: '1e9'"),
        ({"calls": "9" * 5000}, "X-Equipoise-Calls"),
        (
            {"ttft_milliseconds": "0.8"},
            "X-Equipoise-TTFT-Milliseconds: '0.8' .*send milliseconds, such as 800",
        ),
        ({"e2e_milliseconds": "86400001"}, "X-Equipoise-E2E-Milliseconds"),
        ({"user": ""}, "X-Equipoise-User: send 1 to 256 printable characters"),
        ({"user": "a\tb"}, "X-Equipoise-User"),
        ({"interaction": "x" * 257}, "X-Equipoise-Interaction: send 1 to 256"),
        ({"application": "x" * 129}, "X-Equipoise-Application: send 1 to 128"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_with_the_mend(said, message):
    with pytest.raises(DeclarationError, match=message):
        read_headers(headers(**said), **NONE)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(DeclarationError, match="X-Equipoise-User: is not UTF-8"):
        read_headers([(b"x-equipoise-user", b"\xff")], **NONE)


def test_one_header_with_two_values_is_refused_and_twice_the_same_is_not():
    assert read_headers([*headers(user="a"), *headers(user="a")], **NONE) == {"user": "a"}
    with pytest.raises(DeclarationError, match="X-Equipoise-User: is there twice"):
        read_headers([*headers(user="a"), *headers(user="b")], **NONE)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"equipoise.call": "x", "equipoise.interaction": "i"}, r"metadata\['equipoise.call'\]: 'x'"),
        ({"equipoise.call": True, "equipoise.interaction": "i"}, "send a string"),
        ({"equipoise.call": 10**30, "equipoise.interaction": "i"}, "not a whole number"),
        ({"equipoise.user": ["a"]}, r"metadata\['equipoise.user'\]: send a string"),
        ({"equipoise.call": "2"}, "send X-Equipoise-Interaction too"),
        ({"equipoise.interaction": "i", "equipoise.call": "3", "equipoise.calls": "2"}, "call 3 of 2"),
    ],
)
def test_metadata_of_ours_is_held_to_the_same(metadata, message):
    with pytest.raises(DeclarationError, match=message):
        read(metadata=metadata)


LLM_D = [
    (b"x-llm-d-inference-objective", b"batch"),
    (b"x-llm-d-slo-ttft-ms", b"900"),
    (b"x-slo-ttft-ms", b"100"),
    (b"x-slo-tpot-ms", b"50"),
]


def test_a_peer_that_speaks_llm_d_is_believed_before_the_client():
    said = read_headers([*headers(ttft_milliseconds="1", e2e_milliseconds="2"), *LLM_D], llm_d=True)
    facts = read(said, metadata={"equipoise.e2e_milliseconds": "3"})
    assert facts.slo_vouched
    assert (facts.ttft_milliseconds, facts.tpot_milliseconds, facts.e2e_milliseconds) == (900, 50, None)
    assert facts.application == "batch"
    named = read_headers([*LLM_D, *headers(application="mine")], llm_d=True)
    assert named["application"] == "mine"


def test_from_anybody_else_llm_ds_headers_mean_nothing():
    assert read_headers(LLM_D, llm_d=False) == {}


def test_a_form_has_headers_alone():
    facts = Facts(path="/v1/audio/transcriptions", kind=EndpointKind.AUDIO)
    declare(facts, {"user": "u"}, None)
    assert facts.user == "u"


# -- on the wire


def echoing():
    seen: list[bytes] = []

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            seen.append(request[0])
            connection.send(answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'))

    script.seen = seen
    return script


async def test_no_header_about_fairness_reaches_the_engine():
    script = echoing()
    said = {
        "X-Equipoise-User": "u",
        "X-Equipoise-TTFT-Milliseconds": "5",
        "x-llm-d-inference-objective": "o",
        "x-gateway-inference-fairness-id": "f",
        "x-slo-ttft-ms": "7",
        "x-kept": "yes",
    }
    async with engine(script) as it, stack(it.url) as way:
        assert (await way.ask(headers=said)).status == 200
        assert b"x-kept: yes" in script.seen[0]
        for name in said.keys() - {"x-kept"}:
            assert name.lower().encode() not in script.seen[0].lower()


async def test_what_cannot_be_is_answered_with_400_counted_and_never_sent():
    script = echoing()
    async with engine(script) as it, stack(it.url) as way:
        got = await way.ask(headers={"X-Equipoise-Call": "first"})
        assert (got.status, got.headers["x-equipoise-reason"]) == (400, "bad-declaration")
        assert got.json()["error"]["message"].startswith("X-Equipoise-Call: 'first'")
        got = await way.ask(document={**HELLO, "metadata": {"equipoise.calls": "2"}})
        assert got.status == 400
        assert way.dispatcher.accounting["default"].rejected == {"bad-declaration": 2}
        assert script.seen == []


async def test_who_passes_through_may_say_anything():
    script = echoing()
    async with engine(script) as it, stack(it.url, mode="PassThrough") as way:
        assert (await way.ask(headers={"X-Equipoise-Call": "first"})).status == 200


@pytest.mark.parametrize("name", ["n", "best_of"])
async def test_more_answers_than_any_engine_gives_are_refused_by_name(name):
    script = echoing()
    async with engine(script) as it, stack(it.url) as way:
        for many in (10**30, 16_385, "99999999999"):
            got = await way.ask(document={**HELLO, name: many})
            assert got.status == 400
            assert f"{name}: at most 16384" in got.json()["error"]["message"]
        assert script.seen == []
        assert (await way.ask(document={**HELLO, name: 16_384})).status == 200


async def test_every_refusal_is_counted():
    async with (
        engine(echoing()) as it,
        stack(it.url, queue={"maxBodyBytes": 1024, "bodyTimeoutSeconds": 1}) as way,
    ):
        large = json.dumps({**HELLO, "padding": "x" * 2000}).encode()
        assert (await way.ask("/sleep", document=None)).status == 404
        assert (await way.ask("/tokenize", large)).status == 413
        assert (await way.ask(document=large)).status == 413
        assert (await way.ask(document=b"nonsense")).status == 400
        slow, writer = await way.connect()
        writer.write(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        assert b" 408 " in await slow.readline()
        writer.close()
        assert way.dispatcher.accounting["default"].rejected == {
            "unknown-path": 1,
            "body-too-large": 2,
            "bad-body": 1,
            "body-timeout": 1,
        }
        assert way.listener.refusals == {}
