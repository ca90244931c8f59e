"""A profile is found again from what an engine of that profile does."""

import dataclasses
import random

import pytest

from equipoise_simulator.calibration.calibrate import Calibration
from equipoise_simulator.calibration.fit import fit
from equipoise_simulator.calibration.steps import WINDOW, Observation, Stream, alone, observations
from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.sequence import Sequence
from equipoise_simulator.simulation import simulate
from equipoise_simulator.workload import Call, Workload

TRUE = dataclasses.replace(
    PROFILES["fast"],
    a0=0.02,
    a1=0.0002,
    a2=0.0004,
    a3=0.000002,
    kv_tokens=40_000,
    max_num_batched_tokens=4096,
)
LATENCY = 0.004


def loaded(clients, *, requests=80, seed=0, spread=0.0):
    """Run a closed loop on the engine's model; return what its clients saw, each up to `spread` seconds late."""
    source, engine, now = random.Random(seed), EngineModel(TRUE), 0.0
    streams = {}

    def ask():
        sequence = Sequence(source.randrange(16, 800), source.randrange(2, 90), owner=None, arrival=now)
        streams[sequence] = Stream(sequence.prompt_tokens, now)
        engine.add(sequence)

    for _ in range(clients):
        ask()
    while (step := engine.begin(now)) is not None:
        now = step.ends
        engine.finish()
        came = [*step.advanced, *step.first]
        source.shuffle(came)
        for sequence in came:
            stream = streams[sequence]
            tokens = stream.arrivals[-1][1] + 1 if stream.arrivals else 1
            stream.arrivals.append((now + source.uniform(0, spread), tokens))
        for _ in step.finished:
            if len(streams) < requests:
                ask()
    return list(streams.values())


def by_itself(prompt):
    return alone(Stream(prompt, 1.0, [(1.0 + TRUE.step_seconds(prompt, 0, 0) + LATENCY, 1)]))


def observed(spread=0.0):
    seen = [by_itself(prompt) for prompt in (16, 128, 512, 1024)]
    for clients in (1, 4, 8):
        seen += observations(loaded(clients, seed=clients, spread=spread), clients)
    return seen


def bent(size):
    """An engine whose kernels are made for batches of four and of eight."""
    return {1: 0.02, 2: 0.025, 3: 0.024, 4: 0.021, 5: 0.026, 6: 0.026, 7: 0.026}.get(size, 0.027)


def found(seen):
    it = fit(seen)
    return (it.a0, it.a1, it.a2, it.a3, it.latency)


EXACT = (TRUE.a0, TRUE.a1, TRUE.a2, TRUE.a3, LATENCY)


def test_what_clients_saw_gives_the_coefficients_back():
    assert found(observed()) == pytest.approx(EXACT, rel=1e-6)


def test_tokens_that_come_late_hardly_move_what_a_load_is_expected_to_take():
    seen = observed(spread=0.003)
    it = fit(seen)
    for clients in (1, 4, 8):
        exact = list(observations(loaded(clients, seed=clients), clients))
        assert it.speed(exact) == pytest.approx(1.0, rel=0.02)


def test_all_steps_are_found_and_all_tokens_counted():
    streams = loaded(4)
    seen = list(observations(streams, 4))
    last = max(stream.arrivals[-1][0] for stream in streams)
    steps = [each.steps for each in seen]
    assert set(steps) == {WINDOW}
    assert sum(each.seconds for each in seen) == pytest.approx(last, rel=0.1)
    assert sum(size * steps for each in seen for size, steps in each.batches.items()) == pytest.approx(
        sum(stream.arrivals[-1][1] - 1 for stream in streams), rel=0.05
    )


def test_an_answer_in_pieces_of_several_tokens_is_as_many_steps():
    single = Stream(100, 0.0, [(0.1 * n, n) for n in range(1, 66)])
    pieces = Stream(100, 0.0, [(0.1 * n, n) for n in (1, *range(5, 66, 4))])
    (one, two), (three, four) = observations([single], 1), observations([pieces], 1)
    assert (three.batches, three.context_tokens) == ({1: 32}, one.context_tokens)
    assert four.context_tokens == two.context_tokens == sum(range(132, 164))
    assert three.seconds == pytest.approx(one.seconds)


def test_an_engine_without_work_is_not_a_slow_one():
    first = Stream(10, 0.0, [(0.1 * n, n) for n in range(1, 34)])
    later = Stream(10, 60.0, [(60 + 0.1 * n, n) for n in range(1, 34)])
    seen = list(observations([first, later], 1))
    assert [each.seconds for each in seen] == pytest.approx([3.2, 3.2])


def test_disturbed_observations_are_left_out_and_counted():
    seen = observed()
    seen[9] = dataclasses.replace(seen[9], seconds=seen[9].seconds * 5)
    seen[20] = dataclasses.replace(seen[20], seconds=seen[20].seconds * 4)
    it = fit(seen)
    assert it.disturbed == 2
    assert (it.a0, it.a1) == pytest.approx((TRUE.a0, TRUE.a1), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_machine_leaves_the_sum_of_a_load_right(seed):
    source = random.Random(seed)
    noisy = [
        dataclasses.replace(each, seconds=each.seconds * source.uniform(0.75, 1.25)) for each in observed()
    ]
    it = fit(noisy)
    assert sum(map(it.expected, noisy)) == pytest.approx(sum(each.seconds for each in noisy), rel=1e-3)
    assert 0.01 < it.errors[8].median < 0.25
    assert abs(it.errors[8].bias) < 0.1


def test_no_coefficient_is_negative():
    rows = [Observation(n, {n: 16}, 0, 1600, 0.5 - 0.016 * n) for n in (1, 2, 3, 4)] * 3
    rows += [Observation(0, {0: 1}, p, 0, 0.03) for p in (16, 32, 64)]
    assert min(found(rows)) >= 0
    assert min(seconds for _, seconds in fit(rows).decode_steps) > 0


def test_batches_that_no_line_goes_through_are_found_each():
    seen = observed()
    seen = [
        dataclasses.replace(
            each,
            seconds=each.seconds
            + sum(
                steps * (bent(size) - TRUE.a0 - TRUE.a2 * size)
                for size, steps in each.batches.items()
                if size
            ),
        )
        for each in seen
    ]
    it = fit(seen)
    assert [size for size, _ in it.decode_steps] == [1, 4, 8]
    assert dict(it.decode_steps) == pytest.approx({size: bent(size) for size in (1, 4, 8)}, rel=0.06)
    assert all(abs(error.bias) < 0.01 for clients, error in it.errors.items() if clients)


def test_a_size_that_hardly_ran_is_no_point_of_its_own():
    seen = [each for each in observed() if each.clients != 8]
    seen.append(Observation(8, {4: 31, 8: 1}, 0, 3000, 0.7))
    assert [size for size, _ in fit(seen).decode_steps] == [1, 4]


def test_too_little_is_said_to_be_too_little():
    seen = observed()
    with pytest.raises(ValueError, match=r"0 of a prompt alone do not tell the costs apart"):
        fit([each for each in seen if each.clients])
    with pytest.raises(ValueError, match=r"0 observations under load"):
        fit([each for each in seen if not each.clients])


def test_two_calibrations_are_joined_by_what_they_observed():
    seen = observed()
    fast = [dataclasses.replace(each, seconds=each.seconds * 0.8) for each in seen]
    slow = [dataclasses.replace(each, seconds=each.seconds * 1.2) for each in seen]
    one, other = (Calibration(TRUE, fit(part), tuple(part)) for part in (fast, slow))
    both = one.joined(other)
    assert (both.fit.speed(fast), both.fit.speed(slow)) == pytest.approx((1.25, 1 / 1.2), rel=0.03)
    assert both.profile.step_seconds(300, 8, 2000) == pytest.approx(TRUE.step_seconds(300, 8, 2000), rel=0.02)
    assert both.profile.kv_tokens == TRUE.kv_tokens
    assert len(both.observations) == 2 * len(seen)


def test_a_profiles_latency_is_part_of_the_time_to_first_token():
    calls = (Call(id="a", tenant="blue", arrival=1.0, prompt_tokens=100, output_tokens=5),)
    calls += (Call(id="b", tenant="blue", arrival=0.5, prompt_tokens=100, output_tokens=5, after="a"),)
    far = dataclasses.replace(PROFILES["fast"], latency=0.25)
    for profile in (PROFILES["fast"], far):
        result = simulate(Workload(name="two", calls=calls, seconds=5), "FCFS", profile=profile)
        step = profile.step_seconds(100, 0, 0)
        assert [record.ttft for record in result.records] == pytest.approx([step + profile.latency] * 2)


def test_an_engine_that_plans_ahead_takes_at_once_what_came_in_time_and_a_step_late_what_waited_for_an_end():
    profile = dataclasses.replace(
        PROFILES["fast"], a0=1.0, a1=0, a2=0, a3=0, max_num_seqs=2, plans_ahead=True
    )

    def call(name, arrival, output):
        return Call(id=name, tenant="blue", arrival=arrival, prompt_tokens=10, output_tokens=output)

    calls = (call("a", 0.0, 3), call("in time", 0.5, 5), call("waits", 0.6, 1))
    result = simulate(Workload(name="three", calls=calls, seconds=9), "FCFS", profile=profile)
    # a: steps 0-3. The second joins at 1. a's end at 3 is heard of after the step from 3 to 4 has begun.
    assert [record.first_token for record in result.records] == pytest.approx([1.0, 2.0, 5.0])
