"""Small requests that the sidecar makes for itself: metrics, models, the probe."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from equipoise_sidecar.engine.errors import EngineError
from equipoise_sidecar.engine.pool import EnginePool

LONGEST_ANSWER = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer."""

    status: int
    body: bytes


async def fetch(
    pool: EnginePool,
    path: str,
    *,
    body: bytes | None = None,
    api_key: str | None = None,
    priority: int | None = None,
    timeout: float,
) -> Fetched:
    """GET `path`, or POST a JSON `body` to it. Raises EngineError, also when there is no answer in `timeout` seconds."""
    lines = [b"%s %s HTTP/1.1" % (b"GET" if body is None else b"POST", path.encode())]
    lines.append(b"host: " + pool.address.authority)
    if body is not None:
        lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
    if api_key is not None:
        lines.append(b"authorization: Bearer " + api_key.encode())
    if priority is not None:
        lines.append(b"x-vllm-priority: %d" % priority)
    pieces: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(timeout):
            answer = await pool.exchange(b"\r\n".join([*lines, b"\r\n"]), body or b"")
            try:
                while piece := await answer.read():
                    pieces.append(piece)
                    length += len(piece)
                    if length > LONGEST_ANSWER:
                        raise EngineError(f"{path}: an answer of more than {LONGEST_ANSWER} bytes")
            finally:
                pool.release(answer)
    except TimeoutError:
        raise EngineError(f"{path}: no answer within {timeout:.0f} s") from None
    return Fetched(answer.status, b"".join(pieces))
