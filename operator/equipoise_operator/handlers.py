"""kopf's part: it lists, watches and reconnects, and every event goes to its channel. Nothing else.

Only `on.event`: no annotations, no finalizers, no diffs. Listings of our own (`relist`) put right what a watch missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kopf
from typing_extensions import override

from equipoise_operator.observe import Channel, Channels


class Backoffs:
    """Pauses between retries of a call to the API server, for ever: a watch must never give up."""

    def __iter__(self) -> Iterator[float]:
        """Return pauses in seconds, at most one."""
        yield from (0.1, 0.2, 0.5)
        while True:
            yield 1.0


class NoDiffs(kopf.DiffBaseStorage):
    """Tells kopf that no object has anything to compare: it would copy each one twice an event, and nobody asks."""

    @override
    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    @override
    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    @override
    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Keep nothing: objects get no annotations."""


def registry(
    channels: Channels, *, login: Callable[[], kopf.ConnectionInfo], on_listed: Callable[[], None]
) -> kopf.OperatorRegistry:
    """Return kopf's handlers; `on_listed` is told of each object that comes from a listing of kopf's."""
    made = kopf.OperatorRegistry()

    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

    kopf.on.login(registry=made)(log_in)
    for channel in channels.all():
        _watch(made, channel, on_listed)
    return made


def _watch(made: kopf.OperatorRegistry, channel: Channel[Any], on_listed: Callable[[], None]) -> None:
    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - as kopf calls it
        if type is None:
            on_listed()
        channel.event(type, body)

    kopf.on.event(channel.group_version, channel.plural, id=channel.plural, registry=made)(event)


def settings(channels: Channels) -> kopf.OperatorSettings:
    """Return kopf's settings."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.peering.standalone = True
    made.persistence.diffbase_storage = NoDiffs()
    # So that RBAC needs neither CRDs nor Namespaces; the CRDs are waited for before kopf starts.
    made.scanning.disabled = True
    made.networking.error_backoffs = Backoffs()
    made.networking.connect_timeout = 2.0
    made.networking.request_timeout = 30.0
    made.watching.connect_timeout = 2.0
    made.watching.server_timeout = 300
    made.watching.inactivity_timeout = 70.0
    made.watching.chunk_size = 500
    for channel in channels.all():
        if channel.selector:
            made.watching.label_selectors[channel.plural] = channel.selector
    # The process ends by itself; SIGKILL is the kubelet's.
    made.process.ultimate_exiting_timeout = None
    return made
