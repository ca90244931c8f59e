"""What a tenant gains that does not play fair: its service with the trick over its service without."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Document, Load, Results, Run

from equipoise_simulator.workload import Call, Workload

SECONDS = 300.0
SCHEDULERS = (
    "FCFS",
    "RoundRobin",
    "RPM:limit=60",
    "DRR",
    "LCF",
    "VTC",
    "FairServe",
    "Equinox",
    "ExFairS",
    "Equipoise",
)
GAMER = "gamer"
HONEST = ("honest-0", "honest-1", "honest-2")
RATE = 2.5
"""Requests a second of each tenant: the four ask for about 1.7 times what the engine can serve."""


def _plain(tenant: str, source: random.Random) -> Iterator[Call]:
    now, number = source.expovariate(RATE), 0
    while now < SECONDS:
        yield Call(
            id=f"{tenant}-{number}",
            tenant=tenant,
            arrival=now,
            prompt_tokens=source.randint(64, 256),
            output_tokens=source.randint(64, 256),
            max_tokens=512,
            user="alice",
            ttft_budget=20.0,
        )
        now, number = now + source.expovariate(RATE), number + 1


def _users(call: Call) -> list[Call]:
    return [replace(call, user=call.id)]


def _split(call: Call) -> list[Call]:
    """Ask for the same output in four requests, each with a quarter of the prompt."""
    return [
        replace(
            call,
            id=f"{call.id}.{part}",
            prompt_tokens=max(1, call.prompt_tokens // 4),
            output_tokens=max(1, call.output_tokens // 4),
        )
        for part in range(4)
    ]


def _urgent(call: Call) -> list[Call]:
    return [replace(call, ttft_budget=0.1)]


def _leave(call: Call) -> list[Call]:
    return [replace(call, leaves_after=max(1, int(0.95 * call.output_tokens)))]


def _overstate(call: Call) -> list[Call]:
    return [replace(call, max_tokens=3_000)]


def _understate(call: Call) -> list[Call]:
    """Name as limit exactly what is needed."""
    return [replace(call, max_tokens=call.output_tokens)]


def _merge(call: Call) -> list[Call]:
    """Ask for four answers' worth in every fourth request."""
    if int(call.id.rpartition("-")[2]) % 4:
        return []
    return [
        replace(
            call, prompt_tokens=4 * call.prompt_tokens, output_tokens=4 * call.output_tokens, max_tokens=1_024
        )
    ]


def _many(call: Call) -> list[Call]:
    """Send everything four times."""
    return [replace(call, id=f"{call.id}.{part}") for part in range(4)]


def _save(call: Call) -> list[Call]:
    """Send nothing in the first half."""
    return [call] if call.arrival >= SECONDS / 2 else []


def _interactions(call: Call) -> list[Call]:
    """Claim that every request is the middle of an interaction."""
    return [replace(call, interaction="always-the-same", call_index=2)]


def _nothing(call: Call) -> list[Call]:
    return [call]


Trick = Callable[[Call], list[Call]]
TRICKS: dict[str, tuple[Trick, float]] = {
    "sends four times as much": (_many, 0.0),
    "invents end users": (_users, 0.0),
    "splits requests in four": (_split, 0.0),
    "merges four requests": (_merge, 0.0),
    "declares SLOs of 0.1 s": (_urgent, 0.0),
    "leaves at 95 % of each answer": (_leave, 0.0),
    "overstates max_tokens": (_overstate, 0.0),
    "understates max_tokens": (_understate, 0.0),
    "claims interactions": (_interactions, 0.0),
    "saves up while idle": (_save, SECONDS / 2),
}
"""Trick, and from when on service counts."""


def contest(trick: Trick) -> Workload:
    """Four hungry tenants, one of which uses a trick."""
    calls: list[Call] = []
    for place, tenant in enumerate((GAMER, *HONEST)):
        for call in _plain(tenant, random.Random(place)):
            calls += trick(call) if tenant == GAMER else [call]
    calls.sort(key=lambda call: call.arrival)
    return Workload(name="contest", calls=tuple(calls), seconds=SECONDS, profile="fast")


def _pair(trick: Trick, since: float, scheduler: str) -> tuple[Run, Run]:
    return (
        Run(Load(contest, (trick,)), scheduler, since=since),
        Run(Load(contest, (_nothing,)), scheduler, since=since),
    )


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    del inputs
    return [run for rule in TRICKS.values() for scheduler in SCHEDULERS for run in _pair(*rule, scheduler)]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del inputs
    page = Page("Gaming")
    page.say(
        "Four tenants with equal weights that together ask for about 1.7 times what the engine can serve; one of them uses a"
        " trick. Its service over the mean of the others', with the trick against without, while requests arrive"
        f" ({SECONDS:.0f} s; for the one that saves up only the second half, in which it sends again). Leaving late from"
        " answers that are not streamed is measured on a real vLLM in [cancelling](../../benchmarks/results/cancelling.md)."
    )
    rows = []
    over: list[str] = []
    most = 0.0
    for name, rule in TRICKS.items():
        row: list[str] = [name]
        for scheduler in SCHEDULERS:
            pair = [results[run] for run in _pair(*rule, scheduler)]
            with_it, without = (_advantage(run) for run in pair)
            row.append(f"{with_it / without - 1:+.1%}" if without else "-")
            if scheduler == "Equipoise":
                limit, ahead = pair[0]["bound"]["limit"], _ahead(pair[0])
                most = max(most, ahead / limit)
                if ahead > limit:
                    over.append(f"{name}: {ahead:,.0f} of {limit:,.0f}")
        rows.append(row)
    page.table(("the tenant", *SCHEDULERS), rows)
    page.claim(
        "under Equipoise no trick brings a tenant further ahead of another than the published bound",
        f"{most:.0%} of it at most" if not over else "; ".join(over),
        holds=not over,
    )
    page.say(
        "RoundRobin and FairServe count requests: who merges gains under the one, who splits loses under both. LCF pays for idleness. FCFS and"
        " ExFairS pay for sending more."
    )
    return page


def _services(run: Document) -> tuple[float, list[float]]:
    tenants = run["tenants"]
    return tenants[GAMER]["service_since"], [tenants[name]["service_since"] for name in HONEST]


def _advantage(run: Document) -> float:
    mine, others = _services(run)
    return mine / (sum(others) / len(others))


def _ahead(run: Document) -> float:
    mine, others = _services(run)
    return mine - min(others)
