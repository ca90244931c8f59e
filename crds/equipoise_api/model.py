"""The base of every type here: camelCase on the wire, unknown fields ignored so that N and N-1 understand each other."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A type of the API.

    What the API server or a peer sends is parsed leniently (unknown fields are dropped: an older reader meets a newer
    writer), and tests that check what the project ships use `strictly`.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        use_attribute_docstrings=True,
        frozen=True,
    )

    def document(self) -> dict[str, Any]:
        """Return plain JSON data with the wire's names; what is unset (None) is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def canonical(self) -> bytes:
        """Return the canonical form as JSON: sorted keys, no white space. Equal data gives equal bytes, in any process."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical form."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def strictly(cls, data: Any) -> Self:
        """Parse and refuse unknown fields at every depth. Raises pydantic's ValidationError, or ValueError naming them."""
        parsed = cls.model_validate(data)
        unknown = sorted(_unknown(data, parsed.document(), ""))
        if unknown:
            raise ValueError(f"unknown fields: {', '.join(unknown)}")
        return parsed


def _unknown(given: Any, known: Any, path: str) -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        found: list[str] = []
        for key, value in given.items():
            here = f"{path}.{key}" if path else str(key)
            if key not in known:
                found += [here] if value is not None else []
            else:
                found += _unknown(value, known[key], here)
        return found
    if isinstance(given, list) and isinstance(known, list):
        return [
            u
            for i, (a, b) in enumerate(zip(given, known, strict=False))
            for u in _unknown(a, b, f"{path}[{i}]")
        ]
    return []


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
"""Name of a Kubernetes object (a DNS subdomain)."""

DnsLabel = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]
Namespace = DnsLabel
"""Name of a namespace."""

Percent = Annotated[int, Field(ge=0, le=100)]
Permille = Annotated[int, Field(ge=0, le=1000)]
Weight = Annotated[int, Field(ge=1, le=10_000)]
"""Relative share of service."""
RequestsPerMinute = Annotated[int, Field(ge=1, le=10_000_000)]
Count = Annotated[int, Field(ge=0)]


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Known = Annotated[
    Annotated[float, Field(ge=-1e12, le=1e12)] | None,
    BeforeValidator(_finite_or_none),
]
"""A figure that may be unknown; what is not finite is unknown."""
