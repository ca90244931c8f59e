"""The capacity gate, by its formulas."""

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.gate import Gate, GateSettings
from equipoise_scheduling.kv_plan import Held, future_peak, held_tokens
from equipoise_scheduling.request import Reason


def gate(pool=1000, block=1, **settings):
    made = Gate(GateSettings(**({"utilisation_percent": 100.0, "headroom_percent": 0.0} | settings)))
    made.set_pool(pool, block)
    return made


def request(name, prompt, *, predicted=None, max_tokens=100, **fields):
    return make_request(name, prompt=prompt, max_tokens=max_tokens, predicted_tokens=predicted, **fields)


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((10, 1, 1, 0, 16), 16),
        ((16, 1, 1, 0, 16), 16),
        ((16, 1, 1, 1, 16), 32),
        ((40, 1, 1, 9, 16), 64),
        ((40, 1, 4, 0, 16), 32 + 4 * 16),
        ((40, 1, 4, 9, 16), 32 + 4 * 32),
        ((80, 2, 2, 0, 16), 2 * 48),
        ((7, 1, 1, 5, 1), 12),
    ],
)
def test_whole_blocks_are_held_and_a_prompts_full_ones_shared_by_its_sequences(shape, want):
    prompt, prompts, sequences, generated, block = shape
    assert held_tokens(prompt, prompts, sequences, generated, block) == want


def test_future_peak_is_the_fullest_moment_just_before_somebody_ends():
    made = gate()
    made.start(request("long", 100, predicted=50))
    made.start(request("short", 300, predicted=10))
    # When "short" ends: 100 + 10 + 300 + 10; when "long" ends: 100 + 50.
    assert made.peak == 420
    made.start(request("longer", 10, predicted=90))
    assert made.peak == max(300 + 10 + 100 + 10 + 10 + 10, 10 + 50 + 100 + 50, 10 + 90)


def test_sequences_of_a_request_grow_together():
    made = gate()
    made.start(request("r", 100, predicted=20, sequences=3))
    assert made.peak == 100 + 3 * 20
    assert made.outstanding == 60
    assert made.sequences == 3


def test_peak_admits_what_reserve_would_not():
    peak, reserve = gate(), gate(kind="reserve")
    for made in (peak, reserve):
        made.start(request("first", 100, predicted=100, max_tokens=800))
    candidate = request("second", 100, predicted=100, max_tokens=800)
    assert peak.fits(candidate, 0.0)
    assert not reserve.fits(candidate, 0.0)
    assert reserve.fits(request("third", 50, max_tokens=50), 0.0)


def test_candidate_is_counted_among_those_in_flight_at_its_place():
    made = gate(pool=1000)
    made.start(request("a", 400, predicted=100, max_tokens=600))
    # The candidate outlives "a": peak when "a" ends = 400 + 100 + 300 + 100 = 900, alone at its end 300 + 390.
    assert made.fits(request("b", 300, predicted=390, max_tokens=600), 0.0)
    # It ends first: 400 + 20 + 560 + 20 = 1000 fits, one token more does not.
    assert made.fits(request("b", 560, predicted=20), 0.0)
    assert not made.fits(request("b", 561, predicted=20), 0.0)


def test_outputs_to_come_sum_to_at_most_the_pool():
    made = gate(pool=1000)
    made.start(request("a", 1, predicted=900, max_tokens=900))
    assert not made.fits(request("b", 1, predicted=101, max_tokens=200), 0.0)
    made.progress(made._held["a"].request, 1, 850)
    assert made.fits(request("b", 1, predicted=101, max_tokens=200), 0.0)


@pytest.mark.parametrize(
    ("predicted", "max_tokens", "generated", "want"),
    [
        (50, 100, 0, 50),
        (50, 100, 49, 1),
        (50, 100, 50, 16),
        (50, 500, 200, 60),
        (50, 100, 95, 5),
        (50, 100, 100, 0),
        (None, 100, 30, 70),
    ],
)
def test_output_to_come_is_the_prediction_and_past_it_three_tenths_of_what_was_made(
    predicted, max_tokens, generated, want
):
    held = Held(request("r", 10, predicted=predicted, max_tokens=max_tokens), 1, None)
    held.generated = generated
    held.update(1, None)
    assert held.remaining == want


def test_exact_prompt_replaces_the_upper_estimate():
    made = gate()
    sent = request("r", 100, prompt_upper=180, predicted=10)
    made.start(sent)
    assert made.used == 180
    made.progress(sent, 120, 1)
    assert made.used == 121


def test_with_nothing_in_flight_anything_is_admitted():
    assert gate(pool=10).fits(request("huge", 10_000), 0.0)


def test_slots_are_sequences():
    made = gate()
    made.max_in_flight = 4
    made.start(request("a", 1, predicted=1, sequences=3))
    assert made.fits(request("b", 1, predicted=1), 0.0)
    assert not made.fits(request("b", 1, predicted=1, sequences=2), 0.0)


def test_unknown_pool_leaves_slots_alone_to_decide():
    made = Gate()
    made.max_in_flight = 2
    made.start(request("a", 10_000))
    assert made.fits(request("b", 10_000), 0.0)
    assert made.refuse(request("b", 10_000)) is None
    made.start(request("b", 10_000))
    assert not made.fits(request("c", 1), 0.0)


def test_what_can_never_fit_is_refused_on_arrival_with_what_to_do():
    made = gate(pool=1000, context_tokens=400)
    refusal = made.refuse(request("r", 900, max_tokens=5000))
    assert refusal.reason is Reason.NEVER_FITS
    assert refusal.retry_after_seconds is None
    assert "prompt (900) and output (400) tokens exceed the engine's KV cache of 1000" in refusal.message
    assert made.refuse(request("r", 600, max_tokens=5000)) is None
    assert made.refuse(request("batch", 3000, prompts=5, max_tokens=300)) is None


def test_headroom_above_the_limit_is_for_urgent_requests_that_can_still_keep_their_slo():
    made = gate(pool=1000, utilisation_percent=90.0, headroom_percent=5.0)
    patient = {"predicted": 1, "deadline": 100.0}
    urgent = {"predicted": 1, "deadline": 51.0, "arrival": 50.0, "ttft_budget": 1.0}
    made.start(request("a", 800, predicted=1))
    # Each ends with one token more: 800 + 97 + 2 = 899, 800 + 147 + 2 = 949.
    assert made.fits(request("batch", 97, ttft_budget=100.0, **patient), 50.0)
    for name, budget, at in (
        ("batch", 100.0, 50.0),
        ("near its deadline", 100.0, 99.0),
        ("no SLO", None, 50.0),
    ):
        assert not made.fits(request(name, 147, ttft_budget=budget, **patient), at)
    assert not made.fits(request("in no order of deadlines", 147, predicted=1, ttft_budget=1.0), 50.0)
    assert made.fits(request("urgent", 147, **urgent), 50.0)
    assert not made.fits(request("too long", 149, **urgent), 50.0)
    assert not made.fits(request("overdue", 147, **urgent), 51.5)


def test_headroom_ends_with_the_pool_and_falls_with_the_limit():
    made = gate(pool=1000, utilisation_percent=98.0, headroom_percent=5.0)
    urgent = {"predicted": 1, "deadline": 51.0, "arrival": 50.0, "ttft_budget": 1.0}
    made.start(request("a", 800, predicted=1))
    assert made.fits(request("all of it", 198, **urgent), 50.0)
    assert not made.fits(request("more", 199, **urgent), 50.0)
    for at in range(0, 50, 10):
        made.preempted(float(at))
    assert made.percent == 88
    assert made.fits(request("b", 128, **urgent), 50.0)
    assert not made.fits(request("c", 129, **urgent), 50.0)


def test_prompts_that_would_stall_urgent_requests_go_one_after_another_while_such_come():
    made = gate(pool=100_000)
    patient = {"predicted": 1, "deadline": 1e6, "ttft_budget": 60.0}
    urgent = {"predicted": 1, "deadline": 101.0, "arrival": 100.0, "ttft_budget": 1.0}
    first = request("first", 600, **patient)
    made.start(first)
    long = request("long", 500, **patient)
    made.start(request("chat", 10, **urgent))
    assert made.fits(long, 100.0), "what a prompt costs is not known yet"
    learn_prompts(made, seconds=0.0001)
    # 600, 10 and 390 tokens take 0.1 s.
    assert made.fits(request("short", 350, **patient), 100.0)
    assert not made.fits(long, 100.0)
    assert (
        made.batching_holds(long, 100.0)
        == "when it adds no more than 100 ms of prompts: urgent requests come"
    )
    assert not made.fits(request("missed", 500, **urgent), 101.5)
    assert made.fits(request("urgent", 500, **urgent), 100.0)
    assert made.fits(request("in no order of deadlines", 500, predicted=1), 100.0)
    assert made.fits(long, 160.1), "no urgent one for a minute"
    made.progress(first, 600, 1)
    made.progress(made._held["chat"].request, 10, 1)
    assert made.fits(request("alone", 50_000, **patient), 100.0)


def learn_prompts(made, *, seconds):
    """Show the gate what a prompt token takes."""
    for at in range(200):
        prefill = 5000 * (at % 7)
        made.batching.model.observe(
            0.02 * 40 + seconds * prefill, steps=40, prefill_tokens=prefill, tokens=40, context_tokens=100
        )
    assert made.batching.model.prefill_seconds(1) == pytest.approx(seconds, rel=0.02)


def test_preemptions_of_unknown_cost_lower_the_limit_and_those_the_model_finds_cheap_do_not():
    made = gate(utilisation_percent=95.0)
    made.start(request("a", 100, predicted=1))
    made.preempted(0.0)
    assert made.percent == 93
    cheap = gate(utilisation_percent=95.0)
    for at in range(60):
        prefill = 100 * (at % 7)
        cheap.batching.model.observe(
            0.02 * 40 + 0.0001 * prefill, steps=40, prefill_tokens=prefill, tokens=40, context_tokens=100
        )
        cheap.tick(float(at))
    cheap.start(request("a", 100, predicted=1))
    cheap.preempted(60.0, 3)
    assert cheap.percent == 95
    cheap.preempted(61.0, 1000)
    assert cheap.percent == 93


def test_limit_acts():
    made = gate(pool=1000, utilisation_percent=95.0)
    made.start(request("a", 900, predicted=1))
    candidate = request("b", 40, predicted=1)
    assert made.fits(candidate, 0.0)
    made.preempted(0.0)
    assert not made.fits(candidate, 0.0)


def test_prompt_admits_what_fits_beside_what_is_held_whatever_is_to_come():
    made = gate(pool=1000, kind="prompt", utilisation_percent=95.0)
    for name in "abc":
        made.start(request(name, 300, predicted=900, max_tokens=900))
    assert made.outstanding == 2700
    assert made.fits(request("d", 100, predicted=900, max_tokens=900), 0.0)
    assert not made.fits(request("d", 101, predicted=1), 0.0)


def test_prompt_plans_with_the_whole_pool_in_blocks_without_headroom():
    made = gate(pool=1024, block=16, kind="prompt", utilisation_percent=80.0, headroom_percent=10.0)
    made.start(request("a", 1000))
    assert made.used == 1008
    assert made.fits(request("b", 16, deadline=1e6), 0.0)
    assert not made.fits(request("b", 17, deadline=1e6), 0.0)
    made.preempted(0.0)
    assert made.percent == 100
    made.reconfigure(GateSettings(kind="peak", utilisation_percent=95.0))
    assert made.percent == 95


def test_prompt_leaves_room_for_what_others_hold():
    made = gate(pool=1000, kind="prompt")
    made.start(request("a", 100))
    for _ in range(3):
        made.observe(800)
    assert made.fits(request("b", 200), 0.0)
    assert not made.fits(request("b", 201), 0.0)


def test_only_gates_that_look_at_outputs_to_come_let_a_bound_hold():
    assert [GateSettings(kind=kind).bounded for kind in ("peak", "reserve", "prompt")] == [True, True, False]


def test_saturation_is_measured_by_what_the_kind_of_gate_plans_with():
    saturations = {}
    for kind in ("peak", "prompt", "reserve"):
        made = gate(pool=1000, kind=kind)
        made.start(request("a", 100, predicted=200, max_tokens=600))
        saturations[kind] = made.saturation()
    assert saturations == {"peak": 0.3, "prompt": 0.1, "reserve": 0.7}


def test_lasting_use_by_others_takes_room_and_one_late_scrape_does_not():
    made = gate(pool=1000)
    made.start(request("a", 100, predicted=1))
    candidate = request("b", 500, predicted=1)
    for used in (900, 100, 900, 900):
        made.observe(used)
    assert made.surplus == 0
    assert made.fits(candidate, 0.0)
    made.observe(700)
    assert made.surplus == 600
    assert not made.fits(candidate, 0.0)
    made.observe(None)
    assert made.fits(candidate, 0.0)


def test_end_frees_what_was_held_once_and_start_counts_once():
    made = gate()
    sent = request("a", 100, predicted=1)
    made.start(sent)
    with pytest.raises(ValueError, match="in flight already"):
        made.start(sent)
    made.finish(sent)
    made.finish(sent)
    assert (made.used, made.sequences, made.peak) == (0, 0, 0)


def test_saturation_is_the_fuller_of_slots_and_planned_cache():
    made = gate(pool=1000)
    assert made.saturation() == 0
    made.max_in_flight = 10
    made.start(request("a", 99, predicted=1))
    assert made.saturation() == pytest.approx(0.1)
    made.start(request("b", 498, predicted=1))
    assert made.saturation() == pytest.approx(0.6 - 0.001)


def test_reconfiguration_and_a_new_pool_apply_to_what_is_in_flight():
    made = gate(pool=1000, block=1)
    made.start(request("a", 10, predicted=1))
    made.set_pool(2000, 16)
    assert made.used == 16
    made.preempted(0.0)
    made.reconfigure(GateSettings(kind="reserve", utilisation_percent=100.0))
    assert made.percent == 98
    made.reconfigure(GateSettings(kind="reserve", utilisation_percent=80.0))
    assert made.percent == 80


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"utilisation_percent": 0}, "utilisation_percent=0 must be within"),
        ({"utilisation_percent": 101}, "utilisation_percent=101 must be within"),
        ({"headroom_percent": -1}, "headroom_percent=-1 must be within"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        GateSettings(**settings)
    with pytest.raises(ValueError, match="kv_tokens=0"):
        Gate().set_pool(0)


def test_future_peak_of_nothing_is_nothing():
    assert future_peak([], 0, 0) == (0, 0, 0)


def test_output_is_never_expected_to_exceed_the_context():
    made = gate(pool=1000, context_tokens=200)
    made.start(request("a", 150, max_tokens=900))
    assert made.outstanding == 50


def test_late_or_repeated_counts_change_nothing():
    made = gate()
    sent = request("a", 100, predicted=50)
    made.start(sent)
    made.progress(sent, 100, 10)
    made.progress(sent, 100, 4)
    assert made.used == 110


def test_reserve_saturation_is_of_what_is_reserved():
    made = gate(pool=1000, kind="reserve")
    made.start(request("a", 100, max_tokens=300))
    assert made.saturation() == pytest.approx(0.4)
