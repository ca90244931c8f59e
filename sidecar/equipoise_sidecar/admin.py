"""The admin port: configuration in, state out, debug tables. Mutual TLS, and for the operator alone.

Who connects is decided once a connection: a verified certificate that does not name the operator gets 403 for whatever it
asks, another sidecar's included.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from typing_extensions import override

from equipoise_api.gpu import GpuExporter
from equipoise_api.names import CONFIG_PATH, GPU_EXPORTER_PATH, STATE_PATH, operator_identity
from equipoise_api.sidecar_config import MAX_CONFIG_BYTES, Problem, PushResult
from equipoise_sidecar.certificate import Issued, load_chain, peer_identities, server_context
from equipoise_sidecar.config_store import ConfigStore, PushRefusedError
from equipoise_sidecar.debug import debug_routes
from equipoise_sidecar.listener import GuardedProtocol
from equipoise_sidecar.report import Reporter

log = structlog.get_logger(__name__)


def admin_app(store: ConfigStore, reporter: Reporter) -> FastAPI:
    """Build the application; who may use it is the protocol's business."""
    app = FastAPI(title="Equipoise sidecar: admin", openapi_url=None)

    async def take(request: Request, push: Callable[[bytes], Awaitable[PushResult]]) -> Response:
        body = await _body(request)
        if body is None:
            problem = Problem(message=f"a configuration may have {MAX_CONFIG_BYTES} bytes")
            return JSONResponse(problem.document(), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            result = await push(body)
        except PushRefusedError as error:
            return JSONResponse(error.problem.document(), error.status)
        return JSONResponse(result.document())

    @app.put(CONFIG_PATH)
    async def put(request: Request) -> Response:
        """Take a whole configuration."""
        return await take(request, store.put)

    @app.patch(CONFIG_PATH)
    async def patch(request: Request) -> Response:
        """Take changed tenants."""
        return await take(request, store.patch)

    @app.put(GPU_EXPORTER_PATH)
    async def gpu_exporter(request: Request) -> Response:
        """Take where the node's dcgm-exporter is."""
        try:
            told = GpuExporter.model_validate_json(await _body(request) or b"")
        except ValidationError as error:
            first = error.errors()[0]
            problem = Problem(message=first["msg"], field=".".join(str(step) for step in first["loc"]))
            return JSONResponse(problem.document(), HTTPStatus.UNPROCESSABLE_ENTITY)
        reporter.dispatcher.engine.gpu.point(told.exporter, reporter.dispatcher.clock())
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @app.get(STATE_PATH)
    async def state() -> Response:
        """Report."""
        return Response(await reporter.encoded(), media_type="application/json")

    app.include_router(debug_routes(reporter.dispatcher))
    return app


async def _body(request: Request) -> bytes | None:
    """Read a body, None if it is too large; then the rest is not read."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_CONFIG_BYTES:
        return None
    pieces, length = [], 0
    async for piece in request.stream():
        pieces.append(piece)
        length += len(piece)
        if length > MAX_CONFIG_BYTES:
            return None
    return b"".join(pieces)


async def _forbidden(_scope: object, _receive: object, send: Callable[[object], Awaitable[None]]) -> None:
    body = (
        Problem(message="only the operator configures a sidecar").model_dump_json(exclude_none=True).encode()
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": HTTPStatus.FORBIDDEN.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def admin_protocol(install: str) -> type[GuardedProtocol]:
    """Return the HTTP protocol that lets the operator of `install` in and nobody else."""
    operator = operator_identity(install)

    class AdminProtocol(GuardedProtocol):
        """HTTP over TLS, with a look at the peer's certificate first."""

        @override
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
            super().connection_made(transport)
            tls = transport.get_extra_info("ssl_object")
            identities = peer_identities(tls.getpeercert(binary_form=True) if tls is not None else None)
            if operator not in identities:
                log.warning("refused on the admin port", peer=sorted(identities))
                self.app = _forbidden

    return AdminProtocol


class AdminTls:
    """The admin port's TLS context: renewed while connections are open, and without those that are no longer trusted.

    A context cannot forget an authority, so each set of authorities gets a context of its own, and every handshake moves
    to the newest; certificates under the same authorities are loaded into the live one.
    """

    def __init__(self, first: Issued) -> None:
        self._newest = server_context(first)
        self._authorities = first.ca_pem
        self.context = self._newest
        """For the listener."""
        self.context.sni_callback = self._to_newest

    def use(self, issued: Issued) -> None:
        """Take a new certificate. Raises ssl.SSLError."""
        if issued.ca_pem == self._authorities:
            load_chain(self._newest, issued)
            return
        self._newest = server_context(issued)
        self._authorities = issued.ca_pem

    def _to_newest(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._newest
