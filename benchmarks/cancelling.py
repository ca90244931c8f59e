"""A tenant that cancels each of its non-streaming requests just before it would be answered, beside one that does not.

A non-streaming answer shows nothing until its end. Were a cancelled one free, such a tenant would be served for nothing;
so what the engine really did for it is taken from the engine's own counters. The canceller is given knowledge that no
client has: when each request went to the engine (the sidecar's debug table), and how many steps the engine made since
(the other tenant's streams get a token a step).

    .venv/bin/python -m benchmarks.cancelling      writes benchmarks/results/cancelling.{md,json}
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from benchmarks.backlog import INPUT_PRICE, OUTPUT_PRICE, Tenant, body, stream
from benchmarks.fairness_vllm import LONGEST_SECONDS, RESULTS, SEQUENCES, SETTLED_SHARE, engine
from benchmarks.machine import described, machine
from benchmarks.sidecar import Account, Sidecar, configuration, start
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from equipoise_api.policy import Capacity
from equipoise_cluster.vllm import VERSION, Vllm

CANCEL_AT = 0.95
"""Share of an answer's tokens at which the canceller leaves, at the latest."""
OPEN = 12
OUTPUT_TOKENS = 48
LOOK_SECONDS = 0.02


@dataclass
class Course:
    """How many steps the engine made, since when each of the canceller's requests is in it, and whether the run ends."""

    ending: bool = False
    """No new requests; those that are open come to their ends, so that all that the engine did is accounted for."""
    steps: float = 0.0
    dispatched: dict[str, float] = field(default_factory=dict)
    """Steps made before each request of the canceller was seen in the engine."""
    streams: int = 0
    """The finisher's streams that get tokens."""

    def due(self, request: str) -> bool:
        """Say whether a request has had its share of the steps."""
        since = self.dispatched.get(request)
        return since is not None and self.steps - since >= CANCEL_AT * OUTPUT_TOKENS


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
    connection = vllm.connection(timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    totals = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    prompt, generated = totals["vllm:prompt_tokens_total"], totals["vllm:generation_tokens_total"]
    return int(INPUT_PRICE * prompt + OUTPUT_PRICE * generated)


def work_at_rest(vllm: Vllm) -> int:
    """Return the same once it grows no more: an abort reaches the engine within 150 ms, on a busy machine later."""
    work = -1
    while work != (work := engine_work(vllm)):
        time.sleep(1.0)
    return work


async def finish_all(
    session: aiohttp.ClientSession, url: str, tenant: Tenant, course: Course, number: int
) -> None:
    """Stream one request after the other to its end. Every stream gets a token a step: together they count the steps."""
    rng = random.Random(f"{tenant.account.id} {number}")
    while not course.ending:
        began = False

        def heard(tokens: int) -> None:
            nonlocal began
            if not began:
                began = True
                course.streams += 1
            course.steps += tokens / course.streams

        await stream(session, url, tenant, rng, heard)
        course.streams -= began
        if tenant.errors:
            raise RuntimeError(tenant.errors[0])


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
    """Note when the canceller's requests go to the engine."""
    while True:
        before = course.steps
        for row in await asyncio.to_thread(sidecar.table, "requests"):
            if row["tenant"] == tenant.account.id and row["phase"] == "in-flight":
                course.dispatched.setdefault(row["request_id"], before)
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
    work = await asyncio.to_thread(work_at_rest, vllm)
    metrics = sidecar.metrics()
    return Outcome(
        seconds=time.monotonic() - began,
        finisher=finisher.service,
        canceller=work - before - finisher.service,
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
                f"keep {OPEN} requests of {OUTPUT_TOKENS} tokens open. The finisher streams; the canceller does not, and leaves "
                f"each request when the engine has made {CANCEL_AT:.0%} of its tokens. Service in weighted tokens: the finisher's by its chunks, "
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
