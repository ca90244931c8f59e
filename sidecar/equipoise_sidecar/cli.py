"""`equipoise sidecar run` and `equipoise sidecar drain`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path


def run(
    *,
    engine: str | None = None,
    host: str | None = None,
    data_port: int | None = None,
    admin_port: int | None = None,
    health_port: int | None = None,
    state_dir: Path | None = None,
    config_file: Path | None = None,
    drain_seconds: float | None = None,
) -> int:
    """Serve in front of one engine until SIGTERM; return the exit status. Flags override the environment."""
    import uvloop

    from equipoise_sidecar.control import ControlError
    from equipoise_sidecar.listener import ListenError
    from equipoise_sidecar.logs import configure_logs
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
        return uvloop.run(serve(settings))
    except (SettingsError, ListenError, ControlError) as error:
        print(f"equipoise sidecar: {error}", file=sys.stderr)
        return 2


def drain(
    *, state_dir: Path | None = None, drained_file: Path | None = None, timeout_seconds: float | None = None
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
