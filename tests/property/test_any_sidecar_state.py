"""Whatever sidecars say within the limits of the state's type, statuses can be made of it that the API server takes."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from equipoise_api.policy import FairnessPolicy, FairnessPolicyStatus
from equipoise_api.sidecar_state import SidecarState
from equipoise_api.tenant import Tenant, TenantStatus
from equipoise_operator.compile import Sources, compile_policy
from equipoise_operator.policy_status import policy_status
from equipoise_operator.shares import Row
from equipoise_operator.tenant_status import tenant_status
from equipoise_operator.views import Admission, PolicyView, SidecarView

NOW = "2026-01-01T00:00:00Z"
INT64 = 2**63

whole = st.integers(-(2**40), 2**40) | st.integers(0, 100)
amount = st.floats(-1e18, 1e18) | st.floats(0, 1e6)
known = st.none() | st.floats(-1e12, 1e12) | st.floats(0, 1) | st.sampled_from([math.nan, math.inf])
histogram = st.fixed_dictionaries(
    {"counts": st.dictionaries(st.integers(0, 400), st.integers(0, 2**40), max_size=3)}
)


def filled(**fields):
    return st.fixed_dictionaries({}, optional=fields)


tenants = st.builds(
    lambda name, rest: {"id": name} | rest,
    st.sampled_from(["team/a", "team/b", "default", "nobody", ""]),
    filled(
        weight=st.integers(1, 10_000),
        queued=whole,
        running=whole,
        promptTokens=whole,
        cachedTokens=whole,
        generatedTokens=whole,
        service=amount,
        demand=amount,
        rejected=st.dictionaries(st.text(min_size=1, max_size=64), whole, max_size=20),
        wait=histogram,
        ttft=histogram,
        gpuSeconds=known,
        energyJoules=known,
        sloKept=whole,
        sloTotal=whole,
    ),
)
shadows = st.builds(
    lambda name, rest: {"algorithm": name} | rest,
    st.sampled_from(["VTC", "FCFS", "FromTheFuture"]),
    filled(
        off=st.none() | st.text(max_size=400),
        compared=whole,
        earlier=whole,
        later=whole,
        refused=whole,
        waitChangeSeconds=amount,
        wait=histogram,
        waitEnforced=histogram,
        jain=known,
        jainEnforced=known,
    ),
)
states = filled(
    schemaVersion=st.integers(),
    softwareVersion=st.text(max_size=64),
    windowSeconds=st.floats(1, 86_400),
    ready=st.booleans(),
    engine=filled(
        reachable=st.booleans(), signalSeen=st.booleans(), signalStale=st.booleans(), kvUsage=known
    ),
    load=filled(queued=whole, running=whole, saturation=amount),
    fairness=filled(
        bounded=st.booleans(), bound=st.none() | amount, largestGap=st.none() | amount, boundMet=st.none()
    ),
    shadow=st.lists(shadows, max_size=5),
    gpu=st.none()
    | filled(
        stale=st.booleans(),
        problem=st.sampled_from(["", "Frozen", "x" * 64]),
        message=st.text(max_size=2000),
        ageSeconds=known,
        utilisation=known,
    ),
    tenants=st.lists(tenants, max_size=5),
)
POLICY = FairnessPolicy.model_validate(
    {
        "metadata": {"namespace": "team", "name": "policy", "uid": "p"},
        "spec": {"target": {"selector": {"matchLabels": {"app": "vllm"}}}, "gpu": {"dcgm": "Auto"}},
    }
)
TENANTS = [
    Tenant.model_validate({"metadata": {"namespace": "team", "name": name, "uid": name}, "spec": {}})
    for name in ("a", "b")
]
COMPILED = compile_policy(Sources(policy=POLICY, tenants=TENANTS, secrets={}))


def numbers(document):
    if isinstance(document, dict):
        return [number for value in document.values() for number in numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in numbers(value)]
    return [document] if isinstance(document, int) else []


@given(st.lists(states, min_size=1, max_size=3))
@example([{"tenants": [{"id": "team/a", "wait": {"counts": {0: 2**40}}}]}] * 2)
def test_a_status_can_be_made_of_it(documents):
    sidecars = [
        SidecarView(pod=f"p-{number}", state=SidecarState.model_validate(document), exporter="http://e")
        for number, document in enumerate(documents)
    ]
    view = PolicyView(policy=POLICY, compiled=COMPILED, sidecars=sidecars)
    shown = policy_status(view, NOW).document()
    FairnessPolicyStatus.strictly(shown)
    rows = view.rows()
    for tenant in TENANTS:
        row = rows.get(f"team/{tenant.metadata.name}") or Row()
        status = tenant_status(tenant, [Admission(view, row)] * 2, "", NOW).document()
        TenantStatus.strictly(status)
        assert all(0 <= number < INT64 for number in numbers(status))
    assert all(abs(number) < INT64 for number in numbers(shown))
