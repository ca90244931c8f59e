"""Which traffic and load the demo chooses, which it refuses, and what it calls its tenants."""

from collections import Counter

import pytest
import yaml

from equipoise_demo.load import ENGINE, ENGINES, LEAST_RATIO, WANTED_RATIO, stand_in_load
from equipoise_demo.outcome import Outcome
from equipoise_demo.places import (
    INTERACTIVE_APPLICATION,
    PROMISE_MILLISECONDS,
    DemoError,
    checkout,
    condition_of,
    shipped_keys,
    tenant_manifest,
    tenant_of,
)
from equipoise_demo.real_vllm import steady_rate
from equipoise_demo.traffic import SECONDS, TENANTS, own_traffic, traffic_of
from equipoise_simulator.traces import TraceError, demand_ratio


def csv(tmp_path, *rows):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,client,input_tokens,output_tokens", *rows, ""]))
    return path


def test_the_demos_own_traffic_is_one_big_tenant_and_half_of_all_interactive():
    traffic = own_traffic()
    rows = traffic.trace.rows
    assert traffic.own
    assert max(row.arrival for row in rows) < traffic.trace.seconds == SECONDS
    asked = Counter()
    for row in rows:
        asked[row.client] += row.cost
    assert set(asked) == set(TENANTS)
    others = [asked[name] for name in TENANTS[1:]]
    assert asked[TENANTS[0]] / (sum(others) / len(others)) == pytest.approx(3, rel=0.25)
    assert len(traffic.interactive) / len(rows) == pytest.approx(0.5, abs=0.05)
    assert {(rows[place].input_tokens, rows[place].output_tokens) for place in traffic.interactive} == {
        (64, 64)
    }
    assert {row.client for place, row in enumerate(rows) if place in traffic.interactive} == set(TENANTS)


def test_its_traffic_is_the_same_each_time_and_can_be_cut():
    whole, cut = own_traffic(), own_traffic(5.0)
    assert own_traffic() == whole
    assert cut.trace.rows == tuple(row for row in whole.trace.rows if row.arrival < 5)
    assert cut.interactive == frozenset(place for place in whole.interactive if place < len(cut.trace.rows))


def test_every_other_request_of_a_files_client_is_interactive(tmp_path):
    path = csv(tmp_path, "0,Team A,1,1", "1,Team A,1,1", "2,b,1,1", "3,Team A,1,1", "9,b,1,1")
    traffic = traffic_of(path, 9.0)
    assert [row.client for row in traffic.trace.rows] == ["team-a", "team-a", "b", "team-a"]
    assert traffic.interactive == {0, 2, 3}
    assert not traffic.own
    assert len(traffic_of(path, None).trace.rows) == 5


def test_by_default_demand_is_between_1_2_and_1_5_times_what_the_engines_serve():
    load = stand_in_load(own_traffic(), pace=1.0, speed=None)
    assert 1.2 <= load.ratio <= 1.5
    assert load.ratio == pytest.approx(WANTED_RATIO)
    assert load.ratio == pytest.approx(demand_ratio(load.trace, ENGINE.scaled(load.speed), ENGINES), rel=1e-6)


def test_engines_so_fast_that_nothing_queues_are_refused_with_a_mend():
    traffic = own_traffic()
    chosen = stand_in_load(traffic, pace=1.0, speed=None)
    with pytest.raises(
        DemoError, match=rf"below {LEAST_RATIO} nothing queues.*lower --speed to {chosen.speed:.2g}"
    ):
        stand_in_load(traffic, pace=1.0, speed=chosen.speed * 1.4)
    assert stand_in_load(traffic, pace=1.0, speed=chosen.speed * 1.2).ratio > LEAST_RATIO


def test_a_request_too_long_for_the_engines_is_named(tmp_path):
    path = csv(tmp_path, "0,a,10,10", "1,a,3000,1000")
    with pytest.raises(DemoError, match="request 2 has 4000 tokens, and the demo's engines take 3328"):
        stand_in_load(traffic_of(path, None), pace=6.0, speed=1.0)


def test_a_bad_trace_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(TraceError, match="line 2"):
        traffic_of(csv(tmp_path, "0,a,10"), None)


@pytest.mark.parametrize(
    ("client", "tenant"),
    [("0", "client-00"), ("13", "client-13"), ("Team Blue!", "team-blue"), ("client-07", "client-07")],
)
def test_clients_become_names_that_kubernetes_takes(client, tenant):
    assert tenant_of(client) == tenant


def test_a_client_without_a_name_is_refused():
    with pytest.raises(DemoError, match="has no letter or digit"):
        tenant_of("!!!")


def test_the_shipped_tenants_are_those_of_its_traffic_and_as_others_are_made():
    keys = shipped_keys(checkout())
    assert set(keys) == set(TENANTS)
    assert len(set(keys.values())) == len(keys)
    assert min(map(len, keys.values())) >= 32
    text = (checkout() / "manifests" / "demo" / "tenants.yaml").read_text()
    shipped = [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == "search"]
    assert list(yaml.safe_load_all(tenant_manifest("search"))) == shipped
    (application,) = shipped[1]["spec"]["applications"]
    assert application == {
        "name": INTERACTIVE_APPLICATION,
        "slo": {"ttftMilliseconds": PROMISE_MILLISECONDS},
    }


def test_a_condition_that_is_not_there_is_unknown():
    policy = {"status": {"conditions": [{"type": "FairnessBoundMet", "status": "True"}]}}
    assert condition_of(policy, "FairnessBoundMet") == "True"
    assert condition_of(policy, "GPUMetricsStale") == condition_of({}, "GPUMetricsStale") == "Unknown"


def test_a_steady_rate_is_taken_up_to_half_of_the_work():
    """10 tokens at 1, 2, ..., 10 s, of 2 each, after a prompt of 4 at once: half of 24 is there at 4 s."""
    outcome = Outcome("a", 0.0, 4, 10, first_token=1.0, tokens=[(float(n), 1) for n in range(1, 11)])
    assert steady_rate([outcome]) == 12 / 4
    with pytest.raises(DemoError, match="nothing came"):
        steady_rate([])
