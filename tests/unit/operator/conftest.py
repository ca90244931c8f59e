"""Builders of the objects that the operator sees, and an API server of a few lines for what talks to one."""

import base64
import copy
import itertools
from types import SimpleNamespace

import pytest

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.sidecar_config import HmacKey
from equipoise_api.sidecar_state import SidecarState
from equipoise_api.tenant import Tenant
from equipoise_operator import objects
from equipoise_operator.compile import Sources, compile_policy
from equipoise_operator.kube import ApiError, ApiUnreachableError

_versions = itertools.count(1)


def metadata(name, namespace="team", *, uid=None, created="2026-01-01T00:00:00Z", version=None, **more):
    return {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-{namespace}-{name}",
        "creationTimestamp": created,
        "generation": 1,
        "resourceVersion": str(version or next(_versions)),
        **more,
    }


def tenant_body(name, namespace="team", *, meta=None, secrets=(), headers=(), **spec):
    identity = {"apiKeys": [{"secretName": secret} for secret in secrets], "headerValues": list(headers)}
    return {"metadata": metadata(name, namespace, **(meta or {})), "spec": {"identity": identity} | spec}


def policy_body(name="policy", namespace="team", *, meta=None, labels=None, **spec):
    target = {"selector": {"matchLabels": labels or {"app": "vllm"}}}
    return {"metadata": metadata(name, namespace, **(meta or {})), "spec": {"target": target} | spec}


def secret_body(name, namespace="team", *, meta=None, kind="Opaque", entries=None, **texts):
    data = {entry: base64.b64encode(text.encode()).decode() for entry, text in texts.items()}
    data |= {entry: base64.b64encode(value).decode() for entry, value in (entries or {}).items()}
    return {"metadata": metadata(name, namespace, **(meta or {})), "type": kind, "data": data}


def pod_body(
    name,
    namespace="team",
    *,
    meta=None,
    labels=None,
    ip="10.0.0.1",
    running=True,
    ports=(),
    env=(),
    node="node-a",
):
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}} if running else {"waiting": {}}
    return {
        "metadata": metadata(name, namespace, labels=labels or {"app": "vllm"}, **(meta or {})),
        "spec": {
            "nodeName": node,
            "initContainers": [
                {
                    "name": names.SIDECAR_CONTAINER,
                    "restartPolicy": "Always",
                    "ports": list(ports),
                    "env": list(env),
                }
            ],
            "containers": [{"name": "vllm"}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "initContainerStatuses": [{"name": names.SIDECAR_CONTAINER, "state": state}],
        },
    }


HMAC = HmacKey(id="20260101T000000Z", secret=base64.b64encode(b"k" * 32).decode())


def compiled(tenants=(), *, policy=None, secrets=(), unlabelled=(), hmac_keys=(HMAC,)):
    parsed = [objects.secret(body).object for body in secrets]
    return compile_policy(
        Sources(
            policy=FairnessPolicy.model_validate(policy or policy_body()),
            tenants=[Tenant.model_validate(body) for body in tenants],
            secrets={(secret.namespace, secret.name): secret for secret in parsed},
            unlabelled=frozenset(unlabelled),
            hmac_keys=hmac_keys,
        )
    )


def state(**fields):
    tenants = fields.pop("tenants", [])
    return SidecarState.model_validate(
        {"ready": True, "engine": {"signalStale": False}, **fields, "tenants": tenants}
    )


class FakeApi:
    """Objects by path, with resource versions, conflicts, and the power to be down or slow."""

    def __init__(self):
        self.objects = {}
        self.calls = []
        self.version = 0
        self.down = False
        self.fail_next = []
        self.before_answer = None
        self.on_answer = None

    async def call(self, method, where, body=None):
        self.calls.append((method, where, body))
        if self.before_answer is not None:
            await self.before_answer(method, where)
        if self.down:
            raise ApiUnreachableError("down")
        if self.fail_next:
            raise self.fail_next.pop(0)

    async def get(self, where, *, deadline=10.0, **params):
        await self.call("GET", where)
        return self._read(where)

    async def metadata(self, where, *, deadline=10.0):
        await self.call("METADATA", where)
        return self._read(where)["metadata"]

    async def create(self, where, body, *, deadline=10.0):
        await self.call("POST", where, body)
        path = f"{where}/{body['metadata']['name']}" if "metadata" in body else where
        if path in self.objects:
            raise ApiError(409, "AlreadyExists", path)
        return self._store(path, body)

    async def replace(self, where, body, *, deadline=10.0):
        await self.call("PUT", where, body)
        if where not in self.objects and body["metadata"].get("uid"):
            raise ApiError(409, "Conflict", "UID in precondition")
        held = self._read(where)
        if body["metadata"].get("resourceVersion") != held["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", where)
        return self._store(where, body)

    async def patch(self, where, body, kind, *, deadline=10.0, **params):
        await self.call("PATCH", where, body)
        if "apply" in kind:
            return self._store(where, body)
        held = self._read(where.removesuffix("/status"))
        if "json-patch" in kind:
            test, add = body
            if held["metadata"]["uid"] != test["value"]:
                raise ApiError(422, "Invalid", "test failed")
            return self._store(where.removesuffix("/status"), held | {"status": add["value"]})
        merged = dict(held.get("data") or {})
        for entry, value in body.get("data", {}).items():
            merged.pop(entry, None)
            if value is not None:
                merged[entry] = value
        return self._store(where, held | {"data": merged})

    def _read(self, where):
        if where not in self.objects:
            raise ApiError(404, "NotFound", where)
        return copy.deepcopy(self.objects[where])

    def _store(self, where, body):
        self.version += 1
        held = self.objects.get(where, {})
        uid = (
            held.get("metadata", {}).get("uid")
            or body.get("metadata", {}).get("uid")
            or f"uid-{self.version}"
        )
        meta = dict(body.get("metadata", {})) | {"resourceVersion": str(self.version), "uid": uid}
        if where.startswith("/api/v1/namespaces/"):
            meta.setdefault("namespace", where.split("/")[4])
        self.objects[where] = copy.deepcopy(dict(body) | {"metadata": meta})
        return copy.deepcopy(self.objects[where])


@pytest.fixture(scope="session")
def make():
    """Builders, for the tests of this folder."""
    return SimpleNamespace(
        FakeApi=FakeApi,
        HMAC=HMAC,
        compiled=compiled,
        metadata=metadata,
        pod_body=pod_body,
        policy=lambda *args, **more: FairnessPolicy.model_validate(policy_body(*args, **more)),
        policy_body=policy_body,
        pod=lambda *args, **more: objects.pod(pod_body(*args, **more)).object,
        secret=lambda *args, **more: objects.secret(secret_body(*args, **more)).object,
        secret_body=secret_body,
        state=state,
        tenant=lambda *args, **more: Tenant.model_validate(tenant_body(*args, **more)),
        tenant_body=tenant_body,
    )


@pytest.fixture
def api():
    return FakeApi()
