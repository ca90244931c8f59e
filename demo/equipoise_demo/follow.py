"""Shows how far a replay is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from equipoise_cluster import ConsoleProgress
    from equipoise_demo.replay import Following


@contextmanager
def following(
    title: str, seconds: float, console: Console, lines: ConsoleProgress
) -> Iterator[Callable[[Following], None]]:
    """Yield what a replay calls with its progress; `seconds` is the trace's length."""

    def words(state: Following) -> str:
        failed = f", {state.failed} failed" if state.failed else ""
        sent = f"{state.seconds:.0f} of {seconds:.0f} s sent" if state.seconds < seconds else "all sent"
        return f"{sent}, {state.sent - state.ended} under way{failed}"

    lines.step(f"{title} …")  # also ends what is live on the terminal: there can be only one
    if not console.is_terminal:
        yield lambda state: lines.update(
            f"{title}: {state.ended} of {state.total} requests ended, {words(state)}"
        )
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(title, total=None, words="")
        yield lambda state: bar.update(task, total=state.total, completed=state.ended, words=words(state))
