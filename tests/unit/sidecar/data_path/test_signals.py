"""What the engine says of itself: its metrics, and the answers to the probe."""

from pathlib import Path

import pytest
from engine_fakes import Connection, answer, engine

from equipoise_sidecar.engine.errors import EngineError
from equipoise_sidecar.engine.fetch import fetch
from equipoise_sidecar.engine.pool import EngineAddress, EnginePool
from equipoise_sidecar.engine.probe import probe
from equipoise_sidecar.engine.signals import EngineSignals, parse_signals, scrape
from equipoise_sidecar.facts import EngineProfile
from equipoise_simulator.standin import Settings, StandIn

RECORDINGS = Path(__file__).parents[3] / "data" / "vllm"


def pool_to(url: str) -> EnginePool:
    return EnginePool(EngineAddress.parse(url))


def test_a_real_exposition():
    signals = parse_signals((RECORDINGS / "metrics.txt").read_bytes())
    assert signals == EngineSignals(
        running=0,
        waiting=0,
        preemptions=0,
        prompt_tokens=1391,
        cached_tokens=384,
        generated_tokens=563,
        kv_usage=0.0,
        kv_tokens=32768,
        block_tokens=128,
        prefix_caching=True,
        asleep=False,
        started=signals.started,
    )
    assert signals.started > 1.7e9


def test_what_is_absent_is_unknown_and_not_zero():
    assert parse_signals(b"") == EngineSignals()
    assert parse_signals(b"# TYPE vllm:num_requests_running gauge\n") == EngineSignals()
    assert parse_signals(b'vllm:num_requests_running_total{engine="0"} 3\n') == EngineSignals()
    nothing = b"vllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc\nvllm:num_preemptions_total +Inf\n"
    assert parse_signals(nothing) == EngineSignals()
    unknown = b"vllm:kv_cache_usage_perc NaN\nprocess_start_time_seconds -Inf\n"
    assert parse_signals(unknown) == EngineSignals()


def test_several_engines_are_summed_and_labels_may_hold_anything():
    text = b"""vllm:num_requests_running{engine="0",model_name="a}b 7"} 3.0
vllm:num_requests_running{engine="1",model_name="m\\"x"} 4.0 1795334569
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="0"} 1.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="50",kv_cache_size_tokens="900",engine="1"} 1.0
vllm:num_requests_waiting 2"""
    signals = parse_signals(text)
    assert (signals.running, signals.waiting, signals.kv_usage) == (7, 2, 0.375)
    assert (signals.kv_tokens, signals.block_tokens) == (2500, 16)


def test_one_engine_without_a_prefix_cache_and_one_asleep_are_seen():
    both = b"""vllm:cache_config_info{enable_prefix_caching="True",engine="0"} 1.0
vllm:cache_config_info{enable_prefix_caching="False",engine="1"} 1.0
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="1",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="1",sleep_state="discard_all"} 1.0"""
    signals = parse_signals(both)
    assert (signals.prefix_caching, signals.asleep) == (False, True)
    alone = parse_signals(b"".join(both.splitlines(keepends=True)[::2]))
    assert (alone.prefix_caching, alone.asleep) == (True, False)


@pytest.mark.parametrize(
    ("before", "after", "restarted"),
    [
        ({"started": 1.0}, {"started": 2.0}, True),
        ({"started": 1.0, "generated_tokens": 5}, {"started": 1.0, "generated_tokens": 6}, False),
        ({"generated_tokens": 5}, {"generated_tokens": 4}, True),
        ({"preemptions": 5}, {}, False),
        ({}, {"started": 1.0}, False),
    ],
)
def test_a_restart_shows_in_the_metrics(before, after, restarted):
    assert EngineSignals(**after).restarted_since(EngineSignals(**before)) is restarted


async def test_the_stand_ins_metrics_are_read():
    async with StandIn(profile="fast") as it:
        signals = await scrape(pool_to(it.url))
    assert signals.kv_tokens == it.model.profile.kv_tokens
    assert (signals.running, signals.waiting, signals.preemptions) == (0, 0, 0)


async def test_metrics_that_are_refused_or_do_not_come():
    async def script(connection: Connection) -> None:
        while request := await connection.request():
            if b"/metrics" in request[0]:
                connection.send(answer(b"no", b"500 Internal Server Error"))

    async with engine(script) as it:
        with pytest.raises(EngineError, match="500"):
            await scrape(pool_to(it.url))
        with pytest.raises(EngineError, match="no answer within"):
            await fetch(pool_to(it.url), "/slow", timeout=0.05)


@pytest.mark.parametrize(
    ("settings", "priorities", "expected"),
    [
        ({}, False, {"forces_usage": False, "reports_cached_tokens": False, "priorities": False}),
        ({"force_include_usage": True}, True, {"forces_usage": True, "priorities": True}),
        ({"prompt_tokens_details": True}, True, {"reports_cached_tokens": True}),
    ],
)
async def test_the_probe_finds_out_what_the_engine_does(settings, priorities, expected):
    settings = Settings(model="served", api_key="secret", **settings)
    async with StandIn(profile="fast", speed=50, settings=settings, priority_scheduling=priorities) as it:
        profile = await probe(pool_to(it.url), api_key="secret")
        assert profile.system_fingerprint == settings.fingerprint
        assert profile.models == ("served",)
        assert profile.max_model_len == it.model.profile.max_model_len
        assert {name: getattr(profile, name) for name in expected} == expected
        with pytest.raises(EngineError, match="401"):
            await probe(pool_to(it.url))


MODELS = answer(b'{"data":[{"id":"m","max_model_len":2048},{"id":"adapter"}]}')


def answering(models: bytes, completions: bytes):
    async def script(connection: Connection) -> None:
        while request := await connection.request():
            connection.send(models if request[0].startswith(b"GET /v1/models") else completions)

    return script


async def test_the_probe_waits_for_a_busy_engine():
    answers = [answer(b"", b"503 Service Unavailable")] * 2 + [answer(b'{"system_fingerprint":"f"}')] * 2

    async def script(connection: Connection) -> None:
        while request := await connection.request():
            connection.send(MODELS if request[0].startswith(b"GET") else answers.pop(0))

    async with engine(script) as it:
        assert (await probe(pool_to(it.url))).system_fingerprint == "f"
    assert answers == []


async def test_the_probe_of_an_engine_that_does_not_generate():
    async with engine(answering(MODELS, answer(b"{}", b"404 Not Found"))) as it:
        assert await probe(pool_to(it.url)) == EngineProfile(
            max_model_len=2048, models=("m", "adapter"), priorities=False
        )


@pytest.mark.parametrize(
    ("models", "completions", "message"),
    [
        (answer(b"[]"), b"", "/v1/models"),
        (answer(b'{"data":[]}'), b"", "no model"),
        (answer(b"", b"404 Not Found"), b"", "404"),
        (MODELS, answer(b"", b"503 Service Unavailable"), "busy"),
        (MODELS, answer(b"nonsense"), "/v1/completions"),
    ],
)
async def test_a_probe_that_fails_says_why(models, completions, message):
    async with engine(answering(models, completions)) as it:
        with pytest.raises(EngineError, match=message):
            await probe(pool_to(it.url), timeout=0.4)
