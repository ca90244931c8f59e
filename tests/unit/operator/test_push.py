"""What is pushed, and what is done with each answer."""

import json

import pytest

from equipoise_api.sidecar_config import (
    ConfigPatch,
    ConfigPush,
    Problem,
    PushResult,
    SidecarConfig,
    TenantConfig,
)
from equipoise_operator import push
from equipoise_operator.push import Pusher, difference
from equipoise_operator.sidecar_client import RefusedError, SidecarError


class FakeSidecar:
    """Takes pushes as the protocol says, or answers what it is told to."""

    def __init__(self):
        self.config = None
        self.pair = (0, 0)
        self.calls = []
        self.answers = []

    async def put(self, pod, body, revision, *, epoch, sequence):
        config = SidecarConfig.model_validate_json(body)
        ConfigPush(epoch=epoch, sequence=sequence, revision=revision, config=config)
        return self.take("PUT", config, revision, (epoch, sequence))

    async def patch(self, pod, changes, *, epoch, sequence):
        patch = ConfigPatch.model_validate({"epoch": epoch, "sequence": sequence} | json.loads(changes))
        pair = (patch.epoch, patch.sequence)
        if self.config is None or self.config.revision != patch.base_revision:
            self.calls.append(("PATCH", pair))
            raise RefusedError(412, Problem(message="other base"))
        tenants = {tenant.id: tenant for tenant in self.config.tenants} | {t.id: t for t in patch.tenants}
        kept = [tenants[name] for name in sorted(tenants) if name not in patch.removed]
        return self.take("PATCH", self.config.model_copy(update={"tenants": kept}), patch.revision, pair)

    def take(self, method, config, revision, pair):
        self.calls.append((method, pair))
        if self.answers:
            raise self.answers.pop(0)
        if pair < self.pair:
            raise RefusedError(409, Problem(message="newer", epoch=self.pair[0], sequence=self.pair[1]))
        assert config.revision == revision
        applied = self.config is None or self.config.revision != revision
        self.config, self.pair = config, pair
        return PushResult(revision=revision, epoch=pair[0], sequence=pair[1], applied=applied)

    @property
    def methods(self):
        return [method for method, _ in self.calls]


class Terms:
    def __init__(self):
        self.epoch = 3

    async def raise_above(self, epoch):
        if epoch >= 2**30:
            raise ValueError("no Lease counts so far")
        self.epoch = max(self.epoch, epoch + 1)


@pytest.fixture
def sidecar():
    return FakeSidecar()


@pytest.fixture
def terms():
    return Terms()


@pytest.fixture
def pusher(sidecar, terms):
    return Pusher(sidecar, epoch=lambda: terms.epoch, raise_above=terms.raise_above)


async def test_without_a_known_base_all_of_it_is_put(make, pusher, sidecar):
    want = make.compiled([make.tenant_body("blue")])
    result = await pusher.push(make.pod("p"), want, None)
    assert (result.revision, result.applied) == (want.revision, True)
    assert sidecar.methods == ["PUT"]


async def test_on_a_known_base_only_the_changed_tenants_travel(make, pusher, sidecar):
    before = make.compiled([make.tenant_body("a"), make.tenant_body("b"), make.tenant_body("c")])
    after = make.compiled([make.tenant_body("a", weight=2), make.tenant_body("c"), make.tenant_body("d")])
    await pusher.push(make.pod("p"), before, None)
    await pusher.push(make.pod("p"), after, before)
    assert sidecar.methods == ["PUT", "PATCH"]
    assert sidecar.config == after.config
    patch = json.loads(difference(before, after))
    assert [tenant["id"] for tenant in patch["tenants"]] == ["team/a", "team/d"]
    assert patch["removed"] == ["team/b"]


async def test_more_than_tenants_changed_is_put(make, pusher, sidecar):
    before = make.compiled([make.tenant_body("a")])
    after = make.compiled([make.tenant_body("a")], policy=make.policy_body(algorithm={"type": "FCFS"}))
    assert difference(before, after) is None
    await pusher.push(make.pod("p"), before, None)
    await pusher.push(make.pod("p"), after, before)
    assert sidecar.methods == ["PUT", "PUT"]


async def test_a_sidecar_on_another_base_gets_all_of_it(make, pusher, sidecar):
    before, after = make.compiled(), make.compiled([make.tenant_body("a")])
    await pusher.push(make.pod("p"), after, before)
    assert sidecar.methods == ["PATCH", "PUT"]
    assert sidecar.config == after.config


async def test_every_attempt_has_a_higher_sequence(make, pusher, sidecar):
    before, after = make.compiled(), make.compiled([make.tenant_body("a")])
    for _ in range(3):
        await pusher.push(make.pod("p"), after, before)
    pairs = [pair for _, pair in sidecar.calls]
    assert pairs == sorted(set(pairs))


async def test_a_sidecar_of_a_higher_term_has_ours_raised_above_it(make, pusher, sidecar, terms):
    sidecar.pair = (17, 4)
    want = make.compiled()
    result = await pusher.push(make.pod("p"), want, None)
    assert terms.epoch == 18
    assert (result.epoch, sidecar.config) == (18, want.config)


async def test_a_refused_configuration_is_raised_with_field_and_reason(make, pusher, sidecar):
    sidecar.answers = [RefusedError(422, Problem(message="must be positive", field="queue.maxBytes"))]
    with pytest.raises(RefusedError, match=r"queue.maxBytes: must be positive") as refusal:
        await pusher.push(make.pod("p"), make.compiled(), None)
    assert refusal.value.reason == "Rejected"
    assert sidecar.methods == ["PUT"]


async def test_a_sidecar_that_always_answers_409_is_given_up_on(make, pusher, sidecar):
    sidecar.answers = [RefusedError(409, Problem(message="no", epoch=n, sequence=1)) for n in range(10, 20)]
    with pytest.raises(RefusedError):
        await pusher.push(make.pod("p"), make.compiled(), None)
    assert len(sidecar.calls) == 4


async def test_a_term_that_cannot_be_is_a_refusal_of_that_sidecar(make, pusher, sidecar):
    sidecar.pair = (2**30, 1)
    with pytest.raises(RefusedError) as refusal:
        await pusher.push(make.pod("p"), make.compiled(), None)
    assert refusal.value.reason == "Outrun"
    assert len(sidecar.calls) == 1


async def test_no_answer_is_raised_as_it_is(make, pusher, sidecar):
    sidecar.answers = [SidecarError("Unreachable", "no answer")]
    with pytest.raises(SidecarError, match="no answer"):
        await pusher.push(make.pod("p"), make.compiled(), None)


async def test_every_attempt_is_counted(make, pusher, sidecar):
    counted = []
    pusher.on_push = lambda method, status: counted.append((method, status))
    before, after = make.compiled(), make.compiled([make.tenant_body("a")])
    await pusher.push(make.pod("p"), after, before)
    sidecar.answers = [SidecarError("Unreachable", "no answer")]
    with pytest.raises(SidecarError):
        await pusher.push(make.pod("p"), after, None)
    assert counted == [("PATCH", 412), ("PUT", 200), ("PUT", 0)]


def test_an_unchanged_tenant_is_not_in_a_patch(make):
    config = make.compiled([make.tenant_body("a")])
    assert json.loads(difference(config, config))["tenants"] == []
    assert isinstance(config.tenants["team/a"], TenantConfig)


async def test_what_differs_is_found_out_once_for_all_sidecars(make, pusher, monkeypatch):
    """With 10,000 tenants it takes 20 ms, and a change wakes all sidecars' tasks in one round of the loop."""
    found = []

    def counted(base, want):
        found.append((base.revision, want.revision))
        return difference(base, want)

    monkeypatch.setattr(push, "difference", counted)
    before, after = make.compiled([make.tenant_body("a")]), make.compiled([make.tenant_body("a", weight=2)])
    for number in range(100):
        pusher._client = one = FakeSidecar()
        await pusher.push(make.pod(f"p{number}"), before, None)
        await pusher.push(make.pod(f"p{number}"), after, before)
        assert (one.methods, one.config) == (["PUT", "PATCH"], after.config)
    assert found == [(before.revision, after.revision)]


async def test_differences_that_nobody_asks_for_any_more_are_forgotten(make, pusher, sidecar, monkeypatch):
    monkeypatch.setattr(push, "REMEMBERED", 2)
    former = make.compiled()
    await pusher.push(make.pod("p"), former, None)
    for number in range(10):
        want = make.compiled([make.tenant_body("a", weight=number + 1)])
        await pusher.push(make.pod("p"), want, former)
        former = want
    assert sidecar.config == former.config
    assert len(pusher._changes) == 2


async def test_a_change_of_very_many_tenants_is_put(make, pusher, sidecar, monkeypatch):
    monkeypatch.setattr(push, "MOST_CHANGED", 3)
    names = ["a", "b", "c", "d"]
    before = make.compiled([make.tenant_body(name) for name in names])
    three = make.compiled([make.tenant_body(name, weight=1 + (name != "d")) for name in names])
    four = make.compiled([make.tenant_body(name, weight=3) for name in names])
    await pusher.push(make.pod("p"), before, None)
    await pusher.push(make.pod("p"), three, before)
    await pusher.push(make.pod("p"), four, three)
    assert sidecar.methods == ["PUT", "PATCH", "PUT"]
    assert sidecar.config == four.config
