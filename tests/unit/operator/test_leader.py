"""The Lease loop against an API server in memory: one leads, it knows in time when it does not, terms only grow."""

import asyncio
import contextlib

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_operator.kube import ApiUnreachableError
from equipoise_operator.leader import (
    HIGHEST_EPOCH,
    Leader,
    LeadershipLostError,
    NotLeadingError,
    Timing,
    _record,
)

pytestmark = pytest.mark.looptime
LEASE = "/apis/coordination.k8s.io/v1/namespaces/platform/leases/operator"


def now():
    return asyncio.get_running_loop().time()


def candidate(api, name, timing=None):
    return Leader(api, namespace="platform", name="operator", candidate=name, timing=timing, clock=now)


def lease(api):
    return api.objects[LEASE]["spec"]


async def test_the_first_takes_the_lease_at_once(api):
    leader = candidate(api, "a")
    await leader.campaign()
    assert leader.leads()
    assert leader.epoch == 1
    assert lease(api)["holderIdentity"] == leader.identity
    assert lease(api)["leaseDurationSeconds"] == 10


async def test_a_leader_renews_and_leads_on(api):
    leader = candidate(api, "a")
    await leader.campaign()
    keeping = asyncio.create_task(leader.keep())
    for _ in range(50):
        await asyncio.sleep(1)
        assert leader.leads()
    assert leader.epoch == 1
    keeping.cancel()


async def test_a_second_waits_as_long_as_the_first_renews(api):
    first, second = candidate(api, "a"), candidate(api, "b")
    await first.campaign()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.campaign())
    await asyncio.sleep(60)
    assert not waiting.done()
    assert not second.leads()
    keeping.cancel()
    waiting.cancel()


async def test_a_lease_that_is_not_renewed_is_taken_after_its_duration_and_raises_the_term(api):
    first, second = candidate(api, "a"), candidate(api, "b")
    await first.campaign()
    started = now()
    await second.campaign()
    assert 10 <= now() - started <= 11
    assert second.epoch == first.epoch + 1
    assert not first.leads()


async def test_a_candidate_that_comes_late_watches_for_a_whole_duration_itself(api):
    """Clocks of two machines are not compared: what counts is what was seen."""
    await candidate(api, "a").campaign()
    await asyncio.sleep(1000)
    late = candidate(api, "b")
    started = now()
    await late.campaign()
    assert 10 <= now() - started <= 11


async def test_the_same_pod_takes_its_lease_back_at_once(api):
    former = candidate(api, "a")
    await former.campaign()
    again = candidate(api, "a")
    started = now()
    await again.campaign()
    assert now() - started < 0.1
    assert again.epoch == former.epoch + 1


async def test_a_released_lease_is_taken_at_the_next_look(api):
    first, second = candidate(api, "a"), candidate(api, "b")
    await first.campaign()
    waiting = asyncio.create_task(second.campaign())
    await asyncio.sleep(3)
    await first.release()
    assert not first.leads()
    released = now()
    await waiting
    assert now() - released <= 0.5
    assert second.epoch == 2


async def test_who_does_not_lead_releases_nothing(api):
    first, second = candidate(api, "a"), candidate(api, "b")
    await first.campaign()
    await second.release()
    assert lease(api)["holderIdentity"] == first.identity


async def test_a_leader_whose_api_server_is_down_stops_in_time_and_ends(api):
    leader = candidate(api, "a")
    await leader.campaign()
    api.down = True
    started = now()
    with pytest.raises(LeadershipLostError):
        await leader.keep()
    assert now() - started <= 7
    assert not leader.leads()


async def test_it_stops_leading_before_anybody_else_can_begin(api):
    timing = Timing()
    leader = candidate(api, "a")
    await leader.campaign()
    api.down = True
    keeping = asyncio.create_task(leader.keep())
    await asyncio.sleep(timing.renew - 0.01)
    assert leader.leads()
    await asyncio.sleep(0.02)
    assert not leader.leads()
    with pytest.raises(NotLeadingError):
        leader.require()
    with pytest.raises(LeadershipLostError):
        await keeping


async def test_a_short_failure_is_survived_and_the_recovery_told(api):
    leader = candidate(api, "a")
    told = []
    leader.on_recovered = lambda: told.append(now())
    await leader.campaign()
    keeping = asyncio.create_task(leader.keep())
    await asyncio.sleep(1)
    api.down = True
    await asyncio.sleep(4)
    api.down = False
    await asyncio.sleep(10)
    assert leader.leads()
    assert len(told) == 1
    keeping.cancel()


async def test_a_standby_tells_of_a_recovery_too(api):
    await candidate(api, "a").campaign()
    second = candidate(api, "b")
    told = []
    second.on_recovered = lambda: told.append(1)
    waiting = asyncio.create_task(second.campaign())
    await asyncio.sleep(1)
    api.down = True
    await asyncio.sleep(2)
    api.down = False
    await asyncio.sleep(1)
    assert told == [1]
    waiting.cancel()


async def test_a_renewal_that_hangs_counts_from_its_start(api):
    """A stopped process wakes with an answer that is old: the term is over although the renewal succeeded."""
    leader = candidate(api, "a")
    await leader.campaign()

    async def stop_the_process(method, _):
        if method == "PUT":
            api.before_answer = None
            await asyncio.sleep(30)

    api.before_answer = stop_the_process
    keeping = asyncio.create_task(leader.keep())
    await asyncio.sleep(33)
    assert not leader.leads()
    with pytest.raises(LeadershipLostError):
        await keeping


async def test_who_finds_anothers_name_in_the_lease_ends_at_once(api):
    leader = candidate(api, "a")
    await leader.campaign()
    api.objects[LEASE]["spec"]["holderIdentity"] = "b_1234"
    api.objects[LEASE]["metadata"]["resourceVersion"] = "999"
    with pytest.raises(LeadershipLostError, match="b_1234"):
        await leader.keep()
    assert not leader.leads()


async def test_a_conflict_over_nothing_is_no_loss(api):
    """Somebody put a label on the Lease."""
    leader = candidate(api, "a")
    await leader.campaign()
    api.objects[LEASE]["metadata"]["resourceVersion"] = "999"
    keeping = asyncio.create_task(leader.keep())
    await asyncio.sleep(20)
    assert leader.leads()
    keeping.cancel()


async def test_a_deleted_lease_is_taken_again_in_a_new_term(api):
    leader = candidate(api, "a")
    await leader.campaign()
    keeping = asyncio.create_task(leader.keep())
    await asyncio.sleep(3)
    del api.objects[LEASE]
    await asyncio.sleep(5)
    assert leader.leads()
    assert leader.epoch == 2
    assert lease(api)["leaseTransitions"] == 2
    keeping.cancel()


async def test_a_lease_that_was_released_taken_and_deleted_between_two_looks_is_not_taken_for_free(api):
    first, second, third = (candidate(api, name) for name in "abc")
    await first.campaign()
    assert not await third._try_acquire()
    await first.release()
    released = api.objects[LEASE]
    await second.campaign()
    third._observe(_record(released["spec"], third.timing))  # a look just before the second took it
    del api.objects[LEASE]
    started = now()
    await third.campaign()
    assert now() - started >= third.timing.duration
    assert not second.leads()


async def test_a_write_whose_answer_was_lost_is_found_again(api):
    leader = candidate(api, "a")
    await leader.campaign()
    keeping = asyncio.create_task(leader.keep())

    original = api.replace

    async def lose_the_answer(where, body, *, deadline=10.0):
        await original(where, body, deadline=deadline)
        api.replace = original
        raise ApiUnreachableError("reset")

    api.replace = lose_the_answer
    await asyncio.sleep(20)
    assert leader.leads()
    assert leader.epoch == 1
    keeping.cancel()


async def test_a_term_is_raised_above_what_a_sidecar_saw(api):
    leader = candidate(api, "a")
    await leader.campaign()
    await leader.raise_above(41)
    assert leader.epoch == 42
    assert lease(api)["leaseTransitions"] == 42
    await leader.raise_above(7)
    assert leader.epoch == 42


async def test_a_lie_about_the_term_is_not_believed(api):
    leader = candidate(api, "a")
    await leader.campaign()
    with pytest.raises(ValueError, match="higher than any Lease"):
        await leader.raise_above(HIGHEST_EPOCH)
    assert leader.epoch == 1


async def test_who_does_not_lead_raises_nothing(api):
    leader = candidate(api, "a")
    await leader.campaign()
    api.down = True
    with pytest.raises(LeadershipLostError):
        await leader.keep()
    api.down = False
    with pytest.raises(NotLeadingError):
        await leader.raise_above(5)
    assert lease(api)["leaseTransitions"] == 1


class Link:
    """One candidate's way to the API server: it can be cut, or hang until it is mended."""

    def __init__(self, api):
        self.api = api
        self.mended = asyncio.Event()
        self.mended.set()
        self.cut = False

    def __getattr__(self, verb):
        async def call(where, *body, deadline=10.0, **params):
            try:
                async with asyncio.timeout(deadline):
                    await self.mended.wait()
            except TimeoutError as error:
                raise ApiUnreachableError("no answer") from error
            if self.cut:
                raise ApiUnreachableError("refused")
            return await getattr(self.api, verb)(where, *body, deadline=deadline, **params)

        return call


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["cut", "hang", "mend", "release", "delete the lease"]),
            st.floats(0.1, 9.0),
        ),
        max_size=15,
    )
)
def test_never_do_two_lead_at_once_and_terms_only_grow(make, events):
    """Three candidates, each with a link of its own that fails, hangs and comes back; a process that ends starts anew."""
    loop = looptime.new_event_loop()
    try:
        loop.run_until_complete(_story(make.FakeApi(), events))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


async def _story(api, events):
    links = [Link(api) for _ in range(3)]
    present = [None] * 3
    terms = []

    async def live(number):
        while True:
            leader = present[number] = candidate(links[number], f"pod-{number}")
            await leader.campaign()
            terms.append(leader.epoch)
            with contextlib.suppress(LeadershipLostError):
                await leader.keep()

    async def watch():
        while True:
            leading = [leader.identity for leader in present if leader and leader.leads()]
            assert len(leading) <= 1, leading
            await asyncio.sleep(0.05)

    running = [asyncio.create_task(live(number)) for number in range(3)]
    watching = asyncio.create_task(watch())
    for number, event, seconds in events:
        await _happen(event, api, links, present, number=number)
        await asyncio.sleep(seconds)
    for link in links:
        link.cut = False
        link.mended.set()
    await asyncio.sleep(25)
    assert not watching.done(), watching.exception()
    assert sum(leader.leads() for leader in present) == 1
    assert terms == sorted(set(terms))
    assert not any(task.done() for task in running)


async def _happen(event, api, links, present, *, number):
    link, leader = links[number], present[number]
    if event == "cut":
        link.cut = True
    elif event == "hang":
        link.mended.clear()
    elif event == "mend":
        link.cut = False
        link.mended.set()
    elif event == "release" and leader is not None and not link.cut:
        await leader.release()
        await asyncio.sleep(3)  # its process ends, and a new one looks at the Lease
    elif event == "delete the lease" and all(each and each.epoch + each._seen.epoch for each in present):
        # Once all have seen it, and its holder can take it again: see the module's last paragraph.
        holders = [way for way, each in zip(links, present, strict=True) if each.leads()]
        if holders and not holders[0].cut and holders[0].mended.is_set():
            api.objects.pop(LEASE, None)
            await asyncio.sleep(3)
