"""The API server takes the CRDs, explains them, fills in their defaults and refuses wrong objects by the field's name."""

import json
from pathlib import Path

import pytest
import served
import yaml

from equipoise_api.policy import FairnessPolicySpec
from equipoise_api.tenant import TenantSpec
from equipoise_cluster.errors import CommandError

pytestmark = pytest.mark.cluster
CRDS = Path(__file__).parents[2] / "crds"

TARGET = {"selector": {"matchLabels": {"app": "vllm"}}}


@pytest.fixture(scope="module")
def api(control_plane):
    for path in sorted(CRDS.glob("*.yaml")):
        control_plane.kubectl("apply", "--server-side", "-f", str(path))
    served.crds_served(control_plane)
    return control_plane


def apply(api, namespace, kind, spec, name="blue", **top):
    body = {
        "apiVersion": "equipoise.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
        **top,
    }
    return api.kubectl("apply", "-f", "-", input=yaml.safe_dump(body))


def read(api, namespace, kind, name="blue"):
    return json.loads(api.kubectl("get", kind, name, "-n", namespace, "-o", "json"))


def test_a_tenant_may_say_nothing(api, namespace):
    apply(api, namespace, "Tenant", {})
    assert read(api, namespace, "tenant")["spec"]["weight"] == 1


def test_spec_is_required(api, namespace):
    with pytest.raises(CommandError, match="spec: Required"):
        apply(api, namespace, "Tenant", None)


def test_the_server_and_the_types_fill_in_the_same_defaults(api, namespace):
    apply(api, namespace, "FairnessPolicy", {"target": TARGET})
    stored = read(api, namespace, "fairnesspolicy")["spec"]
    assert FairnessPolicySpec.strictly(stored) == FairnessPolicySpec.model_validate({"target": TARGET})
    apply(api, namespace, "Tenant", {})
    assert TenantSpec.strictly(read(api, namespace, "tenant")["spec"]) == TenantSpec()


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"weight": 0}, r"spec\.weight.*greater than or equal to 1"),
        ({"weight": 1.5}, r"spec\.weight"),
        ({"slo": {}}, r"spec\.slo\.ttftMilliseconds.*at least one of"),
        ({"limits": {"maxInFlight": 0}}, r"spec\.limits\.maxInFlight"),
        (
            {"identity": {"apiKeys": [{"secretName": "a"}, {"secretName": "a"}]}},
            r"spec\.identity\.apiKeys\[1\].*Duplicate",
        ),
        ({"identity": {"apiKeys": [{"secretName": "Not A Name"}]}}, r"secretName"),
        ({"identity": {"headerValues": ["a", "a"]}}, r"spec\.identity\.headerValues\[1\].*Duplicate"),
        ({"wieght": 2}, r"wieght"),
        (
            {"applications": [{"name": "chat"}, {"name": "chat"}]},
            r"spec\.applications\[1\].*Duplicate",
        ),
        (
            {"applications": [{"name": "chat", "slo": {}}]},
            r"spec\.applications\[0\]\.slo\.ttftMilliseconds.*at least one of",
        ),
    ],
)
def test_a_wrong_tenant_is_refused_with_the_fields_name(api, namespace, spec, want):
    with pytest.raises(CommandError, match=want):
        apply(api, namespace, "Tenant", spec)


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({}, r"spec\.target: Required"),
        ({"target": {"selector": {}}}, r"spec\.target\.selector\.matchLabels.*name at least one label"),
        *(
            (
                {"target": {"selector": {"matchExpressions": [{"key": "app", **term}]}}},
                r"spec\.target\.selector\.matchExpressions\[0\]\.values.*In and NotIn need values",
            )
            for term in (
                {"operator": "In"},
                {"operator": "NotIn", "values": []},  # every pod has none of no values
                {"operator": "Exists", "values": ["vllm"]},
            )
        ),
        ({"target": TARGET, "algorithm": {"type": "Lottery"}}, r"spec\.algorithm\.type.*Lottery"),
        ({"target": TARGET, "algorithm": {"type": "FCFS", "vtc": {}}}, r"spec\.algorithm\.vtc.*type VTC"),
        ({"target": TARGET, "mode": "Sometimes"}, r"spec\.mode"),
        (
            {"target": TARGET, "algorithm": {"type": "VTC", "exFairS": {}}},
            r"spec\.algorithm\.exFairS.*type ExFairS",
        ),
        (
            {"target": TARGET, "shadow": [{"type": "DRR"}, {"type": "DRR"}]},
            r"spec\.shadow\[1\].*Duplicate",
        ),
        (
            {"target": TARGET, "shadow": [{"type": "DRR", "rpm": {}}]},
            r"spec\.shadow\[0\]\.rpm.*type RPM",
        ),
        ({"target": TARGET, "cost": {"profiled": {"outputNanoseconds": 0}}}, r"outputNanoseconds"),
        ({"target": TARGET, "capacity": {"maxInFlight": 0}}, r"spec\.capacity\.maxInFlight"),
        ({"target": TARGET, "queue": {"maxBytes": 1}}, r"spec\.queue\.maxBytes"),
        (
            {"target": TARGET, "gpu": {"dcgm": "Endpoint"}},
            r"spec\.gpu\.endpoint.*set endpoint where dcgm is Endpoint",
        ),
        ({"target": TARGET, "gpu": {"endpoint": "http://dcgm:9400/metrics"}}, r"spec\.gpu\.endpoint"),
        (
            {"target": TARGET, "gpu": {"dcgm": "Endpoint", "endpoint": "http://user@dcgm/metrics"}},
            r"spec\.gpu\.endpoint",
        ),
        (
            {"target": TARGET, "identity": {"trustedHeader": {"peers": []}}},
            r"spec\.identity\.trustedHeader\.peers",
        ),
        (
            {"target": TARGET, "identity": {"trustedHeader": {"peers": ["10.0.0.1"]}}},
            r"spec\.identity\.trustedHeader\.peers\[0\]",
        ),
    ],
)
def test_a_wrong_policy_is_refused_with_the_fields_name(api, namespace, spec, want):
    with pytest.raises(CommandError, match=want):
        apply(api, namespace, "FairnessPolicy", spec)


def test_the_algorithm_changes_by_patch_when_the_old_member_is_set_to_null(api, namespace):
    apply(
        api,
        namespace,
        "FairnessPolicy",
        {"target": TARGET, "algorithm": {"type": "VTC", "vtc": {"charge": "OnDelivery"}}},
    )
    patch = ("patch", "fairnesspolicy", "blue", "-n", namespace, "--type=merge", "-p")
    with pytest.raises(CommandError, match=r"vtc"):
        api.kubectl(*patch, '{"spec":{"algorithm":{"type":"FCFS"}}}')
    api.kubectl(*patch, '{"spec":{"algorithm":{"type":"FCFS","vtc":null}}}')
    assert read(api, namespace, "fairnesspolicy")["spec"]["algorithm"] == {"type": "FCFS"}


def test_status_is_a_subresource_and_spec_changes_raise_the_generation(api, namespace):
    apply(api, namespace, "Tenant", {}, status={"share": {"actualPercent": 7}})
    assert "status" not in read(api, namespace, "tenant")
    apply(api, namespace, "Tenant", {"weight": 2})
    assert read(api, namespace, "tenant")["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    ("field", "want"),
    [
        ("tenant.spec.weight", "Relative share"),
        ("ten.spec.slo.ttftMilliseconds", "first token"),
        ("fairnesspolicy.spec.capacity.maxInFlight", "left out, it is measured"),
        ("fp.status.fairness.bound", "weighted tokens|proof"),
    ],
)
def test_kubectl_explains_every_field(api, field, want):
    import re

    assert re.search(want, api.kubectl("explain", field))


def test_columns_short_names_and_category(api, namespace):
    apply(api, namespace, "Tenant", {"weight": 3})
    apply(api, namespace, "FairnessPolicy", {"target": TARGET})
    tenants = api.kubectl("get", "ten", "-n", namespace)
    assert tenants.splitlines()[0].split() == (
        [
            "NAME",
            "WEIGHT",
            "SHARE%",
            "FAIR%",
            "QUEUED",
            "RUNNING",
            "TOK/MIN",
            "TTFT-P99",
            "SLO%",
            "READY",
            "AGE",
        ]
    )
    assert "Equipoise" in api.kubectl("get", "fp", "-n", namespace)
    everything = api.kubectl("get", "equipoise", "-n", namespace)
    assert "tenant" in everything
    assert "fairnesspolicy" in everything
