"""The API reference in Markdown, made from the same schema that the API server enforces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from equipoise_api.crd import fairness_policy_crd, tenant_crd

_INTRODUCTION = """\
# API reference

Group `equipoise.dev`, version `v1alpha1`; both kinds are namespaced and in the category `equipoise`
(`kubectl get equipoise`). This page is generated from the types by `equipoise crds`; `kubectl explain` says the same.
A field in **bold** is required. `[]` is a list's item, `[*]` a map's value.
"""


def markdown() -> str:
    """Return the whole page."""
    return _INTRODUCTION + "".join(_kind(crd) for crd in (tenant_crd(), fairness_policy_crd()))


def _kind(crd: dict[str, Any]) -> str:
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    lines = [
        f"\n## {names['kind']}\n",
        f"{schema['description']} Short names: {_codes(names['shortNames'])}.\n",
    ]
    for part in ("spec", "status"):
        lines += [
            f"### {names['kind']} {part}\n",
            "| field | type | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        lines += [*_rows(schema["properties"][part], f".{part}"), ""]
    return "\n".join(lines)


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        shown = f"**`{here}`**" if name in schema.get("required", []) else f"`{here}`"
        rules = "".join(
            f" {rule['message'][0].upper()}{rule['message'][1:]}."
            for rule in field.get("x-kubernetes-validations", [])
        )
        meaning = (field.get("description", "") + rules).replace("|", "\\|")
        yield f"| {shown} | {_type(field)} | {_default(field)} | {meaning} |"
        yield from _rows(field, here)
        if "items" in field:
            yield from _rows(field["items"], f"{here}[]")


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return _codes(field["enum"])
    match field["type"]:
        case "array":
            return f"list of {_type(field['items'])}, at most {field['maxItems']}"
        case "object" if "additionalProperties" in field:
            return f"map to {_type(field['additionalProperties'])}"
        case "integer" if "maximum" in field:
            return f"integer {field.get('minimum', 0)} to {field['maximum']}"
        case "integer" if "minimum" in field:
            return f"integer from {field['minimum']}"
        case other:
            return str(other)


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None or isinstance(default, dict) else f"`{default}`"


def _codes(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
