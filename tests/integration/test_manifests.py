"""The manifests that we ship: valid by the API's own types, taken by a real API server, and what they start works.

No kubelet runs here: the test does its work for the sidecar's container, with the arguments, environment, files, probes
and hooks that the Deployment gives it.
"""

import asyncio
import json
import os
import shlex
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import yaml
from kubelet_here import PodHere
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from served import crds_served

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_cluster import ControlPlane
from equipoise_cluster.processes import Process
from equipoise_simulator.standin import StandIn
from equipoise_simulator.standin.app import Settings as StandInSettings

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "manifests/vllm-with-sidecar.yaml"
EXAMPLES = ROOT / "manifests/examples"
ALGORITHMS = ROOT / "manifests/algorithms"
EQUIPOISE = Path(sys.executable).with_name("equipoise")
POD_ADDRESS, OPERATOR_ADDRESS = "127.0.88.2", "127.0.88.1"
KINDS = {
    "Namespace": client.V1Namespace,
    "ServiceAccount": client.V1ServiceAccount,
    "Secret": client.V1Secret,
    "Deployment": client.V1Deployment,
    "Service": client.V1Service,
    "Tenant": Tenant,
    "FairnessPolicy": FairnessPolicy,
}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


DOCUMENTS = [
    document
    for path in (DEPLOYMENT, *sorted(EXAMPLES.glob("*.yaml")), *sorted(ALGORITHMS.glob("*.yaml")))
    for document in yaml.safe_load_all(path.read_text())
]
each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=[f"{each['kind']}-{each['metadata']['name']}".lower() for each in DOCUMENTS]
)


@pytest.fixture(scope="module")
def own(binaries, tmp_path_factory):
    """A control plane with the chart installed as the README says, and the manifests applied."""
    with ControlPlane.start(binaries, state_dir=tmp_path_factory.mktemp("manifests")) as own:
        own.create_node()
        own.create_namespace("inference")
        own.helm(
            *("install", "equipoise", str(ROOT / "charts/equipoise")),
            *("--namespace", "equipoise", "--create-namespace", "--set", "watchNamespaces={inference}"),
        )
        crds_served(own)
        for path in (DEPLOYMENT, EXAMPLES):
            own.kubectl("apply", "--server-side", f"--filename={path}")
        yield own


@each_document
def test_each_object_is_valid_by_its_own_type(document):
    model = KINDS[document["kind"]]
    if document["kind"] in {"Tenant", "FairnessPolicy"}:
        model.strictly(document)
    else:
        model.model_validate(document, extra="forbid")


@each_document
def test_the_api_server_takes_each_object_without_a_warning(own, document):
    taken = own.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts"),
        *("--field-manager=test", "--filename=-", "--output=json"),
        input=yaml.safe_dump(document),
    )
    assert json.loads(taken)["kind"] == document["kind"]


def test_a_secret_holds_keys_that_the_operator_takes(own):
    secrets = client.CoreV1Api(own.admin).list_namespaced_secret(
        "inference", label_selector=f"{names.CREDENTIAL_LABEL}=true"
    )
    named = {
        source.secret_name
        for document in DOCUMENTS
        if document["kind"] == "Tenant"
        for source in Tenant.strictly(document).spec.identity.api_keys
    }
    assert named <= {secret.metadata.name for secret in secrets.items}


async def eventually(found, *processes, seconds=120.0):
    """What `found` returns when it is true; fails with the processes' logs."""
    until = time.monotonic() + seconds
    while True:
        value = await (found() if asyncio.iscoroutinefunction(found) else asyncio.to_thread(found))
        if value:
            return value
        for process in processes:
            process.check()
        if time.monotonic() > until:
            pytest.fail("\n".join([f"not within {seconds} s", *(process.tail(30) for process in processes)]))
        await asyncio.sleep(0.1)


def a_pod_of_the_deployment(own):
    items = client.CoreV1Api(own.admin).list_namespaced_pod("inference", label_selector="app=vllm").items
    return items[0] if items else None


def config_map_there(own):
    try:
        return client.CoreV1Api(own.admin).read_namespaced_config_map("equipoise-ca", "inference")
    except ApiException as error:
        if error.status != 404:
            raise
        return None


@pytest.fixture
def operator(own, tmp_path):
    """The operator with the chart's ServiceAccount and environment, on an address of its own."""
    kubeconfig = own.kubeconfig_for("equipoise", namespace="equipoise")
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "EQUIPOISE_INSTALL": "equipoise",
        "EQUIPOISE_WATCH_NAMESPACES": "inference",
        "EQUIPOISE_HOST": OPERATOR_ADDRESS,
        "POD_NAME": "equipoise-0",
        "POD_NAMESPACE": "equipoise",
        "POD_IP": OPERATOR_ADDRESS,
    }
    process = Process([EQUIPOISE, "operator", "run"], tmp_path / "operator.log", env=os.environ | environment)
    yield process
    process.stop()


async def test_a_pod_of_the_deployment_serves_tenants_and_ends_without_losing_a_stream(
    own, operator, tmp_path
):
    pod = await eventually(lambda: a_pod_of_the_deployment(own))
    own.set_pod_running("inference", pod.metadata.name, ip=POD_ADDRESS, ready=False)
    await eventually(lambda: config_map_there(own), operator)
    here = PodHere(own, pod, tmp_path / "volumes", POD_ADDRESS)
    here.mount()
    sidecar = here.container(names.SIDECAR_CONTAINER)
    engine_key = (tmp_path / "volumes/engine-key/apiKey").read_text()
    socket = tmp_path / "volumes/run/engine.sock"

    # The pod's own network is its address here; the Service's name is the operator's.
    environment = here.environment(sidecar) | {"EQUIPOISE_HOST": POD_ADDRESS}
    issuer = environment["EQUIPOISE_ISSUER_URL"]
    assert issuer == "https://equipoise.equipoise.svc:8443"
    assert own.kubectl("get", "service/equipoise", "--namespace=equipoise", "--output=name")
    environment["EQUIPOISE_ISSUER_URL"] = issuer.replace("equipoise.equipoise.svc", OPERATOR_ADDRESS)
    process = Process([EQUIPOISE, *sidecar.args], tmp_path / "sidecar.log", env=environment)
    try:
        await eventually(lambda: here.probe(sidecar, sidecar.startup_probe) == 200, process)
        await eventually(lambda: here.probe(sidecar, sidecar.liveness_probe) == 200, process)
        # no engine yet: no traffic
        await eventually(lambda: here.probe(sidecar, sidecar.readiness_probe) == 503, process)
        async with StandIn(
            profile="fast", uds=socket, settings=StandInSettings(api_key=engine_key)
        ) as standin:
            await eventually(lambda: here.probe(sidecar, sidecar.readiness_probe) == 200, process, operator)
            await serve_and_end(own, here, process, standin)
    finally:
        process.stop()


async def serve_and_end(own, here, process, standin):
    sidecar, engine = here.container(names.SIDECAR_CONTAINER), here.container("vllm")
    service = client.CoreV1Api(own.admin).read_namespaced_service("vllm", "inference")
    assert service.spec.selector.items() <= here.pod.metadata.labels.items()
    port = here.port(sidecar, service.spec.ports[0].target_port)
    url = f"http://{POD_ADDRESS}:{port}/v1/chat/completions"
    key = "replace-this-by-32-random-characters-blue"
    message = {"role": "user", "content": "Hello"}
    request = {
        "model": "standin",
        "messages": [message],
        "max_tokens": 200,
        "ignore_eos": True,
        "stream": True,
    }
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:

        async def configured():
            async with session.post(url, json=request | {"max_tokens": 1}) as answer:
                assert answer.status == 200, await answer.text()
                return answer.headers["X-Equipoise-Tenant"] == "inference/blue"

        await eventually(configured, process)
        async with session.post(url, json=request) as answer:
            assert answer.status == 200
            await answer.content.readuntil(b"\n\n")
            standin.loop.pause()
            # A pod is deleted: its preStop hooks start together.
            hooks = [
                await asyncio.create_subprocess_exec(
                    *command_of(here, container), env=here.environment(container)
                )
                for container in (sidecar, engine)
            ]
            await eventually(lambda: here.probe(sidecar, sidecar.readiness_probe) == 503, process)
            await asyncio.sleep(0.5)
            assert [hook.returncode for hook in hooks] == [None, None], "both wait for the stream"
            standin.loop.resume()
            rest = await answer.text()
        assert rest.endswith("data: [DONE]\n\n"), "the stream came to its end"
        async with asyncio.timeout(120):
            assert [await hook.wait() for hook in hooks] == [0, 0]
        async with session.post(url, json=request) as answer:
            assert answer.status == 503
    await eventually(lambda: here.probe(sidecar, sidecar.readiness_probe) == 503, process)
    assert process.exit_code is None, "SIGTERM comes after the hooks"
    grace = here.pod.spec.termination_grace_period_seconds
    assert grace >= float(here.environment(sidecar)["EQUIPOISE_DRAIN_SECONDS"]) + 10


def command_of(here, container):
    """A preStop hook's command, with this machine's `equipoise` for the image's."""
    program, *arguments = container.lifecycle.pre_stop._exec.command
    program = str(EQUIPOISE) if program == "/opt/equipoise/bin/equipoise" else program
    return [program, *(here.here(container, argument) for argument in arguments)]


def test_the_engines_command_makes_way_for_its_socket_and_reads_its_key(own, tmp_path):
    pod = a_pod_of_the_deployment(own)
    here = PodHere(own, pod, tmp_path / "volumes", POD_ADDRESS)
    for name in ("run", "engine-key"):
        (tmp_path / "volumes" / name).mkdir(parents=True)
    (tmp_path / "volumes/engine-key/apiKey").write_text("the engine's key")
    left_behind = tmp_path / "volumes/run/engine.sock"
    left_behind.touch()
    engine = here.container("vllm")
    vllm = tmp_path / "bin/vllm"
    vllm.parent.mkdir()
    said = tmp_path / "said"
    vllm.write_text(f'#!/bin/sh\nprintf "%s\\n" "$VLLM_API_KEY" "$@" > {shlex.quote(str(said))}\n')
    vllm.chmod(0o755)
    command = [here.here(engine, word) for word in engine.command + engine.args]
    environment = here.environment(engine)
    environment["PATH"] = f"{vllm.parent}:{environment['PATH']}"
    process = Process(["/bin/sh", *command[1:]], tmp_path / "log", env=environment)
    assert process.wait(120) == 0
    assert not left_behind.exists()
    key, verb, model, *flags = said.read_text().splitlines()
    assert (key, verb, model) == ("the engine's key", "serve", engine.args[0])
    assert f"--uds={left_behind}" in flags
