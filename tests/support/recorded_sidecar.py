"""The sidecar's side of the operator's protocol, with a log of what was pushed, and how a pod gets its certificate."""

import asyncio
import secrets
import ssl
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from equipoise_api import names
from equipoise_api.sidecar_config import ConfigPatch, ConfigPush, Problem, PushResult, SidecarConfig
from equipoise_api.sidecar_state import SidecarState


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
        self.fault: int | None = None
        """HTTP status that every push gets."""
        self.raw_state: bytes | None = None
        """What it answers when asked for its state."""
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
        if self.fault is not None:
            entry.status = self.fault
            return web.Response(status=self.fault, text="out of order")
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
        if self.raw_state is not None:
            return web.Response(body=self.raw_state, content_type="application/json")
        state = SidecarState(
            software_version="1.0.0",
            policy=self.config.policy if self.config is not None else None,
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
