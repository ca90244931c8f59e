"""Workloads: made of traces, cut short, dealt to tenants; and those that have a name."""

import math
from collections import Counter
from statistics import mean, median

import pytest

from equipoise_scheduling.measures import quantile
from equipoise_simulator.suites import SUITES, suite
from equipoise_simulator.traces import Row, Trace
from equipoise_simulator.workload import Call, Workload, from_trace, zipf

TRACE = Trace("t.csv", (Row(0.0, "a", 10, 20), Row(1.0, "b", 30, 2000), Row(5.0, "a", 1, 1)), 5.0)


def test_a_traces_clients_are_the_tenants_and_the_longest_answer_the_limit():
    made = from_trace(TRACE)
    assert made.tenants == ["a", "b"]
    assert [(c.arrival, c.prompt_tokens, c.output_tokens) for c in made.calls] == [
        (0, 10, 20),
        (1, 30, 2000),
        (5, 1, 1),
    ]
    assert {call.max_tokens for call in made.calls} == {2000}


def test_a_trace_without_tenants_is_dealt_by_zipf_and_one_with_tenants_is_not():
    alone = Trace("t.csv", tuple(Row(float(n), "tenant", 1, 1) for n in range(11_000)), 11_000.0)
    counts = Counter(call.tenant for call in from_trace(alone, split=4, seed=1).calls)
    shares = [counts[f"tenant-{n}"] / 11_000 for n in range(4)]
    want = [1 / rank / (1 + 1 / 2 + 1 / 3 + 1 / 4) for rank in (1, 2, 3, 4)]
    assert shares == pytest.approx(want, abs=0.02)
    assert from_trace(alone, split=4, seed=1) == from_trace(alone, split=4, seed=1)
    assert from_trace(alone, split=4, seed=1) != from_trace(alone, split=4, seed=2)
    with pytest.raises(ValueError, match="2 tenants of its own: leave out --split"):
        from_trace(TRACE, split=4)
    assert set(zipf(50, 1, 0)) == {"tenant-0"}
    with pytest.raises(ValueError, match="split=0"):
        zipf(1, 0, 0)


def test_the_first_seconds_keep_what_waits_for_a_kept_call():
    def call(name, arrival, after=None, index=1):
        return Call(
            id=name,
            tenant="t",
            arrival=arrival,
            prompt_tokens=1,
            output_tokens=1,
            after=after,
            call_index=index,
        )

    made = Workload(
        name="w",
        calls=(
            call("a", 1),
            call("a2", 9, "a", 2),
            call("a3", 0, "a2", 3),
            call("b", 6),
            call("b2", 0, "b", 2),
        ),
        seconds=10,
    )
    assert [c.id for c in made.first(5).calls] == ["a", "a2", "a3"]
    assert made.first(5).seconds == 5
    assert made.first(50).seconds == 10
    with pytest.raises(ValueError, match=r"nothing arrives in the first 0\.5 s"):
        made.first(0.5)
    with pytest.raises(ValueError, match="seconds=-1 must be above 0"):
        made.first(-1)


def test_ticks_are_the_artifacts():
    assert suite("proportional").ticks == list(range(30, 601, 30))
    assert suite("overload").ticks == list(range(0, 360, 5))


@pytest.mark.parametrize(
    ("fact", "complaint"),
    [
        ({"output_tokens": 0}, "output_tokens=0 must be at least 1"),
        ({"arrival": -1.0}, "arrival=-1.0 must be seconds"),
        ({"arrival": math.nan}, "arrival=nan"),
    ],
)
def test_a_call_that_cannot_be_is_refused(fact, complaint):
    facts = {"id": "x", "tenant": "t", "arrival": 0.0, "prompt_tokens": 1, "output_tokens": 1, **fact}
    with pytest.raises(ValueError, match=complaint):
        Call(**facts)


@pytest.mark.parametrize("name", [name for name in SUITES if name != "real"])
def test_every_suite_can_be_made_and_is_the_same_for_a_seed(name):
    made = suite(name, seed=3)
    assert made.name == name
    assert len({call.id for call in made.calls}) == len(made.calls)
    assert all(call.after is not None or call.arrival < made.seconds for call in made.calls)
    assert made == suite(name, seed=3)


def test_suites_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="'nope' is unknown: use one of overload, "):
        suite("nope")
    with pytest.raises(ValueError, match="name its file with --trace"):
        suite("real")
    with pytest.raises(ValueError, match="only mixed_slo has one"):
        suite("overload", load=2.0)


def rates(name, start=0.0, end=None, seed=0):
    made = suite(name, seed=seed)
    end = made.seconds if end is None else end
    counts = Counter(call.tenant for call in made.calls if start <= call.arrival < end)
    return [round(counts[tenant] / (end - start), 2) for tenant in made.tenants]


def test_the_vtc_papers_suites_have_the_papers_rates():
    assert rates("overload") == [1.5, 3.0]
    assert rates("proportional") == [0.25, 0.5, 1.5]
    assert rates("on_off_less") == [0.25, 2.0]
    assert rates("on_off_overload", 0, 60) == [2.0, 3.0]
    assert rates("on_off_overload", 60, 120) == [0.0, 3.0]
    assert rates("poisson_short_long") == pytest.approx([8, 1.5], rel=0.1)
    assert rates("increase", 0, 60) == pytest.approx([0.5, 0.29], abs=0.03)
    assert rates("increase", 540, 600) == pytest.approx([0.5, 1.91], abs=0.03)
    assert rates("dist_shift", 0, 60) == [0.5, 2.0]
    assert rates("dist_shift", 60, 120) == [0.0, 2.0]
    assert rates("dist_shift", 300, 600) == [1.0, 1.0]
    assert rates("dist_shift", 600, 900) == [0.5, 1.5]
    assert rates("overload_weighted") == pytest.approx([0.8, 0.8, 1.2, 1.6], abs=0.01)
    assert suite("overload_weighted").weights == {f"client-{n}": n + 1 for n in range(4)}
    second = {(c.tenant, c.prompt_tokens, c.output_tokens) for c in suite("poisson_short_long_2").calls}
    assert second == {("client-0", 512, 32), ("client-1", 32, 512)}


def test_mixed_slo_is_half_interactive_at_the_load_asked_for():
    made = suite("mixed_slo", load=1.6)
    kinds = Counter((c.prompt_tokens, c.output_tokens, c.ttft_budget) for c in made.calls)
    assert set(kinds) == {(64, 64, 1.0), (256, 128, 60.0)}
    assert kinds[64, 64, 1.0] / len(made.calls) == pytest.approx(0.5, abs=0.03)
    counts = Counter(c.tenant for c in made.calls)
    assert [counts[f"client-{n}"] / 600 for n in range(6)] == pytest.approx([4.32] + [1.44] * 5, rel=0.15)


def test_exfairs_scenarios_have_the_artifacts_rates_and_slos():
    made = suite("exfairs_3", seed=1)
    slos = {c.tenant: c.e2e_budget for c in made.calls}
    assert slos == {"short-0": 17, "short-1": 18, "long-2": 19, "long-3": 19, "long-4": 21, "long-5": 21}
    assert made.client_timeout == 30
    assert all(c.arrival % 100 < 80 for c in made.calls)
    assert {c.max_tokens for c in made.calls} == {256}
    for number in range(1, 6):
        per_minute = len(suite(f"exfairs_{number}", seed=1).calls) / (10 * 80 / 60)
        assert per_minute == pytest.approx(128, rel=0.1)


def test_interactions_have_the_published_statistics():
    made = suite("interactions")
    assert len(made.calls) == pytest.approx(9_241, rel=0.02)
    assert made.client_timeout == 480
    calls_by_user = sorted(Counter(c.user for c in made.calls).values(), reverse=True)
    assert calls_by_user[:3] == pytest.approx([2_092, 600, 288], rel=0.1)
    assert len(calls_by_user) == pytest.approx(1_358, rel=0.03)
    by_application = Counter(c.application for c in made.calls)
    assert len(by_application) == 23
    assert by_application.most_common(1)[0][1] == pytest.approx(4_680, rel=0.05)
    interactions = Counter(c.interaction for c in made.calls)
    assert len(interactions) == pytest.approx(5_251, rel=0.05)
    order = [calls for calls, _ in Counter(interactions.values()).most_common()]
    assert order[0] == 1
    assert set(order) == {1, 2, 3, 4, 5}
    totals = [c.prompt_tokens + c.output_tokens for c in made.calls]
    assert max(totals) < 2_000


def test_interactions_lengths_before_the_drop_are_as_published():
    from equipoise_simulator.interactions import INPUT, OUTPUT
    from equipoise_simulator.traces import length_at

    for quantiles, want_mean, want_median, want_p90 in (
        (INPUT, 5_809, 3_573, 13_710),
        (OUTPUT, 109, 31, 312),
    ):
        lengths = [length_at(quantiles, (rank + 0.5) / 20_000) for rank in range(20_000)]
        assert mean(lengths) == pytest.approx(want_mean, rel=0.02)
        assert median(lengths) == pytest.approx(want_median, rel=0.02)
        assert quantile(lengths, 0.9) == pytest.approx(want_p90, rel=0.02)


def test_in_the_closed_loop_a_call_waits_for_the_one_before_it_and_in_the_open_one_for_nobody():
    closed, opened = suite("interactions"), suite("interactions_open")
    known = {call.id: call for call in closed.calls}
    for call in closed.calls:
        assert (call.after is None) == (call.call_index == 1)
        if call.after is not None:
            assert known[call.after].interaction == call.interaction
            assert known[call.after].call_index == call.call_index - 1
    assert all(call.after is None and call.arrival < 72 for call in opened.calls)
    assert len(closed.calls) == len(opened.calls)


def test_a_months_load_is_looked_at_in_a_sample():
    calls = tuple(
        Call(id=str(n), tenant="a", arrival=n * 2.6e6, prompt_tokens=1, output_tokens=1) for n in range(2)
    )
    month = Workload(name="month", calls=calls, seconds=2.6e6)
    assert 5_000 < len(month.ticks) <= 10_000
    assert month.ticks[1] - month.ticks[0] == 270.0
    assert Workload(name="hour", calls=calls, seconds=3_600.0).ticks[:2] == [30.0, 60.0]
