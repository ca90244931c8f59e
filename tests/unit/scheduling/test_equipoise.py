"""Equipoise: skipping, parameters, and what outlives a restart or a change of algorithm."""

import json

import pytest
from equipoise_scene import deliver, equipoise, send, served
from scheduling_harness import drain, finish

from equipoise_api.policy import Algorithm
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings
from equipoise_scheduling.schedulers.vtc import VTC


class TestSkipping:
    def fits_below(self, tokens):
        return lambda request: request.prompt_tokens < tokens

    def test_other_heads_in_the_band_go_where_the_chosen_one_does_not_fit(self):
        scheduler = equipoise()
        send(scheduler, "big", "a", prompt=900, ttft_budget=1.0)
        send(scheduler, "behind it", "a", prompt=10, ttft_budget=2.0)
        send(scheduler, "small", "b", prompt=10, ttft_budget=60.0)
        assert scheduler.next(0.0, self.fits_below(500)).id == "small"
        assert scheduler.next(0.0, self.fits_below(500)) is None

    def test_no_more_are_tried_than_skips_and_the_least_counter_is_among_them(self):
        for skips, want in ((0, "3"), (1, "3l"), (2, "32l"), (9, "3210l")):
            scheduler = equipoise(skips=skips)
            for place, tenant in enumerate("0123"):
                send(scheduler, tenant, tenant, ttft_budget=10.0 - place)
            send(scheduler, "l", "least", ttft_budget=60.0)
            for tenant in "0123":
                scheduler.add_service(tenant, 50, 0.0)
            asked = []
            assert scheduler.next(0.0, lambda request, asked=asked: asked.append(request.id)) is None
            assert "".join(asked) == want

    def test_big_head_is_passed_by_no_more_than_the_band(self):
        scheduler = equipoise(band=300)
        send(scheduler, "big", "a", prompt=900, ttft_budget=20.0)
        for number in range(20):
            send(scheduler, f"{number}", "b", ttft_budget=60.0)
        passed = 0
        while scheduler.next(0.0, self.fits_below(500)) is not None:
            passed += 1
        assert passed == 4
        assert served(scheduler, most=1) == ["big"]

    def test_without_a_band_nobody_is_skipped(self):
        scheduler = equipoise(band=0)
        send(scheduler, "big", "a", prompt=900)
        send(scheduler, "small", "b", prompt=10)
        assert scheduler.next(0.0, self.fits_below(500)) is None


def test_reads_its_parameters_from_the_policy():
    algorithm = Algorithm.model_validate(
        {
            "type": "Equipoise",
            "equipoise": {
                "bandTokens": 7,
                "ordering": "FIFO",
                "stretch": 3,
                "overdueEvery": 9,
                "skips": 2,
            },
        }
    )
    settings = EquipoiseSettings.of(algorithm)
    assert (settings.band, settings.ordering, settings.stretch) == (7, "FIFO", 3)
    assert (settings.overdue_every, settings.skips) == (9, 2)
    default = EquipoiseSettings.of(Algorithm(type="Equipoise"))
    assert default == EquipoiseSettings()


@pytest.mark.parametrize(
    ("field", "value"), [("band", -1), ("stretch", -0.5), ("overdue_every", 1), ("skips", -1)]
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} must be at least"):
        EquipoiseSettings(**{field: value})


def test_restart_keeps_virtual_time_pace_and_what_is_typical():
    first = equipoise(band=None)
    for number in range(50):
        deliver(first, send(first, str(number), "a", prompt=40) and drain(first)[0])
    second = equipoise(band=None)
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert second.snapshot() == first.snapshot()
    assert second.band_units == first.band_units
    send(second, "new", "b")
    assert second.shares(0.0)[1].counter * SCALE >= first._virtual_time


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"virtual_time": -1}, "state.virtual_time must be a number not below 0"),
        ({"since_overdue": 1.5}, "state.since_overdue must be a number"),
        ({"typical": None}, "state.typical must be a number"),
        ({"pace": []}, "pace must be an object"),
        ({"pace": {"prompt_seconds": 1, "step_seconds": "x"}}, "pace.step_seconds must be a number"),
    ],
)
def test_state_of_a_snapshot_that_makes_no_sense_is_refused_by_name(change, complaint):
    data = equipoise().snapshot()
    with pytest.raises(ValueError, match=complaint):
        equipoise().restore({**data, "state": data["state"] | change})


def test_history_of_vtc_is_its_own():
    old = VTC()
    send(old, "1", "a")
    finish(old, drain(old), 5)
    new = carry_over(old, equipoise(), 1.0)
    assert {row.tenant: row.counter for row in new.shares(1.0)} == {"a": 110}


def test_one_endless_interaction_does_not_cost_each_dispatch_a_look_at_all_that_waits(monkeypatch):
    looks = 0
    watch = Equipoise._watch

    def count(self, request):
        nonlocal looks
        looks += 1
        watch(self, request)

    scheduler = equipoise()
    waiting = 600
    for number in range(waiting):
        send(scheduler, str(number), "a", interaction="endless", call_index=2)
    monkeypatch.setattr(Equipoise, "_watch", count)
    assert len(served(scheduler)) == waiting
    assert looks <= 66 * waiting
