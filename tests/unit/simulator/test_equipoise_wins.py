"""Equipoise beside VTC and FCFS: more SLOs kept and shorter waits, at the same throughput and the same service."""

import pytest
from arena_like import arena_like

from equipoise_scheduling import gate
from equipoise_scheduling.gate import GateSettings
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.workload import from_trace


def kept(result, *, interactive):
    """Share of requests that kept their SLO: the interactive ones, or the batch ones."""
    verdicts = [record.slo_kept for record in result.records if (record.call.ttft_budget < 2) == interactive]
    return sum(verdicts) / len(verdicts)


@pytest.fixture(scope="module")
def overloaded():
    """Interactive beside batch requests, 1.6 times what the engine can serve, for three minutes."""
    workload = suite("mixed_slo", load=1.6).first(180)
    return {name: simulate(workload, f"{name}:average") for name in ("FCFS", "VTC", "Equipoise")}


def test_overload_leaves_more_slos_kept_of_both_kinds(overloaded):
    ours, vtc, fcfs = (overloaded[name] for name in ("Equipoise", "VTC", "FCFS"))
    assert kept(ours, interactive=True) >= kept(vtc, interactive=True) + 0.3
    assert kept(ours, interactive=True) >= kept(fcfs, interactive=True) + 0.3
    assert kept(ours, interactive=False) >= kept(vtc, interactive=False)


@pytest.mark.parametrize("without", ["headroom", "stalls"])
def test_headroom_and_prompts_one_after_another_keep_more_urgent_requests_in_time_at_no_cost(
    without, monkeypatch
):
    workload = suite("mixed_slo", load=1.6).first(180)
    whole = simulate(workload, "Equipoise:oracle")
    if without == "stalls":
        monkeypatch.setattr(gate, "STALL_SECONDS", float("inf"))
    settings = GateSettings(headroom_percent=0.0 if without == "headroom" else 5.0)
    bare = simulate(workload, "Equipoise:oracle", gate=settings)
    assert kept(whole, interactive=True) >= kept(bare, interactive=True) + 0.05
    assert kept(whole, interactive=False) >= kept(bare, interactive=False) - 0.01
    assert whole.tokens_per_second >= 0.995 * bare.tokens_per_second


def total(result):
    """Service delivered while requests arrived."""
    return sum(result.service(tenant) for tenant in result.series)


def test_throughput_is_the_same(overloaded):
    assert total(overloaded["Equipoise"]) >= 0.995 * total(overloaded["VTC"])


def test_tenants_get_the_same_share_as_under_vtc(overloaded):
    ours, vtc = overloaded["Equipoise"], overloaded["VTC"]
    for tenant in vtc.series:
        share = ours.service(tenant) / total(ours)
        assert share == pytest.approx(vtc.service(tenant) / total(vtc), rel=0.05)
    assert ours.bound.met


def test_lengths_known_to_half_shorten_the_mean_wait_without_any_slo():
    workload = from_trace(arena_like(seed=0)).first(300)
    vtc, ours = (simulate(workload, name) for name in ("VTC:noisy", "Equipoise:noisy"))
    waits = [result.document()["ttft_seconds"]["mean"] for result in (vtc, ours)]
    assert waits[1] <= 0.8 * waits[0]
    assert ours.tokens_per_second >= 0.98 * vtc.tokens_per_second
    assert ours.difference().mean <= 1.1 * vtc.difference().mean
