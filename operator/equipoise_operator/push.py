"""How one sidecar gets its configuration: what changed where the base is known, else all of it.

A push counts as (epoch, sequence): the Lease's term, and a number that grows with every attempt of this leader. All else of
its body is the same for every sidecar on that base, and is made once: all are pushed to in the same moment, in one loop.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from itertools import count

from equipoise_api.sidecar_config import ConfigPatch, PushResult
from equipoise_operator.compile import Compiled
from equipoise_operator.objects import Pod
from equipoise_operator.sidecar_client import RefusedError, SidecarClient

ATTEMPTS = 4
MOST_CHANGED = 1000
"""Tenants in a patch. The whole is encoded already; a large patch would have to be."""
REMEMBERED = 64
"""Differences that are kept: of each policy's configuration from a former one or two, and from itself."""


class Pusher:
    """Pushes in the name of one leader."""

    def __init__(
        self,
        client: SidecarClient,
        *,
        epoch: Callable[[], int],
        raise_above: Callable[[int], Awaitable[None]],
    ) -> None:
        self._client = client
        self._epoch = epoch
        self._raise_above = raise_above
        self._sequence = count(1)
        self._changes: dict[tuple[str, str], bytes | None] = {}
        """Differences by both revisions."""
        self.on_push: Callable[[str, int], None] | None = None
        """Told of every attempt: "PUT" or "PATCH", and the HTTP status."""

    async def push(self, pod: Pod, want: Compiled, held: Compiled | None) -> PushResult:
        """Make the sidecar hold `want`; `held` is what it is known to hold. Raises SidecarError."""
        base = held
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._attempt(pod, want, base)
            except RefusedError as refusal:
                if refusal.status == 412 and base is not None:
                    base = None
                elif refusal.status == 409 and refusal.problem.epoch is not None:
                    try:
                        await self._raise_above(refusal.problem.epoch)
                    except ValueError as lie:
                        raise refusal from lie
                else:
                    raise
        return await self._attempt(pod, want, base)

    async def _attempt(self, pod: Pod, want: Compiled, base: Compiled | None) -> PushResult:
        epoch, sequence = self._epoch(), next(self._sequence)
        changes = None if base is None else self._changes_from(base, want)
        status = 0
        try:
            if changes is not None:
                result = await self._client.patch(pod, changes, epoch=epoch, sequence=sequence)
            else:
                result = await self._client.put(pod, want.body, want.revision, epoch=epoch, sequence=sequence)
            status = 200
        except RefusedError as refusal:
            status = refusal.status
            raise
        else:
            return result
        finally:
            if self.on_push is not None:
                self.on_push("PATCH" if changes is not None else "PUT", status)

    def _changes_from(self, base: Compiled, want: Compiled) -> bytes | None:
        revisions = (base.revision, want.revision)
        if revisions not in self._changes:
            if len(self._changes) >= REMEMBERED:
                del self._changes[next(iter(self._changes))]
            self._changes[revisions] = difference(base, want)
        return self._changes[revisions]


def difference(base: Compiled, want: Compiled) -> bytes | None:
    """Return a ConfigPatch without epoch and sequence, in JSON; None where more than some tenants differ. O(tenants)."""
    if base.config.model_copy(update={"tenants": []}) != want.config.model_copy(update={"tenants": []}):
        return None
    changed = [tenant for name, tenant in want.tenants.items() if base.tenants.get(name) != tenant]
    if len(changed) > MOST_CHANGED:
        return None
    patch = ConfigPatch(
        epoch=0,
        sequence=0,
        base_revision=base.revision,
        revision=want.revision,
        tenants=changed,
        removed=[name for name in base.tenants if name not in want.tenants],
    )
    document = patch.document()
    del document["epoch"], document["sequence"]
    return json.dumps(document).encode()
