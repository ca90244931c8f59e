"""The checks that guard VTC catch a VTC with a flaw: each scenario passes with the real one and fails with its flaw."""

import pytest
from scheduling_harness import Client, World, make_request

from equipoise_scheduling.counters import units
from equipoise_scheduling.prediction import NoPrediction, PredictionSettings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings


class NoLift(VTC):
    def _lift_level(self, name):
        return None


class NoRefund(VTC):
    def _settle(self, flight, cost):
        charged = flight.charge.before + flight.charge.after
        if units(cost, flight.weight) > charged:
            super()._settle(flight, cost)


class SkippedHead(VTC):
    def next(self, now, fits):
        for name in sorted(self.choice, key=self._key):
            if fits(self.books.tenants[name].queue.head()):
                while self.choice.least() != name:
                    self.choice.discard(self.choice.least())
                break
        request = super().next(now, fits)
        for name, tenant in self.books.tenants.items():
            if tenant.eligible and name not in self.choice:
                self.choice.add(name)
        return request


class FreeCancel(VTC):
    def settle(self, request, usage, outcome, now):
        if outcome is Outcome.CANCELLED:
            usage = Usage(0, 0)
        super().settle(request, usage, outcome, now)


def idle_tenant_banks_nothing(scheduler_type):
    saver = Client("saver", 20, active=lambda now: now >= 100)
    world = World(scheduler_type(), [saver, Client("steady", 20)], slots=4)
    world.run(140)
    got, steady = (world.series[name].received(100, 140) for name in ("saver", "steady"))
    assert got <= 1.1 * steady, f"{got} after idling, {steady} for the one that worked"


class Always256(NoPrediction):
    def predict(self, request):
        return min(256, request.max_tokens)


def overestimated_tenant_gets_its_share(scheduler_type):
    clients = [Client("brief", 20, output=8, max_tokens=300), Client("long", 20, output=200, max_tokens=300)]
    world = World(scheduler_type(predictor=Always256()), clients, slots=4)
    world.run(200)
    brief, long = (world.series[name].received(50, 200) for name in ("brief", "long"))
    assert brief >= 0.8 * long, f"{brief} and {long}"


def big_head_is_served_in_its_turn(scheduler_type):
    scheduler = scheduler_type(VTCSettings(prediction=PredictionSettings(kind="None")))
    room = 10
    for at in range(30):
        assert scheduler.enqueue(make_request(f"s{at}", "small", prompt=2), 0.0) is None
    assert scheduler.enqueue(make_request("big", "big", prompt=10), 0.0) is None
    running = []
    for _ in range(20):
        while True:
            used = sum(r.prompt_tokens for r in running)
            request = scheduler.next(0.0, lambda r, used=used: used + r.prompt_tokens <= room)
            if request is None:
                break
            running.append(request)
        if any(r.id == "big" for r in running):
            return
        done = running.pop(0)
        scheduler.settle(done, Usage(2, 0), Outcome.FINISHED, 0.0)
    raise AssertionError("the big request was passed over 20 times")


def cancelling_is_not_free(scheduler_type):
    clients = [Client("honest", 20), Client("canceller", 20, cancel_at=0.95)]
    world = World(scheduler_type(), clients, slots=4)
    world.run(100)
    honest, canceller = (world.series[name].received(20, 100) for name in ("honest", "canceller"))
    assert canceller <= 1.05 * honest, f"{canceller} by cancelling, {honest} without"


GUARDS = [
    (idle_tenant_banks_nothing, NoLift),
    (overestimated_tenant_gets_its_share, NoRefund),
    (big_head_is_served_in_its_turn, SkippedHead),
    (cancelling_is_not_free, FreeCancel),
]


@pytest.mark.parametrize(("check", "flawed"), GUARDS, ids=lambda value: value.__name__)
def test_flaw_is_caught_and_the_real_one_passes(check, flawed):
    check(VTC)
    with pytest.raises(AssertionError):
        check(flawed)
