"""The CustomResourceDefinitions, made from the API types."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel

from equipoise_api.names import FAIRNESS_POLICIES, GROUP, TENANTS, VERSION
from equipoise_api.policy import FairnessPolicySpec, FairnessPolicyStatus
from equipoise_api.structural import structural_schema
from equipoise_api.tenant import TenantSpec, TenantStatus

_READY = ".status.conditions[?(@.type=='Ready')].status"


class Column(NamedTuple):
    """A column of `kubectl get`; a wide one is shown by `--output=wide` alone."""

    name: str
    type: str
    path: str
    description: str
    wide: bool = False


TENANT_COLUMNS = [
    Column("Weight", "integer", ".spec.weight", "Relative share"),
    Column(
        "Share%",
        "integer",
        ".status.share.actualPercent",
        "Percent of the service delivered in the last minute",
    ),
    Column("Fair%", "integer", ".status.share.entitledPercent", "Percent that weight and demand entitle to"),
    Column("Queued", "integer", ".status.usage.queued", "Requests that wait"),
    Column("Running", "integer", ".status.usage.running", "Requests in the engines"),
    Column(
        "Tok/min",
        "integer",
        ".status.usage.tokensPerMinute",
        "Prompt and generated tokens of the last minute",
    ),
    Column(
        "TTFT-P99",
        "integer",
        ".status.latency.ttftP99Milliseconds",
        "99th percentile of the milliseconds to the first token",
    ),
    Column(
        "SLO%",
        "integer",
        ".status.latency.sloAttainmentPercent",
        "Percent of the requests with an SLO that kept it",
    ),
    Column("Ready", "string", _READY, "Identity resolved and configuration synced"),
    Column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
]
POLICY_COLUMNS = [
    Column("Algorithm", "string", ".spec.algorithm.type", "Scheduler"),
    Column("Mode", "string", ".spec.mode", "Enforce, Shadow or Off"),
    Column(
        "Sidecars",
        "string",
        ".status.sidecars.syncedOfTotal",
        "Sidecars that hold the present configuration, of all",
    ),
    Column("Tenants", "integer", ".status.tenants", "Tenants admitted"),
    Column("Queued", "integer", ".status.load.queued", "Requests that wait"),
    Column(
        "Sat", "integer", ".status.load.saturationPercent", "Use of the room that the gates give, percent"
    ),
    Column("GPU%", "integer", ".status.load.gpuPercent", "Percent of time in which the GPUs were busy"),
    Column("Jain", "integer", ".status.fairness.jainPermille", "Jain's index of the last minute, times 1000"),
    Column("Ready", "string", _READY, "Accepted and programmed"),
    Column("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
    Column(
        "Versions", "string", ".status.sidecars.versionNames", "Software versions of the sidecars", wide=True
    ),
]


def tenant_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of Tenant."""
    return _crd(
        kind="Tenant",
        plural=TENANTS,
        short_names=["ten"],
        description="Tenant says who is served by shared engines, and how much of them they are entitled to.",
        spec=TenantSpec,
        status=TenantStatus,
        columns=TENANT_COLUMNS,
    )


def fairness_policy_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of FairnessPolicy."""
    return _crd(
        kind="FairnessPolicy",
        plural=FAIRNESS_POLICIES,
        short_names=["fp", "fairness"],
        description="FairnessPolicy says how requests are scheduled, and on which vLLM pods.",
        spec=FairnessPolicySpec,
        status=FairnessPolicyStatus,
        columns=POLICY_COLUMNS,
    )


def _crd(
    *,
    kind: str,
    plural: str,
    short_names: list[str],
    description: str,
    spec: type[BaseModel],
    status: type[BaseModel],
    columns: list[Column],
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": ["equipoise"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {
                            "name": column.name,
                            "type": column.type,
                            "jsonPath": column.path,
                            "description": column.description,
                            **({"priority": 1} if column.wide else {}),
                        }
                        for column in columns
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": description,
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {
                                    "type": "string",
                                    "description": "Version of this representation.",
                                },
                                "kind": {"type": "string", "description": "Kind of this object."},
                                "metadata": {"type": "object"},
                                "spec": structural_schema(spec),
                                "status": structural_schema(status, defaults=False),
                            },
                        }
                    },
                }
            ],
        },
    }
