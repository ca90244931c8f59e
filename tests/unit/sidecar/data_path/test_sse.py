"""Event splitting and the usage surgery, on what a real vLLM sent."""

import json
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_sidecar.progress import ChunkReader
from equipoise_sidecar.sse import Splitter, append_fingerprint, cut_usage, fingerprint_member, read_chunk

RECORDINGS = Path(__file__).parents[3] / "data" / "vllm"
ENTRIES = {entry["name"]: entry for entry in json.loads((RECORDINGS / "recordings.json").read_text())}
CONTINUOUS = sorted(name for name in ENTRIES if name.endswith(".stream-continuous"))
FINGERPRINT = json.loads((RECORDINGS / "chat.json.body").read_text())["system_fingerprint"]


def body(name: str) -> bytes:
    return (RECORDINGS / f"{name}.body").read_bytes()


def events(stream: bytes) -> list[bytes]:
    return [part + b"\n\n" for part in stream.split(b"\n\n") if part]


def masked(stream: bytes) -> list[bytes]:
    """Events with id and time blanked, a choice's own in their order, choices side by side.

    The order in which the engine sends two choices' chunks depends on timing.
    """
    kept: dict[object, list[bytes]] = {}
    for event in events(stream):
        chunk = read_chunk(event)
        if chunk is None:
            kept.setdefault("end", []).append(event)
            continue
        values = json.loads(event[6:])
        blank = event.replace(json.dumps(values["id"]).encode(), b'"id"', 1)
        blank = blank.replace(b'"created":%d' % values["created"], b'"created":0', 1)
        place = chunk.choices[0].index if chunk.choices else "usage"
        kept.setdefault(place, []).append(blank)
    return [event for place in sorted(kept, key=str) for event in kept[place]]


def sequences_of(name: str) -> tuple[int, int]:
    request = json.loads(ENTRIES[name]["request"])
    prompts = len(request["prompt"]) if isinstance(request.get("prompt"), list) else 1
    return prompts * request.get("n", 1), prompts


def texts(stream: bytes) -> dict[int, str]:
    """What each choice said, whatever chunks it came in."""
    said: dict[int, str] = {}
    for event in events(stream):
        if read_chunk(event) is None:
            continue
        for choice in json.loads(event[6:])["choices"]:
            delta = choice.get("delta", choice)
            text = (delta.get("content") or delta.get("text") or "") + json.dumps(delta.get("tool_calls"))
            said[choice["index"]] = said.get(choice["index"], "") + text
    return said


def without_usage(name: str) -> bytes:
    """Read a recording with continuous usage, for a client that asked for none."""
    sequences, prompts = sequences_of(name)
    reader = ChunkReader(
        sequences=sequences,
        prompts=prompts,
        cut=True,
        drop_last=True,
        fingerprint=fingerprint_member(FINGERPRINT),
    )
    return reader.feed(body(name)) + reader.end()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_without_usage_a_stream_reads_as_one_that_nobody_asked_usage_of(name):
    edited = without_usage(name)
    direct = body(name.replace("-continuous", ""))
    if same_chunks(edited, direct):
        assert masked(edited) == masked(direct)
    else:  # the engine put other tokens together in a chunk: the texts and the shape are the same
        assert texts(edited).keys() == texts(direct).keys()
    assert b'"usage"' not in edited.replace(b'\\"usage', b"")


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_client_that_asked_for_the_final_usage_gets_that_alone(name):
    sequences, prompts = sequences_of(name)
    reader = ChunkReader(sequences=sequences, prompts=prompts, cut=True)
    edited = reader.feed(body(name)) + reader.end()
    direct = body(name.replace("-continuous", "-usage"))
    if same_chunks(edited, direct):
        assert masked(edited) == masked(direct)
    assert events(edited)[-2:][0] == events(body(name))[-2]
    assert edited.count(b'"usage":{') == 1


def same_chunks(one: bytes, other: bytes) -> bool:
    return len(events(one)) == len(events(other)) and texts(one) == texts(other)


def test_most_recordings_compare_byte_for_byte():
    compared = 0
    for name in CONTINUOUS:
        compared += masked(without_usage(name)) == masked(body(name.replace("-continuous", "")))
    assert compared >= len(CONTINUOUS) - 2


@pytest.mark.parametrize("name", CONTINUOUS)
def test_progress_ends_at_the_final_usage(name):
    sequences, prompts = sequences_of(name)
    reader = ChunkReader(sequences=sequences, prompts=prompts)
    assert reader.feed(body(name)) == body(name)
    assert reader.exact
    assert reader.usage is not None
    assert (reader.prompt, reader.generated) == (reader.usage.prompt, reader.usage.generated)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_progress_never_falls_and_is_the_sum_over_choices(name):
    sequences, prompts = sequences_of(name)
    reader = ChunkReader(sequences=sequences, prompts=prompts, cut=True)
    last: dict[int, int] = {}
    for event in events(body(name)):
        before = reader.generated
        reader.feed(event)
        assert reader.generated >= before
        chunk = json.loads(event[6:]) if b"[DONE]" not in event else {"choices": []}
        for choice in chunk["choices"]:
            last[choice["index"]] = chunk["usage"]["completion_tokens"]
        assert reader.generated == sum(last.values())


def test_text_that_reads_like_usage_stays():
    name = "chat-usage-key-in-text"
    reader = ChunkReader(cut=True, drop_last=True)
    edited = reader.feed(body(name))
    said = texts(edited)
    assert '","usage' in said[0].replace("\\", "").replace("null", "")
    assert b',"usage":{' not in edited


@given(data=st.data())
def test_however_the_bytes_are_split_the_client_gets_the_same(data):
    stream = body(data.draw(st.sampled_from(CONTINUOUS)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = ChunkReader(sequences=9, cut=True, drop_last=True)
    expected = whole.feed(stream) + whole.end()
    split = ChunkReader(sequences=9, cut=True, drop_last=True)
    assert b"".join([*map(split.feed, pieces), split.end()]) == expected
    assert split.generated == whole.generated
    assert split.usage == whole.usage


@pytest.mark.parametrize("piece", [1, 7, 100_000])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_an_engine_with_other_line_ends_reads_the_same(name, piece):
    sequences, prompts = sequences_of(name)
    fingerprint = fingerprint_member(FINGERPRINT)
    expected = without_usage(name).replace(b"\n\n", b"\r\n\r\n").replace(b"data: ", b"data:")
    stream = body(name).replace(b"\n\n", b"\r\n\r\n").replace(b"data: ", b"data:")
    reader = ChunkReader(
        sequences=sequences, prompts=prompts, cut=True, drop_last=True, fingerprint=fingerprint
    )
    got = [reader.feed(stream[at : at + piece]) for at in range(0, len(stream), piece)]
    assert b"".join([*got, reader.end()]) == expected
    assert any(got[: len(got) // 2]) or len(got) == 1, "nothing is kept back until the end"


def test_a_long_event_in_small_pieces_takes_linear_time():
    splitter = Splitter()
    size, piece = 4 * 1024 * 1024, b"x" * 512
    began = time.process_time()
    for _ in range(size // len(piece)):
        assert splitter.feed(piece) == []
    (event,) = splitter.feed(b"\n\n")
    assert time.process_time() - began < 1, "quadratic takes several seconds"
    assert len(event) == size + 2


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=8), st.data())
def test_the_splitter_loses_and_adds_nothing(parts, data):
    stream = b"".join(part + b"\n\n" for part in parts) + b"data: unfin"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    splitter = Splitter()
    got = []
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if a < b:
            got += splitter.feed(stream[a:b])
    assert all(event.endswith(b"\n\n") for event in got)
    assert b"".join(got) + splitter.rest() == stream


def test_a_event_without_an_end_is_not_held_for_ever(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.sse.LONGEST_HELD", 100)
    splitter = Splitter()
    assert splitter.feed(b"x" * 90) == []
    assert splitter.feed(b"y" * 20) == [b"x" * 90 + b"y" * 20]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("usage"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text(min_size=1, max_size=5).filter("usage".__ne__), json_values, max_size=4),
    usage=st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "details", "}{"]), json_values, max_size=4
    ),
    after=st.dictionaries(st.text(min_size=6, max_size=9), json_values, max_size=3),
)
def test_cutting_usage_leaves_every_other_member(before, usage, after):
    chunk = {**before, "usage": usage, **after}
    event = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    cut = cut_usage(event)
    assert cut.startswith(b"data: ")
    assert cut.endswith(b"\n\n")
    del chunk["usage"]
    assert cut[6:-2] == msgspec.json.encode(chunk)


@pytest.mark.parametrize(
    "event",
    [
        b": keep-alive\n\n",
        b"data: [DONE]\n\n",
        b"data: 17\n\n",
        b'data: {"choices":[{"index":0,"delta":{"con\n\n',
        b"da\xff\xfe\n\n",
        b'data: {"choices":"none","usage":{"prompt_tokens":"many"}}\n\n',
        b'data: {"choices":[{"index":0,"finish_reason":"\xff"}],"usage":{"prompt_tokens":1}}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_no_chunk_passes_as_it_is(event):
    reader = ChunkReader(cut=True, drop_last=True, fingerprint=fingerprint_member("f"))
    assert reader.feed(event) == event
    assert (reader.generated, reader.usage, reader.failed) == (0, None, False)


def test_an_error_in_a_stream_is_passed_and_noted():
    reader = ChunkReader(cut=True, drop_last=True)
    event = b'data: {"error":{"message":"Internal server error","code":500}}\n\n'
    assert reader.feed(event) == event
    assert reader.failed


def test_a_fingerprint_goes_to_the_end_of_the_object():
    assert append_fingerprint(b'data: {"a":1}\n\n', fingerprint_member("v-1")) == (
        b'data: {"a":1,"system_fingerprint":"v-1"}\n\n'
    )
    assert fingerprint_member(None) == b""
