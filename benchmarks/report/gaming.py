"""What a tenant gains that does not play fair: its service with the trick over its service without."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Load, Results, Run

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
RATE = 1.2
"""Requests a second of each tenant; the four ask for about 1.6 times what the engine can serve."""


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


def _save(call: Call) -> list[Call]:
    """Send nothing for half the time, and everything then."""
    return [replace(call, arrival=SECONDS / 2 + call.arrival / 2)]


def _idle(call: Call) -> list[Call]:
    """Without the trick: send nothing in the first half."""
    return [call] if call.arrival >= SECONDS / 2 else []


def _interactions(call: Call) -> list[Call]:
    """Claim that every request is the middle of an interaction."""
    return [replace(call, interaction="always-the-same", call_index=2)]


def _nothing(call: Call) -> list[Call]:
    return [call]


Trick = Callable[[Call], list[Call]]
TRICKS: dict[str, tuple[Trick, Trick, float]] = {
    "invents end users": (_users, _nothing, 0.0),
    "splits requests in four": (_split, _nothing, 0.0),
    "declares SLOs of 0.1 s": (_urgent, _nothing, 0.0),
    "leaves at 95 % of each answer": (_leave, _nothing, 0.0),
    "overstates max_tokens": (_overstate, _nothing, 0.0),
    "understates max_tokens": (_understate, _nothing, 0.0),
    "claims interactions": (_interactions, _nothing, 0.0),
    "saves up while idle": (_save, _idle, SECONDS / 2),
}
"""Trick, its honest counterpart, and from when on service counts."""


def contest(trick: Trick) -> Workload:
    """Four hungry tenants, one of which uses a trick."""
    calls: list[Call] = []
    for place, tenant in enumerate((GAMER, *HONEST)):
        for call in _plain(tenant, random.Random(place)):
            calls += trick(call) if tenant == GAMER else [call]
    calls.sort(key=lambda call: call.arrival)
    return Workload(name="contest", calls=tuple(calls), seconds=SECONDS, profile="fast")


def _pair(trick: Trick, honest: Trick, scheduler: str) -> tuple[Run, Run]:
    return Run(Load(contest, (trick,)), scheduler), Run(Load(contest, (honest,)), scheduler)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    del inputs
    return [
        run
        for trick, honest, _ in TRICKS.values()
        for scheduler in SCHEDULERS
        for run in _pair(trick, honest, scheduler)
    ]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del inputs
    page = Page("Gaming")
    page.say(
        "Four tenants, each hungry; one of them uses a trick. Its service with the trick over its service without, in the"
        f" {SECONDS:.0f} s in which requests arrive, in percent of the latter. Leaving late from answers that are not"
        " streamed is measured on a real vLLM in [cancelling](../../benchmarks/results/cancelling.md)."
    )
    rows = []
    over: list[str] = []
    for name, (trick, honest, _) in TRICKS.items():
        row: list[str] = [name]
        for scheduler in SCHEDULERS:
            with_it, without = (
                results[run]["tenants"][GAMER]["service"] for run in _pair(trick, honest, scheduler)
            )
            row.append(f"{with_it / without - 1:+.1%}" if without else "-")
            if scheduler == "Equipoise":
                bound = results[_pair(trick, honest, scheduler)[0]]["bound"]
                if with_it - without > bound["limit"]:
                    over.append(f"{name}: {with_it - without:,.0f} of {bound['limit']:,.0f}")
        rows.append(row)
    page.table(("the tenant", *SCHEDULERS), rows)
    page.claim(
        "under Equipoise no trick gains more service than the published bound",
        "none does" if not over else "; ".join(over),
        holds=not over,
    )
    return page
