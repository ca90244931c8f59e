"""A Go that is a shell script, and a module for it to build: what the builder does around Go, in milliseconds."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from equipoise_cluster.programs import Module, Program

FAKE_GO = """#!/bin/sh
# Counts its builds; a program named in $HANG hangs half-way, one named in $BREAK fails.
case "$1" in
env) printf '%s\\n%s\\n' "${FAKE_VERSION:-go1.26.8}" "${FAKE_TOOLCHAIN:-local}" ;;
list)
    if [ -n "$OFFLINE" ]; then echo "dial tcp: no route to host" >&2; exit 1; fi
    printf 'runtime\\nexample.com/lib\\nmain\\n'
    ;;
build)
    for last; do :; done
    while [ "$1" != -o ]; do shift; done
    echo "$last" >> "$BUILDS"
    echo runtime
    echo half > "$2"
    if [ "$last" = "$HANG" ]; then echo hanging >> "$BUILDS"; exec sleep 60; fi
    if [ "$last" = "$BREAK" ]; then echo "lib.go:1:1: undefined: x"; exit 1; fi
    printf '#!/bin/sh\\necho v1.36.9\\n' > "$2"
    chmod +x "$2"
    ;;
esac
"""


class Recorder:
    """A Progress that keeps what it was told."""

    def __init__(self):
        self.steps: list[str] = []
        self.updates: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def update(self, text: str) -> None:
        self.updates.append(text)


@dataclass
class Workshop:
    """A cache, a Go on PATH and two programs to build."""

    folder: Path
    programs: list[Program]
    progress: Recorder = field(default_factory=Recorder)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def builds(self) -> list[str]:
        """The packages that Go was asked to build, in order."""
        log = self.folder / "builds"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "go").write_text(FAKE_GO)
    (tools / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    source = tmp_path / "module"
    source.mkdir()
    (source / "go.mod").write_text("module fake\n\ngo 1.26.0\n\nrequire example.com/fake v1.36.3\n")
    (source / "go.sum").write_text("")
    module = Module("fake", "example.com/fake", fits=2, folder=source)
    names = ("fake-server", "fake-client")
    return Workshop(tmp_path, [Program(name, module, f"example.com/{name}") for name in names])
