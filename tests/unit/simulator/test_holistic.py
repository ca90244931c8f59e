"""HF of any scheduler's run, as Equinox would have counted it."""

import pytest

from equipoise_scheduling.request import Outcome, Request
from equipoise_scheduling.schedulers.equinox import TYPICAL_SECONDS, EquinoxSettings
from equipoise_simulator.holistic import holistic_series, jain_holistic
from equipoise_simulator.record import Record
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.workload import Call, Workload


def record(name, tenant, *, arrival=0.0, dispatched=0.0, ended=TYPICAL_SECONDS, prompt=512, generated=256):
    call = Call(id=name, tenant=tenant, arrival=arrival, prompt_tokens=prompt, output_tokens=generated)
    request = Request(
        id=name, tenant=tenant, arrival=arrival, prompt_tokens=prompt, max_tokens=max(1, generated)
    )
    return Record(
        call,
        request,
        dispatched=dispatched,
        first_token=dispatched,
        ended=ended,
        outcome=Outcome.FINISHED,
        generated=generated,
    )


def total(records, tenant="a", weights=None):
    return holistic_series(records, weights or {"a": 1.0, "b": 1.0})[tenant].total(1e9)


def test_one_typical_request_counts_one_over_weight():
    assert total([record("r", "a")]) == pytest.approx(1)
    assert total([record("r", "a")], weights={"a": 4.0}) == pytest.approx(0.25)


def test_late_service_counts_less_and_only_while_it_could_be_the_head():
    settings = EquinoxSettings()
    late = record("r", "a", dispatched=30.0, ended=40.0)
    felt, spent = settings.user(512, 256, 40.0), settings.resource(512, 256, 1.0)
    assert total([late]) == pytest.approx(0.7 * felt + 0.3 * spent)
    first = record("first", "a", dispatched=28.0, ended=28.0)
    assert total([first, late]) - total([first]) == pytest.approx(
        0.7 * settings.user(512, 256, 12.0) + 0.3 * spent
    )


def test_what_never_started_counts_nothing():
    gone = record("r", "a")
    gone.dispatched = None
    assert total([gone]) == 0


def test_index_sees_who_was_served_later_at_equal_tokens():
    def run(delay):
        early = [record(f"a{at}", "a", dispatched=float(at), ended=at + 2.0) for at in range(0, 300, 2)]
        late = [
            record(f"b{at}", "b", dispatched=float(at), ended=at + 2.0 + delay) for at in range(0, 300, 2)
        ]
        return jain_holistic([*early, *late], {"a": 1.0, "b": 1.0}, [60.0, 120.0, 180.0])

    assert run(0.0) == pytest.approx(1)
    assert run(100.0) < 0.97


def test_nobody_waits_nobody_is_compared():
    assert jain_holistic([record("r", "a")], {"a": 1.0}, [60.0]) is None


def test_every_run_says_it():
    found = simulate(suite("overload"), "VTC").document()["jain_holistic"]
    assert 0.5 < found <= 1


def test_equinox_equalises_what_vtc_leaves_apart_where_requests_differ_in_shape():
    rows = sorted(
        (number / rate, tenant, prompt, output)
        for tenant, prompt, output, rate in (("reads", 1_024, 16, 5), ("writes", 32, 1_000, 1))
        for number in range(120 * rate)
    )
    calls = tuple(
        Call(id=f"{place}", tenant=tenant, arrival=arrival, prompt_tokens=prompt, output_tokens=output)
        for place, (arrival, tenant, prompt, output) in enumerate(rows)
    )
    load = Workload(name="readers and writers", calls=calls, seconds=120.0)
    vtc, equinox = (simulate(load, name).document() for name in ("VTC:average", "Equinox:mixture"))
    assert equinox["jain_holistic"] > 0.95 > 1.1 * vtc["jain_holistic"]
    # an order that lets nothing lie idle changes who is served, not how much
    assert equinox["tokens_per_second"] == pytest.approx(vtc["tokens_per_second"], rel=0.03)
