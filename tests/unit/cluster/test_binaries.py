"""Programs are taken from KUBEBUILDER_ASSETS, the cache, PATH if their version fits, and only else built."""

import pytest

from equipoise_cluster import binaries
from equipoise_cluster.builder import Builder
from equipoise_cluster.errors import ClusterError
from equipoise_cluster.programs import CONTROL_PLANE, ENVTEST, ETCD, HELM, KUBERNETES, PROGRAMS, PROMETHEUS


def program(folder, name, version):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {name} v{version}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A machine without Go, assets or programs."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def test_the_pinned_versions_are_read_from_the_modules():
    assert KUBERNETES.version.split(".")[:2] == ["1", "36"]
    assert "gitVersion=v" + KUBERNETES.version in KUBERNETES.linker_flags
    assert "gitMinor=36" in KUBERNETES.linker_flags
    assert ETCD.version.startswith("3.")
    assert HELM.version.startswith("4.")
    assert KUBERNETES.go >= (1, 26)


@pytest.mark.parametrize("module", [KUBERNETES, ETCD, HELM, PROMETHEUS], ids=lambda module: module.name)
def test_every_program_is_pinned_by_its_module(module):
    tools = (module.folder / "tools.go").read_text()
    for each in PROGRAMS.values():
        assert each.module is not module or f'"{each.package}"' in tools


def test_assets_come_before_path(alone, monkeypatch):
    for name in CONTROL_PLANE:
        program(alone / "bin", name, PROGRAMS[name].module.version)
    for name in ENVTEST:
        program(alone / "assets", name, "1.36.0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(alone / "assets"))
    found = binaries.find(cache=alone / "cache")
    assert list(found) == list(CONTROL_PLANE)
    assert {name: path.parent.name for name, path in found.items()} == {
        "etcd": "assets",
        "kube-apiserver": "assets",
        "kubectl": "assets",
        "kube-controller-manager": "bin",
        "helm": "bin",
    }


def test_incomplete_assets_are_refused_by_name(alone, monkeypatch):
    program(alone / "assets", "etcd", "3.7.3")
    (alone / "assets" / "kubectl").write_text("not executable")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(alone / "assets"))
    with pytest.raises(ClusterError, match=r"assets lacks kube-apiserver, kubectl \("):
        binaries.find(cache=alone / "cache")


def test_a_controller_manager_newer_than_the_api_server_is_refused(alone, monkeypatch):
    for name in ENVTEST:
        program(alone / "assets", name, "1.34.1")
    for name in ("kube-controller-manager", "helm"):
        program(alone / "bin", name, PROGRAMS[name].module.version)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(alone / "assets"))
    with pytest.raises(ClusterError, match=r"kube-apiserver 1\.34\.1 and no kube-controller-manager"):
        binaries.find(cache=alone / "cache")
    program(alone / "assets", "kube-controller-manager", "1.34.1")
    assert binaries.find(cache=alone / "cache")["kube-controller-manager"].parent.name == "assets"


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("kubectl", f"{KUBERNETES.version}", True),
        ("kubectl", "1.36.99", True),
        ("kubectl", "1.32.4", False),
        ("etcd", "3.4.23", False),
        ("helm", "4.0.1", True),
        ("helm", "3.19.0", False),
    ],
)
def test_path_is_enough_only_if_the_version_fits(alone, name, version, fits):
    path = program(alone / "bin", name, version)
    assert binaries.on_path(PROGRAMS[name]) == (path if fits else None)


def test_a_program_on_path_that_says_nothing_is_passed_over(alone):
    program(alone / "bin", "kubectl", "").write_text("#!/bin/sh\nexit 1\n")
    assert binaries.on_path(PROGRAMS["kubectl"]) is None


def test_what_is_nowhere_is_built_and_found_again(workshop, monkeypatch):
    table = {program.name: program for program in workshop.programs}
    monkeypatch.setattr(binaries, "PROGRAMS", table)
    names = list(table)
    found = binaries.find(names, cache=workshop.cache)
    assert found == {name: Builder(workshop.cache).bin / name for name in names}
    assert binaries.find(names, cache=workshop.cache) == found
    assert len(workshop.builds) == 2
