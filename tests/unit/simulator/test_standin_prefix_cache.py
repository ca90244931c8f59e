"""The stand-in's prefix cache: what it serves, what it says of it, what it forgets."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp

from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.standin import Settings, StandIn

COMPLETIONS = "/v1/completions"

SETTINGS = Settings(prefix_caching=True, prompt_tokens_details=True)
FIRST = list(range(100))


@asynccontextmanager
async def serving(**options):
    """A stand-in and a client of it."""
    async with StandIn(speed=100, **options) as engine, aiohttp.ClientSession(engine.url) as session:
        yield engine, session


async def ask(session, body):
    async with session.post(COMPLETIONS, json=body) as reply:
        return await reply.json()


def prompt(ids, **more):
    return {"prompt": ids, "max_tokens": 3, "ignore_eos": True, **more}


def cached(answer) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


async def metrics(session) -> dict[str, float]:
    async with session.get("/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:")}


async def test_whole_blocks_that_were_computed_are_served_and_counted():
    async with serving(settings=SETTINGS) as (engine, session):
        assert engine.model.profile.block_size == 16
        got = [
            cached(await ask(session, prompt(ids)))
            for ids in (FIRST, FIRST, FIRST[:96], [*FIRST[:50], *range(500, 550)], list(range(1, 101)))
        ]
        # all but what follows from the last token; three blocks of 16; nothing
        assert got == [0, 96, 80, 48, 0]
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with session.post(COMPLETIONS, json=prompt(FIRST, **options)) as reply:
            *_, usage, done, _ = (await reply.text()).split("\n\n")
        assert (cached(json.loads(usage.removeprefix("data: "))), done) == (96, "data: [DONE]")
        said = await metrics(session)
    assert said["vllm:prompt_tokens_cached_total"] == said["vllm:prefix_cache_hits_total"] == sum(got) + 96
    assert said["vllm:prompt_tokens_total"] == said["vllm:prefix_cache_queries_total"] == 596


async def test_what_is_cached_takes_no_time_to_compute():
    async with serving(settings=SETTINGS) as (engine, session):
        await ask(session, prompt(FIRST))
        before = engine.stats.prompt_tokens
        await ask(session, prompt(FIRST))
        assert (before, engine.stats.prompt_tokens) == (100, 104)


async def test_of_two_at_once_the_second_is_served_from_the_first():
    async with serving(settings=SETTINGS) as (_, session):
        both = await asyncio.gather(*(ask(session, prompt(FIRST)) for _ in range(2)))
    assert sorted(cached(answer) for answer in both) == [0, 96]


async def test_the_oldest_goes_when_the_pool_is_full():
    profile = replace(PROFILES["fast"], kv_tokens=160, max_model_len=160)
    async with serving(profile=profile, settings=SETTINGS) as (_, session):
        for start in (0, 1000):
            await ask(session, prompt(list(range(start, start + 100))))
        first = await ask(session, prompt(FIRST))
    assert cached(first) == 64, "ten blocks: six of the second prompt, four of the first one's beginning"


async def test_without_it_nothing_is_cached_and_the_engine_says_so():
    async with serving(settings=Settings(prompt_tokens_details=True)) as (_, session):
        for _ in range(2):
            got = await ask(session, prompt(FIRST))
        async with session.get("/metrics") as reply:
            assert 'enable_prefix_caching="False"' in await reply.text()
    assert cached(got) == 0


async def test_what_was_generated_is_served_to_a_prompt_that_brings_it_back():
    async with serving(settings=SETTINGS) as (_, session):
        asked = "word " * 30 + "\n"
        answer = await ask(session, {"prompt": asked, "max_tokens": 40, "ignore_eos": True})
        again = await ask(session, prompt(asked + answer["choices"][0]["text"] + " more of it"))
    assert answer["usage"]["completion_tokens"] == 40
    assert cached(again) == (30 + 39) // 16 * 16, "all but the last token, which was never computed"
