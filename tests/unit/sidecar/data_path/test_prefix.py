"""Shared beginnings of prompts, over real sockets: an engine that caches whole blocks of prompts and says so as vLLM does."""

import asyncio
import json
from pathlib import Path

import pytest
from engine_fakes import Connection, answer, engine
from stack import CHAT, stack

from equipoise_api.names import DEFAULT_TENANT

RECORDINGS = Path(__file__).parents[3] / "data" / "vllm"
METRICS = (RECORDINGS / "metrics-idle.txt").read_bytes()
MODELS = b'{"data":[{"id":"m","max_model_len":8192}]}'
BLOCK = 128
"""Tokens, as the recorded metrics have it; here a token is three bytes."""
SYSTEM = {"role": "system", "content": "Answer in a friendly tone. " * 190}


def turn(text: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": text}]


class Caching:
    """The script of such an engine. `reports`: started with --enable-prompt-tokens-details."""

    def __init__(self, *, reports: bool) -> None:
        self.reports = reports
        self.blocks: set[str] = set()
        self.prompt_tokens = self.cached_tokens = 0

    def usage(self, body: dict) -> dict:
        text = (
            "".join(m["role"] + m["content"] for m in body["messages"]) if "messages" in body else "x" * 900
        )
        tokens = len(text) // 3
        ends = range(BLOCK, tokens, BLOCK)
        known = next((n for n, end in enumerate(ends) if text[: 3 * end] not in self.blocks), len(ends))
        self.blocks |= {text[: 3 * end] for end in range(BLOCK, tokens + 1, BLOCK)}
        self.prompt_tokens += tokens
        self.cached_tokens += known * BLOCK
        details = {"cached_tokens": known * BLOCK} if self.reports else None
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        return {**usage, "prompt_tokens_details": details}

    def metrics(self) -> bytes:
        labels = b'{engine="0",model_name="m"} '
        ours = {
            b"\nvllm:prompt_tokens_total": self.prompt_tokens,
            b"\nvllm:prompt_tokens_cached_total": self.cached_tokens,
        }
        text = METRICS
        for name, value in ours.items():
            at = text.index(name + labels)
            text = text[:at] + name + labels + b"%d" % value + text[text.index(b"\n", at + 1) :]
        return text

    async def __call__(self, connection: Connection) -> None:
        while request := await connection.request():
            path = request[0].split()[1]
            if path == b"/metrics":
                connection.send(answer(self.metrics()))
            elif path == b"/v1/models":
                connection.send(answer(MODELS))
            else:
                said = {"choices": [], "usage": self.usage(json.loads(request[1]))}
                connection.send(answer(json.dumps(said).encode()))


async def known(way, *, reports: bool) -> None:
    """Wait until the sidecar knows its engine."""
    async with asyncio.timeout(10):
        while way.dispatcher.engine_profile.reports_cached_tokens is not reports:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("reports", [True, False])
async def test_a_shared_system_prompt_is_expected_from_the_engines_cache(reports):
    script = Caching(reports=reports)
    seen = []
    async with engine(script) as it, stack(it.url, watch_engine=True, capacity={"maxInFlight": 4}) as way:
        await known(way, reports=reports)
        dispatcher = way.dispatcher
        start = dispatcher.scheduler.enqueue

        def enqueue(request, now):
            seen.append(request)
            return start(request, now)

        dispatcher.scheduler.enqueue = enqueue
        for number in range(12):
            document = {"model": "m", "messages": turn(f"Where is order {number}?"), "max_tokens": 1}
            assert (await way.ask(CHAT, document)).status == 200
        await way.settled(finished=12)
        assert seen[0].cached_tokens == 0
        # a prompt of 1,813 tokens, of which 1,802 are the system prompt: 14 blocks, 1,792
        assert [request.cached_tokens for request in seen[-3:]] == [1664] * 3
        prefixes = dispatcher.prefixes
        if reports:
            assert prefixes.reported_tokens == 11 * 1664
            assert prefixes.predicted_tokens == pytest.approx(11 * 1664, rel=0.05)
            assert dispatcher.scheduler.shares(0.0)[0].total.cached == 11 * 1664
        else:
            assert prefixes.reported_tokens == 0
        assert prefixes.agreement.ratio > 0.99


async def test_the_bodies_are_forwarded_and_the_text_is_let_go():
    script = Caching(reports=True)
    async with engine(script) as it, stack(it.url, watch_engine=True, capacity={"maxInFlight": 4}) as way:
        await known(way, reports=True)
        held = []
        take = way.dispatcher.submit

        def submit(tenant, facts, reservation):
            held.append(facts)
            assert facts.prompt_bytes is not None
            return take(tenant, facts, reservation)

        way.dispatcher.submit = submit
        assert (await way.ask(CHAT, {"model": "m", "messages": turn("Hello")})).status == 200
        assert held[0].prompt_bytes is None
        assert way.dispatcher.accounting[DEFAULT_TENANT].rejected == {}
