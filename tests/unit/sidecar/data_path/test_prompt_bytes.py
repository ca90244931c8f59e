"""A body's prompt as bytes: equal beginnings where the engine's are, and nothing shared where it shares nothing."""

import json
from itertools import takewhile

import pytest
from endpoint_paths import PATHS

from equipoise_sidecar.body import Body
from equipoise_sidecar.facts import EndpointKind, PromptBytes
from equipoise_sidecar.prompt_bytes import MEDIA_BYTES, MOST_BYTES
from equipoise_sidecar.reading import read_facts

SYSTEM = {"role": "system", "content": "Be kind. " * 50}
ASK, ANSWER, MORE = (
    {"role": "user", "content": "What is it? " * 20},
    {"role": "assistant", "content": "It is this. " * 20},
    {"role": "user", "content": "And that? " * 20},
)
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def laid_out(kind: EndpointKind = EndpointKind.CHAT, path: str = "", **body) -> PromptBytes | None:
    raw = json.dumps({"model": "m", **body}).encode()
    return read_facts(path or PATHS[kind], kind, Body.parse(raw), prefixes=True).prompt_bytes


def shared(one: PromptBytes, other: PromptBytes) -> int:
    if one.root != other.root:
        return 0
    return sum(
        1
        for _ in takewhile(
            lambda pair: pair[0] == pair[1], zip(one.prompts[0], other.prompts[0], strict=False)
        )
    )


def test_a_conversation_goes_on_where_it_was():
    before = laid_out(messages=[SYSTEM, ASK])
    after = laid_out(messages=[SYSTEM, ASK, ANSWER, MORE])
    assert shared(before, after) == len(before.prompts[0])
    assert before.sizes == (len(before.prompts[0]),)


def test_a_system_prompt_is_shared_with_its_tools_and_ends_where_they_differ():
    plain = laid_out(messages=[SYSTEM, ASK])
    tools = laid_out(messages=[SYSTEM, ASK], tools=TOOLS)
    assert shared(tools, laid_out(messages=[SYSTEM, MORE], tools=TOOLS)) > shared(tools, plain)
    assert len(SYSTEM["content"]) <= shared(tools, plain) < len(SYSTEM["content"]) + 60


def test_how_a_client_writes_its_json_does_not_matter():
    spaced = json.dumps({"model": "m", "messages": [dict(reversed(SYSTEM.items()))]}, indent=2).encode()
    facts = read_facts(PATHS[EndpointKind.CHAT], EndpointKind.CHAT, Body.parse(spaced), prefixes=True)
    assert facts.prompt_bytes.prompts == laid_out(messages=[SYSTEM]).prompts


@pytest.mark.parametrize(
    "other",
    [
        {"model": "adapter"},
        {"cache_salt": "mine"},
        {"chat_template": "x"},
        {"chat_template_kwargs": {"a": 1}},
    ],
)
def test_what_changes_a_prompt_from_its_first_token(other):
    assert laid_out(messages=[ASK]).root != laid_out(messages=[ASK], **other).root
    assert laid_out(messages=[ASK]).root == laid_out(messages=[MORE], temperature=1).root


def test_two_members_cannot_pass_for_one_another():
    assert laid_out(messages=[ASK], chat_template="x").root != laid_out(messages=[ASK], cache_salt="x").root


def test_pictures_are_told_apart_and_take_the_room_of_pictures():
    def picture(url: str) -> PromptBytes:
        parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": url}}]
        return laid_out(messages=[{"role": "user", "content": parts}, ASK])

    one, other = "data:image/png;base64," + "A" * 50_000, "data:image/png;base64," + "A" * 49_999 + "B"
    assert picture(one) == picture(one)
    assert shared(picture(one), picture(other)) < 100
    assert MEDIA_BYTES < len(picture(one).prompts[0]) < MEDIA_BYTES + 500


def test_the_other_endpoints():
    ids = laid_out(EndpointKind.COMPLETIONS, prompt=[1, 2, 70000])
    assert len(ids.prompts[0]) == 24
    assert shared(ids, laid_out(EndpointKind.COMPLETIONS, prompt=[1, 2, 3])) == 16
    assert laid_out(EndpointKind.COMPLETIONS, prompt="né").prompts == ("né".encode(),)
    assert laid_out(EndpointKind.COMPLETIONS, prompt=["a", [1]]).prompts == (b"a", bytes([1, *[0] * 7]))
    message = laid_out(EndpointKind.MESSAGES, system="s" * 50, messages=[ASK])
    assert shared(message, laid_out(EndpointKind.MESSAGES, system="s" * 50, messages=[MORE])) > 50
    response = laid_out(EndpointKind.RESPONSES, instructions="i" * 50, input="hello")
    assert shared(response, laid_out(EndpointKind.RESPONSES, instructions="i" * 50, input="hollo")) > 50


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (EndpointKind.POOLING, {"input": "text"}),
        (EndpointKind.COMPLETIONS, {"prompt": [1, -2]}),
        (EndpointKind.COMPLETIONS, {"prompt": [1, "a"]}),
        (EndpointKind.COMPLETIONS, {"prompt": 7}),
        (EndpointKind.COMPLETIONS, {}),
        (EndpointKind.CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
    ],
)
def test_what_cannot_be_laid_out_shares_nothing(kind, body):
    assert laid_out(kind, **body) is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (EndpointKind.CHAT, {"messages": [ASK], "prompt_logprobs": 0}),
        (EndpointKind.COMPLETIONS, {"prompt": "a", "prompt_logprobs": 1}),
        (EndpointKind.COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1}),
    ],
)
def test_a_prompt_whose_tokens_probabilities_are_asked_for_is_computed_whole(kind, body):
    assert laid_out(kind, **body) is None
    del body[next(name for name in body if "logprobs" in name)]
    assert laid_out(kind, **body) is not None


@pytest.mark.parametrize(
    ("body", "goes_on"),
    [
        ({"messages": [ASK]}, True),
        ({"messages": [ASK], "n": 2}, False),
        ({"messages": [ASK, ANSWER]}, False),
    ],
)
def test_only_the_one_answer_to_somebody_else_is_brought_back_by_a_next_turn(body, goes_on):
    assert laid_out(**body).goes_on is goes_on


def test_what_a_client_leaves_out_or_sends_as_nothing_is_the_same():
    nothing = {"refusal": None, "audio": None, "tool_calls": []}
    assert laid_out(messages=[ASK, ANSWER | nothing, MORE]) == laid_out(messages=[ASK, ANSWER, MORE])


def test_a_batch_of_conversations_shares_nothing():
    assert laid_out(path="/v1/chat/completions/batch", messages=[[ASK], [MORE]]) is None


def test_of_a_long_prompt_no_more_is_kept_than_is_looked_at():
    long = {"role": "user", "content": "x" * (3 * MOST_BYTES)}
    got = laid_out(messages=[long, ASK, MORE])
    assert MOST_BYTES < len(got.prompts[0]) < MOST_BYTES + 200
    assert got.sizes[0] > 3 * MOST_BYTES
    several = laid_out(messages=[ASK] * 10_000)
    assert len(several.prompts[0]) < MOST_BYTES + 1000
