"""Fairness on one real vLLM: two tenants with a backlog, one of which sends ten times as much.

    .venv/bin/python -m benchmarks.fairness_vllm      writes benchmarks/results/fairness_vllm.{md,json}

Under VTC each run lasts until 2U is at most 5 % of the smaller one's service: U, the most undelivered cost of one tenant
in flight just after a dispatch, is what the sidecar reports; below that, chance decides. Then the ratio of services must
be within 5 % of the weights'. Under FCFS the same load runs as long as the first VTC run.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from benchmarks.backlog import Tenant, keep_open
from benchmarks.machine import described, machine
from benchmarks.sidecar import Account, Sidecar, configuration, start
from rich.console import Console

from equipoise_api.policy import AlgorithmType, Capacity
from equipoise_cluster.vllm import VERSION, Vllm

RESULTS = Path(__file__).parent / "results"
SEQUENCES = 8
"""`--max-num-seqs` of the engine and `capacity.maxInFlight` of the sidecar."""
KV_TOKENS = 2048
SETTLED_SHARE = 0.05
LONGEST_SECONDS = 900.0
"""For a machine ten times slower: a run ends as soon as it is settled."""
WARM_UP_SECONDS = 4.0


@dataclass(frozen=True)
class Scenario:
    """What runs: the steady tenant's and the aggressor's weights and open requests."""

    algorithm: AlgorithmType
    steady_weight: int = 1
    aggressor_weight: int = 1
    steady_open: int = 12
    aggressor_open: int = 120

    @property
    def weights(self) -> str:
        """The weights, for people."""
        return f"{self.steady_weight}:{self.aggressor_weight}"


@dataclass(frozen=True)
class Outcome:
    """What came of it. Services in weighted tokens over the measured time."""

    algorithm: str
    weights: str
    seconds: float
    steady: int
    aggressor: int
    ratio: float
    """Aggressor's service over the steady one's, divided by the weights' ratio: 1 is fair."""
    outstanding: float | None
    """U, as the sidecar reports it; None where the scheduler has no bound."""
    bound: float | None
    gap: float | None
    least_queued: int
    """Fewest requests that the steady tenant had waiting at any look."""
    tokens_per_second: float

    @property
    def uncertainty(self) -> float | None:
        """2U over the smaller service."""
        return None if self.outstanding is None else 2 * self.outstanding / min(self.steady, self.aggressor)


async def run(
    sidecar: Sidecar,
    scenario: Scenario,
    accounts: tuple[Account, Account],
    seconds: float | None = None,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Run one scenario: for `seconds`, or until U is small against what was served (at most LONGEST_SECONDS)."""
    steady = Tenant(accounts[0], scenario.steady_open)
    aggressor = Tenant(accounts[1], scenario.aggressor_open)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        loads = [group.create_task(keep_open(session, sidecar.url, each)) for each in (steady, aggressor)]
        await asyncio.sleep(WARM_UP_SECONDS)
        began, before = time.monotonic(), (steady.service, aggressor.service)
        generated = steady.generated + aggressor.generated
        least_queued = scenario.steady_open
        while True:
            await asyncio.sleep(1.0)
            metrics = await asyncio.to_thread(sidecar.metrics)
            waited = time.monotonic() - began
            queued = metrics["equipoise_queued_requests", steady.account.id]
            least_queued = min(least_queued, int(queued))
            outstanding = metrics.get(("equipoise_fairness_outstanding", ""))
            outcome = Outcome(
                algorithm=scenario.algorithm,
                weights=scenario.weights,
                seconds=waited,
                steady=steady.service - before[0],
                aggressor=aggressor.service - before[1],
                ratio=(aggressor.service - before[1])
                / scenario.aggressor_weight
                / max((steady.service - before[0]) / scenario.steady_weight, 1),
                outstanding=outstanding,
                bound=metrics.get(("equipoise_fairness_bound", "")),
                gap=metrics.get(("equipoise_fairness_gap", "")),
                least_queued=least_queued,
                tokens_per_second=(steady.generated + aggressor.generated - generated) / waited,
            )
            if int(waited) % 10 == 0:
                tell(f"{scenario.algorithm} {scenario.weights}: {outcome}")
            settled = outcome.uncertainty is not None and outcome.uncertainty <= SETTLED_SHARE
            if waited >= (seconds or LONGEST_SECONDS) or (seconds is None and settled):
                break
        for load in loads:
            load.cancel()
    return outcome


def engine(folder: Path) -> AbstractContextManager[Vllm]:
    """Start the engine that the scenarios share."""
    return Vllm.start(
        log=folder / "vllm.log",
        uds=folder / "vllm.sock",
        max_num_seqs=SEQUENCES,
        max_model_len=KV_TOKENS // 2,
        kv_tokens=KV_TOKENS,
    )


def play(
    vllm: Vllm,
    folder: Path,
    scenario: Scenario,
    seconds: float | None = None,
    *,
    in_flight: int = SEQUENCES,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Put a fresh sidecar before the engine and run one scenario with `in_flight` requests in the engine at a time."""
    accounts = (
        Account("team/steady", scenario.steady_weight),
        Account("team/aggressor", scenario.aggressor_weight),
    )
    config = configuration(list(accounts), scenario.algorithm, Capacity(max_in_flight=in_flight))
    with start(f"unix:{vllm.uds}", config, folder) as sidecar:
        return asyncio.run(run(sidecar, scenario, accounts, seconds, tell))


def report(outcomes: list[Outcome], facts: dict[str, str]) -> str:
    """Write the table in Markdown."""
    first = Scenario("VTC")
    lines = [
        "# Fairness on a real vLLM",
        "",
        (
            f"{described(facts)} vLLM {VERSION} on the CPU, {SEQUENCES} sequences, {KV_TOKENS:,} tokens of KV cache. "
            f"The steady tenant keeps {first.steady_open} requests open, the aggressor {first.aggressor_open}, each of "
            "16 output tokens. Services in weighted tokens (prompt + 2 x output), counted by the clients. U is the most "
            "undelivered cost of one tenant in flight just after a dispatch, as the sidecar reports it; the ratio is the "
            "aggressor's service over the steady one's, over the weights' (1 is fair)."
        ),
        "",
        "| scheduler | weights | seconds | steady | aggressor | ratio | U | 2U / smaller | gap / bound | tokens/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in outcomes:
        bounded = each.outstanding is not None and each.uncertainty is not None
        u = f"{each.outstanding:,.0f} | {each.uncertainty:.1%}" if bounded else "- | -"
        gap = f"{each.gap:,.0f} / {each.bound:,.0f}" if each.gap is not None and each.bound else "-"
        lines.append(
            f"| {each.algorithm} | {each.weights} | {each.seconds:.0f} | {each.steady:,} | {each.aggressor:,} "
            f"| {each.ratio:.3f} | {u} | {gap} | {each.tokens_per_second:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, facts = Console(stderr=True, highlight=False), machine("benchmarks.fairness_vllm")
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        with engine(folder) as vllm:
            vtc = (Scenario("VTC"), Scenario("VTC", aggressor_weight=3), Scenario("VTC", steady_weight=3))
            outcomes.extend(play(vllm, folder, each, tell=console.print) for each in vtc)
            outcomes.append(play(vllm, folder, Scenario("FCFS"), outcomes[0].seconds, tell=console.print))
    text = report(outcomes, facts)
    print(text)
    (arguments.out / "fairness_vllm.md").write_text(text)
    document = {"machine": facts, "outcomes": [asdict(each) for each in outcomes]}
    (arguments.out / "fairness_vllm.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
