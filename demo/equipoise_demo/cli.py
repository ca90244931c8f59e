"""`equipoise demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineKind(StrEnum):
    """What the sidecars stand before."""

    STAND_IN = "stand-in"
    VLLM = "vllm"


def demo(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="CSV with arrival_s, client, input_tokens, output_tokens, every other request of a client interactive. "
            "Default: six tenants, one asking for three times as much, half of all requests interactive."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Replay all of the file's trace, not its first 150 s.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of traffic; of a file's trace the first.", min=1.0)
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            help="The engines' speed in the trace's time. Default: so that demand is 1.35 times what they serve.",
            min=0.001,
        ),
    ] = None,
    pace: Annotated[
        float | None,
        typer.Option(
            help="Seconds of the traffic in a real second. Default: 1; 6 with --trace; with vLLM what it can serve.",
            min=0.01,
        ),
    ] = None,
    engine: Annotated[
        EngineKind, typer.Option(help="What serves: a stand-in that keeps vLLM's time, or vLLM on the CPU.")
    ] = EngineKind.STAND_IN,
    use_existing: Annotated[
        bool, typer.Option("--use-existing", help="Use the cluster of KUBECONFIG.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up until Ctrl-C, and say what to try.")
    ] = False,
    report: Annotated[
        Path,
        typer.Option(help="Folder for tables (JSON, Markdown), plot (PNG) and the final objects (YAML)."),
    ] = Path("report"),
) -> None:
    """Show on a real control plane what fairness buys and what Equipoise adds: one traffic under FCFS, then VTC, then Equipoise.

    Three sidecars stand before three engines; the algorithm is a field of the live policy, changed while requests wait.
    Interactive requests, promised their first token within a second, come beside batch. Checked on the sidecars' metrics:
    no request is lost; VTC and Equipoise raise Jain's index of service by 0.05; Equipoise keeps the promise to a fifth more
    of the interactive requests than VTC, at 90 % of its throughput or more. With --trace or vLLM: that none is lost and both
    are fairer than FCFS. Ends with 0, or with 1 and a message when that failed or a part did; Ctrl-C removes everything too.
    """
    import signal
    import sys

    from equipoise_cluster import ClusterError
    from equipoise_demo.places import DemoError
    from equipoise_demo.run import Options, run
    from equipoise_simulator.traces import TraceError

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if full and seconds is not None:
        sys.exit("equipoise demo: --full and --seconds contradict each other")
    try:
        run(
            Options(
                trace=trace,
                full=full,
                seconds=seconds,
                speed=speed,
                pace=pace,
                vllm=engine is EngineKind.VLLM,
                existing=use_existing,
                keep=keep,
                folder=report,
            )
        )
    except (ClusterError, DemoError, TraceError) as error:
        sys.exit(f"equipoise demo: {error}")
    except OSError as error:
        sys.exit(f"equipoise demo: {error.strerror or error}: {error.filename or ''}")
    except KeyboardInterrupt:
        sys.exit("Stopped; everything that the demo started is gone.")
