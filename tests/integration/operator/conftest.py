"""An operator process under the chart's ServiceAccount, sidecars that keep a log of every push, and a link that can be cut."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import served
from install_world import World

ROOT = Path(__file__).parents[3]
RELEASE = "equipoise"


@pytest.fixture(scope="session")
def chart_crds(crds):
    crds.create_node()
    return crds


_ADDRESSES = iter(range(1, 60_000))


def address() -> str:
    number = next(_ADDRESSES)
    return f"127.77.{number // 250}.{number % 250 + 1}"


@pytest.fixture
async def world(chart_crds, namespace) -> AsyncIterator[World]:
    """A namespace in which the chart's ServiceAccount and RBAC are installed, and nothing runs yet."""
    cluster = chart_crds
    install = f"i-{namespace}"
    manifests = await asyncio.to_thread(
        cluster.helm,
        *("template", RELEASE, str(ROOT / "charts" / "equipoise"), f"--namespace={namespace}"),
        *("--show-only=templates/rbac.yaml", "--show-only=templates/serviceaccount.yaml"),
        *("--set", f"watchNamespaces={{{namespace}}}", "--set", f"fullnameOverride={install}"),
    )
    await asyncio.to_thread(
        cluster.kubectl, "apply", f"--namespace={namespace}", "--filename=-", input=manifests
    )
    account = f"system:serviceaccount:{namespace}:{install}"
    await asyncio.to_thread(
        served.permitted,
        cluster,
        account,
        (
            {"verb": "list", "resource": "secrets", "namespace": namespace},
            {"verb": "create", "resource": "leases", "group": "coordination.k8s.io", "namespace": namespace},
            {"verb": "create", "resource": "tokenreviews", "group": "authentication.k8s.io"},
        ),
    )
    kubeconfig = await asyncio.to_thread(cluster.kubeconfig_for, install, namespace=namespace)
    made = World(cluster, namespace, install, f"c-{namespace}", kubeconfig, address)
    try:
        yield made
    finally:
        await made.close()
