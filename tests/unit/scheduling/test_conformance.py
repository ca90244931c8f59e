"""What every scheduler in the registry must do, whatever its order: each one runs through the same cases."""

import conformance_fairness  # noqa: F401 - its cases
import conformance_life  # noqa: F401 - its cases
import conformance_state  # noqa: F401 - its cases
import pytest
from conformance import CASES, EVERY, TRAITS, Subject, cases_of

from equipoise_scheduling.contract import SchedulerSettings
from equipoise_scheduling.registry import SCHEDULERS, create


@pytest.mark.parametrize(
    ("algorithm", "case"),
    [(algorithm, name) for algorithm in EVERY for name in cases_of(Subject(SCHEDULERS[algorithm]))],
)
def test_conforms(algorithm, case):
    CASES[case](Subject(SCHEDULERS[algorithm]))


def test_every_scheduler_says_what_it_shares_out():
    assert set(SCHEDULERS) <= set(TRAITS)


def test_unknown_algorithm_names_those_there_are():
    with pytest.raises(ValueError, match=f"'LIFO' is unknown: use one of {', '.join(SCHEDULERS)}"):
        create("LIFO", SchedulerSettings(), {})


def test_state_of_a_snapshot_that_makes_no_sense_is_refused_by_name():
    for algorithm, state, complaint in [
        ("RoundRobin", {"places": 3, "served": [0, 0]}, "state.places must be a list"),
        ("RoundRobin", {"places": [], "served": [0]}, "state.served a pair"),
        ("VTC", {"counters": {"a": 1.5}, "last_left": None}, "state.counters must map tenants to integers"),
        ("VTC", {"counters": {"a": 1}, "last_left": "b"}, "state.last_left must be one of"),
    ]:
        scheduler = SCHEDULERS[algorithm]()
        with pytest.raises(ValueError, match=complaint):
            scheduler.restore({**scheduler.snapshot(), "state": state})
