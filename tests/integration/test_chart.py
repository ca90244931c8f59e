"""The chart installs, upgrades and uninstalls on a real API server, and gives the operator what it needs and no more."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from served import crds_served, until

from equipoise_cluster import CommandError, ControlPlane
from equipoise_operator.settings import DCGM_SELECTORS, Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "equipoise"
CRDS = ("tenants.equipoise.dev", "fairnesspolicies.equipoise.dev")
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def own(binaries, tmp_path_factory):
    """A control plane of this module: the chart's CRDs and ClusterRoles are the whole cluster's."""
    with ControlPlane.start(binaries, state_dir=tmp_path_factory.mktemp("chart")) as own:
        own.create_node()
        yield own


class Install:
    """A release in a namespace of its own."""

    def __init__(self, own, name, *values):
        self.own = own
        self.name = name
        self.fullname = name if "equipoise" in name else f"{name}-equipoise"
        self.namespace = own.create_namespace(f"{name}-system")
        own.kubectl("label", "namespace", self.namespace, RESTRICTED)
        self.helm("install", *values)

    def helm(self, verb, *values):
        flags = [part for value in values for part in ("--set", value)]
        chart = [] if verb == "uninstall" else [str(CHART)]
        return self.own.helm(verb, self.name, *chart, "--namespace", self.namespace, *flags)

    def get(self, kind, name=None, namespace=None):
        where = f"--namespace={namespace or self.namespace}"
        names = [name] if name else [f"--selector=app.kubernetes.io/instance={self.name}"]
        text = self.own.kubectl("get", kind, *names, where, "--output=yaml")
        document = yaml.safe_load(text)
        return document if name else document["items"]

    def names(self, kind, namespace=None):
        return {each["metadata"]["name"] for each in self.get(kind, namespace=namespace)}

    def may(self, verb, resource, namespace):
        """Whether the operator's ServiceAccount may."""
        return can(
            self.own, f"system:serviceaccount:{self.namespace}:{self.fullname}", verb, resource, namespace
        )

    def soon(self, verb, resource, namespace):
        """Wait until the operator's ServiceAccount may: the authorizer learns of a role a moment after it is stored."""
        until(
            lambda: self.may(verb, resource, namespace),
            lambda: f"it may not {verb} {resource} in {namespace}",
        )

    def remove(self):
        self.helm("uninstall")


def endpoints(own, where):
    return own.kubectl(
        *("get", "endpointslices", "--selector=kubernetes.io/service-name=equipoise", where),
        "--output=jsonpath={.items[*].endpoints[*].addresses[*]} {.items[*].ports[*].port}",
    )


def can(own, user, verb, resource, namespace):
    """As `kubectl auth can-i` says: the resource may have a name (`secrets/a`) and flags of its own."""
    where = f"--namespace={namespace}" if namespace else "--all-namespaces"
    try:
        return own.kubectl("auth", "can-i", verb, *resource.split(), where, f"--as={user}") == "yes\n"
    except CommandError as refused:
        if not refused.stdout.startswith("no"):
            raise
        return False


@pytest.fixture(scope="module")
def watched(own):
    """Two namespaces that the operator serves, and one that is none of its business."""
    return own.create_namespace("models"), own.create_namespace("research"), own.create_namespace("payroll")


@pytest.fixture(scope="module")
def equipoise(own, watched):
    install = Install(own, "equipoise", f"watchNamespaces={{{','.join(watched[:2])}}}")
    crds_served(own)
    for namespace in watched[:2]:
        install.soon("list", "secrets", namespace)
    install.soon("create", "leases.coordination.k8s.io", install.namespace)
    install.soon("create", "tokenreviews.authentication.k8s.io", install.namespace)
    yield install
    install.remove()


def test_the_chart_passes_the_strict_linter(own):
    assert "1 chart(s) linted, 0 chart(s) failed" in own.helm("lint", "--strict", str(CHART))


def test_the_chart_carries_the_generated_crds_unchanged_and_keeps_them(own):
    rendered = list(
        yaml.safe_load_all(own.helm("template", "x", str(CHART), "--show-only=templates/crds.yaml"))
    )
    assert len(rendered) == len(CRDS)
    for crd in rendered:
        group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        source = yaml.safe_load((ROOT / "crds" / f"{group}_{plural}.yaml").read_text())
        assert crd["spec"] == source["spec"]
        assert crd["metadata"]["name"] == source["metadata"]["name"]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "CustomResourceDefinition" not in own.helm(
        "template", "x", str(CHART), "--set", "crds.enabled=false"
    )


def test_the_operator_understands_its_environment(equipoise):
    [container] = equipoise.get("deployment", "equipoise")["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.name": "pod-1", "metadata.namespace": "there", "status.podIP": "10.0.0.9"}
    environment = {
        each["name"]: each.get(
            "value", fields.get(each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"))
        )
        for each in container["env"]
    }
    settings = Settings.from_environment(environment)
    assert settings.install == "equipoise"
    assert settings.class_name == "equipoise"
    assert settings.watch_namespaces == ("models", "research")
    assert (settings.pod_name, settings.pod_namespace, settings.pod_ip) == ("pod-1", "there", "10.0.0.9")
    assert settings.lease_name == "equipoise-operator"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.http_port, "issuer": settings.issuer_port}
    assert "equipoise.equipoise-system.svc" in settings.issuer_names
    assert container["args"] == ["operator", "run"]


def test_exporters_are_looked_for_when_the_chart_is_told_and_their_namespace_shows_pods_alone(own):
    exporters = own.create_namespace("gpu-operator")
    install = Install(own, "gpu", "dcgm.enabled=true", "crds.enabled=false")
    try:
        [container] = install.get("deployment", "gpu-equipoise")["spec"]["template"]["spec"]["containers"]
        settings = Settings.from_environment(
            {each["name"]: each.get("value", "") for each in container["env"]}
        )
        assert settings.dcgm_namespace == exporters
        assert settings.dcgm_selectors == DCGM_SELECTORS
        install.soon("list", "pods", exporters)
        for verb, resource in (("get", "pods"), ("watch", "pods"), ("list", "secrets"), ("get", "secrets")):
            assert not install.may(verb, resource, exporters)
    finally:
        install.remove()


def test_without_being_told_no_exporter_is_looked_for(equipoise):
    [container] = equipoise.get("deployment", "equipoise")["spec"]["template"]["spec"]["containers"]
    assert not any("DCGM" in each["name"] for each in container["env"])
    assert not any("dcgm" in name for name in equipoise.names("role"))


def test_the_pods_are_admitted_as_restricted_and_become_ready(equipoise):
    """The namespace enforces the restricted Pod Security standard."""
    core = client.CoreV1Api(equipoise.own.admin)
    selector = "app.kubernetes.io/component=operator"

    def pods():
        return core.list_namespaced_pod(equipoise.namespace, label_selector=selector).items

    until(lambda: len(pods()) == 2, lambda: equipoise.own.kubectl("get", "events", "--all-namespaces"))
    # Not loopback addresses: the controller of EndpointSlices refuses those.
    for number, pod in enumerate(pods(), start=1):
        equipoise.own.set_pod_running(equipoise.namespace, pod.metadata.name, ip=f"10.9.0.{number}")
    where = f"--namespace={equipoise.namespace}"
    equipoise.own.kubectl("rollout", "status", "deployment/equipoise", "--timeout=120s", where)
    expected = {"10.9.0.1", "10.9.0.2", "8443", "8080"}
    until(
        lambda: set(endpoints(equipoise.own, where).split()) == expected,
        lambda: endpoints(equipoise.own, where),
    )

    hooks = equipoise.own.helm("get", "hooks", "equipoise", where)
    equipoise.own.kubectl("create", "--dry-run=server", "--filename=-", input=hooks)


@pytest.mark.parametrize("namespace", ["models", "research"])
@pytest.mark.parametrize(
    ("verbs", "resource"),
    [
        ("list watch", "tenants.equipoise.dev"),
        ("list watch", "fairnesspolicies.equipoise.dev"),
        ("patch", "tenants.equipoise.dev --subresource=status"),
        ("patch", "fairnesspolicies.equipoise.dev --subresource=status"),
        ("list watch", "pods"),
        ("get list watch create patch", "secrets"),
        ("create patch", "configmaps/equipoise-ca"),
        ("create", "events"),
    ],
)
def test_the_operator_may_do_its_work_where_it_watches(equipoise, namespace, verbs, resource):
    assert [verb for verb in verbs.split() if not equipoise.may(verb, resource, namespace)] == []


@pytest.mark.parametrize(
    ("verbs", "resource"),
    [
        ("create", "leases.coordination.k8s.io"),
        ("get update", "leases.coordination.k8s.io/equipoise-operator"),
        ("create", "secrets"),
        ("get update", "secrets/equipoise-ca"),
        ("create", "tokenreviews.authentication.k8s.io"),
    ],
)
def test_the_operator_may_do_its_work_in_its_own_namespace(equipoise, verbs, resource):
    assert [verb for verb in verbs.split() if not equipoise.may(verb, resource, equipoise.namespace)] == []


def test_the_operator_publishes_its_certificates_by_server_side_apply(equipoise):
    """An apply that creates is judged with the object's name, which a plain create is not."""
    own = equipoise.own
    kubeconfig = own.kubeconfig_for("equipoise", namespace=equipoise.namespace)

    def apply(name):
        bundle = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"ca.crt": "PEM"},
        }
        flags = ("--server-side", "--namespace=models", f"--kubeconfig={kubeconfig}", "--filename=-")
        own.kubectl("apply", *flags, input=yaml.safe_dump(bundle))

    apply("equipoise-ca")
    apply("equipoise-ca")
    with pytest.raises(CommandError, match="forbidden"):
        apply("kube-root-ca.crt")


@pytest.mark.parametrize(
    ("verbs", "resource", "namespace"),
    [
        # What it never calls.
        ("get", "tenants.equipoise.dev", "models"),
        ("get update", "fairnesspolicies.equipoise.dev --subresource=status", "models"),
        ("get", "pods", "models"),
        ("patch list", "events", "models"),
        ("create patch", "events.events.k8s.io", "models"),
        # Users' objects are theirs.
        ("create update patch delete", "tenants.equipoise.dev", "models"),
        ("create update patch delete", "fairnesspolicies.equipoise.dev", "models"),
        ("create patch delete", "pods", "models"),
        ("create", "pods --subresource=exec", "models"),
        ("delete update", "secrets", "models"),
        ("create patch", "configmaps/other", "models"),
        ("get update patch delete", "secrets/other", "equipoise-system"),
        ("list watch", "secrets", "equipoise-system"),
        ("get update", "leases.coordination.k8s.io/other", "equipoise-system"),
        ("get create", "leases.coordination.k8s.io", "models"),
        # Nothing where it does not watch, and nothing of the cluster's.
        ("get list", "secrets", "payroll"),
        ("list", "tenants.equipoise.dev", "payroll"),
        ("list", "pods", "payroll"),
        ("list watch", "secrets", None),
        ("list", "pods", None),
        ("create", "subjectaccessreviews.authorization.k8s.io", None),
        ("create", "serviceaccounts --subresource=token", "models"),
        ("create escalate bind", "roles.rbac.authorization.k8s.io", "models"),
        ("impersonate", "users", None),
    ],
)
def test_the_operator_may_do_no_more(equipoise, verbs, resource, namespace):
    assert [verb for verb in verbs.split() if equipoise.may(verb, resource, namespace)] == []


def test_viewers_and_editors_of_a_namespace_are_those_of_its_tenants(equipoise):
    own = equipoise.own
    for role in ("view", "edit"):
        own.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "--namespace=models"
        )
    # Roles are aggregated by a controller.
    for user, verb, resource in (
        ("editer", "create", "tenants.equipoise.dev"),
        ("editer", "delete", "fairnesspolicies.equipoise.dev"),
        ("viewer", "get", "tenants.equipoise.dev"),
        ("viewer", "list", "fairnesspolicies.equipoise.dev"),
    ):
        until(
            lambda asked=(user, verb, resource): can(own, *asked, "models"),
            lambda asked=(user, verb, resource): f"{asked} is not allowed",
        )
    assert not can(own, "viewer", "create", "tenants.equipoise.dev", "models")
    assert not can(own, "editer", "patch", "tenants.equipoise.dev --subresource=status", "models")
    assert not can(own, "viewer", "get", "tenants.equipoise.dev", "research")


def test_an_editor_who_is_nothing_else_can_read_what_he_edits(equipoise):
    own = equipoise.own
    role = "--clusterrole=equipoise-system-equipoise-editor"
    own.kubectl("create", "rolebinding", "only-editor", role, "--user=scribe", "--namespace=models")
    until(lambda: can(own, "scribe", "create", "tenants.equipoise.dev", "models"))
    for verb in ("get", "list", "watch", "patch"):
        assert can(own, "scribe", verb, "tenants.equipoise.dev", "models"), verb
    assert not can(own, "scribe", "patch", "tenants.equipoise.dev --subresource=status", "models")


def test_who_may_create_no_roles_can_install_it_all_the_same(own):
    text = own.helm("template", "x", str(CHART), "--set", "rbac.create=false,crds.enabled=false")
    kinds = {each["kind"] for each in yaml.safe_load_all(text) if each}
    assert kinds == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "Pod"}


def test_replicas_that_are_not_ready_keep_no_node_from_being_drained(equipoise):
    spec = equipoise.get("poddisruptionbudget", "equipoise")["spec"]
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.usefixtures("watched")
def test_an_upgrade_moves_the_rights_and_an_uninstall_removes_them(own):
    release = Install(own, "second", "watchNamespaces={models}", "crds.enabled=false", "className=second")
    assert release.names("role", "models") == {"second-system-second-equipoise-watch"}
    assert release.names("poddisruptionbudget") == {release.fullname}
    release.soon("list", "secrets", "models")

    release.helm(
        "upgrade", "watchNamespaces={research}", "crds.enabled=false", "className=other", "replicas=1"
    )
    assert release.names("role", "models") == set()
    assert release.names("role", "research") == {"second-system-second-equipoise-watch"}
    until(lambda: not release.may("list", "secrets", "models"), lambda: "it keeps its rights")
    assert release.names("poddisruptionbudget") == set()
    deployment = release.get("deployment", release.fullname)["spec"]
    assert deployment["replicas"] == 1
    environment = {
        each["name"]: each.get("value") for each in deployment["template"]["spec"]["containers"][0]["env"]
    }
    assert environment["EQUIPOISE_CLASS_NAME"] == "other"

    release.remove()
    for kind in (
        "deployment",
        "service",
        "serviceaccount",
        "role",
        "rolebinding",
        "clusterrole",
        "clusterrolebinding",
    ):
        assert release.names(kind) == set(), kind
    assert release.names("role", "research") == set()


def test_uninstalling_keeps_the_crds_and_their_objects_and_a_new_install_takes_them_over(binaries, tmp_path):
    with ControlPlane.start(binaries, state_dir=tmp_path) as own:
        release = Install(own, "equipoise")
        crds_served(own)
        tenant = {
            "apiVersion": "equipoise.dev/v1alpha1",
            "kind": "Tenant",
            "metadata": {"name": "blue"},
            "spec": {},
        }
        where = f"--namespace={release.namespace}"
        own.kubectl("apply", where, "--filename=-", input=yaml.safe_dump(tenant))
        uid = own.kubectl("get", "tenant/blue", where, "--output=jsonpath={.metadata.uid}")

        said = release.helm("uninstall")
        assert all(name in said for name in CRDS)
        for name in CRDS:
            own.kubectl("get", "crd", name)
        release.helm("install")
        assert own.kubectl("get", "tenant/blue", where, "--output=jsonpath={.metadata.uid}") == uid


def test_cluster_wide_rights_are_given_only_when_asked_for(own, equipoise):
    everywhere = Install(own, "everywhere", "clusterWide=true", "crds.enabled=false")
    try:
        everywhere.soon("list", "secrets", None)
        assert everywhere.may("watch", "tenants.equipoise.dev", "payroll")
        assert not everywhere.may("delete", "secrets", "payroll")
        [container] = everywhere.get("deployment", everywhere.fullname)["spec"]["template"]["spec"][
            "containers"
        ]
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        assert Settings.from_environment(environment).watch_namespaces == ()
    finally:
        everywhere.remove()
    assert "equipoise" in equipoise.names("deployment")


@pytest.mark.usefixtures("equipoise")
def test_two_releases_of_one_name_live_in_two_namespaces(own):
    namespace = own.create_namespace("other-system")
    own.helm("install", "equipoise", str(CHART), "--namespace", namespace, "--set", "crds.enabled=false")
    own.helm("uninstall", "equipoise", "--namespace", namespace)
    rbac = client.RbacAuthorizationV1Api(own.admin)
    rbac.read_cluster_role("equipoise-system-equipoise-tokenreviews")
    with pytest.raises(ApiException, match="404"):
        rbac.read_cluster_role("other-system-equipoise-tokenreviews")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("watchNamespace={models}", "additional properties 'watchNamespace' not allowed"),
        ("watchNamespaces=models", "at '/watchNamespaces': got string, want array"),
        ("watchNamespaces={Models}", "at '/watchNamespaces/0': 'Models' does not match pattern"),
        ("watchNamespaces={a,a}", "at '/watchNamespaces': items at 0 and 1 are equal"),
        ("replicas=0", "at '/replicas': minimum: got 0, want 1"),
        ("clusterWide=perhaps", "at '/clusterWide': got string, want boolean"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of"),
        ("image.digest=x", "at '/image': additional properties 'digest' not allowed"),
        ("className=Equi_poise", "at '/className'"),
        ("podDisruptionBudget.maxUnavailable=0", "at '/podDisruptionBudget/maxUnavailable'"),
        ("resources.request.cpu=1", "at '/resources': additional properties 'request' not allowed"),
        ("clusterWide=true,watchNamespaces={models}", "watchNamespaces and clusterWide exclude each other"),
    ],
)
def test_wrong_values_are_refused_by_name(own, value, said):
    with pytest.raises(CommandError) as refused:
        own.helm("template", "equipoise", str(CHART), "--set", value)
    assert said in refused.value.stderr


def test_every_default_is_known_to_the_schema_and_documented():
    """The schema closes every object of ours; what values.yaml holds must be in it, and nothing else."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    assert schema["additionalProperties"] is False
    for name, part in schema["properties"].items():
        if "properties" in part:
            assert part["additionalProperties"] is False, name
            assert set(values[name]) == set(part["properties"]), name


def test_the_chart_installs_the_version_of_this_tree():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version("equipoise")


def test_scheduling_values_reach_the_pods(own, tmp_path):
    values = {
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "cpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "platform"},
        "topologySpread": {"topologyKey": "zone"},
        "serviceAccount": {"create": False, "name": "mine"},
        "image": {"repository": "example.org/equipoise-operator", "tag": "v9"},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    text = own.helm("template", "x", str(CHART), "--values", str(tmp_path / "values.yaml"))
    documents = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}
    assert not [name for kind, name in documents if kind == "ServiceAccount"]
    template = documents["Deployment", "x-equipoise"]["spec"]["template"]
    spec = template["spec"]
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"):
        assert spec[name] == values[name]
    assert template["metadata"]["annotations"]["a"] == "b"
    assert template["metadata"]["labels"]["team"] == "platform"
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "zone"
    assert spec["serviceAccountName"] == "mine"
    assert documents["RoleBinding", "x-equipoise"]["subjects"][0]["name"] == "mine"
    assert spec["containers"][0]["image"] == "example.org/equipoise-operator:v9"
