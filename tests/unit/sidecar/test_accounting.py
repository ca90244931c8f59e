"""What is counted of a tenant, over the last minute and in all; and when an SLO is kept."""

import pytest

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.request import Outcome, Request
from equipoise_sidecar.accounting import Accounting, TenantAccount, histogram, slo_kept
from equipoise_sidecar.ticket import Ticket


def test_the_window_forgets_what_is_older_than_a_minute():
    account = TenantAccount()
    account.waited(0.5, 3)
    account.began(2.0, 3)
    account.refused("queue-full", 3)
    account.waited(1.5, 50)
    assert sum(account.window(55).wait.values()) == 2
    late = account.window(70)
    assert histogram(late.wait).quantile(0.5) == pytest.approx(1.5, rel=0.06)
    assert (late.ttft, late.rejected) == ({}, {})
    assert account.rejected == {"queue-full": 1}
    assert (sum(account.wait.counts.values()), account.wait.seconds) == (2, 2.0)


def test_the_window_holds_at_least_55_seconds():
    account = TenantAccount()
    account.waited(1, 4.99)
    assert sum(account.window(59.9).wait.values()) == 1
    assert sum(account.window(60.1).wait.values()) == 0


def test_an_idle_tenant_is_forgotten_only_when_it_is_gone():
    accounting = Accounting()
    accounting["team/blue"].refused("queue-full", 0)
    accounting["team/red"].refused("queue-full", 0)
    accounting.keep_only({"team/blue"}, 30)
    assert accounting.get("team/red") is not None
    accounting.keep_only({"team/blue"}, 100)
    assert accounting.get("team/red") is None
    assert accounting.get("team/blue") is not None


class TestSlo:
    @pytest.fixture
    def ended(self, facts):
        def make(*, first=None, generated=0, stream=True):
            request = Request(id="1", tenant="team/blue", arrival=10, prompt_tokens=1, max_tokens=100)
            ticket = Ticket(None, facts(stream=stream), request, 0)
            ticket.first_token_at, ticket.generated = first, generated
            return ticket

        return make

    @pytest.mark.parametrize(
        ("slo", "first", "end", "kept"),
        [
            ({"ttftMilliseconds": 1000}, 11.0, 20, True),
            ({"ttftMilliseconds": 1000}, 11.1, 20, False),
            ({"e2eMilliseconds": 10_000}, 11.0, 20, True),
            ({"e2eMilliseconds": 9_999}, 11.0, 20, False),
            ({"tpotMilliseconds": 900}, 11.0, 20, True),
            ({"tpotMilliseconds": 899}, 11.0, 20, False),
            ({"ttftMilliseconds": 1000, "e2eMilliseconds": 5_000}, 11.0, 20, False),
        ],
    )
    def test_a_stream_keeps_its_slo_when_it_keeps_every_target(self, ended, slo, first, end, kept):
        ticket = ended(first=first, generated=11)
        assert slo_kept(SloTarget.model_validate(slo), ticket, Outcome.FINISHED, end) is kept

    def test_time_per_token_is_of_one_sequence(self, ended):
        ticket = ended(first=11, generated=22)
        ticket.request.sequences = 2
        slo = SloTarget(tpot_milliseconds=900)
        assert slo_kept(slo, ticket, Outcome.FINISHED, 20) is True

    @pytest.mark.parametrize("outcome", [Outcome.EXPIRED, Outcome.FAILED])
    def test_who_was_not_served_kept_nothing(self, ended, outcome):
        assert slo_kept(SloTarget(e2e_milliseconds=10**6), ended(), outcome, 11) is False

    def test_who_left_is_judged_only_once_a_target_was_broken(self, ended):
        slo = SloTarget(ttft_milliseconds=1000)
        assert slo_kept(slo, ended(), Outcome.CANCELLED, 10.5) is None
        assert slo_kept(slo, ended(), Outcome.CANCELLED, 12.0) is False

    @pytest.mark.parametrize("slo", [SloTarget(ttft_milliseconds=1000), SloTarget(e2e_milliseconds=10**6)])
    def test_a_request_that_the_engine_refused_is_not_judged(self, ended, slo):
        assert slo_kept(slo, ended(), Outcome.FINISHED, 10.1) is None

    def test_the_first_token_of_a_whole_answer_is_not_judged(self, ended):
        slo = SloTarget(ttft_milliseconds=1)
        assert slo_kept(slo, ended(stream=False), Outcome.FINISHED, 20) is None
        assert slo_kept(slo, ended(), Outcome.REFUSED, 20) is None
