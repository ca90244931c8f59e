"""The authority's Secret: made by the leader alone, once, and left alone when it cannot be read."""

import asyncio
import base64

import pytest

from equipoise_operator.authority import AuthorityKeeper

pytestmark = pytest.mark.looptime
WHERE = "/api/v1/namespaces/platform/secrets/equipoise-ca"


def keeper(api, *, leads=True):
    return AuthorityKeeper(api, namespace="platform", install="equipoise", leads=lambda: leads)


async def run(keeper, seconds=2.0):
    seen = []
    task = asyncio.create_task(keeper.run(seen.append))
    await asyncio.sleep(seconds)
    task.cancel()
    return seen


async def test_the_leader_makes_it_and_everybody_reads_the_same(api):
    (made,) = await run(keeper(api))
    (read,) = await run(keeper(api, leads=False))
    assert read.bundle() == made.bundle()
    assert WHERE in api.objects


async def test_it_survives_a_restart(api):
    (first,) = await run(keeper(api))
    (second,) = await run(keeper(api))
    assert first.present.key_pem == second.present.key_pem


async def test_a_standby_makes_none_and_says_what_it_waits_for(api):
    standby = keeper(api, leads=False)
    assert await run(standby) == []
    assert "equipoise-ca" in standby.problem
    assert api.objects == {}


async def test_who_comes_second_takes_what_the_first_made(api):
    one, two = keeper(api), keeper(api)
    tasks = [asyncio.create_task(each.run(lambda _: None)) for each in (one, two)]
    await asyncio.sleep(3)
    assert (await one.ready()).bundle() == (await two.ready()).bundle()
    for task in tasks:
        task.cancel()


async def test_a_spoilt_secret_is_reported_and_not_overwritten(api):
    await run(keeper(api))
    api.objects[WHERE]["data"]["tls.crt"] = base64.b64encode(b"rubbish").decode()
    spoilt = dict(api.objects[WHERE]["data"])
    reader = keeper(api)
    assert await run(reader) == []
    assert "malformed" in reader.problem
    assert api.objects[WHERE]["data"] == spoilt


async def test_a_secret_that_is_replaced_is_taken_up(api):
    reader = keeper(api)
    seen = []
    task = asyncio.create_task(reader.run(seen.append))
    await asyncio.sleep(1)
    del api.objects[WHERE]
    await asyncio.sleep(61)
    assert len(seen) == 2
    assert seen[0].bundle() != seen[1].bundle()
    task.cancel()


async def test_an_api_server_that_is_down_is_waited_for(api):
    api.down = True
    reader = keeper(api)
    task = asyncio.create_task(reader.run(lambda _: None))
    await asyncio.sleep(5)
    assert "down" in reader.problem
    api.down = False
    async with asyncio.timeout(2):
        await reader.ready()
    task.cancel()
