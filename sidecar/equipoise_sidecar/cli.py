"""`equipoise sidecar run` and `equipoise sidecar drain`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise_api.names import ADMIN_PORT, DATA_PORT, HEALTH_PORT


def _flag(about: str, variable: str) -> Any:
    return typer.Option(help=f"{about} [{variable}]", show_default=False)


def run(
    *,
    engine: Annotated[
        str | None,
        _flag(
            "The engine: unix:/run/equipoise/engine.sock or http://127.0.0.1:8001. Needed.",
            "EQUIPOISE_ENGINE",
        ),
    ] = None,
    host: Annotated[
        str | None, _flag("Address that the ports are opened on; 0.0.0.0 if left out.", "EQUIPOISE_HOST")
    ] = None,
    data_port: Annotated[
        int | None, _flag(f"Where clients connect; {DATA_PORT} if left out.", "EQUIPOISE_DATA_PORT")
    ] = None,
    admin_port: Annotated[
        int | None,
        _flag(
            f"Where the operator connects, with mutual TLS; {ADMIN_PORT} if left out. Not opened with --config-file.",
            "EQUIPOISE_ADMIN_PORT",
        ),
    ] = None,
    health_port: Annotated[
        int | None,
        _flag(f"Probes, metrics and debug tables; {HEALTH_PORT} if left out.", "EQUIPOISE_HEALTH_PORT"),
    ] = None,
    state_dir: Annotated[
        Path | None,
        _flag(
            "Keeps configuration and counters over a restart and holds the control socket; nothing is kept if left out.",
            "EQUIPOISE_STATE_DIR",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        _flag(
            "A SidecarConfig, JSON or YAML, in place of an operator; SIGHUP reads it again.",
            "EQUIPOISE_CONFIG_FILE",
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        _flag(
            "Longest time for queue and streams to end after SIGTERM; 60 if left out.",
            "EQUIPOISE_DRAIN_SECONDS",
        ),
    ] = None,
) -> int:
    """Serve in front of one engine until SIGTERM; return the exit status.

    Each flag overrides the environment variable in brackets.
    """
    import uvloop

    from equipoise_sidecar.control import ControlError
    from equipoise_sidecar.listener import ListenError
    from equipoise_sidecar.logs import configure_logs
    from equipoise_sidecar.open_files import raise_limit
    from equipoise_sidecar.server import Sidecar
    from equipoise_sidecar.settings import Settings, SettingsError

    async def serve(settings: Settings) -> int:
        return await Sidecar(settings).run()

    configure_logs()
    try:
        settings = Settings.load(
            os.environ,
            engine=engine,
            host=host,
            data_port=data_port,
            admin_port=admin_port,
            health_port=health_port,
            state_dir=state_dir,
            config_file=config_file,
            drain_seconds=drain_seconds,
        )
        raise_limit()
        return uvloop.run(serve(settings))
    except (SettingsError, ListenError, ControlError) as error:
        print(f"equipoise sidecar: {error}", file=sys.stderr)
        return 2


def drain(
    *,
    state_dir: Annotated[
        Path | None, _flag("Where the sidecar's control socket is. Needed.", "EQUIPOISE_STATE_DIR")
    ] = None,
    drained_file: Annotated[
        Path | None, _flag("The file that the engine's preStop hook waits for.", "EQUIPOISE_DRAINED_FILE")
    ] = None,
    timeout_seconds: Annotated[
        float | None,
        _flag("Longest wait; five more than the sidecar's own if left out.", "EQUIPOISE_DRAIN_SECONDS"),
    ] = None,
) -> int:
    """Have the sidecar of this pod finish its queue and streams, then create the file that the engine waits for.

    The file is made in any case: an engine must not outlive its sidecar for want of it.
    """
    from equipoise_sidecar.control import ControlError, ask_to_drain

    directory = state_dir or os.environ.get("EQUIPOISE_STATE_DIR")
    file = drained_file or os.environ.get("EQUIPOISE_DRAINED_FILE")
    seconds = timeout_seconds or float(os.environ.get("EQUIPOISE_DRAIN_SECONDS") or 60) + 5
    if not directory:
        print("equipoise sidecar drain: set EQUIPOISE_STATE_DIR (or --state-dir)", file=sys.stderr)
        return 2
    status = 0
    try:
        print(asyncio.run(ask_to_drain(Path(directory) / "control.sock", seconds)))
    except ControlError as error:
        print(f"equipoise sidecar drain: {error}", file=sys.stderr)
        status = 1
    if file:
        Path(file).touch()
    return status
