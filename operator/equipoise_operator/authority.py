"""The install's authority in its Secret: made by the leader once, read by every replica, succeeded in time.

The Secret outlives the operator and its chart: whoever deletes it makes every sidecar ask for a certificate anew. One that
cannot be read is left alone and reported: to overwrite it would do the same.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from equipoise_operator.kube import ApiError, Json, Kube, path
from equipoise_operator.pki import Authority, KeyPair, new_authority

CHECK_SECONDS = 60.0
MISSING_SECONDS = 0.5
"""Between looks while there is none."""

log = structlog.get_logger(__name__)


class AuthorityError(Exception):
    """The Secret is there and cannot be used."""


class AuthorityKeeper:
    """Knows the present authority; with `leads` also makes and succeeds it."""

    def __init__(self, kube: Kube, *, namespace: str, install: str, leads: Callable[[], bool]) -> None:
        self._kube = kube
        self._namespace, self._install = namespace, install
        self.name = f"{install}-ca"
        self._leads = leads
        self._changed = asyncio.Event()
        self.authority: Authority | None = None
        self.problem = "not read yet"

    async def run(self, on_change: Callable[[Authority], None]) -> None:
        """Keep `authority` as the Secret has it, for ever; call `on_change` with each new one."""
        while True:
            try:
                found = await self._read_or_make()
                self.problem = "" if found else f"the leader has not made Secret {self.name}"
            except (ApiError, AuthorityError) as error:
                if self.problem != str(error):
                    log.warning("authority-unavailable", error=str(error))
                self.problem = str(error)
                found = None
            if found is not None and found != self.authority:
                self.authority = found
                on_change(found)
                self._changed.set()
            await asyncio.sleep(CHECK_SECONDS if self.authority else MISSING_SECONDS)

    async def ready(self) -> Authority:
        """Wait for the first one."""
        await self._changed.wait()
        assert self.authority is not None
        return self.authority

    async def _read_or_make(self) -> Authority | None:
        now = datetime.now(UTC)
        where = path("v1", "secrets", self._namespace, self.name)
        try:
            secret = await self._kube.get(where)
        except ApiError as error:
            if error.status != 404:
                raise
            return await self._make(now)
        authority = decode(secret.get("data") or {})
        due = authority.due(self._install, now)
        if due is None or not self._leads():
            return authority
        log.info("authority-succession", signs_until=due.present.expires().isoformat())
        await self._kube.replace(where, secret | {"data": encode(due)})
        return due

    async def _make(self, now: datetime) -> Authority | None:
        if not self._leads():
            return None
        authority = Authority(new_authority(self._install, now))
        body: Json = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self.name,
                "namespace": self._namespace,
                "labels": {"app.kubernetes.io/managed-by": "equipoise"},
            },
            "data": encode(authority),
        }
        await self._kube.create(path("v1", "secrets", self._namespace), body)
        log.info("authority-made", secret=self.name)
        return authority


def encode(authority: Authority) -> dict[str, str]:
    """Return a Secret's data."""
    data = {
        "tls.crt": authority.present.certificate_pem,
        "tls.key": authority.present.key_pem,
        "former.crt": b"".join(
            certificate.public_bytes(serialization.Encoding.PEM) for certificate in authority.former
        ),
    }
    if authority.following is not None:
        data["next.crt"] = authority.following.certificate_pem
        data["next.key"] = authority.following.key_pem
    return {entry: base64.b64encode(value).decode() for entry, value in data.items()}


def decode(data: Json) -> Authority:
    """Parse a Secret's data. AuthorityError says what is wrong with it."""
    try:
        parts = {entry: base64.b64decode(value) for entry, value in data.items()}
        following = KeyPair.from_pem(parts["next.crt"], parts["next.key"]) if "next.crt" in parts else None
        former = parts.get("former.crt")
        return Authority(
            KeyPair.from_pem(parts["tls.crt"], parts["tls.key"]),
            following,
            tuple(x509.load_pem_x509_certificates(former)) if former else (),
        )
    except KeyError as error:
        raise AuthorityError(
            f"the authority's Secret lacks {error.args[0]}; delete it to have one made"
        ) from error
    except (ValueError, TypeError) as error:
        raise AuthorityError(
            f"the authority's Secret is malformed: {error}; delete it to have one made"
        ) from error
