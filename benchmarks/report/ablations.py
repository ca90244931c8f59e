"""What each part is there for: taken away, it must hurt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report import fairserve
from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Load, Results, Run, named
from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight
from equipoise_scheduling.request import Outcome, Usage
from equipoise_simulator.contender import Contender
from equipoise_simulator.workload import Call, Workload

IDLE_SECONDS, SECONDS = 300.0, 600.0


class Unsettled(Contender):
    """A contender whose charges stand as they were made at dispatch."""

    @override
    def scheduler(self, workload: Workload, seed: int) -> TenantScheduler:
        made = super().scheduler(workload, seed)
        made.__class__ = _unsettled(type(made))
        return made


def _unsettled(kind: type[TenantScheduler]) -> Any:
    class Stubborn(kind):  # type: ignore[misc, valid-type]
        def _recounted(self, flight: Flight) -> None:
            expected = flight.charged
            flight.charged = flight.cost(flight.request.prompt_tokens, 0, flight.request.predicted_output)
            super()._recounted(flight)
            flight.charged = expected

        def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
            del usage
            super()._settled(
                flight, Usage(flight.prompt, flight.request.predicted_output, exact=False), outcome, now
            )

    return Stubborn


def unsettled(contender: Contender) -> Contender:
    """Take settling away."""
    return Unsettled(**{name: getattr(contender, name) for name in contender.__dataclass_fields__})


def comeback() -> Workload:
    """One tenant is always backlogged, the other comes after five minutes, just as hungry."""
    calls = []
    for number in range(int(SECONDS * 3)):
        calls.append(_call(f"a{number}", "always", number / 3))
        if number / 3 >= IDLE_SECONDS:
            calls.append(_call(f"b{number}", "late", number / 3))
    calls.sort(key=lambda call: call.arrival)
    return Workload(name="comeback", calls=tuple(calls), seconds=SECONDS, profile="papers")


def misjudged() -> Workload:
    """Two hungry tenants whose answers are a sixteenth and all of what each one's past made likely, in turns."""
    calls = []
    for number in range(int(SECONDS * 2)):
        at = number / 2
        phase = int(at // 60) % 2
        calls.append(_call(f"a{number}", "swinging", at, output=32 if phase else 512))
        calls.append(_call(f"b{number}", "steady", at, output=256))
    return Workload(name="misjudged", calls=tuple(calls), seconds=SECONDS, profile="papers")


def _call(name: str, tenant: str, arrival: float, output: int = 256) -> Call:
    return Call(id=name, tenant=tenant, arrival=arrival, prompt_tokens=256, output_tokens=output)


@dataclass(frozen=True)
class Ablation:
    """With and without, on a load, by a measure of which less is better."""

    what: str
    measure: str
    part: str | None
    whole: Run
    without: Run


ABLATIONS = (
    Ablation(
        "lift (VTC, LCF)",
        "service_difference",
        "mean",
        Run(Load(comeback), "VTC"),
        Run(Load(comeback), "LCF"),
    ),
    Ablation(
        "prediction (VTC)",
        "accumulated_difference_max",
        None,
        Run(Load(named, ("overload",)), "VTC:mixture"),
        Run(Load(named, ("overload",)), "VTC:none"),
    ),
    Ablation(
        "settling (VTC)",
        "accumulated_difference_max",
        None,
        Run(Load(misjudged), "VTC"),
        Run(Load(misjudged), "VTC", ablation=unsettled),
    ),
    Ablation(
        "settling (Equipoise)",
        "accumulated_difference_max",
        None,
        Run(Load(misjudged), "Equipoise"),
        Run(Load(misjudged), "Equipoise", ablation=unsettled),
    ),
    Ablation(
        "band (Equipoise)",
        "slo_missed",
        None,
        Run(Load(named, ("mixed_slo",)), "Equipoise"),
        Run(Load(named, ("mixed_slo",)), "Equipoise:band=0:ordering=FIFO"),
    ),
    Ablation(
        "the choice between tenants (Equipoise, deadlines within them only)",
        "slo_missed",
        None,
        Run(Load(named, ("mixed_slo",)), "Equipoise"),
        Run(Load(named, ("mixed_slo",)), "Equipoise:band=0"),
    ),
    Ablation(
        "overload throttling (FairServe)",
        "queue_delay_seconds",
        "mean",
        Run(Load(fairserve.closed), fairserve.FAIRSERVE, profile=fairserve.PROFILE),
        Run(Load(fairserve.closed), "FairServe", profile=fairserve.PROFILE),
    ),
)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    del inputs
    return [run for ablation in ABLATIONS for run in (ablation.whole, ablation.without)]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del inputs
    page = Page("Ablations")
    page.say(
        "Each part taken away on a load that needs it. *comeback*: a tenant joins a backlogged one after five minutes."
        " *misjudged*: one tenant's answers swing between 32 and 512 tokens each minute."
    )
    rows = []
    for each in ABLATIONS:
        values = []
        for run in (each.whole, each.without):
            document = results[replace(run)]
            if each.measure == "slo_missed":
                values.append(1 - document["slo_attainment"])
            else:
                value = document[each.measure]
                values.append(value if each.part is None else value[each.part])
        ratio = values[1] / values[0] if values[0] else float("inf")
        measure = f"{each.measure.replace('_', ' ')}{', ' + each.part if each.part else ''}"
        rows.append((each.what, results[each.whole]["workload"], measure, values[0], values[1], ratio))
        page.claim(f"without {each.what} it is worse", f"{ratio:.2f} times", holds=ratio > 1.05)
    page.table(("taken away", "load", "measure", "with", "without", "ratio"), rows)
    return page
