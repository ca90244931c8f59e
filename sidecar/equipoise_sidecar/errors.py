"""The sidecar's own answers in the endpoint's shape: vLLM's OpenAI bodies, Anthropic's for messages."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from equipoise_sidecar.facts import EndpointKind, Rejection
from equipoise_sidecar.headers import REASON, Headers

LONGEST_RETRY_SECONDS = 120
"""openai-python gives up at once on a longer Retry-After."""

_OPENAI_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(kind: EndpointKind, status: int, message: str) -> bytes:
    """Return the JSON body of an error answer."""
    return msgspec.json.encode(_error(kind, status, message))


def error_headers(rejection: Rejection) -> Headers:
    """Return what a refused client can act on: the reason, and when it is worth another try."""
    headers = [(b"content-type", b"application/json"), (REASON, rejection.reason.encode())]
    if rejection.retry_after_seconds is not None:
        seconds = min(LONGEST_RETRY_SECONDS, max(1, math.ceil(rejection.retry_after_seconds)))
        headers.append((b"retry-after", str(seconds).encode()))
    if rejection.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if rejection.should_retry else b"false"))
    return headers


def error_event(kind: EndpointKind, status: int, message: str) -> bytes:
    """Return the event that ends a stream which broke off."""
    data = error_body(kind, status, message)
    if kind is EndpointKind.MESSAGES:
        return b"event: error\ndata: " + data + b"\n\n"
    if kind is EndpointKind.RESPONSES:
        event = {"type": "error", "code": str(status), "message": message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    return b"data: " + data + b"\n\n"


def _error(kind: EndpointKind, status: int, message: str) -> dict[str, Any]:
    if kind is EndpointKind.MESSAGES:
        name = _ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": name, "message": message}}
    name = _OPENAI_TYPES.get(status, "InternalServerError")
    return {"error": {"message": message, "type": name, "param": None, "code": status}}
