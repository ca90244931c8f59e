"""Which statuses are made, and when: what changed, what is active, and the rest in turn."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from equipoise_operator import objects, reporter
from equipoise_operator.fleet import Member
from equipoise_operator.placement import Placement
from equipoise_operator.policy_status import policy_status
from equipoise_operator.reporter import Reporter
from equipoise_operator.sidecar_client import SidecarError
from equipoise_operator.store import Store

POLICY = ("team", "policy")
CONDITION = {
    "type": "Ready",
    "status": "False",
    "reason": "Invalid",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


class Offers:
    def __init__(self):
        self.made = {}
        self.present = {}
        self.forgotten = []
        self.some = asyncio.Event()

    def offer(self, subject, version, present, status):
        self.made[subject.key] = status
        self.some.set()
        self.present[subject.key] = present

    def forget(self, subject):
        self.forgotten.append(subject.uid)

    def take(self):
        made, self.made = self.made, {}
        return made


class World:
    def __init__(self, make):
        self.make = make
        self.now = 1000.0
        self.store, self.offers = Store(), Offers()
        self.compiled = None
        self.members = []
        self.version = 100
        self.placements = {"team": Placement({}, {})}
        self.exporter, self.problem = None, ""
        fleet = SimpleNamespace(
            config=lambda _: self.compiled,
            members=lambda _: self.members,
            exporter_of=lambda _: self.exporter,
        )
        self.problems = {}
        controller = SimpleNamespace(
            ours=self.ours, unreadable=self.unreadable, placements=self.placements, problems=self.problems
        )
        self.reporter = Reporter(
            store=self.store,
            controller=controller,
            fleet=fleet,
            writer=self.offers,
            clock=lambda: self.now,
            exporters_problem=lambda: self.problem,
        )

    def ours(self):
        return [(key, stored.object) for key, stored in self.store.policies.items() if stored.object]

    def unreadable(self):
        return [(key, stored.outline) for key, stored in self.store.policies.items() if stored.object is None]

    def put_policy(self, *, status=None, **spec):
        self.version += 1
        body = self.make.policy_body(meta={"version": self.version}, **spec) | {"status": status or {}}
        self.store.policies.put(POLICY, objects.policy(body))

    def put_tenants(self, *names, status=None, meta=None, **spec):
        for name in names:
            self.version += 1
            versioned = {"version": self.version} | (meta or {})
            body = self.make.tenant_body(name, meta=versioned, **spec) | {"status": status or {}}
            self.store.tenants.put(("team", name), objects.tenant(body))

    def compile(self, *names, **more):
        self.compiled = self.make.compiled([self.make.tenant_body(name, **more) for name in names])
        self.reporter.compiled(POLICY, self.compiled)

    def member(self, *tenants, held=None, **state):
        made = Member(self.make.pod("vllm-0"), "uid-team-policy")
        made.state = self.make.state(tenants=list(tenants), **state)
        made.state_at = self.now
        made.held = held or self.compiled.revision
        made.acknowledged = self.compiled
        self.members = [made]
        return made

    def report(self):
        asyncio.run(self.reporter.report())
        return self.offers.take()

    def quiet(self):
        """Report until everything was told once."""
        for _ in range(3):
            self.report()
        self.reporter._sweep = [("no", "body")] * 10_000


@pytest.fixture
def world(make):
    return World(make)


def test_a_policy_is_told_every_time(world):
    world.put_policy()
    world.compile()
    assert set(world.report()) == {POLICY}
    assert set(world.report()) == {POLICY}


def test_a_tenant_is_told_when_its_part_of_the_configuration_changes(world):
    world.put_policy()
    world.put_tenants("a", "b")
    world.compile("a", "b")
    world.quiet()
    assert set(world.report()) == {POLICY}
    world.compiled = world.make.compiled([world.make.tenant_body("a", weight=2), world.make.tenant_body("b")])
    world.reporter.compiled(POLICY, world.compiled)
    assert set(world.report()) == {POLICY, ("team", "a")}


def test_a_tenant_is_told_while_it_has_anything_to_do_and_once_more(world):
    world.put_policy()
    world.put_tenants("a", "b")
    world.compile("a", "b")
    world.quiet()
    world.member(
        {"id": "team/a", "queued": 4, "service": 10.0, "demand": 20.0}, {"id": "default", "service": 10.0}
    )
    made = world.report()
    assert set(made) == {POLICY, ("team", "a")}
    assert made["team", "a"].usage.queued == 4
    assert made["team", "a"].share.actual_percent == 50
    world.member()
    made = world.report()
    assert made["team", "a"].usage.queued == 0
    assert set(world.report()) == {POLICY}


def test_the_rest_are_told_in_turn(world, monkeypatch):
    monkeypatch.setattr(reporter, "SWEEP", 10)
    world.put_policy()
    world.put_tenants(*(f"t{n}" for n in range(25)))
    world.compile()
    seen = [set(world.report()) - {POLICY} for _ in range(3)]
    assert [len(each) for each in seen] == [10, 10, 5]
    assert len(set.union(*seen)) == 25


def test_ten_thousand_are_not_told_in_one_go(world):
    world.put_policy()
    world.put_tenants(*(f"t{n}" for n in range(3000)))
    world.compile(*(f"t{n}" for n in range(3000)))
    assert len(world.report()) <= reporter.MOST + 1


def test_what_goes_over_all_tenants_is_done_beside_the_loop(world, monkeypatch):
    threads = []

    def noted(*arguments):
        threads.append(threading.current_thread())
        return policy_status(*arguments)

    monkeypatch.setattr(reporter, "policy_status", noted)
    world.put_policy()
    world.compile()
    assert world.report()[POLICY]
    assert threading.current_thread() not in threads


async def test_others_get_their_turn_while_tenants_are_told(world, monkeypatch):
    monkeypatch.setattr(reporter, "AT_A_TIME", 10)
    world.put_policy()
    names = [f"t{n}" for n in range(200)]
    world.put_tenants(*names)
    world.compile(*names)
    task = asyncio.create_task(world.reporter.report())
    longest = told = 0
    while not task.done():
        before = len(world.offers.made)
        await asyncio.sleep(0)
        longest = max(longest, len(world.offers.made) - before)
        told = len(world.offers.made)
    assert told == 201
    assert longest <= 11


async def test_a_successor_that_comes_meanwhile_does_not_get_the_status_of_the_former(world):
    world.put_policy()
    world.put_tenants("a")
    world.compile("a")
    task = asyncio.create_task(world.reporter.report())
    await asyncio.sleep(0)
    world.store.policies.drop(POLICY, "uid-team-policy")
    body = world.make.policy_body(meta={"version": 900, "uid": "another"})
    world.store.policies.put(POLICY, objects.policy(body))
    world.store.tenants.drop(("team", "a"), "uid-team-a")
    await task
    assert world.offers.made == {}


def test_what_a_sidecar_lacks_is_told_until_it_has_it(world):
    world.put_policy()
    world.put_tenants("a", "b")
    world.compile("a", "b")
    world.quiet()
    old = world.compiled
    member = world.member()
    world.compiled = world.make.compiled([world.make.tenant_body("a", weight=2), world.make.tenant_body("b")])
    assert world.compiled.revision != old.revision
    for _ in range(3):
        made = world.report()
        assert set(made) == {POLICY, ("team", "a")}
        assert {c.type: c.status for c in made["team", "a"].conditions}["Synced"] == "False"
    member.held, member.acknowledged = world.compiled.revision, world.compiled
    world.reporter.mark(("team", "a"))
    assert {c.type: c.status for c in world.report()["team", "a"].conditions}["Synced"] == "True"


def test_an_old_state_does_not_count(world):
    world.put_policy()
    world.compile()
    world.member(load={"queued": 9})
    assert world.report()[POLICY].load.queued == 9
    world.now += 11
    assert world.report()[POLICY].load.queued == 0
    assert world.report()[POLICY].sidecars.total == 1


def test_a_sidecars_error_is_in_the_policys_status(world):
    world.put_policy()
    world.compile()
    member = world.member(held="another")
    member.error = SidecarError("Unreachable", "no answer in 2 s")
    conditions = {each.type: each for each in world.report()[POLICY].conditions}
    assert conditions["Programmed"].reason == "Unreachable"
    assert "no answer" in conditions["Programmed"].message


def test_a_tenant_whose_policy_goes_is_told(world):
    world.put_policy()
    world.put_tenants("a")
    world.compile("a")
    world.quiet()
    world.store.policies.drop(POLICY, "uid-team-policy")
    world.reporter.forgotten(POLICY)
    made = world.report()
    assert {c.type: c.reason for c in made["team", "a"].conditions}["Ready"] == "NoPolicy"


def test_an_exporter_that_is_missing_is_told_with_the_reason(world):
    world.put_policy(gpu={"dcgm": "Exporter"})
    world.compile()
    world.member(gpu={"ageSeconds": 1.0})
    world.problem = "cannot list pods"

    def told():
        (found,) = (c for c in world.report()[POLICY].conditions if c.type == "GPUMetricsStale")
        return found.reason, found.message

    reason, message = told()
    assert reason == "NoExporter"
    assert "vllm-0 (cannot list pods)" in message
    world.exporter = "http://10.0.0.9:9400/metrics"
    assert told() == ("Fresh", "")


def test_objects_that_could_never_be_read_are_told_so(world):
    world.put_policy(mode="Sometimes")
    world.put_tenants("a", weight=0)
    world.reporter.mark(("team", "a"))
    made = world.report()
    assert {c.type: c.reason for c in made[POLICY].conditions}["Accepted"] == "Invalid"
    assert {c.type: c.reason for c in made["team", "a"].conditions}["IdentityResolved"] == "Invalid"


@pytest.mark.parametrize("known_before", [False, True])
def test_what_is_said_of_one_that_cannot_be_read_is_said_once(world, known_before):
    if known_before:
        world.compile("a")
        world.put_policy()
        world.put_tenants("a")
    told = {"conditions": [CONDITION], "observedGeneration": 1}
    world.put_policy(mode="Sometimes", status=told)
    world.put_tenants("a", weight=0, status=told)
    world.reporter.mark(("team", "a"))
    world.report()
    for key in (POLICY, ("team", "a")):
        (condition,) = world.offers.present[key].conditions
        assert condition.reason == "Invalid", "what is there is what a new status is compared with"


def test_a_policy_whose_compile_fails_says_so(world):
    world.put_policy()
    world.compile()
    world.problems[POLICY] = "403 Forbidden: secrets"
    conditions = {each.type: each for each in world.report()[POLICY].conditions}
    assert conditions["Programmed"].reason == "NotCompiled"


def test_a_new_generation_is_told_though_nothing_of_the_configuration_differs(world):
    world.put_policy()
    world.put_tenants("a")
    world.compile("a")
    world.quiet()
    world.put_tenants("a", meta={"generation": 2})
    world.compile("a", meta={"generation": 2})
    assert world.report()["team", "a"].observed_generation == 2


def test_of_what_is_gone_nothing_is_kept(world):
    world.reporter.gone("Tenant", ("team", "a"), "uid-team-a")
    assert world.offers.forgotten == ["uid-team-a"]


@pytest.mark.looptime
async def test_a_fault_in_a_report_ends_nothing_and_is_counted(world):
    world.put_policy()
    world.compile()
    failures = []
    world.reporter.on_failure = lambda: failures.append(1)
    world.reporter._view = lambda *_: 1 / 0
    task = asyncio.create_task(world.reporter.run())
    await asyncio.sleep(2.5)
    assert len(failures) == 3
    del world.reporter._view
    await world.offers.some.wait()
    assert POLICY in world.offers.made
    task.cancel()


def test_a_new_leader_says_nothing_before_it_has_learnt_what_its_predecessor_knew(world):
    world.put_policy()
    world.put_tenants("a")
    placement = world.placements.pop("team")
    assert world.report() == {}, "not compiled"
    world.compile("a")
    assert world.report() == {}, "not placed"
    world.placements["team"] = placement
    member = world.member()
    member.state = member.held = None
    assert world.report() == {}, "not heard"
    member.error = SidecarError("Unreachable", "no answer in 2 s")
    assert set(world.report()) == {POLICY, ("team", "a")}


def test_what_it_cannot_learn_is_waited_for_for_a_while_only(world):
    world.put_policy()
    world.put_tenants("a")
    assert world.report() == {}
    world.now += 9
    assert world.report() == {}
    world.now += 1
    conditions = {each.type: each.reason for each in world.report()[POLICY].conditions}
    assert conditions["Programmed"] == "Pending"


def test_why_it_cannot_compile_is_said_at_once(world):
    world.put_policy()
    world.problems[POLICY] = "403 Forbidden: secrets"
    conditions = {each.type: each.reason for each in world.report()[POLICY].conditions}
    assert conditions["Programmed"] == "NotCompiled"


def test_what_is_gone_is_not_told(world):
    world.reporter.mark(("team", "nobody"))
    assert world.report() == {}


@pytest.mark.looptime
async def test_it_reports_once_a_second(world):
    world.put_policy()
    world.compile()
    calls = []

    async def report():
        calls.append(1)

    world.reporter.report = report
    task = asyncio.create_task(world.reporter.run())
    await asyncio.sleep(10.5)
    assert len(calls) == 11
    task.cancel()
