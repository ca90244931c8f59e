"""FairServe: counters in typical requests, tenants then users, begun interactions first."""

import json

import pytest
from scheduling_harness import Client, World, drain, finish, make_request

from equipoise_api.policy import Algorithm, Cost, FairServeParameters, Prediction, Queue
from equipoise_api.tenant import Application, TenantLimits
from equipoise_scheduling.contract import ApplicationSettings, TenantSettings
from equipoise_scheduling.cost import LinearCost, ProfiledCost
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.registry import scheduler_settings, tenant_settings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.fairserve import FairServe, FairServeSettings
from equipoise_scheduling.schedulers.vtc import VTC
from equipoise_scheduling.typical import PRIOR_INPUT, Sizes
from equipoise_scheduling.user_queue import MOST_IDLE, UserQueue

T = PRIOR_INPUT + 2 * 256
"""Cost of a prior request: what a typical request of any application counts."""
NO_PREDICTION = PredictionSettings(kind="None")


def application(prompt, output, system=None):
    return ApplicationSettings(expected_input=prompt, expected_output=output, expected_system=system)


def make(tenants=None, **settings):
    return FairServe(FairServeSettings(**settings), tenants or {})


def send(scheduler, *requests):
    for request in requests:
        assert scheduler.enqueue(request, request.arrival) is None
    return list(requests)


def go(scheduler, now=0.0):
    return scheduler.next(now, lambda _: True)


def counters(scheduler):
    return {row.tenant: row.counter for row in scheduler.shares(0.0)}


def users(scheduler, tenant="blue"):
    return {name: user.account.value / 2**20 for name, user in scheduler._queues[tenant]._users.items()}


# -- the counter


def test_typical_request_of_any_declared_application_counts_the_same():
    apps = {"chat": application(100, 50), "rag": application(4000, 200)}
    scheduler = make({"blue": TenantSettings(applications=apps), "red": TenantSettings(applications=apps)})
    chat = make_request("1", "blue", prompt=100, max_tokens=50, application="chat")
    rag = make_request("2", "red", prompt=4000, max_tokens=200, application="rag")
    send(scheduler, chat, rag)
    finish(scheduler, drain(scheduler)[:1], 50)
    finish(scheduler, [rag], 200)
    assert counters(scheduler) == pytest.approx({"blue": T, "red": T})


def test_counter_is_vtcs_until_anything_is_known_of_an_application():
    scheduler = make()
    send(scheduler, *(request := [make_request("1", prompt=30, max_tokens=500)]))
    finish(scheduler, drain(scheduler), 20)
    assert request[0].outcome is Outcome.FINISHED
    assert counters(scheduler) == {"blue": 30 + 2 * 20}


def test_expectation_is_charged_at_dispatch_and_settled_as_tokens_come():
    tenants = {"blue": TenantSettings(weight=2, applications={"": application(200, 100)})}
    scheduler = make(tenants, prediction=PredictionSettings(prior_tokens=100))
    unit = (PRIOR_INPUT + 2 * 100) / (200 + 2 * 100) / 2
    (request,) = send(scheduler, make_request("1", prompt=200, max_tokens=500))
    drain(scheduler)
    assert counters(scheduler)["blue"] == pytest.approx(unit * (200 + 2 * 100))
    scheduler.progress(request, 200, 150, 1.0)
    assert counters(scheduler)["blue"] == pytest.approx(unit * (200 + 2 * 150))
    scheduler.settle(request, Usage(200, 160), Outcome.FINISHED, 2.0)
    assert counters(scheduler)["blue"] == pytest.approx(unit * (200 + 2 * 160))


def test_early_end_refunds_tenant_and_user():
    scheduler = make()
    (request,) = send(scheduler, make_request("1", prompt=10, max_tokens=200, user="ann"))
    drain(scheduler)
    assert users(scheduler) == {"ann": 10 + 2 * 200}
    scheduler.settle(request, Usage(10, 5), Outcome.FINISHED, 1.0)
    assert counters(scheduler) == {"blue": 20}
    assert users(scheduler) == {"ann": 20}


def test_system_prompt_has_its_own_price():
    scheduler = make(system_share=0.25, prediction=NO_PREDICTION)
    (request,) = send(scheduler, make_request("1", prompt=100, system_tokens=80))
    drain(scheduler)
    assert counters(scheduler) == {"blue": 20 + 0.25 * 80}
    scheduler.settle(request, Usage(100, 10), Outcome.FINISHED, 1.0)
    assert counters(scheduler) == {"blue": 20 + 0.25 * 80 + 2 * 10}


def test_system_prompts_price_is_in_what_is_typical_too():
    tenants = {"blue": TenantSettings(applications={"": application(1000, 10, system=900)})}
    scheduler = make(tenants, system_share=0.0)
    send(scheduler, make_request("1", prompt=1000, max_tokens=10, system_tokens=900))
    finish(scheduler, drain(scheduler), 10)
    assert counters(scheduler) == pytest.approx({"blue": T})


def test_profiled_cost_is_normalised_by_itself():
    cost = ProfiledCost()
    tenants = {"blue": TenantSettings(applications={"": application(500, 300)})}
    scheduler = make(tenants, cost=cost)
    send(scheduler, make_request("1", prompt=500, max_tokens=300))
    finish(scheduler, drain(scheduler), 300)
    assert counters(scheduler)["blue"] == pytest.approx(cost(PRIOR_INPUT, 0, 256))


def test_what_an_application_costs_is_learnt_from_its_requests():
    scheduler = make()
    for at in range(400):
        tenant, prompt, output = ("blue", 100, 20) if at % 2 else ("red", 1000, 300)
        send(scheduler, make_request(str(at), tenant, prompt=prompt, max_tokens=output, application="app"))
        finish(scheduler, drain(scheduler), output)
    for tenant, prompt, output in (("blue", 100, 20), ("red", 1000, 300)):
        send(scheduler, make_request("x", tenant, prompt=prompt, max_tokens=output, application="app"))
        before = counters(scheduler)[tenant]
        finish(scheduler, drain(scheduler), output)
        assert counters(scheduler)[tenant] - before == pytest.approx(T, rel=0.1)


def test_charge_meets_its_settlement_whatever_is_learnt_meanwhile():
    scheduler = make()
    (long,) = send(scheduler, make_request("long", prompt=300, max_tokens=200))
    drain(scheduler)
    scheduler.settle(long, Usage(300, 100), Outcome.FINISHED, 1.0)
    base = counters(scheduler)["blue"]
    first, second = send(scheduler, make_request("1", prompt=300), make_request("2", prompt=300))
    drain(scheduler)
    finish(scheduler, [first], 100)
    scheduler.requeue(second, 2.0)
    rate = (PRIOR_INPUT + 2 * 256) / FairServeSettings().price(
        Sizes((256 * 2 + 300) / 3, 0, (256 * 2 + 100) / 3)
    )
    assert counters(scheduler)["blue"] == pytest.approx(base + rate * 500, rel=1e-3)


@pytest.mark.parametrize(("typical", "want"), [("Mean", None), ("P99", 99), ("Min", 1), ("Max", 100)])
def test_typical_figure_is_the_one_that_the_policy_names(typical, want):
    scheduler = make(typical=typical)
    for size in range(1, 101):
        scheduler._typical.learn("blue", "app", Sizes(size, 0, size))
    sizes = scheduler._typical.of("blue", "app", None)
    if want is None:
        assert 45 < sizes.input < 60
    else:
        assert sizes == (want, 0, want)


def test_figures_are_of_recent_calls():
    for typical in ("Mean", "P99", "Min", "Max"):
        figures = make(typical=typical)._typical
        for size in [5] * 300 + [1000] * 300:
            figures.learn("blue", "app", Sizes(size, 0, size))
        assert figures.of("blue", "app", None).input == pytest.approx(1000, rel=0.06)


def test_new_application_starts_from_its_tenant_and_new_tenant_from_everybody():
    figures = make()._typical
    assert figures.of("blue", "x", None) == (PRIOR_INPUT, 0, 256)
    for _ in range(300):
        figures.learn("blue", "x", Sizes(40, 10, 8))
    assert figures.of("blue", "new", None) == pytest.approx((40, 10, 8), rel=0.2)
    assert figures.of("red", "x", None) == figures.everybody
    declared = ApplicationSettings(expected_output=77)
    assert figures.of("blue", "x", declared)[2] == 77
    assert figures.of("blue", "x", declared)[0] == figures.of("blue", "x", None)[0]


def test_invented_applications_take_bounded_memory_and_gain_nothing():
    scheduler = make()
    for at in range(200):
        send(scheduler, make_request(str(at), prompt=300, max_tokens=300, application=f"invented-{at}"))
        finish(scheduler, drain(scheduler), 300)
    assert len(scheduler._typical._tenants["blue"].applications) == 64
    before = counters(scheduler)["blue"]
    send(scheduler, make_request("x", prompt=300, max_tokens=300, application="one more"))
    finish(scheduler, drain(scheduler), 300)
    assert counters(scheduler)["blue"] - before == pytest.approx(T, rel=0.1)


def test_estimated_and_broken_requests_teach_nothing():
    scheduler = make()
    requests = send(scheduler, *(make_request(str(at), prompt=5) for at in range(3)))
    drain(scheduler)
    scheduler.settle(requests[0], Usage(5, 1, exact=False), Outcome.FINISHED, 1.0)
    scheduler.settle(requests[1], Usage(5, 1), Outcome.CANCELLED, 1.0)
    scheduler.settle(requests[2], Usage(5, 1), Outcome.FAILED, 1.0)
    assert scheduler._typical.everybody == (PRIOR_INPUT, 0, 256)


# -- tenants and users


def service(clients, scheduler, seconds=200.0, slots=4):
    world = World(scheduler, clients, slots=slots)
    world.run(seconds)
    return [world.series[client.name].received(20, seconds) for client in clients]


def test_tenant_gains_nothing_by_inventing_users():
    many = Client("many", 100, facts=lambda number: {"user": f"user-{number % 100}"})
    one = Client("one", 100, facts=lambda _: {"user": "user"})
    got = service([many, one], make())
    assert got[0] == pytest.approx(got[1], rel=0.05)


def test_users_of_a_tenant_share_equally_however_much_they_send():
    scheduler = make()
    for at in range(60):
        send(scheduler, make_request(f"a{at}", user="aggressor"))
    for at in range(5):
        send(scheduler, make_request(f"c{at}", user="calm"))
    first = [go(scheduler).user for _ in range(10)]
    assert first.count("calm") == 5


def test_applications_share_in_requests_where_vtc_shares_in_tokens():
    tenants = {
        "chat": TenantSettings(applications={"": application(20, 20)}),
        "rag": TenantSettings(applications={"": application(200, 40)}),
    }
    clients = [Client("chat", 20, prompt=20, output=20), Client("rag", 20, prompt=200, output=40)]
    chat, rag = service(clients, FairServe(tenants=tenants))
    assert chat / 60 == pytest.approx(rag / 280, rel=0.05)
    chat, rag = service(clients, VTC(tenants=tenants))
    assert chat == pytest.approx(rag, rel=0.05)


def test_user_that_comes_back_has_banked_nothing():
    scheduler = make(prediction=NO_PREDICTION)
    for at in range(20):
        send(scheduler, make_request(f"w{at}", user="worker", prompt=100))
        finish(scheduler, drain(scheduler), 0)
    send(scheduler, *(make_request(f"x{at}", user="worker", prompt=100) for at in range(5)))
    send(scheduler, *(make_request(f"n{at}", user="new", prompt=100) for at in range(5)))
    assert [go(scheduler).user for _ in range(6)].count("new") == 3


def test_users_order_is_untouched_by_a_dispatch_that_is_undone():
    scheduler = make()
    send(
        scheduler, make_request("1", user="ann"), make_request("2", user="bob"), make_request("3", user="ann")
    )
    before = scheduler.snapshot(), users(scheduler)
    first = go(scheduler)
    assert first.id == "1"
    scheduler.requeue(first, 0.0)
    assert (scheduler.snapshot(), users(scheduler)) == before
    assert [request.id for request in drain(scheduler)] == ["1", "2", "3"]


def test_user_whose_only_request_is_put_back_is_not_lifted_to_the_others():
    scheduler = make(prediction=NO_PREDICTION)
    for name, user, prompt in [("1", "ann", 10), ("2", "bob", 100), ("3", "ann", 10), ("4", "bob", 100)]:
        send(scheduler, make_request(name, user=user, prompt=prompt))
    assert [request.id for request in drain(scheduler, most=2)] == ["1", "2"]
    before = users(scheduler)
    last = go(scheduler)
    assert last.id == "3"
    scheduler.requeue(last, 0.0)
    assert users(scheduler) == before
    assert before["ann"] < before["bob"]


def test_idle_users_are_forgotten_once_they_would_be_lifted_anyway():
    scheduler = make(prediction=NO_PREDICTION)
    for at in range(300):
        send(scheduler, make_request(f"i{at}", user=f"invented-{at}", prompt=10))
        finish(scheduler, drain(scheduler), 0)
        send(scheduler, make_request(f"s{at}", user="steady", prompt=50))
        finish(scheduler, drain(scheduler), 0)
    assert set(users(scheduler)) <= {"steady", "invented-299", "invented-298"}


def test_forgotten_user_is_given_no_credit():
    scheduler = make(prediction=NO_PREDICTION)
    send(scheduler, make_request("steady", user="steady", prompt=1))
    for at in range(MOST_IDLE + 200):
        # So dear that the steady user's small ones never take it up to where these are.
        send(scheduler, make_request(f"i{at}", user=f"invented-{at}", prompt=10_000 + at))
        while (request := go(scheduler)).user == "steady":
            finish(scheduler, [request], 0)
            send(scheduler, make_request(f"s{at}", user="steady", prompt=1))
        finish(scheduler, [request], 0)
    known = users(scheduler)
    assert len(known) <= MOST_IDLE + 2
    assert "invented-0" not in known
    send(scheduler, make_request("again", user="invented-0"))
    assert users(scheduler)["invented-0"] >= 10_000


# -- interactions


def call(name, user="ann", *, interaction="i", index=1, **fields):
    return make_request(name, user=user, interaction=interaction, call_index=index, **fields)


def test_begun_interaction_goes_before_its_tenants_other_requests():
    scheduler = make(prediction=NO_PREDICTION)
    (first,) = send(scheduler, call("1", prompt=1000))
    finish(scheduler, drain(scheduler), 10)
    send(scheduler, make_request("bob", user="bob"), make_request("ann", user="ann"), call("2", index=2))
    assert [request.id for request in drain(scheduler)][:1] == ["2"]
    assert first.outcome is Outcome.FINISHED


def test_begun_interaction_gains_nothing_between_tenants():
    scheduler = make(prediction=NO_PREDICTION)
    send(scheduler, call("1", prompt=1000), make_request("red 1", "red"), make_request("red 2", "red"))
    assert go(scheduler).id == "1"
    send(scheduler, call("2", index=2))
    assert [request.id for request in drain(scheduler)] == ["red 1", "red 2", "2"]


def test_calls_that_were_queued_already_go_first_once_the_first_is_dispatched():
    scheduler = make()
    send(scheduler, call("1"), make_request("bob", user="bob"), call("3", index=3), call("2", index=2))
    assert [request.id for request in drain(scheduler)] == ["1", "3", "2", "bob"]


def test_interaction_does_not_begin_by_a_dispatch_that_is_undone():
    scheduler = make()
    send(scheduler, call("1"), make_request("bob", user="bob"), call("2", index=2))
    first = go(scheduler)
    scheduler.requeue(first, 0.0)
    scheduler.cancel(first, 0.0)
    assert [request.id for request in drain(scheduler)] == ["bob", "2"]


def test_later_call_of_which_no_earlier_one_was_dispatched_waits_its_turn():
    scheduler = make()
    send(scheduler, make_request("bob", user="bob"), call("5", index=5))
    assert [request.id for request in drain(scheduler)] == ["bob", "5"]


def test_endless_interaction_cannot_shut_out_other_users():
    scheduler = make(prediction=NO_PREDICTION)
    send(scheduler, *(call(str(at), index=at) for at in range(1, 501)))
    send(scheduler, *(make_request(f"b{at}", user="bob") for at in range(50)))
    order = [request.user for request in drain(scheduler)]
    assert order.index("bob") <= 65
    assert order[:200].count("bob") == 50


# -- life


def test_snapshot_carries_counters_users_and_what_is_typical():
    scheduler = make(prediction=NO_PREDICTION)
    send(scheduler, make_request("ann", user="ann", prompt=800, application="x"))
    send(scheduler, *(make_request(f"bob {at}", user="bob", prompt=20) for at in range(3)))
    ann, *others = drain(scheduler)
    finish(scheduler, [ann, *others[:-1]], 10)
    scheduler.progress(others[-1], 20, 3, 1.0)
    data = json.loads(json.dumps(scheduler.snapshot()))
    fresh = make(prediction=NO_PREDICTION)
    fresh.restore(data)
    assert fresh.snapshot() == data
    assert fresh._typical.of("blue", "x", None) == scheduler._typical.of("blue", "x", None)
    send(fresh, *(make_request(str(at), user=user) for at, user in enumerate(["cid", "ann", "cid"])))
    assert [request.user for request in drain(fresh)] == ["cid", "cid", "ann"]


def test_state_that_makes_no_sense_is_refused_by_name():
    good = make().snapshot()
    for part, complaint in [
        ({"users": 3}, "state.users must map tenants"),
        ({"users": {"blue": 3}}, "state.users must have floor"),
        ({"users": {"blue": {"floor": 1.5, "above": {}}}}, "must be integers"),
        ({"typical": None}, "state.typical must be an object"),
        ({"typical": {"kind": "Mean", "everybody": 3, "tenants": {}}}, "must be a list"),
        ({"typical": {"kind": "Mean", "everybody": [1, 2], "tenants": {}}}, "a count and three sizes"),
        (
            {"typical": {"kind": "Mean", "everybody": [2, 1, 1, 1], "tenants": {"a": 3}}},
            "whole and applications",
        ),
    ]:
        with pytest.raises(ValueError, match=complaint):
            make().restore({**good, "state": {**good["state"], **part}})


def test_snapshot_of_another_figure_keeps_the_counters_and_drops_what_is_typical():
    old = make(typical="Max")
    send(old, make_request("1"))
    finish(old, drain(old), 9)
    new = make()
    new.restore(old.snapshot())
    assert counters(new) == counters(old)
    assert new._typical.everybody == (PRIOR_INPUT, 0, 256)


def test_reconfiguration_changes_the_figure_from_where_it_is():
    scheduler = make()
    for _ in range(300):
        scheduler._typical.learn("blue", "x", Sizes(40, 0, 8))
    before = scheduler._typical.of("blue", "x", None)
    scheduler.reconfigure(FairServeSettings(typical="P99"), {}, 0.0)
    assert scheduler._typical.of("blue", "x", None) == before
    scheduler._typical.learn("blue", "x", Sizes(90, 0, 9))
    assert scheduler._typical.of("blue", "x", None) == (90, 0, 9)


def test_history_is_given_and_taken_in_cost_units():
    scheduler = make({"blue": TenantSettings(applications={"": application(2000, 200)})})
    for at in range(300):
        send(scheduler, make_request(str(at), prompt=2000, max_tokens=200))
        finish(scheduler, drain(scheduler), 200)
    service_had = scheduler.shares(0.0)[0].total.cost
    assert scheduler.history(0.0)["blue"] == pytest.approx(service_had, rel=0.1)
    before = counters(scheduler)["blue"]
    scheduler.add_service("blue", 2400.0, 0.0)
    assert counters(scheduler)["blue"] - before == pytest.approx(T, rel=0.1)


def test_policy_and_tenant_fields_reach_the_settings():
    algorithm = Algorithm(type="FairServe", fair_serve=FairServeParameters(typical="P99", system_percent=50))
    settings = scheduler_settings(algorithm, Cost(output_percent=300), Prediction(), Queue())
    assert isinstance(settings, FairServeSettings)
    assert (settings.typical, settings.system_share) == ("P99", 0.5)
    assert isinstance(settings.cost, LinearCost)
    assert settings.cost.output == 3
    declared = Application(name="rag", expected_input_tokens=900, expected_output_tokens=30)
    assert tenant_settings(1, TenantLimits(), [declared]).applications == {"rag": application(900, 30)}


def test_settings_that_cannot_be_are_refused_by_name():
    with pytest.raises(ValueError, match="typical='Median' must be one of Mean, P99, Min, Max"):
        FairServeSettings(typical="Median")
    with pytest.raises(ValueError, match="system_share=-1 must be"):
        FairServeSettings(system_share=-1)
    with pytest.raises(ValueError, match="expected_output=0 must be at least 1"):
        ApplicationSettings(expected_output=0)


def test_work_per_request_does_not_grow_with_users_and_requests(monkeypatch):
    looks = 0

    def counting(function):
        def count(queue, name):
            nonlocal looks
            looks += 1
            return function(queue, name)

        return count

    for name in ("_turn", "_height"):
        monkeypatch.setattr(UserQueue, name, counting(getattr(UserQueue, name)))

    def looks_a_request(count):
        nonlocal looks
        looks = 0
        scheduler = make()
        for at in range(count):
            send(
                scheduler,
                call(str(at), user=f"user-{at % (count // 4)}", interaction=str(at // 3), index=1 + at % 3),
            )
        for request in drain(scheduler):
            scheduler.progress(request, 10, 50, 0.0)
            finish(scheduler, [request], 60)
        return looks / count

    few, many = looks_a_request(200), looks_a_request(8_000)
    assert many <= 1.5 * few, f"{many} looks at a user's place a request with 8,000, {few} with 200"
