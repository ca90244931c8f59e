"""How one sidecar gets its configuration: what changed where the base is known, else all of it.

A push counts as (epoch, sequence): the Lease's term, and a number that grows with every attempt of this leader.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from equipoise_api.sidecar_config import ConfigPatch, PushResult
from equipoise_operator.compile import Compiled
from equipoise_operator.objects import Pod
from equipoise_operator.sidecar_client import RefusedError, SidecarClient

ATTEMPTS = 4


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
        patch = None if base is None else difference(base, want, epoch=epoch, sequence=sequence)
        status = 0
        try:
            if patch is not None:
                result = await self._client.patch(pod, patch)
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
                self.on_push("PATCH" if patch is not None else "PUT", status)


def difference(base: Compiled, want: Compiled, *, epoch: int, sequence: int) -> ConfigPatch | None:
    """Return the patch from one configuration to the other; None where more than tenants differ. O(tenants)."""
    if base.config.model_copy(update={"tenants": []}) != want.config.model_copy(update={"tenants": []}):
        return None
    return ConfigPatch(
        epoch=epoch,
        sequence=sequence,
        base_revision=base.revision,
        revision=want.revision,
        tenants=[tenant for name, tenant in want.tenants.items() if base.tenants.get(name) != tenant],
        removed=[name for name in base.tenants if name not in want.tenants],
    )
