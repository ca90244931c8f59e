"""What a running sidecar answers at /metrics is what the documents list, and Prometheus has nothing against it."""

import subprocess

import exposed
import pytest

from equipoise_api.sidecar_config import SidecarConfig

CONFIG = SidecarConfig.model_validate(
    {
        "mode": "Enforce",
        "policy": {"namespace": "models", "name": "fair", "uid": "policy-uid", "generation": 1},
        "trustedHeader": {"name": "X-Tenant", "peers": ["127.0.0.0/8"]},
        "algorithm": {"type": "Equinox"},
        "shadow": [{"type": "VTC"}],
        "tenants": [
            {"id": "team/blue", "headerValues": ["blue"], "slo": {"ttftMilliseconds": 5000}},
            {"id": "team/red", "headerValues": ["red"]},
        ],
    }
)


@pytest.fixture
def known():
    return exposed.families(exposed.sidecar())


def complaints(promtool, text):
    answer = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    return answer.stdout + answer.stderr


async def test_a_running_sidecars_metrics_are_the_documented_ones(known, sidecar, promtool):
    status, _ = await sidecar.put(CONFIG, 1, 1)
    assert status == 200
    await sidecar.until(sidecar.ready)
    for tenant in ("blue", "red", None):
        assert (await sidecar.chat(tenant))[0] == 200
    _, text = await sidecar.health("/metrics")
    assert complaints(promtool, text) == ""
    seen = exposed.families(text)
    assert seen.keys() <= known.keys()
    missing = {name for name in known.keys() - seen.keys() if not name.startswith("equipoise_gpu_")}
    assert missing <= {"equipoise_equinox_utilisation_error_ratio", "equipoise_gate_step_seconds"}, (
        "without a GPU, and with nothing in flight"
    )
    for name, family in seen.items():
        assert (family.type, family.help) == (known[name].type, known[name].help)
        assert family.labels <= known[name].labels
    assert {labels["tenant"] for labels in tenants(seen)} == {"team/blue", "team/red", "default"}


def tenants(seen):
    return [dict(pairs) for _, pairs, _ in seen["equipoise_requests_total"].samples]
