"""The compile step: golden files for its output, properties for what must hold of any input.

After a wanted change: EQUIPOISE_WRITE_GOLDEN=1 pytest tests/unit/operator/test_compile.py, and read the diff.
"""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_api.policy import FairnessPolicy, FairnessPolicySpec
from equipoise_api.sidecar_config import SidecarConfig
from equipoise_api.tenant import Tenant, TenantSpec
from equipoise_operator import objects
from equipoise_operator.compile import Sources, admits, compile_policy, pass_through
from equipoise_operator.findings import Reason

CASES = sorted((Path(__file__).parents[2] / "data" / "compile").glob("*.yaml"))


def compile_case(case, make):
    documents = case["objects"]
    of = lambda kind: [document for document in documents if document["kind"] == kind]  # noqa: E731
    policy = FairnessPolicy.model_validate(of("FairnessPolicy")[0])
    secrets = [objects.secret(document).object for document in of("Secret")]
    tenants = [Tenant.model_validate(document) for document in of("Tenant")]
    return compile_policy(
        Sources(
            policy=policy,
            tenants=[tenant for tenant in tenants if admits(policy, tenant.metadata.namespace)],
            secrets={(secret.namespace, secret.name): secret for secret in secrets},
            unlabelled=frozenset(tuple(key.split("/")) for key in case.get("unlabelled", ())),
            hmac_keys=(make.HMAC,),
        )
    )


def shown(compiled):
    return {
        "revision": compiled.revision,
        "config": compiled.config.document(),
        "findings": [f"{finding.reason}: {finding.message}" for finding in compiled.findings],
        "identityFindings": {
            name: [f"{finding.reason}: {finding.message}" for finding in findings]
            for name, findings in sorted(compiled.identity_findings.items())
        },
        "notes": {name: f"{note.reason}: {note.message}" for name, note in sorted(compiled.notes.items())},
        "missingSecrets": sorted("/".join(key) for key in compiled.missing_secrets),
    }


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path, make):
    case = yaml.safe_load(path.read_text())
    for document in case["objects"]:
        if document["kind"] == "Tenant":
            TenantSpec.strictly(document["spec"])
        if document["kind"] == "FairnessPolicy":
            FairnessPolicySpec.strictly(document["spec"])
    got = shown(compile_case(case, make))
    if os.environ.get("EQUIPOISE_WRITE_GOLDEN"):
        text, _, _ = path.read_text().partition("\nwant:\n")
        want = yaml.safe_dump({"want": got}, sort_keys=False, width=110)
        path.write_text(text.rstrip("\n") + "\n\n" + want)
        return
    assert got == case["want"]


def test_there_are_golden_files():
    assert len(CASES) >= 6


def test_the_body_is_the_configuration_and_the_revision_its_digest(make):
    compiled = make.compiled([make.tenant_body("blue", weight=3)])
    parsed = SidecarConfig.model_validate_json(compiled.body)
    assert parsed == compiled.config
    assert parsed.revision == compiled.revision == compiled.config.revision


def test_a_policy_that_is_off_lets_everything_pass(make):
    assert make.compiled(policy=make.policy_body(mode="Off")).config.mode == "PassThrough"
    assert pass_through().config.policy is None
    assert make.compiled(policy=make.policy_body(mode="Off", shadow=[{"type": "VTC"}])).config.shadow == []


@pytest.mark.parametrize(
    ("mode", "sidecar_mode", "shadows"),
    [("Enforce", "Enforce", ["DRR"]), ("Shadow", "PassThrough", ["VTC", "DRR"])],
)
def test_shadow_runs_the_algorithm_itself_beside_what_passes_through(make, mode, sidecar_mode, shadows):
    body = make.policy_body(mode=mode, algorithm={"type": "VTC"}, shadow=[{"type": "VTC"}, {"type": "DRR"}])
    config = make.compiled(policy=body).config
    assert config.mode == sidecar_mode
    assert [algorithm.type for algorithm in config.shadow] == shadows


@pytest.mark.parametrize(("allowed", "admitted"), [("Same", False), ("All", True)])
def test_from_says_whose_tenants_count(make, allowed, admitted):
    policy = make.policy(tenants={"from": allowed})
    assert admits(policy, "team")
    assert admits(policy, "guest") is admitted


def test_a_foreign_weight_is_bounded_and_the_tenant_told(make):
    policy = make.policy_body(tenants={"from": "All", "maxWeight": 5})
    compiled = make.compiled(
        [
            make.tenant_body("own", weight=100),
            make.tenant_body("modest", "guest", weight=5),
            make.tenant_body("greedy", "guest", weight=6),
        ],
        policy=policy,
    )
    weights = {tenant.id: tenant.weight for tenant in compiled.config.tenants}
    assert weights == {"team/own": 100, "guest/modest": 5, "guest/greedy": 5}
    assert {name: note.reason for name, note in compiled.notes.items()} == {
        "guest/greedy": Reason.WEIGHT_LIMITED
    }


def test_a_missing_secret_is_listed_for_a_second_look(make):
    policy = make.policy_body(engine={"apiKeySecret": {"name": "engine"}})
    compiled = make.compiled(
        [make.tenant_body("a", secrets=["here", "gone"])],
        policy=policy,
        secrets=[make.secret_body("here", a="x" * 32)],
    )
    assert compiled.missing_secrets == {("team", "gone"), ("team", "engine")}


names = st.sampled_from(["a", "b", "c", "d", "e"])
keys = st.sampled_from(["1" * 32, "2" * 32, "3" * 32, "short"])


@st.composite
def clusters(draw):
    secrets = draw(st.dictionaries(names, st.lists(keys, max_size=3), max_size=4))
    tenants = draw(
        st.dictionaries(
            st.tuples(names, st.sampled_from(["team", "guest"])),
            st.tuples(
                st.lists(names, unique=True, max_size=3),
                st.lists(st.sampled_from(["x", "y"]), unique=True, max_size=2),
                st.integers(1, 9),
                st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
            ),
            max_size=6,
        )
    )
    return secrets, tenants, draw(st.randoms(use_true_random=False))


@settings(max_examples=150, deadline=None)
@given(clusters())
def test_no_identity_has_two_owners_and_the_order_of_the_objects_means_nothing(make, cluster):
    secrets, tenants, random = cluster
    bodies = [
        make.tenant_body(
            name, namespace, secrets=uses, headers=headers, weight=weight, meta={"created": created}
        )
        for (name, namespace), (uses, headers, weight, created) in tenants.items()
    ]
    secret_bodies = [
        make.secret_body(name, namespace, **{f"k{i}": key for i, key in enumerate(entries)})
        for name, entries in secrets.items()
        for namespace in ("team", "guest")
    ]
    policy = make.policy_body(
        tenants={"from": "All", "maxWeight": 4},
        identity={"trustedHeader": {"peers": ["10.0.0.0/8"]}, "grants": ["guest"]},
    )
    compiled = make.compiled(bodies, policy=policy, secrets=secret_bodies)
    random.shuffle(bodies)
    random.shuffle(secret_bodies)
    assert make.compiled(bodies, policy=policy, secrets=secret_bodies).body == compiled.body
    for claims in (
        [digest for tenant in compiled.config.tenants for digest in tenant.key_digests],
        [value for tenant in compiled.config.tenants for value in tenant.header_values],
    ):
        assert len(claims) == len(set(claims))
    assert [tenant.id for tenant in compiled.config.tenants] == sorted(f"{ns}/{name}" for name, ns in tenants)
    assert all(tenant.weight <= 4 for tenant in compiled.config.tenants if tenant.id.startswith("guest/"))
