"""What the operator pushes to a sidecar, and how the sidecar answers.

A push carries (epoch, sequence): `epoch` is the Lease's leaseTransitions, `sequence` is counted by the leader. A sidecar
takes a pair that is not lower than its own and refuses a lower one with 409 and its own pair, so a deposed leader cannot
undo its successor. The revision is the digest of the configuration: a sidecar that holds it does nothing.

| status | body | meaning |
| --- | --- | --- |
| 200 | PushResult | applied, or held already |
| 403 | Problem | the peer is not the operator |
| 409 | Problem with epoch and sequence | a newer push was taken |
| 412 | Problem with revision | a patch on a base that the sidecar does not hold: send all |
| 413 | Problem | larger than the sidecar takes |
| 422 | Problem with field | invalid; the last good configuration goes on |
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from equipoise_api.gpu import Gpu
from equipoise_api.model import ApiModel
from equipoise_api.policy import (
    Algorithm,
    Capacity,
    Cost,
    DefaultTenant,
    Overload,
    Prediction,
    Queue,
    TrustedHeader,
)
from equipoise_api.tenant import Application, SloTarget, TenantLimits

SCHEMA_VERSION = 1
MAX_CONFIG_BYTES = 64 * 1024 * 1024


class PolicyReference(ApiModel):
    """The policy that a configuration was compiled from."""

    namespace: str
    name: str
    uid: str
    generation: int


class HmacKey(ApiModel):
    """A policy's key for digests of API keys. Two are accepted while it is rotated."""

    id: str
    secret: str
    """32 random bytes, base64."""


class TenantConfig(ApiModel):
    """One tenant as a sidecar sees it."""

    id: str
    """`namespace/name`, or `default`."""
    weight: Annotated[int, Field(ge=1)] = 1
    limits: TenantLimits = TenantLimits()
    slo: SloTarget | None = None
    applications: list[Application] = []
    key_digests: list[str] = []
    """HMAC-SHA-256 (hex) of each API key, under the policy's keys."""
    header_values: list[str] = []
    """Values of the trusted header that mean this tenant."""


class SidecarConfig(ApiModel):
    """Everything a sidecar needs to serve; the whole of it is hashed into the revision."""

    schema_version: int = SCHEMA_VERSION
    policy: PolicyReference | None = None
    """None where no policy selects the pod."""
    mode: Literal["Enforce", "PassThrough"] = "PassThrough"
    """PassThrough: requests go to the engine as they come."""
    algorithm: Algorithm = Algorithm()
    shadow: list[Algorithm] = []
    """Schedulers that decide nothing."""
    cost: Cost = Cost()
    prediction: Prediction = Prediction()
    capacity: Capacity = Capacity()
    queue: Queue = Queue()
    overload: Overload = Overload()
    gpu: Gpu = Gpu()
    default_tenant: DefaultTenant = DefaultTenant()
    trusted_header: TrustedHeader | None = None
    hmac_keys: Annotated[list[HmacKey], Field(max_length=2)] = []
    engine_api_key: str | None = None
    tenants: list[TenantConfig] = []
    """Sorted by id; without the default tenant."""

    @property
    def revision(self) -> str:
        """Digest of the canonical form."""
        return self.digest()


class ConfigPush(ApiModel):
    """Body of `PUT /equipoise/v1/config`."""

    epoch: Annotated[int, Field(ge=0)]
    sequence: Annotated[int, Field(ge=0)]
    revision: str
    config: SidecarConfig


class ConfigPatch(ApiModel):
    """Body of `PATCH /equipoise/v1/config`: the tenants that changed since a revision that the sidecar holds."""

    epoch: Annotated[int, Field(ge=0)]
    sequence: Annotated[int, Field(ge=0)]
    base_revision: str
    revision: str
    """Revision of the result: a sidecar that gets another answers 412 and keeps what it had."""
    tenants: list[TenantConfig] = []
    """Added or changed, whole."""
    removed: list[str] = []
    """Identifiers of tenants that are gone."""


class PushResult(ApiModel):
    """Answer to a push that was taken."""

    revision: str
    epoch: int
    sequence: int
    applied: bool
    """False where the sidecar held the revision already."""


class Problem(ApiModel):
    """Answer to a push that was refused."""

    message: str
    field: str | None = None
    """The first invalid field, as a path."""
    epoch: int | None = None
    sequence: int | None = None
    revision: str | None = None


PASS_THROUGH = SidecarConfig()
"""For a pod that no policy selects: everything passes, nothing is queued."""
