"""Each sidecar gets what it should hold, on the loop's own clock, whatever it did before."""

import asyncio
import json

import pytest

from equipoise_api.sidecar_config import ConfigPatch, Problem, PushResult, SidecarConfig
from equipoise_api.sidecar_state import SidecarState
from equipoise_operator import reporter
from equipoise_operator.fleet import Fleet
from equipoise_operator.leader import NotLeadingError
from equipoise_operator.push import Pusher
from equipoise_operator.sidecar_client import RefusedError, SidecarError

pytestmark = pytest.mark.looptime
POLICY = "uid-team-policy"


class Network:
    """Sidecars by pod uid, behind the client's interface; each can be down, refuse, or restart."""

    def __init__(self):
        self.configs = {}
        self.pairs = {}
        self.incarnations = {}
        self.down = set()
        self.refusing = set()
        self.broken = {}
        """HTTP status that every push gets, by uid."""
        self.garbled = set()
        self.claims = set()
        """Those that say they took a newer push."""
        self.hung = set()
        self.seconds = 0.01
        """That a call takes."""
        self.pushes = []
        self.polls = 0
        self.in_flight = 0
        self.most = 0
        self.error = None

    async def call(self, pod):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(2.0 if pod.uid in self.hung else self.seconds)
            if pod.uid in self.hung:
                raise SidecarError("Unreachable", "no answer in 2 s")
            if self.error is not None:
                raise self.error
            if pod.uid in self.down:
                raise SidecarError("Unreachable", "connection refused")
        finally:
            self.in_flight -= 1

    async def state(self, pod):
        self.polls += 1
        await self.call(pod)
        if pod.uid in self.garbled:
            raise SidecarError("BadState", "state: tenants.0.service: Input should be a finite number")
        config = self.configs.get(pod.uid)
        pair = self.pairs.get(pod.uid, (0, 0))
        return SidecarState(
            incarnation=self.incarnations.get(pod.uid, "first"),
            revision=config.revision if config else None,
            epoch=pair[0],
            sequence=pair[1],
        )

    async def put(self, pod, body, revision, *, epoch, sequence):
        await self.call(pod)
        return self.take(pod, "PUT", SidecarConfig.model_validate_json(body), epoch, sequence)

    async def patch(self, pod, changes, *, epoch, sequence):
        await self.call(pod)
        patch = ConfigPatch.model_validate({"epoch": epoch, "sequence": sequence} | json.loads(changes))
        config = self.configs.get(pod.uid)
        if config is None or config.revision != patch.base_revision:
            raise RefusedError(412, Problem(message="other base"))
        tenants = {tenant.id: tenant for tenant in config.tenants} | {t.id: t for t in patch.tenants}
        kept = [tenants[name] for name in sorted(tenants) if name not in patch.removed]
        return self.take(
            pod, "PATCH", config.model_copy(update={"tenants": kept}), patch.epoch, patch.sequence
        )

    def take(self, pod, method, config, epoch, sequence):
        self.pushes.append((pod.uid, method, epoch, asyncio.get_running_loop().time()))
        if pod.uid in self.claims:
            raise RefusedError(409, Problem(message="newer", epoch=epoch, sequence=sequence + 1))
        if pod.uid in self.broken:
            raise RefusedError(self.broken[pod.uid], Problem(message="out of order"))
        if pod.uid in self.refusing:
            raise RefusedError(422, Problem(message="no", field="queue"))
        applied = self.configs.get(pod.uid) != config
        self.configs[pod.uid], self.pairs[pod.uid] = config, (epoch, sequence)
        return PushResult(revision=config.revision, epoch=epoch, sequence=sequence, applied=applied)

    def restart(self, uid, *, forget=True):
        self.incarnations[uid] = "again"
        if forget:
            self.configs.pop(uid, None)

    async def close(self):
        pass


@pytest.fixture
def network():
    return Network()


@pytest.fixture
async def fleet(network):
    async def raise_above(epoch):
        made.term = epoch + 1

    clock = asyncio.get_running_loop().time
    pusher = Pusher(network, epoch=lambda: made.term, raise_above=raise_above)
    made = Fleet(network, pusher, epoch=lambda: made.term, clock=clock, seed=1)
    made.term = 1
    yield made
    await made.close()


def assign(fleet, pods, policy=POLICY):
    fleet.assign("team", pods, {pod.uid: policy for pod in pods})


async def test_a_sidecar_gets_its_policys_configuration(make, fleet, network):
    want = make.compiled([make.tenant_body("blue")])
    fleet.configure(POLICY, want)
    assign(fleet, [make.pod("a"), make.pod("b")])
    await asyncio.sleep(0.5)
    assert network.configs == {"uid-team-a": want.config, "uid-team-b": want.config}
    assert fleet.census() == {"all": 2, "synced": 2, "failing": 0, "outdated": 0}


async def test_a_sidecar_that_no_policy_selects_gets_a_pass_through(make, fleet, network):
    assign(fleet, [make.pod("a")], policy=None)
    await asyncio.sleep(0.5)
    assert network.configs["uid-team-a"] == SidecarConfig()


async def test_nothing_is_pushed_before_the_first_compile(make, fleet, network):
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(3)
    assert network.configs == {}
    assert network.polls > 0


async def test_a_change_reaches_every_sidecar_at_once_as_a_patch(make, fleet, network):
    fleet.configure(POLICY, make.compiled([make.tenant_body("blue")]))
    pods = [make.pod(f"p{i}") for i in range(10)]
    assign(fleet, pods)
    await asyncio.sleep(5)
    changed = make.compiled([make.tenant_body("blue", weight=9)])
    network.pushes.clear()
    began = asyncio.get_running_loop().time()
    fleet.configure(POLICY, changed)
    await asyncio.sleep(1)
    assert {uid for uid, *_ in network.pushes} == {pod.uid for pod in pods}
    assert {method for _, method, *_ in network.pushes} == {"PATCH"}
    assert all(at - began < 0.2 for *_, at in network.pushes)
    assert all(config == changed.config for config in network.configs.values())


async def test_what_is_held_already_is_not_pushed_again(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(10)
    assert len(network.pushes) == 1
    fleet.configure(POLICY, make.compiled())
    await asyncio.sleep(10)
    assert len(network.pushes) == 1


async def test_a_sidecar_that_restarts_and_forgets_gets_it_again_within_two_seconds(make, fleet, network):
    want = make.compiled()
    fleet.configure(POLICY, want)
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(3.3)
    network.restart("uid-team-a")
    await asyncio.sleep(2)
    assert network.configs["uid-team-a"] == want.config


async def test_a_sidecar_that_comes_up_late_gets_it_within_two_seconds(make, fleet, network):
    want = make.compiled()
    network.down.add("uid-team-a")
    fleet.configure(POLICY, want)
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(300)
    (member,) = fleet.members(POLICY)
    assert member.error.reason == "Unreachable"
    network.down.clear()
    await asyncio.sleep(2)
    assert network.configs["uid-team-a"] == want.config
    assert member.error is None


async def test_one_that_is_down_holds_up_nobody(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    network.down.add("uid-team-a")
    assign(fleet, [make.pod("a"), make.pod("b")])
    await asyncio.sleep(0.5)
    assert set(network.configs) == {"uid-team-b"}


async def test_a_new_leader_pushes_even_what_is_held_and_only_an_empty_patch(make, fleet, network):
    want = make.compiled([make.tenant_body("blue")])
    network.configs["uid-team-a"] = want.config
    network.pairs["uid-team-a"] = (4, 99)
    fleet.term = 5
    fleet.configure(POLICY, want)
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(0.5)
    assert [(method, epoch) for _, method, epoch, _ in network.pushes] == [("PATCH", 5)]
    assert network.pairs["uid-team-a"][0] == 5


async def test_a_new_term_is_pushed_to_everybody(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a"), make.pod("b")])
    await asyncio.sleep(3)
    fleet.term = 9
    await asyncio.sleep(2)
    assert {pair[0] for pair in network.pairs.values()} == {9}


async def test_a_refused_configuration_is_not_pushed_every_second_and_a_new_one_at_once(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    network.refusing.add("uid-team-a")
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(31)
    assert 2 <= len(network.pushes) <= 4
    (member,) = fleet.members(POLICY)
    network.refusing.clear()
    mended = make.compiled([make.tenant_body("blue")])
    fleet.configure(POLICY, mended)
    await asyncio.sleep(0.2)
    assert member.held == mended.revision


async def test_a_refusal_is_known_for_as_long_as_it_stands(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    network.refusing.add("uid-team-a")
    assign(fleet, [make.pod("a")])
    for _ in range(20):
        await asyncio.sleep(0.7)
        (member,) = fleet.members(POLICY)
        assert member.error is not None
        assert member.error.reason == "Rejected"


async def test_a_pod_that_changes_hands_gets_the_other_policys_configuration(make, fleet, network):
    first, second = (
        make.compiled(),
        make.compiled(policy=make.policy_body("other", algorithm={"type": "FCFS"})),
    )
    fleet.configure(POLICY, first)
    fleet.configure("uid-team-other", second)
    pod = make.pod("a")
    assign(fleet, [pod])
    await asyncio.sleep(1)
    assign(fleet, [pod], policy="uid-team-other")
    await asyncio.sleep(0.2)
    assert network.configs["uid-team-a"] == second.config
    assign(fleet, [pod], policy=None)
    await asyncio.sleep(0.2)
    assert network.configs["uid-team-a"] == SidecarConfig()


async def test_a_pod_that_is_gone_is_left_alone_and_others_stay(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a"), make.pod("b")])
    await asyncio.sleep(1)
    assign(fleet, [make.pod("b")])
    polls = network.polls
    await asyncio.sleep(5)
    assert [member.pod.name for member in fleet.members(POLICY)] == ["b"]
    assert network.polls - polls <= 6


async def test_pods_of_another_namespace_stay_when_one_is_assigned_anew(make, fleet):
    other = make.pod("x", "other")
    fleet.assign("other", [other], {other.uid: None})
    assign(fleet, [make.pod("a")])
    assign(fleet, [])
    assert [member.pod.name for member in fleet.members(None)] == ["x"]


async def test_a_pod_without_a_running_sidecar_is_not_called(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a", running=False), make.pod("b", ip="")])
    await asyncio.sleep(3)
    assert network.polls == 0


async def test_a_hundred_pods_are_not_called_all_at_once(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod(f"p{i}") for i in range(100)])
    await asyncio.sleep(3)
    assert len(network.configs) == 100
    assert network.most == 64


async def test_one_that_does_not_lead_keeps_trying_and_breaks_nothing(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    network.error = NotLeadingError("no")
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(5)
    network.error = None
    await asyncio.sleep(2)
    assert len(network.configs) == 1


async def test_how_a_sidecar_is_goes_on_being_read_while_it_fails_at_every_push(make, fleet, network):
    network.broken["uid-team-a"] = 500
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(30)
    (member,) = fleet.members(POLICY)
    assert (member.error.reason, member.error.status) == ("Refused", 500)
    assert asyncio.get_running_loop().time() - member.state_at < 2
    network.broken.clear()
    await asyncio.sleep(2)
    assert member.held == fleet.config(POLICY).revision
    assert member.error is None


async def test_a_sidecar_whose_state_makes_no_sense_is_configured_all_the_same(make, fleet, network):
    network.garbled.add("uid-team-a")
    fleet.configure(POLICY, make.compiled([make.tenant_body("blue")]))
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(1)
    assert network.configs["uid-team-a"] == fleet.config(POLICY).config
    (member,) = fleet.members(POLICY)
    assert member.error.reason == "BadState"
    revoked = make.compiled()
    fleet.configure(POLICY, revoked)
    await asyncio.sleep(1)
    assert network.configs["uid-team-a"] == revoked.config
    assert len(network.pushes) == 2


async def test_hundreds_that_hang_hold_up_none_that_answers(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    hung = [make.pod(f"hung-{number}") for number in range(300)]
    network.hung = {pod.uid for pod in hung}
    assign(fleet, [*hung, make.pod("a")])
    await asyncio.sleep(30)
    changed = make.compiled([make.tenant_body("blue")])
    began = asyncio.get_running_loop().time()
    fleet.configure(POLICY, changed)
    await asyncio.sleep(1)
    (push,) = [each for each in network.pushes if each[0] == "uid-team-a" and each[3] >= began]
    assert push[3] - began < 0.2


async def test_a_fault_of_ours_leaves_no_sidecar_alone(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    network.error = ZeroDivisionError("a defect")
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(3)
    (member,) = fleet.members(POLICY)
    assert member.error.reason == "Fault"
    network.error = None
    await asyncio.sleep(2)
    assert member.held == fleet.config(POLICY).revision


async def test_one_that_claims_a_newer_push_whatever_our_term_is_not_asked_every_second(make, fleet, network):
    raised = []

    async def raise_above(epoch):
        raised.append(epoch)
        fleet.term = epoch + 1

    fleet._pusher._raise_above = raise_above
    network.claims.add("uid-team-a")
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a"), make.pod("b")])
    await asyncio.sleep(31)
    assert 3 <= len(raised) <= 12
    (member,) = [each for each in fleet.members(POLICY) if each.pod.name == "a"]
    assert member.error.reason == "Outrun"
    assert network.configs["uid-team-b"] == fleet.config(POLICY).config


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 99), (0.3, 83), (1.0, 25), (4.0, 12.5)])
async def test_a_sidecar_that_takes_long_to_say_how_it_is_is_asked_less_often(
    make, fleet, network, seconds, most
):
    """To say what 10,000 tenants got costs it a second of its own work."""
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a")])
    await asyncio.sleep(20)
    network.seconds = seconds
    await asyncio.sleep(10)
    before = network.polls
    await asyncio.sleep(100)
    polls = network.polls - before
    assert most * 0.9 <= polls <= most * 1.1
    oldest = fleet._clock() - fleet.members(POLICY)[0].state_at
    assert oldest < reporter.FRESH_SECONDS


async def test_a_new_configuration_does_not_wait_for_the_next_look(make, fleet, network):
    fleet.configure(POLICY, make.compiled())
    assign(fleet, [make.pod("a")])
    network.seconds = 1.2
    await asyncio.sleep(21)
    want = make.compiled([make.tenant_body("blue")])
    while network.in_flight:
        await asyncio.sleep(0.1)
    fleet.configure(POLICY, want)
    await asyncio.sleep(1.3)
    assert network.configs["uid-team-a"] == want.config
