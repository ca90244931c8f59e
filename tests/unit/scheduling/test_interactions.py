"""Interactions: what is in the middle of one, and for how long it is remembered."""

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.interactions import REMEMBER_SECONDS, Interactions


class Calls:
    """Sends calls through their lives."""

    def __init__(self):
        self.interactions = Interactions()
        self.sent = 0

    def call(self, index, *, interaction="run", user="ann", tenant="blue", count=None):
        request = make_request(
            f"r{self.sent}", tenant, interaction=interaction, user=user, call_index=index, call_count=count
        )
        request.number = self.sent
        self.sent += 1
        self.interactions.joined(request)
        return request

    def run(self, index, now=0.0, **facts):
        request = self.call(index, **facts)
        self.interactions.dispatched(request)
        self.interactions.ended(request, now)
        return request


def test_a_later_call_is_in_the_middle_once_an_earlier_one_was_dispatched():
    calls = Calls()
    first, second = calls.call(1), calls.call(2)
    assert not calls.interactions.begun(second)
    calls.interactions.dispatched(first)
    assert calls.interactions.begun(second)
    calls.interactions.undone(first)
    assert not calls.interactions.begun(second)


@pytest.mark.parametrize("other", [{"user": "bob"}, {"tenant": "red"}, {"interaction": "walk"}])
def test_interactions_of_others_by_the_same_name_are_others(other):
    calls = Calls()
    calls.run(1)
    assert calls.interactions.started(calls.call(2))
    assert not calls.interactions.started(calls.call(2, **other))


def test_an_interaction_is_over_with_its_last_call_where_the_client_says_how_many_there_are():
    calls = Calls()
    calls.run(1, count=2)
    assert calls.interactions.started(calls.call(2, interaction="run", count=2))
    calls = Calls()
    calls.run(1, count=2)
    calls.run(2, count=2)
    assert not calls.interactions.started(calls.call(3))


def test_an_interaction_without_a_count_may_always_go_on():
    calls = Calls()
    for index in (1, 2, 3):
        calls.run(index)
    assert calls.interactions.begun(calls.call(4))


def test_an_interaction_is_forgotten_some_time_after_its_last_call():
    calls = Calls()
    calls.run(1, now=0.0, interaction="old")
    calls.run(1, now=REMEMBER_SECONDS, interaction="new")
    assert calls.interactions.started(make_request("x", interaction="old", user="ann", call_index=2))
    calls.run(1, now=REMEMBER_SECONDS + 1, interaction="newer")
    assert not calls.interactions.started(make_request("x", interaction="old", user="ann", call_index=2))
    assert calls.interactions.started(make_request("x", interaction="new", user="ann", call_index=2))


def test_an_interaction_of_which_nothing_was_dispatched_is_not_remembered():
    calls = Calls()
    calls.interactions.left(calls.call(1))
    assert (len(calls.interactions._living), len(calls.interactions._past)) == (0, 0)
