"""Every metric that is exposed is documented, and every one that rules or documents name is exposed, with those labels."""

import re
from pathlib import Path

import exposed
import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "metrics.md"
ALERTS = ROOT / "manifests" / "alerts.yaml"
RUNBOOK = (ROOT / "docs" / "alerts.md").read_text()
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ALERTS])
PACKAGES = {path.name for path in ROOT.glob("*/equipoise_*")} | {"equipoise_cluster"}
BY_DISCOVERY = {"namespace", "pod", "job"}
HISTOGRAM = ("_bucket", "_sum", "_count")
METRIC = re.compile(r"(equipoise_[a-z_]*[a-z])(_(?=[^a-z_])|\b)(?:\{([^}]*)\})?")


@pytest.fixture(scope="module")
def known():
    return exposed.families(exposed.sidecar()) | exposed.families(exposed.operator())


def family(known, name):
    for suffix in HISTOGRAM:
        found = known.get(name.removesuffix(suffix))
        if name.endswith(suffix) and found is not None and found.type == "histogram":
            return found
    return known.get(name)


def unknown(text, known):
    """What a text names and nobody exposes: metrics, prefixes of them (`equipoise_gate_`), and labels."""
    for name, prefix, labels in METRIC.findall(text):
        if name in PACKAGES:
            continue
        if prefix:
            if not any(each.startswith(f"{name}_") for each in known):
                yield f"{name}_"
            continue
        found = family(known, name)
        if found is None:
            yield name
            continue
        for part in filter(None, labels.split(",")):
            label = re.split(r"=|!|~", part)[0].strip()
            if label not in found.labels | BY_DISCOVERY:
                yield f"{name}{{{label}}}"


def test_every_metric_has_something_to_say(known):
    assert [name for name, each in known.items() if not each.samples] == []
    assert [name for name, each in known.items() if not re.fullmatch(r"[A-Z0-9].*\.", each.help)] == []


def test_the_page_lists_what_is_exposed_and_nothing_else(known):
    rows = re.findall(r"^\| `(equipoise_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(listed) == len(rows)
    assert listed == {name: (each.type, set(each.labels)) for name, each in known.items()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_documents_name_is_exposed(path, known):
    assert list(unknown(path.read_text(), known)) == []


def test_what_nobody_exposes_is_found(known):
    text = "equipoise_redy `equipoise_gaet_` equipoise_requests_total{tenat,outcome} equipoise_wait_seconds_bucket"
    assert list(unknown(text, known)) == [
        "equipoise_redy",
        "equipoise_gaet_",
        "equipoise_requests_total{tenat}",
    ]


@each_rule
def test_a_rule_takes_rates_of_counters_and_values_of_gauges(rule, known):
    text = re.sub(r"\s+", " ", rule["expr"])
    rated = re.findall(r"(?:rate|increase)\( ?(equipoise_\w+)(?:\{[^}]*\})?\[\d+m\] ?\)", text)
    named = re.findall(r"equipoise_\w+", text)
    assert named
    for name in named:
        assert (family(known, name).type == "counter") == (name in rated), name
    kept = [set(group.split(", ")) for group in re.findall(r"(?:by|on) \(([^)]*)\)", text)]
    labels = set().union(*(family(known, name).labels for name in named)) | BY_DISCOVERY
    assert all(group <= labels for group in kept)


@each_rule
def test_a_rule_says_how_long_how_bad_where_and_what_to_do(rule):
    name, severity, annotations = rule["alert"], rule["labels"]["severity"], rule["annotations"]
    assert severity in {"info", "warning", "critical"}
    minutes = int(re.fullmatch(r"(\d+)m", rule["for"])[1])
    assert annotations["description"].endswith(".")
    assert "{{" not in annotations["description"]
    used = set(re.findall(r"\$labels\.(\w+)", annotations["summary"]))
    kept = [set(group.split(", ")) for group in re.findall(r"by \(([^)]*)\)", rule["expr"])]
    assert all(used <= group for group in kept)
    assert used or not kept or "operator" in rule["expr"]
    assert annotations["runbook"] == f"docs/alerts.md#{name.lower()}"
    time = f"{minutes} minute{'s' if minutes > 1 else ''}"
    assert f"## {name}\n`{severity}`, after {time}. " in RUNBOOK


def test_the_runbook_knows_no_other_alerts():
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_the_charts_copy_of_the_rules_is_the_same():
    copy = ROOT / "charts" / "equipoise" / "files" / "alerts.yaml"
    assert copy.read_text() == ALERTS.read_text()
