"""Three phases side by side: what is derived, shown and claimed."""

import json
from collections import Counter

import pytest
from rich.console import Console

from equipoise_demo import report
from equipoise_demo.claims import claims
from equipoise_demo.counted import Counted
from equipoise_demo.outcome import Outcome, measure
from equipoise_demo.phase import Phase

SECONDS = 60.0


def phase(algorithm, heavy, light, *, kept=0, failed=0, gpu_percent=90):
    """A minute in which the sidecars served two tenants that asked for 1,000 weighted tokens a second each."""
    requests = [
        Outcome("heavy", 0.0, 30_000, 15_000, first_token=2.0, end=50.0, tokens=[(2.0, 100)]),
        Outcome(
            "light", 0.0, 30_000, 15_000, first_token=9.0, end=50.0, tokens=[(9.0, 80)], interactive=True
        ),
    ]
    requests[1].error = "cut" if failed else None
    service = Counter(heavy=heavy * SECONDS, light=light * SECONDS)
    counted = Counted(service, Counter(), Counter(), Counter(heavy=4_000, light=1_000), waiting=7)
    ended = Counted(service, Counter(light=kept), Counter(light=10))
    status = {
        "load": {} if gpu_percent is None else {"gpuPercent": gpu_percent},
        "conditions": [{"type": "FairnessBoundMet", "status": "True"}],
    }
    policy = {"spec": {"algorithm": {"type": algorithm}}, "status": status}
    return Phase(measure(algorithm, requests, SECONDS, heavy + light), counted, ended, policy)


@pytest.fixture
def phases():
    return [
        phase("FCFS", 900.0, 300.0),
        phase("VTC", 620.0, 600.0, kept=2),
        phase("Equipoise", 610.0, 600.0, kept=9),
    ]


def failing(found):
    return [claim.text.partition(":")[0] for claim in found if not claim.held and claim.decides]


def test_a_phase_judges_by_the_sidecars_counts(phases):
    fcfs = phases[0]
    assert fcfs.shares == {"heavy": pytest.approx(1.5), "light": pytest.approx(0.5)}
    assert fcfs.jain == pytest.approx(2.0**2 / (2 * (1.5**2 + 0.5**2)))
    assert (fcfs.rate, fcfs.kept, phases[2].kept) == (pytest.approx(1200), 0.0, 0.9)
    assert fcfs.conditions == {"FairnessBoundMet": "True", "GPUMetricsStale": "Unknown"}


def test_what_is_seen_is_claimed(phases):
    found = claims(phases, own=True)
    assert failing(found) == []
    assert len(found) == 5
    assert any("20 % → 90 %" in claim.text for claim in found)


def test_fairness_that_is_not_seen_fails_on_any_traffic(phases):
    same = phase("VTC", 900.0, 300.0, kept=2)
    for own in (True, False):
        assert failing(claims([phases[0], same, phases[2]], own=own)) == ["VTC is fairer than FCFS"]


def test_a_little_fairness_is_too_little_on_the_demos_own_traffic(phases):
    little = phase("VTC", 870.0, 330.0, kept=2)
    assert failing(claims([phases[0], little, phases[2]], own=True)) == ["VTC is fairer than FCFS"]
    assert failing(claims([phases[0], little, phases[2]], own=False)) == []


def test_promises_that_are_not_kept_fail_and_other_traffic_need_not_keep_them(phases):
    none = phase("Equipoise", 610.0, 600.0, kept=3)
    assert failing(claims([*phases[:2], none], own=True)) == ["Equipoise keeps more promises than VTC"]
    assert failing(claims([*phases[:2], none], own=False)) == []


def test_promises_kept_at_the_cost_of_throughput_are_no_gain(phases):
    slow = phase("Equipoise", 500.0, 490.0, kept=9)
    assert failing(claims([*phases[:2], slow], own=True)) == ["at no less service"]


def test_a_lost_request_fails(phases):
    lossy = phase("Equipoise", 610.0, 600.0, kept=9, failed=1)
    (text,) = failing(claims([*phases[:2], lossy], own=False))
    assert "1 failed" in text


def test_a_report_has_tables_and_a_plot(phases, tmp_path):
    files = report.write(tmp_path, phases, {"engines": "three", "checked": ["held: x"]}, 1.0)
    assert [file.name for file in files] == ["result.json", "result.md", "result.png"]
    document = json.loads(files[0].read_text())
    assert document["facts"]["engines"] == "three"
    fcfs, vtc, equipoise = document["results"]
    assert [each["algorithm"] for each in document["results"]] == ["FCFS", "VTC", "Equipoise"]
    assert (vtc["promises_kept"], equipoise["promises_kept"], equipoise["promises_judged"]) == (0.2, 0.9, 10)
    assert {row["tenant"]: row["service"] for row in fcfs["tenants"]} == {"heavy": 900, "light": 300}
    assert {row["tenant"]: row["promises_kept"] for row in fcfs["tenants"]} == {"heavy": None, "light": 0}
    markdown = files[1].read_text()
    assert "| light | 1000 | 605 | 300 → 600 → 600 | 0 → 20 → 90 | 1 → 1 → 1 |" in markdown
    assert "| interactive: first token within 1 s | 0 % | 20 % | 90 % |" in markdown
    png = files[2].read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_the_terminals_tables_fit_80_columns():
    phases = [
        phase("FCFS", 1900.0, 300.0),
        phase("VTC", 1620.0, 1600.0, kept=10),
        phase("Equipoise", 1610.0, 1600.0, kept=10),
    ]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 - as long as the test
    for table in report.tables(phases, 1.0):
        console.print(table)
    text = console.export_text()
    assert all(word in text for word in ("FCFS", "VTC", "Equipoise", "heavy", "1900 → 1620 → 1610", "100 %"))
    assert "…" not in text


def test_without_gpu_metrics_the_report_has_no_row_for_them(phases):
    without = [phase("FCFS", 900.0, 300.0, gpu_percent=None)] * 3
    names = {row[0] for row in report.summary_rows(without, 1.0)}
    assert "GPUMetricsStale" not in names
    assert "GPUMetricsStale" in {row[0] for row in report.summary_rows(phases, 1.0)}
