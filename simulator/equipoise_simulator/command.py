"""What `equipoise simulate` does: find the workload and the contenders, run them, write the report."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equipoise_api.policy import Algorithm
from equipoise_simulator.contender import Contender
from equipoise_simulator.policy_files import read_contender
from equipoise_simulator.profiles import find_profile
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.table import text
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
    read = None if trace is None else read_trace(trace, columns)
    if suite_name is not None:
        made = suite(suite_name, seed=seed, trace=read, load=load)
    elif read is not None:
        made = from_trace(read, split=split, seed=seed)
    else:
        raise ValueError("nothing to run: give --trace FILE or --suite NAME")
    return made if seconds is None else made.first(seconds)


def contenders_of(
    schedulers: Sequence[str], policies: Sequence[Path], tenants: Path | None
) -> list[Contender]:
    """Read the contenders; without any, the policy's default scheduler. ValueError for a name or file that cannot be taken."""
    if tenants is not None and not policies:
        raise ValueError("--tenants are a policy's: give --policy FILE too")
    found = [read_contender(policy, tenants) for policy in policies]
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
    return text(documents)


def strangers(workload: Workload, contender: Contender) -> str | None:
    """Say which of the load's tenants a policy does not know: a misspelt name would look like a scheduler's doing."""
    rules = contender.rules
    if rules is None or not contender.enforced:
        return None
    names = [name for name in workload.tenants if name not in rules.tenants]
    if not names:
        return None
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
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
