"""kubectl and helm as functions."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from equipoise_cluster.errors import ClusterError, CommandError


def run(
    program: Path, *arguments: str, env: Mapping[str, str], stdin: str | None = None, seconds: float = 120.0
) -> str:
    """Runs a command to its end and returns what it printed.

    CommandError if its exit code is not 0, ClusterError if it takes longer than `seconds`.
    """
    command = [str(program), *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin or "",
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command)} did not end within {seconds:g} s") from error
    if done.returncode != 0:
        raise CommandError([program.name, *arguments], done.returncode, done.stderr, done.stdout)
    return done.stdout


def kubectl_environment(kubeconfig: Path, folder: Path) -> dict[str, str]:
    """Points kubectl at a cluster, its discovery cache into the folder."""
    return {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(folder / "kubectl")}


def helm_environment(kubeconfig: Path, folder: Path) -> dict[str, str]:
    """Points helm at a cluster, and all that it writes into the folder."""
    return {
        "KUBECONFIG": str(kubeconfig),
        "HELM_CACHE_HOME": str(folder / "helm" / "cache"),
        "HELM_CONFIG_HOME": str(folder / "helm" / "config"),
        "HELM_DATA_HOME": str(folder / "helm" / "data"),
    }
