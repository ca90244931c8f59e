"""From pydantic's JSON schema to what a CustomResourceDefinition takes: a structural schema.

Structural means: no `$ref`, no `anyOf` with null, no `const`, every object's properties spelled out. Defaults are written
out in full where they hold anything (a CEL rule on an object sees the default before nested ones are filled in) and left
out where they are empty. What has no structural form (unions, tuples, recursion) is refused with the field's path.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

_DROPPED = {"title", "discriminator", "$defs", "exclusiveMinimum", "exclusiveMaximum", "const"}
_INT32_MAX = 2**31 - 1


def list_map(*keys: str) -> Any:
    """Mark a list of objects as a map by these fields: unique, and merged by them."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*keys]})


def list_set() -> Any:
    """Mark a list of scalars as a set: its items are unique."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "set"})


def atomic_list() -> Any:
    """Mark a list as one value, replaced as a whole."""
    return Field(json_schema_extra={"x-kubernetes-list-type": "atomic"})


def rules(*rows: tuple[str, str, str]) -> Any:
    """Attach CEL rules, each (rule, message, fieldPath): the API server names the field in its refusal."""
    return Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": rule, "message": message, "fieldPath": path} for rule, message, path in rows
            ]
        }
    )


def structural_schema(model: type[BaseModel], *, defaults: bool = True) -> dict[str, Any]:
    """Return the structural schema of a model.

    `defaults=False` leaves defaults out, for a status: only its writer fills it. Raises ValueError with the field's path
    for what has no structural form.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}), path="", trail=(), defaults=defaults)


def _convert(
    node: dict[str, Any], definitions: dict[str, Any], *, path: str, trail: tuple[str, ...], defaults: bool
) -> dict[str, Any]:
    node, trail = _inline(node, definitions, path, trail)
    if "prefixItems" in node:
        raise ValueError(f"{path}: a tuple has no structural form; use an object")
    if not isinstance(node.get("type"), str):
        raise ValueError(f"{path}: has no single type, so no structural form")  # noqa: TRY004 - about the schema
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "const" in node:
        result["enum"] = [node["const"]]
    if result["type"] == "integer":
        _integer_limits(node, result)
    if "properties" in node:
        result.pop("additionalProperties", None)
        result["properties"] = {
            name: _convert(
                child,
                definitions,
                path=f"{path}.{name}" if path else name,
                trail=trail,
                defaults=defaults,
            )
            for name, child in node["properties"].items()
        }
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(
            node["additionalProperties"], definitions, path=f"{path}[*]", trail=trail, defaults=defaults
        )
    if "items" in node:
        result["items"] = _convert(
            node["items"], definitions, path=f"{path}[]", trail=trail, defaults=defaults
        )
    default = _without_empty(result.pop("default", None))
    if defaults and default is not None:
        result["default"] = default
    return result


def _inline(
    node: dict[str, Any], definitions: dict[str, Any], path: str, trail: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Follow `$ref` and collapse `anyOf [X, null]`; the field's own description and rules win over the type's."""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            if name in trail:
                raise ValueError(f"{path}: {name} contains itself, which has no structural form")
            trail = (*trail, name)
            target = definitions[name]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        else:
            members = [member for member in node["anyOf"] if member.get("type") != "null"]
            if len(members) != 1:
                raise ValueError(f"{path}: a union of {len(members)} types has no structural form")
            node = {**members[0], **{key: value for key, value in node.items() if key != "anyOf"}}
    return node, trail


def _integer_limits(node: dict[str, Any], result: dict[str, Any]) -> None:
    if "exclusiveMinimum" in node:
        result["minimum"] = node["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in node:
        result["maximum"] = node["exclusiveMaximum"] - 1
    if result.get("maximum", 0) > _INT32_MAX:
        result["format"] = "int64"


def _without_empty(value: Any) -> Any:
    """Return a default without its nulls and empty parts; None where nothing is left."""
    if isinstance(value, dict):
        kept = {key: child for key, raw in value.items() if (child := _without_empty(raw)) is not None}
        return kept or None
    if isinstance(value, list):
        return value or None
    return value
