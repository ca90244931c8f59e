"""FairServe: whom overload throttling turns away, and what is wasted, against a plain rate limit."""

from __future__ import annotations

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Load, Results, Run, named

LIMITS = "userLimit=50:applicationLimit=2000"
CONTENDERS = {
    "FCFS": "FCFS",
    "VTC": "VTC",
    "RPM:limit=50": "RPM(50)",
    f"FCFS:{LIMITS}": "FCFS with OIT",
    f"FairServe:{LIMITS}": "FairServe",
    f"Equipoise:{LIMITS}": "Equipoise with OIT",
}
SUITES = {
    "interactions_open": "open loop, as in the artifact",
    "interactions": "each call after the last one's end",
}
PROFILE = "large"


def _run(suite: str, contender: str) -> Run:
    return Run(Load(named, (suite,)), contender, profile=PROFILE)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    del inputs
    return [_run(suite, contender) for suite in SUITES for contender in CONTENDERS]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del inputs
    page = Page("FairServe")
    page.say(
        "LLM agents' interactions made from FairServe's published statistics (1,358 users, 23 applications, 5,251"
        " interactions, 72 s; lengths divided by 8), every user a tenant. OIT with 50 requests a minute a user and 2,000 an"
        " application, RPM with 50. Wasted: tokens of calls that broke off or whose interaction did. The artifact's own"
        " outputs: FairServe 84 refused and 0 wasted prompt tokens, RPM 1,757 and 31,315; the paper has queue delays 10.67"
        " to 93 times lower and 99.45 to 100 % of users served."
    )
    for suite, kind in SUITES.items():
        page.say(f"*{suite}*: {kind}.")
        rows = []
        for contender, name in CONTENDERS.items():
            run = results[_run(suite, contender)]
            requests, tenants = run["requests"], run["tenants"].values()
            served = sum(tenant["requests"]["finished"] > 0 for tenant in tenants)
            rows.append(
                (
                    name,
                    requests["arrived"],
                    sum(requests["rejected"].values()),
                    run["wasted_tokens"],
                    run["queue_delay_seconds"]["mean"],
                    run["queue_delay_seconds"]["p50"],
                    run["ttft_seconds"]["p99"],
                    run["tokens_per_second"],
                    f"{served / len(tenants):.2%}",
                )
            )
        page.table(
            (
                "scheduler",
                "calls",
                "refused",
                "tokens wasted",
                "queue delay mean, s",
                "p50, s",
                "TTFT p99, s",
                "tokens/s",
                "users served",
            ),
            rows,
        )
        fair = results[_run(suite, f"FairServe:{LIMITS}")]
        rate, vtc = results[_run(suite, "RPM:limit=50")], results[_run(suite, "VTC")]
        refused = [sum(run["requests"]["rejected"].values()) for run in (fair, rate)]
        page.claim(
            f"{suite}: FairServe refuses far fewer than RPM and wastes nothing",
            f"{refused[0]:,} against {refused[1]:,} refused, {fair['wasted_tokens']:,} against {rate['wasted_tokens']:,} wasted",
            holds=5 * refused[0] <= refused[1] and fair["wasted_tokens"] == 0 < rate["wasted_tokens"],
        )
        delays = [run["queue_delay_seconds"]["p50"] for run in (fair, vtc, rate)]
        page.claim(
            f"{suite}: the median queue delay is at least 10 times lower than VTC's and RPM's",
            f"{delays[0]:.2f} s against {delays[1]:.2f} and {delays[2]:.2f} s",
            holds=10 * delays[0] <= min(delays[1:]),
        )
    return page
