"""One run of the demo, from its options to its report."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from equipoise_cluster import ConsoleProgress
from equipoise_demo.fleet import StandInProcess
from equipoise_demo.load import ENGINES, PACE, TRACE_PACE, engine_profile, stand_in_load
from equipoise_demo.places import POD, DemoError
from equipoise_demo.stack import Plan, Stack
from equipoise_demo.story import Story
from equipoise_demo.traffic import SECONDS, SLICE_SECONDS, own_traffic, traffic_of
from equipoise_simulator.standin import answer

if TYPE_CHECKING:
    from pathlib import Path

    from equipoise_demo.fleet import EngineProcess
    from equipoise_demo.traffic import Traffic


@dataclass(frozen=True)
class Options:
    """What the command was told."""

    trace: Path | None
    full: bool
    """All of a file's trace."""
    seconds: float | None
    """Length of the traffic; None for its own."""
    speed: float | None
    pace: float | None
    vllm: bool
    existing: bool
    keep: bool
    folder: Path


def run(options: Options) -> None:
    """Run the demo. DemoError, ClusterError, TraceError or OSError say why it could not."""
    console = Console()
    progress = ConsoleProgress(console)
    traffic = _traffic(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    progress.step(traffic.words)
    if options.vllm:
        _on_vllm(options, traffic, console, progress)
    else:
        _on_stand_ins(options, traffic, console, progress)


def _traffic(options: Options) -> Traffic:
    if options.trace is None:
        return own_traffic(options.seconds or SECONDS)
    return traffic_of(options.trace, None if options.full else options.seconds or SLICE_SECONDS)


def _on_stand_ins(options: Options, traffic: Traffic, console: Console, progress: ConsoleProgress) -> None:
    trace = traffic.trace
    load = stand_in_load(
        traffic, pace=options.pace or (PACE if traffic.own else TRACE_PACE), speed=options.speed
    )
    progress.step(
        f"Demand is {load.ratio:.2f} times what {ENGINES} engines at speed {load.speed:.2f} can serve"
    )
    profile, times = engine_profile(load)

    def launch(number: int, place: Path, address: str) -> EngineProcess:
        log = place / f"engine-{number}.log"
        return StandInProcess.launch(
            place / "engine.sock", log, profile, times, pod=POD.format(number), address=address
        )

    words = (
        f"{ENGINES} stand-ins, profile {profile.name}, KV pool {profile.kv_tokens} tokens each, "
        f"speed {load.speed:.2f} in the trace's time"
    )
    with Stack(Plan(ENGINES, trace.clients, launch, options.existing, gpus=True), progress) as stack:
        story = Story(stack, load, words, answer, 1.0, console, progress, strict=traffic.own)
        _finish(story, options)


def _on_vllm(options: Options, traffic: Traffic, console: Console, progress: ConsoleProgress) -> None:
    from equipoise_demo.real_vllm import VllmProcess, measured_load  # noqa: PLC0415 - the other engine needs none of it

    if options.speed is not None:
        raise DemoError(
            "--speed is for stand-in engines; vLLM is as fast as it is, and --pace sets how fast the trace comes"
        )
    started: list[VllmProcess] = []

    def launch(number: int, place: Path, _address: str) -> EngineProcess:
        started.append(VllmProcess(place, number, progress))
        return started[-1]

    words = f"{ENGINES} real vLLM on the CPU, a Llama of 26 M parameters with random weights"
    with Stack(Plan(ENGINES, traffic.trace.clients, launch, options.existing), progress) as stack:
        ratio = started[0].words_a_token()
        load = measured_load(stack, traffic, words_a_token=ratio, pace=options.pace, progress=progress)
        _finish(Story(stack, load, words, None, ratio, console, progress, strict=False), options)


def _finish(story: Story, options: Options) -> None:
    """Tell the story, say where the report is, and with `keep` wait for Ctrl-C. DemoError when what it is to show was not seen."""
    files, checked = story.tell(options.folder)
    story.progress.step("Report: " + ", ".join(str(file) for file in files))
    if options.keep:
        story.console.print(story.to_try(), markup=False, highlight=False, soft_wrap=True)
        story.progress.step("All of it stays up until Ctrl-C.")
        signal.pause()
    missing = [claim.text for claim in checked if claim.decides and not claim.held]
    if missing:
        doubts = f" Perhaps because: {'; '.join(story.notes)}." if story.notes else ""
        raise DemoError(f"not seen: {'; '.join(missing)}.{doubts}")
