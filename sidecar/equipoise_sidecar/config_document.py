"""A configuration as parts: everything but the tenants, and each tenant with its canonical bytes.

The parts make a patch cost what changed, and parsing them one by one gives other threads the interpreter in between, so
that a configuration of 10,000 tenants holds up no stream.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from equipoise_api.model import ApiModel
from equipoise_api.sidecar_config import ConfigPatch, SidecarConfig, TenantConfig
from equipoise_sidecar.policy import ConfigError, Policy, compile_policy

_YIELD_EVERY = 50


class _Push(msgspec.Struct, rename="camel"):
    epoch: int
    sequence: int
    revision: str
    config: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Part:
    """One tenant, parsed and canonical."""

    tenant: TenantConfig
    canonical: bytes


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """One configuration with the push that brought it. Immutable; shares parts with its patched successors."""

    epoch: int
    sequence: int
    revision: str
    rest: SidecarConfig
    """Without tenants."""
    parts: Mapping[str, Part]

    def policy(self) -> Policy:
        """Compile it. Raises ConfigError. O(tenants)."""
        tenants = [self.parts[name].tenant for name in sorted(self.parts)]
        return compile_policy(self.rest.model_copy(update={"tenants": tenants}), self.revision)

    def canonical(self) -> bytes:
        """Return the configuration's canonical JSON, as `SidecarConfig.digest` hashes it. O(tenants)."""
        members = {key: _canonical(value) for key, value in self.rest.document().items()}
        members["tenants"] = (
            b"[" + b",".join(self.parts[name].canonical for name in sorted(self.parts)) + b"]"
        )
        return b"{" + b",".join(_canonical(key) + b":" + members[key] for key in sorted(members)) + b"}"

    def digest(self) -> str:
        """Return the revision that the content has."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def push(self) -> bytes:
        """Return it as the body of a push, which is also its form on disk."""
        head = json.dumps({"epoch": self.epoch, "sequence": self.sequence, "revision": self.revision})
        return head[:-1].encode() + b', "config": ' + self.canonical() + b"}"

    def patched(self, patch: ConfigPatch) -> ConfigDocument:
        """Return the configuration with a patch's tenants in and out. O(tenants), one pass over references."""
        gone = set(patch.removed)
        parts = {name: part for name, part in self.parts.items() if name not in gone}
        parts.update((tenant.id, _part(tenant)) for tenant in patch.tenants)
        return ConfigDocument(patch.epoch, patch.sequence, patch.revision, self.rest, parts)


def read_push(body: bytes) -> ConfigDocument:
    """Parse the body of a push. Raises ConfigError naming the first invalid field."""
    try:
        push = msgspec.json.decode(body, type=_Push)
        members = msgspec.json.decode(push.config, type=dict[str, msgspec.Raw])
        tenants = msgspec.json.decode(members.pop("tenants", b"[]"), type=list[msgspec.Raw])
        rest = {key: msgspec.json.decode(value) for key, value in members.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError("", f"not a configuration: {error}") from None
    if push.epoch < 0 or push.sequence < 0:
        raise ConfigError("epoch" if push.epoch < 0 else "sequence", "must not be negative")
    parts: dict[str, Part] = {}
    for index, raw in enumerate(tenants):
        tenant = _validated(TenantConfig, bytes(raw), f"config.tenants.{index}")
        if tenant.id in parts:
            raise ConfigError(f"config.tenants.{index}.id", f"{tenant.id} is there twice")
        parts[tenant.id] = _part(tenant)
        if index % _YIELD_EVERY == 0:
            time.sleep(0)
    return ConfigDocument(
        push.epoch, push.sequence, push.revision, _validated(SidecarConfig, rest, "config"), parts
    )


def read_patch(body: bytes) -> ConfigPatch:
    """Parse the body of a patch. Raises ConfigError naming the first invalid field."""
    return _validated(ConfigPatch, body, "")


M = TypeVar("M", bound=ApiModel)


def _validated(model: type[M], data: Any, place: str) -> M:
    try:
        return model.model_validate_json(data) if isinstance(data, bytes) else model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join([place] * bool(place) + [str(step) for step in first["loc"]])
        raise ConfigError(path, first["msg"]) from None


def _part(tenant: TenantConfig) -> Part:
    return Part(tenant, tenant.canonical())


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
