"""Shared beginnings of prompts, over real sockets, before an engine that caches them as vLLM does."""

import asyncio
import json

import pytest
from engine_fakes import chunk, engine
from stack import CHAT, stack

from equipoise_api.names import DEFAULT_TENANT
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EngineProfile
from equipoise_simulator.standin import Settings, StandIn

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SYSTEM = {"role": "system", "content": "Answer in a friendly tone. " * 100}
"""800 tokens of the stand-in."""


def turn(text: str) -> dict:
    messages = [SYSTEM, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "max_tokens": 2, "ignore_eos": True}


def caching(*, reports: bool = True, enabled: bool = True) -> StandIn:
    settings = Settings(model="m", prompt_tokens_details=reports, prefix_caching=enabled)
    return StandIn(profile="fast", speed=100, settings=settings)


async def known(way, *, reports: bool) -> None:
    """Wait until the sidecar knows its engine."""
    async with asyncio.timeout(60):
        while way.dispatcher.engine.profile.reports_cached_tokens is not reports:
            await asyncio.sleep(0.01)


def requests_of(way) -> list:
    """Collect the requests that the scheduler gets from here on."""
    seen, enqueue = [], way.dispatcher.scheduler.enqueue
    way.dispatcher.scheduler.enqueue = lambda request, now: seen.append(request) or enqueue(request, now)
    return seen


@pytest.mark.parametrize("reports", [True, False])
async def test_a_shared_system_prompt_is_expected_from_the_engines_cache(reports):
    async with (
        caching(reports=reports) as engine,
        stack(engine.url, watch_engine=True, capacity={"maxInFlight": 4}) as way,
    ):
        await known(way, reports=reports)
        seen = requests_of(way)
        for number in range(16):
            assert (await way.ask(CHAT, turn(f"Where is order {number}?"))).status == 200
        hits = engine.stats.prefix_cache.hits
        await way.settled(finished=16)
        prefixes = way.dispatcher.engine.prefixes
        assert seen[0].cached_tokens == 0
        # with the prompt's tokens known from 8 requests, less than a block and what is behind it is missed
        expected = [request.cached_tokens for request in seen[8:]]
        assert all(800 - 48 <= tokens <= 800 for tokens in expected), expected
        if reports:
            assert prefixes.reported_tokens == 15 * 800 <= hits
            assert way.dispatcher.scheduler.shares(0.0)[0].total.cached == 15 * 800
        else:
            assert prefixes.reported_tokens == 0
        assert prefixes.agreement.ratio > 0.95


async def test_an_engine_without_a_prefix_cache_is_expected_to_serve_nothing():
    async with caching(enabled=False) as engine, stack(engine.url, watch_engine=True) as way:
        await known(way, reports=True)
        seen = requests_of(way)
        for _ in range(3):
            await way.ask(CHAT, turn("Where is it?"))
        assert [request.cached_tokens for request in seen] == [0, 0, 0]
        assert not way.dispatcher.engine.prefixes.active


async def test_the_text_is_let_go_while_the_request_waits():
    async with caching() as engine, stack(engine.url, watch_engine=True) as way:
        await known(way, reports=True)
        held = []
        take = way.dispatcher.submit

        def submit(tenant, facts, reservation):
            held.append(facts)
            assert facts.prompt_bytes is not None
            return take(tenant, facts, reservation)

        way.dispatcher.submit = submit
        assert (await way.ask(CHAT, turn("Hello"))).status == 200
        assert held[0].prompt_bytes is None
        assert way.dispatcher.accounting[DEFAULT_TENANT].rejected == {}


def said(answer, *, stream: bool) -> str:
    """The text of an answer as its client puts it together."""
    if not stream:
        return answer.json()["choices"][0]["message"]["content"]
    events = [json.loads(event[6:]) for event in answer.body.split(b"\n\n") if event.startswith(b"data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


@pytest.mark.parametrize("stream", [True, False])
async def test_the_next_turn_of_a_conversation_is_expected_with_the_answer_before_it(stream):
    async with caching() as engine, stack(engine.url, watch_engine=True) as way:
        await known(way, reports=True)
        for number in range(8):  # so that the prompt's tokens are known
            await way.ask(CHAT, turn(f"Where is order {number}?"))
        seen, prefixes = requests_of(way), way.dispatcher.engine.prefixes
        conversation, pairs = [SYSTEM], []
        for question in ("Where is it?", "And where is the other one?", "Who has sent it?", "When?"):
            conversation.append({"role": "user", "content": question})
            body = {
                "model": "m",
                "messages": conversation,
                "max_tokens": 300,
                "ignore_eos": True,
                "stream": stream,
            }
            before = prefixes.reported_tokens
            answer = await way.ask(CHAT, body)
            conversation.append(
                {"role": "assistant", "content": said(answer, stream=stream), "refusal": None}
            )
            await way.settled(finished=8 + len(seen))
            pairs.append((seen[-1].cached_tokens, prefixes.reported_tokens - before))
        for place, (expected, reported) in enumerate(pairs):
            assert reported >= 800 + 300 * place - 32, "the system prompt and the answers, in whole blocks"
            # as far off as the prompt's tokens are: the answer is of another kind of text than what was learnt from
            assert expected == pytest.approx(reported, rel=0.1), pairs
        assert prefixes.agreement.ratio > 0.95


async def test_an_answer_that_the_engine_breaks_off_says_nothing_of_its_cache():
    """Its running counts do not say what came from the cache: that is not zero."""
    message = {"role": "user", "content": "Where is order number seven? " * 40}
    body = {"model": "m", "messages": [message], "max_tokens": 5, "stream": True}
    running = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":400,"completion_tokens":%d}}\n\n'
    last = b'data: {"choices":[],"usage":{"prompt_tokens":400,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":%d}}}\n\n'
    failed = b'data: {"error":{"message":"EngineDeadError","code":500}}\n\n'
    ends = iter([last % 0, last % 384, failed])

    async def script(connection):
        while await connection.request():
            events = [running % 1, running % 2, next(ends)]
            connection.send(EVENTS + b"".join(map(chunk, events)) + b"0\r\n\r\n")

    profile = EngineProfile(models=("m",), max_model_len=4096, reports_cached_tokens=True)
    async with engine(script) as it, stack(it.url, profile=profile, cost={"cachedInputPercent": 10}) as way:
        way.dispatcher.observe(EngineSignals(prefix_caching=True, kv_tokens=100_000, block_tokens=16))
        for _ in range(2):
            await way.ask(CHAT, body)
        served = way.dispatcher.scheduler.shares(0.0)[0].total.cached
        assert served == 384
        await way.ask(CHAT, body)
        await way.settled(finished=2, failed=1)
        assert way.dispatcher.engine.prefixes.agreement.ratio == 1.0
        assert way.dispatcher.engine.prefixes.reported_tokens == served
        assert way.dispatcher.scheduler.shares(0.0)[0].total.cached > served + 300
