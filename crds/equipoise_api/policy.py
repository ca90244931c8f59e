"""FairnessPolicy: how requests are scheduled, and on which pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from equipoise_api.conditions import Condition
from equipoise_api.gpu import GPU_RULES, Gpu
from equipoise_api.model import (
    ApiModel,
    Count,
    DnsLabel,
    Name,
    Namespace,
    Percent,
    Permille,
    RequestsPerMinute,
    Weight,
)
from equipoise_api.names import DEFAULT_CLASS_NAME
from equipoise_api.structural import atomic_list, list_map, list_set, rules
from equipoise_api.tenant import Metadata

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
Cidr = Annotated[str, StringConstraints(min_length=3, max_length=43, pattern=r"^[0-9a-fA-F:.]+/[0-9]{1,3}$")]
PricePercent = Annotated[int, Field(ge=0, le=10_000)]
"""What a token counts for, in percent of an input token at full price."""
AlgorithmType = Literal[
    "FCFS", "RoundRobin", "RPM", "LCF", "DRR", "VTC", "FairServe", "Equinox", "ExFairS", "Equipoise"
]


class LabelSelectorRequirement(ApiModel):
    """One term over a label's values."""

    key: LabelKey
    """Label that the term is about."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """In, NotIn, Exists or DoesNotExist."""
    values: Annotated[list[LabelValue], Field(max_length=64), list_set()] = []
    """Values for In and NotIn, which need some; Exists and DoesNotExist take none."""


REQUIREMENT_RULES = rules(
    (
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
        "In and NotIn need values, Exists and DoesNotExist take none",
        ".values",
    )
)


class LabelSelector(ApiModel):
    """A label selector; all its terms must hold."""

    match_labels: Annotated[dict[str, LabelValue], Field(max_length=64)] = {}
    """Labels and the values they must have."""
    match_expressions: Annotated[
        list[Annotated[LabelSelectorRequirement, REQUIREMENT_RULES]], Field(max_length=64), atomic_list()
    ] = []
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
    max_weight: Weight = 1
    """Largest weight that a Tenant of another namespace gets; it may ask for more in vain."""


class RpmParameters(ApiModel):
    """Requests per minute: a rate limit, then arrival order."""

    requests_per_minute: RequestsPerMinute = 60
    """Requests of a tenant accepted in any 60 seconds at one engine; more get 429."""


class DrrParameters(ApiModel):
    """Deficit round robin."""

    quantum_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Weighted tokens that a turn adds to a tenant's deficit; left out, a twentieth of the KV cache."""


class VtcParameters(ApiModel):
    """Virtual Token Counter."""

    charge: Literal["Predicted", "OnDelivery"] = "Predicted"
    """Predicted: a request's expected output is charged when it is dispatched and settled as tokens come. OnDelivery: output is charged token by token, as in the paper's basic form."""


class FairServeParameters(ApiModel):
    """Weighted service counter: fairness in requests that mean the same to a user."""

    typical: Literal["Mean", "P99", "Min", "Max"] = "Mean"
    """Which figure of an application's recent requests is typical, where its Tenant does not declare it."""
    system_percent: PricePercent = 100
    """A token of the system prompt, in percent of an input token at full price."""


class EquinoxParameters(ApiModel):
    """Dual counters: what users felt, and what the engine spent."""

    user_percent: Percent = 70
    """Weight of the user fairness counter, in percent; the resource fairness counter has the rest."""
    delay_discount_milli_per_second: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """d, in thousandths: service that comes s seconds after the request stood at the head of its tenant's queue counts 1/(1 + d s); 0: in full."""


class ExFairSParameters(ApiModel):
    """Experiential fairness: rounds in which satisfied tenants lend priority to suffering ones."""

    round_seconds: Annotated[int, Field(ge=1, le=86_400)] = 100
    """Length of a round in seconds; longer than the SLOs."""
    violation_percent: Percent = 70
    """Weight of missed SLOs in a tenant's index, in percent; its share of service has the rest."""
    overtakes: Annotated[int, Field(ge=1, le=1000)] = 50
    """Requests that one may pass as it joins the queue, and the times that one may be passed."""
    priority_limit: Annotated[int, Field(ge=1, le=1000)] = 50
    """Largest priority or credit in points, either way."""


class EquipoiseParameters(ApiModel):
    """Free choice inside a band of the fair counter: deadlines and cache locality at a bounded cost in fairness."""

    band_tokens: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Weighted tokens that a tenant may be ahead of the least served one and still be chosen; 0: never, which is VTC. Left out, two typical requests or a tenth of what is in flight, whichever is more."""
    ordering: Literal["Deadline", "FIFO"] = "Deadline"
    """Order of a tenant's own requests."""
    stretch: Annotated[int, Field(ge=0, le=1000)] = 5
    """Deadline of a request without SLO: its expected service time, times this, after its arrival; 0: its arrival."""
    overdue_every: Annotated[int, Field(ge=2, le=1000)] = 5
    """Every how many dispatches, while one waits, the oldest request that missed its second deadline goes first; the others of these go last."""
    skips: Annotated[int, Field(ge=0, le=64)] = 4
    """Heads inside the band that are tried when the chosen one does not fit."""


_MEMBERS = {
    "rpm": "RPM",
    "drr": "DRR",
    "vtc": "VTC",
    "fairServe": "FairServe",
    "equinox": "Equinox",
    "exFairS": "ExFairS",
    "equipoise": "Equipoise",
}
ALGORITHM_RULES = rules(
    *(
        (
            f"!has(self.{member}) || self.type == '{kind}'",
            f"{member} has parameters of type {kind}; set it to null for another type",
            f".{member}",
        )
        for member, kind in _MEMBERS.items()
    )
)


class Algorithm(ApiModel):
    """The scheduler. To change from one member to another with a merge patch, set the old member to null."""

    type: AlgorithmType = "Equipoise"
    """FCFS: arrival order, no fairness. RoundRobin: one request a turn. RPM: a rate limit. LCF: least service first, idle time counts. DRR: turns by tokens. VTC: least weighted service first. FairServe: requests that mean the same to a user. Equinox: what users felt and what the engine spent. ExFairS: rounds of missed SLOs and lent priority. Equipoise: VTC's bound plus a band inside which deadlines decide."""
    rpm: RpmParameters | None = None
    """Parameters of RPM."""
    drr: DrrParameters | None = None
    """Parameters of DRR."""
    vtc: VtcParameters | None = None
    """Parameters of VTC."""
    fair_serve: FairServeParameters | None = None
    """Parameters of FairServe."""
    equinox: EquinoxParameters | None = None
    """Parameters of Equinox."""
    ex_fair_s: Annotated[ExFairSParameters | None, Field(alias="exFairS")] = None
    """Parameters of ExFairS."""
    equipoise: EquipoiseParameters | None = None
    """Parameters of Equipoise."""


class ProfiledCost(ApiModel):
    """Cost of a request from a profile of the engine, in nanoseconds: base + in*input + out*output + in*out*product + out*out*square. The defaults are Llama-2-7B on an A10G."""

    base_nanoseconds: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 1_146_015
    """Nanoseconds of the engine for a request."""
    input_nanoseconds: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 210_019
    """Nanoseconds for each prompt token."""
    output_nanoseconds: Annotated[int, Field(ge=1, le=1_000_000_000_000)] = 100_754
    """Nanoseconds for each generated token."""
    product_nanoseconds: Annotated[int, Field(ge=0, le=1_000_000_000)] = 3_987
    """Nanoseconds for each prompt token times each generated token."""
    square_nanoseconds: Annotated[int, Field(ge=0, le=1_000_000_000)] = 3_247
    """Nanoseconds for each generated token times each generated token."""


class Cost(ApiModel):
    """What service is counted in."""

    input_percent: PricePercent = 100
    """A prompt token that had to be computed, in percent of an input token at full price."""
    cached_input_percent: PricePercent = 100
    """A prompt token that came from the prefix cache, in percent of an input token at full price; acts where the engine reports them."""
    output_percent: Annotated[int, Field(ge=1, le=10_000)] = 200
    """A generated token, in percent of an input token at full price."""
    profiled: ProfiledCost | None = None
    """Counts engine time instead of weighted tokens; the percentages then do nothing."""


class Prediction(ApiModel):
    """How a request's output length is guessed before it is known."""

    type: Literal["Mixture", "MovingAverage", "None"] = "Mixture"
    """Mixture: a mixture of experts that learns from what requests look like. MovingAverage: of each tenant's recent requests. None: every request may generate all it is allowed to."""
    prior_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Output tokens that are guessed for a tenant that nothing is known of."""


class Capacity(ApiModel):
    """When the engine has room for one more request."""

    gate: Literal["Peak", "Prompt", "Reserve"] = "Peak"
    """Peak: the largest KV use that the requests in flight will reach fits. Prompt: the prompt fits beside what is held at present, as an engine alone admits. Reserve: every request's prompt and whole output limit fit at once."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests in an engine at a time; left out, it is measured."""
    kv_utilisation_percent: Annotated[int, Field(ge=50, le=100)] = 95
    """Percent of the KV cache that may be planned with; preemptions lower it for a while."""
    headroom_percent: Annotated[int, Field(ge=0, le=50)] = 5
    """Percent of the KV cache, above `kvUtilisationPercent` and within the whole, that only requests with an SLO of ten seconds or less may use, so that they find room at once."""
    kv_tokens: Annotated[int, Field(ge=128, le=1_000_000_000)] | None = None
    """Size of the KV cache in tokens; left out, the engine's metrics say it."""
    inter_token_milliseconds: Annotated[int, Field(ge=1, le=60_000)] | None = None
    """Target for the time between two tokens, in milliseconds: no more requests are in flight than keep it, as predicted. Left out, throughput alone decides."""
    prefill_tokens: Annotated[int, Field(ge=128, le=10_000_000)] | None = None
    """Prompt tokens in flight that have not been prefilled; more wait, so that a long prompt does not hold up what decodes. Left out, no limit."""


class Queue(ApiModel):
    """Bounds of the queue before each engine."""

    max_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Requests that may wait, of one tenant nine tenths; more get 429."""
    max_bytes: Annotated[int, Field(ge=1_048_576, le=1_099_511_627_776)] = 268_435_456
    """Bytes of waiting bodies, of one tenant nine tenths; more get 429."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1_073_741_824)] = 16_777_216
    """Bytes of the largest body of one request; a larger one gets 413."""
    max_wait_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Longest wait in seconds; then 503."""
    body_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest time in seconds that a client may take to send its body; then 408."""


class Overload(ApiModel):
    """Throttling by end user and application, only while the engine is full and only at an interaction's first call. What is left out is not limited."""

    user_requests_per_minute: RequestsPerMinute | None = None
    """Arrivals of one end user in 60 seconds from which on its new interactions are refused."""
    application_requests_per_minute: RequestsPerMinute | None = None
    """Arrivals of one application in 60 seconds from which on its new interactions are refused."""


class DefaultTenant(ApiModel):
    """What happens to requests that prove no tenant."""

    mode: Literal["Shared", "Reject"] = "Shared"
    """Shared: all of them are one tenant. Reject: 401."""
    weight: Weight = 1
    """Weight of the shared tenant."""


class TrustedHeader(ApiModel):
    """A header by which a gateway that has authenticated the client names the tenant."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
    ] = "X-Equipoise-Tenant"
    """Name of the header. It is dropped from whatever does not come from a trusted peer, and never reaches the engine."""
    peers: Annotated[list[Cidr], Field(min_length=1, max_length=64), list_set()]
    """Addresses that the gateway connects from, as CIDR blocks."""
    llm_d: Literal["Ignore", "Accept"] = "Ignore"
    """Accept: the peers also speak llm-d. Where `name` is absent the fairness id names the tenant, the objective names the application, and the SLO headers are believed. The gateway must set or strip all of them, for what it passes on from a client counts as its own word."""


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

    class_name: DnsLabel = DEFAULT_CLASS_NAME
    """Which install serves the policy."""
    target: PolicyTarget
    """The pods."""
    tenants: AllowedTenants = AllowedTenants()
    """Whose Tenants count."""
    mode: Literal["Enforce", "Shadow", "Off"] = "Enforce"
    """Enforce: requests are queued and ordered. Shadow: they pass through as they come, and `algorithm` runs beside them. Off: they pass through."""
    algorithm: Annotated[Algorithm, ALGORITHM_RULES] = Algorithm()
    """The scheduler and its parameters."""
    shadow: Annotated[list[Annotated[Algorithm, ALGORITHM_RULES]], Field(max_length=3), list_map("type")] = []
    """Schedulers that see the same arrivals and decide nothing; the status says what they would have changed. In mode Off none runs."""
    cost: Cost = Cost()
    """What tokens count for."""
    prediction: Prediction = Prediction()
    """How output lengths are guessed."""
    capacity: Capacity = Capacity()
    """When the engine has room."""
    queue: Queue = Queue()
    """Bounds of the queue."""
    overload: Overload = Overload()
    """Throttling in overload."""
    default_tenant: DefaultTenant = DefaultTenant()
    """Requests that prove no tenant."""
    identity: PolicyIdentity = PolicyIdentity()
    """How tenants are recognised."""
    engine: Engine = Engine()
    """What the sidecars need to know of the engines."""
    gpu: Annotated[Gpu, GPU_RULES] = Gpu()
    """GPU telemetry."""


class SidecarVersion(ApiModel):
    """Sidecars of one software version."""

    version: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """As the sidecars say."""
    sidecars: Count
    """How many run it."""


class SidecarCounts(ApiModel):
    """The selected pods' sidecars."""

    total: Count = 0
    """Pods that the policy governs and whose sidecar runs."""
    ready: Count = 0
    """Sidecars whose engine answers, that have a configuration and do not drain."""
    synced: Count = 0
    """Sidecars that hold the present revision."""
    outdated: Count = 0
    """Sidecars of another schema version than the operator's."""
    versions: Annotated[list[SidecarVersion], Field(max_length=8), list_map("version")] = []
    """Software versions of the sidecars that answer, the one that most run first; more than one in the middle of an upgrade."""
    synced_of_total: Annotated[str, StringConstraints(max_length=32)] = "0/0"
    """`synced/total`, for the column."""
    version_names: Annotated[str, StringConstraints(max_length=600)] = ""
    """The versions, the one that most run first, for the column."""


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
    gpu_percent: Percent | None = None
    """Mean GPU utilisation, the share of time in which anything ran; absent without fresh GPU metrics."""


class Fairness(ApiModel):
    """How fair the last minute was."""

    jain_permille: Permille | None = None
    """Jain's index of delivered service over weight among tenants with unmet demand, times 1000."""
    largest_gap: Count | None = None
    """Largest difference in delivered service over weight between two tenants while both were backlogged at one engine, in weighted tokens."""
    bound: Count | None = None
    """What that difference can at most be, by the scheduler's proof and the requests seen. Absent where the scheduler has none."""


class ShadowStatus(ApiModel):
    """What one shadow scheduler would have changed in the last minute: the same arrivals, in the room that was really given."""

    type: AlgorithmType
    """The scheduler."""
    decisions: Count = 0
    """Requests compared: started in reality and by it."""
    earlier_percent: Percent | None = None
    """Of these, the part that it would have started earlier."""
    later_percent: Percent | None = None
    """The part that it would have started later."""
    wait_change_milliseconds: Annotated[int, Field(ge=-86_400_000, le=86_400_000)] | None = None
    """Mean change of the wait; less than 0 is shorter."""
    wait_p90_milliseconds: Count | None = None
    """90th percentile of the wait under it."""
    enforced_wait_p90_milliseconds: Count | None = None
    """The real one, of the same requests."""
    jain_permille: Permille | None = None
    """Jain's index of service over entitlement under it, times 1000."""
    enforced_jain_permille: Permille | None = None
    """The real one."""
    refused: Count = 0
    """Requests that it would have turned away."""
    reason: Annotated[str, StringConstraints(max_length=256)] | None = None
    """Why it does not run at some sidecar; absent while it does."""


class FairnessPolicyStatus(ApiModel):
    """What is. Fast-moving figures are rounded and at most seconds old; the sidecars' metrics have them exactly."""

    observed_generation: Count | None = None
    """The spec's generation that this status was computed from."""
    conditions: Annotated[list[Condition], Field(max_length=16), list_map("type")] = []
    """Ready (Accepted and Programmed), Accepted, Programmed, EngineSignalStale, GPUMetricsStale and FairnessBoundMet."""
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
    shadow: Annotated[list[ShadowStatus], Field(max_length=4), list_map("type")] = []
    """What the shadow schedulers would have changed."""


class FairnessPolicy(ApiModel):
    """A FairnessPolicy object as the API server returns it."""

    api_version: str = "equipoise.dev/v1alpha1"
    kind: Literal["FairnessPolicy"] = "FairnessPolicy"
    metadata: Metadata
    spec: FairnessPolicySpec
    status: FairnessPolicyStatus = FairnessPolicyStatus()
