"""The objects that the operator watches, reduced to what it decides by.

Tenants and policies are the API's own types. Of a pod and of a Secret only the parts below are kept: a cluster may have
thousands of each. An object that marks itself for deletion counts as gone at once (a revoked key is revoked), except a
pod, whose sidecar takes configuration until its end.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant

Key = tuple[str, str]
"""Namespace and name."""

T = TypeVar("T")

INSTALL_VARIABLE = "EQUIPOISE_INSTALL"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, as far as its sidecar is concerned."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    ip: str
    """Empty before it has one."""
    has_sidecar: bool
    sidecar_runs: bool
    admin_port: int
    install: str | None
    """The install that the sidecar says it belongs to, where its environment says so."""
    node: str
    """Empty before it is scheduled."""

    @property
    def reachable(self) -> bool:
        """Say whether there is a running sidecar at an address."""
        return bool(self.ip) and self.sidecar_runs


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret that carries the credential label."""

    namespace: str
    name: str
    uid: str
    type: str
    data: Mapping[str, str]
    """Base64, as the API has it."""

    def value(self, key: str) -> bytes | None:
        """Return one entry decoded; None where it is missing."""
        try:
            return base64.b64decode(self.data[key], validate=True)
        except (KeyError, binascii.Error):
            return None


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """One object as of a resource version; `object` is None where it could not be parsed."""

    uid: str
    version: int
    object: T | None
    labels: Mapping[str, str]
    error: str = ""
    """Why it could not be parsed, with the field's path."""
    outline: T | None = None
    """What could be parsed of one that could not: of a policy its class, of a Tenant each part of its spec; and the status."""

    def after(self, before: Stored[T] | None) -> Stored[T]:
        """Return this version, which could not be parsed, with the spec that is to be in force.

        That is the one that could be parsed last: a field that this operator does not know must not undo a policy. Where
        none is known a Tenant has what could be parsed, for without any its keys would be revoked.
        """
        outline = self.outline
        if before is None or before.uid != self.uid or before.object is None:
            return replace(self, object=outline) if isinstance(outline, Tenant) else self
        kept = before.object
        if isinstance(kept, Tenant | FairnessPolicy) and isinstance(outline, Tenant | FairnessPolicy):
            return replace(self, object=cast("T", kept.model_copy(update={"status": outline.status})))
        return replace(self, object=kept)


def tenant(body: Mapping[str, Any]) -> Stored[Tenant]:
    """Parse a Tenant."""
    return _parsed(Tenant, body)


def policy(body: Mapping[str, Any]) -> Stored[FairnessPolicy]:
    """Parse a FairnessPolicy."""
    return _parsed(FairnessPolicy, body)


def pod(body: Mapping[str, Any]) -> Stored[Pod]:
    """Reduce a pod."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    container = _named(spec.get("initContainers"), spec.get("containers"))
    running = _named(status.get("initContainerStatuses"), status.get("containerStatuses"))
    over = status.get("phase") in ("Succeeded", "Failed")
    reduced = Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        labels=dict(metadata.get("labels") or {}),
        ip=status.get("podIP") or "",
        has_sidecar=container is not None,
        sidecar_runs=not over and running is not None and bool((running.get("state") or {}).get("running")),
        admin_port=_admin_port(container),
        install=_environment(container, INSTALL_VARIABLE),
        node=spec.get("nodeName") or "",
    )
    return Stored(metadata["uid"], int(metadata["resourceVersion"]), reduced, reduced.labels)


def secret(body: Mapping[str, Any]) -> Stored[Secret]:
    """Reduce a Secret."""
    metadata = body["metadata"]
    reduced = Secret(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        type=body.get("type", ""),
        data=dict(body.get("data") or {}),
    )
    return Stored(metadata["uid"], int(metadata["resourceVersion"]), reduced, {})


Parsed = TypeVar("Parsed", Tenant, FairnessPolicy)


def _parsed(kind: type[Parsed], body: Mapping[str, Any]) -> Stored[Parsed]:
    metadata = body["metadata"]
    uid, version = metadata["uid"], int(metadata["resourceVersion"])
    labels = dict(metadata.get("labels") or {})
    try:
        return Stored(uid, version, kind.model_validate(dict(body)), labels)
    except ValidationError as error:
        faults = [each for each in error.errors() if each["loc"][:1] != ("status",)]
    if not faults:
        # A newer operator wrote that status, and the spec is what decides.
        return Stored(uid, version, kind.model_validate({**body, "status": {}}), labels)
    where = ".".join(str(part) for part in faults[0]["loc"])
    outline = _outline(kind, body, {str(each["loc"][1]) for each in faults if len(each["loc"]) > 1})
    return Stored(uid, version, None, labels, f"{where}: {faults[0]['msg']}", outline)


def _outline(kind: type[Parsed], body: Mapping[str, Any], faulty: Collection[str]) -> Parsed | None:
    spec = body.get("spec")
    sound = {part: spec[part] for part in spec if part not in faulty} if isinstance(spec, Mapping) else {}
    if kind is FairnessPolicy:
        sound = {"target": {"selector": {}}} | {part: sound[part] for part in ("className",) if part in sound}
    for status in (body.get("status") or {}, {}):
        with contextlib.suppress(ValidationError):
            return kind.model_validate({"metadata": body["metadata"], "spec": sound, "status": status})
    return None


def _named(*lists: Any) -> Mapping[str, Any] | None:
    for entries in lists:
        for entry in entries or ():
            if entry.get("name") == names.SIDECAR_CONTAINER:
                found: Mapping[str, Any] = entry
                return found
    return None


def _admin_port(container: Mapping[str, Any] | None) -> int:
    for port in (container or {}).get("ports") or ():
        if port.get("name") == names.ADMIN_PORT_NAME:
            return int(port["containerPort"])
    return names.ADMIN_PORT


def _environment(container: Mapping[str, Any] | None, variable: str) -> str | None:
    for entry in (container or {}).get("env") or ():
        if entry.get("name") == variable:
            value: str | None = entry.get("value")
            return value
    return None
