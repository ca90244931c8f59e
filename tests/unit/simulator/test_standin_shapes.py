"""The stand-in's answers have the shape of a real vLLM's, which tests/data/vllm holds: keys, their order, nulls, events."""

import json
import re
from pathlib import Path

import aiohttp
import pytest

from equipoise_simulator.standin import Settings, StandIn

RECORDINGS = Path(__file__).parents[2] / "data" / "vllm"
NOT_OFFERED = (
    "tools",
    "return-token-ids",
    "usage-key-in-text",
    "echo-logprobs",
    "bad-field",
    "prompt-too-long",
)
OFFERED = [
    entry
    for entry in json.loads((RECORDINGS / "recordings.json").read_text())
    if not any(part in entry["name"] for part in NOT_OFFERED)
]


@pytest.fixture
async def engine():
    async with StandIn(speed=100, settings=Settings(model="m")) as engine:
        yield engine


def skeleton(value, key=""):
    """Keys in order, with the types of what they hold; of a list, its distinct elements."""
    if isinstance(value, dict) and key != "top_logprobs":
        return tuple((name, skeleton(inner, name)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(dict.fromkeys(skeleton(inner, key) for inner in value))
    return type(value).__name__


def events(body):
    """A stream's events: name, and the skeleton of the data."""
    result = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        name, _, data = block.rpartition("data: ")
        result.append((name, data if data == "[DONE]" else skeleton(json.loads(data))))
    return result


async def answer_to(engine, recording):
    url, body = engine.url + recording["path"], recording["request"].encode()
    async with aiohttp.ClientSession() as session, session.post(url, data=body) as answer:
        return answer.status, answer.headers["content-type"], await answer.read()


@pytest.mark.parametrize("recording", OFFERED, ids=[entry["name"] for entry in OFFERED])
async def test_an_answer_has_the_shape_of_vllms(engine, recording):
    status, content_type, body = await answer_to(engine, recording)
    recorded = (RECORDINGS / f"{recording['name']}.body").read_bytes()
    assert (status, content_type) == (recording["status"], recording["headers"]["content-type"])
    if not content_type.startswith("text/event-stream"):
        assert skeleton(json.loads(body)) == skeleton(json.loads(recorded))
        return
    ours, theirs = events(body), events(recorded)
    assert set(ours) == set(theirs)
    assert (ours[0], ours[-2:]) == (theirs[0], theirs[-2:])
    assert body.endswith(recorded[-4:])


@pytest.mark.parametrize(
    "name", ["error-unknown-path", "error-stream-options-without-stream", "error-unknown-model"]
)
async def test_an_error_has_vllms_bytes(engine, name):
    recording = next(entry for entry in OFFERED if entry["name"] == name)
    status, _, body = await answer_to(engine, recording)
    assert (status, body) == (recording["status"], (RECORDINGS / f"{name}.body").read_bytes())


async def test_what_is_no_text_or_number_is_vllms_byte_for_byte(engine):
    recording = next(entry for entry in OFFERED if entry["name"] == "chat.stream-continuous")
    _, _, body = await answer_to(engine, recording)
    recorded = (RECORDINGS / "chat.stream-continuous.body").read_bytes()

    def masked(stream):
        strings = re.sub(rb'"(id|model|content|system_fingerprint)":"[^"]*"', rb'"\\1":"*"', stream)
        return re.sub(rb":\d+", b":0", strings)

    assert masked(body) == masked(recorded)


async def test_models_say_how_long_the_context_is(engine):
    async with aiohttp.ClientSession() as session, session.get(engine.url + "/v1/models") as answer:
        card = (await answer.json())["data"][0]
    recorded = json.loads((RECORDINGS / "models.json").read_text())["data"][0]
    assert card["max_model_len"] == engine.model.profile.max_model_len
    assert set(card) == set(recorded)


async def test_metrics_carry_vllms_names_and_labels(engine):
    async with aiohttp.ClientSession() as session, session.get(engine.url + "/metrics") as answer:
        ours = await answer.text()
    recorded = (RECORDINGS / "metrics.txt").read_text()

    def series(text):
        found = {}
        for line in text.splitlines():
            if line.startswith("vllm:") and "_created{" not in line:
                name, _, rest = line.partition("{")
                labels = frozenset(part.split("=")[0] for part in rest.rpartition("}")[0].split('",'))
                found.setdefault(name, set()).add(labels)
        return found

    mine, theirs = series(ours), series(recorded)
    for name, labels in mine.items():
        if name == "vllm:cache_config_info":
            (mine_info,), (their_info,) = labels, theirs[name]
            assert mine_info <= their_info
        else:
            assert labels == theirs[name], name
    assert len(mine) > 20
