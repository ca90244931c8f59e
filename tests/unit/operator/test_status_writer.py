"""One budget for all writes; what is urgent first; nothing that changes nothing."""

import asyncio

import pytest

from equipoise_api.conditions import Condition
from equipoise_api.tenant import TenantStatus, Usage
from equipoise_operator.events import Events, Subject
from equipoise_operator.kube import ApiError
from equipoise_operator.leader import NotLeadingError
from equipoise_operator.status_writer import StatusWriter

pytestmark = pytest.mark.looptime


def subject(name):
    return Subject("Tenant", ("team", name), f"uid-{name}")


def where(name):
    return f"/apis/equipoise.dev/v1alpha1/namespaces/team/tenants/{name}"


def status(queued=0, ready="True", reason="Ready", at="2026-01-01T00:00:00Z"):
    condition = Condition(type="IdentityResolved", status=ready, reason=reason, last_transition_time=at)
    return TenantStatus(conditions=[condition], usage=Usage(queued=queued))


@pytest.fixture
def begin(api):
    """Start a writer in the test itself: there the loop's clock is the test's."""
    tasks = []

    def start():
        clock = asyncio.get_running_loop().time
        events = Events(api, instance="me", leads=lambda: True, clock=clock)
        made = StatusWriter(api, events, require=lambda: made.require(), clock=clock)  # noqa: PLW0108 - set later
        made.require = lambda: None
        tasks.extend([asyncio.create_task(made.run()), asyncio.create_task(events.run())])
        return made

    yield start
    for task in tasks:
        task.cancel()


def put(api, *names):
    api.version = 10
    for name in names:
        api.objects[where(name)] = {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"}}


def writes(api):
    return [path.split("/")[-2] for method, path, _ in api.calls if method == "PATCH"]


async def test_a_status_is_written_whole_and_for_that_uid_alone(api, begin):
    writer = begin()
    put(api, "blue")
    writer.offer(subject("blue"), 1, TenantStatus(), status(queued=3))
    await asyncio.sleep(1)
    assert api.objects[where("blue")]["status"]["usage"]["queued"] == 3
    assert api.calls[0][2][0] == {"op": "test", "path": "/metadata/uid", "value": "uid-blue"}


async def test_what_is_there_already_is_not_written(api, begin):
    writer = begin()
    put(api, "blue")
    writer.offer(subject("blue"), 1, status(3), status(3, at="2026-01-01T00:09:00Z"))
    await asyncio.sleep(1)
    assert api.calls == []


async def test_what_was_just_written_is_not_written_again_before_the_watch_shows_it(api, begin):
    writer = begin()
    put(api, "blue")
    for _ in range(5):
        writer.offer(subject("blue"), 1, TenantStatus(), status(3))
        await asyncio.sleep(0.5)
    assert len(writes(api)) == 1


async def test_what_the_watch_shows_counts_from_then_on(api, begin):
    writer = begin()
    put(api, "blue")
    writer.offer(subject("blue"), 1, TenantStatus(), status(3))
    await asyncio.sleep(0.5)
    writer.offer(subject("blue"), 99, status(8), status(3))
    await asyncio.sleep(0.5)
    assert len(writes(api)) == 2


async def test_a_transition_time_moves_on_a_flip_only(api, begin):
    writer = begin()
    put(api, "blue")
    old = status(1, at="2026-01-01T00:00:00Z")
    writer.offer(subject("blue"), 1, old, status(2, at="2026-02-02T00:00:00Z"))
    await asyncio.sleep(0.5)
    assert (
        api.objects[where("blue")]["status"]["conditions"][0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    )
    writer.offer(subject("blue"), 99, old, status(2, ready="False", at="2026-02-02T00:00:00Z"))
    await asyncio.sleep(0.5)
    assert (
        api.objects[where("blue")]["status"]["conditions"][0]["lastTransitionTime"] == "2026-02-02T00:00:00Z"
    )


async def test_ten_a_second_over_all_objects(api, begin):
    writer = begin()
    names = [f"t{n}" for n in range(200)]
    put(api, *names)
    await asyncio.sleep(5)
    for name in names:
        writer.offer(subject(name), 1, TenantStatus(), status(1))
    await asyncio.sleep(9.99)
    assert 100 <= len(writes(api)) <= 110
    assert writer.pending == 200 - len(writes(api))
    await asyncio.sleep(10)
    assert len(set(writes(api))) == 200


async def test_condition_changes_go_first(api, begin):
    writer = begin()
    names = [f"t{n}" for n in range(50)]
    put(api, *names, "broken")
    for name in names:
        writer.offer(subject(name), 1, status(0), status(5))
    writer.offer(subject("broken"), 1, status(0), status(0, ready="False"))
    await asyncio.sleep(0.5)
    assert writes(api)[0] == "broken"


async def test_then_the_one_that_was_written_longest_ago(api, begin):
    writer = begin()
    put(api, "a", "b", "c")
    for name in ("c", "a", "b"):
        writer.offer(subject(name), 1, status(0), status(1))
        await asyncio.sleep(0.1)
    for name in ("a", "b", "c"):
        writer.offer(subject(name), 99, status(1), status(2))
    await asyncio.sleep(1)
    assert writes(api) == ["c", "a", "b", "c", "a", "b"]


async def test_a_newer_offer_replaces_one_that_waits(api, begin):
    writer = begin()
    names = [f"t{n}" for n in range(12)]
    put(api, *names)
    for queued in (1, 2, 3):
        for name in names:
            writer.offer(subject(name), 1, status(0), status(queued))
    await asyncio.sleep(3)
    assert len(writes(api)) == 12
    assert {api.objects[where(name)]["status"]["usage"]["queued"] for name in names} == {3}


async def test_an_offer_that_became_void_is_not_written(api, begin):
    writer = begin()
    names = [f"t{n}" for n in range(11)]
    put(api, *names)
    for name in names:
        writer.offer(subject(name), 1, status(0), status(1))
    writer.offer(subject("t10"), 1, status(0), status(0))
    await asyncio.sleep(3)
    assert "t10" not in writes(api)


async def test_an_object_that_is_gone_or_another_is_given_up(api, begin):
    writer = begin()
    put(api, "green")
    api.objects[where("green")]["metadata"]["uid"] = "another"
    writer.offer(subject("blue"), 1, TenantStatus(), status(1))
    writer.offer(subject("green"), 1, TenantStatus(), status(1))
    await asyncio.sleep(5)
    assert writer.pending == 0
    assert "status" not in api.objects[where("green")]


async def test_a_write_that_fails_is_made_later(api, begin):
    writer = begin()
    put(api, "blue")
    api.fail_next = [ApiError(500, "InternalError", "etcd")]
    writer.offer(subject("blue"), 1, TenantStatus(), status(1))
    await asyncio.sleep(5)
    assert api.objects[where("blue")]["status"]["usage"]["queued"] == 1


async def test_nothing_is_written_by_one_that_does_not_lead(api, begin):
    writer = begin()
    put(api, "blue")

    def refuse():
        raise NotLeadingError("no")

    writer.require = refuse
    writer.offer(subject("blue"), 1, TenantStatus(), status(1))
    await asyncio.sleep(5)
    assert api.calls == []


async def test_a_flip_is_told_as_an_event_once(api, begin):
    writer = begin()
    put(api, "blue")
    for _ in range(3):
        writer.offer(subject("blue"), 1, status(0), status(0, ready="False", reason="SecretNotFound"))
        await asyncio.sleep(1)
    events = [body for method, path, body in api.calls if path == "/api/v1/namespaces/team/events"]
    (event,) = events
    assert (event["type"], event["reason"]) == ("Warning", "SecretNotFound")
    assert event["involvedObject"]["uid"] == "uid-blue"


async def test_what_is_refused_for_some_holds_up_nobody_else(api, begin):
    """As where the Role of one namespace is missing."""
    writer = begin()
    refused = {f"no{n}" for n in range(40)}
    names = [f"t{n}" for n in range(40)]
    put(api, *refused, *names)

    async def judge(method, path):
        if method == "PATCH" and path.split("/")[-2] in refused:
            raise ApiError(403, "Forbidden", "tenants/status")

    api.before_answer = judge
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 20:
        for name in (*refused, *names):
            writer.offer(subject(name), 1, TenantStatus(), status(1))
        await asyncio.sleep(1)
    assert set(names) <= set(writes(api))
    assert all("status" in api.objects[where(name)] for name in names)
    assert len(writes(api)) > 150, "the budget is used"


async def test_what_is_refused_is_tried_ever_more_seldom_until_it_is_taken(api, begin):
    writer = begin()
    put(api, "blue")
    refusing = True

    async def judge(method, path):
        if refusing:
            raise ApiError(403, "Forbidden", "tenants/status")

    api.before_answer = judge
    for _ in range(1000):
        writer.offer(subject("blue"), 1, TenantStatus(), status(1))
        await asyncio.sleep(1)
    assert 8 <= len(writes(api)) <= 11
    refusing = False
    for _ in range(601):
        writer.offer(subject("blue"), 1, TenantStatus(), status(1))
        await asyncio.sleep(1)
    assert api.objects[where("blue")]["status"]["usage"]["queued"] == 1
