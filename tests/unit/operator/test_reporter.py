"""Which statuses are made, and when: what changed, what is active, and the rest in turn."""

import asyncio
from types import SimpleNamespace

import pytest

from equipoise_operator import objects, reporter
from equipoise_operator.fleet import Member
from equipoise_operator.placement import Placement
from equipoise_operator.reporter import Reporter
from equipoise_operator.sidecar_client import SidecarError
from equipoise_operator.store import Store

POLICY = ("team", "policy")


class Offers:
    def __init__(self):
        self.made = {}

    def offer(self, subject, version, present, status):
        self.made[subject.key] = status

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
        controller = SimpleNamespace(ours=self.ours, placements=self.placements)
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

    def put_policy(self, **spec):
        self.version += 1
        self.store.policies.put(
            POLICY, objects.policy(self.make.policy_body(meta={"version": self.version}, **spec))
        )

    def put_tenants(self, *names, **spec):
        for name in names:
            self.version += 1
            body = self.make.tenant_body(name, meta={"version": self.version}, **spec)
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
        self.reporter.report()
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


def test_what_is_gone_is_not_told(world):
    world.reporter.mark(("team", "nobody"))
    assert world.report() == {}


@pytest.mark.looptime
async def test_it_reports_once_a_second(world):
    world.put_policy()
    world.compile()
    calls = []
    world.reporter.report = lambda: calls.append(1)
    task = asyncio.create_task(world.reporter.run())
    await asyncio.sleep(10.5)
    assert len(calls) == 11
    task.cancel()
