"""From objects to configuration: one SidecarConfig a policy, and what is wrong with whom.

Pure: the same objects give the same bytes in any process, and a change that means nothing gives the same revision.
O(n log n) in the admitted tenants.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from equipoise_api import names
from equipoise_api.policy import Algorithm, FairnessPolicy, FairnessPolicySpec, TrustedHeader
from equipoise_api.sidecar_config import (
    PASS_THROUGH,
    HmacKey,
    PolicyReference,
    SidecarConfig,
    TenantConfig,
)
from equipoise_api.tenant import Tenant
from equipoise_operator import identities
from equipoise_operator.findings import Finding, Reason
from equipoise_operator.objects import Key, Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that one policy is compiled from."""

    policy: FairnessPolicy
    tenants: Sequence[Tenant]
    """Those that the policy admits."""
    secrets: Mapping[Key, Secret]
    unlabelled: AbstractSet[Key] = frozenset()
    hmac_keys: Sequence[HmacKey] = ()


class Version(NamedTuple):
    """One version of one object's spec."""

    uid: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A configuration, ready to be sent, and the findings of its making."""

    config: SidecarConfig
    body: bytes
    """Its canonical form."""
    revision: str
    """The digest of `body`."""
    tenants: Mapping[str, TenantConfig]
    """The configuration's tenants by id."""
    made_from: Mapping[str, Version]
    """Which version of each Tenant it was made from, by tenant id."""
    findings: tuple[Finding, ...] = ()
    """What is wrong with the policy."""
    identity_findings: Mapping[str, tuple[Finding, ...]]
    """What is wrong with tenants' identities, by tenant id; those without fault are left out."""
    notes: Mapping[str, Finding]
    """What a tenant asked for and did not get, by tenant id."""
    missing_secrets: frozenset[Key] = frozenset()
    """Secrets that are named and not there, or not to be read."""


def admits(policy: FairnessPolicy, namespace: str) -> bool:
    """Say whether the policy admits Tenants of this namespace."""
    return policy.spec.tenants.from_ == "All" or namespace == policy.metadata.namespace


def compile_policy(sources: Sources) -> Compiled:
    """Compile one policy."""
    policy, spec = sources.policy, sources.policy.spec
    claims = identities.resolve(
        policy, sources.tenants, sources.secrets, sources.unlabelled, sources.hmac_keys
    )
    configs: list[TenantConfig] = []
    notes: dict[str, Finding] = {}
    for tenant in sources.tenants:
        name = names.tenant_id(tenant.metadata.namespace, tenant.metadata.name)
        weight = tenant.spec.weight
        if tenant.metadata.namespace != policy.metadata.namespace and weight > spec.tenants.max_weight:
            message = f"weight {weight} is more than the policy's tenants.maxWeight, {spec.tenants.max_weight}, which counts"
            notes[name] = Finding(Reason.WEIGHT_LIMITED, message)
            weight = spec.tenants.max_weight
        configs.append(
            TenantConfig(
                id=name,
                weight=weight,
                limits=tenant.spec.limits,
                slo=tenant.spec.slo,
                applications=tenant.spec.applications,
                key_digests=claims[name].digests,
                header_values=claims[name].headers,
            )
        )
    configs.sort(key=lambda config: config.id)
    findings: list[Finding] = []
    config = SidecarConfig(
        policy=PolicyReference(
            namespace=policy.metadata.namespace,
            name=policy.metadata.name,
            uid=policy.metadata.uid,
            generation=policy.metadata.generation,
        ),
        mode="Enforce" if spec.mode == "Enforce" else "PassThrough",
        algorithm=spec.algorithm,
        shadow=_shadow(spec),
        cost=spec.cost,
        prediction=spec.prediction,
        capacity=spec.capacity,
        queue=spec.queue,
        overload=spec.overload,
        gpu=spec.gpu,
        default_tenant=spec.default_tenant,
        trusted_header=_trusted_header(spec.identity.trusted_header, findings),
        hmac_keys=list(sources.hmac_keys),
        engine_api_key=_engine_key(sources, findings),
        tenants=configs,
    )
    faults = {name: tuple(claim.findings) for name, claim in claims.items() if claim.findings}
    made_from = {
        names.tenant_id(tenant.metadata.namespace, tenant.metadata.name): Version(
            tenant.metadata.uid, tenant.metadata.generation
        )
        for tenant in sources.tenants
    }
    return _packed(
        config,
        findings=findings,
        faults=faults,
        notes=notes,
        made_from=made_from,
        missing=_missing(sources),
    )


def _shadow(spec: FairnessPolicySpec) -> list[Algorithm]:
    """Return the schedulers that run without deciding: in mode Shadow the policy's own first."""
    if spec.mode == "Off":
        return []
    first = [spec.algorithm] if spec.mode == "Shadow" else []
    return first + [algorithm for algorithm in spec.shadow if algorithm.type != spec.algorithm.type]


def pass_through() -> Compiled:
    """Return what a pod that no policy selects gets."""
    return _packed(PASS_THROUGH, findings=(), faults={}, notes={}, made_from={})


def _packed(
    config: SidecarConfig,
    *,
    findings: Iterable[Finding],
    faults: Mapping[str, tuple[Finding, ...]],
    notes: Mapping[str, Finding],
    made_from: Mapping[str, Version],
    missing: frozenset[Key] = frozenset(),
) -> Compiled:
    body = config.canonical()
    return Compiled(
        config=config,
        body=body,
        revision=hashlib.sha256(body).hexdigest(),
        tenants={tenant.id: tenant for tenant in config.tenants},
        made_from=made_from,
        findings=tuple(findings),
        identity_findings=faults,
        notes=notes,
        missing_secrets=missing,
    )


def _missing(sources: Sources) -> frozenset[Key]:
    wanted = {
        (tenant.metadata.namespace, source.secret_name)
        for tenant in sources.tenants
        for source in tenant.spec.identity.api_keys
    }
    engine = sources.policy.spec.engine.api_key_secret
    if engine is not None:
        wanted.add((sources.policy.metadata.namespace, engine.name))
    return frozenset(wanted - sources.secrets.keys())


def _engine_key(sources: Sources, findings: list[Finding]) -> str | None:
    reference = sources.policy.spec.engine.api_key_secret
    if reference is None:
        return None
    where = (sources.policy.metadata.namespace, reference.name)
    secret = sources.secrets.get(where)
    if secret is None:
        findings.append(identities.missing(where, sources.unlabelled))
        return None
    raw = secret.value(reference.key)
    if not raw:
        message = f"engine.apiKeySecret: Secret {reference.name} has nothing under {reference.key}"
        findings.append(Finding(Reason.SECRET_EMPTY, message))
        return None
    try:
        key = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable():
        message = (
            f"engine.apiKeySecret: Secret {reference.name}, entry {reference.key}, cannot be sent in a header"
        )
        findings.append(Finding(Reason.KEY_NOT_PRINTABLE, message))
        return None
    return key


def _trusted_header(header: TrustedHeader | None, findings: list[Finding]) -> TrustedHeader | None:
    """Leave out peers that are no network: the schema's pattern lets 300.0.0.0/40 pass."""
    if header is None:
        return None
    peers: list[str] = []
    for peer in header.peers:
        try:
            ipaddress.ip_network(peer, strict=False)
        except ValueError as error:
            findings.append(Finding(Reason.INVALID_PEER, f"identity.trustedHeader.peers: {error}"))
        else:
            peers.append(peer)
    return header.model_copy(update={"peers": peers}) if peers else None
