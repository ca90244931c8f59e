"""The operator and the real sidecar, each a process: certificates, configuration, state, and who is refused."""

import asyncio
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import yaml
from patience import SLACK

from equipoise_api import names
from equipoise_api.sidecar_config import PASS_THROUGH
from equipoise_simulator.standin import DcgmPlace, StandIn

ROOT = Path(__file__).parents[3]
KEY = "sk-" + "b" * 40


class RealSidecar:
    """A sidecar process for a pod on loopback. Its engine is not there unless a test says so: it is configured all the same."""

    def __init__(self, world, name, uid, ip, folder):
        self.world, self.name, self.uid, self.ip, self.folder = world, name, uid, ip, folder
        self.process = None
        self.engine = "http://127.0.0.1:1"

    async def start(self):
        operator = await self.world.issuing()
        folder = self.folder / self.name
        (folder / "state").mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_text(await self.world.ca())
        (folder / "token").write_text(await self.world.token(self))
        environment = {
            "EQUIPOISE_ENGINE": self.engine,
            "EQUIPOISE_HOST": self.ip,
            "EQUIPOISE_STATE_DIR": str(folder / "state"),
            "EQUIPOISE_ISSUER_URL": operator.issuer,
            "EQUIPOISE_CA_FILE": str(folder / "ca.crt"),
            "EQUIPOISE_TOKEN_FILE": str(folder / "token"),
            "EQUIPOISE_INSTALL": self.world.install,
            "EQUIPOISE_DRAIN_SECONDS": "1",
            "POD_NAME": self.name,
            "POD_NAMESPACE": self.world.namespace,
            "POD_UID": self.uid,
        }
        self.log = (folder / "log").open("ab")
        self.process = self.spawn(environment)

    def spawn(self, environment):
        command = [sys.executable, "-m", "equipoise_sidecar"]
        return subprocess.Popen(command, env=os.environ | environment, stdout=self.log, stderr=self.log)

    def tail(self):
        return (self.folder / self.name / "log").read_text()[-3000:]

    async def stop(self, *, kill=False):
        if self.process is not None and self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
            await asyncio.to_thread(self.process.wait, 20)


@pytest.fixture
async def running(world, tmp_path):
    """An operator that leads, a policy, a tenant, two pods with real sidecars."""
    world.operator()
    await world.apply(
        world.policy("policy"), world.secret("keys", KEY), world.tenant("blue", weight=2, secrets=("keys",))
    )
    made = []
    for number in range(2):
        name, ip = f"vllm-{number}", world.ip()
        uid = await asyncio.to_thread(
            world.cluster.run_pod, world.pod(name), ip=ip, namespace=world.namespace
        )
        made.append(RealSidecar(world, name, uid, ip, tmp_path))
    for sidecar in made:
        await sidecar.start()
    yield world, made
    for sidecar in made:
        await sidecar.stop(kill=True)


async def synced(world, sidecars, want="2/2", seconds=SLACK):
    deadline = time.monotonic() + seconds
    while True:
        status = (await world.get("fairnesspolicy", "policy")).get("status", {})
        if status.get("sidecars", {}).get("syncedOfTotal") == want:
            return status
        assert time.monotonic() < deadline, (status, world.tails(), [each.tail() for each in sidecars])
        await asyncio.sleep(0.1)


async def status_with(sidecar, key):
    """Send a chat request with a key; return the HTTP status, 0 where it waits: for an engine that is not there."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    timeout = aiohttp.ClientTimeout(total=1.5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.post(
                f"http://{sidecar.ip}:{names.DATA_PORT}/v1/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}"},
            ) as response:
                return response.status
        except TimeoutError:
            return 0


async def test_real_sidecars_are_configured_and_say_so(running):
    world, sidecars = running
    status = await synced(world, sidecars)
    assert status["tenants"] == 1
    await world.says("tenant", "blue", "Ready", "True")
    await world.patch("FairnessPolicy", "policy", {"spec": {"defaultTenant": {"mode": "Reject"}}})
    deadline = time.monotonic() + SLACK
    while await status_with(sidecars[0], "nobody-knows-this-key-of-forty-characters") != 401:
        assert time.monotonic() < deadline, sidecars[0].tail()
        await asyncio.sleep(0.1)
    # A known key waits for the engine, which is not there.
    assert await status_with(sidecars[0], KEY) != 401
    await world.remove("Secret", "keys")
    deadline = time.monotonic() + SLACK
    while await status_with(sidecars[1], KEY) != 401:
        assert time.monotonic() < deadline, sidecars[1].tail()
        await asyncio.sleep(0.1)


async def test_changes_reach_real_sidecars_as_patches(running):
    world, sidecars = running
    await synced(world, sidecars)
    (operator,) = world.operators
    for weight in (3, 4, 5):
        before = (await synced(world, sidecars))["revision"]
        await world.patch("Tenant", "blue", {"spec": {"weight": weight}})
        deadline = time.monotonic() + SLACK
        while (await synced(world, sidecars))["revision"] == before:
            assert time.monotonic() < deadline
    assert await operator.metric("pushes_total", method="PATCH", status="200") >= 6
    assert await operator.metric("pushes_total", method="PATCH", status="412") is None
    await world.says("tenant", "blue", "Synced", "True")


async def test_a_real_sidecar_that_is_killed_and_started_again(running):
    world, sidecars = running
    await synced(world, sidecars)
    await sidecars[0].stop(kill=True)
    await world.patch("Tenant", "blue", {"spec": {"weight": 7}})
    await synced(world, sidecars, "1/2")
    await world.says("fairnesspolicy", "policy", "Programmed", "False", "Unreachable")
    await sidecars[0].start()
    await synced(world, sidecars)
    await world.says("fairnesspolicy", "policy", "Programmed", "True")


async def test_an_operator_that_is_replaced_fences_real_sidecars(running):
    world, sidecars = running
    await synced(world, sidecars)
    second = world.operator("operator-b")
    world.operators[0].close()
    await second.leading()
    await world.patch("Tenant", "blue", {"spec": {"weight": 9}})
    deadline = time.monotonic() + SLACK
    while await second.metric("sidecars", state="synced") != 2:
        assert time.monotonic() < deadline, (second.tail(), [each.tail() for each in sidecars])
        await asyncio.sleep(0.1)


async def test_one_sidecars_certificate_gets_403_on_anothers_admin_port(running):
    world, sidecars = running
    await synced(world, sidecars)
    before = (await world.get("fairnesspolicy", "policy"))["status"]["revision"]
    intruder = await world.context_of(sidecars[1])
    url = f"https://{sidecars[0].ip}:{names.ADMIN_PORT}"
    empty = {"epoch": 99, "sequence": 1, "revision": PASS_THROUGH.revision, "config": PASS_THROUGH.document()}
    async with aiohttp.ClientSession() as session:
        for method, path, body in (
            ("PUT", names.CONFIG_PATH, empty),
            ("PATCH", names.CONFIG_PATH, {}),
            ("GET", names.STATE_PATH, None),
        ):
            async with session.request(method, url + path, json=body, ssl=intruder) as response:
                assert response.status == 403, (method, path)
        anonymous = ssl.create_default_context()
        anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(aiohttp.ClientError):
            await session.get(url + names.STATE_PATH, ssl=anonymous)
    assert (await synced(world, sidecars))["revision"] == before


async def allow_exporters(world, namespace):
    """Give the operator what the chart gives it with dcgm.enabled."""
    cluster = world.cluster
    role = await asyncio.to_thread(
        cluster.helm,
        *("template", "equipoise", str(ROOT / "charts" / "equipoise"), f"--namespace={world.namespace}"),
        *("--show-only=templates/rbac.yaml", "--set", f"fullnameOverride={world.install}"),
        *("--set", "dcgm.enabled=true", "--set", f"dcgm.namespace={namespace}"),
    )
    kept = [each for each in yaml.safe_load_all(role) if each["metadata"].get("namespace") == namespace]
    assert [each["kind"] for each in kept] == ["Role", "RoleBinding"]
    assert kept[0]["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    await asyncio.to_thread(cluster.kubectl, "apply", "--filename=-", input=yaml.safe_dump_all(kept))


async def test_gpu_use_time_and_energy_come_from_the_exporter_of_the_pods_node(world, tmp_path):
    cluster, ip, namespace = world.cluster, world.ip(), f"{world.namespace}-gpu"
    await asyncio.to_thread(cluster.create_namespace, namespace)
    await allow_exporters(world, namespace)
    exporter = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "exporter", "labels": {"app": "nvidia-dcgm-exporter"}},
        "spec": {"containers": [{"name": "exporter", "image": "exporter"}]},
    }
    await asyncio.to_thread(cluster.run_pod, exporter, ip=ip, namespace=namespace)
    world.operator(EQUIPOISE_DCGM_NAMESPACE=namespace)
    gpu = {"dcgm": "Exporter", "scrapeSeconds": 1, "staleSeconds": 5}
    await world.apply(
        world.policy("policy", gpu=gpu), world.secret("keys", KEY), world.tenant("blue", secrets=("keys",))
    )
    pod_ip = world.ip()
    uid = await asyncio.to_thread(cluster.run_pod, world.pod("vllm-0"), ip=pod_ip, namespace=world.namespace)
    sidecar = RealSidecar(world, "vllm-0", uid, pod_ip, tmp_path)
    place = DcgmPlace(host=ip, port=9400, pod="vllm-0", namespace=world.namespace, interval_seconds=0.5)
    try:
        async with StandIn(dcgm=place) as engine, aiohttp.ClientSession() as session:
            sidecar.engine = engine.url
            await sidecar.start()
            await synced(world, [sidecar], "1/1")
            deadline = time.monotonic() + SLACK
            usage, load = {}, {}
            while not (usage.get("gpuSeconds") and usage.get("energyJoules") and load.get("gpuPercent")):
                body = {"model": "standin", "prompt": "hello", "max_tokens": 40, "ignore_eos": True}
                url = f"http://{pod_ip}:{names.DATA_PORT}/v1/completions"
                async with session.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}) as reply:
                    await reply.read()
                usage = (await world.get("tenant", "blue")).get("status", {}).get("usage", {})
                load = (await world.get("fairnesspolicy", "policy"))["status"].get("load", {})
                assert time.monotonic() < deadline, (usage, load, world.tails(), sidecar.tail())
            await world.says("fairnesspolicy", "policy", "GPUMetricsStale", "False", "Fresh")
            header, row = (await world.kubectl("get", "fairnesspolicies")).splitlines()
            assert "GPU%" in header.split()
            assert row
        await world.says("fairnesspolicy", "policy", "GPUMetricsStale", "True", "Unreachable")
        assert "gpuPercent" not in (await world.get("fairnesspolicy", "policy"))["status"]["load"]
    finally:
        await sidecar.stop(kill=True)
