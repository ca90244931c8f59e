"""The programs that make up a cluster or test what is shipped for one, and the pinned Go modules they are built from.

The versions stand in `go/<module>/go.mod` alone. To add a program: a line in `PROGRAMS` and in its module's `tools.go`,
then `go mod tidy` in that folder.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

GO_MODULES = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Module:
    """A Go module that pins one upstream release."""

    name: str
    upstream: str
    """Import path of the module whose version counts."""
    fits: int
    """How many parts of the version a program found on PATH must share (2: major and minor; 0: any will do)."""
    folder: Path
    version_variables: tuple[tuple[str, str], ...] = ()
    """Linker variables and their values; `{version}`, `{major}` and `{minor}` are filled in."""
    tags: tuple[str, ...] = ()
    """Go's build tags."""

    @cached_property
    def version(self) -> str:
        """Upstream's version without the v: `1.36.3`."""
        found = re.search(
            rf"^(?:require)?\s*{re.escape(self.upstream)} v(\S+)",
            (self.folder / "go.mod").read_text(),
            re.MULTILINE,
        )
        assert found, f"{self.folder}/go.mod does not require {self.upstream}"
        return found[1]

    @cached_property
    def go(self) -> tuple[int, int]:
        """The least Go release, major and minor."""
        found = re.search(r"^go (\d+)\.(\d+)", (self.folder / "go.mod").read_text(), re.MULTILINE)
        assert found, f"{self.folder}/go.mod has no go line"
        return int(found[1]), int(found[2])

    @cached_property
    def linker_flags(self) -> str:
        major, minor, *_ = self.version.split(".")
        values = {"version": self.version, "major": major, "minor": minor}
        variables = [f"-X {name}={value.format(**values)}" for name, value in self.version_variables]
        return " ".join(["-s -w", *variables])

    @cached_property
    def build_flags(self) -> tuple[str, ...]:
        return (*BUILD_FLAGS, f"-tags={','.join(self.tags)}") if self.tags else BUILD_FLAGS


@dataclass(frozen=True)
class Program:
    """An executable of the cluster."""

    name: str
    module: Module
    package: str
    version_command: tuple[str, ...] = ("--version",)

    @cached_property
    def recipe(self) -> str:
        """A digest of all that decides what is built: a stamp with another one is stale."""
        digest = hashlib.sha256()
        for part in (self.package, self.module.linker_flags, *self.module.build_flags):
            digest.update(part.encode() + b"\0")
        for file in ("go.mod", "go.sum"):
            digest.update((self.module.folder / file).read_bytes() + b"\0")
        return digest.hexdigest()


BUILD_FLAGS = ("-trimpath",)

_COMPONENT = "k8s.io/component-base/version"
# Without these the API server calls itself v0.0.0-master, and clients that check versions go wrong.
KUBERNETES = Module(
    "kubernetes",
    "k8s.io/kubernetes",
    fits=2,
    folder=GO_MODULES / "kubernetes",
    version_variables=(
        (f"{_COMPONENT}.gitVersion", "v{version}"),
        (f"{_COMPONENT}.gitMajor", "{major}"),
        (f"{_COMPONENT}.gitMinor", "{minor}"),
    ),
)
ETCD = Module("etcd", "go.etcd.io/etcd/server/v3", fits=2, folder=GO_MODULES / "etcd")
HELM = Module(
    "helm",
    "helm.sh/helm/v4",
    fits=1,
    folder=GO_MODULES / "helm",
    version_variables=(("helm.sh/helm/v4/internal/version.version", "v{version}"),),
)
# Service discovery is the larger part of it, and rules need none. Prometheus 3.13 is v0.313 as a Go module, so no
# version on PATH can be compared: any promtool will do, since rules mean the same in all of them.
PROMETHEUS = Module(
    "prometheus",
    "github.com/prometheus/prometheus",
    fits=0,
    folder=GO_MODULES / "prometheus",
    tags=("remove_all_sd",),
)

_PROGRAMS = (
    Program("etcd", ETCD, "go.etcd.io/etcd/server/v3"),
    Program("kube-apiserver", KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver"),
    Program("kubectl", KUBERNETES, "k8s.io/kubernetes/cmd/kubectl", ("version", "--client")),
    Program("kube-controller-manager", KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    Program("helm", HELM, "helm.sh/helm/v4/cmd/helm", ("version", "--short")),
    Program("kube-scheduler", KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler"),
    Program("kubelet", KUBERNETES, "k8s.io/kubernetes/cmd/kubelet"),
    Program("kube-proxy", KUBERNETES, "k8s.io/kubernetes/cmd/kube-proxy"),
    Program("promtool", PROMETHEUS, "github.com/prometheus/prometheus/cmd/promtool"),
)
PROGRAMS = {program.name: program for program in _PROGRAMS}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "helm")
CLIENTS = ("kubectl", "helm")
ENVTEST = ("etcd", "kube-apiserver", "kubectl")
"""What a folder named by KUBEBUILDER_ASSETS holds."""
