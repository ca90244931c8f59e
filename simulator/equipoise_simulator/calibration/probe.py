"""Loads an OpenAI-compatible engine in known ways, and observes its steps from the times at which tokens come.

The engine should have nothing else to do. What is sent: completions of random token ids (so that no prefix cache helps),
greedy, with `ignore_eos`, so that every length is known beforehand. Most of the time it is loaded as it will be in earnest:
by clients that each ask again when they are answered, so that front end, proxy and clients cost what they cost then.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from equipoise_simulator.calibration.steps import Observation, Stream, alone, observations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SHORTEST_PROMPT, SHORTEST_OUTPUT, LONGEST_OUTPUT = 16, 4, 192
"""Tokens, under load; lengths are drawn evenly by their logarithm, so that steps of all kinds come up."""
PROMPT_SHARES = (0.2, 0.8)
"""Of the room of a request: a load that mostly decodes, then one that mostly prefills, or their costs are told apart by a
batch that is not full alone."""
WIDEST_TIMES = 3
"""How much longer than the others the full batch is observed: an engine that is worth simulating is full."""
WARM_UP_SECONDS = 5.0
LOWEST_TOKEN, HIGHEST_TOKEN = 100, 1000
"""Token ids that any model's vocabulary has."""
_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


class ProbeError(RuntimeError):
    """An engine that cannot be calibrated, and why."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the engine says of itself."""

    model: str
    max_model_len: int
    kv_tokens: int
    block_size: int


class Probe:
    """Asks one engine. Use it as a context manager; `tell` hears what is measured."""

    def __init__(
        self,
        url: str,
        uds: str | None = None,
        *,
        api_key: str | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._url = url.rstrip("/")
        self._uds = uds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tell = tell
        # Not seeded: what was sent before would come from the prefix cache.
        self._random = random.Random()  # noqa: S311 - a load, no secret
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        connector = aiohttp.UnixConnector(self._uds, limit=0) if self._uds else aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=600)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connection pool."""
        if self._session is None:
            raise ProbeError("the probe is not open")
        return self._session

    # -- what the engine says

    async def sizes(self, kv_tokens: int | None = None) -> Sizes:
        """Read model, context and KV cache. ProbeError when the engine does not say the size of its cache."""
        models = json.loads(await self._get("/v1/models"))["data"]
        if not models:
            raise ProbeError(f"{self._url} serves no model")
        info = _INFO.search(await self._get("/metrics"))
        labels = dict(_LABEL.findall(info.group(1))) if info else {}
        block = _number(labels.get("block_size")) or 16
        blocks = _number(labels.get("num_gpu_blocks"))
        # vLLM keeps one block for itself.
        kv = kv_tokens or ((blocks - 1) * block if blocks else None)
        if kv is None:
            raise ProbeError("vllm:cache_config_info does not say the size of the KV cache: give --kv-tokens")
        return Sizes(models[0]["id"], int(models[0].get("max_model_len") or 4096), kv, block)

    async def _get(self, path: str) -> str:
        async with self.session.get(self._url + path) as answer:
            if answer.status != 200:
                raise ProbeError(f"GET {path}: {answer.status}")
            return await answer.text()

    async def widest_batch(self, sizes: Sizes, ceiling: int = 256) -> int:
        """Return how many sequences run at a time, up to `ceiling` and as far as the KV cache allows."""
        tokens = 32
        fitting = max(1, int(0.8 * sizes.kv_tokens) // (16 + tokens + sizes.block_size))
        offered = min(2 * ceiling, fitting)
        streams = [asyncio.create_task(self._collect(sizes.model, 16, tokens)) for _ in range(offered)]
        widest = 1
        while not all(stream.done() for stream in streams):
            await asyncio.sleep(0.1)
            running = _gauge(await self._get("/metrics"), "vllm:num_requests_running")
            widest = max(widest, running)
        await asyncio.gather(*streams)
        self._tell(f"up to {widest} sequences ran at a time, {offered} offered")
        return widest

    # -- loads

    async def observe(
        self, sizes: Sizes, widest: int, max_batched: int, *, rounds: int, seconds: float
    ) -> list[Observation]:
        """Observe prompts alone and closed loops of 1, 2, 4 ... `widest` clients, each for `seconds`, the widest three times so long."""
        seen: list[Observation] = []
        most = max(1, min(widest, int(0.9 * sizes.kv_tokens) // (64 + sizes.block_size)))
        await self._load(sizes, most, max_batched, PROMPT_SHARES[-1], WARM_UP_SECONDS)
        for _ in range(rounds):
            for prompt in _prompts(sizes, max_batched):
                seen.append(alone(await self._collect(sizes.model, prompt, 1)))
                self._tell(f"a prompt of {prompt} tokens: first token after {seen[-1].seconds * 1e3:.1f} ms")
            for clients in _doublings(most):
                times = WIDEST_TIMES if clients == most else 1
                for share in PROMPT_SHARES:
                    streams = await self._load(
                        sizes, clients, max_batched, share, times * seconds / len(PROMPT_SHARES)
                    )
                    new = list(observations(streams, clients))
                    seen += new
                    if new:
                        pace = sum(each.seconds for each in new) / sum(each.steps for each in new)
                        self._tell(
                            f"{clients} at a time, prompts up to {share:.0%} of a request: {len(streams)} requests, "
                            f"{pace * 1e3:.1f} ms a step"
                        )
        return seen

    async def _load(
        self, sizes: Sizes, clients: int, max_batched: int, prompt_share: float, seconds: float
    ) -> list[Stream]:
        """Keep `clients` requests of many lengths going; what has begun by the end is waited for."""
        room = min(int(0.9 * sizes.kv_tokens) // clients - sizes.block_size, sizes.max_model_len - 1)
        longest_prompt = max(SHORTEST_PROMPT, min(int(prompt_share * room), max_batched))
        longest_output = max(SHORTEST_OUTPUT, min(LONGEST_OUTPUT, room - longest_prompt))
        until = time.perf_counter() + seconds
        streams: list[Stream] = []

        async def client() -> None:
            while time.perf_counter() < until:
                prompt = self._between(SHORTEST_PROMPT, longest_prompt)
                output = self._between(SHORTEST_OUTPUT, longest_output)
                streams.append(await self._collect(sizes.model, prompt, output))

        await asyncio.gather(*(client() for _ in range(clients)))
        return streams

    def _between(self, low: int, high: int) -> int:
        return round(float(low * (high / low) ** self._random.random()))

    async def _collect(self, model: str, prompt: int, output: int) -> Stream:
        stream = Stream(prompt, time.perf_counter())
        async for tokens in self._generate(model, prompt, output):
            stream.arrivals.append((time.perf_counter(), tokens))
        if not stream.arrivals or stream.arrivals[-1][1] != output:
            raise ProbeError(f"asked for {output} tokens, got {stream.arrivals[-1:]}: is ignore_eos heeded?")
        return stream

    async def _generate(self, model: str, prompt: int, output: int) -> AsyncIterator[int]:
        ids = [self._random.randrange(LOWEST_TOKEN, HIGHEST_TOKEN) for _ in range(prompt)]
        body: dict[str, Any] = {
            "model": model,
            "prompt": ids,
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        async with self.session.post(f"{self._url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                raise ProbeError(f"{answer.status}: {(await answer.text())[:300]}")
            so_far = 0
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                usage = json.loads(line[6:]).get("usage") or {}
                tokens = int(usage.get("completion_tokens", 0))
                if tokens > so_far:
                    so_far = tokens
                    yield tokens


def _doublings(most: int) -> list[int]:
    return [*(2**power for power in range((most - 1).bit_length())), most]


def _prompts(sizes: Sizes, max_batched: int) -> list[int]:
    longest = min(sizes.max_model_len - 2, int(0.9 * max_batched), sizes.kv_tokens // 2)
    return sorted({max(16, longest // share) for share in (16, 4, 2, 1)})


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _gauge(exposition: str, name: str) -> int:
    rows = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", exposition, re.MULTILINE)
    return sum(int(float(row)) for row in rows)
