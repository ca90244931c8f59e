"""Another algorithm after ten minutes of backlog: the bound that it publishes holds for as long as the past weighs.

Before the change red and green are served, and blue joins late. After it blue and green wait, blue far behind under an
algorithm that carries its counters over; red is away and comes back when nobody remembers its dispatches.
"""

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Usage

WEIGHTS = {"red": 1, "green": 1, "blue": 4}
CHANGE, BACK, END = 600, 1_600, 2_000
"""Seconds."""
BOUNDED = ["Equinox", "Equipoise", "FairServe", "VTC"]


def make(algorithm):
    tenants = {name: TenantSettings(weight=weight) for name, weight in WEIGHTS.items()}
    own = {"requests_per_minute": 1_000_000} if algorithm == "RPM" else {}
    return SCHEDULERS[algorithm](SCHEDULERS[algorithm].settings_type(**own), tenants)


class Line:
    """Serves a request a second, each for two seconds; who waits has always two requests queued."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.sent = 0
        self.queued = dict.fromkeys(WEIGHTS, 0)
        self.flying = []
        self.served = dict.fromkeys(WEIGHTS, 0)

    def second(self, now, waiting):
        for tenant in waiting:
            while self.queued[tenant] < 2:
                self.sent += 1
                self.queued[tenant] += 1
                request = make_request(f"r{self.sent}", tenant, arrival=now, prompt=100, max_tokens=200)
                assert self.scheduler.enqueue(request, now) is None
        request = self.scheduler.next(now, lambda _: len(self.flying) < 2)
        if request is not None:
            self.queued[request.tenant] -= 1
            self.flying.append(request)
        if len(self.flying) == 2:
            done = self.flying.pop(0)
            self.scheduler.progress(done, 100, 40, now)
            self.scheduler.settle(done, Usage(100, 100), Outcome.FINISHED, now)
            self.served[done.tenant] += 1
        self.scheduler.tick(now)


def waiting(now):
    tenants = ["green"]
    if now < CHANGE or now >= BACK:
        tenants.append("red")
    if now >= CHANGE - 10:
        tenants.append("blue")
    return tenants


@pytest.mark.parametrize("after", BOUNDED)
@pytest.mark.parametrize("before", sorted(SCHEDULERS))
def test_published_bound_holds_after_a_long_backlog_under_another_algorithm(before, after):
    line = Line(make(before))
    for now in range(CHANGE):
        line.second(float(now), waiting(now))
    if before != after:
        line.scheduler = carry_over(line.scheduler, make(after), float(CHANGE))
    for now in range(CHANGE, END):
        line.second(float(now), waiting(now))
        bound = line.scheduler.bound(float(now))
        assert bound.met, f"{now - CHANGE} s after the change: {bound}"
    assert bound.gap > 0


@pytest.mark.parametrize("after", ["Equinox", "VTC"])
def test_published_bound_is_as_tight_as_ever_once_the_past_is_made_up_for(after):
    """What the change left behind widens the bound only until it is forgotten."""
    changed, unchanged = (Line(make(each)) for each in ("LCF", after))
    for now in range(CHANGE):
        for line in (changed, unchanged):
            line.second(float(now), waiting(now))
    changed.scheduler = carry_over(changed.scheduler, make(after), float(CHANGE))
    later = CHANGE + 2_500
    for now in range(CHANGE, later):
        for line in (changed, unchanged):
            line.second(float(now), ["green", "blue"])
    limits = [line.scheduler.bound(float(later)).limit for line in (changed, unchanged)]
    assert limits[0] == pytest.approx(limits[1], rel=0.2)


def test_a_far_history_is_made_up_for_after_the_change():
    """The premise of the above: blue, which joined late and was never lifted, is served more for many minutes."""
    line = Line(make("LCF"))
    for now in range(CHANGE):
        line.second(float(now), waiting(now))
    line.scheduler = carry_over(line.scheduler, make("VTC"), float(CHANGE))
    before = dict(line.served)
    for now in range(CHANGE, BACK):
        line.second(float(now), waiting(now))
    assert line.served["green"] <= before["green"] + 1
    assert line.served["blue"] > before["blue"] + 900


def test_newcomer_after_a_change_is_lifted_to_the_least_served_of_those_that_still_run():
    old = make("LCF")
    for number, tenant in enumerate(["red", "red", "green"]):
        assert old.enqueue(make_request(str(number), tenant, prompt=100 + number), 0.0) is None
    running = [old.next(0.0, lambda _: True) for _ in range(3)]
    for request in running:
        old.progress(request, request.prompt_tokens, 0, 1.0)
    new = carry_over(old, make("VTC"), 2.0)
    assert new.enqueue(make_request("new", "newcomer"), 2.0) is None
    counters = {row.tenant: row.counter for row in new.shares(2.0)}
    assert counters["newcomer"] == counters["green"] < counters["red"]


def test_tenant_far_ahead_that_only_runs_at_the_change_waits_within_the_bound_when_it_comes_back():
    line = Line(make("LCF"))
    for now in range(CHANGE):
        line.second(float(now), ["red"])
    for number in range(2):
        assert line.scheduler.enqueue(make_request(f"b{number}", "blue", prompt=100), float(CHANGE)) is None
        line.queued["blue"] += 1
    for request in [r for r in line.scheduler.books.waiting.values() if r.tenant == "red"]:
        line.scheduler.cancel(request, float(CHANGE))
        line.queued["red"] -= 1
    assert {request.tenant for request in line.flying} == {"red"}
    line.scheduler = carry_over(line.scheduler, make("VTC"), float(CHANGE))
    for now in range(CHANGE, CHANGE + 400):
        line.second(float(now), ["blue", "red"] if now >= CHANGE + 5 else ["blue"])
        bound = line.scheduler.bound(float(now))
        assert bound.met, f"{now - CHANGE} s after the change: {bound}"
    assert line.served["blue"] > 390
