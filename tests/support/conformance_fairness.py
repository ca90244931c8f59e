"""Conformance: what tenants get, in the unit that a scheduler shares out, over an engine of a few slots."""

import pytest
from conformance import case, fill
from scheduling_harness import Client, World, drain, finish, make_request

from equipoise_scheduling.contract import ApplicationSettings, TenantSettings
from equipoise_scheduling.prediction import NoPrediction, PredictionSettings
from equipoise_scheduling.request import Outcome, Usage


def received(subject, clients, *, since, until, slots=4, predictor=None):
    """Run clients against the scheduler; return (weighted tokens, requests dispatched) of each in the interval."""
    tenants = {
        client.name: TenantSettings(
            weight=client.weight,
            applications={
                "": ApplicationSettings(expected_input=client.prompt, expected_output=client.output)
            },
        )
        for client in clients
    }
    world = World(subject.make(tenants, predictor), clients, slots=slots)
    world.run(until)
    served = [
        sum(request.tenant == client.name and request.dispatched >= since for request in world.order)
        for client in clients
    ]
    return [world.series[client.name].received(since, until) for client in clients], served


@case(lambda traits: traits.unit == "tokens")
def long_and_short_requests_get_the_same_tokens(subject):
    clients = [Client("long", 20, prompt=200, output=60), Client("short", 20, prompt=16, output=32)]
    tokens, _ = received(subject, clients, since=20, until=200)
    assert tokens[0] == pytest.approx(tokens[1], rel=0.1)


@case(lambda traits: traits.unit in {"requests", "typical requests"})
def long_and_short_requests_get_the_same_number_of_turns(subject):
    clients = [
        Client("long", 20, prompt=200, output=60),
        Client("short", 20, prompt=16, output=32),
    ]
    _, requests = received(subject, clients, since=20, until=200)
    assert requests[0] == pytest.approx(requests[1], rel=0.1)


@case(lambda traits: traits.weights)
def equal_requests_are_served_by_weight(subject):
    clients = [Client("one", 20, weight=1), Client("three", 20, weight=3)]
    _, requests = received(subject, clients, since=20, until=200)
    assert requests[1] == pytest.approx(3 * requests[0], rel=0.15)


@case(lambda traits: traits.unit not in {"nothing", "experience"})
def who_sends_ten_times_as_much_gets_no_more(subject):
    tokens, _ = received(subject, [Client("ten", 40), Client("one", 4)], since=20, until=200, slots=2)
    assert tokens[0] <= 1.15 * tokens[1]


@case(lambda traits: not traits.banks)
def idle_tenant_banks_nothing(subject):
    clients = [Client("saver", 20, active=lambda now: now >= 100), Client("steady", 20)]
    (saver, steady), _ = received(subject, clients, since=100, until=140)
    a_turn = 500  # that of DRR, which it may take at once
    assert saver <= 1.1 * steady + a_turn, f"{saver} after idling, {steady} for the one that worked"


@case(lambda traits: traits.banks)
def idle_tenant_catches_up(subject):
    clients = [Client("saver", 20, active=lambda now: now >= 100), Client("steady", 20)]
    (saver, steady), _ = received(subject, clients, since=110, until=140)
    assert saver > 10 * steady


class Always256(NoPrediction):
    def predict(self, request):
        return min(256, request.max_tokens)


@case(lambda traits: traits.unit == "tokens")
def overestimated_tenant_gets_its_share(subject):
    clients = [Client("brief", 20, output=8, max_tokens=300), Client("long", 20, output=200, max_tokens=300)]
    (brief, long), _ = received(subject, clients, since=50, until=200, predictor=Always256())
    assert brief >= 0.8 * long, f"{brief} and {long}"


@case(lambda traits: traits.unit in {"tokens", "typical requests", "felt and spent"})
def cancelling_late_is_not_free(subject):
    clients = [Client("honest", 20), Client("canceller", 20, cancel_at=0.95)]
    (honest, canceller), _ = received(subject, clients, since=20, until=100)
    assert canceller <= 1.1 * honest, f"{canceller} by cancelling, {honest} without"


@case()
def big_head_is_served_in_its_turn(subject):
    """Small requests keep coming and fit beside each other; the big one needs all the room there is."""
    scheduler = subject.make(prediction=PredictionSettings(kind="None"))
    room, running = 100, []
    for at in range(30):
        assert scheduler.enqueue(make_request(f"s{at}", "small", prompt=20), 0.0) is None
    assert scheduler.enqueue(make_request("big", "big", prompt=room), 0.0) is None
    for at in range(30, 230):
        while True:
            used = sum(r.prompt_tokens for r in running)
            request = scheduler.next(0.0, lambda r, used=used: used + r.prompt_tokens <= room)
            if request is None:
                break
            if request.id == "big":
                return
            running.append(request)
        done = running.pop(0)
        scheduler.settle(done, Usage(20, 0), Outcome.FINISHED, 0.0)
        assert scheduler.enqueue(make_request(f"s{at}", "small", prompt=20), 0.0) is None
    raise AssertionError("passed over for 200 others")


def rounds(scheduler, sufferer, happy, *, start, count):
    """Let rounds of 100 s pass in which the one's requests miss their SLO and the other's keep it."""
    for number in range(count):
        now = start + 100.0 * number
        scheduler.tick(now)
        requests = fill(scheduler, [sufferer, happy], now=now + 1, e2e_budget=20.0)
        drain(scheduler, now + 1)
        finish(scheduler, [requests[1]], 10, now + 11)
        finish(scheduler, [requests[0]], 10, now + 31)
    scheduler.tick(start + 100.0 * count)


@case(lambda traits: traits.unit == "experience")
def sufferer_of_the_last_round_goes_first_in_the_next(subject):
    scheduler = subject.make()
    rounds(scheduler, "a", "b", start=0.0, count=1)
    fill(scheduler, "ba", now=150.0)
    assert [request.tenant for request in drain(scheduler, 150.0)] == ["a", "b"]


@case(lambda traits: traits.unit == "experience")
def credit_of_the_past_runs_out(subject):
    scheduler = subject.make()
    rounds(scheduler, "a", "b", start=0.0, count=60)
    rounds(scheduler, "b", "a", start=6_000.0, count=30)
    fill(scheduler, "ab", now=9_050.0)
    assert [request.tenant for request in drain(scheduler, 9_050.0)] == ["b", "a"]


@case(lambda traits: traits.unit == "experience")
def steady_stream_of_better_ones_passes_nobody_for_ever(subject):
    scheduler = subject.make()
    rounds(scheduler, "better", "worse", start=0.0, count=1)
    fill(scheduler, ["worse"], now=150.0)
    for at in range(100):
        fill(scheduler, ["better"] * 2, now=151.0 + at)
        request = scheduler.next(151.0 + at, lambda _: True)
        if request.tenant == "worse":
            return
        finish(scheduler, [request], 1, 151.0 + at)
    raise AssertionError("passed over 100 times")
