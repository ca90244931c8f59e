r"""Server-sent events as bytes: found whole, read where needed, cut without re-encoding.

The engine ends each event with an empty line (`\n\n`; `\r\n\r\n` is understood too). For exact progress the sidecar asks
it for a running `usage` in every chunk; what the client did not ask for is cut from the bytes again, so that it gets
what the engine alone would have sent.
"""

from __future__ import annotations

import msgspec

from equipoise_sidecar.said import Said
from equipoise_sidecar.usage import ReportedUsage

END = b"\n\n"
_CRLF_END = b"\r\n\r\n"
DATA = b"data:"
_USAGE = b',"usage":{'
_USAGE_FIRST = (b'data: {"usage"', b'data:{"usage"')

LONGEST_HELD = 8 * 1024 * 1024
"""Bytes of an unfinished event that are held back; beyond, they pass as they are."""


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk, as far as it matters here."""

    index: int = 0
    finish_reason: str | None = None
    delta: Said | None = None
    message: Said | None = None
    """Of a whole answer."""


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a chat or completions stream, the error that ends one, or a whole answer."""

    choices: list[Choice] | None = None
    usage: ReportedUsage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_chunk(event: bytes) -> Chunk | None:
    """Decode an event's JSON; None for comments, `[DONE]` and whatever is no chunk."""
    if not event.startswith(DATA):
        return None
    try:
        return _decode_chunk(event[len(DATA) :])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def read_message(body: bytes) -> Said | None:
    """Return the first message of a whole chat answer; None where there is none."""
    try:
        choices = _decode_chunk(body).choices
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return choices[0].message if choices else None


class Splitter:
    """Bytes in, whole events out. Linear in the bytes, however they are cut."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that ended, each with its empty line. An unfinished one is held back."""
        held = self._held
        if held:
            seam = max(0, len(held) - len(_CRLF_END) + 1)
            held += data
            if held.find(END, seam) < 0 and held.find(_CRLF_END, seam) < 0:
                return [self.rest()] if len(held) > LONGEST_HELD else []
            data = self.rest()
        end = data.find(END)
        if 0 <= end == len(data) - len(END):
            return [data]
        mark = _CRLF_END if end < 0 and _CRLF_END in data else END
        events = []
        start = 0
        while (end := data.find(mark, start)) >= 0:
            end += len(mark)
            events.append(data[start:end])
            start = end
        rest = data[start:]
        if len(rest) > LONGEST_HELD:
            events.append(rest)
        else:
            held += rest
        return events

    def rest(self) -> bytes:
        """Return what is held of an event that never ended."""
        held = bytes(self._held)
        self._held.clear()
        return held


def cut_usage(event: bytes) -> bytes:
    """Return the event without its chunk's top-level `usage` object, every other byte as it was.

    For an event whose chunk has one. A quote inside a JSON string is escaped, so `,"usage":{` never stands in generated
    text; it may be a key at a deeper level, and then, as for any other layout than the engine's, the chunk is put
    together again from its raw members.
    """
    start = event.find(_USAGE)
    if start < 0 or event.find(_USAGE, start + 1) >= 0 or event.startswith(_USAGE_FIRST):
        return _without_usage(event)
    value = start + len(_USAGE) - 1
    end = value + 1
    depth = 1
    while depth > 0:
        close = event.find(b"}", end)
        if close < 0:
            return _without_usage(event)
        depth += event.count(b"{", end, close) - 1
        end = close + 1
    try:
        _decode_object(event[value:end])
    except (msgspec.MsgspecError, ValueError):  # a string in it holds braces
        return _without_usage(event)
    return event[:start] + event[end:]


def _without_usage(event: bytes) -> bytes:
    members = msgspec.json.decode(event[len(DATA) :], type=dict[str, msgspec.Raw])
    members.pop("usage", None)
    return DATA + b" " + msgspec.json.encode(members) + END


def append_fingerprint(event: bytes, member: bytes) -> bytes:
    """Return the event with `member` (`,"system_fingerprint":"..."`) at the end of its object."""
    end = event.rfind(b"}")
    if end < 0 or event[end + 1 :].strip():
        return event
    return event[:end] + member + event[end:]


def fingerprint_member(fingerprint: str | None) -> bytes:
    """Return the bytes that `append_fingerprint` inserts; b"" where the engine sends no fingerprint."""
    return b"" if fingerprint is None else b',"system_fingerprint":' + msgspec.json.encode(fingerprint)
