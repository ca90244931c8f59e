"""A scrape by pieces: with thousands of tenants the text takes seconds to make, and requests must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from equipoise_sidecar.metrics import SidecarMetrics


class _These(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    @override
    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def exposition(metrics: SidecarMetrics, others: CollectorRegistry) -> bytes:
    """Return the metrics as text; other tasks run between the pieces."""
    texts = [generate_latest(others)]  # the process's own
    for family in metrics.general():
        texts.append(_text(family))
        await asyncio.sleep(0)
    tenants: dict[str, list[bytes]] = {}
    for families in metrics.by_tenant():
        for family in families:
            head, body = _split(_text(family))
            tenants.setdefault(family.name, [head]).append(body)
        await asyncio.sleep(0)
    for pieces in tenants.values():
        texts += pieces
    return b"".join(texts)


def _text(family: Metric) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_These([family]))
    return generate_latest(registry)


def _split(text: bytes) -> tuple[bytes, bytes]:
    """Split HELP and TYPE from the samples."""
    end = text.index(b"\n", text.index(b"# TYPE ")) + 1
    return text[:end], text[end:]
