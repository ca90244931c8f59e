"""What a request's headers lose and gain on the way to the engine, and an answer's on the way back."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

TENANT = b"x-equipoise-tenant"
QUEUED = b"x-equipoise-queue-ms"
SCHEDULER = b"x-equipoise-scheduler"
REASON = b"x-equipoise-reason"

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NOT_FOR_THE_ENGINE = _HOP_BY_HOP | frozenset(
    (
        # the client's credentials
        b"authorization",
        b"x-api-key",
        b"cookie",
        # what only the scheduler may say
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        # answers are read here, and the engine is next door: not compressed
        b"accept-encoding",
        # made anew
        b"content-length",
        b"expect",
    )
)
_FAIRNESS_PREFIXES = (b"x-equipoise-", b"x-llm-d-", b"x-gateway-inference-", b"x-slo-")


def request_head(
    method: str,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    authority: bytes,
    body_bytes: int | None,
    dropped: bytes | None = None,
    api_key: str | None = None,
    priority: int | None = None,
) -> bytes:
    """Return the head of the request to the engine.

    `headers` are the client's, in lower case. `dropped` is one more header that must not pass (the trusted one),
    `api_key` the engine's own, `body_bytes` None for no body at all.
    """
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target)]
    named = False
    for name, value in headers:
        if name in _NOT_FOR_THE_ENGINE or name == dropped or name.startswith(_FAIRNESS_PREFIXES):
            continue
        if name == b"host":
            named = True
        lines.append(name + b": " + value)
    if not named:
        lines.append(b"host: " + authority)
    if body_bytes is not None:
        lines.append(b"content-length: %d" % body_bytes)
    if api_key is not None:
        lines.append(b"authorization: Bearer " + api_key.encode())
    if priority is not None:
        lines.append(b"x-vllm-priority: %d" % priority)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def response_headers(headers: Headers) -> Headers:
    """Return the engine's headers without those that belong to its connection."""
    return [pair for pair in headers if pair[0] not in _HOP_BY_HOP]
