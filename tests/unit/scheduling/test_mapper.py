"""The metric mapper: what it expects of an engine, and how it learns one."""

import json
import random

import pytest

from equipoise_scheduling.least_squares import LeastSquares
from equipoise_scheduling.mapper import UNMEASURED, Load, MetricMapper


def engine(prompt, output, load, speed=1.0):
    """Seconds on an engine whose steps cost as they do, `speed` times as fast."""
    step = 0.1 + 0.002 * load.sequences + 2e-6 * load.context_tokens
    return (0.5 + 1e-3 * (prompt + load.prompt_tokens) + output * step) / speed


def samples(count, seed=1):
    rng = random.Random(seed)
    for _ in range(count):
        load = Load(rng.randint(0, 64), rng.randint(0, 5_000), rng.randint(0, 60_000))
        yield rng.randint(1, 3_000), rng.randint(1, 800), load


def taught(count=300, seed=1, speed=1.0, mapper=None):
    mapper = mapper or MetricMapper()
    for prompt, output, load in samples(count, seed):
        mapper.learn(prompt, output, load, latency=engine(prompt, output, load, speed))
    return mapper


def test_knows_a_moderate_engine_before_it_has_seen_one():
    metrics = MetricMapper().predict(512, 256, Load())
    assert 3 < metrics.latency < 10
    assert metrics.tokens_per_second == pytest.approx(768 / metrics.latency)
    assert metrics.utilisation == 1.0


def test_more_work_and_more_company_take_longer_from_the_start():
    mapper = MetricMapper()
    least = mapper.predict(100, 100, Load()).latency
    for prompt, output, load in [
        (2000, 100, Load()),
        (100, 200, Load()),
        (100, 100, Load(sequences=32)),
        (100, 100, Load(prompt_tokens=4000)),
        (100, 100, Load(context_tokens=50_000)),
    ]:
        assert mapper.predict(prompt, output, load).latency > least


def test_fits_itself_to_the_engine_at_hand():
    mapper = taught()
    for prompt, output, load in samples(50, seed=2):
        expected = engine(prompt, output, load)
        assert mapper.predict(prompt, output, load).latency == pytest.approx(expected, rel=0.05)


def test_a_handful_of_requests_give_the_right_magnitude():
    mapper = taught(count=10, speed=0.1)
    for prompt, output, load in samples(50, seed=2):
        expected = engine(prompt, output, load, speed=0.1)
        assert mapper.predict(prompt, output, load).latency == pytest.approx(expected, rel=0.5)


def test_follows_an_engine_that_becomes_slower():
    mapper = taught()
    taught(count=1000, seed=3, speed=0.25, mapper=mapper)
    prompt, output, load = 500, 200, Load(10, 500, 5_000)
    expected = engine(prompt, output, load, speed=0.25)
    assert mapper.predict(prompt, output, load).latency == pytest.approx(expected, rel=0.05)


def test_a_hang_does_not_throw_the_fit():
    mapper = taught()
    before = mapper.predict(500, 200, Load(10)).latency
    mapper.learn(500, 200, Load(10), latency=36_000)
    assert mapper.predict(500, 200, Load(10)).latency < 2 * before


def test_a_load_that_never_varies_does_not_wind_the_fit_up():
    mapper = taught()
    for _ in range(20_000):
        mapper.learn(100, 100, Load(4), latency=engine(100, 100, Load(4)))
    mapper.learn(2_000, 700, Load(60, 4_000, 50_000), latency=30.0)
    assert mapper.predict(100, 100, Load(4)).latency == pytest.approx(engine(100, 100, Load(4)), rel=0.2)
    assert 1 < mapper.predict(2_000, 700, Load(60, 4_000, 50_000)).latency < 300


def test_utilisation_is_learnt_where_it_is_measured():
    mapper = MetricMapper()
    for sequences in [0, 8, 32, 64] * 50:
        mapper.learn(
            100,
            100,
            Load(sequences),
            latency=5.0,
            utilisation=0.3 + 0.6 * sequences / (sequences + 32),
        )
    assert mapper.predict(100, 100, Load(0)).utilisation == pytest.approx(0.3, abs=0.05)
    assert mapper.predict(100, 100, Load(64)).utilisation == pytest.approx(0.7, abs=0.05)


def test_utilisation_counts_in_full_where_nobody_measures_it_any_more():
    mapper = MetricMapper()
    for _ in range(20):
        mapper.learn(100, 100, Load(), latency=5.0, utilisation=0.25)
    for _ in range(UNMEASURED - 1):
        mapper.learn(100, 100, Load(), latency=5.0)
    assert mapper.predict(100, 100, Load()).utilisation == pytest.approx(0.25, abs=0.01)
    mapper.learn(100, 100, Load(), latency=5.0)
    assert mapper.predict(100, 100, Load()).utilisation == 1.0


@pytest.mark.parametrize(
    ("latency", "utilisation", "complaint"),
    [
        (-1.0, None, "latency=-1.0 must be a number not below 0"),
        (float("nan"), None, "latency=nan must be"),
        (float("inf"), None, "latency=inf must be"),
        (1.0, 1.5, r"utilisation=1.5 must lie within \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_and_teaches_nothing(latency, utilisation, complaint):
    mapper = MetricMapper()
    before = mapper.snapshot()
    with pytest.raises(ValueError, match=complaint):
        mapper.learn(1, 1, Load(), latency=latency, utilisation=utilisation)
    assert mapper.snapshot() == before


def test_restored_mapper_goes_on_exactly():
    first, second = taught(), MetricMapper()
    second.restore(json.loads(json.dumps(first.snapshot())))
    for mapper in (first, second):
        taught(count=20, seed=5, mapper=mapper)
    assert first.snapshot() == second.snapshot()
    assert first.predict(7, 8, Load(9)) == second.predict(7, 8, Load(9))


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("samples", -1, "mapper.samples must be a count"),
        ("pace", 0, "mapper.pace must be a positive number"),
        ("pace", float("nan"), "mapper.pace must be"),
        ("unmeasured", True, "mapper.unmeasured must be a count"),
        ("latency", None, "must have theta"),
        ("latency", {"theta": [1], "diagonal": [1], "upper": [[]]}, "must be of 5 coefficients"),
        (
            "utilisation",
            {"theta": [1] * 3, "diagonal": [1, 0, 1], "upper": [[], [1], [1, 1]]},
            "positive ones",
        ),
        (
            "utilisation",
            {"theta": [float("inf")] * 3, "diagonal": [1] * 3, "upper": [[], [1], [1, 1]]},
            "finite numbers",
        ),
    ],
)
def test_snapshot_that_cannot_be_read_changes_nothing(part, value, complaint):
    mapper = taught(5)
    before = mapper.snapshot()
    with pytest.raises(ValueError, match=complaint):
        mapper.restore({**before, part: value})
    assert mapper.snapshot() == before


def test_says_how_far_it_was_off():
    mapper = MetricMapper()
    expected = mapper.predict(10, 10, Load())
    mapper.learn(10, 10, Load(), latency=expected.latency + 2, utilisation=0.75)
    errors = mapper.errors()
    assert errors["latency_seconds"].mean_absolute == pytest.approx(2)
    assert errors["latency_seconds"].bias == pytest.approx(-2)
    assert errors["utilisation"].bias == pytest.approx(0.25)


def test_least_squares_finds_what_the_samples_were_made_of():
    rng = random.Random(4)
    fit = LeastSquares([0.0] * 3, [1e4] * 3, forgetting=1.0)
    for _ in range(200):
        x = (1.0, rng.random(), rng.random())
        fit.learn(x, 2 * x[0] - 3 * x[1] + 0.5 * x[2])
    assert [fit.predict(x) for x in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == pytest.approx(
        [2, -3, 0.5], abs=1e-3
    )


def test_least_squares_is_the_textbook_update():
    # P = 4, lambda = 0.5, x = 2, y = 3: k = 8 / (0.5 + 16), theta = k * 3.
    fit = LeastSquares([0.0], [4.0], forgetting=0.5)
    fit.learn([2.0], 3.0)
    assert fit.predict([1.0]) == pytest.approx(3 * 8 / 16.5)
    assert fit.snapshot()["diagonal"] == pytest.approx([(4 - 8 / 16.5 * 8) / 0.5])


def test_utilisation_that_is_measured_again_after_long_is_learnt_anew():
    again, fresh = MetricMapper(), MetricMapper()
    for prompt, output, load in samples(50):
        again.learn(prompt, output, load, latency=1.0, utilisation=0.1)
    for prompt, output, load in samples(UNMEASURED):
        again.learn(prompt, output, load, latency=1.0)
    for prompt, output, load in samples(5, seed=2):
        for mapper in (again, fresh):
            mapper.learn(prompt, output, load, latency=1.0, utilisation=0.9)
    expected = [mapper.predict(500, 100, Load(8)).utilisation for mapper in (again, fresh)]
    assert expected[0] == expected[1] > 0.5
