"""Everything that the demo needs up: control plane, chart, operator, engines, sidecars, tenants and policy.

The operator has the chart's own ServiceAccount and its rights; only what a person would do is done as admin (helm,
kubectl), and what a kubelet would do (pods' status, tokens and files in their volumes).
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from equipoise_api.names import (
    FAIRNESS_POLICIES,
    GROUP,
    ISSUER_PORT,
    OPERATOR_PORT,
    TENANTS,
    TOKEN_AUDIENCE,
    VERSION,
)
from equipoise_cluster import Cluster, ControlPlane, find
from equipoise_cluster.processes import Process
from equipoise_demo.counted import Counted, scrape
from equipoise_demo.fleet import EngineProcess, Pair, PodPlace, addresses, answers, environment, until
from equipoise_demo.places import (
    GPU_NAMESPACE,
    INTERACTIVE_APPLICATION,
    NAMESPACE,
    POD,
    POLICY,
    RELEASE,
    RELEASE_NAMESPACE,
    DemoError,
    checkout,
    condition_of,
    shipped_keys,
    tenant_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from equipoise_cluster import Progress

SYNC_SECONDS = 60.0
STOP_SECONDS = 5.0
NODE = "equipoise-demo-{}"
"""Name of an engine's node by its number."""


@dataclass(frozen=True)
class Plan:
    """What to set up."""

    engines: int
    tenants: Sequence[str]
    launch_engine: Callable[[int, Path, str], EngineProcess]
    """Starts the engine of a number; its socket and log go into the folder, what else it shows is at the address."""
    existing: bool = False
    """Use the cluster of KUBECONFIG."""
    gpus: bool = False
    """The engines show GPU metrics."""

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces that the demo makes."""
        return (NAMESPACE, RELEASE_NAMESPACE, *([GPU_NAMESPACE] if self.gpus else []))


class Stack:
    """The demo's parts, all up between `__enter__` and `__exit__`; whatever fails in between, nothing is left."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.root = checkout()
        self.pairs: list[Pair] = []
        self.engines: list[EngineProcess] = []
        self.cluster: Cluster
        self._progress = progress
        self._cleanup = ExitStack()
        self._operator: Process

    @property
    def keys(self) -> dict[str, str]:
        """API key of each tenant."""
        shipped = shipped_keys(self.root)
        documents = (
            yaml.safe_load_all(tenant_manifest(name)) for name in self.plan.tenants if name not in shipped
        )
        made = {secret["metadata"]["name"]: secret["stringData"]["current"] for secret, _ in documents}
        return shipped | made

    @property
    def state(self) -> Path:
        """A folder that goes when the stack does."""
        return self.cluster.state

    def __enter__(self) -> Self:
        """Start everything. ClusterError or DemoError, with nothing left, when it cannot."""
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End and remove everything."""
        self._remove()

    def _remove(self) -> None:
        if self.engines:
            self._progress.step("Removing everything that the demo started")
        self._cleanup.close()

    # -- what the demo does with it

    def set_algorithm(self, algorithm: str) -> None:
        """Patch the policy and return when every sidecar has it. Shows no progress: requests may be under way."""
        self._patch("fairnesspolicy", POLICY, {"algorithm": {"type": algorithm}})
        self._await_sync(None)

    def promise(self, milliseconds: int) -> None:
        """Promise every tenant's interactive application another time to first token."""
        slo = {"name": INTERACTIVE_APPLICATION, "slo": {"ttftMilliseconds": milliseconds}}
        for name in self.plan.tenants:
            self._patch("tenant", name, {"applications": [slo]})
        until("all sidecars know the promise", self._tenants_synced, self._processes(), seconds=SYNC_SECONDS)

    def counted(self) -> Counted:
        """Return what the sidecars have counted so far."""
        return scrape(pair.address for pair in self.pairs)

    def policy(self) -> dict[str, Any]:
        """Return the policy with its status."""
        custom = client.CustomObjectsApi(self.cluster.admin)
        found = custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, FAIRNESS_POLICIES, POLICY)
        return cast("dict[str, Any]", found)

    def objects(self) -> str:
        """Return tenants and policies as kubectl prints them."""
        return self.cluster.kubectl("get", "tenants,fairnesspolicies", f"--namespace={NAMESPACE}")

    def objects_yaml(self) -> str:
        """Return tenants and policies in full."""
        return self.cluster.kubectl(
            "get", "tenants,fairnesspolicies", f"--namespace={NAMESPACE}", "--output=yaml"
        )

    def check(self) -> None:
        """Raise ClusterError with the log's end when a part has ended."""
        for process in self._processes():
            process.check()

    # -- setting up

    def _start(self) -> None:
        self._start_cluster()
        step = self._progress.step
        state = self.state
        step(f"Starting {self.plan.engines} engines")
        places = addresses(self.plan.engines)
        for number, address in enumerate(places, start=1):
            folder = state / f"engine-{number}"
            folder.mkdir()
            engine = self.plan.launch_engine(number, folder, address)
            self.engines.append(engine)
            self._cleanup.callback(engine.stop)
        step("Installing the chart with helm")
        self._install_chart()
        step("Creating pods, tenants, Secrets and the policy (FCFS) with kubectl")
        pods = self._create_pods(places)
        self._apply_objects()
        step("Starting the operator with the chart's ServiceAccount")
        issuer = self._start_operator(pods[0].address.rpartition(".")[0] + ".100")
        for engine in self.engines:
            engine.wait_ready()
        step(f"Starting {self.plan.engines} sidecars")
        self._start_sidecars(pods, issuer)
        self._await_sync(self._progress)
        step(f"Ready: {len(self.pairs)} sidecars configured for {len(self.plan.tenants)} tenants")

    def _start_cluster(self) -> None:
        if not self.plan.existing:
            binaries = find(progress=self._progress)
            self.cluster = self._cleanup.enter_context(ControlPlane.start(binaries, progress=self._progress))
            return
        kubeconfig = os.environ.get("KUBECONFIG")
        if not kubeconfig:
            raise DemoError("--use-existing needs KUBECONFIG: the kubeconfig of the cluster to use")
        binaries = find(("kubectl", "helm"), progress=self._progress)
        self.cluster = self._cleanup.enter_context(Cluster.existing(binaries, kubeconfig=Path(kubeconfig)))
        core = client.CoreV1Api(self.cluster.admin)
        for name in self.plan.namespaces:
            if self._exists(partial(core.read_namespace, name)):
                raise DemoError(
                    f"the cluster has a namespace {name}: the demo makes, and at its end removes, one"
                )

    def _install_chart(self) -> None:
        cluster = self.cluster
        for name in self.plan.namespaces:
            cluster.create_namespace(name)
            if self.plan.existing:
                self._cleanup.callback(cluster.delete_namespace, name)
        for number in range(1, self.plan.engines + 1):
            cluster.create_node(NODE.format(number))
            if self.plan.existing:
                self._cleanup.callback(client.CoreV1Api(cluster.admin).delete_node, NODE.format(number))
        if self.plan.existing:
            self._cleanup.callback(cluster.helm, "uninstall", RELEASE, f"--namespace={RELEASE_NAMESPACE}")
        cluster.helm(
            *(
                "install",
                RELEASE,
                str(self.root / "charts" / "equipoise"),
                f"--namespace={RELEASE_NAMESPACE}",
            ),
            *("--set", f"watchNamespaces={{{NAMESPACE}}}", "--set", "replicas=1"),
            *("--set", f"dcgm.enabled={str(self.plan.gpus).lower()},dcgm.namespace={GPU_NAMESPACE}"),
        )

    def _create_pods(self, at: Sequence[str]) -> list[PodPlace]:
        """Create each engine's pod, on a node of its own, and the node's dcgm-exporter at the same address."""
        manifests = self.root / "manifests" / "demo"
        text = (manifests / "pod.yaml").read_text(encoding="utf-8")
        exporter = yaml.safe_load((manifests / "exporter.yaml").read_text(encoding="utf-8"))
        places = []
        for number, address in enumerate(at, start=1):
            pod = yaml.safe_load(text)
            name = pod["metadata"]["name"] = POD.format(number)
            folder = self.state / f"sidecar-{number}"
            folder.mkdir()
            node = NODE.format(number)
            uid = self.cluster.run_pod(pod, ip=address, namespace=NAMESPACE, node=node)
            places.append(PodPlace(name, uid, address, folder))
            if self.plan.gpus:
                metadata = {**exporter["metadata"], "name": f"{exporter['metadata']['name']}-{number}"}
                self.cluster.run_pod({**exporter, "metadata": metadata}, ip=address, node=node)
        return places

    def _apply_objects(self) -> None:
        folder = self.root / "manifests" / "demo"
        for file in ("tenants.yaml", "policy.yaml"):
            self.cluster.kubectl("apply", f"--filename={folder / file}")
        shipped = shipped_keys(self.root)
        more = [tenant_manifest(name) for name in self.plan.tenants if name not in shipped]
        if more:
            self.cluster.kubectl("apply", "--filename=-", input="---\n".join(more))

    def _start_operator(self, address: str) -> str:
        """Return the URL where it issues certificates."""
        kubeconfig = self.cluster.kubeconfig_for(RELEASE, namespace=RELEASE_NAMESPACE)
        settings = {
            "KUBECONFIG": str(kubeconfig),
            "EQUIPOISE_INSTALL": RELEASE,
            "EQUIPOISE_WATCH_NAMESPACES": NAMESPACE,
            "EQUIPOISE_HOST": address,
            "POD_NAME": "equipoise-demo",
            "POD_NAMESPACE": RELEASE_NAMESPACE,
            "POD_IP": address,
        }
        if self.plan.gpus:
            settings["EQUIPOISE_DCGM_NAMESPACE"] = GPU_NAMESPACE
        command = [sys.executable, "-m", "equipoise_operator"]
        self._operator = Process(command, self.state / "operator.log", env=environment(settings))
        self._cleanup.callback(self._operator.stop, STOP_SECONDS)
        until(
            "the operator is ready",
            lambda: answers(f"http://{address}:{OPERATOR_PORT}/readyz"),
            [self._operator],
            progress=self._progress,
        )
        return f"https://{address}:{ISSUER_PORT}"

    def _start_sidecars(self, pods: Sequence[PodPlace], issuer: str) -> None:
        """Do the kubelet's work for a pod's volumes, then start what runs in it."""
        core = client.CoreV1Api(self.cluster.admin)
        bundle = f"{RELEASE}-ca"
        until(
            "the operator has published its certificates",
            lambda: self._exists(lambda: core.read_namespaced_config_map(bundle, NAMESPACE)),
            [self._operator],
        )
        certificates = core.read_namespaced_config_map(bundle, NAMESPACE).data or {}
        ca_file = self.state / "issuer-ca.crt"
        ca_file.write_text(certificates["ca.crt"], encoding="utf-8")
        for pod, engine in zip(pods, self.engines, strict=True):
            token = self.cluster.token(NAMESPACE, "default", audience=TOKEN_AUDIENCE, pod=(pod.name, pod.uid))
            token_file = pod.folder / "token"
            token_file.touch(mode=0o600)
            token_file.write_text(token, encoding="utf-8")
            assert engine.uds is not None, "the demo's engines listen on Unix sockets"
            pair = Pair(pod, engine.uds, issuer, ca_file, token_file)
            self.pairs.append(pair)
            self._cleanup.callback(pair.stop)

    # -- waiting

    def _patch(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        patch = json.dumps({"spec": spec})
        self.cluster.kubectl(
            "patch", kind, name, f"--namespace={NAMESPACE}", "--type=merge", f"--patch={patch}"
        )

    def _await_sync(self, progress: Progress | None) -> None:
        """Return when every sidecar is ready and holds the policy as it is, with all tenants."""
        until(
            "all sidecars hold the policy",
            lambda: all(pair.ready() for pair in self.pairs) and self._synced(),
            self._processes(),
            seconds=SYNC_SECONDS,
            progress=progress,
        )

    def _synced(self) -> bool:
        policy = self.policy()
        status = policy.get("status", {})
        sidecars = status.get("sidecars", {})
        return bool(
            status.get("observedGeneration") == policy["metadata"]["generation"]
            and sidecars.get("synced") == sidecars.get("total") == len(self.pairs)
            and status.get("tenants", 0) >= len(self.plan.tenants)
        )

    def _tenants_synced(self) -> bool:
        custom = client.CustomObjectsApi(self.cluster.admin)
        found = custom.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, TENANTS)
        tenants = cast("dict[str, list[dict[str, Any]]]", found)["items"]
        return all(
            tenant.get("status", {}).get("observedGeneration") == tenant["metadata"]["generation"]
            and condition_of(tenant, "Synced") == "True"
            for tenant in tenants
        )

    def _processes(self) -> list[Process]:
        return [self._operator, *(pair.sidecar for pair in self.pairs)]

    def _exists(self, read: Callable[[], object]) -> bool:
        try:
            read()
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        return True
