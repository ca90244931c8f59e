"""A FairnessPolicy and its Tenants, as the files that are applied to a cluster, in a simulation."""

from dataclasses import replace
from pathlib import Path

import pytest
from clock_profile import CLOCK

from equipoise_api.policy import Algorithm
from equipoise_simulator.policy_files import PolicyFileError, read_contender
from equipoise_simulator.simulation import simulate
from equipoise_simulator.workload import Call, Workload

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
POLICY = """
apiVersion: equipoise.dev/v1alpha1
kind: FairnessPolicy
metadata: {name: chat, namespace: inference, annotations: {owner: platform}}
spec:
  target: {selector: {matchLabels: {app: vllm}}}
  algorithm: {type: VTC}
"""


def tenant(name, namespace="inference", **spec):
    lines = "".join(f"  {key}: {value}\n" for key, value in spec.items())
    return (
        "apiVersion: equipoise.dev/v1alpha1\nkind: Tenant\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{lines or '  {}'}\n"
    )


@pytest.fixture
def contender(tmp_path):
    def read(policy, *tenants):
        file, folder = tmp_path / "policy.yaml", tmp_path / "tenants"
        file.write_text(POLICY + policy)
        folder.mkdir()
        for number, text in enumerate(tenants):
            (folder / f"{number}.yaml").write_text(text)
        return read_contender(file, folder if tenants else None)

    return read


def load(*tenants, output=3, **facts):
    calls = [
        Call(
            id=f"{n}-{name}",
            tenant=name,
            arrival=0.0,
            prompt_tokens=10,
            output_tokens=output,
            max_tokens=output,
        )
        for n in range(20)
        for name in tenants
    ]
    return Workload(name="test", calls=tuple(calls), seconds=40.0, **facts)


def test_the_examples_that_ship_can_be_simulated():
    made = read_contender(EXAMPLES / "policy.yaml", EXAMPLES)
    assert made.label == f"chat ({made.algorithm.type})"
    made = replace(made, algorithm=Algorithm(type="VTC"))
    result = simulate(load("blue", "inference/green"), made, profile=CLOCK)
    assert result.weights == {"blue": 3.0, "inference/green": 1.0}
    first = sorted(result.records, key=lambda record: record.dispatched)[:16]
    assert sum(record.tenant == "blue" for record in first) == 12


def test_unknown_tenants_share_one_queue_or_are_turned_away(contender, tmp_path):
    shared = contender("  defaultTenant: {mode: Shared, weight: 2}\n", tenant("blue"))
    result = simulate(load("blue", "stranger", "other"), shared, profile=CLOCK)
    assert result.weights == {"blue": 1.0, "default": 2.0}
    (tmp_path / "policy.yaml").write_text(POLICY + "  defaultTenant: {mode: Reject}\n")
    rejecting = read_contender(tmp_path / "policy.yaml", tmp_path / "tenants")
    document = simulate(load("blue", "stranger"), rejecting, profile=CLOCK).document()
    assert document["requests"]["rejected"] == {"unauthenticated": 20}
    assert document["tenants"]["blue"]["requests"]["finished"] == 20


def test_foreign_tenants_count_as_far_as_the_policy_allows(contender, tmp_path):
    own = contender(
        "  {}\n".replace("{}", "tenants: {from: All, maxWeight: 2}"), tenant("far", "elsewhere", weight=9)
    )
    assert own.rules.tenants["elsewhere/far"].settings.weight == 2
    (tmp_path / "policy.yaml").write_text(POLICY)
    same = read_contender(tmp_path / "policy.yaml", tmp_path / "tenants")
    assert same.rules.tenants == {}


def test_hard_limits_and_the_wait_limit_hold(contender):
    limited = contender(
        "  queue: {maxWaitSeconds: 5}\n",
        tenant("blue", limits="{requestsPerMinute: 4, maxInFlight: 1}"),
        tenant("green", limits="{maxTokensPerRequest: 12}"),
    )
    result = simulate(load("blue", "green"), limited, profile=CLOCK)
    tenants = result.document()["tenants"]
    assert tenants["blue"]["requests"]["rejected"] == {"rate-limited": 16}
    assert tenants["green"]["requests"]["rejected"] == {"request-too-large": 20}
    # One at a time, three steps each: two go in the first five seconds, the others have waited long enough.
    assert (tenants["blue"]["requests"]["finished"], tenants["blue"]["requests"]["expired"]) == (2, 2)


def test_promises_become_the_requests_slo(contender):
    promised = contender(
        "", tenant("blue", slo="{ttftMilliseconds: 4000}"), tenant("green", slo="{tpotMilliseconds: 500}")
    )
    tenants = simulate(load("blue", "green", output=4), promised, profile=CLOCK).document()["tenants"]
    assert 0 < tenants["blue"]["slo_attainment"] < 1
    assert tenants["green"]["slo_attainment"] == 0.0  # a token takes a second


def test_capacity_is_the_policys(contender):
    one = contender("  capacity: {maxInFlight: 1, gate: Reserve}\n", tenant("blue"))
    result = simulate(load("blue"), one, profile=CLOCK)
    assert result.gate == "reserve"
    assert result.simulated_seconds == 60.0


def test_a_policy_that_does_not_enforce_leaves_everything_to_the_engine(contender):
    off = contender("  mode: 'Off'\n", tenant("blue", limits="{requestsPerMinute: 1}"))
    result = simulate(load("blue", "stranger"), off, profile=CLOCK)
    assert result.gate == "open"
    assert all(record.finished and record.queue_delay == 0.0 for record in result.records)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: [", "policy.yaml: "),
        ("kind: Secret\n", "holds 0 FairnessPolicies"),
        ("just text\n", "every document must be a Kubernetes object with a kind"),
        (POLICY + "---" + POLICY, "holds 2 FairnessPolicies"),
        (POLICY + "  algorithm: {type: SJF}\n", "FairnessPolicy chat: spec.algorithm.type: Input should be"),
        (POLICY + "  algoritm: {type: VTC}\n", "FairnessPolicy chat: unknown fields: spec.algoritm"),
        ("kind: FairnessPolicy\nspec: {}\n", "FairnessPolicy: metadata is missing"),
        (
            POLICY + "  algorithm: {type: VTC, rpm: {requestsPerMinute: 3}}\n",
            "FairnessPolicy chat: spec.algorithm.rpm is not of type VTC: leave it out",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_is_named_with_its_field(tmp_path, text, complaint):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(PolicyFileError) as refusal:
        read_contender(file, None)
    assert complaint in str(refusal.value)


def test_a_folder_without_tenants_is_refused(contender, tmp_path):
    contender("")
    with pytest.raises(PolicyFileError, match="holds no YAML files"):
        read_contender(tmp_path / "policy.yaml", tmp_path / "tenants")
    (tmp_path / "tenants" / "secret.yaml").write_text("kind: Secret\n")
    with pytest.raises(PolicyFileError, match="tenants: holds no Tenants"):
        read_contender(tmp_path / "policy.yaml", tmp_path / "tenants")


def test_the_list_that_kubectl_get_prints_is_read(contender, tmp_path):
    """`kubectl get tenants -o yaml > tenants/all.yaml`, with what the API server adds."""
    items = "".join(
        f"- kind: Tenant\n  metadata: {{name: {name}, namespace: inference, uid: a, resourceVersion: '7'}}\n"
        f"  spec: {{weight: {weight}}}\n  status: {{observedGeneration: 1}}\n"
        for name, weight in (("blue", 3), ("green", 2))
    )
    made = contender("", f"apiVersion: v1\nkind: List\nitems:\n{items}")
    assert {name: made.rules.of(name).settings.weight for name in ("blue", "green")} == {
        "blue": 3,
        "green": 2,
    }
    (tmp_path / "list.yaml").write_text("kind: List\nitems: [4]\n")
    with pytest.raises(PolicyFileError, match="every document must be a Kubernetes object"):
        read_contender(tmp_path / "policy.yaml", tmp_path / "list.yaml")


def test_tenants_come_from_one_file_too(contender, tmp_path):
    contender("")
    file = tmp_path / "team.yaml"
    file.write_text(tenant("blue", weight=5))
    assert read_contender(tmp_path / "policy.yaml", file).rules.of("blue").settings.weight == 5


@pytest.mark.parametrize(
    "algorithm",
    [
        "type: FairServe, fairServe: {typical: P99}",
        "type: ExFairS, exFairS: {roundSeconds: 9}",
        "type: RPM, rpm: {}",
    ],
)
def test_an_algorithm_keeps_its_own_parameters(contender, algorithm):
    made = contender(f"  algorithm: {{{algorithm}}}\n")
    assert made.algorithm.type in algorithm


def test_a_tenant_that_is_there_twice_is_refused(contender):
    with pytest.raises(PolicyFileError, match=r"1\.yaml: Tenant inference/blue is in .*0\.yaml too"):
        contender("", tenant("blue", weight=5), tenant("blue", weight=2))


def test_declared_applications_reach_the_scheduler(contender):
    made = contender("", tenant("blue", applications="[{name: rag, expectedInputTokens: 700}]"))
    assert made.rules.of("blue").settings.applications["rag"].expected_input == 700
