"""Owns the queue: who a request belongs to, whether it may wait, when it goes to the engine, how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise_sidecar.facts import EngineProfile, Facts, Rejection
from equipoise_sidecar.ticket import Ticket


@dataclass(slots=True)
class Reservation:
    """Room for one body in the queue, taken before the body is read. Released unless `submit` takes it over."""

    tenant: str
    arrival: float
    bytes_held: int

    def grow(self, total_bytes: int) -> Rejection | None:
        """Hold `total_bytes` instead: for a body without Content-Length, as it comes."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the room back. Does nothing after `submit` or a second time."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the request's way reads of the configuration in force. Replaced whole when that changes."""

    enforce: bool
    """False (PassThrough): nothing is queued and no body edited."""
    algorithm: str
    max_body_bytes: int
    body_timeout_seconds: float
    engine_api_key: str | None
    trusted_header: bytes | None
    """Lower-case name of the header that must not reach the engine."""


class Dispatcher:
    """The one writer of queue, gate and scheduler."""

    policy: Policy
    engine_profile: EngineProfile

    def identify(self, headers: Sequence[tuple[bytes, bytes]], peer: str | None) -> str | Rejection:
        """Return the tenant that the headers prove, the default one, or 401. Names are lower-case, as ASGI has them."""
        raise NotImplementedError

    def reserve(self, tenant: str, content_length: int | None) -> Reservation | Rejection:
        """Take room for a body: refused while draining or not configured, with a full queue, over a limit, or too large."""
        raise NotImplementedError

    def submit(self, tenant: str, facts: Facts, reservation: Reservation) -> Ticket | Rejection:
        """Queue a request whose body is read. From here it ends in exactly one outcome."""
        raise NotImplementedError
