"""What can go wrong between the sidecar and its engine."""

from __future__ import annotations


class EngineError(Exception):
    """The engine gave no usable answer; the message says why."""


class EngineUnreachableError(EngineError):
    """No connection could be made: nothing was sent."""


class EngineLostError(EngineError):
    """The connection ended before the answer did."""

    def __init__(self, message: str, *, unread: bool) -> None:
        super().__init__(message)
        self.unread = unread
        """Whether the engine cannot have read the whole request."""


class EngineGarbageError(EngineError):
    """The engine answered with something that is not HTTP."""


class EngineAbandonedError(EngineError):
    """The sidecar ends, and gave the answer up."""
