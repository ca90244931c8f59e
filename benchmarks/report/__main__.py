"""Make the report: `make report`, or `python -m benchmarks.report`. About ten minutes on two cores.

Writes docs/report/README.md and report.json; ends with 1 when a claim does not hold that is not known not to.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.machine import described, machine
from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Run, execute
from benchmarks.traces import ARENA, AZURE_CODE, AZURE_CONVERSATION, trace_path
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "vtc",
    "fairserve",
    "equinox",
    "exfairs",
    "equipoise",
    "prediction",
    "ablations",
    "gaming",
    "simulator",
)


def head(pages: list[Page], facts: dict[str, str], seconds: float, runs: int) -> list[str]:
    """Write what stands before the sections."""
    claims = [(page, claim) for page in pages for claim in page.claims]
    held = sum(claim.holds for _, claim in claims)
    lines = [
        "# What the schedulers do, measured",
        "",
        (
            f"{runs} simulations of the sidecar's own schedulers, gate and predictors in {seconds:.0f} s: {described(facts)}"
            " The engine is a model of vLLM's continuous batching; how well it predicts a real one is in"
            " [closed loop](../../benchmarks/results/closed_loop.md). Read ratios, not seconds."
        ),
        "",
        f"{held} of {len(claims)} claims hold.",
        "",
    ]
    missed = [(page, claim) for page, claim in claims if not claim.holds]
    if missed:
        lines += ["What does not hold, and why, is said in each section:", ""]
        lines += [f"- {page.title}: {claim.text} ({claim.found})" for page, claim in missed]
        lines.append("")
    return lines


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "report")
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="make only this section, and print it"
    )
    arguments = parser.parse_args()
    inputs = Inputs(
        arena=str(trace_path(ARENA)),
        azure_conversation=str(trace_path(AZURE_CONVERSATION)),
        azure_code=str(trace_path(AZURE_CODE)),
    )
    sections = [import_module(f"benchmarks.report.{name}") for name in arguments.only or SECTIONS]
    facts, began = machine("benchmarks.report"), time.perf_counter()
    wanted = [run for section in sections for run in section.runs(inputs)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("simulating", total=len(set(wanted)))

        def tell(done: int, _: int, run: Run) -> None:
            progress.update(task, completed=done, description=run.contender)

        results = execute(wanted, tell)
    pages = [section.page(inputs, results) for section in sections]
    text = "\n".join(
        [*head(pages, facts, time.perf_counter() - began, len(results)), *(p.markdown() for p in pages)]
    )
    if arguments.only:
        print(text)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "README.md").write_text(text)
    document = {
        "machine": facts,
        "claims": [
            {"section": page.title, "claim": claim.text, "found": claim.found, "holds": claim.holds}
            for page in pages
            for claim in page.claims
        ],
        "runs": [
            {"contender": run.contender, "ablated": run.ablation is not None, **_without_tenants(result)}
            for run, result in results.items()
        ],
    }
    (arguments.out / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {arguments.out / 'README.md'} and report.json", file=sys.stderr)


def _without_tenants(document: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in document.items() if key != "tenants"}


if __name__ == "__main__":
    main()
