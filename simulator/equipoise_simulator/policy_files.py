"""Contenders from the real objects: a FairnessPolicy and its Tenants, as YAML files, applied or as `kubectl get` prints them.

A Tenant is the trace's tenant of the same name, `name` or `namespace/name`. Which Tenants count, and for how much, is
the policy's word, as in a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from equipoise_api.policy import Algorithm, FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.registry import gate_settings, tenant_settings
from equipoise_simulator.contender import Contender
from equipoise_simulator.rules import Rules, TenantRules

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Kind = TypeVar("Kind", FairnessPolicy, Tenant)


class PolicyFileError(ValueError):
    """A file that cannot be taken: which, which object and field, and why."""


def read_contender(policy_file: Path, tenants_path: Path | None) -> Contender:
    """Read a policy and its Tenants, from a folder or a file. PolicyFileError names file and field; OSError as usual."""
    documents = _documents(policy_file)
    policies = [
        _parsed(policy_file, FairnessPolicy, each) for each in documents if each["kind"] == "FairnessPolicy"
    ]
    if len(policies) != 1:
        raise PolicyFileError(f"{policy_file}: holds {len(policies)} FairnessPolicies: name a file with one")
    _check_algorithm(policy_file, policies[0])
    tenants = {policy_file: list(_tenants(policy_file, documents))}
    for file in _files(tenants_path):
        if file.resolve() != policy_file.resolve():
            tenants[file] = list(_tenants(file, _documents(file)))
    if tenants_path is not None and not any(tenants.values()):
        raise PolicyFileError(f"{tenants_path}: holds no Tenants")
    seen: dict[tuple[str, str], Path] = {}
    for file, found in tenants.items():
        for tenant in found:
            key = (tenant.metadata.namespace, tenant.metadata.name)
            if key in seen:
                raise PolicyFileError(
                    f"{file}: Tenant {'/'.join(key)} is in {seen[key]} too: leave one of them out"
                )
            seen[key] = file
    return contender_of(policies[0], [tenant for found in tenants.values() for tenant in found])


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    if not path.is_dir():
        return [path]
    files = sorted(each for each in path.iterdir() if each.suffix in {".yaml", ".yml", ".json"})
    if not files:
        raise PolicyFileError(f"{path}: holds no YAML files")
    return files


def contender_of(policy: FairnessPolicy, tenants: Iterable[Tenant]) -> Contender:
    """Make the contender that a policy and its Tenants amount to."""
    spec = policy.spec
    home = policy.metadata.namespace
    rules: dict[str, TenantRules] = {}
    for tenant in tenants:
        foreign = tenant.metadata.namespace != home
        if foreign and spec.tenants.from_ == "Same":
            continue
        weight = min(tenant.spec.weight, spec.tenants.max_weight) if foreign else tenant.spec.weight
        made = TenantRules(
            settings=tenant_settings(weight, tenant.spec.limits, tenant.spec.applications),
            limits=tenant.spec.limits,
            slo=tenant.spec.slo,
            applications={each.name: each.slo for each in tenant.spec.applications if each.slo is not None},
        )
        name = tenant.metadata.name
        rules[f"{tenant.metadata.namespace}/{name}"] = made
        if not foreign or name not in rules:
            rules[name] = made
    enforced = spec.mode == "Enforce"
    return Contender(
        label=f"{policy.metadata.name} ({spec.algorithm.type if enforced else spec.mode})",
        algorithm=spec.algorithm if enforced else Algorithm(type="FCFS"),
        prediction=spec.prediction,
        cost=spec.cost,
        queue=spec.queue,
        overload=spec.overload,
        capacity=spec.capacity,
        gate=gate_settings(spec.capacity) if enforced else None,
        enforced=enforced,
        rules=Rules(
            tenants=rules,
            strangers=spec.default_tenant.mode,
            default=TenantRules(settings=TenantSettings(weight=float(spec.default_tenant.weight))),
            max_wait=float(spec.queue.max_wait_seconds),
        ),
    )


def _check_algorithm(path: Path, policy: FairnessPolicy) -> None:
    """Refuse parameters of another algorithm than the policy's, as the API server does."""
    algorithm = policy.spec.algorithm
    for name, field in Algorithm.model_fields.items():
        member = field.alias or name
        if (
            name != "type"
            and getattr(algorithm, name) is not None
            and member.lower() != algorithm.type.lower()
        ):
            raise PolicyFileError(
                f"{path}: FairnessPolicy {policy.metadata.name}: spec.algorithm.{member} is not of type"
                f" {algorithm.type}: leave it out"
            )


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents = [
            each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each is not None
        ]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PolicyFileError(f"{path}: {error}") from None
    objects: list[dict[str, Any]] = []
    for each in documents:
        _check_object(path, each)
        if each["kind"] == "List":
            items = each.get("items")
            for item in items if isinstance(items, list) else ():
                _check_object(path, item)
                objects.append(item)
        else:
            objects.append(each)
    return objects


def _check_object(path: Path, document: object) -> None:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise PolicyFileError(f"{path}: every document must be a Kubernetes object with a kind")


def _tenants(path: Path, documents: list[dict[str, Any]]) -> Iterable[Tenant]:
    return (_parsed(path, Tenant, each) for each in documents if each["kind"] == "Tenant")


def _parsed(path: Path, kind: type[Kind], document: dict[str, Any]) -> Kind:
    if not isinstance(document.get("metadata"), dict):
        raise PolicyFileError(f"{path}: {kind.__name__}: metadata is missing")
    name = document["metadata"].get("name", "?")
    try:
        # an object in a file need not name what the API server fills in
        metadata = {"namespace": "default"}
        metadata |= {
            key: value for key, value in document["metadata"].items() if key in {"namespace", "name"}
        }
        return kind.strictly({**document, "metadata": metadata})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise PolicyFileError(f"{path}: {kind.__name__} {name}: {place}: {problem['msg']}") from None
    except ValueError as error:
        raise PolicyFileError(f"{path}: {kind.__name__} {name}: {error}") from None
