"""The API's policy becomes settings; a new policy becomes the same scheduler or its successor."""

from typing import get_args

import pytest
from scheduling_harness import drain, make_request

from equipoise_api.policy import (
    Algorithm,
    AlgorithmType,
    Capacity,
    Cost,
    Prediction,
    Queue,
    VtcParameters,
)
from equipoise_api.tenant import TenantLimits
from equipoise_scheduling.batching import BatchingLimits
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.registry import (
    SCHEDULERS,
    create,
    gate_settings,
    reconfigured,
    scheduler_settings,
    tenant_settings,
)
from equipoise_scheduling.schedulers.vtc import VTCSettings


def settings_of(kind, **fields):
    return scheduler_settings(Algorithm(type=kind, **fields), Cost(), Prediction(), Queue())


def test_every_algorithm_of_the_api_has_its_scheduler_and_settings():
    assert set(SCHEDULERS) == set(get_args(AlgorithmType))
    for kind in SCHEDULERS:
        assert create(kind, settings_of(kind), {}).algorithm == kind


def test_percents_become_prices_and_limits_become_limits():
    settings = scheduler_settings(
        Algorithm(type="VTC", vtc=VtcParameters(charge="OnDelivery")),
        Cost(input_percent=50, cached_input_percent=10, output_percent=400),
        Prediction(type="None"),
        Queue(max_requests=7),
    )
    assert isinstance(settings, VTCSettings)
    assert (settings.cost.input, settings.cost.cached, settings.cost.output) == (0.5, 0.1, 4.0)
    assert (settings.prediction.kind, settings.max_queued, settings.charge_predicted) == ("None", 7, False)
    assert settings_of("VTC").charge_predicted is True
    assert tenant_settings(3, TenantLimits(max_in_flight=2, max_queued=5)) == TenantSettings(
        weight=3.0, max_in_flight=2, max_queued=5
    )
    assert gate_settings(Capacity()).batching == BatchingLimits()
    target = gate_settings(Capacity(inter_token_milliseconds=50, prefill_tokens=4096)).batching
    assert target == BatchingLimits(inter_token_seconds=0.05, prefill_tokens=4096)
    gate = gate_settings(Capacity(gate="Reserve", kv_utilisation_percent=80))
    assert (gate.kind, gate.utilisation_percent) == ("reserve", 80.0)


def test_same_algorithm_is_reconfigured_and_another_takes_over():
    scheduler = create("VTC", settings_of("VTC"), {})
    scheduler.enqueue(make_request("r1", "a"), 0.0)
    assert reconfigured(scheduler, "VTC", settings_of("VTC"), {}, 0.0) is scheduler
    successor = reconfigured(scheduler, "FCFS", settings_of("FCFS"), {"a": TenantSettings(weight=4)}, 0.0)
    assert successor.algorithm == "FCFS"
    assert successor.shares(0.0)[0].weight == 4
    assert [r.id for r in drain(successor)] == ["r1"]


def test_wrong_settings_leave_the_old_scheduler_as_it_was():
    scheduler = create("FCFS", settings_of("FCFS"), {})
    scheduler.enqueue(make_request("r1", "a"), 0.0)
    with pytest.raises(TypeError, match="VTC takes VTCSettings, not SchedulerSettings"):
        reconfigured(scheduler, "VTC", SchedulerSettings(), {}, 0.0)
    assert scheduler.queued == 1
    assert len(drain(scheduler)) == 1
