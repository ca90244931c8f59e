import asyncio

import pytest

from equipoise_operator.ca_bundle import CaBundle
from equipoise_operator.kube import ApiError

pytestmark = pytest.mark.looptime


def where(namespace):
    return f"/api/v1/namespaces/{namespace}/configmaps/equipoise-ca"


def begin(api, *, leads=True):
    bundle = CaBundle(api, install="equipoise", leads=lambda: leads)
    return bundle, asyncio.create_task(bundle.run())


async def test_every_namespace_that_needs_it_gets_it_and_no_other(api):
    bundle, task = begin(api)
    bundle.publish("PEM")
    bundle.want(frozenset({"a", "b"}))
    await asyncio.sleep(0.1)
    assert {path: held["data"] for path, held in api.objects.items()} == {
        where("a"): {"ca.crt": "PEM"},
        where("b"): {"ca.crt": "PEM"},
    }
    task.cancel()


async def test_a_new_namespace_gets_it_at_once_and_the_others_are_left_alone(api):
    bundle, task = begin(api)
    bundle.publish("PEM")
    bundle.want(frozenset({"a"}))
    await asyncio.sleep(1)
    bundle.want(frozenset({"a", "b"}))
    await asyncio.sleep(0.1)
    assert [path for _, path, _ in api.calls] == [where("a"), where("b")]
    task.cancel()


async def test_new_certificates_go_everywhere(api):
    bundle, task = begin(api)
    bundle.publish("OLD")
    bundle.want(frozenset({"a", "b"}))
    await asyncio.sleep(1)
    bundle.publish("NEW")
    await asyncio.sleep(0.1)
    assert {held["data"]["ca.crt"] for held in api.objects.values()} == {"NEW"}
    task.cancel()


async def test_one_that_somebody_deletes_is_back_within_a_minute(api):
    bundle, task = begin(api)
    bundle.publish("PEM")
    bundle.want(frozenset({"a"}))
    await asyncio.sleep(1)
    api.objects.clear()
    await asyncio.sleep(61)
    assert where("a") in api.objects
    task.cancel()


async def test_what_fails_is_tried_again(api):
    bundle, task = begin(api)
    api.fail_next = [ApiError(403, "Forbidden", "namespace is terminating")]
    bundle.publish("PEM")
    bundle.want(frozenset({"a"}))
    await asyncio.sleep(3)
    assert where("a") in api.objects
    task.cancel()


async def test_a_standby_writes_nothing(api):
    bundle, task = begin(api, leads=False)
    bundle.publish("PEM")
    bundle.want(frozenset({"a"}))
    await asyncio.sleep(100)
    assert api.calls == []
    task.cancel()
