"""Finds the cluster's programs: KUBEBUILDER_ASSETS, the cache, PATH if the version fits, else they are built."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from equipoise_cluster.builder import Builder
from equipoise_cluster.errors import ClusterError
from equipoise_cluster.programs import CONTROL_PLANE, ENVTEST, PROGRAMS, Program
from equipoise_cluster.progress import Progress, Silent

Binaries = Mapping[str, Path]
"""Absolute path of each program, by name."""


def find(
    names: Sequence[str] = CONTROL_PLANE, *, cache: Path | None = None, progress: Progress | None = None
) -> Binaries:
    """Finds each program, and builds what is nowhere. Errors: ClusterError.

    Seconds when all are there; about 10 minutes on two cores when all are built.
    """
    progress = progress or Silent()
    builder = Builder(cache, progress) if cache else Builder(progress=progress)
    found: dict[str, Path] = {}
    assets = _assets()
    for name in names:
        program = PROGRAMS[name]
        path = assets.get(name) or builder.built(program) or on_path(program)
        if path:
            found[name] = path
    if "kube-controller-manager" in names:
        _check_skew(assets)
    missing = [name for name in names if name not in found]
    if missing:
        builder.build([PROGRAMS[name] for name in missing])
        found |= {name: builder.bin / name for name in missing}
    return {name: found[name] for name in names}


def on_path(program: Program) -> Path | None:
    """The program on PATH, if its version fits the pinned one."""
    path = shutil.which(program.name)
    if path is None:
        return None
    parts = program.module.fits
    fits = version(program, Path(path))[:parts] == _numbers(program.module.version)[:parts]
    return Path(path).absolute() if fits else None


def version(program: Program, path: Path) -> tuple[int, ...]:
    """What the program says of itself: (1, 36, 3); empty if it says nothing of the kind."""
    try:
        answer = subprocess.run(
            [path, *program.version_command], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _numbers(answer.stdout)


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def _assets() -> dict[str, Path]:
    """The programs in the folder that KUBEBUILDER_ASSETS names."""
    value = os.environ.get("KUBEBUILDER_ASSETS")
    if not value:
        return {}
    folder = Path(value).absolute()
    found = {name: folder / name for name in PROGRAMS if os.access(folder / name, os.X_OK)}
    absent = [name for name in ENVTEST if name not in found]
    if absent:
        raise ClusterError(
            f"KUBEBUILDER_ASSETS={value} lacks {', '.join(absent)} (or they are not executable). Name a folder "
            f"that holds {', '.join(ENVTEST)}, or unset it and they are built."
        )
    return found


def _check_skew(assets: Mapping[str, Path]) -> None:
    """A controller manager may be older than its API server, never newer."""
    if not assets or "kube-controller-manager" in assets:
        return
    server = version(PROGRAMS["kube-apiserver"], assets["kube-apiserver"])
    manager = PROGRAMS["kube-controller-manager"]
    wanted = _numbers(manager.module.version)
    if server[:2] < wanted[:2]:
        raise ClusterError(
            f"KUBEBUILDER_ASSETS holds kube-apiserver {'.'.join(map(str, server)) or 'of unknown version'} and no "
            f"kube-controller-manager; the one of {manager.module.version} is too new for it. Put one of the same "
            "version into the folder, or unset KUBEBUILDER_ASSETS."
        )
