"""The gate before one real vLLM with a small KV pool: `peak`, `prompt`, and no sidecar, over the same load.

    .venv/bin/python -m benchmarks.gate_vllm      writes benchmarks/results/gate_vllm.{md,json}

Clients keep a number of requests open. An answer's length is not known beforehand, neither to the clients nor to the
sidecar: each ends with the chance that `logit_bias` gives the model's end token, so lengths are geometric. The three take
turns, several rounds each, since the machine may be shared: only ratios between them mean anything.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from benchmarks.backlog import WORDS
from benchmarks.machine import described, machine
from benchmarks.sidecar import Account, Sidecar, configuration, start
from rich.console import Console

from equipoise_api.policy import Capacity
from equipoise_cluster.vllm import VERSION, Vllm
from equipoise_sidecar.engine.signals import EngineSignals, parse_signals

RESULTS = Path(__file__).parent / "results"
SEQUENCES = 24
"""`--max-num-seqs` of the engine; the sidecar finds it by itself."""
KV_TOKENS = 2048
BLOCK_TOKENS = 32
MAX_MODEL_LEN = 768
MAX_TOKENS = 600
PROMPT_WORDS = 24
OPEN = 32
"""Requests that the clients keep open."""
END_TOKEN = 1
END_BIAS = 2.6
"""Added to the end token's logit: about one token in 150 is the last."""
WARM_UP_SECONDS = 6.0
VARIANTS = ("peak", "prompt", "no sidecar")


@dataclass
class Seen:
    """What the clients saw of one variant while it was measured."""

    variant: str
    seconds: float = 0.0
    generated: int = 0
    finished: int = 0
    preemptions: int = 0
    ttft: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """The longest pause between two tokens of each request."""
    lengths: list[int] = field(default_factory=list)
    least_running: int | None = None
    most_running: int | None = None
    measuring: bool = False

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second."""
        return self.generated / self.seconds

    def quantile(self, values: list[float], share: float) -> float:
        """Return a quantile of times in seconds; NaN where there are none."""
        return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def ask(session: aiohttp.ClientSession, url: str, account: Account, number: int, seen: Seen) -> None:
    """Send one streaming request and note when its tokens come."""
    rng = random.Random(number)
    request = {
        "model": "m",
        "prompt": " ".join(rng.choices(WORDS, k=PROMPT_WORDS)),
        "max_tokens": MAX_TOKENS,
        "seed": number,
        "logit_bias": {str(END_TOKEN): END_BIAS},
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    began = last = time.monotonic()
    generated, pause = 0, 0.0
    async with session.post(f"{url}/v1/completions", json=request, headers=account.headers) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {(await answer.text())[:200]}")
        async for line in answer.content:
            if not line.startswith(b'data: {"id"'):
                continue
            chunk = json.loads(line[6:])
            news = chunk["usage"]["completion_tokens"] - generated if chunk["choices"] else 0
            if not news:
                continue
            now = time.monotonic()
            if not generated and seen.measuring:
                seen.ttft.append(now - began)
            elif generated:
                pause = max(pause, now - last)
            generated, last = generated + news, now
            if seen.measuring:
                seen.generated += news
    if seen.measuring:
        seen.finished += 1
        seen.pauses.append(pause)
        seen.lengths.append(generated)


@asynccontextmanager
async def load(
    connector: aiohttp.BaseConnector, url: str, accounts: list[Account], seen: Seen
) -> AsyncIterator[None]:
    """Keep OPEN requests open, the tenants by turns."""
    numbers = itertools.count()

    async def again(place: int) -> None:
        # spread over a second: all at once is another test
        await asyncio.sleep(place / OPEN)
        while True:
            await ask(session, url, accounts[place % len(accounts)], next(numbers), seen)

    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(again(place)) for place in range(OPEN)]
        yield
        for task in tasks:
            task.cancel()


def signals(vllm: Vllm) -> EngineSignals:
    """Read the engine's own metrics."""
    connection = vllm.connection()
    try:
        connection.request("GET", "/metrics")
        return parse_signals(connection.getresponse().read())
    finally:
        connection.close()


async def measure(
    vllm: Vllm, sidecar: Sidecar | None, accounts: list[Account], seen: Seen, seconds: float
) -> None:
    """Run one variant for a while and add to what was seen of it."""
    if sidecar is None:
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path=str(vllm.uds), limit=0)
        url = "http://engine"
    else:
        connector, url = aiohttp.TCPConnector(limit=0), sidecar.url
    async with load(connector, url, accounts, seen):
        await asyncio.sleep(WARM_UP_SECONDS)
        before, began = await asyncio.to_thread(signals, vllm), time.monotonic()
        seen.measuring = True
        while time.monotonic() - began < seconds:
            await asyncio.sleep(1.0)
            running = (await asyncio.to_thread(signals, vllm)).running or 0
            seen.least_running = min(running, seen.least_running or running)
            seen.most_running = max(running, seen.most_running or running)
        seen.measuring = False
        seen.seconds += time.monotonic() - began
        after = await asyncio.to_thread(signals, vllm)
        seen.preemptions += (after.preemptions or 0) - (before.preemptions or 0)
    while (await asyncio.to_thread(signals, vllm)).running:  # noqa: ASYNC110 - another process: nobody would tell
        await asyncio.sleep(0.2)


def play(seconds: float, rounds: int, tell: Callable[[str], None]) -> dict[str, Seen]:
    """Start the engine and a sidecar for each gate, and let the variants take turns."""
    accounts = [Account("team/blue"), Account("team/red")]
    results = {variant: Seen(variant) for variant in VARIANTS}
    with TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        vllm = stack.enter_context(
            Vllm.start(
                log=folder / "vllm.log",
                uds=folder / "vllm.sock",
                max_num_seqs=SEQUENCES,
                max_model_len=MAX_MODEL_LEN,
                kv_tokens=KV_TOKENS,
                extra=(
                    *("--block-size", str(BLOCK_TOKENS)),
                    *("--num-gpu-blocks-override", str(KV_TOKENS // BLOCK_TOKENS)),
                ),
            )
        )
        sidecars: dict[str, Sidecar | None] = {"no sidecar": None}
        for gate in ("Peak", "Prompt"):
            own = folder / gate
            own.mkdir()
            config = configuration(accounts, "VTC", Capacity.model_validate({"gate": gate}))
            sidecars[gate.lower()] = stack.enter_context(start(f"unix:{vllm.uds}", config, own))
        for turn in range(rounds):
            # each comes first, second and third in turn
            order = VARIANTS[turn % len(VARIANTS) :] + VARIANTS[: turn % len(VARIANTS)]
            for variant in order:
                seen = results[variant]
                asyncio.run(measure(vllm, sidecars[variant], accounts, seen, seconds))
                tell(
                    f"{variant}: {seen.tokens_per_second:.0f} tokens/s, {seen.preemptions} preemptions, "
                    f"{seen.finished} finished, {seen.least_running} to {seen.most_running} running"
                )
    return results


def report(results: dict[str, Seen], facts: dict[str, str], rounds: int) -> str:
    """Write the table in Markdown."""
    alone = results["no sidecar"]
    lengths = [length for seen in results.values() for length in seen.lengths]
    lines = [
        "# The gate before a real vLLM with a small KV pool",
        "",
        (
            f"{described(facts)} vLLM {VERSION} on the CPU, {SEQUENCES} sequences, {KV_TOKENS:,} tokens of KV cache in "
            f"blocks of {BLOCK_TOKENS}. Two tenants under VTC keep {OPEN} requests open, of about {PROMPT_WORDS * 2} prompt "
            f"tokens and at most {MAX_TOKENS} output tokens, whose lengths nobody knows beforehand: here {sum(lengths) / len(lengths):.0f} "
            f"on average. The variants took turns, {rounds} rounds each, on a machine shared with other work: read the "
            "ratios to the engine alone, not the figures. The sidecar finds the engine's sequences and its KV pool by itself."
        ),
        "",
        "| variant | seconds | finished | preemptions | a request | tokens/s | to alone | TTFT p50, s | p90, s | longest pause p50, s | p90, s | running |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for seen in results.values():
        ttft = [seen.quantile(seen.ttft, share) for share in (0.5, 0.9)]
        pauses = [seen.quantile(seen.pauses, share) for share in (0.5, 0.9)]
        lines.append(
            f"| {seen.variant} | {seen.seconds:.0f} | {seen.finished} | {seen.preemptions} "
            f"| {seen.preemptions / max(seen.finished, 1):.2f} | {seen.tokens_per_second:.0f} "
            f"| {seen.tokens_per_second / alone.tokens_per_second:.2f} | {ttft[0]:.2f} | {ttft[1]:.2f} "
            f"| {pauses[0]:.2f} | {pauses[1]:.2f} | {seen.least_running} to {seen.most_running} |"
        )
    lines += [
        "",
        "How to read it:",
        "",
        "- *preemptions* are the engine's own count (`vllm:num_preemptions_total`): sequences that lost their KV cache and were",
        "  computed again. *a request*: how many for each request that ended.",
        "- *longest pause* is between two tokens of one answer, the longest of each request. A preempted answer stands still",
        "  until there is room again.",
        "- *TTFT* is from sending to the first token, the wait in either queue included. All variants keep as many requests",
        "  open, so what one starts earlier another finishes earlier.",
        "- `prompt` admits as the engine alone does, in the order of the scheduler: it is there to compare with, and for engines",
        "  whose pool is never full. `peak` leaves room for what those in flight are predicted to need.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=30.0, help="measured seconds of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    console, facts = Console(stderr=True, highlight=False), machine("benchmarks.gate_vllm")
    results = play(arguments.seconds, arguments.rounds, console.print)
    text = report(results, facts, arguments.rounds)
    print(text)
    (arguments.out / "gate_vllm.md").write_text(text)
    outcomes = [asdict(seen) for seen in results.values()]
    document = {"machine": facts, "outcomes": outcomes}
    (arguments.out / "gate_vllm.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
