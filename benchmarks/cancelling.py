"""A tenant that cancels each of its non-streaming requests just before it would be answered, beside one that does not.

A non-streaming answer shows nothing until its end. Were a cancelled one free, such a tenant would be served for nothing;
so what the engine really did for it is taken from the engine's own counters.

    .venv/bin/python -m benchmarks.cancelling      writes benchmarks/results/cancelling.{md,json}
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from benchmarks.backlog import INPUT_PRICE, OUTPUT_PRICE, Tenant, body
from benchmarks.fairness_vllm import LONGEST_SECONDS, RESULTS, SEQUENCES, SETTLED_SHARE, engine
from benchmarks.machine import described, machine
from benchmarks.sidecar import Account, Sidecar, configuration, start
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from equipoise_api.policy import Capacity
from equipoise_cluster.vllm import VERSION, Vllm

CANCEL_AT = 0.95
"""Share of an answer's time in the engine after which the canceller leaves."""
OPEN = 12
OUTPUT_TOKENS = 32
LOOK_SECONDS = 0.03


@dataclass
class Course:
    """When each of the canceller's requests went to the engine, how long one takes there, and whether it ends."""

    ending: bool = False
    """No new requests; those that are open come to their ends, so that all that the engine did is accounted for."""
    dispatched: dict[str, float] = field(default_factory=dict)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    def due(self, request: str) -> bool:
        """Say whether a request has had its share of the time."""
        since = self.dispatched.get(request)
        if since is None or len(self.durations) < 5:
            return False
        # The quick ones count: of a busy machine's usual time 95 % would let half of the answers come.
        return time.monotonic() - since >= CANCEL_AT * statistics.quantiles(self.durations, n=10)[0]


@dataclass(frozen=True)
class Outcome:
    """What the engine did for each, in weighted tokens, and what the sidecar says of it."""

    seconds: float
    finisher: int
    canceller: int
    """All that the engine did, less the finisher's."""
    believed: float
    """The canceller's service as the sidecar counts it."""
    cancelled: int
    finished: int
    outstanding: float

    @property
    def ratio(self) -> float:
        """Canceller's service over the finisher's."""
        return self.canceller / self.finisher


def engine_work(vllm: Vllm) -> int:
    """Return all that the engine computed so far, in weighted tokens, aborted requests included."""
    connection = vllm.connection()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    totals = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    prompt, generated = totals["vllm:prompt_tokens_total"], totals["vllm:generation_tokens_total"]
    return int(INPUT_PRICE * prompt + OUTPUT_PRICE * generated)


async def finish_all(
    session: aiohttp.ClientSession, url: str, tenant: Tenant, course: Course, number: int
) -> None:
    """Send one request after the other and wait for each."""
    rng = random.Random(f"{tenant.account.id} {number}")
    while not course.ending:
        began = time.monotonic()
        async with session.post(
            f"{url}/v1/completions", json=body(tenant, rng, stream=False), headers=tenant.account.headers
        ) as answer:
            document = await answer.json()
            answer.raise_for_status()
        queued = int(answer.headers["X-Equipoise-Queue-Ms"]) / 1000
        course.durations.append(time.monotonic() - began - queued)
        tenant.prompt += document["usage"]["prompt_tokens"]
        tenant.generated += document["usage"]["completion_tokens"]
        tenant.finished += 1


async def cancel_all(
    session: aiohttp.ClientSession, url: str, tenant: Tenant, course: Course, number: int
) -> None:
    """Send one request after the other and leave each when it is due."""
    rng = random.Random(f"{tenant.account.id} {number}")
    for turn in itertools.count():
        if course.ending:
            return
        name = f"cancel-{number}-{turn}"
        post = asyncio.ensure_future(
            _answered(
                session, url, body(tenant, rng, stream=False), tenant.account.headers | {"X-Request-Id": name}
            )
        )
        try:
            done: set[asyncio.Future[None]] = set()
            while not done and not course.due(name):
                done, _ = await asyncio.wait({post}, timeout=LOOK_SECONDS / 3)
            if post.done():
                post.result()
                tenant.finished += 1
            else:
                tenant.cancelled += 1
        finally:
            post.cancel()
            with suppress(asyncio.CancelledError):
                await post
        course.dispatched.pop(name, None)


async def _answered(
    session: aiohttp.ClientSession, url: str, request: object, headers: dict[str, str]
) -> None:
    async with session.post(f"{url}/v1/completions", json=request, headers=headers) as answer:
        await answer.read()
        answer.raise_for_status()


async def watch(sidecar: Sidecar, tenant: Tenant, course: Course) -> None:
    """Note when the canceller's requests go to the engine: its best possible knowledge."""
    while True:
        rows = await asyncio.to_thread(sidecar.table, "requests")
        now = time.monotonic()
        for row in rows:
            if row["tenant"] == tenant.account.id and row["phase"] == "in-flight":
                course.dispatched.setdefault(row["request_id"], now)
        await asyncio.sleep(LOOK_SECONDS)


async def run(
    vllm: Vllm, sidecar: Sidecar, accounts: tuple[Account, Account], tell: Callable[[str], None] = print
) -> Outcome:
    """Run both until U is small against what was served, then let what is in flight come to its end."""
    finisher, canceller = (Tenant(account, OPEN, max_tokens=OUTPUT_TOKENS) for account in accounts)
    course, before = Course(), engine_work(vllm)
    began = time.monotonic()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        watching = asyncio.create_task(watch(sidecar, canceller, course))
        async with asyncio.TaskGroup() as group:
            for number in range(OPEN):
                group.create_task(finish_all(session, sidecar.url, finisher, course, number))
                group.create_task(cancel_all(session, sidecar.url, canceller, course, number))
            while not course.ending:
                await asyncio.sleep(1.0)
                metrics = await asyncio.to_thread(sidecar.metrics)
                outstanding = metrics.get(("equipoise_fairness_outstanding", ""), 0.0)
                other = engine_work(vllm) - before - finisher.service
                seconds = time.monotonic() - began
                settled = 2 * outstanding <= SETTLED_SHARE * min(finisher.service, other)
                course.ending = seconds > LONGEST_SECONDS or settled
                if int(seconds) % 10 == 0:
                    tell(
                        f"{seconds:.0f} s: finisher {finisher.service}, canceller {other}, U {outstanding:.0f}"
                    )
        watching.cancel()
    # an abort reaches the engine within 150 ms
    await asyncio.sleep(1.0)
    metrics = sidecar.metrics()
    return Outcome(
        seconds=time.monotonic() - began,
        finisher=finisher.service,
        canceller=engine_work(vllm) - before - finisher.service,
        believed=metrics["equipoise_service_total", canceller.account.id],
        cancelled=int(canceller.cancelled),
        finished=canceller.finished,
        outstanding=metrics["equipoise_fairness_outstanding", ""],
    )


def play(
    vllm: Vllm, folder: Path, *, in_flight: int = SEQUENCES, tell: Callable[[str], None] = print
) -> Outcome:
    """Put a fresh sidecar before the engine and run both tenants, `in_flight` requests in the engine at a time."""
    accounts = Account("team/finisher"), Account("team/canceller")
    config = configuration(list(accounts), "VTC", Capacity(max_in_flight=in_flight))
    with start(f"unix:{vllm.uds}", config, folder) as sidecar:
        return asyncio.run(run(vllm, sidecar, accounts, tell))


def report(outcome: Outcome, facts: dict[str, str]) -> str:
    """Write the table in Markdown."""
    return "\n".join(
        [
            "# Cancelling is not free",
            "",
            (
                f"{described(facts)} vLLM {VERSION} on the CPU, {SEQUENCES} sequences, VTC, weights 1:1. Both tenants "
                f"keep {OPEN} non-streaming requests of {OUTPUT_TOKENS} tokens open; the canceller leaves each after "
                f"{CANCEL_AT:.0%} of the time in the engine that nine of ten answers take at least. Service in weighted tokens: the finisher's by its answers, "
                "the canceller's by the engine's own counters (all it computed, less the finisher's)."
            ),
            "",
            "| seconds | finisher | canceller | ratio | as the sidecar counts it | cancelled, answered | U | 2U / smaller |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            (
                f"| {outcome.seconds:.0f} | {outcome.finisher:,} | {outcome.canceller:,} | {outcome.ratio:.3f} "
                f"| {outcome.believed:,.0f} | {outcome.cancelled:,}, {outcome.finished:,} | {outcome.outstanding:,.0f} "
                f"| {2 * outcome.outstanding / min(outcome.finisher, outcome.canceller):.1%} |"
            ),
            "",
        ]
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, facts = Console(stderr=True, highlight=False), machine("benchmarks.cancelling")
    with TemporaryDirectory() as place, engine(Path(place)) as vllm:
        outcome = play(vllm, Path(place), tell=console.print)
    text = report(outcome, facts)
    print(text)
    (arguments.out / "cancelling.md").write_text(text)
    document = {"machine": facts, "outcome": asdict(outcome)}
    (arguments.out / "cancelling.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
