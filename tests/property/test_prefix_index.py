"""Whatever was seen before: an estimate fits its prompt, grows with what is shared, and the index keeps its bounds."""

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from equipoise_scheduling.request import Request, Usage
from equipoise_sidecar.body import Body
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EndpointKind, EngineProfile, Facts, PromptBytes
from equipoise_sidecar.prefix_cache import PrefixCache
from equipoise_sidecar.prefix_index import BLOCK, ENDS, MOST_ENTRIES, PrefixIndex
from equipoise_sidecar.reading import read_facts
from equipoise_sidecar.said import Said

PROFILE = EngineProfile(reports_cached_tokens=True)
TEXT = bytes(range(256)) * 40


def read(cache, prompt, tenant="t"):
    facts = Facts(path="/v1/completions", kind=EndpointKind.COMPLETIONS)
    facts.prompt_bytes = PromptBytes(b"m", (prompt,), (len(prompt),))
    return cache.read(tenant, facts)


@settings(deadline=None)
@given(
    block=st.integers(1, 600),
    pool=st.integers(0, 5000),
    served=st.floats(0, 1),
    sent=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 3000), st.integers(0, 400)), max_size=12),
    asked=st.integers(0, 3000),
)
def test_an_estimate_fits_its_prompt_and_grows_with_what_is_shared(block, pool, served, sent, asked):
    cache = PrefixCache()
    cache.observe(EngineSignals(prefix_caching=True, kv_tokens=pool, block_tokens=block), PROFILE, None)
    for number, (shared, tokens, generated) in enumerate(sent):
        prefix = read(cache, TEXT[:shared] + b"%d" % number * 300)
        request = Request(id="r", tenant="t", arrival=0.0, prompt_tokens=tokens, max_tokens=1)
        request.cached_tokens = cache.estimate(prefix, tokens)
        assert 0 <= request.cached_tokens < max(1, tokens)
        cache.dispatched(prefix, request)
        usage = Usage(tokens, generated, int(served * tokens))
        cache.ended(prefix, request, usage)
        cache.reported(prefix, request, usage, EndpointKind.CHAT, PROFILE)
        index = cache.index
        assert index.tokens <= pool + 1e-6
        assert index.tokens == pytest.approx(sum(index._entries.values()), abs=1e-6)
    size = len(TEXT)
    estimates = [
        cache.estimate(read(cache, TEXT[:shared] + b"?" * (size - shared)), asked)
        for shared in range(0, size + 1, BLOCK)
    ]
    assert estimates == sorted(estimates)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ao"), st.integers(0, 40), st.floats(0, 90)), max_size=60))
def test_the_end_of_a_chain_goes_before_its_beginning(events):
    index = PrefixIndex(capacity=1000)
    chains = [index.blocks("t", root, TEXT[: 40 * BLOCK]).keys for root in (b"", b"x")]
    for what, number, tokens in events:
        if what == "a":
            index.add(chains[number % 2][:number], 0.4)
        else:
            index.occupy(tokens)
        for chain in chains:
            here = [key in index._entries for key in chain]
            assert here == sorted(here, reverse=True)
            assert index.known(chain) == sum(here)
        assert index.tokens <= 1000


def test_the_number_of_entries_is_bounded_however_small_they_are():
    index = PrefixIndex(capacity=10**9)
    for _ in range(MOST_ENTRIES + 10):
        index.occupy(1.0)
    assert len(index) == MOST_ENTRIES


def turn(messages):
    """What is made of a chat's body."""
    body = Body.parse(json.dumps({"model": "m", "messages": messages}).encode())
    return read_facts("/v1/chat/completions", EndpointKind.CHAT, body, prefixes=True)


def hashed(cache, messages):
    return cache.read("t", turn(messages)).chains[0].blocks.keys


@settings(deadline=None)
@given(
    asked=st.text(max_size=3000),
    answer=st.text(max_size=3000),
    more=st.text(max_size=300),
    cuts=st.lists(st.integers(0, 3000), max_size=20),
    escaped=st.booleans(),
)
@example(asked="", answer='say "\\" and \n \x7f \u2028 é 𝄞' * 40, more="", cuts=[3, 4, 5, 60], escaped=True)
def test_an_answer_is_found_in_the_next_turn_however_it_came(asked, answer, more, cuts, escaped):
    cache = PrefixCache()
    cache.observe(EngineSignals(prefix_caching=True, kv_tokens=10**6, block_tokens=16), PROFILE, None)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": asked}]
    prefix = cache.read("t", turn(messages))
    places = [0, *sorted(cuts), len(answer)]
    for start, end in pairwise(places):
        piece = json.dumps(answer[start:end], ensure_ascii=escaped).encode()
        if text := Said(content=msgspec.Raw(piece)).text():
            prefix.said(text)
    prefix.ended()
    keys = prefix.chains[0].blocks.keys
    brought_back = {"role": "assistant", "content": answer, "refusal": None, "tool_calls": []}
    messages += [brought_back, {"role": "user", "content": more}]
    assert hashed(cache, messages)[: len(keys)] == keys
    assert len(keys) >= sum(1 for end in ENDS if end <= len(msgspec.json.encode(answer)))


def test_an_answer_in_which_the_model_thought_aloud_is_not_expected_back():
    """Templates leave the thoughts out of earlier turns, so the engine shares no more than the prompt."""
    cache = PrefixCache()
    cache.observe(EngineSignals(prefix_caching=True, kv_tokens=10**6, block_tokens=16), PROFILE, None)
    prefix = cache.read("t", turn([{"role": "user", "content": "why? " * 100}]))
    asked = list(prefix.chains[0].blocks.keys)
    for piece in (b"<think>", b"so that " * 100, b"</think>", b"because " * 100):
        prefix.said(piece)
    prefix.ended()
    assert prefix.chains[0].blocks.keys == asked
