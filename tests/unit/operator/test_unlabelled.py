"""Why a Secret is not there: looked up slowly, by metadata alone."""

import asyncio

import pytest

from equipoise_operator.unlabelled import UnlabelledSecrets

pytestmark = pytest.mark.looptime
POLICY = ("team", "policy")


def where(name):
    return f"/api/v1/namespaces/team/secrets/{name}"


class Run:
    def __init__(self, api, *, leads=True):
        self.found, self.told = set(), []
        self.probe = UnlabelledSecrets(
            api,
            self.found,
            leads=lambda: leads,
            clock=asyncio.get_running_loop().time,
            on_change=self.told.append,
        )
        self.task = asyncio.create_task(self.probe.run())


def put(api, name, **labels):
    api.objects[where(name)] = {"metadata": {"name": name, "labels": labels, "resourceVersion": "1"}}


async def test_one_that_lacks_the_label_is_found_and_told_once(api):
    run = Run(api)
    put(api, "plain")
    run.probe.miss(POLICY, frozenset({("team", "plain"), ("team", "gone")}))
    await asyncio.sleep(1)
    assert run.found == {("team", "plain")}
    assert run.told == [("team", "plain")]
    assert {method for method, *_ in api.calls} == {"METADATA"}
    run.task.cancel()


async def test_it_is_looked_up_again_after_a_minute_and_told_when_it_goes(api):
    run = Run(api)
    put(api, "plain")
    run.probe.miss(POLICY, frozenset({("team", "plain")}))
    await asyncio.sleep(50)
    assert len(api.calls) == 1
    del api.objects[where("plain")]
    await asyncio.sleep(20)
    assert run.found == set()
    assert len(run.told) == 2
    run.task.cancel()


async def test_one_that_is_no_longer_missed_is_forgotten(api):
    run = Run(api)
    put(api, "plain")
    run.probe.miss(POLICY, frozenset({("team", "plain")}))
    await asyncio.sleep(1)
    run.probe.miss(POLICY, frozenset())
    await asyncio.sleep(10)
    assert run.found == set()
    run.task.cancel()


async def test_thousands_are_looked_up_ten_a_second(api):
    run = Run(api)
    run.probe.miss(POLICY, frozenset(("team", f"s{n}") for n in range(1000)))
    await asyncio.sleep(10)
    assert 100 <= len(api.calls) <= 125
    run.task.cancel()


async def test_a_label_that_says_something_else_is_none(api):
    run = Run(api)
    put(api, "plain", **{"equipoise.dev/credential": "yes"})
    run.probe.miss(POLICY, frozenset({("team", "plain")}))
    await asyncio.sleep(1)
    assert run.found == {("team", "plain")}
    run.task.cancel()


async def test_a_standby_asks_nothing(api):
    run = Run(api, leads=False)
    run.probe.miss(POLICY, frozenset({("team", "plain")}))
    await asyncio.sleep(100)
    assert api.calls == []
    run.task.cancel()
