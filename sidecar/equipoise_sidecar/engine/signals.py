"""The engine's load as its Prometheus metrics tell it, read by name; what is absent stays unknown, it is not zero.

Gauges and counters are summed over the data-parallel engines behind one front end; the KV cache's use is their mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from equipoise_sidecar.engine.errors import EngineError
from equipoise_sidecar.engine.fetch import fetch
from equipoise_sidecar.engine.pool import EnginePool

SCRAPE_SECONDS = 5.0
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_SUMMED = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:num_preemptions_total": "preemptions",
    b"vllm:prompt_tokens_total": "prompt_tokens",
    b"vllm:prompt_tokens_cached_total": "cached_tokens",
    b"vllm:generation_tokens_total": "generated_tokens",
}
_KV_USAGE = b"vllm:kv_cache_usage_perc"
_CACHE_CONFIG = b"vllm:cache_config_info"
_SLEEP = b"vllm:engine_sleep_state"
_AWAKE = b'sleep_state="awake"'
_STARTED = b"process_start_time_seconds"
_READ = (*_SUMMED, _KV_USAGE, _STARTED, _CACHE_CONFIG, _SLEEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSignals:
    """One scrape. None: the engine does not say."""

    running: int | None = None
    """Sequences in the batch."""
    waiting: int | None = None
    """Sequences in the engine's own queue."""
    preemptions: int | None = None
    """Since the engine started."""
    prompt_tokens: int | None = None
    """Since the engine started, cached ones included."""
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    kv_usage: float | None = None
    """0 to 1."""
    kv_tokens: int | None = None
    """Size of the KV cache, over all engines."""
    block_tokens: int | None = None
    """Tokens in a block of it."""
    prefix_caching: bool | None = None
    """Whether every engine keeps the blocks of prompts for later ones."""
    asleep: bool | None = None
    """Whether any engine has put its KV cache away."""
    started: float | None = None
    """When the engine's front end started, by its own clock, seconds since the epoch."""

    def restarted_since(self, before: EngineSignals) -> bool:
        """Say whether the engine is another one than at the scrape `before`."""
        if self.started is not None and before.started is not None and self.started != before.started:
            return True
        return any(
            (now := getattr(self, name)) is not None
            and (then := getattr(before, name)) is not None
            and now < then
            for name in ("prompt_tokens", "generated_tokens", "preemptions")
        )


def parse_signals(text: bytes) -> EngineSignals:
    """Read an exposition."""
    sums: dict[bytes, int] = {}
    usages: list[float] = []
    awake: list[bool] = []
    caches: list[_Cache] = []
    started = None
    text = b"\n" + text
    for name in _READ:
        for labels, value in _samples(text, name):
            try:
                if name in _SUMMED:
                    sums[name] = sums.get(name, 0) + int(_finite(value))
                elif name == _KV_USAGE:
                    usages.append(_finite(value))
                elif name == _STARTED:
                    started = _finite(value)
                elif name == _CACHE_CONFIG:
                    caches.append(_read_cache(labels))
                elif _AWAKE in labels:
                    awake.append(float(value) > 0)
            except ValueError:
                continue  # NaN, infinity, or no number: not said
    summed = {_SUMMED[name]: value for name, value in sums.items()}
    pools = [cache.tokens for cache in caches if cache.tokens is not None]
    caching = [cache.prefix_caching for cache in caches if cache.prefix_caching is not None]
    return EngineSignals(
        running=summed.get("running"),
        waiting=summed.get("waiting"),
        preemptions=summed.get("preemptions"),
        prompt_tokens=summed.get("prompt_tokens"),
        cached_tokens=summed.get("cached_tokens"),
        generated_tokens=summed.get("generated_tokens"),
        kv_usage=sum(usages) / len(usages) if usages else None,
        kv_tokens=sum(pools) if pools else None,
        block_tokens=caches[-1].block_tokens if caches else None,
        prefix_caching=all(caching) if caching else None,
        asleep=not all(awake) if awake else None,
        started=started,
    )


async def scrape(pool: EnginePool, *, timeout: float = SCRAPE_SECONDS) -> EngineSignals:
    """Fetch and read `/metrics`. Raises EngineError."""
    answer = await fetch(pool, "/metrics", timeout=timeout)
    if answer.status != 200:
        raise EngineError(f"/metrics answered {answer.status}")
    return parse_signals(answer.body)


def _samples(text: bytes, name: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give labels and value of each sample of a metric."""
    start = 0
    while (start := text.find(b"\n" + name, start)) >= 0:
        start += 1 + len(name)
        end = text.find(b"\n", start)
        line = text[start:] if end < 0 else text[start:end]
        if line.startswith(b"{"):
            labels, _, value = line[1:].rpartition(b"} ")
        elif line.startswith(b" "):
            labels, value = b"", line
        else:
            continue  # a longer name
        yield labels, value.strip().partition(b" ")[0]


def _finite(value: bytes) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no number")
    return number


@dataclass(frozen=True, slots=True)
class _Cache:
    """What the labels say of one engine's KV cache."""

    tokens: int | None
    block_tokens: int | None
    prefix_caching: bool | None


def _read_cache(labels: bytes) -> _Cache:
    texts: dict[bytes, bytes] = dict(_LABEL.findall(labels))
    values = {name: int(value) for name, value in texts.items() if value.isdigit()}
    block = values.get(b"block_size")
    tokens = values.get(b"kv_cache_size_tokens")
    if tokens is None and block is not None and b"num_gpu_blocks" in values:
        tokens = block * values[b"num_gpu_blocks"]
    caching = {b"True": True, b"False": False}.get(texts.get(b"enable_prefix_caching", b""))
    return _Cache(tokens, block, caching)
