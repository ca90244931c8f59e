"""Bodies: what is accepted, what is read, and which bytes change."""

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from equipoise_sidecar.body import Body, BodyError, read_bool, read_int
from equipoise_sidecar.facts import EndpointKind
from equipoise_sidecar.reading import read_facts

PYDANTIC_BOOL = TypeAdapter(bool | None)
PYDANTIC_INT = TypeAdapter(int | None)

json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
documents = st.dictionaries(st.text(max_size=6), json_values, max_size=5)


def facts(document: object, path: str = "/v1/chat/completions", kind: EndpointKind = EndpointKind.CHAT):
    return read_facts(path, kind, Body.parse(json.dumps(document).encode()))


@given(documents, st.sampled_from([None, 2]), st.booleans())
def test_a_body_reads_as_python_reads_it(document, indent, ascii_only):
    raw = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    body = Body.parse(raw)
    assert body.raw is raw
    for name, value in document.items():
        assert body.value(name) == value
        assert name in body


@given(documents.filter(lambda d: "stream_options" not in d and d))
def test_asking_for_usage_keeps_every_byte_that_was_there(document):
    raw = b" " + json.dumps(document, indent=1).encode() + b" \n"
    changed = Body.parse(raw).with_running_usage()
    inserted = b',"stream_options":{"include_usage":true,"continuous_usage_stats":true}'
    assert changed.count(inserted) == 1
    assert changed.replace(inserted, b"") == raw
    assert json.loads(changed) == {
        **document,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


@given(documents, st.sampled_from([None, {}, {"include_usage": False}, {"x": "é", "include_usage": True}]))
def test_present_options_are_replaced_and_the_other_values_keep_their_bytes(document, options):
    document = {**document, "stream_options": options}
    body = Body.parse(json.dumps(document).encode())
    changed = body.with_running_usage()
    wanted = {**(options or {}), "include_usage": True, "continuous_usage_stats": True}
    assert json.loads(changed) == {**document, "stream_options": wanted}
    kept = msgspec.json.decode(body.raw, type=dict[str, msgspec.Raw])
    now = msgspec.json.decode(changed, type=dict[str, msgspec.Raw])
    assert list(now) == list(kept)
    assert all(bytes(now[name]) == bytes(raw) for name, raw in kept.items() if name != "stream_options")


@pytest.mark.parametrize(
    ("raw", "name", "value"),
    [
        (b'\xef\xbb\xbf{"model":"m"}', "model", "m"),
        (b'{"model":"a","model":"b"}', "model", "b"),
        (b'{"seed":1,"temperature":NaN,"model":"m"}', "model", "m"),
        (b'{"top_p":-Infinity, "model" : "m" }\n', "model", "m"),
        (b'{"user":"\\ud800","model":"m"}', "user", "\ud800"),
        (b'{"user":"\\ud800"}', "model", None),
        (b'{"a":NaN,"model":"a","model":"b"}', "model", "b"),
        ('{"model":"é"}'.encode(), "model", "é"),
        (b"{}", "model", None),
        (b' { "x" : NaN } ', "model", None),
    ],
)
def test_what_python_accepts_is_accepted(raw, name, value):
    json.loads(raw)
    assert Body.parse(raw).value(name) == value


def test_a_body_with_nan_can_still_be_given_options():
    body = Body.parse(b'{"a":NaN,"stream":true,"stream_options":{"include_usage":false}}')
    assert body.with_running_usage() == (
        b'{"a":NaN,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'
    )
    plain = Body.parse(b'{"a":NaN,"stream":true} ')
    assert plain.with_running_usage() == (
        b'{"a":NaN,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}} '
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON|JSON object"),
        (b"nonsense", "JSON object"),
        (b"[1]", "JSON object"),
        (b'"text"', "JSON object"),
        (b'{"a":1', "not JSON"),
        (b'{"a":1} x', "goes on"),
        (b'{"a":1,}', "not JSON"),
        (b'{"a" 1}', "not JSON"),
        (b"{a:1}", "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'{1:"a","b":NaN}', "not JSON"),
        (b'{"a":NaN "b":1}', "not JSON"),
        (b'{"model":"\xff"}', "not UTF-8 .byte 10"),
        (b'{"\xff":1}', "not UTF-8"),
        ('{"model":"m"}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
        (b'{"b":NaN,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
    ],
)
def test_what_is_not_one_json_object_in_utf_8_is_refused(raw, message):
    with pytest.raises(BodyError, match=message):
        Body.parse(raw)


@given(st.binary(max_size=60))
def test_no_bytes_are_accepted_that_python_refuses(raw):
    try:
        Body.parse(raw)
    except BodyError:
        return
    assert isinstance(json.loads(raw), dict)


def pydantic_reads(adapter, value):
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return "refused"


@given(
    json_scalars
    | st.sampled_from(["true", "TRUE", "t", "yes", "Y", "on", "1", "0", "off", "F", "no", "n", " true"])
)
def test_flags_read_as_pydantic_reads_them(value):
    expected = pydantic_reads(PYDANTIC_BOOL, value)
    assert read_bool(value) == (None if expected == "refused" else bool(expected))


@given(
    json_scalars
    | st.sampled_from(["1", " 7 ", "1.0", "1.00", "-3", "+4", "1_000", "1e3", "", "0x10", 2.0, 2.5, True])
)
def test_numbers_read_as_pydantic_reads_them(value):
    expected = pydantic_reads(PYDANTIC_INT, value)
    if expected != "refused":
        assert read_int(value) == expected


@pytest.mark.parametrize(
    ("stream", "streams"),
    [(True, True), ("true", True), (1, True), ("On", True), (False, False), (None, False), ("nope", False)],
)
def test_stream_is_read_as_the_engine_reads_it(stream, streams):
    assert facts({"stream": stream}).stream is streams


def test_chat_counts_text_tools_and_images():
    read = facts(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "é" * 10},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "x" * 100},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}},
                        {"image_url": {"url": "B" * 5000}},
                        {"type": "input_audio", "input_audio": {"data": "C" * 5000, "format": "wav"}},
                    ],
                },
            ],
            "tools": [{"type": "function"}],
            "user": "u",
            "max_tokens": 5,
        }
    )
    assert read.images == 3
    assert read.text_bytes == len("system") + 20 + len("user") + len("text") + 100 + len(
        '[{"type": "function"}]'
    )
    assert (read.model, read.user, read.max_tokens, read.sequences) == ("m", "u", 5, 1)
    assert read.prompt_ids is None


@pytest.mark.parametrize(
    ("prompt", "prompts", "ids", "text_bytes"),
    [
        ("hello", 1, None, 5),
        (["ab", "cde"], 2, None, 5),
        ([1, 2, 3], 1, 3, 0),
        ([[1, 2], [3]], 2, 3, 0),
        ([], 1, None, 0),
        (None, 1, None, 0),
        ([[]], 1, None, 0),
    ],
)
def test_completions_count_prompts_and_token_ids(prompt, prompts, ids, text_bytes):
    read = facts({"prompt": prompt, "n": 2}, "/v1/completions", EndpointKind.COMPLETIONS)
    assert (read.prompts, read.prompt_ids, read.text_bytes) == (prompts, ids, text_bytes)
    assert read.sequences == 2 * prompts
    assert read.max_tokens == 16


@pytest.mark.parametrize(
    ("path", "kind", "document", "limit"),
    [
        ("/v1/chat/completions", EndpointKind.CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ("/v1/chat/completions", EndpointKind.CHAT, {"max_tokens": "5", "max_completion_tokens": None}, 5),
        ("/v1/chat/completions", EndpointKind.CHAT, {}, None),
        ("/v1/completions", EndpointKind.COMPLETIONS, {"max_tokens": None}, None),
        ("/v1/completions", EndpointKind.COMPLETIONS, {"max_tokens": 0}, 0),
        ("/v1/completions", EndpointKind.COMPLETIONS, {"max_tokens": -5}, 0),
        ("/v1/responses", EndpointKind.RESPONSES, {"max_output_tokens": 9, "max_tokens": 3}, 9),
        ("/v1/messages", EndpointKind.MESSAGES, {"max_tokens": 11}, 11),
        ("/v1/embeddings", EndpointKind.POOLING, {"input": "x", "max_tokens": 11}, 0),
    ],
)
def test_the_output_limit_is_the_endpoints_own(path, kind, document, limit):
    assert facts(document, path, kind).max_tokens == limit


@pytest.mark.parametrize(
    ("document", "sequences"),
    [
        ({"n": 3}, 3),
        ({"n": "2"}, 2),
        ({"n": 0}, 1),
        ({"n": -4}, 1),
        ({"n": None}, 1),
        ({"n": 2, "best_of": 5}, 5),
        ({"n": 4, "use_beam_search": True}, 4),
        ({"n": "many"}, 1),
    ],
)
def test_copies_and_beams_take_slots(document, sequences):
    assert facts(document).sequences == sequences


def test_the_other_shapes_count_their_prompts():
    assert facts({"input": ["a", "b"]}, "/v1/embeddings", EndpointKind.POOLING).prompts == 2
    rank = facts({"query": "q", "documents": ["aa", "b"]}, "/rerank", EndpointKind.POOLING)
    assert (rank.prompts, rank.text_bytes) == (2, 4)
    batch = facts({"messages": [[{"content": "a"}], [{"content": "b"}]]}, "/v1/chat/completions/batch")
    assert (batch.prompts, batch.sequences, batch.text_bytes) == (2, 2, 2)
    said = {"system": "s", "messages": [{"role": "user", "content": "hi"}], "metadata": {"user_id": "u7"}}
    message = facts(said, "/v1/messages", EndpointKind.MESSAGES)
    assert (message.text_bytes, message.user) == (7, "u7")
    response = facts(
        {"input": "abc", "instructions": "de", "metadata": {"application": "app"}},
        "/v1/responses",
        EndpointKind.RESPONSES,
    )
    assert (response.text_bytes, response.application) == (5, "app")


@given(documents, st.sampled_from(list(EndpointKind)))
def test_facts_of_any_document_are_sound(document, kind):
    read = facts(document, "/v1/x", kind)
    assert read.sequences >= read.prompts >= 1
    assert read.text_bytes >= 0
    assert read.max_tokens is None or read.max_tokens >= 0


@pytest.mark.parametrize("value", [b"{}", b"[]", b'""', b"0"])
def test_more_values_than_can_be_decoded_in_a_moment_are_refused(value):
    raw = b'{"model":"m","messages":[' + b",".join([value] * 1_000_001) + b"]}"
    began = time.process_time()
    with pytest.raises(BodyError, match="more than 1000000 values"):
        Body.parse(raw)
    assert time.process_time() - began < 0.5


def test_signs_in_text_are_no_values():
    text = 'a, "b": [{,' * 1_000_000
    raw = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert Body.parse(raw).value("messages")[0]["content"] == text


def test_as_many_token_ids_as_any_context_has_are_read():
    raw = b'{"model":"m","prompt":[' + b",".join([b"7"] * 999_000) + b"]}"
    assert read_facts("/v1/completions", EndpointKind.COMPLETIONS, Body.parse(raw)).prompt_ids == 999_000
