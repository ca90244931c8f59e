"""The SLO of one request: nobody gains by being in a hurry."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import EndpointKind, Facts
from equipoise_sidecar.promises import agreed

BLUE = "team/blue"
TARGETS = ("ttft_milliseconds", "tpot_milliseconds", "e2e_milliseconds")
milliseconds = st.none() | st.integers(1, 1000)
targets = st.fixed_dictionaries(dict.fromkeys(TARGETS, milliseconds))


def declaring(**declared):
    return Facts(path="/v1/chat/completions", kind=EndpointKind.CHAT, **declared)


def test_without_a_word_the_promise_holds():
    promise = SloTarget(ttft_milliseconds=800)
    assert agreed(promise, declaring()) is promise
    assert agreed(None, declaring()) is None


def test_a_looser_target_is_taken_and_a_tighter_one_is_not():
    promise = SloTarget(ttft_milliseconds=800, objective_percent=99)
    assert agreed(promise, declaring(ttft_milliseconds=60_000)).ttft_milliseconds == 60_000
    assert agreed(promise, declaring(ttft_milliseconds=1)) == promise


def test_where_nothing_was_promised_only_a_trusted_peer_is_believed():
    assert agreed(None, declaring(ttft_milliseconds=1)) is None
    assert agreed(None, declaring(ttft_milliseconds=700, slo_vouched=True)).ttft_milliseconds == 700


@given(st.none() | targets, targets, st.booleans())
def test_no_declaration_ever_tightens_a_promise(promised, declared, vouched):
    promise = None if promised is None else SloTarget(**promised)
    slo = agreed(promise, declaring(**declared, slo_vouched=vouched)) or SloTarget()
    for name in TARGETS:
        before, after = getattr(promise or SloTarget(), name), getattr(slo, name)
        if before is not None:
            assert after >= before
        elif not vouched:
            assert after is None


@pytest.mark.looptime
async def test_an_applications_promise_beats_its_tenants_and_judges_its_requests(line, tenant):
    batch = {"name": "batch", "slo": {"e2eMilliseconds": 60_000}}
    line.configure(
        tenants=[tenant(BLUE, slo={"e2eMilliseconds": 1_000}, applications=[batch, {"name": "chat"}])]
    )
    for application, budget in (("batch", 60.0), ("chat", 1.0), ("", 1.0), ("unheard of", 1.0)):
        ticket = line.send(BLUE, application=application)
        assert ticket.request.e2e_budget == budget
        await asyncio.sleep(2)
        ticket.finish(Outcome.FINISHED, Usage(prompt=100, generated=50))
    account = line.dispatcher.accounting[BLUE]
    assert (account.slo_kept, account.slo_total) == (1, 4)


@pytest.mark.looptime
async def test_calls_of_an_interaction_are_counted_for_who_does_not(line):
    for call in (1, 2, 3):
        ticket = line.send(BLUE, interaction="run", user="ann")
        assert ticket.request.call_index == call
        ticket.finish(Outcome.FINISHED, Usage(prompt=100, generated=50))
    assert line.send(BLUE, interaction="run", user="bob").request.call_index == 1
    assert line.send("team/red", interaction="run", user="ann").request.call_index == 1
    assert line.send(BLUE, interaction="run", user="ann", call_index=7).request.call_index == 7
    assert line.send(BLUE, interaction="run", user="ann").request.call_index == 8
    assert line.send(BLUE).request.call_index == 1


@pytest.mark.looptime
async def test_refused_calls_are_not_counted_and_the_memory_is_bounded(line, monkeypatch):
    line.configure(queue={"maxRequests": 1})
    line.send(BLUE)
    line.send(BLUE, interaction="a")
    line.refused(BLUE, interaction="b")
    interactions = line.dispatcher._interactions
    assert list(interactions._calls) == [(BLUE, "", "a")]
    monkeypatch.setattr(interactions._calls, "most", 2)
    for name in ("c", "d", "e"):
        interactions.accepted(BLUE, Facts(path="/", kind=EndpointKind.CHAT, interaction=name), 1)
    assert [key[2] for key in interactions._calls] == ["d", "e"]
