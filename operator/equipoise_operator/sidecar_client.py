"""One sidecar's admin API over mutual TLS. Every call has a deadline, and no body leaves unless this process leads."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
from pydantic import ValidationError

from equipoise_api import names
from equipoise_api.gpu import GpuExporter
from equipoise_api.sidecar_config import Problem, PushResult
from equipoise_api.sidecar_state import SidecarState
from equipoise_operator import state_document
from equipoise_operator.objects import Pod
from equipoise_operator.state_document import StateError, first_fault

CONNECT_SECONDS = 2.0
STATE_SECONDS = 5.0
"""A busy sidecar with 10,000 active tenants takes several to say what each of them got."""
PIECE_BYTES = 128 * 1024
"""Of a body at once; the next when the other end has taken these."""
LARGEST_ANSWER = 16 * 1024 * 1024
"""Bytes; the state of 10,000 tenants that are all active has 5.5 million."""
LONGEST_PROBLEM = 500
"""Characters of what a sidecar says of a refusal: they go to the log and to a status."""


class SidecarError(Exception):
    """The sidecar did not answer, or not as one does; `reason` is a word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RefusedError(SidecarError):
    """The sidecar refused a configuration, with an HTTP status and its problem."""

    def __init__(self, status: int, problem: Problem) -> None:
        reason = {403: "NotRecognised", 409: "Outrun", 412: "OtherBase", 413: "TooLarge", 422: "Rejected"}
        field = f"{problem.field}: " if problem.field else ""
        said = f"answered {status}: {field}{problem.message}"[:LONGEST_PROBLEM]
        super().__init__(reason.get(status, "Refused"), said)
        self.status = status
        self.problem = problem


class SidecarClient:
    """Calls to sidecars. `require` raises unless this process leads; `context` is the present TLS context."""

    def __init__(
        self,
        *,
        require: Callable[[], None],
        context: Callable[[], ssl.SSLContext | None],
        push_seconds: float,
    ) -> None:
        self._require = require
        self._context = context
        self._push_seconds = push_seconds
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def state(self, pod: Pod) -> SidecarState:
        """Read the sidecar's state. SidecarError if there is none to be had."""
        status, text = await self._call("GET", pod, names.STATE_PATH, (), STATE_SECONDS)
        if status != 200:
            raise RefusedError(status, _problem(text))
        try:
            return await state_document.read(text, self._turn)
        except StateError as error:
            raise SidecarError("BadState", f"state: {error}"[:LONGEST_PROBLEM]) from error

    async def put(self, pod: Pod, body: bytes, revision: str, *, epoch: int, sequence: int) -> PushResult:
        """Push a whole configuration, given as its canonical JSON. RefusedError if the sidecar refuses it."""
        head = f'{{"epoch":{epoch},"sequence":{sequence},"revision":"{revision}","config":'
        return await self._push("PUT", pod, (head.encode(), body, b"}"))

    async def patch(self, pod: Pod, changes: bytes, *, epoch: int, sequence: int) -> PushResult:
        """Push what changed: a ConfigPatch but for these two, in JSON. RefusedError 412 if the sidecar lacks the base."""
        head = f'{{"epoch":{epoch},"sequence":{sequence},'
        return await self._push("PATCH", pod, (head.encode(), changes[1:]))

    async def point(self, pod: Pod, told: GpuExporter) -> None:
        """Tell the sidecar where its node's GPU metrics are. RefusedError if it refuses."""
        status, text = await self._call(
            "PUT", pod, names.GPU_EXPORTER_PATH, (told.canonical(),), STATE_SECONDS
        )
        if status != 204:
            raise RefusedError(status, _problem(text))

    async def _push(self, method: str, pod: Pod, body: Sequence[bytes]) -> PushResult:
        status, text = await self._call(method, pod, names.CONFIG_PATH, body, self._push_seconds)
        if status != 200:
            raise RefusedError(status, _problem(text))
        try:
            return PushResult.model_validate_json(text)
        except ValidationError as error:
            raise SidecarError("BadAnswer", f"push: {first_fault(error)}"[:LONGEST_PROBLEM]) from error

    async def _call(
        self, method: str, pod: Pod, where: str, body: Sequence[bytes], seconds: float
    ) -> tuple[int, bytes]:
        context = self._context()
        if context is None:
            raise SidecarError("NoCertificate", "the operator has no certificate yet")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                read_bufsize=2**20,
                auto_decompress=False,
            )
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method,
                    f"https://{host}:{pod.admin_port}{where}",
                    data=self._while_leading(body) if body else None,
                    headers={"Accept-Encoding": "identity"} | _content(body),
                    ssl=context,
                    server_hostname=pod.uid,
                    allow_redirects=False,
                ) as response,
            ):
                return response.status, await _read(response)
        except aiohttp.ConnectionTimeoutError as error:
            raise SidecarError("Unreachable", f"no connection in {CONNECT_SECONDS:g} s") from error
        except TimeoutError as error:
            raise SidecarError("Unreachable", f"no answer in {seconds:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise SidecarError("WrongPeer", str(error.certificate_error)) from error
        except aiohttp.ClientConnectorError as error:
            # Its own text holds an object's address in memory, which would make every status a new one.
            why = error.os_error.strerror or str(error.os_error)
            raise SidecarError(
                "Unreachable", f"cannot connect to {error.host}:{error.port}: {why}"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SidecarError("Unreachable", str(error) or type(error).__name__) from error

    async def _while_leading(self, body: Sequence[bytes]) -> AsyncIterator[memoryview]:
        # Here, after connecting, and not before the call: a process may be stopped in between for longer than its term.
        self._require()
        # Never one string: a configuration that goes to a hundred sidecars at once would be in memory a hundred times.
        for part in body:
            for start in range(0, len(part), PIECE_BYTES):
                yield memoryview(part)[start : start + PIECE_BYTES]


def _content(body: Sequence[bytes]) -> dict[str, str]:
    if not body:
        return {}
    return {"Content-Type": "application/json", "Content-Length": str(sum(map(len, body)))}


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer, piece by piece: nobody but its sender knows how long it is."""
    pieces, length = [], 0
    async for piece in response.content.iter_any():
        length += len(piece)
        if length > LARGEST_ANSWER:
            raise SidecarError("BadAnswer", f"an answer of more than {LARGEST_ANSWER} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _problem(text: bytes) -> Problem:
    try:
        return Problem.model_validate_json(text)
    except ValidationError:
        return Problem(message=text[:200].decode(errors="replace"))
