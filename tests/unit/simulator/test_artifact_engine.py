"""The VTC artifact's loop: when it passes, how it prefills, what its gate lets in."""

from dataclasses import replace

import pytest

from equipoise_scheduling.request import Reason, Request
from equipoise_simulator.artifact_engine import PASS_EVERY, ArtifactEngine, ArtifactGate
from equipoise_simulator.profiles import PROFILES, Profile
from equipoise_simulator.sequence import Sequence, SequenceState
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite

UNIT = Profile(
    name="unit", a0=1.0, a1=0.01, a2=0.1, a3=0.001, kv_tokens=1_000, max_model_len=900, loop="artifact"
)


def request(name, prompt, tenant="blue"):
    return Request(id=name, tenant=tenant, arrival=0, prompt_tokens=prompt, max_tokens=500)


def test_a_prefill_is_a_step_of_its_own_in_which_nobody_decodes():
    engine = ArtifactEngine(UNIT)
    first, second = Sequence(100, 20), Sequence(50, 20)
    engine.add(first)
    step = engine.begin(0.0)
    assert (step.ends, step.prefill_tokens) == (2.0, 100)
    assert engine.finish().first == [first]
    assert engine.generated(first) == 1
    engine.add(second)
    assert engine.begin(2.0).ends == 3.5
    assert engine.finish().first == [second]
    assert (engine.generated(first), engine.generated(second)) == (1, 1)
    # Two sequences with a context of 150 tokens.
    assert engine.begin(3.5).ends == pytest.approx(3.5 + 1 + 0.2 + 0.150)


def test_passes_come_when_idle_and_after_ten_decode_steps_until_one_admits():
    engine = ArtifactEngine(UNIT)
    assert engine.open
    engine.add(Sequence(10, 100))
    engine.begin(0.0)
    engine.finish()
    seen = []
    for _ in range(PASS_EVERY + 3):
        seen.append(engine.open)
        engine.begin(0.0)
        engine.finish()
    assert seen == [False] * PASS_EVERY + [True] * 3
    engine.add(Sequence(10, 100))
    engine.begin(0.0)
    engine.finish()
    assert not engine.open


def test_jumps_end_at_the_next_end_the_next_pass_or_the_horizon():
    engine = ArtifactEngine(UNIT)
    engine.add(Sequence(10, 5))
    engine.add(Sequence(10, 100))
    engine.begin(0.0)
    engine.finish()
    assert engine.begin(0.0, until=1e9).count == 4
    assert [sequence.output_tokens for sequence in engine.finish().finished] == [5]
    assert engine.begin(0.0, until=1e9).count == PASS_EVERY - 4
    engine.finish()
    assert engine.begin(0.0, until=3.0).count == 3
    engine.finish()


def test_jumps_change_nothing_but_the_number_of_steps():
    def run(*, jump):
        engine, now, events = ArtifactEngine(UNIT), 0.0, []
        waiting = [Sequence(10 + n, 3 + 7 * n % 23) for n in range(20)]
        while waiting or engine.running:
            if engine.open and waiting:
                for sequence in [waiting.pop(0) for _ in range(min(3, len(waiting)))]:
                    engine.add(sequence)
            step = engine.begin(now, until=1e9 if jump else None)
            now = step.ends
            done = engine.finish()
            events += [(sequence.prompt_tokens, round(now, 6)) for sequence in done.finished]
        return events

    # Once everything has joined, single steps and jumps are the same; before, passes are at the same steps.
    single, jumped = run(jump=False), run(jump=True)
    assert [name for name, _ in single] == [name for name, _ in jumped]


def test_aborting_frees_and_an_aborted_prefill_yields_nothing():
    engine = ArtifactEngine(UNIT)
    waiting, prefilling = Sequence(10, 5), Sequence(20, 5)
    engine.add(waiting)
    engine.add(prefilling)
    engine.abort(waiting)
    engine.begin(0.0)
    engine.abort(prefilling)
    assert engine.finish().first == []
    assert engine.running == 0
    assert waiting.state is prefilling.state is SequenceState.ABORTED
    decoding = Sequence(10, 5)
    engine.add(decoding)
    engine.begin(0.0)
    engine.finish()
    engine.abort(decoding)
    engine.abort(decoding)
    assert engine.running == 0
    assert engine.begin(0.0) is None


def test_the_gate_takes_the_future_peak_with_true_lengths():
    # Of one sequence 101 + 1 * 299 = 400 tokens at its end; two of them 202 + 2 * 299 = 800; three 1,200.
    gate = ArtifactGate(UNIT, dict.fromkeys("abc", 300), adapter_rank=0)
    for name in "ab":
        assert gate.fits(request(name, 100), 0.0)
        gate.start(request(name, 100))
    assert not gate.fits(request("c", 100), 0.0)
    gate.finish(request("a", 100))
    assert gate.fits(request("c", 100), 0.0)


def test_sequences_that_end_at_different_times_share_room():
    lengths = {"long": 500, "short": 50}
    gate = ArtifactGate(UNIT, lengths, adapter_rank=0)
    gate.start(request("long", 200))
    # Both: 201 + 401 + 2 * 49 = 700 when the short one ends, 201 + 499 = 700 when the long one ends.
    assert gate.fits(request("short", 400), 0.0)
    gate.progress(request("long", 200), 200, 400)
    # Now 600 tokens are held: 600 + 401 is beyond the pool.
    assert not gate.fits(request("short", 400), 0.0)


def test_each_distinct_tenant_of_a_batch_takes_an_adapters_room():
    lengths = dict.fromkeys("abc", 100)
    gate = ArtifactGate(UNIT, lengths, adapter_rank=25)  # 100 tokens a tenant
    gate.start(request("a", 250))
    # 2 * 251 + 2 * 99 = 700: within 900 (one tenant) and 800 (two); a prompt of 400 reaches 850.
    assert gate.fits(request("b", 250, "green"), 0.0)
    assert gate.fits(request("b", 400, "blue"), 0.0)
    assert not gate.fits(request("b", 400, "green"), 0.0)


def test_a_pass_admits_at_most_3072_prompt_tokens():
    roomy = replace(UNIT, kv_tokens=100_000, max_model_len=50_000)
    gate = ArtifactGate(roomy, dict.fromkeys("ab", 10), adapter_rank=0)
    gate.pass_begins()
    gate.start(request("a", 2_000))
    assert not gate.fits(request("b", 1_073), 0.0)
    assert gate.fits(request("b", 1_072), 0.0)
    gate.pass_begins()
    assert gate.fits(request("b", 3_072), 0.0)
    assert gate.refuse(request("b", 3_073)).reason is Reason.NEVER_FITS
    assert gate.refuse(request("a", 60_000)).reason is Reason.NEVER_FITS
    assert gate.refuse(request("a", 3_072)) is None


def test_the_papers_profile_runs_on_the_artifacts_loop_and_gate():
    result = simulate(suite("overload").first(20), "FCFS")
    assert (result.profile, result.gate) == (PROFILES["papers"], "artifact")
    alone = result.records[0]
    assert alone.ttft == pytest.approx(0.0279 + 0.00026 * 512)  # both tenants' first prompts, in one step
