"""Which exporter is on which node, and who is told: from listings to sidecars."""

import asyncio
from pathlib import Path

import pytest
import yaml

from equipoise_api.gpu import GpuState
from equipoise_operator.exporters import NOT_LOOKED_FOR, Exporters, urls
from equipoise_operator.fleet import Fleet
from equipoise_operator.kube import ApiError
from equipoise_operator.push import Pusher
from equipoise_operator.settings import DCGM_SELECTORS
from equipoise_operator.sidecar_client import SidecarError

DEMO = Path(__file__).parents[3] / "manifests" / "demo" / "exporter.yaml"
SELECTORS = ("app=nvidia-dcgm-exporter", "app.kubernetes.io/name=dcgm-exporter")


def exporter(name, node="node-a", ip="10.0.0.9", *, phase="Running", port=None, **metadata):
    ports = [] if port is None else [{"name": "metrics", "containerPort": port}]
    return {
        "metadata": {"name": name, **metadata},
        "spec": {"nodeName": node, "containers": [{"name": "sidekick"}, {"name": "x", "ports": ports}]},
        "status": {"phase": phase, "podIP": ip},
    }


class TestUrls:
    def test_by_node_with_the_port_called_metrics(self):
        pods = [exporter("a"), exporter("b", "node-b", "10.0.0.10", port=9500)]
        assert urls(pods) == {
            "node-a": "http://10.0.0.9:9400/metrics",
            "node-b": "http://10.0.0.10:9500/metrics",
        }

    def test_an_address_of_ipv6(self):
        assert urls([exporter("a", ip="fd00::9")]) == {"node-a": "http://[fd00::9]:9400/metrics"}

    @pytest.mark.parametrize(
        "pod",
        [
            exporter("a", phase="Pending"),
            exporter("a", node=None),
            exporter("a", ip=None),
            exporter("a", deletionTimestamp="2026-01-01T00:00:00Z"),
            {"metadata": {"name": "a"}},
        ],
    )
    def test_one_that_does_not_run_is_none(self, pod):
        assert urls([pod]) == {}

    def test_of_two_on_a_node_the_first_by_name_stays(self):
        pods = [exporter("b", ip="10.0.0.2"), exporter("a", ip="10.0.0.1"), exporter("c", ip="10.0.0.3")]
        assert urls(pods) == urls(reversed(pods)) == {"node-a": "http://10.0.0.1:9400/metrics"}


def test_the_demos_exporter_is_found_as_a_real_one():
    manifest = yaml.safe_load(DEMO.read_text())
    labels = {f"{name}={value}" for name, value in manifest["metadata"]["labels"].items()}
    assert labels & set(DCGM_SELECTORS)
    running = {"phase": "Running", "podIP": "127.0.1.1"}
    pod = manifest | {"spec": manifest["spec"] | {"nodeName": "node-a"}, "status": running}
    assert urls([pod]) == {"node-a": "http://127.0.1.1:9400/metrics"}


class Listings:
    """Pods by selector, behind the client's interface."""

    def __init__(self):
        self.pods = {}
        self.error = None
        self.asked = []

    async def pages(self, where, *, selector, size):
        self.asked.append((where, selector))
        if self.error:
            raise self.error
        for pod in self.pods.get(selector, ()):
            yield {"items": [pod], "metadata": {}}
        yield {"items": None, "metadata": {}}


@pytest.fixture
def api():
    return Listings()


@pytest.mark.looptime
class TestLooking:
    def made(self, api, *, namespace="gpu-operator", leads=True):
        return Exporters(api, namespace=namespace, selectors=SELECTORS, leads=lambda: leads)

    async def let_run(self, exporters, seconds):
        task = asyncio.create_task(exporters.run())
        await asyncio.sleep(seconds)
        task.cancel()

    async def test_each_label_is_asked_for_in_that_namespace_alone(self, api):
        api.pods = {SELECTORS[0]: [exporter("a")], SELECTORS[1]: [exporter("b", "node-b")]}
        exporters = self.made(api)
        await self.let_run(exporters, 1)
        assert api.asked == [("/api/v1/namespaces/gpu-operator/pods", each) for each in SELECTORS]
        assert exporters.on("node-a")
        assert exporters.on("node-b")
        assert exporters.on("node-c") is None
        assert exporters.problem == ""

    async def test_one_that_moved_is_found_with_the_next_listing(self, api):
        api.pods = {SELECTORS[0]: [exporter("a")]}
        exporters = self.made(api)
        task = asyncio.create_task(exporters.run())
        await asyncio.sleep(1)
        api.pods = {SELECTORS[0]: [exporter("b", ip="10.0.0.77")]}
        await asyncio.sleep(35)
        assert exporters.on("node-a") == "http://10.0.0.77:9400/metrics"
        task.cancel()

    async def test_while_the_api_server_refuses_what_was_known_stays(self, api):
        api.pods = {SELECTORS[0]: [exporter("a")]}
        exporters = self.made(api)
        task = asyncio.create_task(exporters.run())
        await asyncio.sleep(1)
        api.error = ApiError(403, "Forbidden", "cannot list pods")
        await asyncio.sleep(40)
        assert exporters.on("node-a")
        assert "gpu-operator" in exporters.problem
        assert "Forbidden" in exporters.problem
        api.error = None
        await asyncio.sleep(10)
        assert exporters.problem == ""
        task.cancel()

    async def test_who_does_not_lead_asks_nobody(self, api):
        await self.let_run(self.made(api, leads=False), 100)
        assert api.asked == []

    async def test_without_a_namespace_it_says_how_to_have_one(self, api):
        exporters = self.made(api, namespace=None)
        await exporters.run()
        assert (api.asked, exporters.problem) == ([], NOT_LOOKED_FOR)


class Sidecars:
    """What each sidecar was told, behind the client's interface."""

    def __init__(self, make):
        self.make = make
        self.told = {}
        self.calls = []
        self.old = False
        self.error = None

    async def state(self, pod):
        gpu = None if self.old else GpuState(exporter=self.told.get(pod.name))
        return self.make.state(revision=self.make.compiled().revision, gpu=gpu)

    async def put(self, pod, body, revision, *, epoch, sequence):
        raise AssertionError("it holds the revision already")

    async def point(self, pod, told):
        self.calls.append((pod.name, told.exporter))
        if self.error:
            raise self.error
        self.told[pod.name] = told.exporter

    async def close(self):
        pass


@pytest.mark.looptime
class TestTelling:
    POLICY = "uid-team-policy"

    @pytest.fixture
    def sidecars(self, make):
        return Sidecars(make)

    @pytest.fixture
    def known(self):
        return {"node-a": "http://10.0.0.9:9400/metrics"}

    @pytest.fixture
    async def fleet(self, make, sidecars, known):
        clock = asyncio.get_running_loop().time
        pusher = Pusher(sidecars, epoch=lambda: -1, raise_above=None)
        made = Fleet(sidecars, pusher, epoch=lambda: -1, clock=clock, exporter_on=known.get, seed=1)
        made.configure(self.POLICY, make.compiled())
        yield made
        await made.close()

    def assign(self, fleet, *pods, policy=POLICY):
        fleet.assign("team", pods, {pod.uid: policy for pod in pods})

    async def test_each_sidecar_is_told_of_its_own_node_once(self, make, fleet, sidecars, known):
        self.assign(fleet, make.pod("p"), make.pod("q", node="node-b"))
        await asyncio.sleep(5)
        assert sidecars.calls == [("p", known["node-a"])]

    async def test_an_exporter_that_moves_or_goes_is_told(self, make, fleet, sidecars, known):
        self.assign(fleet, make.pod("p"))
        await asyncio.sleep(2)
        known["node-a"] = "http://10.0.0.10:9400/metrics"
        await asyncio.sleep(2)
        known.clear()
        await asyncio.sleep(2)
        assert [url for _, url in sidecars.calls][1:] == ["http://10.0.0.10:9400/metrics", None]

    async def test_a_sidecar_that_forgot_is_told_again(self, make, fleet, sidecars):
        self.assign(fleet, make.pod("p"))
        await asyncio.sleep(2)
        sidecars.told.clear()
        await asyncio.sleep(2)
        assert len(sidecars.calls) == 2

    async def test_an_older_sidecar_that_reads_no_gpu_metrics_is_left_alone(self, make, fleet, sidecars):
        sidecars.old = True
        self.assign(fleet, make.pod("p"))
        await asyncio.sleep(3)
        assert sidecars.calls == []

    async def test_a_pod_that_no_policy_governs_reads_none(self, make, fleet, sidecars, known):
        sidecars.told["p"] = known["node-a"]
        self.assign(fleet, make.pod("p"))
        await asyncio.sleep(1)
        fleet.assign("team", [make.pod("p")], {"uid-team-p": None})
        fleet.configure(None, make.compiled())
        await asyncio.sleep(2)
        assert sidecars.calls == [("p", None)]

    async def test_a_sidecar_that_cannot_be_told_is_tried_again(self, make, fleet, sidecars):
        sidecars.error = SidecarError("Unreachable", "gone")
        self.assign(fleet, make.pod("p"))
        await asyncio.sleep(1)
        sidecars.error = None
        await asyncio.sleep(2)
        assert sidecars.told["p"] is not None
