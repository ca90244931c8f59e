"""An operator process under the chart's ServiceAccount, sidecars that keep a log of every push, and a link that can be cut."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client

from equipoise_api import names
from equipoise_api.sidecar_config import (
    ConfigPatch,
    ConfigPush,
    Problem,
    PushResult,
    SidecarConfig,
)
from equipoise_api.sidecar_state import SidecarState

ROOT = Path(__file__).parents[3]
RELEASE = "equipoise"
WITHIN = 2.0
"""Seconds within which every selected sidecar has the right revision, on a machine that is not overloaded."""
SLACK = 60.0
"""Until a test gives up waiting for what has no limit of its own."""


def within() -> float:
    """Return WITHIN, stretched where more than two tasks a core want to run: then seconds are not the operator's."""
    return WITHIN * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))


@dataclass
class Push:
    """One push as a sidecar saw it."""

    at: float
    method: str
    status: int
    epoch: int
    sequence: int
    revision: str
    applied: bool = False
    size: int = 0


class Sidecar:
    """The sidecar's side of the protocol, over mutual TLS, with a log of what was pushed. Holds what a real one holds."""

    def __init__(self, namespace: str, name: str, uid: str, ip: str, install: str) -> None:
        self.namespace, self.name, self.uid, self.ip, self.install = namespace, name, uid, ip, install
        self.log: list[Push] = []
        self.config: SidecarConfig | None = None
        self.revision: str | None = None
        self.pair = (0, 0)
        self.incarnation = secrets.token_hex(4)
        self.state: dict[str, Any] = {}
        self.refuse: Problem | None = None
        self.hang = False
        self.revision_reached: dict[str, float] = {}
        self._runner: web.AppRunner | None = None
        self.issued = ""
        self.key = ec.generate_private_key(ec.SECP256R1())

    async def start(self, *, issuer: str, token: str, ca: str, port: int = names.ADMIN_PORT) -> None:
        certificate, trusted = await obtain_certificate(self.key, issuer=issuer, token=token, ca=ca)
        self.issued, self.trusted = certificate, trusted
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trusted)
        load_pair(context, certificate, self.key)
        app = web.Application(client_max_size=2**27)
        app.router.add_put(names.CONFIG_PATH, self._put)
        app.router.add_patch(names.CONFIG_PATH, self._patch)
        app.router.add_get(names.STATE_PATH, self._state)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.ip, port, ssl_context=context).start()

    async def stop(self, *, forget: bool = True) -> None:
        """End the process; with `forget` what it held is lost, too."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.incarnation = secrets.token_hex(4)
        if forget:
            self.config, self.revision, self.pair = None, None, (0, 0)

    def keys_of(self, tenant: str) -> list[str]:
        for each in self.config.tenants if self.config else ():
            if each.id == tenant:
                return each.key_digests
        return []

    @property
    def accepted(self) -> list[Push]:
        return [push for push in self.log if push.status == 200]

    def never_went_back(self) -> bool:
        """Say whether no push of a lower term came after one of a higher, and what was taken only grew."""
        epochs = [push.epoch for push in self.log]
        pairs = [(push.epoch, push.sequence) for push in self.accepted]
        return epochs == sorted(epochs) and pairs == sorted(set(pairs))

    def tenants(self) -> dict[str, int]:
        return {tenant.id: tenant.weight for tenant in self.config.tenants} if self.config else {}

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.read()
        push = ConfigPush.model_validate_json(body)
        return await self._take(
            request, push.epoch, push.sequence, push.revision, push.config, size=len(body)
        )

    async def _patch(self, request: web.Request) -> web.Response:
        body = await request.read()
        patch = ConfigPatch.model_validate_json(body)
        if self.revision not in {patch.base_revision, patch.revision} or self.config is None:
            return self._answer(request, 412, patch, Problem(message="other base", revision=self.revision))
        merged = {tenant.id: tenant for tenant in self.config.tenants}
        merged |= {tenant.id: tenant for tenant in patch.tenants}
        for gone in patch.removed:
            merged.pop(gone, None)
        config = self.config.model_copy(update={"tenants": [merged[name] for name in sorted(merged)]})
        if config.revision != patch.revision:
            return self._answer(request, 412, patch, Problem(message="another result"))
        return await self._take(request, patch.epoch, patch.sequence, patch.revision, config, size=len(body))

    async def _take(self, request, epoch, sequence, revision, config, *, size) -> web.Response:
        await self._awake()
        entry = Push(time.monotonic(), request.method, 200, epoch, sequence, revision, size=size)
        self.log.append(entry)
        if operator_of(request) != names.operator_identity(self.install):
            entry.status = 403
            return web.json_response(Problem(message="not the operator").document(), status=403)
        if (epoch, sequence) < self.pair:
            entry.status = 409
            problem = Problem(message="newer push taken", epoch=self.pair[0], sequence=self.pair[1])
            return web.json_response(problem.document(), status=409)
        if self.refuse is not None:
            entry.status = 422
            return web.json_response(self.refuse.document(), status=422)
        assert config.revision == revision, (
            "the pushed revision must be the digest of the pushed configuration"
        )
        entry.applied = revision != self.revision
        self.pair, self.config, self.revision = (epoch, sequence), config, revision
        self.revision_reached.setdefault(revision, entry.at)
        result = PushResult(revision=revision, epoch=epoch, sequence=sequence, applied=entry.applied)
        return web.json_response(result.document())

    def _answer(self, request, status, push, problem) -> web.Response:
        self.log.append(
            Push(time.monotonic(), request.method, status, push.epoch, push.sequence, push.revision)
        )
        return web.json_response(problem.document(), status=status)

    async def _awake(self) -> None:
        while self.hang:
            await asyncio.sleep(0.05)

    async def _state(self, request: web.Request) -> web.Response:
        await self._awake()
        state = SidecarState(
            pod_uid=self.uid,
            incarnation=self.incarnation,
            revision=self.revision,
            epoch=self.pair[0],
            sequence=self.pair[1],
            ready=self.config is not None,
        )
        return web.json_response(state.document() | self.state)


def operator_of(request: web.Request) -> str:
    certificate = request.transport.get_extra_info("peercert")
    return next((value for kind, value in certificate["subjectAltName"] if kind == "URI"), "")


def load_pair(context: ssl.SSLContext, certificate: str, key: ec.EllipticCurvePrivateKey) -> None:
    with tempfile.NamedTemporaryFile("wb") as file:
        file.write(certificate.encode())
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        file.flush()
        context.load_cert_chain(file.name)


def _plural(kind: str) -> str:
    return {"FairnessPolicy": names.FAIRNESS_POLICIES}.get(kind, kind.lower() + "s")


def csr_for(key) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


async def obtain_certificate(key, *, issuer: str, token: str, ca: str) -> tuple[str, str]:
    context = ssl.create_default_context(cadata=ca)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            issuer + names.CERTIFICATES_PATH,
            json={"csr": csr_for(key)},
            headers={"Authorization": f"Bearer {token}"},
            ssl=context,
        ) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return answer["certificate"], answer["ca"]


class Operator:
    """An operator process and its log."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[dict[str, Any]] = []
        self._reader: asyncio.Task[None] | None = None
        self._file: Any = None

    @property
    def name(self) -> str:
        return self.environment["POD_NAME"]

    def spawn(self) -> "Operator":
        self.lines = []
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "equipoise_operator"],
            env=os.environ | self.environment,
            stderr=self._file,
            stdout=self._file,
            cwd=tempfile.gettempdir(),
        )
        return self

    def read(self) -> list[dict[str, Any]]:
        for line in Path(self._file.name).read_text().splitlines()[len(self.lines) :]:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line})
        return self.lines

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.read()
            if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def address(self, what: str) -> int:
        return self.said("listening", what=what)[0]["address"][1]

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.address('http')}"

    @property
    def issuer(self) -> str:
        return f"https://127.0.0.1:{self.address('issuer')}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    async def ended(self, seconds: float = 20.0) -> int:
        await eventually(lambda: not self.alive, seconds=seconds)
        return self.process.returncode

    def close(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    async def leading(self) -> "Operator":
        await eventually(lambda: self.said("leading"), what=f"{self.name} does not lead", also=self.tail)
        return self

    def tail(self) -> str:
        return "\n".join(json.dumps(line)[:600] for line in self.read()[-30:])

    async def metric(self, name: str, **labels: str) -> float | None:
        async with aiohttp.ClientSession() as session, session.get(self.http + "/metrics") as response:
            text = await response.text()
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        prefix = f"equipoise_operator_{name}{{{shown}}} " if shown else f"equipoise_operator_{name} "
        return next(
            (float(line[len(prefix) :]) for line in text.splitlines() if line.startswith(prefix)), None
        )


async def eventually(
    holds: Callable[[], Any],
    *,
    seconds: float = SLACK,
    what: str = "",
    also: Callable[[], str] = lambda: "",
) -> Any:
    """Wait until it holds; fail with what was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        result = holds()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what or holds}\n{also()}")
        await asyncio.sleep(0.02)


class Link:
    """A TCP relay to the API server: `stall` lets nothing through but keeps connections, `cut` refuses and resets."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> "Link":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stall(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def cut(self) -> None:
        assert self._server
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._flowing.set()

    async def _serve(self, reader, writer) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= {writer, far_writer}

    async def _pump(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


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
        """Wait until it holds of every sidecar; assert that it did so within the limit. Return the seconds."""
        watched = sidecars or tuple(self.sidecars.values())
        await eventually(lambda: all(holds(each) for each in watched), also=self.tails)
        seconds = max((each.log[-1].at for each in watched if each.log), default=began) - began
        assert seconds <= max(limit, within()), f"{seconds:.2f} s\n{self.tails()}"
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
    kubeconfig = await asyncio.to_thread(cluster.kubeconfig_for, install, namespace=namespace)
    made = World(cluster, namespace, install, f"c-{namespace}", kubeconfig, address)
    try:
        yield made
    finally:
        await made.close()
