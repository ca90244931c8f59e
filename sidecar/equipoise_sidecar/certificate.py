"""The sidecar's identity on its admin port: a key that never leaves memory, a certificate that is renewed while it serves.

The issuer (the operator) signs for whom the projected ServiceAccount token names. Certificates come for 24 hours; the
next one is asked for after two thirds of that, or as soon as the authority's file changes.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from equipoise_api.certificates import CertificateRequest, CertificateResponse
from equipoise_api.names import CERTIFICATES_PATH

RENEW_AFTER_SHARE = 2 / 3
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 10.0
_LONGEST_TOLD_SECONDS = 60.0
"""The longest `Retry-After` that is waited for."""
_LOOK_SECONDS = 5.0
_LEAST_USE_SECONDS = 1.0
"""Between certificates, however short they live or wrong the clocks are."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)

log = structlog.get_logger(__name__)


class IssuerError(Exception):
    """The issuer gave no usable certificate: what it said, what to look at, and in how many seconds to come again if it said so."""

    def __init__(self, message: str, *, again: float = 0.0) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and whom to trust."""

    chain_pem: str
    key_pem: bytes
    ca_pem: str
    not_before: datetime
    not_after: datetime

    def renew_at(self) -> datetime:
        """Return when to ask for the next one."""
        return self.not_before + (self.not_after - self.not_before) * RENEW_AFTER_SHARE


class Issuer:
    """The operator's certificate endpoint, as the sidecar uses it."""

    def __init__(self, url: str, ca_file: Path, token_file: Path) -> None:
        self._url = url.rstrip("/") + CERTIFICATES_PATH
        self.ca_file = ca_file
        self._token_file = token_file

    async def issue(self) -> Issued:
        """Make a key and have it certified. Raises IssuerError."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "equipoise-sidecar")]))
            .sign(key, hashes.SHA256())
        )
        csr = request.public_bytes(serialization.Encoding.PEM).decode()
        answer = await self._ask(CertificateRequest(csr=csr))
        try:
            leaf = x509.load_pem_x509_certificates(answer.certificate.encode())[0]
        except ValueError as error:
            raise IssuerError(f"{self._url}: its answer's certificate cannot be read: {error}") from None
        if leaf.public_key() != key.public_key():
            raise IssuerError(f"{self._url}: the certificate is for another key")
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Issued(
            answer.certificate, private, answer.ca, leaf.not_valid_before_utc, leaf.not_valid_after_utc
        )

    async def _ask(self, request: CertificateRequest) -> CertificateResponse:
        try:
            token = self._token_file.read_text().strip()
            context = ssl.create_default_context(cadata=self.ca_file.read_text())
        except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
            raise IssuerError(f"token or CA file: {error}") from error
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as session,
                session.post(
                    self._url,
                    json=request.document(),
                    headers={"Authorization": f"Bearer {token}"},
                    ssl=context,
                    allow_redirects=False,
                ) as response,
            ):
                body = await response.read()
                if response.status not in {200, 201}:
                    said = body[:300].decode(errors="replace")
                    told = response.headers.get("Retry-After", "")
                    again = float(told) if told.isdecimal() else 0.0
                    raise IssuerError(f"{self._url} answered {response.status}: {said}", again=again)
                return CertificateResponse.model_validate_json(body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise IssuerError(f"{self._url}: {error!r}") from error
        except ValidationError as error:
            raise IssuerError(f"{self._url}: its answer is not a certificate: {error}") from error


def server_context(issued: Issued) -> ssl.SSLContext:
    """Build the admin port's TLS: our certificate, and a peer's that the same authority signed. Raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=issued.ca_pem)
    load_chain(context, issued)
    return context


def load_chain(context: ssl.SSLContext, issued: Issued) -> None:
    """Load key and certificate into a context that may be serving already. The key goes through memory, not a disk."""
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(issued.key_pem + b"\n" + issued.chain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def peer_identities(certificate_der: bytes | None) -> set[str]:
    """Return the URIs that a verified peer certificate names; none where there is no certificate."""
    if certificate_der is None:
        return set()
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.UniformResourceIdentifier))


class CertificateKeeper:
    """Keeps a certificate current."""

    def __init__(
        self, issuer: Issuer, use: Callable[[Issued], None], jitter: random.Random | None = None
    ) -> None:
        """Hand each new certificate to `use`, which may raise ssl.SSLError or ValueError."""
        self._issuer = issuer
        self._use = use
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads load, keeps no secret
        self.current: Issued | None = None
        self.failures = 0
        """Tries since the start that gave no certificate."""

    async def run(self) -> None:
        """Get a certificate and renew it, until cancelled. Failures are logged and tried again, ten seconds apart at most, or as told."""
        retry = _FIRST_RETRY_SECONDS
        while True:
            authority = self._authority()
            try:
                issued = await self._issuer.issue()
                self._use(issued)
            except (IssuerError, ssl.SSLError, ValueError) as error:
                self.failures += 1
                told = min(error.again, _LONGEST_TOLD_SECONDS) if isinstance(error, IssuerError) else 0.0
                # Not all at once those who were told the same, and none too early.
                pause = max(retry * self._jitter.uniform(0.8, 1.2), told * self._jitter.uniform(1.0, 1.5))
                log.warning("no certificate", error=str(error), retry_seconds=round(pause, 1))
                await asyncio.sleep(pause)
                retry = min(2 * retry, _LONGEST_RETRY_SECONDS)
                continue
            self.current = issued
            retry = _FIRST_RETRY_SECONDS
            log.info("certificate in use", not_after=issued.not_after.isoformat())
            await self._until_due(issued, authority)

    async def _until_due(self, issued: Issued, authority: bytes) -> None:
        early = (issued.not_after - issued.not_before) * self._jitter.uniform(0.0, 0.05)
        due = issued.renew_at() - early
        await asyncio.sleep(_LEAST_USE_SECONDS)
        while True:
            left = (due - datetime.now(UTC)).total_seconds()
            if left <= 0 or self._authority() != authority:
                return
            await asyncio.sleep(min(left, _LOOK_SECONDS))

    def _authority(self) -> bytes:
        try:
            return self._issuer.ca_file.read_bytes()
        except OSError:
            return b""
