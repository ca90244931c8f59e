"""FairnessPolicy: how requests are scheduled, and on which pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from equipoise_api.conditions import Condition
from equipoise_api.model import ApiModel, Count, Name, Namespace, Percent
from equipoise_api.names import DEFAULT_CLASS_NAME
from equipoise_api.structural import atomic_list, list_map, list_set, rules
from equipoise_api.tenant import Metadata

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
Cidr = Annotated[str, StringConstraints(min_length=3, max_length=43, pattern=r"^[0-9a-fA-F:.]+/[0-9]{1,3}$")]
AlgorithmType = Literal["FCFS", "RoundRobin", "VTC"]


class LabelSelectorRequirement(ApiModel):
    """One term over a label's values."""

    key: LabelKey
    """Label that the term is about."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """In, NotIn, Exists or DoesNotExist."""
    values: Annotated[list[LabelValue], Field(max_length=64), list_set()] = []
    """Values for In and NotIn."""


class LabelSelector(ApiModel):
    """A label selector; all its terms must hold."""

    match_labels: Annotated[dict[str, LabelValue], Field(max_length=64)] = {}
    """Labels and the values they must have."""
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=64), atomic_list()] = []
    """Terms over label values."""

    def matches(self, labels: dict[str, str]) -> bool:
        """Say whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(term, labels) for term in self.match_expressions)


def _holds(term: LabelSelectorRequirement, labels: dict[str, str]) -> bool:
    match term.operator:
        case "Exists":
            return term.key in labels
        case "DoesNotExist":
            return term.key not in labels
        case "In":
            return labels.get(term.key) in term.values
        case "NotIn":
            return labels.get(term.key) not in term.values


class PolicyTarget(ApiModel):
    """The pods whose sidecars follow the policy."""

    selector: Annotated[
        LabelSelector,
        rules(
            (
                (
                    "(has(self.matchLabels) && size(self.matchLabels) > 0)"
                    " || (has(self.matchExpressions) && size(self.matchExpressions) > 0)"
                ),
                "name at least one label: an empty selector would govern every pod of the namespace",
                ".matchLabels",
            )
        ),
    ]
    """Pods of the policy's own namespace."""


class AllowedTenants(ApiModel):
    """Whose Tenant objects count."""

    from_: Annotated[Literal["Same", "All"], Field(alias="from")] = "Same"
    """Same: Tenants of the policy's namespace. All: of every namespace that the operator watches."""
    max_weight: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Largest weight that a Tenant of another namespace gets; it may ask for more in vain."""


class VtcParameters(ApiModel):
    """Virtual Token Counter."""

    charge: Literal["Predicted", "OnDelivery"] = "Predicted"
    """Predicted: a request's expected output is charged when it is dispatched and settled as tokens come. OnDelivery: output is charged token by token, as in the paper's basic form."""


class Algorithm(ApiModel):
    """The scheduler. To change from one member to another with a merge patch, set the old member to null."""

    type: AlgorithmType = "VTC"
    """FCFS: arrival order, no fairness. RoundRobin: one request a turn. VTC: least weighted service first."""
    vtc: VtcParameters | None = None
    """Parameters of VTC."""


class Cost(ApiModel):
    """What a token counts for, in percent of an input token at full price."""

    input_percent: Annotated[int, Field(ge=0, le=10_000)] = 100
    """A prompt token that had to be computed."""
    cached_input_percent: Annotated[int, Field(ge=0, le=10_000)] = 100
    """A prompt token that came from the prefix cache; acts where the engine reports them."""
    output_percent: Annotated[int, Field(ge=1, le=10_000)] = 200
    """A generated token."""


class Prediction(ApiModel):
    """How a request's output length is guessed before it is known."""

    type: Literal["MovingAverage", "None"] = "MovingAverage"
    """MovingAverage: of each tenant's recent requests. None: every request may generate all it is allowed to."""
    prior_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """The guess for a tenant that nothing is known of."""


class Capacity(ApiModel):
    """When the engine has room for one more request."""

    gate: Literal["Peak", "Reserve"] = "Peak"
    """Peak: the largest KV use that the requests in flight will reach fits. Reserve: every request's prompt and whole output limit fit at once."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests in an engine at a time; left out, it is measured."""
    kv_utilisation_percent: Annotated[int, Field(ge=50, le=100)] = 95
    """Share of the KV cache that may be planned with; preemptions lower it for a while."""
    kv_tokens: Annotated[int, Field(ge=128, le=1_000_000_000)] | None = None
    """Size of the KV cache in tokens; left out, the engine's metrics say it."""


class Queue(ApiModel):
    """Bounds of the queue before each engine."""

    max_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Requests that may wait; more get 429."""
    max_bytes: Annotated[int, Field(ge=1_048_576, le=1_099_511_627_776)] = 268_435_456
    """Bytes of waiting bodies; more get 429."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1_073_741_824)] = 16_777_216
    """Largest body of one request; a larger one gets 413."""
    max_wait_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Longest wait; then 503."""
    body_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest time that a client may take to send its body; then 408."""


class DefaultTenant(ApiModel):
    """What happens to requests that prove no tenant."""

    mode: Literal["Shared", "Reject"] = "Shared"
    """Shared: all of them are one tenant. Reject: 401."""
    weight: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Weight of the shared tenant."""


class TrustedHeader(ApiModel):
    """A header by which a gateway that has authenticated the client names the tenant."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
    ] = "X-Equipoise-Tenant"
    """Name of the header. It is dropped from whatever does not come from a trusted peer, and never reaches the engine."""
    peers: Annotated[list[Cidr], Field(min_length=1, max_length=64), list_set()]
    """Addresses that the gateway connects from, as CIDR blocks."""


class PolicyIdentity(ApiModel):
    """How tenants are recognised."""

    trusted_header: TrustedHeader | None = None
    """Left out, no header is believed."""
    grants: Annotated[list[Namespace], Field(max_length=64), list_set()] = []
    """Other namespaces whose Tenants may claim values of the trusted header."""


class SecretKey(ApiModel):
    """One entry of a Secret in the policy's namespace, which carries `equipoise.dev/credential: "true"`."""

    name: Name
    """The Secret's name."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = (
        "apiKey"
    )
    """The entry's name."""


class Engine(ApiModel):
    """What the sidecars need to know of the engines."""

    api_key_secret: SecretKey | None = None
    """The engine's own API key, sent instead of the client's credentials, which never reach it."""


class FairnessPolicySpec(ApiModel):
    """What is wanted."""

    class_name: Annotated[
        str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ] = DEFAULT_CLASS_NAME
    """Which install serves the policy."""
    target: PolicyTarget
    """The pods."""
    tenants: AllowedTenants = AllowedTenants()
    """Whose Tenants count."""
    mode: Literal["Enforce", "Off"] = "Enforce"
    """Enforce: requests are queued and ordered. Off: they pass through as they come."""
    algorithm: Annotated[
        Algorithm,
        rules(
            (
                "!has(self.vtc) || self.type == 'VTC'",
                "vtc has parameters of type VTC; set it to null for another type",
                ".vtc",
            )
        ),
    ] = Algorithm()
    """The scheduler and its parameters."""
    cost: Cost = Cost()
    """What tokens count for."""
    prediction: Prediction = Prediction()
    """How output lengths are guessed."""
    capacity: Capacity = Capacity()
    """When the engine has room."""
    queue: Queue = Queue()
    """Bounds of the queue."""
    default_tenant: DefaultTenant = DefaultTenant()
    """Requests that prove no tenant."""
    identity: PolicyIdentity = PolicyIdentity()
    """How tenants are recognised."""
    engine: Engine = Engine()
    """What the sidecars need to know of the engines."""


class SidecarCounts(ApiModel):
    """The selected pods' sidecars."""

    total: Count = 0
    """Selected pods that run a sidecar."""
    ready: Count = 0
    """Sidecars whose engine answers and that have a configuration."""
    synced: Count = 0
    """Sidecars that hold the present revision."""
    outdated: Count = 0
    """Sidecars of another schema version than the operator's."""
    synced_of_total: Annotated[str, StringConstraints(max_length=32)] = "0/0"
    """`synced/total`, for the column."""


class Load(ApiModel):
    """Load of the selected engines."""

    queued: Count = 0
    """Requests that wait."""
    running: Count = 0
    """Requests in the engines."""
    saturation_percent: Percent | None = None
    """Mean use of the room that the gates give, by slots or KV tokens, whichever is fuller."""
    kv_percent: Percent | None = None
    """Mean KV cache use that the engines report."""


class Fairness(ApiModel):
    """How fair the last minute was."""

    jain_permille: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Jain's index of delivered service over weight among tenants with unmet demand, times 1000."""
    largest_gap: Count | None = None
    """Largest difference in delivered service over weight between two tenants while both were backlogged at one engine, in weighted tokens."""
    bound: Count | None = None
    """What that difference can at most be, by the scheduler's proof and the requests seen. Absent where the scheduler has none."""


class FairnessPolicyStatus(ApiModel):
    """What is. Fast-moving figures are rounded and at most seconds old; the sidecars' metrics have them exactly."""

    observed_generation: Count | None = None
    """The spec's generation that this status was computed from."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] = []
    """Ready (Accepted and Programmed), Accepted, Programmed, EngineSignalStale and FairnessBoundMet."""
    revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Revision of the configuration that the sidecars should hold."""
    tenants: Count = 0
    """Tenants that the policy admits, without the default one."""
    sidecars: SidecarCounts = SidecarCounts()
    """The selected pods' sidecars."""
    load: Load = Load()
    """Load of the engines."""
    fairness: Fairness = Fairness()
    """How fair the last minute was."""


class FairnessPolicy(ApiModel):
    """A FairnessPolicy object as the API server returns it."""

    api_version: str = "equipoise.dev/v1alpha1"
    kind: Literal["FairnessPolicy"] = "FairnessPolicy"
    metadata: Metadata
    spec: FairnessPolicySpec
    status: FairnessPolicyStatus = FairnessPolicyStatus()
