"""Where the dcgm-exporter of each node is: its Service leads to any node's, so the pods are listed.

A listing now and then, not a watch: kopf watches every kind in every namespace it is given, and this namespace is asked for
pods alone. What was seen last stays while the API server refuses or is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from equipoise_operator.kube import ApiError, Kube, path

PERIOD_SECONDS = 30.0
AGAIN_SECONDS = 5.0
"""After a listing that failed."""
PAGE = 500
PORT_NAME = "metrics"
PORT = 9400
"""Of an exporter that names no port so."""
NOT_LOOKED_FOR = "the operator looks for no exporters: the chart's value dcgm.enabled makes it"

log = structlog.get_logger(__name__)


class Exporters:
    """The exporters by node, on the leader. Without a namespace there are none."""

    def __init__(
        self, kube: Kube, *, namespace: str | None, selectors: Iterable[str], leads: Callable[[], bool]
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._selectors = tuple(selectors)
        self._leads = leads
        self._urls: Mapping[str, str] = {}
        self.problem = "" if namespace else NOT_LOOKED_FOR
        """Why there may be exporters that are not known."""

    def on(self, node: str) -> str | None:
        """Return the URL of the exporter on a node."""
        return self._urls.get(node)

    async def run(self) -> None:
        """Look for ever."""
        if self._namespace is None:
            return
        while True:
            pause = PERIOD_SECONDS
            if self._leads():
                try:
                    await self.look(self._namespace)
                except ApiError as error:
                    problem = f"the operator cannot list pods in {self._namespace}: {error}"
                    if problem != self.problem:
                        log.warning("exporters-not-listed", namespace=self._namespace, error=str(error))
                    self.problem, pause = problem, AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def look(self, namespace: str) -> None:
        """List once. ApiError: what was known stays."""
        found: dict[str, str] = {}
        where = path("v1", "pods", namespace)
        for selector in self._selectors:
            async for page in self._kube.pages(where, selector=selector, size=PAGE):
                found = urls(page["items"] or ()) | found
        if found != self._urls:
            log.info("exporters", nodes=len(found))
        self._urls, self.problem = found, ""


def urls(pods: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the URL by node of each exporter that runs; of two on one node the first by name."""
    found: dict[str, str] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]), reverse=True):
        spec, status = pod.get("spec", {}), pod.get("status", {})
        node, ip = spec.get("nodeName"), status.get("podIP")
        ends = pod["metadata"].get("deletionTimestamp")
        if node and ip and not ends and status.get("phase") == "Running":
            host = f"[{ip}]" if ":" in ip else ip
            found[node] = f"http://{host}:{_port(spec)}/metrics"
    return found


def _port(spec: Mapping[str, Any]) -> int:
    for container in spec.get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") == PORT_NAME:
                return int(port["containerPort"])
    return PORT
