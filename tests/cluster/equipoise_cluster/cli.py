"""`equipoise cluster build`, `up` and `clean`: the control plane by hand. Plain functions; the command wires them."""

import shutil
import signal
import sys
from pathlib import Path


def build() -> None:
    """Find the programs of the control plane, build what is missing, and print where they are."""
    from equipoise_cluster.binaries import find
    from equipoise_cluster.errors import ClusterError
    from equipoise_cluster.progress import ConsoleProgress

    try:
        found = find(progress=ConsoleProgress())
    except ClusterError as error:
        sys.exit(str(error))
    for path in found.values():
        print(path)


def up(port: int | None = None, kubeconfig: Path | None = None) -> None:
    """Run a control plane until Ctrl-C or SIGTERM.

    `port` is the API server's, a free one unless given. `kubeconfig` is a link to the admin's for as long as it runs.
    """
    from equipoise_cluster.binaries import find
    from equipoise_cluster.controlplane import ControlPlane
    from equipoise_cluster.errors import ClusterError
    from equipoise_cluster.progress import ConsoleProgress

    if kubeconfig and (kubeconfig.exists() or kubeconfig.is_symlink()):
        sys.exit(f"--kubeconfig {kubeconfig} exists: name a file that does not.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = ConsoleProgress()
    try:
        binaries = find(progress=progress)
        with ControlPlane.start(binaries, port=port, progress=progress) as control_plane:
            if kubeconfig:
                kubeconfig.symlink_to(control_plane.kubeconfig)
            path = kubeconfig.absolute() if kubeconfig else control_plane.kubeconfig
            print(f"export KUBECONFIG={path}")
            print(f"export PATH={binaries['kubectl'].parent}:$PATH")
            progress.step("Ctrl-C stops it and removes all of it.")
            try:
                control_plane.wait()
            finally:
                if kubeconfig:
                    kubeconfig.unlink()
    except ClusterError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        progress.step("Stopped.")


def clean() -> None:
    """Remove the built programs and Go's caches beside them (6.5 GB)."""
    from equipoise_cluster.builder import default_cache

    cache = default_cache()
    if cache.exists():
        shutil.rmtree(cache)
        print(f"removed {cache}")
