"""Reads a sidecar's state slice by slice: with 10,000 active tenants it has 5 MB, and parsed at once it would stop the loop.

Its members and the tenants' rows are told apart without being parsed, then validated as the API's types, some rows at a time.
What one slice can hold and how much there is in all are bounded before: a sidecar may send anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError

from equipoise_api.sidecar_state import SidecarState, TenantState

SLICE_BYTES = 128 * 1024
"""JSON that is validated before others get their turn: about 3 ms."""
LARGEST_PART = 256 * 1024
"""Bytes of one tenant's row, and of all that is no tenant's; ours have at most a tenth."""
MOST_TENANTS = 50_000
"""Of ours, 37,000 fit into the longest answer that is read."""
MOST_VALUES = 1_000_000

_TENANTS = TypeAdapter(list[TenantState])
T = TypeVar("T")


class StateError(ValueError):
    """Not a state; the message begins with the path of the field that is wrong, where one is."""


async def read(body: bytes, turn: asyncio.Lock) -> SidecarState:
    """Parse a state. With one `turn` for all readers a round of the loop has one slice. Raises StateError. O(length)."""
    # Between values there are commas, so that there can be no more parts than these.
    if body.count(b",") >= MOST_VALUES:
        raise StateError(f"more than {MOST_VALUES} values")
    members = _parts(body, dict[str, msgspec.Raw])
    raw_tenants = members.pop("tenants", b"[]")
    rest = msgspec.json.encode(members)
    if len(rest) > LARGEST_PART:
        raise StateError(f"more than {LARGEST_PART} bytes beside the tenants")
    try:
        state = SidecarState.model_validate_json(rest)
    except ValidationError as error:
        raise StateError(first_fault(error)) from error
    await asyncio.sleep(0)
    rows = _parts(raw_tenants, list[msgspec.Raw], "tenants: ")
    if len(rows) > MOST_TENANTS:
        raise StateError(f"tenants: more than {MOST_TENANTS}")
    tenants: list[TenantState] = []
    for part in _slices(rows):
        async with turn:
            try:
                tenants += _TENANTS.validate_json(part)
            except ValidationError as error:
                raise StateError(first_fault(error, len(tenants))) from error
            await asyncio.sleep(0)
    return state.model_copy(update={"tenants": tenants})


def _parts(text: bytes | msgspec.Raw, kind: type[T], place: str = "") -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"{place}{error}") from error


def _slices(rows: list[msgspec.Raw]) -> Iterator[bytes]:
    """Yield the rows as lists of about SLICE_BYTES, in JSON. StateError at one that is too large."""
    held: list[bytes] = []
    size = 0
    for number, raw in enumerate(rows):
        row = bytes(raw)
        if len(row) > LARGEST_PART:
            raise StateError(f"tenants.{number}: more than {LARGEST_PART} bytes")
        held.append(row)
        size += len(row)
        if size >= SLICE_BYTES:
            yield b"[" + b",".join(held) + b"]"
            held, size = [], 0
    if held:
        yield b"[" + b",".join(held) + b"]"


def first_fault(error: ValidationError, rows_before: int | None = None) -> str:
    """Return the first thing that is wrong, with its path; with `rows_before` the data was a slice of the tenants."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path: list[int | str] = list(first["loc"])
    if rows_before is not None and path and isinstance(path[0], int):
        path[:1] = ["tenants", rows_before + path[0]]
    where = ".".join(str(step) for step in path)
    return f"{where}: {first['msg']}" if where else str(first["msg"])
