"""Two tenants that keep a backlog, and what each is delivered, counted by the client.

Each tenant keeps a number of requests open at all times (closed loop). Streams carry usage in every chunk, so delivered
service is known to the token at any moment: `prompt + 2 * generated`, the default price.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from benchmarks.sidecar import Account

INPUT_PRICE, OUTPUT_PRICE = 1, 2
WORDS = [
    "the",
    "class",
    "of",
    "an",
    "object",
    "is",
    "called",
    "and",
    "returns",
    "a",
    "value",
    "when",
    "its",
    "method",
    "was",
    "not",
    "found",
    "in",
    "module",
]


@dataclass
class Tenant:
    """One tenant's load, and what it got."""

    account: Account
    open: int
    """Requests that it keeps open."""
    max_tokens: int = 16
    prompt_words: int = 8
    prompt: int = 0
    generated: int = 0
    finished: int = 0
    cancelled: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def service(self) -> int:
        """Delivered so far, in weighted tokens."""
        return INPUT_PRICE * self.prompt + OUTPUT_PRICE * self.generated


def body(tenant: Tenant, rng: random.Random, *, stream: bool) -> dict[str, object]:
    """Return a request of the tenant. Its prompt is random, so that no prefix is cached, and its length is fixed."""
    request: dict[str, object] = {
        "model": "m",
        "prompt": " ".join(rng.choices(WORDS, k=tenant.prompt_words)),
        "max_tokens": tenant.max_tokens,
        "ignore_eos": True,
    }
    if stream:
        request["stream"] = True
        request["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return request


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    tenant: Tenant,
    rng: random.Random,
    heard: Callable[[int], None] = lambda _: None,
) -> None:
    """Send one streaming request and count what comes as it comes; `heard` is told of each chunk's tokens."""
    prompt = generated = 0
    request = body(tenant, rng, stream=True)
    async with session.post(f"{url}/v1/completions", json=request, headers=tenant.account.headers) as answer:
        if answer.status != 200:
            tenant.errors.append(f"{answer.status}: {(await answer.text())[:200]}")
            return
        async for line in answer.content:
            if not line.startswith(b'data: {"id"'):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"]:
                usage = chunk["usage"]
                tenant.prompt += usage["prompt_tokens"] - prompt
                tenant.generated += usage["completion_tokens"] - generated
                heard(usage["completion_tokens"] - generated)
                prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
    tenant.finished += 1


async def keep_open(session: aiohttp.ClientSession, url: str, tenant: Tenant) -> None:
    """Keep the tenant's requests open until cancelled."""

    async def again(number: int) -> None:
        rng = random.Random(f"{tenant.account.id} {number}")
        # Spread over the first second: two hundred connections at once are another test.
        await asyncio.sleep(number / tenant.open)
        for _ in itertools.count():
            await stream(session, url, tenant, rng)
            if len(tenant.errors) > 20:
                raise RuntimeError(f"{tenant.account.id}: {tenant.errors[0]}")

    async with asyncio.TaskGroup() as group:
        for number in range(tenant.open):
            group.create_task(again(number))
