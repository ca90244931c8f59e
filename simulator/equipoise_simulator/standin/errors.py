"""Errors in vLLM's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """Return the JSON body."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


def bad_request(message: str, param: str, value: int | None = None) -> RequestError:
    """Return a 400 about a field's value."""
    shown = "" if value is None else f", value={value}"
    return RequestError(400, f"{message} (parameter={param}{shown})", kind="BadRequestError", param=param)


def invalid(kind: str, place: str, message: str) -> RequestError:
    """Return the 400 of a body that is not of the endpoint's type: pydantic's error as vLLM prints it."""
    error = {"type": kind, "loc": place, "msg": message}
    return RequestError(400, f"1 validation error:\n  {error}", kind="Bad Request", param=place)


def not_found(message: str, param: str | None = None) -> RequestError:
    """Return a 404."""
    return RequestError(404, message, kind="NotFoundError", param=param)


def busy(message: str) -> RequestError:
    """Return vLLM's 503, which has no Retry-After."""
    return RequestError(503, message, kind="ServiceUnavailableError")
