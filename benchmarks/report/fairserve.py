"""FairServe: whom overload throttling turns away, and what is wasted, against a plain rate limit."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Document, Load, Results, Run

from equipoise_simulator.interactions import interactions
from equipoise_simulator.profiles import profile_named
from equipoise_simulator.workload import Workload

LIMITS = "userLimit=50:applicationLimit=2000"
FAIRSERVE = f"FairServe:{LIMITS}"
AS_MANY = "RPM:limit=1520"
"""Refuses about as many calls as FairServe in the open loop."""
CONTENDERS = {
    "FCFS": "FCFS",
    "VTC": "VTC",
    "RPM:limit=50": "RPM(50)",
    AS_MANY: "RPM(1,520)",
    f"FCFS:{LIMITS}": "FCFS with OIT",
    "FairServe": "FairServe without OIT",
    FAIRSERVE: "FairServe",
    f"Equipoise:{LIMITS}": "Equipoise with OIT",
}
PROFILE = replace(profile_named("large").scaled(5), name="large x 5")
"""An engine that the load overfills for seconds, as the paper's did: on one that is never idle again every order waits as long."""


def _everybody(*, closed_loop: bool) -> Workload:
    return interactions(0, closed_loop=closed_loop)


def closed() -> Workload:
    """Send each call after the last one's end, as agents do; every user is a tenant."""
    return _everybody(closed_loop=True)


def opened() -> Workload:
    """Send calls at times of their own, as in the artifact; every user is a tenant."""
    return _everybody(closed_loop=False)


def together() -> Workload:
    """Make everybody a user of one tenant, each call after the last one's end."""
    made = closed()
    return replace(made, name="one tenant", calls=tuple(replace(call, tenant="all") for call in made.calls))


LOADS = {
    "open loop": (opened, "calls at times of their own, as in the artifact; every user is a tenant"),
    "closed loop": (
        closed,
        "each call after the last one's end, as agents send them; every user is a tenant",
    ),
    "one tenant": (
        together,
        "the closed loop, with everybody a user of one tenant (a tenant's own rate limit then says nothing)",
    ),
}


def _run(load: str, contender: str) -> Run:
    return Run(Load(LOADS[load][0]), contender, profile=PROFILE)


def _contenders(load: str) -> list[str]:
    left_out = {"open loop": (), "closed loop": (AS_MANY,), "one tenant": (AS_MANY, "RPM:limit=50")}[load]
    return [name for name in CONTENDERS if name not in left_out]


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    del inputs
    return [_run(load, contender) for load in LOADS for contender in _contenders(load)]


def _refused(run: Document) -> int:
    return sum(run["requests"]["rejected"].values())


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del inputs
    page = Page("FairServe")
    page.say(
        "LLM agents' interactions made from FairServe's published statistics (1,358 users, 23 applications, 5,251"
        " interactions, 72 s; lengths divided by 8). OIT with 50 requests a minute a user and 2,000 an application, RPM with"
        " 50. Wasted: prompt tokens of calls that broke off or whose interaction did. The artifact's own outputs: FairServe 84"
        " refused and 0 wasted prompt tokens, RPM 1,757 and 31,315; the paper has queue delays 10.67 to 93 times lower and"
        " 99.45 to 100 % of users served."
    )
    for load, (_, kind) in LOADS.items():
        page.say(f"*{load}*: {kind}.")
        rows = []
        for contender in _contenders(load):
            run = results[_run(load, contender)]
            rows.append(
                (
                    CONTENDERS[contender],
                    run["requests"]["arrived"],
                    _refused(run),
                    run["wasted_prompt_tokens"],
                    run["queue_delay_seconds"]["mean"],
                    run["queue_delay_seconds"]["p50"],
                    run["ttft_seconds"]["p99"],
                    run["tokens_per_second"],
                    _served(run) if load != "one tenant" else "-",
                )
            )
        page.table(
            (
                "scheduler",
                "calls",
                "refused",
                "prompt tokens wasted",
                "queue delay mean, s",
                "p50, s",
                "TTFT p99, s",
                "tokens/s",
                "users served",
            ),
            rows,
        )
        fair, vtc = results[_run(load, FAIRSERVE)], results[_run(load, "VTC")]
        if load != "one tenant":
            rate = results[_run(load, "RPM:limit=50")]
            wasted = fair["wasted_prompt_tokens"], rate["wasted_prompt_tokens"]
            page.claim(
                f"{load}: FairServe refuses far fewer than RPM and wastes nothing",
                f"{_refused(fair):,} against {_refused(rate):,} refused, {wasted[0]:,} against {wasted[1]:,} wasted",
                holds=5 * _refused(fair) <= _refused(rate) and wasted[0] == 0 < wasted[1],
            )
        delays = [run["queue_delay_seconds"]["mean"] for run in (fair, vtc)]
        page.claim(
            f"{load}: the mean queue delay is at least 10 times lower than VTC's",
            f"{delays[0]:.3f} s against {delays[1]:.3f} s, {delays[1] / delays[0]:.0f} times",
            holds=10 * delays[0] <= delays[1],
        )
    strict, lenient, fair = (
        results[_run("open loop", name)] for name in ("RPM:limit=50", AS_MANY, FAIRSERVE)
    )
    delays = [run["queue_delay_seconds"]["mean"] for run in (fair, lenient)]
    page.claim(
        "open loop: the mean queue delay is at least 10 times lower than that of an RPM that refuses as many",
        f"{delays[0]:.3f} s and {_refused(fair):,} refused against {delays[1]:.3f} s and {_refused(lenient):,}",
        holds=10 * delays[0] <= delays[1] and _refused(lenient) >= 0.9 * _refused(fair),
    )
    page.say(
        "Against RPM(50) the delay is not lower: in the open loop it sheds"
        f" {_refused(strict) / strict['requests']['arrived']:.0%} of the calls, in the middle of interactions too, and what is"
        f" left waits less. An RPM that sheds {_refused(lenient) / lenient['requests']['arrived']:.0%}, as FairServe does"
        f" ({_refused(fair) / fair['requests']['arrived']:.0%}), leaves {delays[1] / delays[0]:.0f} times its delay: whom it"
        " refuses does not depend on whether the engine is full."
    )
    return page


def _served(run: Document) -> str:
    tenants = run["tenants"].values()
    return f"{sum(tenant['requests']['finished'] > 0 for tenant in tenants) / len(tenants):.2%}"
