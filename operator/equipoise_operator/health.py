"""Plain HTTP for kubelet and Prometheus: /healthz, /readyz, /metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST


def app(
    *, alive: Callable[[], str], ready: Callable[[], str], metrics: Callable[[], bytes]
) -> web.Application:
    """Return the application. `alive` and `ready` return what is missing, "" for nothing."""

    async def answer(check: Callable[[], str]) -> web.Response:
        missing = check()
        return web.Response(text=missing or "ok", status=503 if missing else 200)

    async def healthz(_: web.Request) -> web.Response:
        return await answer(alive)

    async def readyz(_: web.Request) -> web.Response:
        return await answer(ready)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    made = web.Application()
    made.router.add_get("/healthz", healthz)
    made.router.add_get("/readyz", readyz)
    made.router.add_get("/metrics", exposition)
    return made
