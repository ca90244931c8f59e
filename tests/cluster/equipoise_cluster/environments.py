"""Virtual environments of their own for programs that pin what the project pins otherwise, in the user's cache.

A stamp holds the hash of what a step was made from: an interrupted step is done again, a finished one never, and a
changed recipe makes its step anew. One process at a time works on a folder (a file lock).
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from filelock import FileLock
from uv import find_uv_bin

from equipoise_cluster.errors import ClusterError
from equipoise_cluster.progress import Progress

PYTHON = "3.11"
"""The Python that the requirement files are locked for."""

_STDERR = 2


def cache_directory(*parts: str) -> Path:
    """Return a folder of the project's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "equipoise", *parts)


class Workshop:
    """A folder in the cache and the steps that fill it. Use it as a context manager: it holds the lock."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.directory = directory
        self._progress = progress
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(directory / "lock")

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def step(self, name: str, what: str, recipe: bytes, make: Callable[[], None]) -> None:
        """Do `make` unless it was done from the same recipe. `what` is told before it begins."""
        stamp = self.directory / f"{name}.stamp"
        digest = hashlib.sha256(recipe).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            return
        self._progress.step(what)
        stamp.unlink(missing_ok=True)
        make()
        partial = stamp.with_suffix(".partial")
        partial.write_text(digest)
        partial.replace(stamp)

    def environment(self, what: str, requirements: Path, then: Callable[[Path], None] | None = None) -> Path:
        """Make the folder's virtual environment from a hashed requirement file; `then` completes it.

        Returns the environment's folder. Raises ClusterError.
        """
        environment = self.directory / "environment"
        base = base_python()

        def make() -> None:
            run("make the environment", find_uv_bin(), "venv", "--quiet", "--clear", "-p", base, environment)
            run(
                f"install {requirements}",
                *(find_uv_bin(), "pip", "install", "--no-deps", "--require-hashes"),
                *("--python", environment / "bin/python", "--requirement", requirements),
            )
            if then:
                then(environment)

        self.step("environment", what, requirements.read_bytes() + base.encode(), make)
        return environment


def base_python() -> str:
    """Choose the interpreter: the system's, which pods can mount at the same path, or the one that runs this."""
    system = Path(f"/usr/bin/python{PYTHON}")
    if system.exists():
        return str(system)
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        return str(Path(sys.base_prefix) / f"bin/python{PYTHON}")
    return PYTHON


def run(what: str, *command: str | Path) -> None:
    """Run a command whose own progress goes to standard error. Raises ClusterError: "could not <what>"."""
    done = subprocess.run(command, check=False, stdout=_STDERR)
    if done.returncode != 0:
        raise ClusterError(f"could not {what}: `{' '.join(map(str, command))}` ended with {done.returncode}")
