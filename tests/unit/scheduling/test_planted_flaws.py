"""The conformance suite catches schedulers with a flaw: each one fails the very case that is there for it."""

from dataclasses import replace

import conformance_fairness  # noqa: F401 - its cases
import conformance_life  # noqa: F401 - its cases
import conformance_state  # noqa: F401 - its cases
import pytest
from conformance import Subject, cases_of

from equipoise_scheduling.contract import SchedulerSettings
from equipoise_scheduling.counters import units
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.drr import DRR
from equipoise_scheduling.schedulers.equipoise import Equipoise
from equipoise_scheduling.schedulers.exfairs import ExFairS
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.round_robin import RoundRobin
from equipoise_scheduling.schedulers.vtc import VTC


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


class WeightsIgnored(VTC):
    def _dispatched(self, flight):
        flight.weight = 1.0
        super()._dispatched(flight)


class ChargeKeptOnRequeue(VTC):
    def _undone(self, flight):
        self.watch.undone(flight)


class BandWithoutBound(Equipoise):
    @property
    def band_units(self):
        return 10**30


class CreditWithoutBound(ExFairS):
    @property
    def _settings(self):
        return replace(super()._settings, priority_limit=1000)


class EndlessOvertaking(ExFairS):
    def _request_joined(self, request, now):
        super()._request_joined(request, now)
        for waiting in self.books.waiting:
            self._list[waiting].overtaken = 0


class TurnsSavedUp(DRR):
    def _joined(self, tenant, now):
        super()._joined(tenant, now)
        self._deficits[tenant.name] += self._turn * units(self.quantum, 1.0)


class QuantumEachPass(DRR):
    """A turn that a misfit interrupts begins anew in the next pass."""

    def next(self, now, fits):
        request = super().next(now, fits)
        if request is None:
            self._first = None
        return request


class LastComeFirstServed(FCFS):
    def _key(self, name):
        return (-self.books.tenants[name].queue.head().number,)


class TurnLostOnRequeue(RoundRobin):
    def _undone(self, flight):
        self._given.pop(flight.request.id, None)


class Forgetful(FCFS):
    def cancel(self, request, now, outcome=Outcome.CANCELLED):
        """Leave it in the queue."""


class HalfReconfigured(VTC):
    def reconfigure(self, settings, tenants, now):
        if isinstance(settings, SchedulerSettings):
            self.books.settings = settings
        super().reconfigure(settings, tenants, now)


FLAWS = [
    (NoLift, "idle_tenant_banks_nothing"),
    (NoRefund, "overestimated_tenant_gets_its_share"),
    (SkippedHead, "big_head_is_served_in_its_turn"),
    (FreeCancel, "cancelling_late_is_not_free"),
    (WeightsIgnored, "equal_requests_are_served_by_weight"),
    (ChargeKeptOnRequeue, "busy_engine_puts_a_request_back_as_if_it_had_never_left"),
    (BandWithoutBound, "long_and_short_requests_get_the_same_tokens"),
    (CreditWithoutBound, "credit_of_the_past_runs_out"),
    (EndlessOvertaking, "steady_stream_of_better_ones_passes_nobody_for_ever"),
    (TurnsSavedUp, "idle_tenant_banks_nothing"),
    (QuantumEachPass, "long_and_short_requests_get_the_same_tokens"),
    (LastComeFirstServed, "nobody_starves_beside_an_aggressor"),
    (TurnLostOnRequeue, "busy_engine_puts_a_request_back_as_if_it_had_never_left"),
    (Forgetful, "cancelled_while_queued_is_never_served_and_costs_nothing"),
    (HalfReconfigured, "nothing_changes_when_a_reconfiguration_is_wrong"),
]


def failures(flawed):
    """Yield the names of the conformance cases that the scheduler fails."""
    subject = Subject(flawed)
    for name, case in cases_of(subject).items():
        try:
            case(subject)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - as for pytest, any error is a failure
            yield name


@pytest.mark.parametrize(("flawed", "caught_by"), FLAWS, ids=[flawed.__name__ for flawed, _ in FLAWS])
def test_flaw_is_caught(flawed, caught_by):
    assert any(name == caught_by for name in failures(flawed))


@pytest.mark.parametrize(
    "sound", sorted({flawed.__base__ for flawed, _ in FLAWS}, key=lambda each: each.algorithm)
)
def test_scheduler_without_the_flaw_is_not_caught(sound):
    assert not list(failures(type("Sound", (sound,), {})))
