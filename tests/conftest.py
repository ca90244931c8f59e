"""Fixtures around a real Kubernetes API server: one control plane a run, one namespace a test.

`--use-existing` takes the cluster that KUBECONFIG names instead; tests that restart the API server are skipped there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import served

from equipoise_cluster import Cluster, ClusterError, ConsoleProgress, ControlPlane, find
from equipoise_cluster.programs import CLIENTS, CONTROL_PLANE

# A test's time says more of the machine than of the code: speed is measured in benchmarks/. The same cases every time: what
# turns a run red is the change, not chance. `make search` looks for new cases; what it finds becomes an @example.
hypothesis.settings.register_profile("equipoise", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1_000)
hypothesis.settings.load_profile("equipoise")

ROOT = Path(__file__).parents[1]
CLUSTER_SECONDS = 900
"""Of a test with its fixtures: one that starts a control plane takes 15 s here, and ten times that on a slow machine."""
_BINARIES = pytest.StashKey[dict[str, Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--use-existing",
        action="store_true",
        help="run against the cluster that KUBECONFIG names instead of starting a control plane",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"binaries", "cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))


def pytest_collection_finish(session: pytest.Session) -> None:
    # Here and not in a fixture: a first build takes longer than any test's time limit, and its progress is to be seen.
    config = session.config
    names: tuple[str, ...] = ()
    if any(item.get_closest_marker("cluster") for item in session.items):
        names = CLIENTS if config.getoption("--use-existing") else CONTROL_PLANE
    if any("promtool" in getattr(item, "fixturenames", ()) for item in session.items):
        names = (*names, "promtool")
    if config.option.collectonly or not names:
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            found = find(names, progress=ConsoleProgress())
        except ClusterError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    config.stash[_BINARIES] = dict(found)


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> dict[str, Path]:
    """For tests that start control planes themselves."""
    if pytestconfig.getoption("--use-existing"):
        pytest.skip("starts a control plane of its own")
    return pytestconfig.stash[_BINARIES]


@pytest.fixture(scope="session")
def promtool(pytestconfig: pytest.Config) -> Path:
    """Prometheus' own checker of rules and metrics, built on first use."""
    return pytestconfig.stash[_BINARIES]["promtool"]


@pytest.fixture(scope="session")
def cluster(pytestconfig, tmp_path_factory) -> Iterator[Cluster]:
    """A real API server: a control plane of this run, or the existing cluster that was asked for."""
    binaries = pytestconfig.stash[_BINARIES]
    if pytestconfig.getoption("--use-existing"):
        kubeconfig = os.environ.get("KUBECONFIG")
        if not kubeconfig:
            pytest.exit("--use-existing needs KUBECONFIG to name the cluster's kubeconfig", returncode=4)
        with Cluster.existing(binaries, kubeconfig=Path(kubeconfig)) as cluster:
            yield cluster
    else:
        with ControlPlane.start(binaries, state_dir=tmp_path_factory.mktemp("control-plane")) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def control_plane(cluster) -> ControlPlane:
    """A control plane whose API server a test may stop, as long as it starts it again."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("restarts the API server, which an existing cluster must not suffer")
    return cluster


@pytest.fixture(scope="session")
def crds(cluster) -> Cluster:
    """The cluster, with the CRDs of the checkout."""
    cluster.kubectl("apply", "--server-side", "--filename", str(ROOT / "crds"))
    served.crds_served(cluster)
    return cluster


@pytest.fixture
def namespace(cluster) -> Iterator[str]:
    name = cluster.create_namespace()
    yield name
    cluster.delete_namespace(name)


@pytest.fixture(scope="session")
def admin(cluster):
    """An ApiClient of the `kubernetes` package with all rights."""
    return cluster.admin


@pytest.fixture(scope="session")
def kubectl(cluster):
    return cluster.kubectl


@pytest.fixture(scope="session")
def helm(cluster):
    return cluster.helm
