"""Tenant: who is served, and how much of the engines they are entitled to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from equipoise_api.conditions import Condition
from equipoise_api.model import ApiModel, Count, Name, Namespace, Percent, RequestsPerMinute, Weight
from equipoise_api.structural import list_map, list_set, rules

HeaderValue = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")
]
TargetMilliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
"""Latency to keep, at most a day."""


class ApiKeySource(ApiModel):
    """API keys that prove a request to be this tenant's."""

    secret_name: Name
    """Secret of the Tenant's own namespace, labelled `equipoise.dev/credential: "true"`. Every entry of its data is one key of at least 32 characters; two entries are two live keys, which is how keys are rotated. Of a tenant the first 256 keys count."""


class TenantIdentity(ApiModel):
    """How a request is known to be this tenant's: any one of these suffices."""

    api_keys: Annotated[list[ApiKeySource], Field(max_length=16), list_map("secretName")] = []
    """Secrets that hold the tenant's API keys."""
    header_values: Annotated[list[HeaderValue], Field(max_length=64), list_set()] = []
    """Values of the policy's trusted header that mean this tenant. The policy's `identity.trustedHeader` says which header, and from which peers it is believed."""


class TenantLimits(ApiModel):
    """Hard limits on top of the fair share. Nothing is limited that is not named here."""

    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests of the tenant that one engine may work on at a time; more wait."""
    max_queued: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests of the tenant that may wait at one engine; more get 429."""
    requests_per_minute: RequestsPerMinute | None = None
    """Requests accepted in any 60 seconds at one engine; more get 429."""
    max_tokens_per_request: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Largest prompt estimate plus output limit of one request; a larger one gets 400."""


class SloTarget(ApiModel):
    """Latency that the tenant was promised. It is measured and reported, and schedulers that order by deadline aim at it; a request keeps its SLO when it keeps every target that is set."""

    ttft_milliseconds: TargetMilliseconds | None = None
    """Milliseconds from arrival to the first token."""
    tpot_milliseconds: TargetMilliseconds | None = None
    """Mean milliseconds per output token after the first."""
    e2e_milliseconds: Annotated[TargetMilliseconds | None, Field(alias="e2eMilliseconds")] = None
    """Milliseconds from arrival to the end of the answer."""
    objective_percent: Annotated[int, Field(ge=1, le=100)] = 95
    """Percent of requests that should keep the targets; the condition SLOMet compares with it."""


SLO_RULES = rules(
    (
        "has(self.ttftMilliseconds) || has(self.tpotMilliseconds) || has(self.e2eMilliseconds)",
        "name at least one of ttftMilliseconds, tpotMilliseconds and e2eMilliseconds",
        ".ttftMilliseconds",
    )
)


class Application(ApiModel):
    """One of the tenant's applications: what a typical call is, and what it was promised."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
    """As requests name it."""
    expected_input_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Prompt tokens of a typical call, the system prompt included. What is left out is learnt."""
    expected_system_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """System prompt tokens of a typical call."""
    expected_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Generated tokens of a typical call."""
    slo: Annotated[SloTarget, SLO_RULES] | None = None
    """Latency targets of its requests, instead of the tenant's."""


class TenantSpec(ApiModel):
    """What is wanted."""

    weight: Weight = 1
    """Relative share: of the tenants that have work, each is entitled to weight / sum of weights."""
    identity: TenantIdentity = TenantIdentity()
    """How the tenant's requests are recognised."""
    slo: Annotated[SloTarget, SLO_RULES] | None = None
    """Latency targets to measure against."""
    applications: Annotated[list[Application], Field(max_length=32), list_map("name")] = []
    """Applications of which something is known beforehand; others are served all the same."""
    limits: TenantLimits = TenantLimits()
    """Hard limits."""


class Share(ApiModel):
    """What a tenant could have, what it got and what it asked for, as percent of all service delivered in the last minute."""

    entitled_percent: Percent | None = None
    """Max-min fair share by weight and demand."""
    actual_percent: Percent | None = None
    """Share of the delivered service."""
    demand_percent: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Service asked for, relative to what was delivered to all: above `entitledPercent` the tenant is contending."""


class Rejections(ApiModel):
    """Refusals for one reason."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """Reason, as in the response header."""
    per_minute: Count
    """Refusals in the last minute."""


class Usage(ApiModel):
    """Load and throughput."""

    queued: Count = 0
    """Requests that wait."""
    running: Count = 0
    """Requests in the engines."""
    prompt_tokens_per_minute: Count = 0
    """Prompt tokens served in the last minute."""
    cached_tokens_per_minute: Count = 0
    """Those of the prompt tokens that came from the prefix cache."""
    generated_tokens_per_minute: Count = 0
    """Tokens generated in the last minute."""
    tokens_per_minute: Count = 0
    """Prompt and generated tokens together."""
    gpu_seconds: Count | None = None
    """Busy GPU seconds of the last minute: each engine's, shared out by the service delivered meanwhile. Absent without GPU metrics."""
    energy_joules: Count | None = None
    """Energy of the last minute, shared out alike."""
    rejected: Annotated[list[Rejections], Field(max_length=16), list_map("reason")] = []
    """Refusals by reason."""


class Latency(ApiModel):
    """Latencies of the last minute's requests, in milliseconds; what had no request is absent."""

    wait_p50_milliseconds: Count | None = None
    """Median wait in the queue."""
    wait_p99_milliseconds: Count | None = None
    """99th percentile of the wait in the queue."""
    ttft_p50_milliseconds: Count | None = None
    """Median time to first token."""
    ttft_p99_milliseconds: Count | None = None
    """99th percentile of the time to first token."""
    slo_attainment_percent: Percent | None = None
    """Percent of the requests with an SLO that kept it."""


class TenantPolicyStatus(ApiModel):
    """What the tenant got under one policy that admits it."""

    namespace: Namespace
    """The policy's namespace."""
    name: Name
    """The policy's name."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] = []
    """Accepted and Synced, for this policy."""
    share: Share = Share()
    """Entitled, actual and asked for."""
    usage: Usage = Usage()
    """Load and throughput."""
    latency: Latency = Latency()
    """Waits and time to first token."""


class TenantStatus(ApiModel):
    """What is. Fast-moving figures are rounded and at most seconds old; the sidecars' metrics have them exactly."""

    observed_generation: Count | None = None
    """The spec's generation that this status was computed from."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] = []
    """Ready, IdentityResolved, Synced and SLOMet."""
    policies: Annotated[list[TenantPolicyStatus], Field(max_length=16), list_map("namespace", "name")] = []
    """One entry for each policy that admits the tenant, the first sixteen by namespace and name."""
    share: Share = Share()
    """The policy with the largest gap between entitled and actual."""
    usage: Usage = Usage()
    """Sum over the policies."""
    latency: Latency = Latency()
    """The worst over the policies."""


class Metadata(ApiModel):
    """The part of an object's metadata that Equipoise reads."""

    namespace: Namespace
    """The object's namespace."""
    name: Name
    """The object's name."""
    uid: str = ""
    """Unique over time: a deleted and recreated object is another one."""
    generation: int = 1
    """Raised by the API server when the spec changes."""
    creation_timestamp: str = ""
    """RFC 3339; the older object keeps what two claim."""
    labels: dict[str, str] = {}
    """The object's labels."""


class Tenant(ApiModel):
    """A Tenant object as the API server returns it."""

    api_version: str = "equipoise.dev/v1alpha1"
    kind: Literal["Tenant"] = "Tenant"
    metadata: Metadata
    spec: TenantSpec
    status: TenantStatus = TenantStatus()
