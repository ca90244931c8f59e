from equipoise_api import names
from equipoise_operator import objects


def test_a_pod_is_reduced_to_its_sidecar(make):
    pod = make.pod("vllm-0", labels={"app": "vllm"}, ip="10.1.2.3")
    assert (pod.ip, pod.has_sidecar, pod.sidecar_runs, pod.reachable) == ("10.1.2.3", True, True, True)
    assert pod.admin_port == names.ADMIN_PORT
    assert pod.install is None


def test_the_admin_port_is_the_container_port_of_that_name(make):
    ports = [{"name": "http", "containerPort": 1}, {"name": names.ADMIN_PORT_NAME, "containerPort": 1234}]
    assert make.pod("p", ports=ports).admin_port == 1234


def test_the_install_is_read_from_the_sidecars_environment(make):
    assert make.pod("p", env=[{"name": "EQUIPOISE_INSTALL", "value": "blue"}]).install == "blue"
    assert make.pod("p", env=[{"name": "EQUIPOISE_INSTALL", "valueFrom": {}}]).install is None


def test_a_sidecar_that_waits_or_has_no_address_is_not_reachable(make):
    assert not make.pod("p", running=False).reachable
    assert not make.pod("p", ip=None).reachable


def test_a_plain_container_counts_as_a_sidecar_too(make):
    body = make.pod_body("p")
    body["spec"]["containers"] += body["spec"].pop("initContainers")
    body["status"]["containerStatuses"] = body["status"].pop("initContainerStatuses")
    assert objects.pod(body).object.reachable


def test_a_pod_that_has_ended_runs_no_sidecar(make):
    body = make.pod_body("p")
    body["status"]["phase"] = "Succeeded"
    assert not objects.pod(body).object.reachable


def test_a_pod_without_a_sidecar_is_none_of_ours(make):
    body = make.pod_body("p")
    del body["spec"]["initContainers"]
    del body["status"]
    pod = objects.pod(body).object
    assert (pod.has_sidecar, pod.sidecar_runs, pod.ip) == (False, False, "")


def test_an_object_that_cannot_be_read_says_where(make):
    stored = objects.tenant(make.tenant_body("blue", weight=0))
    assert stored.object is None
    assert stored.error.startswith("spec.weight: ")


def test_a_secrets_entry_that_is_not_base64_is_missing(make):
    body = make.secret_body("s", good="text")
    body["data"]["bad"] = "%%%"
    secret = objects.secret(body).object
    assert secret.value("good") == b"text"
    assert secret.value("bad") is None
    assert secret.value("absent") is None


def test_a_status_that_cannot_be_read_spoils_no_spec(make):
    """As a newer operator wrote it, before it was rolled back."""
    body = make.policy_body(mode="Off") | {"status": {"shadow": [{"type": "FromTheFuture"}]}}
    stored = objects.policy(body)
    assert stored.error == ""
    assert stored.object.spec.mode == "Off"
    assert stored.object.status.shadow == []


def test_of_an_object_that_cannot_be_read_class_and_status_are_known(make):
    body = make.policy_body(mode="Sometimes", className="another") | {"status": {"tenants": 3}}
    stored = objects.policy(body)
    assert (stored.object, stored.error[:10]) == (None, "spec.mode:")
    assert (stored.outline.spec.class_name, stored.outline.status.tenants) == ("another", 3)
    worse = objects.policy(body | {"status": {"tenants": "many"}})
    assert worse.error.startswith("spec.mode: ")
    assert worse.outline.status.tenants == 0
