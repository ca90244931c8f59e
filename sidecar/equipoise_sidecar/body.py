"""Request bodies: read without re-encoding, changed by as few bytes as possible.

A body is decoded to its top-level members as raw bytes. What the engine's own parser takes (Python's `json` behind
pydantic) is taken here: a BOM, `NaN`, duplicate keys (the last wins), `"stream": "true"`. What is not one JSON object in
UTF-8 is refused; the engine itself would also take UTF-16, a documented difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

MOST_VALUES = 1_000_000
"""In a body: token ids, strings, whatever has a place in a list. No context has as many tokens."""
MOST_LISTS = 200_000
"""Lists and objects in a body. Decoded, one takes up to a hundred bytes and holds the event loop for up to a microsecond."""
_BOM = b"\xef\xbb\xbf"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_FRACTION = re.compile(r"\.0+\s*$")
_SPACE = re.compile(r"[ \t\n\r]*")
_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))
_ALWAYS_USAGE = b'"stream_options":{"include_usage":true,"continuous_usage_stats":true}'
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


class BodyError(ValueError):
    """A body that is not one JSON object in UTF-8; the message says where."""


class Body:
    """A request body: its bytes, and its top-level members by name."""

    __slots__ = ("_members", "raw")

    def __init__(self, raw: bytes, members: Mapping[str, msgspec.Raw | bytes]) -> None:
        self.raw = raw
        self._members = members

    @classmethod
    def parse(cls, raw: bytes) -> Body:
        """Read a body in one pass. Raises BodyError."""
        text = raw.removeprefix(_BOM)
        try:
            if not text.isascii():
                text.decode()
            if _is_crowded(text):
                raise BodyError(
                    f"The body has more than {MOST_VALUES} values, or {MOST_LISTS} lists and objects: send fewer"
                )
            return cls(raw, _decode_members(text))
        except UnicodeDecodeError as error:
            raise BodyError(f"The body is not UTF-8 (byte {error.start})") from None
        except msgspec.ValidationError:
            raise BodyError("The body must be a JSON object") from None
        except msgspec.DecodeError:
            return cls(raw, _members(text.decode()))
        except RecursionError:
            raise BodyError("The body is nested too deeply") from None

    def __contains__(self, name: str) -> bool:
        """Say whether the member is there, null or not."""
        return name in self._members

    def size(self, name: str) -> int:
        """Bytes of a member's value as it stands; 0 where there is none."""
        member = self._members.get(name)
        return 0 if member is None else memoryview(member).nbytes

    def source(self, name: str) -> bytes:
        """Return a member's value as it stands; nothing where there is none."""
        member = self._members.get(name)
        return b"" if member is None else bytes(member)

    def value(self, name: str) -> Any:
        """Decode one member; None where there is none. Raises BodyError."""
        member = self._members.get(name)
        if member is None:
            return None
        try:
            return _decode(member)
        except (msgspec.DecodeError, RecursionError):
            try:
                return json.loads(bytes(member))
            except (ValueError, RecursionError) as error:
                raise BodyError(f"{name}: {error}") from None

    def with_running_usage(self) -> bytes:
        """Return the body with `stream_options` asking for usage in every chunk; all else keeps its bytes."""
        if "stream_options" not in self._members:
            end = self.raw.rindex(b"}")
            return b"".join((self.raw[:end], b",", _ALWAYS_USAGE, self.raw[end:]))
        wanted = {
            **(self.value("stream_options") or {}),
            "include_usage": True,
            "continuous_usage_stats": True,
        }
        return _joined(
            {**self._members, "stream_options": json.dumps(wanted, separators=(",", ":")).encode()}
        )

    def without(self, name: str) -> bytes:
        """Return the body without a member; the other values keep their bytes."""
        if name not in self._members:
            return self.raw
        return _joined({key: raw for key, raw in self._members.items() if key != name})


def _is_crowded(text: bytes) -> bool:
    """Say whether decoding would hold everybody up. Signs in strings count only where they are few enough to be left out."""
    if len(text) < 2 * MOST_LISTS or not _has_many_signs(text):
        return False
    strings = (text.count(b'"') - text.count(b'\\"')) // 2
    return strings > MOST_VALUES or _has_many_signs(_STRING.sub(b"", text))


def _has_many_signs(text: bytes) -> bool:
    return text.count(b",") > MOST_VALUES or text.count(b"[") + text.count(b"{") > MOST_LISTS


def _joined(members: Mapping[str, msgspec.Raw | bytes]) -> bytes:
    return (
        b"{"
        + b",".join([json.dumps(name).encode() + b":" + bytes(raw) for name, raw in members.items()])
        + b"}"
    )


def read_bool(value: Any) -> bool | None:
    """Read a flag as pydantic reads a bool, null as false; None for what it would refuse."""
    if value is None:
        return False
    if isinstance(value, str):
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else None
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return None


def read_int(value: Any) -> int | None:
    """Read a number as pydantic reads an int; None for null and for what it would refuse."""
    try:
        if isinstance(value, float):
            return int(value) if value.is_integer() else None
        if isinstance(value, int):
            return int(value)
        if isinstance(value, str):
            return int(_FRACTION.sub("", value))
    except ValueError:
        return None
    return None


def _members(text: str) -> dict[str, bytes]:
    """Split an object into its members' source, by the rules of Python's `json`. Raises BodyError."""
    decoder = json.JSONDecoder()
    members: dict[str, bytes] = {}
    at = _skip(text, 0)
    if not text.startswith("{", at):
        raise BodyError("The body must be a JSON object")
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        at += 1
    else:
        while True:
            try:
                name, end = decoder.raw_decode(text, at)
                colon = _skip(text, end)
                if not isinstance(name, str) or not text.startswith(":", colon):
                    raise BodyError(f"The body is not JSON (character {at})")
                start = _skip(text, colon + 1)
                _, at = decoder.raw_decode(text, start)
            except json.JSONDecodeError as error:
                raise BodyError(f"The body is not JSON: {error.msg} (character {error.pos})") from None
            except RecursionError:
                raise BodyError("The body is nested too deeply") from None
            members[name] = text[start:at].encode()
            at = _skip(text, at)
            if text.startswith("}", at):
                at += 1
                break
            if not text.startswith(",", at):
                raise BodyError(f"The body is not JSON (character {at})")
            at = _skip(text, at + 1)
    if _skip(text, at) != len(text):
        raise BodyError(f"The body goes on after its JSON object (character {at})")
    return members


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
