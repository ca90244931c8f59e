"""A real Kubernetes for the tests and the demo: found or built, started on loopback, stopped without a trace.

    from equipoise_cluster import ControlPlane, find

    with ControlPlane.start(find(progress=ConsoleProgress())) as cluster:
        cluster.kubectl("apply", "--filename=-", input=manifest)

`programs` says what is built from what, `binaries` finds, `builder` builds, `controlplane` starts.
"""

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
