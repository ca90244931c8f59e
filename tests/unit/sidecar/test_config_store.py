"""Configuration is taken in order, whole or not at all; parts and digests agree with the API's type."""

import asyncio
import json

import pytest

from equipoise_api.sidecar_config import ConfigPatch, ConfigPush, SidecarConfig
from equipoise_sidecar.config_document import read_push
from equipoise_sidecar.config_store import ConfigStore, PushRefusedError
from equipoise_sidecar.policy import ConfigError, compile_policy


def body(config, epoch=1, sequence=1):
    push = ConfigPush(epoch=epoch, sequence=sequence, revision=config.revision, config=config)
    return push.model_dump_json(by_alias=True).encode()


def patch_body(base, wanted, *, sequence=2, **changes):
    patch = ConfigPatch(
        epoch=1, sequence=sequence, base_revision=base.revision, revision=wanted.revision, **changes
    )
    return patch.model_dump_json(by_alias=True).encode()


@pytest.fixture
def applied():
    return []


@pytest.fixture
async def store(applied, tmp_path):
    store = ConfigStore(applied.append, tmp_path)
    yield store
    await store.close()


def test_the_parts_have_the_revision_that_the_whole_has(config, tenant):
    whole = config(
        tenants=[
            tenant("a/é", weight=3, slo={"ttftMilliseconds": 5}, headerValues=['quo"te']),
            tenant("b/b", limits={"maxQueued": 4}),
        ],
        engineApiKey="key",
        trustedHeader={"peers": ["10.0.0.0/8"]},
    )
    document = read_push(body(whole))
    assert document.digest() == whole.revision
    assert json.loads(document.canonical()) == whole.document()
    assert read_push(document.push()) == document


async def test_a_patch_gives_what_sending_all_would_have_given(store, applied, config, tenant):
    base = config(tenants=[tenant("a/a"), tenant("b/b"), tenant("c/c")])
    wanted = config(tenants=[tenant("a/a"), tenant("b/b", weight=7), tenant("d/d")])
    await store.put(body(base))
    result = await store.patch(
        patch_body(base, wanted, tenants=[tenant("d/d"), tenant("b/b", weight=7)], removed=["c/c"])
    )
    assert (result.revision, result.applied) == (wanted.revision, True)
    assert applied[-1].tenants.keys() == {"a/a", "b/b", "d/d"}
    assert applied[-1].tenant_settings["b/b"].weight == 7
    assert store.held.digest() == wanted.revision


async def test_a_patch_that_was_taken_already_is_taken_again_without_effect(store, applied, config, tenant):
    base, wanted = config(tenants=[]), config(tenants=[tenant("d/d")])
    await store.put(body(base))
    push = patch_body(base, wanted, tenants=[tenant("d/d")])
    await store.patch(push)
    before = len(applied)
    result = await store.patch(push)
    assert (result.applied, len(applied)) == (False, before)


async def test_a_patch_with_another_result_than_it_says_changes_nothing(store, config, tenant):
    base = config(tenants=[])
    await store.put(body(base))
    lying = patch_body(base, config(tenants=[tenant("x/x")]), tenants=[tenant("d/d")])
    with pytest.raises(PushRefusedError) as refused:
        await store.patch(lying)
    assert refused.value.status == 412
    assert refused.value.problem.revision == base.revision
    assert store.held.revision == base.revision


async def test_a_patch_before_any_configuration_gets_412(store, config):
    with pytest.raises(PushRefusedError) as refused:
        await store.patch(patch_body(config(), config(tenants=[])))
    assert refused.value.status == 412


@pytest.mark.parametrize(
    ("held", "offered", "taken"),
    [
        ((1, 5), (1, 6), True),
        ((1, 5), (1, 5), True),
        ((1, 5), (1, 4), False),
        ((1, 5), (2, 0), True),
        ((2, 0), (1, 99), False),
    ],
)
async def test_a_pair_that_is_not_lower_is_taken(store, config, held, offered, taken):
    first, second = config(tenants=[]), config()
    await store.put(body(first, *held))
    if taken:
        assert (await store.put(body(second, *offered))).applied
        return
    with pytest.raises(PushRefusedError) as refused:
        await store.put(body(second, *offered))
    assert refused.value.status == 409
    assert (refused.value.problem.epoch, refused.value.problem.sequence) == held
    assert store.held.revision == first.revision


async def test_of_two_pushes_at_once_the_newer_one_stays(store, config):
    old, new = config(tenants=[]), config()
    results = await asyncio.gather(
        store.put(body(new, 1, 2)), store.put(body(old, 1, 1)), return_exceptions=True
    )
    assert store.held.revision == new.revision
    assert results[1].status == 409


async def test_what_the_dispatcher_refuses_is_not_held(tmp_path, config):
    def refuse(_policy):
        raise ConfigError("config.algorithm", "no")

    store = ConfigStore(refuse, tmp_path)
    with pytest.raises(PushRefusedError) as refused:
        await store.put(body(config()))
    assert (refused.value.status, refused.value.problem.field) == (422, "config.algorithm")
    assert store.held is None
    assert not (tmp_path / "config.json").exists()
    await store.close()


async def test_fields_of_a_newer_writer_are_passed_over(store, applied, config):
    document = json.loads(body(config()))
    document["config"]["inventedTomorrow"] = {"deep": 1}
    document["config"]["schemaVersion"] = 2
    document["config"]["tenants"][0]["alsoNew"] = True
    assert (await store.put(json.dumps(document).encode())).applied
    assert applied[-1].enforce


async def test_a_failing_disk_is_counted_and_serving_goes_on(applied, tmp_path, config):
    store = ConfigStore(applied.append, tmp_path / "missing")
    assert (await store.put(body(config()))).applied
    assert store.write_errors == 1
    assert len(applied) == 1
    await store.close()


async def test_what_is_on_disk_is_what_was_taken_last(store, tmp_path, config, tenant):
    await store.put(body(config(), 3, 1))
    wanted = config(tenants=[tenant("x/x")])
    await store.put(body(wanted, 3, 2))
    policies = []
    again = ConfigStore(policies.append, tmp_path)
    assert await again.restore()
    assert again.held == store.held
    assert policies[0].revision == wanted.revision
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    await again.close()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tenants": [{"id": "default"}]}, "tenants.0.id"),
        ({"tenants": [{"id": ""}]}, "tenants.0.id"),
        ({"engineApiKey": "two\nlines"}, "engineApiKey"),
    ],
)
def test_what_the_types_allow_and_cannot_work_is_refused(changes, field):
    config = SidecarConfig.model_validate(changes)
    with pytest.raises(ConfigError) as refused:
        compile_policy(config, config.revision)
    assert refused.value.field == field


async def test_the_same_tenant_twice_is_refused(store):
    twice = b'{"epoch":1,"sequence":1,"revision":"x","config":{"tenants":[{"id":"a/b"},{"id":"a/b"}]}}'
    with pytest.raises(PushRefusedError) as refused:
        await store.put(twice)
    assert refused.value.problem.field == "config.tenants.1.id"
