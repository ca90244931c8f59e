"""What `equipoise simulate` does: find the workload and the contenders, run them, write the report."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equipoise_api.policy import Algorithm
from equipoise_simulator.contender import Contender
from equipoise_simulator.policy_files import read_contender
from equipoise_simulator.profiles import find_profile, profile_named
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.table import printable, text
from equipoise_simulator.traces import read_trace
from equipoise_simulator.workload import from_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from equipoise_simulator.engines import GateName
    from equipoise_simulator.result import Metric, Result
    from equipoise_simulator.traces import Columns
    from equipoise_simulator.workload import Workload

Format = Literal["table", "json", "html"]


def workload_of(
    *,
    trace: Path | None,
    columns: Columns,
    suite_name: str | None,
    split: int | None,
    load: float | None,
    seconds: float | None,
    seed: int,
) -> Workload:
    """Read or make the workload that the options name. ValueError says what is wrong with them."""
    if suite_name is not None and suite_name != "real" and trace is not None:
        raise ValueError(f"suite {suite_name} makes its own requests: leave out --trace, or run suite real")
    if suite_name is not None and split is not None:
        raise ValueError("--split deals out a trace that names no tenants: leave out --suite")
    if suite_name is None and load is not None:
        raise ValueError("--load is suite mixed_slo's: give --suite mixed_slo")
    if trace == Path("-"):
        trace = Path("/dev/stdin")
    read = None if trace is None else read_trace(trace, columns)
    if suite_name is not None:
        made = suite(suite_name, seed=seed, trace=read, load=load)
    elif read is not None:
        made = from_trace(read, split=split, seed=seed)
    else:
        raise ValueError("nothing to run: give --trace FILE or --suite NAME, for example --suite mixed_slo")
    return made if seconds is None else made.first(seconds)


def contenders_of(
    schedulers: Sequence[str], policies: Sequence[Path], tenants: Path | None
) -> list[Contender]:
    """Read the contenders; without any, the policy's default scheduler. ValueError for a name or file that cannot be taken."""
    if tenants is not None and not policies:
        raise ValueError("--tenants are a policy's: give --policy FILE too")
    found = [read_contender(policy, tenants) for policy in policies]
    labels = Counter(contender.label for contender in found)
    found = [
        replace(contender, label=f"{contender.label} of {policy}")
        if labels[contender.label] > 1
        else contender
        for contender, policy in zip(found, policies, strict=True)
    ]
    found += [Contender.parse(name) for name in schedulers]
    return found or [Contender.parse(Algorithm().type)]


def run(
    workload: Workload,
    contenders: Sequence[Contender],
    *,
    gate: GateName | None,
    profile: str | None,
    metric: Metric,
    seed: int,
    format_: Format,
) -> str:
    """Run all contenders and return the report."""
    engine = None if profile is None else find_profile(profile)
    results: list[Result] = []
    with _progress(len(contenders)) as tell:
        for number, contender in enumerate(contenders):
            results.append(
                simulate(
                    workload,
                    contender,
                    gate=gate,
                    profile=engine,
                    seed=seed,
                    progress=tell(number, contender.label),
                )
            )
    documents = [result.document(metric) for result in results]
    if format_ == "json":
        return json.dumps({"runs": documents}, indent=1, allow_nan=False) + "\n"
    if format_ == "html":
        from equipoise_simulator.page import page  # noqa: PLC0415 - the plots' library is slow to load

        return page(results, documents)
    return text(documents, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Find out before the run whether the report can be written. ValueError says why not."""
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file in it")
    if output.resolve() in {each.resolve() for each in inputs}:
        raise ValueError(f"--output {output} would overwrite what is read: name another file")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}: make it first")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise ValueError(f"--output {output} cannot be written: check its permissions")


def deliver(report: str, output: Path | None) -> None:
    """Write the report to the file, or to standard output, whose reader may have seen enough before its end."""
    if output is not None:
        output.write_text(report, encoding="utf-8")
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
    try:
        sys.stdout.write(report)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again


def idle_gate(workload: Workload, gate: GateName | None, profile: str | None) -> str | None:
    """Say that a gate was named which the engine at hand does not use."""
    engine = profile_named(workload.profile) if profile is None else find_profile(profile)
    if gate is None or gate == "peak" or engine.loop != "artifact":
        return None
    return (
        f"profile {engine.name} has the VTC artifact's own gate, by peak and true lengths: --gate {gate} changes nothing;"
        " --profile fast is the same engine with vLLM's loop, 1.24 times as fast"
    )


def strangers(workload: Workload, contender: Contender) -> str | None:
    """Say which of the load's tenants a policy does not know: a misspelt name would look like a scheduler's doing."""
    rules = contender.rules
    if rules is None or not contender.enforced:
        return None
    names = [name for name in workload.tenants if name not in rules.tenants]
    if not names:
        return None
    some = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
    fate = "share the default tenant" if rules.strangers == "Shared" else "are rejected"
    return f"{contender.label}: {len(names)} of {len(workload.tenants)} tenants are no Tenants of the policy and {fate}: {some}"


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int, str], Callable[[float], None] | None]]:
    """Show a bar a contender on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _number, _label: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for people
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task: Any = bar.add_task("", total=count)

        def tell(number: int, label: str) -> Callable[[float], None]:
            bar.update(task, description=label, completed=number)
            return lambda share: bar.update(task, completed=number + share)

        yield tell
