"""What is wrong with an object, as the compile step finds it and the status tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_MESSAGE = 1024


class Reason(StrEnum):
    """Why a condition is not True; the word that the condition carries."""

    CONFLICT = "Conflict"
    """Somebody older has it: a key, a header value, a pod."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    SECRET_NOT_LABELLED = "SecretNotLabelled"  # noqa: S105 - a reason
    SECRET_EMPTY = "SecretEmpty"  # noqa: S105 - a reason
    SECRET_NOT_USABLE = "SecretNotUsable"  # noqa: S105 - a reason
    """A Secret of the operator's own."""
    KEY_NOT_UTF8 = "KeyNotUTF8"
    KEY_TOO_SHORT = "KeyTooShort"
    KEY_TOO_LONG = "KeyTooLong"
    TOO_MANY_KEYS = "TooManyKeys"
    KEY_NOT_PRINTABLE = "KeyNotPrintable"
    """It could not be sent in an HTTP header."""
    NOT_GRANTED = "NotGranted"
    """The policy does not let that namespace claim header values."""
    NO_TRUSTED_HEADER = "NoTrustedHeader"
    NO_IDENTITY = "NoIdentity"
    WEIGHT_LIMITED = "WeightLimited"
    INVALID_PEER = "InvalidPeer"
    INVALID = "Invalid"
    """This version of the operator cannot read the object."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and what to do about it."""

    reason: Reason
    message: str


def summary(findings: Sequence[Finding]) -> str:
    """Join the messages, within what a condition may hold."""
    text = "; ".join(dict.fromkeys(finding.message for finding in findings))
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."
