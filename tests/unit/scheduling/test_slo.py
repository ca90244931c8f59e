"""Whether a request kept its SLO: judged once, by its budgets."""

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.request import Outcome
from equipoise_scheduling.slo import SLOJudge


def judge(request, *, first=None, end, outcome=Outcome.FINISHED):
    made = SLOJudge()
    if first is not None:
        made.generated(request, first)
    return made.ended(request, outcome, end)


@pytest.mark.parametrize(
    ("budgets", "first", "end", "outcome", "missed"),
    [
        ({}, 900.0, 1000.0, Outcome.FINISHED, False),
        ({}, None, 1000.0, Outcome.EXPIRED, False),
        ({"ttft_budget": 1.0}, 0.9, 50.0, Outcome.FINISHED, False),
        ({"ttft_budget": 1.0}, 1.1, 50.0, Outcome.FINISHED, True),
        ({"ttft_budget": 1.0}, None, 0.9, Outcome.FINISHED, False),
        ({"ttft_budget": 1.0}, None, 1.1, Outcome.FINISHED, True),
        ({"e2e_budget": 10.0}, 0.1, 10.0, Outcome.FINISHED, False),
        ({"e2e_budget": 10.0}, 0.1, 10.1, Outcome.FINISHED, True),
        ({"ttft_budget": 1.0, "e2e_budget": 10.0}, 2.0, 5.0, Outcome.FINISHED, True),
        ({"e2e_budget": 10.0}, None, 3.0, Outcome.EXPIRED, True),
        ({"e2e_budget": 10.0}, None, 3.0, Outcome.FAILED, True),
        ({"e2e_budget": 10.0}, None, 3.0, Outcome.CANCELLED, None),
        ({"e2e_budget": 10.0}, None, 30.0, Outcome.CANCELLED, True),
        ({"e2e_budget": 10.0}, None, 3.0, Outcome.REFUSED, None),
    ],
)
def test_verdict(budgets, first, end, outcome, missed):
    assert judge(make_request("r", **budgets), first=first, end=end, outcome=outcome) is missed


def test_first_token_that_came_first_counts():
    request, made = make_request("r", ttft_budget=1.0), SLOJudge()
    made.generated(request, 0.5)
    made.generated(request, 7.0)
    assert made.ended(request, Outcome.FINISHED, 9.0) is False


def test_living_request_is_found_overdue_once_and_not_judged_again_at_its_end():
    request, made = make_request("r", e2e_budget=5.0), SLOJudge()
    assert [made.overdue(request, now) for now in (4.0, 6.0, 7.0)] == [False, True, False]
    assert made.ended(request, Outcome.FINISHED, 8.0) is None


def test_nothing_is_kept_of_a_request_that_has_ended():
    made = SLOJudge()
    for name in ("a", "b"):
        request = make_request(name, ttft_budget=1.0, e2e_budget=2.0)
        made.generated(request, 0.5)
        made.overdue(request, 3.0)
        made.ended(request, Outcome.FINISHED, 4.0)
    assert (made._first, made._judged) == ({}, set())
