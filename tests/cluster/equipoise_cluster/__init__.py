"""A real Kubernetes for the tests and the demo: found or built, started on loopback, stopped without a trace.

    from equipoise_cluster import ControlPlane, find

    with ControlPlane.start(find(progress=ConsoleProgress())) as cluster:
        cluster.kubectl("apply", "--filename=-", input=manifest)

`programs` says what is built from what, `binaries` finds, `builder` builds, `controlplane` starts. The names below are
imported when they are first used, so that the command's help does not load a Kubernetes client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise_cluster.binaries import Binaries, find
    from equipoise_cluster.cluster import Cluster
    from equipoise_cluster.controlplane import ControlPlane
    from equipoise_cluster.errors import ClusterError, CommandError
    from equipoise_cluster.progress import ConsoleProgress, Progress, Silent

__all__ = [
    "Binaries",
    "Cluster",
    "ClusterError",
    "CommandError",
    "ConsoleProgress",
    "ControlPlane",
    "Progress",
    "Silent",
    "find",
]

_HOMES = {
    "Binaries": "binaries",
    "find": "binaries",
    "Cluster": "cluster",
    "ControlPlane": "controlplane",
    "ClusterError": "errors",
    "CommandError": "errors",
    "ConsoleProgress": "progress",
    "Progress": "progress",
    "Silent": "progress",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
