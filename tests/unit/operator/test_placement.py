from equipoise_operator.findings import Reason
from equipoise_operator.placement import place

OLD = {"created": "2026-01-01T00:00:00Z"}
YOUNG = {"created": "2026-02-01T00:00:00Z"}


def test_a_pod_goes_to_the_policy_that_selects_it(make):
    policy = make.policy("p", labels={"app": "vllm"})
    placement = place([policy], [make.pod("a", labels={"app": "vllm"}), make.pod("b", labels={"app": "web"})])
    assert placement.governed == {"uid-team-a": "uid-team-p", "uid-team-b": None}
    assert placement.conflicts == {}


def test_a_pod_without_a_sidecar_is_left_out(make):
    plain = make.pod("a", labels={"app": "vllm"})
    plain = type(plain)(**{name: getattr(plain, name) for name in plain.__slots__} | {"has_sidecar": False})
    assert place([make.policy("p")], [plain]).governed == {}


def test_two_policies_on_one_pod_the_older_has_it_and_the_younger_is_told(make):
    old = make.policy("zebra", meta=OLD)
    young = make.policy("ant", meta=YOUNG)
    placement = place([young, old], [make.pod("a"), make.pod("b")])
    assert set(placement.governed.values()) == {"uid-team-zebra"}
    conflict = placement.conflicts["uid-team-ant"]
    assert conflict.reason == Reason.CONFLICT
    assert "a (zebra), b (zebra)" in conflict.message


def test_the_younger_keeps_the_pods_that_it_alone_selects(make):
    old = make.policy("old", labels={"app": "vllm", "tier": "gold"}, meta=OLD)
    young = make.policy("young", labels={"app": "vllm"}, meta=YOUNG)
    placement = place(
        [old, young],
        [make.pod("a", labels={"app": "vllm", "tier": "gold"}), make.pod("b", labels={"app": "vllm"})],
    )
    assert placement.governed == {"uid-team-a": "uid-team-old", "uid-team-b": "uid-team-young"}
    assert list(placement.conflicts) == ["uid-team-young"]


def test_a_conflict_over_many_pods_names_a_few_and_counts_the_rest(make):
    policies = [make.policy("old", meta=OLD), make.policy("young", meta=YOUNG)]
    placement = place(policies, [make.pod(f"p{i}") for i in range(8)])
    assert placement.conflicts["uid-team-young"].message.endswith("p4 (old) and 3 more")


def test_expressions_select_too(make):
    target = {"selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}}
    policy = make.policy("p", target=target)
    placement = place([policy], [make.pod("x", labels={"app": "b"}), make.pod("y", labels={"app": "c"})])
    assert placement.governed == {"uid-team-x": "uid-team-p", "uid-team-y": None}
