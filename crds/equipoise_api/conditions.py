"""Conditions as Kubernetes has them, and the one rule that is easy to get wrong: lastTransitionTime moves on a flip only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from equipoise_api.model import ApiModel

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    """One aspect of an object's state, as metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """What the condition is about, in CamelCase."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The object's metadata.generation that the condition was computed from."""
    last_transition_time: Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
    """When `status` last changed (RFC 3339, UTC)."""
    reason: Annotated[
        str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    ]
    """Why, as one CamelCase word for machines."""
    message: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Why, for people, with what to do about it."""


def transition(old: Iterable[Condition], new: Iterable[Condition]) -> list[Condition]:
    """Return `new` with lastTransitionTime kept from `old` wherever the status is the same."""
    before = {c.type: c for c in old}
    return [
        c.model_copy(update={"last_transition_time": before[c.type].last_transition_time})
        if c.type in before and before[c.type].status == c.status
        else c
        for c in new
    ]
