"""Where the demo finds the chart and the manifests, and the names that they use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

NAMESPACE = "demo"
POLICY = "fleet"
RELEASE = "equipoise"
RELEASE_NAMESPACE = "equipoise"
GPU_NAMESPACE = "equipoise-demo-gpu"
"""Where the demo's dcgm-exporters are."""
POD = "engine-{}"
"""Name of an engine's pod by its number."""
MODEL = "demo"
KEY = "demo-key-of-{}-on-loopback-alone"
INTERACTIVE_APPLICATION = "chat"
"""The application of every tenant that is promised a time to its first token."""
PROMISE_MILLISECONDS = 1_000


class DemoError(Exception):
    """Why the demo cannot go on, and what to do about it."""


def checkout() -> Path:
    """Return the folder with charts/ and manifests/; DemoError outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if (
        not (root / "charts" / "equipoise" / "Chart.yaml").exists()
        or not (root / "manifests" / "demo").is_dir()
    ):
        raise DemoError(f"{root} holds no charts/equipoise and manifests/demo: run the demo from a checkout")
    return root


def tenant_of(client: str) -> str:
    """Return the Tenant's name for a trace's client: a number becomes client-NN, other names become DNS labels."""
    if client.isdecimal():
        return f"client-{int(client):02d}"
    label = re.sub(r"[^a-z0-9-]+", "-", client.lower()).strip("-")[:50]
    if not label:
        raise DemoError(f"the trace's client {client!r} has no letter or digit to make a Tenant's name of")
    return label


def shipped_keys(root: Path) -> dict[str, str]:
    """Return the API key of each tenant of manifests/demo/tenants.yaml."""
    documents = yaml.safe_load_all((root / "manifests" / "demo" / "tenants.yaml").read_text(encoding="utf-8"))
    secrets = (document for document in documents if document["kind"] == "Secret")
    return {secret["metadata"]["name"]: secret["stringData"]["current"] for secret in secrets}


def tenant_manifest(name: str) -> str:
    """Return a Tenant and its Secret as in manifests/demo/tenants.yaml, for a client that is not there."""
    metadata = {"name": name, "namespace": NAMESPACE}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**metadata, "labels": {"equipoise.dev/credential": "true"}},
        "stringData": {"current": KEY.format(name)},
    }
    tenant = {
        "apiVersion": "equipoise.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": metadata,
        "spec": {
            "weight": 1,
            "identity": {"apiKeys": [{"secretName": name}]},
            "applications": [
                {"name": INTERACTIVE_APPLICATION, "slo": {"ttftMilliseconds": PROMISE_MILLISECONDS}}
            ],
        },
    }
    return yaml.safe_dump_all([secret, tenant], sort_keys=False)


def condition_of(resource: dict[str, Any], kind: str) -> str:
    """Return the status of an object's condition: True, False or Unknown, the last too where it has none."""
    for condition in resource.get("status", {}).get("conditions", []):
        if condition["type"] == kind:
            return str(condition["status"])
    return "Unknown"
