"""Whose a request is, decided at compile time: every API key and header value ends up with one tenant.

Where two tenants claim one identity the older keeps it (creationTimestamp, then namespace/name). A tenant claims Secrets
of its own namespace alone; one of another namespace than the policy's claims header values only where it is granted.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.sidecar_config import HmacKey
from equipoise_api.tenant import Tenant
from equipoise_operator.findings import Finding, Reason
from equipoise_operator.objects import Key, Secret

SHORTEST_KEY = 32
LONGEST_KEY = 4096
MOST_KEYS = 256
"""Keys of one tenant. A Secret has room for tens of thousands, and what one tenant adds every sidecar of the policy gets."""
HMAC_SECRET_TYPE = f"{names.GROUP}/hmac-key"


@dataclass(slots=True)
class Claims:
    """What one tenant may be known by under a policy."""

    digests: list[str] = field(default_factory=list)
    """HMAC-SHA-256 (hex) of each of its API keys under each of the policy's keys."""
    headers: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def seniority(thing: Tenant | FairnessPolicy) -> tuple[str, str, str]:
    """Sort key: the older first, then by namespace and name. RFC 3339 in UTC sorts as text."""
    return thing.metadata.creation_timestamp, thing.metadata.namespace, thing.metadata.name


def resolve(
    policy: FairnessPolicy,
    tenants: Iterable[Tenant],
    secrets: Mapping[Key, Secret],
    unlabelled: AbstractSet[Key],
    hmac_keys: Sequence[HmacKey],
) -> dict[str, Claims]:
    """Return what each tenant is known by, by its id. O(n log n) in tenants, O(n) in keys and header values."""
    register = _Register(policy, secrets, unlabelled, hmac_keys)
    return {
        names.tenant_id(tenant.metadata.namespace, tenant.metadata.name): register.claims(tenant)
        for tenant in sorted(tenants, key=seniority)
    }


class _Register:
    """Who has what. Tenants come in order of age: the first claim stands."""

    def __init__(
        self,
        policy: FairnessPolicy,
        secrets: Mapping[Key, Secret],
        unlabelled: AbstractSet[Key],
        hmac_keys: Sequence[HmacKey],
    ) -> None:
        self._policy = policy
        self._secrets = secrets
        self._unlabelled = unlabelled
        self._pepper = [base64.b64decode(key.secret) for key in hmac_keys]
        self._owner_of_key: dict[bytes, str] = {}
        self._owner_of_header: dict[str, str] = {}

    def claims(self, tenant: Tenant) -> Claims:
        """Register one tenant's claims and return those that stand."""
        claims = Claims()
        name = names.tenant_id(tenant.metadata.namespace, tenant.metadata.name)
        self._claim_keys(tenant, name, claims)
        self._claim_headers(tenant, name, claims)
        if not tenant.spec.identity.api_keys and not tenant.spec.identity.header_values:
            message = (
                "no request can prove to be this tenant's: name identity.apiKeys or identity.headerValues"
            )
            claims.findings.append(Finding(Reason.NO_IDENTITY, message))
        claims.digests = sorted(set(claims.digests))
        claims.headers.sort()
        return claims

    def _claim_keys(self, tenant: Tenant, name: str, claims: Claims) -> None:
        left = MOST_KEYS
        for source in tenant.spec.identity.api_keys:
            where = (tenant.metadata.namespace, source.secret_name)
            secret = self._secrets.get(where)
            if secret is None:
                claims.findings.append(missing(where, self._unlabelled))
                continue
            keys, problems = usable_keys(secret, left)
            claims.findings += problems
            left = max(0, left - len(secret.data))
            for entry, key in keys:
                owner = self._owner_of_key.setdefault(key, name)
                if owner == name:
                    claims.digests += [hmac.digest(pepper, key, "sha256").hex() for pepper in self._pepper]
                else:
                    message = f"the key in Secret {secret.name}, entry {entry}, is the older tenant {owner}'s"
                    claims.findings.append(Finding(Reason.CONFLICT, message))

    def _claim_headers(self, tenant: Tenant, name: str, claims: Claims) -> None:
        values = tenant.spec.identity.header_values
        if not values:
            return
        policy, namespace = self._policy, tenant.metadata.namespace
        where = f"policy {policy.metadata.namespace}/{policy.metadata.name}"
        if policy.spec.identity.trusted_header is None:
            message = f"{where} trusts no header, so identity.headerValues means nothing there"
            claims.findings.append(Finding(Reason.NO_TRUSTED_HEADER, message))
        elif namespace not in (policy.metadata.namespace, *policy.spec.identity.grants):
            message = f"{where} does not list namespace {namespace} in identity.grants"
            claims.findings.append(Finding(Reason.NOT_GRANTED, message))
        else:
            for value in values:
                owner = self._owner_of_header.setdefault(value, name)
                if owner == name:
                    claims.headers.append(value)
                else:
                    message = f"the header value {value!r} is the older tenant {owner}'s"
                    claims.findings.append(Finding(Reason.CONFLICT, message))


def missing(where: Key, unlabelled: AbstractSet[Key]) -> Finding:
    """Say that a Secret is not there, or is there and may not be read."""
    namespace, name = where
    if where in unlabelled:
        return Finding(
            Reason.SECRET_NOT_LABELLED,
            f"Secret {name} is not read before it is labelled: kubectl label secret -n {namespace} {name}"
            f" {names.CREDENTIAL_LABEL}=true",
        )
    return Finding(Reason.SECRET_NOT_FOUND, f"Secret {name} is not in namespace {namespace}")


def usable_keys(secret: Secret, most: int = MOST_KEYS) -> tuple[list[tuple[str, bytes]], list[Finding]]:
    """Return the entries that can be API keys, `most` of them at most, by entry, and what is wrong with the others.

    White space around a key is dropped: a file that it was made from may have ended in a newline.
    """
    if secret.type == HMAC_SECRET_TYPE:
        message = f"Secret {secret.name} is the operator's own and holds no API keys"
        return [], [Finding(Reason.SECRET_NOT_USABLE, message)]
    if not secret.data:
        return [], [Finding(Reason.SECRET_EMPTY, f"Secret {secret.name} has no entries; each is one API key")]
    keys: list[tuple[str, bytes]] = []
    findings: list[Finding] = []
    entries = sorted(secret.data)
    if len(entries) > most:
        message = (
            f"Secret {secret.name} has {len(entries)} entries where a tenant's first {MOST_KEYS} keys count"
        )
        findings.append(Finding(Reason.TOO_MANY_KEYS, message))
    for entry in entries[:most]:
        checked = _checked(secret, entry)
        if isinstance(checked, Finding):
            findings.append(checked)
        else:
            keys.append((entry, checked))
    return keys, findings


def _checked(secret: Secret, entry: str) -> bytes | Finding:
    where = f"Secret {secret.name}, entry {entry}"
    raw = secret.value(entry) or b""
    try:
        key = raw.decode().strip()
    except UnicodeDecodeError:
        return Finding(Reason.KEY_NOT_UTF8, f"{where}, is not UTF-8 text")
    if len(key) < SHORTEST_KEY:
        return Finding(
            Reason.KEY_TOO_SHORT, f"{where}, has {len(key)} characters; a key has at least {SHORTEST_KEY}"
        )
    if len(key) > LONGEST_KEY:
        return Finding(
            Reason.KEY_TOO_LONG, f"{where}, has {len(key)} characters; a key has at most {LONGEST_KEY}"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        return Finding(
            Reason.KEY_NOT_PRINTABLE, f"{where}, has characters that an HTTP header cannot carry in a key"
        )
    return key.encode()
