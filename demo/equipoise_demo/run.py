"""One run of the demo, from its options to its report."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from rich.console import Console

from equipoise_cluster import ConsoleProgress
from equipoise_demo.fleet import StandInProcess
from equipoise_demo.load import ENGINES, PACE, engine_profile, load_trace, stand_in_load
from equipoise_demo.stack import Plan, Stack
from equipoise_demo.story import Story
from equipoise_simulator.standin import answer

if TYPE_CHECKING:
    from pathlib import Path

    from equipoise_demo.fleet import EngineProcess


def run(
    *,
    trace: Path | None,
    seconds: float | None,
    speed: float | None,
    pace: float | None,
    vllm: bool,
    existing: bool,
    keep: bool,
    folder: Path,
) -> None:
    """Run the demo. DemoError, ClusterError, TraceError or OSError say why it could not."""
    console = Console()
    progress = ConsoleProgress(console)
    replayed = load_trace(trace, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    if vllm:
        from equipoise_demo.vllm import run_on_vllm  # noqa: PLC0415 - installs vLLM on first use

        run_on_vllm(replayed, speed=speed, pace=pace, existing=existing, keep=keep, folder=folder)
        return
    load = stand_in_load(replayed, pace=pace or PACE, speed=speed)
    progress.step(
        f"{replayed.name}: {len(replayed.rows)} requests of {len(replayed.clients)} tenants; demand is {load.ratio:.2f} times what "
        f"{ENGINES} engines can serve"
    )
    profile, times = engine_profile(load)

    def launch(number: int, place: Path) -> EngineProcess:
        return StandInProcess.launch(place / "engine.sock", place / f"engine-{number}.log", profile, times)

    plan = Plan(ENGINES, replayed.clients, launch, existing)
    words = f"{ENGINES} stand-ins, profile {profile.name}, KV pool {profile.kv_tokens} tokens, speed {load.speed:.2f} in the trace's time"
    with Stack(plan, progress) as stack:
        story = Story(stack, load, words, answer, 1.0, console, progress)
        finish(story, keep=keep, folder=folder)


def finish(story: Story, *, keep: bool, folder: Path) -> None:
    """Tell the story, say where the report is, and with `keep` wait for Ctrl-C."""
    files = story.tell(folder)
    story.progress.step("Report: " + ", ".join(str(file) for file in files))
    if keep:
        story.console.print(story.to_try(), markup=False, highlight=False, soft_wrap=True)
        story.progress.step("All of it stays up until Ctrl-C.")
        signal.pause()
    story.progress.step("Removing everything that the demo started")
