"""A profile is found again from what an engine of that profile does."""

import dataclasses
import random

import pytest

from equipoise_simulator.calibration.fit import Observation, fit
from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.simulation import simulate
from equipoise_simulator.workload import Call, Workload

TRUE = (0.02, 0.0002, 0.0004, 0.000002, 0.004)


def observed(noise=0.0, seed=0):
    source, a = random.Random(seed), TRUE
    rows = []
    for sequences in (1, 2, 4, 8):
        for context in (20, 400, 1500):
            held = sequences * context
            rows += [("decode", 0, sequences, held, a[0] + a[2] * sequences + a[3] * held)] * 4
    for prompt in (16, 128, 512, 1024):
        rows.append(("first", prompt, 0, 0, a[0] + a[1] * prompt + a[4]))
        rows.append(("mixed", prompt, 4, 200, a[0] + a[1] * prompt + 4 * a[2] + 200 * a[3]))
    return [Observation(*row[:4], row[4] * (1 + source.uniform(-noise, noise))) for row in rows]


def found(observations):
    it = fit(observations)
    return (it.a0, it.a1, it.a2, it.a3, it.latency)


def test_exact_observations_give_the_coefficients_back():
    assert found(observed()) == pytest.approx(TRUE, rel=1e-3)


def test_a_few_disturbed_observations_do_not_move_the_fit():
    rows = observed()
    rows[3] = Observation(*[getattr(rows[3], name) for name in rows[3].__slots__[:4]], rows[3].seconds * 5)
    rows[-1] = Observation(
        *[getattr(rows[-1], name) for name in rows[-1].__slots__[:4]], rows[-1].seconds * 3
    )
    assert found(rows) == pytest.approx(TRUE, rel=0.1)


def test_noise_shows_in_the_errors():
    it = fit(observed(noise=0.04))
    assert 0.005 < it.errors["decode"] < 0.04
    for seen in observed():
        assert it.predict(seen) == pytest.approx(seen.seconds, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_machine_does_not_drive_the_fit_to_nothing(seed):
    it = fit(observed(noise=0.4, seed=seed))
    assert max(it.errors.values()) < 0.5
    assert it.a0 + 500 * it.a1 == pytest.approx(TRUE[0] + 500 * TRUE[1], rel=0.4)


def test_no_coefficient_is_negative():
    rows = [Observation("decode", 0, n, 100, 0.03 - 0.001 * n) for n in (1, 2, 3, 4)]
    rows += [Observation("mixed", p, 2, 100, 0.03) for p in (16, 32, 64)]
    rows += [Observation("first", p, 0, 0, 0.03) for p in (16, 32, 64)]
    assert min(found(rows)) >= 0


def test_too_little_is_said_to_be_too_little():
    with pytest.raises(ValueError, match="decode do not tell the costs apart"):
        fit([seen for seen in observed() if seen.kind == "decode"])
    with pytest.raises(ValueError, match="nothing"):
        fit([])


def test_a_profiles_latency_is_part_of_the_time_to_first_token():
    calls = (Call(id="a", tenant="blue", arrival=1.0, prompt_tokens=100, output_tokens=5),)
    calls += (Call(id="b", tenant="blue", arrival=0.5, prompt_tokens=100, output_tokens=5, after="a"),)
    far = dataclasses.replace(PROFILES["fast"], latency=0.25)
    for profile in (PROFILES["fast"], far):
        result = simulate(Workload(name="two", calls=calls, seconds=5), "FCFS", profile=profile)
        step = profile.step_seconds(100, 0, 0)
        assert [record.ttft for record in result.records] == pytest.approx([step + profile.latency] * 2)
