"""The generated CustomResourceDefinitions keep Kubernetes' API conventions."""

from pathlib import Path

import pytest

from equipoise_api.cli import stale
from equipoise_api.crd import fairness_policy_crd, tenant_crd
from equipoise_api.policy import FairnessPolicySpec
from equipoise_api.tenant import TenantSpec

ROOT = Path(__file__).parents[3]
CRDS = {"Tenant": tenant_crd(), "FairnessPolicy": fairness_policy_crd()}


def fields(schema, path=""):
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]", schema["items"]
        yield from fields(schema["items"], f"{path}[]")


def schema_of(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_committed_files_are_what_the_types_say():
    assert stale(ROOT) == []


def test_a_stale_file_is_named(tmp_path):
    from equipoise_api.cli import write

    write(tmp_path)
    (tmp_path / "crds/equipoise.dev_tenants.yaml").write_text("old")
    assert stale(tmp_path) == [tmp_path / "crds/equipoise.dev_tenants.yaml"]


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_is_described_bounded_and_no_float(kind):
    for path, field in fields(schema_of(CRDS[kind])):
        if path == ".metadata":
            continue
        assert field["type"] in {"string", "integer", "object", "array"}, path
        if not path.endswith("[]"):
            assert field.get("description"), f"{path} has no description"
        if path.startswith((".apiVersion", ".kind")):
            continue
        if field["type"] == "string":
            assert "maxLength" in field or "enum" in field, f"{path} is unbounded"
        if field["type"] == "array":
            assert "maxItems" in field, f"{path} is unbounded"
            assert "x-kubernetes-list-type" in field, f"{path} does not say how it merges"


UNITS = {
    "Nanoseconds": "nanoseconds",
    "Milliseconds": "milliseconds",
    "Seconds": "seconds",
    "PerMinute": "60 seconds",
    "MilliPerSecond": "thousandths",
    "Percent": "percent",
    "Tokens": "token",
    "Bytes": "bytes",
}


@pytest.mark.parametrize("kind", CRDS)
def test_every_number_says_its_unit(kind):
    for path, field in fields(schema_of(CRDS[kind])["properties"]["spec"]):
        unit = next((unit for suffix, unit in UNITS.items() if path.endswith(suffix)), "")
        if field["type"] == "integer":
            assert unit in field["description"].lower(), path


@pytest.mark.parametrize("kind", CRDS)
def test_every_rule_names_its_field(kind):
    for path, field in fields(schema_of(CRDS[kind])):
        for rule in field.get("x-kubernetes-validations", []):
            assert rule["fieldPath"], path
            assert rule["message"], path


@pytest.mark.parametrize("kind", CRDS)
def test_enums_that_may_be_left_out_have_a_default(kind):
    for path, field in fields(schema_of(CRDS[kind])["properties"]["spec"]):
        if "enum" in field and not path.endswith(".operator"):
            assert "default" in field, path


def test_the_defaults_of_the_schema_are_those_of_the_types():
    spec = schema_of(CRDS["FairnessPolicy"])["properties"]["spec"]

    def defaulted(schema, value):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = child["default"]
            if isinstance(value.get(name), dict):
                defaulted(child, value[name])
        return value

    minimal = {"target": {"selector": {"matchLabels": {"app": "vllm"}}}}
    by_server = FairnessPolicySpec.strictly(defaulted(spec, dict(minimal)))
    assert by_server == FairnessPolicySpec.model_validate(minimal)


def test_a_tenant_may_be_empty():
    assert TenantSpec.model_validate({}).weight == 1
    assert "required" not in schema_of(CRDS["Tenant"])["properties"]["spec"]


def test_rules_speak_of_fields_that_exist():
    import re

    for crd in CRDS.values():
        for _, field in fields(schema_of(crd)):
            for rule in field.get("x-kubernetes-validations", []):
                assert set(re.findall(r"self\.(\w+)", rule["rule"])) <= set(field["properties"])
