"""What a client declares of a request: application, end user, interaction, which call of it, and how fast it has to be.

From headers first, then from the body's `metadata` (keys `equipoise.*`), then from what OpenAI and Anthropic clients send
anyway (`user`, `safety_identifier`, `metadata.user_id`, `metadata.application`). All of it is optional. A peer that speaks
llm-d is believed before the client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from equipoise_api import names
from equipoise_sidecar.facts import Facts

MOST_CHARACTERS: Final = 256
MOST_CALLS: Final = 100_000
MOST_MILLISECONDS: Final = 86_400_000

Declared = dict[str, Any]
"""Fields of `Facts` by name."""


class DeclarationError(ValueError):
    """Something declared that cannot be; the message names the header or key, and the mend."""


def _text(name: str, value: str, *, most: int = MOST_CHARACTERS) -> str:
    text = value.strip()
    if not text or len(text) > most or not text.isprintable():
        raise DeclarationError(f"{name}: send 1 to {most} printable characters, or leave it out")
    return text


def _number(name: str, value: str, *, most: int, such_as: str) -> int:
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= (number := int(text)) <= most:
        return number
    shown = text[:32] if text.isprintable() else "?"
    raise DeclarationError(f"{name}: {shown!r} is not a whole number from 1 to {most}: send {such_as}")


_call = partial(_number, most=MOST_CALLS, such_as="which call of the interaction it is, such as 2")
_calls = partial(_number, most=MOST_CALLS, such_as="how many calls the interaction has, such as 5")
_milliseconds = partial(_number, most=MOST_MILLISECONDS, such_as="milliseconds, such as 800")

Parser = Callable[[str, str], Any]
_FACTS: Final[tuple[tuple[str, str, str, Parser], ...]] = (
    ("application", names.APPLICATION_HEADER, "application", partial(_text, most=128)),
    ("user", names.USER_HEADER, "user", _text),
    ("interaction", names.INTERACTION_HEADER, "interaction", _text),
    ("call_index", names.CALL_HEADER, "call", _call),
    ("call_count", names.CALLS_HEADER, "calls", _calls),
    ("ttft_milliseconds", names.TTFT_HEADER, "ttft_milliseconds", _milliseconds),
    ("tpot_milliseconds", names.TPOT_HEADER, "tpot_milliseconds", _milliseconds),
    ("e2e_milliseconds", names.E2E_HEADER, "e2e_milliseconds", _milliseconds),
)
_HEADERS: Final = {header.lower().encode(): (field, header, parse) for field, header, _, parse in _FACTS}
_METADATA: Final = {
    names.METADATA_PREFIX + key: (field, f"metadata[{names.METADATA_PREFIX + key!r}]", parse)
    for field, _, key, parse in _FACTS
}
_LLM_D: Final = {
    spelling.encode(): (field, spelling, parse)
    for field, spellings, parse in (
        ("application", names.LLM_D_OBJECTIVE_HEADERS, partial(_text, most=128)),
        ("ttft_milliseconds", names.LLM_D_TTFT_HEADERS, _milliseconds),
        ("tpot_milliseconds", names.LLM_D_TPOT_HEADERS, _milliseconds),
    )
    for spelling in spellings
}
_SLO: Final = ("ttft_milliseconds", "tpot_milliseconds", "e2e_milliseconds")


def read_headers(headers: Iterable[tuple[bytes, bytes]], *, llm_d: bool) -> Declared:
    """Read what headers (names in lower case) declare; `llm_d`: they come from a peer that speaks llm-d.

    Raises DeclarationError. Linear in the headers.
    """
    found: Declared = {}
    vouched: dict[bytes, bytes] = {}
    for name, value in headers:
        if (known := _HEADERS.get(name)) is not None:
            field, shown, parse = known
            parsed = parse(shown, _decoded(shown, value))
            if found.setdefault(field, parsed) != parsed:
                raise DeclarationError(f"{shown}: is there twice with different values: send one")
        elif llm_d and name in _LLM_D:
            vouched[name] = value
    if vouched:
        _trust(found, vouched)
    return found


def _trust(found: Declared, vouched: Mapping[bytes, bytes]) -> None:
    """Let a trusted peer's SLO stand for the client's; its objective names the application where the client names none."""
    said: Declared = {}
    for name, (field, shown, parse) in _LLM_D.items():
        if name in vouched and field not in said:
            said[field] = parse(shown, _decoded(shown, vouched[name]))
    if "application" in said:
        found.setdefault("application", said.pop("application"))
    if said:
        for field in _SLO:
            found.pop(field, None)
        found.update(said, slo_vouched=True)


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DeclarationError(f"{name}: is not UTF-8: send UTF-8, or percent-encode it") from None


def declare(facts: Facts, headers: Declared, metadata: Any, users: Iterable[Any] = ()) -> None:
    """Write into `facts` what `headers` and the body's `metadata` declare; headers win.

    `users`: the members of the body that may name the end user, the first one that does counts. Raises DeclarationError.
    """
    for field, value in headers.items():
        setattr(facts, field, value)
    if isinstance(metadata, dict):
        for key in metadata.keys() & _METADATA.keys():
            field, shown, parse = _METADATA[key]
            value = metadata[key]
            if field not in headers and not (facts.slo_vouched and field in _SLO):
                setattr(facts, field, parse(shown, _string(shown, value)))
        users = (*users, metadata.get("user_id"))
        facts.application = facts.application or _loose(metadata.get("application"))[:128]
    if not facts.user:
        facts.user = next((text for user in users if (text := _loose(user))), "")
    if not facts.interaction and (facts.call_index is not None or facts.call_count is not None):
        raise DeclarationError(
            f"{names.CALL_HEADER}, {names.CALLS_HEADER}: say of which interaction: send {names.INTERACTION_HEADER} too"
        )
    if facts.call_index is not None and facts.call_count is not None and facts.call_index > facts.call_count:
        raise DeclarationError(
            f"{names.CALL_HEADER}: call {facts.call_index} of {facts.call_count}: calls count from 1 to {names.CALLS_HEADER}"
        )


def _string(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**9 else "too large"
    if not isinstance(value, str):
        raise DeclarationError(f"{name}: send a string")
    return value


def _loose(value: Any) -> str:
    """Read a member that is not ours: what is not text says nothing, what is long is cut."""
    return value[:MOST_CHARACTERS] if isinstance(value, str) else ""
