"""How far an answer is, by what each endpoint shows of it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_scheduling.request import Usage
from equipoise_sidecar import progress
from equipoise_sidecar.progress import ChunkReader, EventReader, WholeReader
from equipoise_sidecar.usage import usage_at_end, usage_of_answer

RECORDINGS = Path(__file__).parents[3] / "data" / "vllm"
WHOLE = sorted(path.name for path in RECORDINGS.glob("*.json.body"))


def recorded(name: str) -> bytes:
    return (RECORDINGS / name).read_bytes()


def reported(body: bytes) -> tuple[int, int]:
    usage = json.loads(body)["usage"]
    return (
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
    )


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_shows_its_usage_at_its_end(name):
    body = recorded(name)
    reader = WholeReader()
    assert b"".join(reader.feed(body[i : i + 100]) for i in range(0, len(body), 100)) == body
    assert reader.usage is None
    assert reader.end() == b""
    assert (reader.usage.prompt, reader.usage.generated) == reported(body)
    assert usage_at_end(body) == reader.usage


def test_of_an_answer_too_long_to_keep_the_end_is_read(monkeypatch):
    monkeypatch.setattr(progress, "LONGEST_KEPT", 5000)
    vectors = json.dumps([[0.25] * 5000, [0.5] * 5000])
    body = b'{"data":%s,"model":"m","usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}'
    reader = WholeReader()
    body = body % vectors.encode()
    for i in range(0, len(body), 1000):
        reader.feed(body[i : i + 1000])
    assert sum(map(len, reader._kept)) < 100_000
    reader.end()
    assert reader.usage == Usage(prompt=7, generated=0)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":9,"completion_tokens":4}}', Usage(9, 4)),
        (b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8}}}', Usage(9, 0, 8)),
        (
            b'{"usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":3}}}',
            Usage(9, 4, 3),
        ),
        (
            b'{"usage":{"input_tokens":2,"output_tokens":4,"cache_read_input_tokens":5,"cache_creation_input_tokens":1}}',
            Usage(8, 4, 5),
        ),
        (b'{"usage":{"total_tokens":6}}', Usage(6, 0)),
        (b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}}', Usage(3, 0, 3)),
        (b'{"usage":{"prompt_tokens":-3,"completion_tokens":-1}}', Usage(0, 0)),
        (b'{"usage":{"type":"duration","seconds":3}}', None),
        (b'{"usage":{"prompt_tokens":"many"}}', None),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_usage_in_every_spelling_and_none_that_is_not_there(body, usage):
    assert usage_of_answer(body) == usage


@pytest.mark.parametrize("tail", [b'"usage":{"prompt_tokens":', b'"usage":', b"}}}", b'"usage":{}', b"\xff"])
def test_an_end_without_usage_has_none(tail):
    assert usage_at_end(tail) is None


@given(st.binary(max_size=80))
def test_no_answer_breaks_a_reader(body):
    for reader in (WholeReader(), ChunkReader(sequences=2, cut=True, drop_last=True), EventReader()):
        assert reader.feed(body) + reader.end() == body


def test_messages_show_their_prompt_at_once_and_a_token_an_event():
    reader = EventReader()
    stream = recorded("messages.stream.body")
    seen = []
    for event in stream.split(b"\n\n")[:-1]:
        assert reader.feed(event + b"\n\n") == event + b"\n\n"
        seen.append((reader.started, reader.prompt, reader.generated))
    assert seen[0] == (True, 23, 0)
    assert [generated for _, _, generated in seen] == [0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert reader.usage == Usage(prompt=23, generated=4)
    assert not reader.exact


def test_responses_start_with_their_first_delta_and_end_with_usage():
    reader = EventReader()
    stream = recorded("responses.stream.body")
    for event in stream.split(b"\n\n")[:-1]:
        begun = reader.started
        reader.feed(event + b"\n\n")
        if not begun and reader.started:
            assert b".delta" in event.split(b"\n")[0]
    assert reader.generated == stream.count(b".delta\ndata") > 0
    assert reader.prompt is None
    assert reader.usage == Usage(prompt=17, generated=4)


def test_text_that_reads_like_an_event_is_none():
    reader = EventReader()
    reader.feed(b'event: x\ndata: {"text":"\\n\\nevent: content_block_delta\\ndata: {}"}\n\n')
    assert reader.generated == 0


@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"x"}}\n\n',
        b'event: response.failed\ndata: {"response":{"usage":null}}\n\n',
    ],
)
def test_an_error_event_is_a_failure(event):
    reader = EventReader()
    assert reader.feed(event) == event
    assert reader.failed


def test_without_usage_a_chunk_counts_as_a_token():
    reader = ChunkReader()
    assert reader.feed(recorded("chat.stream.body")) == recorded("chat.stream.body")
    assert (reader.generated, reader.exact, reader.prompt, reader.usage) == (5, False, None, None)


def test_several_tokens_in_a_chunk_count_as_many():
    reader = ChunkReader(cut=True, drop_last=True)
    reader.feed(recorded("chat-tools.stream-continuous.body"))
    assert reader.generated == reader.usage.generated
    assert reader.generated > recorded("chat-tools.stream-continuous.body").count(b"data: {") - 2


def test_a_stream_starts_with_its_first_chunk_and_not_with_a_comment():
    reader = ChunkReader()
    reader.feed(b": keep-alive\n\n")
    assert not reader.started
    reader.feed(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
    assert (reader.started, reader.generated) == (True, 0)


SAID = json.loads(recorded("chat.json.body"))["choices"][0]["message"]["content"].encode()


@pytest.mark.parametrize(
    "name", ["chat.stream.body", "chat.stream-continuous.body", "chat.stream-usage.body"]
)
def test_a_hearer_is_told_the_text_of_a_stream_as_it_comes(name):
    heard, reader = [], ChunkReader(cut="continuous" in name, drop_last=True)
    reader.hearer = heard.append
    for event in recorded(name).split(b"\n\n")[:-1]:
        reader.feed(event + b"\n\n")
    assert b"".join(heard) == SAID
    assert len(heard) > 3


def test_a_hearer_is_told_the_text_of_a_whole_answer():
    heard, reader = [], WholeReader()
    reader.hearer = heard.append
    reader.feed(recorded("chat.json.body"))
    reader.end()
    assert heard == [SAID]


@pytest.mark.parametrize(
    ("members", "want"),
    [
        (b'"content":"a"', b"a"),
        (b'"content":"\\u00e9\\n\\ud834\\udd1e"', "é\\n𝄞".encode()),
        (b'"content":"\\ud834"', b""),
        (b'"content":""', b""),
        (b'"content":null,"tool_calls":[{"index":0}]', b""),
        (b'"content":["a"]', b""),
        (b'"role":"assistant"', b""),
        (b'"reasoning":null,"content":"a"', b"a"),
        (b'"reasoning":"","content":"a"', b"a"),
    ],
)
def test_only_text_is_heard_and_as_a_client_would_bring_it_back(members, want):
    heard, reader = [], ChunkReader()
    reader.hearer = heard.append
    event = b'data: {"choices":[{"index":0,"delta":{%b}}]}\n\n' % members
    assert reader.feed(event) == event
    assert b"".join(heard) == want


@pytest.mark.parametrize("name", [b"reasoning", b"reasoning_content"])
def test_what_follows_a_models_thoughts_is_not_heard_since_no_template_brings_them_back(name):
    heard, reader = [], ChunkReader()
    reader.hearer = heard.append
    for delta in (b'{"%b":"hm"}' % name, b'{"content":"yes"}'):
        reader.feed(b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % delta)
    assert heard == []
