"""A cluster that answers: what tests and the demo do with it, whoever started it."""

import base64
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from equipoise_cluster import commands, kubeconfig, nodes, pods
from equipoise_cluster.binaries import Binaries
from equipoise_cluster.errors import ClusterError, CommandError

NODE = "loopback"
NODE_ADDRESS = "127.0.0.1"


class Cluster:
    """A Kubernetes cluster as its admin sees it. All calls block; from asyncio use `asyncio.to_thread`."""

    def __init__(self, *, kubeconfig: Path, server: str, ca: Path, binaries: Binaries, state: Path) -> None:
        self.kubeconfig = kubeconfig
        """The admin's kubeconfig."""
        self.server = server
        """URL of the API server."""
        self.ca = ca
        """The certificate (PEM) that signs the API server's."""
        self.binaries = binaries
        self.state = state
        """A folder for what is written: logs, kubeconfigs, caches of kubectl and helm."""

    @classmethod
    def existing(cls, binaries: Binaries, *, kubeconfig: Path) -> "Cluster":
        """A cluster that is there: the kubeconfig's current context. Needs kubectl and helm only."""
        state = Path(tempfile.mkdtemp(prefix="equipoise-existing-"))
        try:
            view = commands.run(
                binaries["kubectl"],
                *("config", "view", "--raw", "--minify", "--flatten", "--output=json"),
                env=commands.kubectl_environment(kubeconfig, state),
            )
        except CommandError as error:
            shutil.rmtree(state)
            raise ClusterError(
                f"KUBECONFIG={kubeconfig} names no cluster ({error.stderr.strip()}): "
                "kubectl config use-context sets its current context."
            ) from error
        entry = json.loads(view)["clusters"][0]["cluster"]
        ca = state / "ca.crt"
        ca.write_bytes(base64.b64decode(entry.get("certificate-authority-data", "")))
        return cls(kubeconfig=kubeconfig, server=entry["server"], ca=ca, binaries=binaries, state=state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends what was started for it: of an existing cluster, nothing. Removes the state."""
        shutil.rmtree(self.state, ignore_errors=True)

    # Clients

    def kubectl(self, *arguments: str, input: str | None = None, seconds: float = 120.0) -> str:  # noqa: A002 - as subprocess.run
        """Runs kubectl as admin, `input` to its stdin. CommandError if it refuses."""
        env = commands.kubectl_environment(self.kubeconfig, self.state)
        return commands.run(self.binaries["kubectl"], *arguments, env=env, stdin=input, seconds=seconds)

    def helm(self, *arguments: str, input: str | None = None, seconds: float = 300.0) -> str:  # noqa: A002 - as subprocess.run
        """Runs helm as admin, `input` to its stdin. CommandError if it refuses."""
        env = commands.helm_environment(self.kubeconfig, self.state)
        return commands.run(self.binaries["helm"], *arguments, env=env, stdin=input, seconds=seconds)

    @cached_property
    def admin(self) -> client.ApiClient:
        """An ApiClient of the `kubernetes` package with the admin's rights."""
        return self.client(self.kubeconfig)

    def client(self, path: Path) -> client.ApiClient:
        """An ApiClient of the `kubernetes` package with a kubeconfig's credentials."""
        return config.new_client_from_config(str(path))  # type: ignore[no-untyped-call, no-any-return]

    def token(
        self,
        namespace: str,
        service_account: str,
        *,
        audience: str | None = None,
        seconds: int = 3600,
        pod: tuple[str, str] | None = None,
    ) -> str:
        """A token of a ServiceAccount (TokenRequest), valid for at least 600 s.

        `audience` is the API server's own unless given. `pod` (name, uid) binds it as a projected volume does:
        a TokenReview names that pod, and the token ends within 10 s of the pod's deletion.
        """
        spec = client.V1TokenRequestSpec(expiration_seconds=seconds, audiences=[audience] if audience else [])
        if pod:
            spec.bound_object_ref = client.V1BoundObjectReference(
                api_version="v1", kind="Pod", name=pod[0], uid=pod[1]
            )
        answer = client.CoreV1Api(self.admin).create_namespaced_service_account_token(
            service_account, namespace, client.AuthenticationV1TokenRequest(spec=spec)
        )
        assert answer.status
        assert answer.status.token
        return answer.status.token

    def kubeconfig_for(self, service_account: str, *, namespace: str, seconds: int = 86400) -> Path:
        """Writes a kubeconfig with a token of that ServiceAccount, and its namespace as the default."""
        return kubeconfig.write(
            self.state / f"{namespace}-{service_account}.kubeconfig",
            server=self.server,
            ca=self.ca.read_bytes(),
            credentials=self.token(namespace, service_account, seconds=seconds),
            namespace=namespace,
        )

    # Objects

    def create_namespace(self, name: str | None = None) -> str:
        """Creates a namespace in which pods can be created. Returns its name; by default a unique one."""
        name = name or f"test-{secrets.token_hex(4)}"
        core = client.CoreV1Api(self.admin)
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
        # Without its ServiceAccount a namespace refuses pods.
        self._until(f"namespace {name} has no ServiceAccount", lambda: self._has_service_account(name))
        return name

    def delete_namespace(self, name: str) -> None:
        """Deletes the namespace, and at once the pods that no kubelet would ever confirm as ended."""
        core = client.CoreV1Api(self.admin)
        core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        core.delete_namespace(name)

    def create_node(self, name: str = NODE, *, address: str = NODE_ADDRESS) -> None:
        """A Ready Node with no kubelet, for pods whose containers the caller runs. One there is left as it is."""
        try:
            nodes.create(self.admin, name, address)
        except ApiException as error:
            if error.status != 409:
                raise

    def run_pod(
        self, manifest: Mapping[str, Any], *, ip: str, namespace: str = "default", node: str = NODE
    ) -> str:
        """Creates a pod on the node and declares it Running and Ready. Returns its uid.

        All of 127.0.0.0/8 works on loopback: `ip` 127.0.1.1, 127.0.1.2, ... give each pod an address of its own.
        Services find none of them: the EndpointSlice controller refuses loopback addresses.
        """
        namespace = manifest["metadata"].get("namespace", namespace)
        pod = pods.create(self.admin, manifest, namespace=namespace, node=node)
        pods.set_running(self.admin, pod, ip=ip, host_ip=NODE_ADDRESS)
        return _uid(pod)

    def set_pod_running(
        self,
        namespace: str,
        name: str,
        *,
        ip: str,
        node: str = NODE,
        ready: bool = True,
        restarts: int = 0,
    ) -> str:
        """Does the scheduler's and the kubelet's work for a pod that exists, a Deployment's for one. Returns its uid."""
        pod = client.CoreV1Api(self.admin).read_namespaced_pod(name, namespace)
        if not (pod.spec and pod.spec.node_name):
            pods.bind(self.admin, namespace, name, node)
        pods.set_running(self.admin, pod, ip=ip, host_ip=NODE_ADDRESS, ready=ready, restarts=restarts)
        return _uid(pod)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Removes a pod at once. None there is no error."""
        pods.delete(self.admin, namespace, name)

    def _until(self, otherwise: str, holds: Callable[[], bool], seconds: float = 120.0) -> None:
        """Asks until it holds. ClusterError after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if holds():
                return
            time.sleep(0.02)
        raise ClusterError(f"{otherwise} after {seconds:g} s")

    def _has_service_account(self, namespace: str) -> bool:
        try:
            client.CoreV1Api(self.admin).read_namespaced_service_account("default", namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        return True


def _uid(pod: client.V1Pod) -> str:
    assert pod.metadata
    assert pod.metadata.uid
    return pod.metadata.uid
