"""The model of continuous batching: budgets, KV, preemption, order and time, step by step on a clock of the test's own."""

import json
import math
import random
from dataclasses import replace

import pytest

from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.profiles import PROFILES, Profile, profile_named
from equipoise_simulator.sequence import Sequence, SequenceState

UNIT = Profile(
    name="unit",
    a0=1.0,
    a1=0.0,
    a2=0.0,
    a3=0.0,
    kv_tokens=1_600,
    max_num_batched_tokens=512,
    max_model_len=1_600,
)


def run(model, *, now=0.0, until=None, watch=None):
    """Step until nothing is left; return the time."""
    while (step := model.begin(now, until=until)) is not None:
        assert model.finish() is step
        if watch:
            watch(step)
        now = step.ends
    return now


def test_a_batch_takes_what_batches_of_its_size_were_measured_to_take():
    line = replace(UNIT, a1=0.01, a2=0.5, a3=0.001)
    bent = replace(line, decode_steps=((2, 5.0), (4, 4.0)))
    assert [bent.step_seconds(0, size, 0) for size in range(7)] == pytest.approx(
        [1.0, 3.0, 5.0, 4.5, 4.0, 4.5, 5.0]
    )
    assert bent.step_seconds(100, 2, 50) == pytest.approx(6.05)
    assert bent.scaled(2).step_seconds(100, 2, 50) == pytest.approx(3.025)
    assert Profile.from_document(json.loads(json.dumps(bent.document()))) == bent


def test_a_lone_sequence_gets_its_first_token_from_its_prompt_and_one_more_each_step():
    model = EngineModel(PROFILES["fast"])
    sequence = Sequence(100, 4)
    model.add(sequence)
    profile, context = PROFILES["fast"], 100
    seconds = profile.step_seconds(100, 0, 0) + sum(profile.step_seconds(0, 1, context + k) for k in range(3))
    tokens = []
    ended = run(model, watch=lambda step: tokens.append((len(step.first), len(step.advanced))))
    assert tokens == [(1, 0), (0, 1), (0, 1), (0, 1)]
    assert sequence.state is SequenceState.FINISHED
    assert math.isclose(ended, seconds)
    assert model.free_blocks == profile.kv_blocks


def test_a_long_prompt_is_prefilled_in_chunks_beside_those_that_decode():
    model = EngineModel(replace(UNIT, max_num_batched_tokens=300))
    early, long = Sequence(10, 10), Sequence(700, 1)
    model.add(early)
    model.begin(0.0)
    model.finish()
    model.add(long)
    chunks = []
    run(model, watch=lambda step: chunks.append((step.prefill_tokens, len(step.advanced))))
    assert chunks[:3] == [(299, 1), (299, 1), (102, 1)]


def test_admission_stops_at_the_sequence_slots():
    model = EngineModel(replace(UNIT, max_num_seqs=2))
    sequences = [Sequence(10, 2, arrival=number) for number in range(3)]
    for sequence in sequences:
        model.add(sequence)
    model.begin(0.0)
    model.finish()
    assert (model.running, model.waiting) == (2, 1)


def test_the_head_that_does_not_fit_is_not_overtaken():
    model = EngineModel(UNIT)
    for prompt in (900, 800, 16):
        model.add(Sequence(prompt, 2))
    prefilled = []
    run(model, watch=lambda step: prefilled.extend(sequence.prompt_tokens for sequence in step.first))
    assert prefilled == [900, 800, 16]


def test_priority_mode_serves_less_first_and_fcfs_ignores_it():
    orders = []
    for priority_scheduling in (True, False):
        model = EngineModel(replace(UNIT, max_num_seqs=1), priority_scheduling=priority_scheduling)
        for number, priority in enumerate((5, -3, 5, 0)):
            model.add(Sequence(10, 1, priority=priority, arrival=number))
        order = []
        run(
            model, watch=lambda step, order=order: order.extend(sequence.number for sequence in step.finished)
        )
        orders.append(order)
    assert orders == [[2, 4, 1, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize(("priority_scheduling", "victim"), [(False, 2), (True, 1)])
def test_a_shortage_of_blocks_preempts_the_last_admitted_or_the_least_urgent(priority_scheduling, victim):
    """Two sequences of 5 blocks each in a pool of 10: the first to cross a block finds none."""
    model = EngineModel(
        replace(UNIT, kv_tokens=160, max_model_len=160), priority_scheduling=priority_scheduling
    )
    first = Sequence(80, 40, priority=1, arrival=0.0)
    second = Sequence(80, 40, priority=0, arrival=1.0)
    model.add(first)
    model.add(second)
    preempted, ended = [], []

    def watch(step):
        preempted.extend(sequence.number for sequence in step.preempted)
        ended.extend(sequence.number for sequence in step.finished)

    run(model, watch=watch)
    assert preempted == [victim]
    assert ended[-1] == victim
    assert model.recomputed_tokens == 80
    assert model.free_blocks == model.profile.kv_blocks


def test_a_preempted_sequence_goes_on_where_it_was():
    model = EngineModel(replace(UNIT, kv_tokens=160, max_model_len=160))
    first, second = Sequence(70, 50), Sequence(70, 50)
    model.add(first)
    model.add(second)
    tokens = {first: 0, second: 0}

    def watch(step):
        for sequence in step.first:
            tokens[sequence] += 1
        for sequence in step.advanced:
            tokens[sequence] += step.count

    run(model, until=math.inf, watch=watch)
    assert tokens == {first: 50, second: 50}
    assert second.preemptions == 1


def test_a_full_queue_refuses_and_what_never_fits_is_an_error():
    model = EngineModel(UNIT, max_num_queued_reqs=1)
    assert model.add(Sequence(10, 1))
    assert not model.add(Sequence(10, 1))
    with pytest.raises(ValueError, match="1601 tokens never fit a KV pool of 1600"):
        model.add(Sequence(1_600, 1))


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_an_abort_gives_back_all_wherever_the_sequence_is(steps_before):
    model = EngineModel(replace(UNIT, max_num_batched_tokens=300))
    sequence = Sequence(500, 50)
    model.add(sequence)
    now = 0.0
    for _ in range(steps_before):
        now = model.begin(now).ends
        model.finish()
    under_way = model.begin(now) if steps_before else None
    model.abort(sequence)
    if under_way:
        assert model.finish().finished == []
        assert under_way.first == []
    assert model.idle
    assert model.free_blocks == model.profile.kv_blocks
    assert model.begin(now + 1) is None
    assert model.generated(sequence) == (0, 0, 3)[min(steps_before, 2)]
    model.abort(sequence)


def load(seed, count):
    """A random load: arrivals, lengths, priorities, and who aborts when."""
    source = random.Random(seed)
    now = 0.0
    rows = []
    for _ in range(count):
        now += source.expovariate(2.0)
        aborts = now + source.uniform(0, 30) if source.random() < 0.1 else math.inf
        rows.append((now, source.randint(1, 600), source.randint(1, 120), source.randint(-2, 2), aborts))
    return rows


def replay(rows, profile, *, jump, priority_scheduling):
    """Run a load; every arrival and abort is a decision between steps."""
    model = EngineModel(profile, priority_scheduling=priority_scheduling)
    events = sorted(
        [(arrival, 0, index) for index, (arrival, *_) in enumerate(rows)]
        + [(row[4], 1, index) for index, row in enumerate(rows) if row[4] < math.inf]
    )
    sequences = [Sequence(row[1], row[2], priority=row[3], arrival=row[0]) for row in rows]
    history, now, at = [], 0.0, 0
    while True:
        while at < len(events) and events[at][0] <= now:
            _, kind, index = events[at]
            if kind == 0:
                model.add(sequences[index])
            else:
                model.abort(sequences[index])
            at += 1
        horizon = events[at][0] if at < len(events) else math.inf
        step = model.begin(now, until=horizon if jump else None)
        if step is None:
            if at == len(events):
                break
            now = horizon
            continue
        model.finish()
        now = step.ends
        history += [("first", sequence.number, now) for sequence in step.first]
        history += [("end", sequence.number, now) for sequence in step.finished]
        history += [("preempted", sequence.number, step.begins) for sequence in step.preempted]
    return model, sequences, history


@pytest.mark.parametrize("priority_scheduling", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_jumps_change_nothing_but_the_number_of_steps(seed, priority_scheduling):
    profile = replace(PROFILES["fast"], kv_tokens=1_200, max_model_len=1_000, max_num_seqs=16).scaled(2)
    rows = load(seed, 150)
    single, sequences, history = replay(rows, profile, jump=False, priority_scheduling=priority_scheduling)
    jumped, again, same = replay(rows, profile, jump=True, priority_scheduling=priority_scheduling)
    assert [event[:2] for event in history] == [event[:2] for event in same]
    assert all(math.isclose(a[2], b[2], rel_tol=1e-9) for a, b in zip(history, same, strict=True))
    assert [single.generated(sequence) for sequence in sequences] == [
        jumped.generated(other) for other in again
    ]
    assert single.preemptions == jumped.preemptions > 0
    assert single.free_blocks == jumped.free_blocks == profile.kv_blocks


def test_two_runs_of_one_load_are_equal():
    rows = load(7, 100)
    profile = replace(PROFILES["papers"], kv_tokens=3_000, max_model_len=1_000)
    one, two = (replay(rows, profile, jump=True, priority_scheduling=False)[2] for _ in range(2))
    assert one == two


def test_a_profile_that_makes_no_sense_is_refused_by_name():
    with pytest.raises(ValueError, match="'swift' is unknown; there are fast, large, papers"):
        profile_named("swift")
    with pytest.raises(ValueError, match="speed must be above 0"):
        PROFILES["fast"].scaled(0)
    with pytest.raises(ValueError, match=r"max_model_len \(4096\) must fit the KV pool"):
        replace(PROFILES["fast"], kv_tokens=1_000)


def test_the_fast_profile_is_the_papers_divided_by_about_1_24():
    scaled = PROFILES["papers"].scaled(1.24)
    for name in ("a0", "a1", "a2"):
        assert math.isclose(getattr(scaled, name), getattr(PROFILES["fast"], name), rel_tol=0.01)
