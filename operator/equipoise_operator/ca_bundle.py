"""The authority's certificates for everybody who must trust them: a ConfigMap in each namespace with sidecars or policies.

Applied server-side by the leader when namespaces or certificates change and every minute: who deletes one gets it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from equipoise_operator.kube import APPLY_PATCH, ApiError, Json, Kube, path

MANAGER = "equipoise-operator"
ENTRY = "ca.crt"
REPEAT_SECONDS = 60.0

log = structlog.get_logger(__name__)


class CaBundle:
    """Publishes one text into many namespaces."""

    def __init__(self, kube: Kube, *, install: str, leads: Callable[[], bool]) -> None:
        self._kube = kube
        self.name = f"{install}-ca"
        self._leads = leads
        self._text = ""
        self._wanted: frozenset[str] = frozenset()
        self._published: dict[str, str] = {}
        self._wake = asyncio.Event()

    def publish(self, text: str) -> None:
        """Set the certificates, PEM."""
        self._text = text
        self._wake.set()

    def want(self, namespaces: frozenset[str]) -> None:
        """Set the namespaces."""
        if not namespaces <= self._published.keys():
            self._wake.set()
        self._wanted = namespaces

    async def run(self) -> None:
        """Publish for ever."""
        while True:
            if self._text and self._leads():
                await self._apply_all()
            self._wake.clear()
            pending = any(self._published.get(namespace) != self._text for namespace in self._wanted)
            try:
                async with asyncio.timeout(1.0 if pending and self._text else REPEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                if not pending:
                    self._published.clear()

    async def _apply_all(self) -> None:
        text = self._text
        for namespace in sorted(self._wanted):
            if self._published.get(namespace) == text:
                continue
            body: Json = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": self.name,
                    "namespace": namespace,
                    "labels": {"app.kubernetes.io/managed-by": "equipoise"},
                },
                "data": {ENTRY: text},
            }
            where = path("v1", "configmaps", namespace, self.name)
            try:
                await self._kube.patch(where, body, APPLY_PATCH, fieldManager=MANAGER, force="true")
            except ApiError as error:
                log.warning("ca-not-published", namespace=namespace, error=str(error))
            else:
                self._published[namespace] = text
