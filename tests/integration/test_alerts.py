"""The shipped alerts through Prometheus' own promtool: they parse, fire in the situation that each is for, and not in health.

The healthy world is what a sidecar and two operators really expose; a situation changes some of its series, so an alert
that reads what nobody exposes cannot pass.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import exposed
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "manifests" / "alerts.yaml"
RULES = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}
MINUTES = 120
"""How long the world lasts, a sample a minute."""
SIDECAR = {"namespace": "ml", "pod": "vllm-0", "job": "sidecars"}
LEADER = {"namespace": "equipoise", "pod": "equipoise-0", "job": "operator"}
FOLLOWER = LEADER | {"pod": "equipoise-1"}
POD = {"namespace": "ml", "pod": "vllm-0"}
OPERATOR = {"namespace": "equipoise", "pod": "equipoise-0"}


@dataclass(frozen=True)
class Situation:
    """What is wrong, and how the alert names it."""

    alert: str
    changes: dict[str, str | None]
    """Series by selector, and their new samples in promtool's notation; None: gone."""
    labels: dict[str, str]
    summary: str
    after: int = 0
    """Minutes that a rate needs to rise above its threshold."""


def always(value):
    return f"{value}x{MINUTES}"


def rising(by):
    return f"0+{by}x{MINUTES}"


SITUATIONS = [
    Situation(
        "EquipoiseSidecarNotReady",
        {"equipoise_ready": always(0)},
        POD,
        "vllm-0 has not been ready for 15 minutes",
    ),
    Situation(
        "EquipoiseEngineUnreachable",
        {"equipoise_engine_reachable": always(0)},
        POD,
        "Requests wait at vllm-0 for an engine that does not answer",
    ),
    Situation(
        "EquipoiseFairnessBoundBroken",
        {"equipoise_fairness_bound_met": always(0)},
        POD,
        "Two backlogged tenants at vllm-0 differed by more than the proof allows",
    ),
    Situation(
        "EquipoiseConfigRefused",
        {"equipoise_config_refused": always(1)},
        POD,
        "vllm-0 refuses the operator's configuration and goes on with the one before",
    ),
    Situation(
        "EquipoiseCertificateExpiring",
        {"equipoise_certificate_expiry_timestamp_seconds": always(6 * 3600)},
        POD,
        "The certificate of vllm-0 ends in 5h 44m 0s and is not renewed",
    ),
    Situation(
        "EquipoiseStateNotWritten",
        {"equipoise_state_write_errors_total": rising(1)},
        POD,
        "vllm-0 cannot write its state directory",
    ),
    Situation(
        "EquipoiseEngineSignalStale",
        {"equipoise_engine_signal_stale": always(1)},
        POD,
        "The engine of vllm-0 answers and its metrics do not come",
    ),
    Situation(
        "EquipoiseShadowOff",
        {'equipoise_shadow_running{algorithm="VTC"}': always(0)},
        POD | {"algorithm": "VTC"},
        "The shadow scheduler VTC at vllm-0 was switched off",
    ),
    Situation(
        "EquipoiseRequestsTurnedAway",
        {
            'equipoise_rejections_total{tenant="team/blue"}': None,
            'equipoise_requests_total{tenant="team/blue"}': rising(60),
            "+equipoise_rejections_total": f'{{reason="queue-full",tenant="team/blue"}} {rising(1)}',
        },
        POD,
        "vllm-0 turns requests away because its queue is full or too slow",
    ),
    Situation(
        "EquipoiseSloMissed",
        {
            'equipoise_slo_requests_total{kept="true"}': rising(8),
            'equipoise_slo_requests_total{kept="false"}': rising(2),
        },
        {"namespace": "ml", "tenant": "team/blue"},
        "team/blue misses its SLO in 20% of its requests",
        after=5,
    ),
    Situation(
        "EquipoisePreemptions",
        {
            "equipoise_engine_preemptions_total": rising(6),
            'equipoise_requests_total{tenant="team/blue"}': rising(60),
        },
        POD,
        "The engine of vllm-0 preempts more than one request in twenty",
    ),
    Situation(
        "EquipoiseEngineBypassed",
        {"equipoise_gate_surplus_tokens": always(2000)},
        POD,
        "The engine of vllm-0 holds 2k KV tokens that did not come through the sidecar",
    ),
    Situation(
        "EquipoiseGpuIdleWhileRequestsWait",
        {"equipoise_gpu_utilisation_ratio": always(0.02)},
        POD,
        "Requests wait at vllm-0 while its GPUs are 2% busy",
    ),
    Situation(
        "EquipoiseGpuMetricsStale",
        {"equipoise_gpu_metrics_stale": always(1), "equipoise_gpu_utilisation_ratio": None},
        POD,
        "No fresh GPU metrics at vllm-0",
    ),
    Situation("EquipoiseGpuXid", {"equipoise_gpu_xid": always(79)}, POD, "A GPU of vllm-0 reported XID 79"),
    Situation(
        "EquipoiseOperatorAbsent",
        {"equipoise_operator_leading": None},
        {},
        "No operator of Equipoise is seen",
    ),
    Situation(
        "EquipoiseOperatorLeaders",
        {'equipoise_operator_leading{pod="equipoise-1"}': always(1)},
        {"namespace": "equipoise", "job": "operator"},
        "2 replicas of the operator in equipoise lead, and one should",
    ),
    Situation(
        "EquipoiseSidecarsBehind",
        {'equipoise_operator_sidecars{pod="equipoise-0",state="all"}': always(4)},
        OPERATOR,
        "3 sidecars have lacked the present configuration for 15 minutes",
    ),
    Situation(
        "EquipoiseSidecarsUnheard",
        {'equipoise_operator_sidecars{pod="equipoise-0",state="failing"}': always(2)},
        OPERATOR,
        "2 sidecars have not answered the operator as they should for 15 minutes",
    ),
    Situation(
        "EquipoiseOperatorWorkFails",
        {'equipoise_operator_work_failures_total{pod="equipoise-0"}': rising(1)},
        OPERATOR,
        "The operator equipoise-0 fails at compiling or placing policies again and again",
        after=5,
    ),
]

QUIET = {
    "requests wait and the GPU works": {'equipoise_queued_requests{tenant="team/blue"}': always(50)},
    "the GPU is idle and nobody waits": {
        "equipoise_gpu_utilisation_ratio": always(0),
        "equipoise_queued_requests": always(0),
    },
    "a queue that forms and goes": {
        "equipoise_gpu_utilisation_ratio": always(0.02),
        "equipoise_queued_requests": f"0x10 5x1 0x{MINUTES}",
    },
    "no GPU": {"equipoise_gpu_utilisation_ratio": None, "equipoise_gpu_metrics_stale": None},
    "an engine that restarts with nobody waiting": {
        "equipoise_engine_reachable": always(0),
        "equipoise_queued_requests": always(0),
    },
    "a pod that drains": {"equipoise_ready": always(0), "equipoise_draining": always(1)},
    "a scheduler without a bound": {
        "equipoise_fairness_bounded": always(0),
        "equipoise_fairness_bound_met": None,
    },
    "no shadow": {"equipoise_shadow_running": None},
    "limits that work": {
        "+equipoise_rejections_total": f'{{reason="rate-limited",tenant="team/blue"}} {rising(100)}'
    },
    "one SLO in twenty missed": {
        'equipoise_slo_requests_total{kept="true"}': rising(95),
        'equipoise_slo_requests_total{kept="false"}': rising(5),
    },
    "one of two requests missed its SLO": {
        'equipoise_slo_requests_total{kept="true"}': f"0x30 1x{MINUTES}",
        'equipoise_slo_requests_total{kept="false"}': f"0x30 1x{MINUTES}",
    },
    "a preemption now and then": {
        "equipoise_engine_preemptions_total": rising(1),
        'equipoise_requests_total{tenant="team/blue"}': rising(60),
    },
    "others use a little of the cache": {"equipoise_gate_surplus_tokens": always(300)},
    "the leader changes": {
        'equipoise_operator_leading{pod="equipoise-0"}': f"1x30 0x{MINUTES}",
        'equipoise_operator_leading{pod="equipoise-1"}': f"0x31 1x{MINUTES}",
    },
    "a rollout": {'equipoise_operator_sidecars{pod="equipoise-0",state="synced"}': f"1x30 0x5 1x{MINUTES}"},
    "a compile that failed once": {
        'equipoise_operator_work_failures_total{pod="equipoise-0"}': f"0x30 1x{MINUTES}"
    },
}


@pytest.fixture(scope="module")
def world():
    """Series of a healthy installation: (name, labels) and a constant."""
    series = {}
    for text, places in ((exposed.sidecar(), [SIDECAR]), (exposed.operator(), [LEADER, FOLLOWER])):
        for family in exposed.families(text).values():
            for place in places:
                for name, labels, value in family.samples:
                    follows = name == "equipoise_operator_leading" and place is FOLLOWER
                    series[name, frozenset((dict(labels) | place).items())] = always(0 if follows else value)
    return series


def changed(world, changes):
    """The world with some of its series other ones. A selector that finds none fails."""
    series = dict(world)
    for selector, samples in changes.items():
        if selector.startswith("+"):  # one more series, of a metric and labels that are exposed
            labels, _, new = samples.partition("} ")
            added = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            same = [dict(known) for name, known in world if name == selector[1:]]
            assert any(added.keys() <= known.keys() for known in same), selector
            series[selector[1:], frozenset((added | SIDECAR).items())] = new
            continue
        name, _, matchers = selector.partition("{")
        wanted = set(re.findall(r'(\w+)="([^"]*)"', matchers))
        found = [key for key in world if key[0] == name and wanted <= key[1]]
        assert found, f"nobody exposes {selector}"
        for key in found:
            if samples is None:
                del series[key]
            else:
                series[key] = samples
    return series


def document(rules, series, checks, alerts=()):
    def selector(name, labels):
        return name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels)) + "}"

    return {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": selector(name, labels), "values": values}
                    for (name, labels), values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"count by (alertname) ({which})",
                        "eval_time": f"{minute}m",
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names],
                    }
                    for minute, which, names in checks
                ],
                "alert_rule_test": list(alerts),
            }
        ],
    }


FIRING = 'ALERTS{alertstate="firing"}'


def run(promtool, folder, content):
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(content))
    return subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)


def story(situation, world, rules=ALERTS):
    rule = RULES[situation.alert]
    minutes = int(rule["for"].removesuffix("m"))
    at = minutes + situation.after + 1
    annotations = rule["annotations"] | {"summary": situation.summary}
    expected = {
        "exp_labels": situation.labels | {"severity": rule["labels"]["severity"]},
        "exp_annotations": annotations,
    }
    return document(
        rules,
        changed(world, situation.changes),
        [(minutes - 1, FIRING, []), (at, FIRING, [situation.alert]), (MINUTES, FIRING, [situation.alert])],
        [{"eval_time": f"{at}m", "alertname": situation.alert, "exp_alerts": [expected]}],
    )


def test_prometheus_takes_the_rules(promtool):
    answer = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", ALERTS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{len(RULES)} rules found" in answer.stdout


def test_each_alert_has_a_situation():
    assert [situation.alert for situation in SITUATIONS] == list(RULES)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.alert)
def test_an_alert_fires_in_its_situation_and_no_other_does(promtool, world, tmp_path, situation):
    answer = run(promtool, tmp_path, story(situation, world))
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("changes", [{}, *QUIET.values()], ids=["health", *QUIET])
def test_no_alert_fires_where_nothing_is_wrong(promtool, world, tmp_path, changes):
    checks = [(minute, FIRING, []) for minute in range(1, MINUTES, 4)]
    answer = run(promtool, tmp_path, document(ALERTS, changed(world, changes), checks))
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("rule", "flaw"),
    [("(equipoise_ready) == 0", "(equipoise_ready) < 0"), ("for: 15m", "for: 2m")],
    ids=["a condition that never holds", "a wait that is too short"],
)
def test_a_flawed_rule_is_caught(promtool, world, tmp_path, rule, flaw):
    text = ALERTS.read_text()
    assert rule in text
    flawed = tmp_path / "alerts.yaml"
    flawed.write_text(text.replace(rule, flaw, 1))
    answer = run(promtool, tmp_path, story(SITUATIONS[0], world, flawed))
    assert answer.returncode == 1
    assert "EquipoiseSidecarNotReady" in answer.stdout + answer.stderr


@pytest.mark.parametrize("text", [exposed.sidecar, exposed.operator], ids=["sidecar", "operator"])
def test_prometheus_has_nothing_against_the_metrics(promtool, text):
    answer = subprocess.run(
        [promtool, "check", "metrics"], input=text(), capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_the_chart_brings_the_rules_to_those_who_ask(binaries):
    def rules(*values):
        chart = ROOT / "charts" / "equipoise"
        text = subprocess.check_output([binaries["helm"], "template", "x", chart, *values], text=True)
        return [each for each in yaml.safe_load_all(text) if each["kind"] == "PrometheusRule"]

    assert rules() == []
    (rule,) = rules("--set=alerts.enabled=true,alerts.labels.release=prometheus")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())
