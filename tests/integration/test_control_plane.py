"""The control plane comes up, keeps its objects over a restart of the API server, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kubernetes import client
from served import permitted, until

from equipoise_cluster import Cluster, ClusterError, CommandError, ControlPlane, controlplane, ports
from equipoise_cluster.programs import KUBERNETES

POD = {
    "metadata": {"name": "engine"},
    "spec": {
        "initContainers": [
            {"name": "sidecar", "image": "sidecar:1", "restartPolicy": "Always"},
            {"name": "fetch", "image": "fetch:1"},
        ],
        "containers": [{"name": "vllm", "image": "vllm:1"}],
    },
}

READER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
"""


def test_both_ends_report_the_pinned_version(control_plane):
    reported = json.loads(control_plane.kubectl("version", "--output=json"))
    assert reported["clientVersion"]["gitVersion"] == f"v{KUBERNETES.version}"
    assert reported["serverVersion"]["gitVersion"] == f"v{KUBERNETES.version}"
    assert control_plane.helm("version", "--short").startswith("v4.")


def test_kubectl_says_why_it_was_refused(cluster):
    with pytest.raises(CommandError, match='namespaces "nowhere" not found') as refused:
        cluster.kubectl("create", "configmap", "a", "--namespace=nowhere")
    assert refused.value.code == 1


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_a_restart_of_the_api_server_keeps_objects_and_address(control_plane, namespace, kill):
    control_plane.kubectl("create", "configmap", "kept", "--from-literal=a=b", f"--namespace={namespace}")
    before = control_plane.pids["kube-apiserver"]
    server = control_plane.server

    control_plane.stop_apiserver(kill=kill)
    with pytest.raises(CommandError, match="refused"):
        control_plane.kubectl("get", "namespaces")
    control_plane.start_apiserver()

    assert control_plane.server == server
    assert control_plane.pids["kube-apiserver"] != before
    core = client.CoreV1Api(control_plane.admin)
    assert core.read_namespaced_config_map("kept", namespace).data == {"a": "b"}


def test_controllers_work_on_after_a_restart_of_the_api_server(control_plane):
    control_plane.restart_apiserver(kill=True)
    name = control_plane.create_namespace()
    control_plane.delete_namespace(name)


def test_a_paused_api_server_hangs_and_goes_on(control_plane):
    control_plane.pause_apiserver()
    try:
        with pytest.raises(CommandError):
            control_plane.kubectl("get", "namespaces", "--request-timeout=500ms")
    finally:
        control_plane.resume_apiserver()
    assert "default" in control_plane.kubectl("get", "namespaces")


def test_the_api_server_is_not_started_twice(control_plane):
    with pytest.raises(ClusterError, match="stop it first"):
        control_plane.start_apiserver()


def test_a_service_account_may_do_what_its_role_says(cluster, namespace):
    cluster.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=READER)
    path = cluster.kubeconfig_for("reader", namespace=namespace)
    assert path.stat().st_mode & 0o077 == 0
    account = f"system:serviceaccount:{namespace}:reader"
    permitted(cluster, account, [{"verb": "list", "resource": "configmaps", "namespace": namespace}])

    def as_reader(*arguments):
        return cluster.kubectl(f"--kubeconfig={path}", *arguments)

    # The admin's client certificate must not ride along: kubectl would prefer it to the token.
    assert as_reader("auth", "whoami", "--output=jsonpath={.status.userInfo.username}") == account
    # A controller puts it there.
    until(
        lambda: "kube-root-ca.crt" in as_reader("get", "configmaps"), lambda: as_reader("get", "configmaps")
    )
    with pytest.raises(CommandError, match="Forbidden"):
        as_reader("get", "secrets")
    with pytest.raises(CommandError, match="Forbidden"):
        as_reader("get", "configmaps", "--namespace=default")


def test_a_pod_token_with_an_audience_names_its_pod(cluster, namespace):
    cluster.create_node()
    uid = cluster.run_pod(POD, ip="127.0.1.1", namespace=namespace)
    token = cluster.token(namespace, "default", audience="equipoise", pod=("engine", uid))

    def review(audience):
        spec = client.V1TokenReviewSpec(token=token, audiences=[audience])
        body = client.V1TokenReview(spec=spec)
        return client.AuthenticationV1Api(cluster.admin).create_token_review(body).status

    status = review("equipoise")
    assert status.authenticated
    assert status.user.extra["authentication.kubernetes.io/pod-name"] == ["engine"]
    assert status.user.extra["authentication.kubernetes.io/pod-uid"] == [uid]
    assert not review("somebody-else").authenticated


def test_a_pod_runs_with_an_address_of_its_own(cluster, namespace):
    cluster.create_node()
    cluster.create_node()
    uid = cluster.run_pod(POD, ip="127.0.1.7", namespace=namespace)
    pod = client.CoreV1Api(cluster.admin).read_namespaced_pod("engine", namespace)
    assert pod.metadata.uid == uid
    assert pod.status.phase == "Running"
    assert pod.status.pod_ip == "127.0.1.7"
    sidecar, fetch = sorted(pod.status.init_container_statuses, key=lambda each: each.name, reverse=True)
    assert sidecar.state.running
    assert sidecar.ready
    assert fetch.state.terminated.exit_code == 0
    assert pod.status.container_statuses[0].state.running
    assert {each.type: each.status for each in pod.status.conditions}["Ready"] == "True"

    cluster.set_pod_running(namespace, "engine", ip="127.0.1.8", ready=False, restarts=2)
    pod = client.CoreV1Api(cluster.admin).read_namespaced_pod("engine", namespace)
    assert pod.status.pod_ip == "127.0.1.8"
    assert pod.status.container_statuses[0].restart_count == 2
    assert {each.type: each.status for each in pod.status.conditions}["Ready"] == "False"

    cluster.delete_pod(namespace, "engine")
    cluster.delete_pod(namespace, "engine")
    assert "engine" not in cluster.kubectl("get", "pods", f"--namespace={namespace}")


def test_the_pods_of_a_deployment_can_be_declared_running(cluster, namespace):
    cluster.create_node()
    where = f"--namespace={namespace}"
    cluster.kubectl("create", "deployment", "web", "--image=web:1", "--replicas=2", where)
    core = client.CoreV1Api(cluster.admin)

    def pods():
        return core.list_namespaced_pod(namespace).items

    until(lambda: len(pods()) == 2, lambda: cluster.kubectl("get", "deployment,replicaset,pods", where))
    for number, pod in enumerate(pods(), start=1):
        cluster.set_pod_running(namespace, pod.metadata.name, ip=f"127.0.2.{number}")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=120s", where)


def test_an_existing_cluster_works_through_its_kubeconfig_and_outlives_its_use(
    control_plane, binaries, namespace
):
    clients = {name: binaries[name] for name in ("kubectl", "helm")}
    with Cluster.existing(clients, kubeconfig=control_plane.kubeconfig) as existing:
        assert existing.server == control_plane.server
        assert existing.ca.read_bytes() == control_plane.ca.read_bytes()
        existing.kubectl("create", "serviceaccount", "guest", f"--namespace={namespace}")
        guest = existing.kubeconfig_for("guest", namespace=namespace)
        assert "guest" in existing.kubectl("auth", "whoami", f"--kubeconfig={guest}")
        state = existing.state
    assert not state.exists()
    assert "guest" in control_plane.kubectl("get", "serviceaccounts", f"--namespace={namespace}")


def test_a_kubeconfig_without_a_context_is_refused_with_the_mend(binaries, tmp_path):
    empty = tmp_path / "kubeconfig"
    empty.write_text("apiVersion: v1\nkind: Config\n")
    with pytest.raises(ClusterError, match=r"names no cluster .*: kubectl config use-context sets"):
        Cluster.existing(binaries, kubeconfig=empty)


def test_a_given_port_that_is_taken_is_named(binaries, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"Port {port} on 127.0.0.1 is taken"):
            ControlPlane.start(binaries, state_dir=tmp_path, port=port)


def test_a_chosen_port_that_is_taken_meanwhile_is_chosen_anew(binaries, tmp_path, monkeypatch):
    """Somebody takes the port between its choice and the API server's start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        choices = iter([[*ports.choose(2), taken.getsockname()[1]], ports.choose(3)])
        monkeypatch.setattr(controlplane.ports, "choose", lambda *_: next(choices))
        with ControlPlane.start(binaries, state_dir=tmp_path) as second:
            assert not second.server.endswith(f":{taken.getsockname()[1]}")
            assert "Server Version" in second.kubectl("version")
    assert next(choices, None) is None


def test_a_program_that_cannot_start_shows_its_log(binaries, tmp_path):
    broken = tmp_path / "etcd"
    broken.write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ClusterError, match=r"etcd ended with code 3(.|\n)*no space left"):
        ControlPlane.start({**binaries, "etcd": broken}, state_dir=tmp_path / "state")


def test_a_stopped_control_plane_leaves_no_process_and_no_folder(binaries):
    with ControlPlane.start(binaries) as short:
        pids = short.pids
        state = short.state
        assert set(pids) == {"etcd", "kube-apiserver", "kube-controller-manager"}
        assert (state / "etcd").is_dir()
    assert not state.exists()
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]


def test_a_killed_owner_takes_its_processes_along_and_the_next_removes_its_folder(binaries, tmp_path):
    program = textwrap.dedent("""
        import json, os, signal, sys
        from pathlib import Path
        from equipoise_cluster import ControlPlane
        binaries = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
        owner = ControlPlane.start(binaries)
        print(json.dumps([str(owner.state), *owner.pids.values()]), flush=True)
        signal.pause()
    """)
    names = json.dumps({name: str(path) for name, path in binaries.items()})
    owner = subprocess.Popen(
        [sys.executable, "-c", program, names],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
    )
    state, *pids = json.loads(owner.stdout.readline())
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    until(lambda: not [pid for pid in pids if _runs(pid)], lambda: f"of {pids} some run on")

    assert Path(state).exists()
    sweep = "from equipoise_cluster.state import remove_abandoned; remove_abandoned()"
    subprocess.run([sys.executable, "-c", sweep], env=os.environ | {"TMPDIR": str(tmp_path)}, check=True)
    assert not Path(state).exists()


def test_a_control_plane_run_by_hand_goes_on_sigterm(binaries, tmp_path):
    link = tmp_path / "kubeconfig"
    program = "import sys; from pathlib import Path; from equipoise_cluster import cli; cli.up(None, Path(sys.argv[1]))"
    by_hand = subprocess.Popen([sys.executable, "-u", "-c", program, link], stdout=subprocess.PIPE, text=True)
    assert by_hand.stdout.readline() == f"export KUBECONFIG={link}\n"
    state = link.resolve().parent
    answer = subprocess.check_output(
        [binaries["kubectl"], f"--kubeconfig={link}", "get", "namespaces"], text=True
    )
    assert "kube-system" in answer
    by_hand.send_signal(signal.SIGTERM)
    by_hand.communicate(timeout=120)
    assert by_hand.returncode == 0
    assert not link.is_symlink()
    assert not state.exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
