"""The plain port: probes and metrics, since the kubelet and Prometheus have no certificate; debug tables for the pod itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from equipoise_sidecar.debug import debug_routes
from equipoise_sidecar.report import Reporter


def health_app(reporter: Reporter, scrape: Callable[[], Awaitable[bytes]]) -> FastAPI:
    """Build the application; `scrape` makes the metrics' text."""
    app = FastAPI(title="Equipoise sidecar: health", openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Answer while the event loop runs."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        """Say whether requests would be served: configured, an engine there, not draining."""
        missing = reporter.missing()
        return PlainTextResponse(
            "".join(f"{reason}\n" for reason in missing) or "ok\n", 503 if missing else 200
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Expose the metrics."""
        return Response(await scrape(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(debug_routes(reporter.dispatcher), dependencies=[Depends(_local_only)])
    return app


async def _local_only(request: Request) -> None:
    """Refuse everybody but the pod itself: requests name tenants and sizes."""
    host = request.client.host if request.client is not None else ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise HTTPException(403, "debug tables are for the pod itself (kubectl exec) and for the admin port")
