"""What users hear of, and what they do not."""

import asyncio

import pytest

from equipoise_api.conditions import Condition
from equipoise_operator.events import LONGEST_QUEUE, Events, Subject, news

BLUE = Subject("Tenant", ("team", "blue"), "uid-blue")


def condition(kind, status, reason):
    return Condition(type=kind, status=status, reason=reason, last_transition_time="2026-01-01T00:00:00Z")


GOOD = condition("IdentityResolved", "True", "Resolved")
MISSING = condition("IdentityResolved", "False", "SecretNotFound")
SHORT = condition("IdentityResolved", "False", "KeyTooShort")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ([], [GOOD], []),
        ([], [MISSING], [MISSING]),
        ([GOOD], [MISSING], [MISSING]),
        ([MISSING], [MISSING], []),
        ([MISSING], [SHORT], [SHORT]),
        ([MISSING], [GOOD], [GOOD]),
        ([GOOD], [condition("IdentityResolved", "Unknown", "NoPolicy")], []),
        ([], [condition("Programmed", "False", "Pending")], []),
        ([], [condition("Programmed", "False", "Rejected")], [condition("Programmed", "False", "Rejected")]),
        ([], [condition("Ready", "False", "SecretNotFound")], []),
    ],
)
def test_news(old, new, told):
    assert news(old, new) == told


@pytest.mark.looptime
async def test_a_burst_is_posted_then_five_a_second(api):
    events = Events(api, instance="me", leads=lambda: True, clock=asyncio.get_running_loop().time)
    task = asyncio.create_task(events.run())
    for _ in range(100):
        events.tell(BLUE, MISSING)
    await asyncio.sleep(0.1)
    assert len(api.calls) == 50
    await asyncio.sleep(10)
    assert len(api.calls) == 100
    task.cancel()


async def test_too_many_are_dropped_and_counted(api):
    events = Events(api, instance="me", leads=lambda: True, clock=asyncio.get_running_loop().time)
    dropped = []
    events.on_drop = lambda: dropped.append(1)
    for _ in range(LONGEST_QUEUE + 3):
        events.tell(BLUE, MISSING)
    assert len(dropped) == 3


async def test_who_does_not_lead_posts_none(api):
    events = Events(api, instance="me", leads=lambda: False, clock=asyncio.get_running_loop().time)
    task = asyncio.create_task(events.run())
    events.tell(BLUE, MISSING)
    await asyncio.sleep(0.05)
    assert api.calls == []
    task.cancel()
