"""A sidecar's state is read slice by slice: the same as at once, in turns with others, within bounds."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_api.sidecar_state import SidecarState
from equipoise_operator import state_document
from equipoise_operator.state_document import StateError, read

ROW = {
    "id": "team/blue",
    "weight": 3,
    "service": 1.5,
    "rejected": {"QueueFull": 2},
    "ttft": {"counts": {"60": 2, "61": 1}},
}


def encoded(tenants, **rest):
    return json.dumps({**rest, "tenants": tenants}).encode()


def row(number, **more):
    return ROW | {"id": f"team/tenant-{number}"} | more


async def parsed(body):
    return await read(body, asyncio.Lock())


@pytest.mark.parametrize("count", [0, 1, 7, 500])
async def test_in_slices_it_reads_the_same_as_at_once(monkeypatch, count):
    monkeypatch.setattr(state_document, "SLICE_BYTES", 1000)
    body = encoded([row(n) for n in range(count)], revision="r", ready=True, futureField={"a": [1, 2]})
    assert await parsed(body) == SidecarState.model_validate_json(body)


@given(
    tenants=st.lists(
        st.fixed_dictionaries(
            {"id": st.text(max_size=40)},
            optional={
                "service": st.floats(-1e18, 1e18),
                "queued": st.integers(-5, 2**40),
                "gpuSeconds": st.one_of(st.none(), st.floats(0, 1e12)),
                "unknown": st.recursive(st.text(), st.lists, max_leaves=5),
            },
        ),
        max_size=30,
    ),
    length=st.integers(1, 400),
)
async def test_wherever_it_is_cut_it_reads_the_same(tenants, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_document, "SLICE_BYTES", length)
        body = encoded(tenants)
        assert await parsed(body) == SidecarState.model_validate_json(body)


async def test_others_get_their_turn_after_every_slice(monkeypatch):
    monkeypatch.setattr(state_document, "SLICE_BYTES", 1000)
    body = encoded([row(n) for n in range(500)])
    slices = len(body) / 1200
    reading = asyncio.create_task(parsed(body))
    rounds = 0
    while not reading.done():
        await asyncio.sleep(0)
        rounds += 1
    assert rounds > slices
    assert len(reading.result().tenants) == 500


async def test_of_all_who_read_one_has_a_slice_in_a_round(monkeypatch):
    """Or else each round would be as long as there are sidecars."""
    monkeypatch.setattr(state_document, "SLICE_BYTES", 1000)
    body = encoded([row(n) for n in range(100)])
    validated, per_round = 0, []
    adapter = state_document._TENANTS

    class Counting:
        def validate_json(self, data):
            nonlocal validated
            validated += 1
            return adapter.validate_json(data)

    monkeypatch.setattr(state_document, "_TENANTS", Counting())
    turn = asyncio.Lock()
    readers = [asyncio.create_task(read(body, turn)) for _ in range(5)]
    while not all(reader.done() for reader in readers):
        before = validated
        await asyncio.sleep(0)
        per_round.append(validated - before)
    assert validated > 50
    assert max(per_round) == 1


async def test_a_fault_is_named_by_its_place_in_the_whole(monkeypatch):
    monkeypatch.setattr(state_document, "SLICE_BYTES", 1000)
    tenants = [row(n) for n in range(100)]
    tenants[71] = row(71, weight=0)
    with pytest.raises(StateError, match=r"^tenants\.71\.weight: "):
        await parsed(encoded(tenants))
    tenants[71] = 3
    with pytest.raises(StateError, match=r"^tenants\.71: "):
        await parsed(encoded(tenants))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"[]", "object"),
        (b"\xff", "malformed"),
        (b'{"\xff": 1}', "utf-8"),
        (b'{"tenants": [{"id": "\xff"}]}', "Invalid JSON"),
        (b'{"tenants": {}}', "^tenants: .*array"),
        (b'{"tenants": null}', "^tenants: .*array"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
        (b'{"tenants": [' + b"[" * 100_000, "recursion"),
    ],
)
async def test_what_is_no_state_is_refused(body, said):
    with pytest.raises(StateError, match=said):
        await parsed(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"tenants": [' + b"0," * 8_000_000 + b"0]}", "values"),
        (encoded([{"id": ""}] * 60_000), "^tenants: more than 50000"),
        (encoded([row(0, rejected={"x" * 300_000: 1})]), r"^tenants\.0: more than 262144 bytes"),
        (encoded([], revision="x" * 300_000), "beside the tenants"),
    ],
    ids=["values", "tenants", "a-row", "the-rest"],
)
async def test_what_would_take_long_is_refused_before_it_does(body, said):
    """Sixteen megabytes of zeros, validated at once, took half a minute and five gigabytes."""
    with pytest.raises(StateError, match=said):
        await parsed(body)


async def test_ten_thousand_tenants_with_all_that_they_may_have_are_within_the_bounds():
    full = {f"Reason{n}": n for n in range(8)}
    histogram = {"counts": {str(bucket): 1000 for bucket in range(60, 75)}}
    tenants = [row(n, rejected=full, wait=histogram, ttft=histogram) for n in range(10_000)]
    assert len((await parsed(encoded(tenants))).tenants) == 10_000
