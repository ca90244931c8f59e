"""A namespace with an install of its own: its objects, operators and sidecars, and what a test says of them."""

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cuttable_link import Link
from kubernetes import client
from operator_process import Operator
from patience import SLACK, WITHIN, eventually, lateness, stretch
from recorded_sidecar import Sidecar, load_pair, obtain_certificate

from equipoise_api import names


def _plural(kind: str) -> str:
    return {"FairnessPolicy": names.FAIRNESS_POLICIES}.get(kind, kind.lower() + "s")


@dataclass
class World:
    """One namespace with an install of its own."""

    cluster: Any
    namespace: str
    install: str
    class_name: str
    kubeconfig: Path
    ip: Callable[[], str]
    operators: list[Operator] = field(default_factory=list)
    sidecars: dict[str, Sidecar] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    # Objects

    async def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        return await asyncio.to_thread(
            self.cluster.kubectl, *arguments, f"--namespace={self.namespace}", input=input
        )

    async def apply(self, *objects: dict[str, Any]) -> None:
        text = yaml.safe_dump_all(objects)
        await self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", input=text)

    async def delete(self, *what: str) -> None:
        await self.kubectl("delete", "--wait=false", *what)

    async def get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(await self.kubectl("get", kind, name, "--output=json"))

    async def create(self, document: dict[str, Any]) -> float:
        """Create an object; return the instant before."""
        return await self._timed("create", _plural(document["kind"]), document)

    async def patch(self, kind: str, name: str, change: dict[str, Any]) -> float:
        """Merge into an object; return the instant before."""
        return await self._timed("patch", _plural(kind), name, change)

    async def remove(self, kind: str, name: str) -> float:
        """Delete an object; return the instant before."""
        return await self._timed("delete", _plural(kind), name)

    async def _timed(self, verb: str, plural: str, *arguments: Any) -> float:
        custom = plural in {names.TENANTS, names.FAIRNESS_POLICIES}
        if custom:
            api = client.CustomObjectsApi(self.cluster.admin)
            call = getattr(api, f"{verb}_namespaced_custom_object")
            arguments = (names.GROUP, names.VERSION, self.namespace, plural, *arguments)
        else:
            api = client.CoreV1Api(self.cluster.admin)
            call = getattr(api, f"{verb}_namespaced_{plural.removesuffix('s')}")
            arguments = (
                (self.namespace, *arguments)
                if verb == "create"
                else (arguments[0], self.namespace, *arguments[1:])
            )
        began = time.monotonic()
        await asyncio.to_thread(call, *arguments)
        return began

    async def within(
        self, began: float, holds: Callable[[Sidecar], Any], *sidecars: Sidecar, limit: float = 0.0
    ) -> float:
        """Wait until it holds of every sidecar; assert that it did so within the limit. Return the seconds.

        The limit is the operator's on an idle machine of usual speed; this one gets as much longer as it is slower.
        """
        watched = sidecars or tuple(self.sidecars.values())
        async with lateness() as late:
            await eventually(lambda: all(holds(each) for each in watched), also=self.tails)
            seconds = max((each.log[-1].at for each in watched if each.log), default=began) - began
            limit = max(limit, WITHIN)
            if seconds > limit:
                limit = limit * stretch() + late()
        assert seconds <= limit, f"{seconds:.2f} s, and here {limit:.2f} s are allowed\n{self.tails()}"
        return seconds

    def tails(self) -> str:
        return "\n".join(f"--- {each.name}\n{each.tail()}" for each in self.operators)

    def tenant(self, name: str, *, weight: int = 1, secrets: tuple[str, ...] = (), **spec: Any) -> dict:
        identity = {"apiKeys": [{"secretName": secret} for secret in secrets]} if secrets else {}
        return {
            "apiVersion": names.API_VERSION,
            "kind": "Tenant",
            "metadata": {"name": name},
            "spec": {"weight": weight, "identity": identity} | spec,
        }

    def policy(self, name: str, *, app: str = "vllm", **spec: Any) -> dict:
        return {
            "apiVersion": names.API_VERSION,
            "kind": "FairnessPolicy",
            "metadata": {"name": name},
            "spec": {
                "className": self.class_name,
                "target": {"selector": {"matchLabels": {"app": app}}},
                **spec,
            },
        }

    def secret(self, name: str, *keys: str, labelled: bool = True, **entries: str) -> dict:
        data = entries or {f"key{number}": key for number, key in enumerate(keys)}
        labels = {names.CREDENTIAL_LABEL: "true"} if labelled else {}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": labels},
            "stringData": data,
        }

    def pod(self, name: str, *, app: str = "vllm") -> dict:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": app}},
            "spec": {
                "initContainers": [
                    {
                        "name": names.SIDECAR_CONTAINER,
                        "image": "sidecar",
                        "restartPolicy": "Always",
                        "env": [{"name": "EQUIPOISE_INSTALL", "value": self.install}],
                        "ports": [{"name": names.ADMIN_PORT_NAME, "containerPort": names.ADMIN_PORT}],
                    }
                ],
                "containers": [{"name": "vllm", "image": "vllm"}],
            },
        }

    async def condition(self, kind: str, name: str, of: str) -> tuple[str, str]:
        status = (await self.get(kind, name)).get("status", {})
        for each in status.get("conditions", ()):
            if each["type"] == of:
                return each["status"], each["reason"]
        return "", ""

    async def says(self, kind: str, name: str, of: str, status: str, reason: str | None = None) -> None:
        async def holds() -> bool:
            found = await self.condition(kind, name, of)
            return found[0] == status and reason in {None, found[1]}

        deadline = time.monotonic() + SLACK
        while not await holds():
            if time.monotonic() > deadline:
                document = (await self.get(kind, name)).get("status")
                pytest.fail(
                    f"{kind} {name}: {of} is not {status} {reason or ''}: {json.dumps(document, indent=1)}"
                )
            await asyncio.sleep(0.1)

    # Processes

    async def link(self) -> Link:
        made = await Link(int(self.cluster.server.rpartition(":")[2])).start()
        self.links.append(made)
        return made

    def operator(self, name: str = "operator-a", *, link: Link | None = None, **environment: str) -> Operator:
        kubeconfig = self.kubeconfig
        if link is not None:
            document = json.loads(kubeconfig.read_text())
            document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{link.port}"
            kubeconfig = kubeconfig.with_name(f"{self.namespace}-{link.port}.kubeconfig")
            kubeconfig.write_text(json.dumps(document))
        made = Operator(
            {
                "KUBECONFIG": str(kubeconfig),
                "EQUIPOISE_INSTALL": self.install,
                "EQUIPOISE_CLASS_NAME": self.class_name,
                "EQUIPOISE_WATCH_NAMESPACES": self.namespace,
                "EQUIPOISE_HTTP_PORT": "0",
                "EQUIPOISE_ISSUER_PORT": "0",
                "EQUIPOISE_HOST": "127.0.0.1",
                "POD_NAME": name,
                "POD_NAMESPACE": self.namespace,
            }
            | environment
        )
        self.operators.append(made)
        return made.spawn()

    async def ca(self) -> str:
        async def read() -> str:
            name = f"{self.install}-ca"
            text = await self.kubectl("get", "configmap", name, "--ignore-not-found", "--output=json")
            return json.loads(text)["data"]["ca.crt"] if text else ""

        return await eventually(read, what="no ConfigMap with the authority")

    async def run_pod(self, name: str, *, app: str = "vllm") -> Sidecar:
        """Create a pod and its sidecar, which gets its certificate from the operator as a real one does."""
        operator = await self.issuing()
        ip = self.ip()
        uid = await asyncio.to_thread(
            self.cluster.run_pod, self.pod(name, app=app), ip=ip, namespace=self.namespace
        )
        sidecar = self.sidecars[name] = Sidecar(self.namespace, name, uid, ip, self.install)
        await self.start_sidecar(sidecar, operator)
        return sidecar

    async def issuing(self) -> Operator:
        """Wait for an operator that serves certificates."""

        def found() -> Operator | None:
            alive = (each for each in self.operators if each.alive)
            return next((each for each in alive if each.said("listening", what="issuer")), None)

        return await eventually(found, what="no operator issues certificates", also=self.tails)

    async def token(self, sidecar: Any) -> str:
        return await asyncio.to_thread(
            self.cluster.token,
            self.namespace,
            "default",
            audience=names.TOKEN_AUDIENCE,
            pod=(sidecar.name, sidecar.uid),
        )

    async def context_of(self, pod: Any) -> ssl.SSLContext:
        """Return a client's TLS context with a certificate that the operator issued for that pod."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, trusted = await obtain_certificate(
            key, issuer=(await self.issuing()).issuer, token=await self.token(pod), ca=await self.ca()
        )
        context = ssl.create_default_context(cadata=trusted)
        context.check_hostname = False
        load_pair(context, certificate, key)
        return context

    async def start_sidecar(self, sidecar: Sidecar, operator: Operator) -> None:
        await sidecar.start(issuer=operator.issuer, token=await self.token(sidecar), ca=await self.ca())

    async def delete_pod(self, name: str) -> None:
        await asyncio.to_thread(self.cluster.delete_pod, self.namespace, name)

    async def close(self) -> None:
        for operator in self.operators:
            await asyncio.to_thread(operator.close)
        for sidecar in self.sidecars.values():
            await sidecar.stop()
        for link in self.links:
            await link.cut()
