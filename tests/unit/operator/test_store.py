import pytest

from equipoise_operator import objects
from equipoise_operator.kube import Listing
from equipoise_operator.store import Store

BLUE = ("team", "blue")


@pytest.fixture
def store():
    return Store()


def put(store, make, version, *, uid="u1", name="blue", **spec):
    body = make.tenant_body(name, meta={"version": version, "uid": uid}, **spec)
    return store.tenants.put(("team", name), objects.tenant(body))


def test_a_new_object_is_a_change_and_the_same_again_is_none(store, make):
    assert put(store, make, 1).before is None
    assert put(store, make, 1) is None
    assert put(store, make, 2) is None


def test_a_status_write_of_our_own_changes_nothing_but_is_kept(store, make):
    put(store, make, 1)
    body = make.tenant_body("blue", meta={"version": 2, "uid": "u1"}) | {"status": {"usage": {"queued": 7}}}
    assert store.tenants.put(BLUE, objects.tenant(body)) is None
    assert store.tenants.get(BLUE).object.status.usage.queued == 7


@pytest.mark.parametrize("spec", [{"weight": 2}, {"secrets": ["a"]}])
def test_a_change_of_the_spec_is_a_change(store, make, spec):
    put(store, make, 1)
    change = put(store, make, 2, **spec)
    assert change.before.version == 1
    assert change.after.version == 2


def test_labels_are_part_of_what_counts(store, make):
    put(store, make, 1)
    body = make.tenant_body("blue", meta={"version": 2, "uid": "u1", "labels": {"tier": "gold"}})
    assert store.tenants.put(BLUE, objects.tenant(body)) is not None


def test_an_event_that_comes_late_is_ignored(store, make):
    put(store, make, 5, weight=5)
    assert put(store, make, 4, weight=4) is None
    assert store.tenants.get(BLUE).object.spec.weight == 5


def test_the_deletion_of_a_former_object_of_that_name_leaves_its_successor(store, make):
    put(store, make, 1, uid="old")
    put(store, make, 3, uid="new")
    assert store.tenants.drop(BLUE, "old") is None
    assert store.tenants.get(BLUE).uid == "new"
    assert store.tenants.drop(BLUE, "new").after is None
    assert store.tenants.get(BLUE) is None


def test_an_object_made_again_is_a_change_even_with_the_same_spec(store, make):
    put(store, make, 1, uid="old")
    assert put(store, make, 2, uid="new") is not None


def test_a_listing_drops_what_it_lacks(store, make):
    put(store, make, 1, name="blue")
    put(store, make, 2, name="green", uid="u2")
    changes = store.tenants.reconcile(Listing({BLUE: "u1"}, 10))
    assert [change.key for change in changes] == [("team", "green")]
    assert len(store.tenants) == 1


def test_a_listing_drops_an_object_that_was_made_again_under_another_uid(store, make):
    put(store, make, 1)
    changes = store.tenants.reconcile(Listing({BLUE: "another"}, 10))
    assert [change.before.uid for change in changes] == ["u1"]


def test_a_listing_spares_what_came_after_it(store, make):
    put(store, make, 11)
    assert store.tenants.reconcile(Listing({}, 10)) == []
    assert store.tenants.get(BLUE) is not None


def test_a_listing_adds_nothing(store):
    assert store.tenants.reconcile(Listing({BLUE: "u1"}, 10)) == []
    assert len(store.tenants) == 0


def test_a_version_that_cannot_be_read_leaves_the_former_in_force_with_the_error(store, make):
    put(store, make, 1, weight=3)
    change = put(store, make, 2, weight=0)
    assert change.after.object.spec.weight == 3
    assert "weight" in change.after.error
    healed = put(store, make, 3, weight=4)
    assert healed.after.error == ""


def test_objects_are_found_by_namespace(store, make):
    put(store, make, 1)
    body = make.tenant_body("blue", "other")
    store.tenants.put(("other", "blue"), objects.tenant(body))
    assert [tenant.metadata.namespace for tenant in store.tenants.parsed("other")] == ["other"]
    assert len(store.tenants.parsed()) == 2
    store.tenants.drop(("other", "blue"), body["metadata"]["uid"])
    assert store.tenants.parsed("other") == []


def test_only_what_a_pod_is_to_its_sidecar_counts(store, make):
    body = make.pod_body("p", meta={"version": 1})
    store.pods.put(("team", "p"), objects.pod(body))
    later = make.pod_body("p", meta={"version": 2})
    later["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert store.pods.put(("team", "p"), objects.pod(later)) is None
    moved = make.pod_body("p", meta={"version": 3}, ip="10.9.9.9")
    assert store.pods.put(("team", "p"), objects.pod(moved)) is not None


def test_a_version_that_cannot_be_read_brings_its_own_status(store, make):
    put(store, make, 1, weight=3)
    body = make.tenant_body("blue", meta={"version": 2, "uid": "u1"}, weight=0)
    store.tenants.put(BLUE, objects.tenant(body | {"status": {"usage": {"queued": 7}}}))
    held = store.tenants.get(BLUE).object
    assert (held.spec.weight, held.status.usage.queued) == (3, 7)


def test_a_new_generation_is_a_change_though_nothing_known_here_differs(store, make):
    put(store, make, 1)
    body = make.tenant_body("blue", meta={"version": 2, "uid": "u1", "generation": 2})
    assert store.tenants.put(BLUE, objects.tenant(body)) is not None


def test_a_tenant_of_which_no_version_could_be_read_whole_has_what_could(store, make):
    """Its keys are not revoked by an operator that was restarted and does not know a limit."""
    body = make.tenant_body("blue", secrets=["keys"], weight=3, limits={"maxInFlight": "many"})
    store.tenants.put(BLUE, objects.tenant(body))
    stored = store.tenants.get(BLUE)
    assert stored.error.startswith("spec.limits.maxInFlight")
    spec = stored.object.spec
    assert (spec.weight, [source.secret_name for source in spec.identity.api_keys]) == (3, ["keys"])
    assert spec.limits.max_in_flight is None
    assert store.tenants.parsed() == [stored.object]


def test_a_policy_of_which_no_version_could_be_read_is_not_made_up(store, make):
    store.policies.put(("team", "policy"), objects.policy(make.policy_body(mode="Sometimes")))
    assert store.policies.parsed() == []
