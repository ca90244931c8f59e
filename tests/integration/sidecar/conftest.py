"""A real sidecar process between a test authority that issues certificates and a stand-in engine."""

import asyncio
import datetime as dt
import json
import math
import os
import signal
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from equipoise_api.certificates import CertificateRequest, CertificateResponse
from equipoise_api.names import CERTIFICATES_PATH, CONFIG_PATH, STATE_PATH, operator_identity, pod_identity
from equipoise_api.sidecar_config import ConfigPatch, ConfigPush, SidecarConfig
from equipoise_api.sidecar_state import SidecarState, TenantState
from equipoise_cluster import ports
from equipoise_simulator.standin import StandIn

INSTALL, POD_UID, TOKEN = "test-install", "11111111-2222-3333-4444-555555555555", "projected-token"


class Authority:
    """A certificate authority."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._now = dt.datetime.now(dt.UTC)
        self.certificate = (
            self._builder(self._name, self._key.public_key(), dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject, public_key, lifetime):
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - dt.timedelta(seconds=1))
            .not_valid_after(dt.datetime.now(dt.UTC) + lifetime)
        )

    def sign(self, public_key, *names: x509.GeneralName, lifetime: dt.timedelta) -> str:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        certificate = (
            self._builder(subject, public_key, lifetime)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def context(self, directory: Path, identity: str | None, *, server: bool = False) -> ssl.SSLContext:
        """Return TLS for a peer with that SPIFFE identity (None: without a certificate)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        if not server:
            context.check_hostname = False
            context.load_verify_locations(cadata=self.pem)
        if identity is not None:
            key = ec.generate_private_key(ec.SECP256R1())
            names = [x509.UniformResourceIdentifier(identity), x509.DNSName("localhost")]
            chain = self.sign(key.public_key(), *names, lifetime=dt.timedelta(hours=1))
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode()
            file = directory / f"{abs(hash((identity, id(self))))}.pem"
            file.write_text(private + chain)
            context.load_cert_chain(file)
        return context


class TestIssuer:
    """The operator's certificate endpoint, as the sidecar sees it."""

    __test__ = False

    def __init__(self, authority: Authority, directory: Path) -> None:
        self.authority = authority
        self.trusted = authority.pem
        """What it tells sidecars to trust."""
        self.lifetime = dt.timedelta(hours=24)
        self.issued = 0
        self.refusing = False
        self._directory = directory
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post(CERTIFICATES_PATH, self._issue)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        context = self.authority.context(self._directory, operator_identity(INSTALL), server=True)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://localhost:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _issue(self, request: web.Request) -> web.Response:
        if self.refusing or request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, text="who are you?")
        wanted = CertificateRequest.model_validate_json(await request.read())
        csr = x509.load_pem_x509_csr(wanted.csr.encode())
        assert csr.is_signature_valid
        name = x509.UniformResourceIdentifier(pod_identity(INSTALL, POD_UID))
        self.issued += 1
        answer = CertificateResponse(
            certificate=self.authority.sign(csr.public_key(), name, lifetime=self.lifetime), ca=self.trusted
        )
        return web.json_response(answer.document())


@dataclass
class Process:
    """A sidecar process and the ways to reach it."""

    directory: Path
    authority: Authority
    environment: dict[str, str]
    data_port: int
    admin_port: int
    health_port: int
    process: asyncio.subprocess.Process | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.directory / "sidecar.log"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "equipoise_sidecar",
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def until(self, check: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait until `check` returns something; what connection errors say is that it is not yet so."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                if seen := await check():
                    return seen
            except (aiohttp.ClientError, OSError) as error:
                seen = error
            assert self.process is not None
            if self.process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {seconds} s, last {seen!r}:\n{self.log.read_text()}")
            await asyncio.sleep(0.05)

    def admin_url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.admin_port}{path}"

    async def health(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.health_port}{path}") as response,
        ):
            return response.status, await response.text()

    async def ready(self) -> bool:
        return (await self.health("/readyz"))[0] == 200

    async def draining(self) -> bool:
        return (await self.health("/readyz"))[1] == "draining\n"

    async def admin(
        self, method: str, path: str, body: bytes | None = None, *, tls: ssl.SSLContext | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask the admin port, as the operator unless `tls` says otherwise."""
        tls = tls or self.authority.context(self.directory, operator_identity(INSTALL))
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.admin_url(path), data=body, ssl=tls) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def put(self, config: SidecarConfig, epoch: int, sequence: int) -> tuple[int, dict[str, Any]]:
        push = ConfigPush(epoch=epoch, sequence=sequence, revision=config.revision, config=config)
        return await self.admin("PUT", CONFIG_PATH, push.model_dump_json(by_alias=True).encode())

    async def patch(self, patch: ConfigPatch) -> tuple[int, dict[str, Any]]:
        return await self.admin("PATCH", CONFIG_PATH, patch.model_dump_json(by_alias=True).encode())

    async def state(self) -> SidecarState:
        status, document = await self.admin("GET", STATE_PATH)
        assert status == 200
        return SidecarState.strictly(document)

    async def tenant(self, name: str) -> TenantState:
        (found,) = [each for each in (await self.state()).tenants if each.id == name]
        return found

    async def written(self, name: str) -> TenantState:
        """Wait until the disk has all that the tenant was served; return the tenant."""
        tenant, file = await self.tenant(name), self.directory / "state" / "counters.json"

        async def on_disk() -> bool:
            held = json.loads(file.read_text())["state"]["scheduler"]["history"] if file.exists() else {}
            return math.isclose(held.get(name, 0.0) * tenant.weight, tenant.service, rel_tol=1e-6)

        await self.until(on_disk)
        return tenant

    async def chat(
        self, tenant: str | None = None, *, max_tokens: int = 8, stream: bool = True
    ) -> tuple[int, Mapping[str, str], str]:
        headers = {"X-Tenant": tenant} if tenant is not None else {}
        body = {
            "model": "standin",
            "messages": [{"role": "user", "content": "How are you?"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://127.0.0.1:{self.data_port}/v1/chat/completions", json=body, headers=headers
            ) as response,
        ):
            return response.status, response.headers, await response.text()


@pytest.fixture
def authority() -> Authority:
    return Authority("the operator's authority")


@pytest.fixture
async def issuer(authority, tmp_path):
    issuer = TestIssuer(authority, tmp_path)
    await issuer.start()
    yield issuer
    await issuer.stop()


@pytest.fixture
async def engine(tmp_path):
    engine = StandIn(profile="fast", speed=4, uds=tmp_path / "engine.sock")
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def sidecar(authority, issuer, engine, tmp_path):
    """A sidecar that runs, has its certificate, and no configuration."""
    data, admin, health = ports.choose(3)
    (tmp_path / "ca.pem").write_text(authority.pem)
    (tmp_path / "token").write_text(TOKEN + "\n")
    environment = {
        "EQUIPOISE_ENGINE": f"unix:{engine.uds}",
        "EQUIPOISE_HOST": "127.0.0.1",
        "EQUIPOISE_DATA_PORT": str(data),
        "EQUIPOISE_ADMIN_PORT": str(admin),
        "EQUIPOISE_HEALTH_PORT": str(health),
        "EQUIPOISE_STATE_DIR": str(tmp_path / "state"),
        "EQUIPOISE_DRAINED_FILE": str(tmp_path / "drained"),
        "EQUIPOISE_DRAIN_SECONDS": "120",
        "EQUIPOISE_ISSUER_URL": issuer.url,
        "EQUIPOISE_CA_FILE": str(tmp_path / "ca.pem"),
        "EQUIPOISE_TOKEN_FILE": str(tmp_path / "token"),
        "EQUIPOISE_INSTALL": INSTALL,
        "POD_UID": POD_UID,
        "POD_NAME": "vllm-0",
        "POD_NAMESPACE": "models",
    }
    process = Process(tmp_path, authority, environment, data, admin, health)
    await process.start()
    await process.until(process.state)
    yield process
    await process.kill()
