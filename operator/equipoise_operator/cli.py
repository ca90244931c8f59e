"""`equipoise operator run`: the operator in this process, from its environment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path


def run(kubeconfig: Path | None = None, *, verbose: bool = False) -> None:
    """Run until SIGTERM. Ends the process: 0 after a signal, 1 when leadership was lost or a part failed, 2 for bad input.

    KUBECONFIG or `kubeconfig` says where the API server is; in a pod the ServiceAccount does.
    """
    import kopf
    import uvloop

    from equipoise_operator import credentials, logs
    from equipoise_operator.replica import Replica
    from equipoise_operator.settings import Settings, SettingsError

    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(kubeconfig)
    logs.configure(logging.DEBUG if verbose else logging.INFO)

    async def main() -> int:
        return await Replica(Settings.from_environment(os.environ), credentials.load).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(main())
    except (SettingsError, kopf.LoginError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
