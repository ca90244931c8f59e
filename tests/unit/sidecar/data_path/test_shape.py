"""What a predictor is shown of a body."""

import json

import pytest
from endpoint_paths import PATHS
from hypothesis import given
from hypothesis import strategies as st

from equipoise_scheduling.features import Cue, Features
from equipoise_sidecar.body import Body
from equipoise_sidecar.facts import EndpointKind, EngineProfile
from equipoise_sidecar.reading import read_facts
from equipoise_sidecar.sizing import Sizing


def read(document, kind=EndpointKind.CHAT):
    return read_facts(PATHS[kind], kind, Body.parse(json.dumps(document).encode()), features=True)


def test_a_chat_shows_its_shape_and_the_cues_of_the_last_user_message():
    said = read(
        {
            "messages": [
                {"role": "system", "content": "Write at length."},
                {"role": "user", "content": "Write a long essay."},
                {"role": "assistant", "content": "..."},
                {"role": "user", "content": [{"type": "text", "text": "Briefly: list three points?"}]},
                {"role": "assistant", "content": "On", "prefix": True},
            ],
            "max_tokens": 300,
            "stop": ["a", "b"],
            "temperature": 0.7,
            "tools": [{"type": "function"}, {"type": "function"}],
            "response_format": {"type": "json_object"},
        }
    ).features
    assert said == Features(
        endpoint="/v1/chat/completions",
        limit_given=True,
        messages=5,
        last_characters=27,
        stops=2,
        temperature=0.7,
        tools=2,
        structured=True,
        cues=Cue.BRIEF | Cue.LIST | Cue.QUESTION,
        asked_tokens=75,
    )


@pytest.mark.parametrize(
    ("kind", "document", "messages", "characters"),
    [
        (EndpointKind.COMPLETIONS, {"prompt": "hello"}, 1, 5),
        (EndpointKind.COMPLETIONS, {"prompt": ["a", "bcd"]}, 2, 3),
        (EndpointKind.COMPLETIONS, {"prompt": [1, 2, 3]}, 3, 0),
        (EndpointKind.RESPONSES, {"input": "hello"}, 1, 5),
        (
            EndpointKind.RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
            1,
            2,
        ),
        (EndpointKind.MESSAGES, {"system": "s", "messages": [{"role": "user", "content": "hi"}]}, 1, 2),
        (EndpointKind.CHAT, {}, 0, 0),
    ],
)
def test_the_other_endpoints_show_theirs(kind, document, messages, characters):
    said = read(document, kind).features
    assert (said.endpoint, said.messages, said.last_characters) == (PATHS[kind], messages, characters)
    assert not said.limit_given


@pytest.mark.parametrize(
    ("member", "structured"),
    [
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": None}, False),
        ({"response_format": {"type": "json_schema"}}, True),
        ({"guided_choice": ["yes", "no"]}, True),
        ({"structured_outputs": {"regex": "a+"}}, True),
    ],
)
def test_a_grammar_shows(member, structured):
    assert read(member).features.structured is structured


@pytest.mark.parametrize("temperature", [10**400, float("nan"), float("inf"), -1, "hot", None, [1]])
def test_a_temperature_that_cannot_be_is_left_out(temperature):
    assert read({"temperature": temperature}).features.temperature is None


def test_embeddings_show_nothing_and_nobody_looks_unasked():
    assert read({"input": "x"}, EndpointKind.POOLING).features is None
    assert read_facts(PATHS[EndpointKind.CHAT], EndpointKind.CHAT, Body.parse(b"{}")).features is None


@pytest.mark.parametrize(
    ("kind", "document", "system"),
    [
        (
            EndpointKind.CHAT,
            {"messages": [{"role": "system", "content": "s" * 94}, {"role": "user", "content": "u" * 96}]},
            0.5,
        ),
        (
            EndpointKind.CHAT,
            {
                "messages": [
                    {"role": "developer", "content": "s" * 91},
                    {"role": "user", "content": "u" * 296},
                ]
            },
            0.25,
        ),
        (
            EndpointKind.MESSAGES,
            {"system": "s" * 100, "messages": [{"role": "user", "content": "u" * 96}]},
            0.5,
        ),
        (EndpointKind.RESPONSES, {"instructions": "s" * 100, "input": "u" * 300}, 0.25),
        (EndpointKind.COMPLETIONS, {"prompt": "u" * 200}, 0),
    ],
)
def test_the_system_prompts_share_of_the_text_becomes_tokens(kind, document, system):
    facts = read(document, kind)
    request = Sizing().request("team/blue", facts, name="1", slo=None, profile=EngineProfile(), now=0.0)
    assert request.system_tokens == pytest.approx(system * request.prompt_tokens, abs=1)
    assert request.features is facts.features


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
turns = st.lists(
    st.dictionaries(st.sampled_from(["role", "content"]), values | st.sampled_from(["user", "system"]))
)


@given(
    st.dictionaries(
        st.sampled_from(["stop", "temperature", "tools", "response_format", "guided_choice", "max_tokens"]),
        values,
    ),
    values | turns,
    st.sampled_from(list(PATHS)),
)
def test_no_body_is_too_strange_to_look_at(members, conversation, kind):
    document = {**members, "messages": conversation, "input": conversation, "prompt": conversation}
    facts = read(document, kind)
    assert 0 <= facts.system_bytes <= facts.text_bytes
