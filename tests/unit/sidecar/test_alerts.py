"""The shipped alerts name metrics that exist, with labels that they have, and hold what Prometheus wants of a rule."""

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.dcgm import GR_ENGINE_ACTIVE, Reading
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.metrics import SidecarMetrics
from equipoise_sidecar.report import Reporter

ALERTS = yaml.safe_load((Path(__file__).parents[3] / "manifests" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
GIVEN_BY_DISCOVERY = {"namespace", "pod"}


@pytest.fixture
async def exposed(line):
    """Labels by metric, of a sidecar whose GPU works."""
    dispatcher = line.dispatcher
    dispatcher.gpu.point("http://10.0.0.9:9400/metrics", dispatcher.clock())
    line.send().finish(Outcome.FINISHED, Usage(10, 10))
    reading = Reading(
        devices=1,
        utilisation=0.5,
        least_utilisation=0.5,
        busy_devices=0.5,
        sm_active=0.1,
        tensor_active=0.1,
        dram_active=0.1,
        power_watts=100.0,
        xid=0,
        fields=(GR_ENGINE_ACTIVE,),
    )
    dispatcher.observe_gpu(reading)
    store = ConfigStore(dispatcher.apply, None)
    registry = CollectorRegistry()
    registry.register(SidecarMetrics(Reporter(dispatcher, Feedback(dispatcher, None), store, "uid", "x")))
    text = generate_latest(registry).decode()
    await store.close()
    return {
        sample.name: sample.labels.keys()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@each_rule
async def test_its_metrics_are_exposed(rule, exposed):
    named = set(re.findall(r"equipoise_[a-z_]+", rule["expr"] + rule["annotations"]["description"]))
    assert named
    assert named <= exposed.keys()


@each_rule
def test_it_says_how_long_how_bad_and_where(rule):
    assert re.fullmatch(r"[0-9]+[sm]", rule["for"])
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert "$labels.pod" in rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert used <= GIVEN_BY_DISCOVERY
    kept = [set(re.split(r",\s*", group)) for group in re.findall(r"by \(([^)]*)\)", rule["expr"])]
    assert all(used <= group for group in kept)


def test_each_alert_has_a_name_of_its_own():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 3
