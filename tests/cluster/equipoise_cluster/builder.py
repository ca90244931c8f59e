"""Builds programs from the pinned Go modules into a cache outside the checkout.

One build at a time under a file lock. A program counts as built once its stamp is written, after its binary was renamed
into place: an interrupted build goes on with the first program that has none, and with the packages that Go's own
cache, kept beside, does not hold yet.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from equipoise_cluster.errors import ClusterError
from equipoise_cluster.processes import Process
from equipoise_cluster.programs import KUBERNETES, Program
from equipoise_cluster.progress import Progress, Silent


def default_cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/equipoise/kubernetes`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "equipoise" / "kubernetes"


@dataclass
class Builder:
    """Builds into `<cache>/v<Kubernetes version>/bin`; Go's own caches are `<cache>/go`."""

    cache: Path = field(default_factory=default_cache)
    progress: Progress = field(default_factory=Silent)

    @property
    def bin(self) -> Path:
        return self.cache / f"v{KUBERNETES.version}" / "bin"

    def built(self, program: Program) -> Path | None:
        """The program's path if it is there and built from the present recipe."""
        binary, stamp = self.bin / program.name, self._stamp(program)
        try:
            fits = stamp.read_text() == program.recipe
        except FileNotFoundError:
            return None
        return binary if fits and binary.is_file() else None

    def build(self, programs: Sequence[Program]) -> None:
        """Builds what is missing, in the given order.

        ClusterError: Go is missing, too old, or fails; the cache is not writable.
        """
        go = _go(programs, self.cache)
        try:
            self.bin.mkdir(parents=True, exist_ok=True)
            self._locked(go, programs)
        except OSError as error:
            raise ClusterError(
                f"{self.cache}: {error.strerror or error}. Make it writable, or set XDG_CACHE_HOME to a folder "
                "with 7 GB free."
            ) from error

    def _locked(self, go: str, programs: Sequence[Program]) -> None:
        lock = FileLock(self.bin / ".lock", timeout=1)
        since = time.monotonic()
        while True:
            try:
                lock.acquire()
                break
            except Timeout:
                self.progress.update(
                    f"Another process is building into {self.bin}: waiting, {_minutes(time.monotonic() - since)}"
                )
        try:
            # Whoever held the lock may have built some of them.
            missing = [program for program in programs if not self.built(program)]
            if missing:
                names = ", ".join(program.name for program in missing)
                self.progress.step(
                    f"Building {names} into {self.bin}: once, about 10 minutes for a whole control plane on two "
                    "cores, 6.5 GB on disk."
                )
            for number, program in enumerate(missing, start=1):
                self._one(go, program, f"[{number}/{len(missing)}] {program.name}")
        finally:
            lock.release()

    def _one(self, go: str, program: Program, title: str) -> None:
        part = self.bin / f".{program.name}.part"
        stamp = self._stamp(program)
        stamp.unlink(missing_ok=True)
        log = self.bin / f".{program.name}.log"
        log.unlink(missing_ok=True)
        began = time.monotonic()
        env = self._environment()
        self.progress.update(f"{title}: fetching Go modules")
        total = self._stale_packages(go, program, log, env, title)
        flags = [*program.module.build_flags, "-ldflags", program.module.linker_flags]
        command = [go, "build", "-v", *flags, "-o", str(part)]
        process = Process([*command, program.package], log, cwd=program.module.folder, env=env)
        try:
            compiling = time.monotonic()
            while process.wait(1.0) is None:
                self.progress.update(_how_far(title, _compiled(log), total, began, compiling))
        finally:
            process.stop()
        if process.exit_code != 0:
            raise ClusterError(f"go build of {program.name} failed ({log}):\n{process.tail()}")
        part.replace(self.bin / program.name)
        stamp.write_text(program.recipe)
        size = (self.bin / program.name).stat().st_size / 1e6
        self.progress.step(f"{title}: built in {_minutes(time.monotonic() - began)}, {size:.0f} MB")

    def _stale_packages(self, go: str, program: Program, log: Path, env: dict[str, str], title: str) -> int:
        """How many packages are to be compiled. Downloads the modules on the way."""
        listing = log.with_suffix(".packages")
        listing.unlink(missing_ok=True)
        flags = program.module.build_flags
        command = [go, "list", "-deps", *flags, "-f", "{{if .Stale}}{{.ImportPath}}{{end}}"]
        process = Process([*command, program.package], listing, cwd=program.module.folder, env=env)
        began = time.monotonic()
        try:
            while process.wait(1.0) is None:
                self.progress.update(f"{title}: fetching Go modules, {_minutes(time.monotonic() - began)}")
        finally:
            process.stop()
        if process.exit_code != 0:
            raise ClusterError(
                f"Go cannot fetch the modules of {program.name} ({listing}):\n{process.tail()}"
            )
        total = _compiled(listing)
        listing.unlink()
        return total

    def _environment(self) -> dict[str, str]:
        # Caches of our own: a killed build goes on from them, and removing the folder removes all that was written.
        return os.environ | {
            "CGO_ENABLED": "0",
            "GOFLAGS": "-modcacherw",
            "GOWORK": "off",
            "GOPATH": str(self.cache / "go"),
            "GOMODCACHE": str(self.cache / "go" / "modules"),
            "GOCACHE": str(self.cache / "go" / "build"),
        }

    def _stamp(self, program: Program) -> Path:
        return self.bin / f".{program.name}.stamp"


def _go(programs: Sequence[Program], cache: Path) -> str:
    """Go's path, if it can build all of them."""
    names = ", ".join(program.name for program in programs)
    needed = max(program.module.go for program in programs)
    release = f"{needed[0]}.{needed[1]}"
    ways = (
        "Do one of:\n"
        f"  1. install Go {release} or later (https://go.dev/dl/): they are built once, in about 10 minutes, into {cache};\n"
        "  2. set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, kubectl, kube-controller-manager and helm "
        f"(what setup-envtest fetches for Kubernetes {KUBERNETES.version} is the first three; the others may be on PATH);\n"
        "  3. use a cluster you have: set KUBECONFIG and ask for it with --use-existing."
    )
    go = shutil.which("go")
    if go is None:
        raise ClusterError(f"Missing: {names}. They can be built, but Go is not on PATH. {ways}")
    answer = subprocess.run(
        [go, "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True, check=False
    )
    found = re.match(r"go(\d+)\.(\d+)\S*\s+(\S*)", answer.stdout)
    if found is None:
        raise ClusterError(f"{go} env GOVERSION fails: {(answer.stderr or answer.stdout).strip()}. {ways}")
    if (int(found[1]), int(found[2])) < needed and found[3] in ("", "local"):
        raise ClusterError(
            f"Missing: {names}. They can be built, but {go} is {found[1]}.{found[2]}, and Go {release} is needed. {ways}"
        )
    return str(Path(go).absolute())


def _compiled(log: Path) -> int:
    """The packages in the output of `go build -v` or `go list`: a line each, without spaces."""
    if not log.exists():
        return 0
    return sum(1 for line in log.read_text(errors="replace").splitlines() if line and " " not in line)


def _how_far(title: str, done: int, total: int, began: float, compiling: float) -> str:
    elapsed = time.monotonic() - began
    if done >= total - 1:  # the program itself is always stale, and not always compiled anew
        return f"{title}: linking, {_minutes(elapsed)}"
    text = f"{title}: {done} of {total} packages compiled, {_minutes(elapsed)}"
    if done > total / 20:
        left = (time.monotonic() - compiling) * (total - done) / done
        text += f", about {_minutes(left)} left"
    return text


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
