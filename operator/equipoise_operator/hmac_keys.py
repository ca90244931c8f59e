"""Each policy's key for digests of API keys: random, in a Secret of its own, replaced every month.

The Secret belongs to the policy and goes with it. Its entries are keys by the time of their making; the newest two count,
so that while one is replaced sidecars accept digests under both. A lost Secret costs nothing: a new key is made, and every
digest with it.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.sidecar_config import HmacKey
from equipoise_operator import objects
from equipoise_operator.identities import HMAC_SECRET_TYPE
from equipoise_operator.kube import MERGE_PATCH, ApiError, Json, Kube, path
from equipoise_operator.objects import Secret, Stored
from equipoise_operator.store import Store

LIFETIME = timedelta(days=30)
"""Age at which the newest key gets a successor."""
OVERLAP = timedelta(days=1)
"""How long the former one is still accepted: longer than a sidecar can be cut off and go on."""

_FORMAT = "%Y%m%dT%H%M%SZ"


def secret_name(policy: FairnessPolicy) -> str:
    """Return the name of a policy's Secret; a policy deleted and made again gets another."""
    return f"equipoise-hmac-{policy.metadata.uid}"


def usable(secret: Secret | None) -> list[HmacKey]:
    """Return the keys that count, newest first: at most two. What is no key of 32 bytes is passed over."""
    if secret is None or secret.type != HMAC_SECRET_TYPE:
        return []
    keys = [
        HmacKey(id=entry, secret=base64.b64encode(value).decode())
        for entry in sorted(secret.data, reverse=True)
        if _made(entry) is not None and (value := secret.value(entry)) is not None and len(value) == 32
    ]
    return keys[:2]


def change(secret: Secret | None, now: datetime) -> dict[str, str | None]:
    """Return what to change in the Secret's data: entries to add (base64) or to remove (None); {} for nothing."""
    keys = usable(secret)
    changes: dict[str, str | None] = {}
    if not keys or now - _age(keys[0]) > LIFETIME:
        changes[now.strftime(_FORMAT)] = base64.b64encode(secrets.token_bytes(32)).decode()
    elif len(keys) == 2 and now - _age(keys[0]) > OVERLAP:
        changes[keys[1].id] = None
    return changes


async def ensure(kube: Kube, store: Store, policy: FairnessPolicy, now: datetime) -> list[HmacKey]:
    """Return the policy's keys, newest first; make or replace them where it is time.

    Raises ApiError, also where somebody else's Secret has the name: without keys no tenant's would be known any more.
    """
    namespace, name = policy.metadata.namespace, secret_name(policy)
    stored = store.secrets.get((namespace, name))
    secret = _own(stored)
    changes = change(secret, now)
    if not changes:
        return usable(secret)
    answer = await _write(kube, policy, changes)
    written = objects.secret(answer)
    store.secrets.put((namespace, name), written)
    return usable(_own(written))


def _own(stored: Stored[Secret] | None) -> Secret | None:
    secret = stored.object if stored is not None else None
    if secret is not None and secret.type != HMAC_SECRET_TYPE:
        where = f"Secret {secret.name} in namespace {secret.namespace}"
        raise ApiError(
            409, "Conflict", f"{where} is not of type {HMAC_SECRET_TYPE}: delete it to have one made"
        )
    return secret


async def _write(kube: Kube, policy: FairnessPolicy, changes: Mapping[str, str | None]) -> Json:
    namespace, name = policy.metadata.namespace, secret_name(policy)
    where = path("v1", "secrets", namespace, name)
    body: Json = {"metadata": {"labels": {names.CREDENTIAL_LABEL: "true"}}, "data": dict(changes)}
    try:
        return await kube.patch(where, body, MERGE_PATCH)
    except ApiError as error:
        if error.status != 404:
            raise
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "FairnessPolicy",
        "name": policy.metadata.name,
        "uid": policy.metadata.uid,
    }
    created: Json = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.CREDENTIAL_LABEL: "true", "app.kubernetes.io/managed-by": "equipoise"},
            "ownerReferences": [owner],
        },
        "type": HMAC_SECRET_TYPE,
        "data": {entry: value for entry, value in changes.items() if value is not None},
    }
    return await kube.create(path("v1", "secrets", namespace), created)


def _made(entry: str) -> datetime | None:
    try:
        return datetime.strptime(entry, _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


def _age(key: HmacKey) -> datetime:
    made = _made(key.id)
    assert made is not None
    return made
