"""A policy's HMAC key: made once, kept, replaced in time with two accepted, never lost to a second maker."""

import base64
from datetime import UTC, datetime, timedelta

import pytest

from equipoise_api import names
from equipoise_operator import hmac_keys, objects
from equipoise_operator.identities import HMAC_SECRET_TYPE
from equipoise_operator.kube import ApiError
from equipoise_operator.store import Store

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
WHERE = "/api/v1/namespaces/team/secrets/equipoise-hmac-uid-team-policy"


def entry(age):
    return (NOW - age).strftime("%Y%m%dT%H%M%SZ")


def secret(make, *ages, kind=HMAC_SECRET_TYPE):
    return make.secret("s", kind=kind, entries={entry(age): bytes([n]) * 32 for n, age in enumerate(ages)})


def test_a_young_key_stays(make):
    assert hmac_keys.change(secret(make, timedelta(days=29)), NOW) == {}


def test_no_key_or_none_that_is_usable_means_a_new_one(make):
    for held in (None, secret(make), secret(make, timedelta(days=1), kind="Opaque")):
        (added,) = hmac_keys.change(held, NOW).items()
        assert added[0] == entry(timedelta(0))
        assert len(base64.b64decode(added[1])) == 32


def test_an_old_key_gets_a_successor_beside_it(make):
    held = secret(make, timedelta(days=31))
    changes = hmac_keys.change(held, NOW)
    assert list(changes) == [entry(timedelta(0))]


def test_for_a_day_two_are_accepted_the_newest_first(make):
    held = secret(make, timedelta(hours=23), timedelta(days=31))
    assert hmac_keys.change(held, NOW) == {}
    assert [key.id for key in hmac_keys.usable(held)] == [
        entry(timedelta(hours=23)),
        entry(timedelta(days=31)),
    ]


def test_then_the_former_is_removed(make):
    held = secret(make, timedelta(hours=25), timedelta(days=31))
    assert hmac_keys.change(held, NOW) == {entry(timedelta(days=31)): None}


def test_what_is_no_key_is_passed_over(make):
    held = make.secret(
        "s",
        kind=HMAC_SECRET_TYPE,
        entries={"note": b"x" * 32, entry(timedelta(1)): b"short", entry(timedelta(2)): b"k" * 32},
    )
    assert [key.id for key in hmac_keys.usable(held)] == [entry(timedelta(2))]


async def test_a_policys_first_key_is_made_in_a_secret_that_goes_with_it(make, api):
    store = Store()
    keys = await hmac_keys.ensure(api, store, make.policy(), NOW)
    made = api.objects[WHERE]
    assert made["type"] == HMAC_SECRET_TYPE
    assert made["metadata"]["labels"][names.CREDENTIAL_LABEL] == "true"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-team-policy"
    assert [key.id for key in keys] == [entry(timedelta(0))]
    assert base64.b64decode(keys[0].secret) == base64.b64decode(made["data"][keys[0].id])


async def test_the_next_compile_finds_it_before_the_watch_shows_it(make, api):
    store = Store()
    first = await hmac_keys.ensure(api, store, make.policy(), NOW)
    calls = len(api.calls)
    assert await hmac_keys.ensure(api, store, make.policy(), NOW) == first
    assert len(api.calls) == calls


async def test_replacement_keeps_the_former_beside_the_new(make, api):
    store = Store()
    (old,) = await hmac_keys.ensure(api, store, make.policy(), NOW)
    keys = await hmac_keys.ensure(api, store, make.policy(), NOW + timedelta(days=31))
    assert [key.id for key in keys][1:] == [old.id]
    later = await hmac_keys.ensure(api, store, make.policy(), NOW + timedelta(days=33))
    assert later == keys[:1]


async def test_a_secret_of_that_name_that_lost_its_label_gets_it_back(make, api):
    await hmac_keys.ensure(api, Store(), make.policy(), NOW)
    await hmac_keys.ensure(api, Store(), make.policy(), NOW + timedelta(seconds=1))
    assert api.calls[-1][0] == "PATCH"
    assert api.calls[-1][2]["metadata"]["labels"] == {names.CREDENTIAL_LABEL: "true"}


@pytest.mark.parametrize("labelled", [True, False])
async def test_somebody_elses_secret_of_that_name_is_no_reason_to_forget_all_keys(make, api, labelled):
    """Of another type it can hold no keys, and a configuration without any would turn every tenant away."""
    store = Store()
    body = make.secret_body(WHERE.rpartition("/")[2], kind="Opaque", note="x")
    api.objects[WHERE] = body
    if labelled:
        store.secrets.put(("team", body["metadata"]["name"]), objects.secret(body))
    for _ in range(3):
        with pytest.raises(ApiError, match=f"not of type {HMAC_SECRET_TYPE}: delete it"):
            await hmac_keys.ensure(api, store, make.policy(), NOW)
    writes = [call for call in api.calls if call[0] == "PATCH"]
    assert len(writes) == (0 if labelled else 1), "it does not grow"
    del api.objects[WHERE]
    store.secrets.drop(("team", body["metadata"]["name"]), body["metadata"]["uid"])
    assert len(await hmac_keys.ensure(api, store, make.policy(), NOW)) == 1


async def test_what_the_api_server_refuses_is_raised(make, api):
    api.fail_next = [ApiError(403, "Forbidden", "no")]
    with pytest.raises(ApiError, match="Forbidden"):
        await hmac_keys.ensure(api, Store(), make.policy(), NOW)
