"""Container images of this tree, built by buildah without a registry and, inside the build, without a network.

The base is Debian's minimal system with Python (debootstrap); the requirements come from a folder of wheels that pip
fetches beforehand; the wheel of the tree is built here. All of it is kept in the user's cache under the hash of what
it is made from, so a second build of the same tree does nothing. Needs root, and buildah and debootstrap, which are
installed by apt where it exists.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from uv import find_uv_bin

from equipoise_cluster.environments import PYTHON, cache_directory
from equipoise_cluster.errors import ClusterError, CommandError
from equipoise_cluster.processes import Process
from equipoise_cluster.progress import ConsoleProgress, Progress

Part = Literal["operator", "sidecar"]

SUITE = "bookworm"
"""The Debian release whose Python is `PYTHON`."""

PACKAGES = ("ca-certificates", "python3", "python3-venv")
STORAGE = """\
[storage]
driver = "overlay"
runroot = "{place}/run"
graphroot = "{place}/graph"
"""
POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


@dataclass(frozen=True)
class Container:
    """A container made from an image, with its root filesystem mounted at `rootfs`."""

    name: str
    rootfs: Path


class Images:
    """Builds the images of one checkout and runs them."""

    def __init__(
        self, checkout: Path, *, directory: Path | None = None, progress: Progress | None = None
    ) -> None:
        self._checkout = checkout
        self._place = directory or cache_directory("images")
        self._progress = progress or ConsoleProgress()
        require_tools(self._progress)
        self._place.mkdir(parents=True, exist_ok=True)
        (self._place / "storage.conf").write_text(STORAGE.format(place=self._place))
        (self._place / "policy.json").write_text(json.dumps(POLICY))
        self._lock = FileLock(self._place / "lock")

    def build(self, part: Part) -> str:
        """Build the image of one part if it is not there; returns its name. Raises ClusterError."""
        requirements = self._checkout / "requirements" / f"{part}.txt"
        containerfile = self._checkout / "images" / "Containerfile"
        with self._lock:
            base = self._base()
            wheel = self._wheel()
            digest = _digest(
                base.encode(), requirements.read_bytes(), containerfile.read_bytes(), wheel.read_bytes()
            )
            name = f"localhost/equipoise-{part}:{digest}"
            if self._has(name):
                return name
            wheels = self._wheelhouse(requirements)
            context = self._place / "context"
            shutil.rmtree(context, ignore_errors=True)
            for source, folder in ((requirements, "requirements"), (wheel, "dist")):
                (context / folder).mkdir(parents=True)
                shutil.copy(source, context / folder)
            self._progress.step(f"building the {part}'s image")
            arguments = {
                "BASE": base,
                "PART": part,
                "VERSION": wheel.name.split("-")[1],
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": "/wheels",
            }
            self._buildah(
                *("bud", "--isolation", "chroot", "--pull-never", "--format", "docker"),
                *(f"--build-arg={key}={value}" for key, value in arguments.items()),
                *("--volume", f"{wheels}:/wheels:ro", "--file", containerfile, "--tag", name, context),
            )
            self._forget_others(name)
        return name

    def configuration(self, image: str) -> dict[str, object]:
        """Return the image's configuration: User, Entrypoint, Env, Labels."""
        answer = json.loads(self._buildah("inspect", "--type", "image", image))
        configuration: dict[str, object] = answer["Docker"]["config"]
        return configuration

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """Make a container from an image, mount it, and remove it afterwards."""
        name = self._buildah("from", "--pull-never", image).strip()
        try:
            yield Container(name, Path(self._buildah("mount", name).strip()))
        finally:
            self._buildah("rm", name)

    def run(self, container: Container, *command: str) -> str:
        """Run a command in a container as the image's user, to its end; returns standard output."""
        return self._buildah("run", "--isolation", "chroot", container.name, "--", *command)

    def start(self, container: Container, *command: str, log: Path, volumes: Mapping[Path, str]) -> Process:
        """Start a command in a container as the image's user; `volumes` are folders here by path inside.

        The network is the host's. The caller stops the process.
        """
        mounts = [f"--volume={outside}:{inside}" for outside, inside in volumes.items()]
        return Process(
            [
                *self._command("run", "--isolation", "chroot", "--terminal=false", *mounts),
                *(container.name, "--", *command),
            ],
            log,
            env=self._environment(),
        )

    def _base(self) -> str:
        name = f"localhost/equipoise-base:{_digest(SUITE.encode(), *(p.encode() for p in PACKAGES))}"
        if self._has(name):
            return name
        self._progress.step(f"making a minimal Debian {SUITE} with Python (about a minute, 275 MB)")
        context = self._place / "base"
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir()
        rootfs = context / "rootfs"
        _run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, rootfs)
        shutil.rmtree(rootfs / "var/cache/apt")
        shutil.rmtree(rootfs / "var/lib/apt/lists")
        _run("tar", "--create", "--file", context / "rootfs.tar", "--directory", rootfs, ".")
        shutil.rmtree(rootfs)
        (context / "Containerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        self._buildah("bud", "--isolation", "chroot", "--tag", name, context)
        shutil.rmtree(context)
        return name

    def _wheel(self) -> Path:
        folder = self._place / "dist"
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=self._checkout)
        (wheel,) = folder.glob("*.whl")
        return wheel

    def _wheelhouse(self, requirements: Path) -> Path:
        folder = self._place / "wheels" / _digest(requirements.read_bytes(), PYTHON.encode())
        if not folder.exists():
            self._progress.step(f"fetching the wheels of {requirements.name}")
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _run(
                *(find_uv_bin(), "tool", "run", "pip", "download", "--require-hashes", "--no-deps"),
                *("--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp"),
                *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
                *("--requirement", requirements, "--dest", partial, "--quiet"),
            )
            partial.rename(folder)
        return folder

    def _has(self, image: str) -> bool:
        return image in self._names()

    def _names(self) -> set[str]:
        listed = json.loads(self._buildah("images", "--json") or "null")
        return {name for image in listed or () for name in image.get("names") or ()}

    def _forget_others(self, image: str) -> None:
        """Remove older builds of the same part, which only take disk."""
        repository = image.rpartition(":")[0] + ":"
        for other in self._names():
            if other.startswith(repository) and other != image:
                self._buildah("rmi", "--force", other)

    def _command(self, verb: str, *arguments: str | Path) -> list[str | Path]:
        buildah = shutil.which("buildah")
        assert buildah is not None, "require_tools() has seen it"
        reading = {"bud": True, "from": True, "push": True}.get(verb, False)
        policy = ("--signature-policy", self._place / "policy.json") if reading else ()
        return [buildah, verb, *policy, *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_STORAGE_CONF": str(self._place / "storage.conf")}

    def _buildah(self, verb: str, *arguments: str | Path) -> str:
        return _run(*self._command(verb, *arguments), env=self._environment())


def require_tools(progress: Progress) -> None:
    """See that buildah and debootstrap are there, or install them with apt. Raises ClusterError."""
    if os.geteuid() != 0:
        raise ClusterError("Building images needs root: debootstrap and buildah's chroot isolation do.")
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"{' and '.join(missing)} missing: install them with the system's package manager."
        )
    progress.step(f"installing {' and '.join(missing)}")
    _run("apt-get", "update", "--quiet")
    _run(
        *("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing),
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


def _run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env, cwd=cwd)
    if done.returncode != 0:
        raise CommandError(words, done.returncode, (done.stdout + done.stderr)[-3000:])
    return done.stdout


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
