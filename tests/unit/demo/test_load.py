"""Which load the demo chooses, which it refuses, and what it calls its tenants."""

from pathlib import Path

import pytest
import yaml

from equipoise_demo.load import ENGINE, ENGINES, LEAST_RATIO, WANTED_RATIO, load_trace, stand_in_load
from equipoise_demo.outcome import Outcome
from equipoise_demo.places import DemoError, checkout, shipped_keys, tenant_manifest, tenant_of
from equipoise_demo.real_vllm import steady_rate
from equipoise_simulator.traces import TraceError, arena_like, demand_ratio

ARENA = Path(__file__).parents[4] / "shared" / "data" / "arena_27_clients.csv"


def test_by_default_demand_is_between_1_2_and_1_5_times_what_the_engines_serve():
    load = stand_in_load(load_trace(None, 150.0), pace=6.0, speed=None)
    assert 1.2 <= load.ratio <= 1.5
    assert load.ratio == pytest.approx(WANTED_RATIO)
    assert load.ratio == pytest.approx(demand_ratio(load.trace, ENGINE.scaled(load.speed), ENGINES), rel=1e-6)


def test_engines_so_fast_that_nothing_queues_are_refused_with_a_mend():
    trace = load_trace(None, 150.0)
    chosen = stand_in_load(trace, pace=6.0, speed=None)
    with pytest.raises(
        DemoError, match=rf"below {LEAST_RATIO} nothing queues.*lower --speed to {chosen.speed:.2g}"
    ):
        stand_in_load(trace, pace=6.0, speed=chosen.speed * 1.4)
    assert stand_in_load(trace, pace=6.0, speed=chosen.speed * 1.2).ratio > LEAST_RATIO


def test_a_request_too_long_for_the_engines_is_named(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,client,input_tokens,output_tokens\n0,a,10,10\n1,a,3000,1000\n")
    with pytest.raises(DemoError, match="request 2 has 4000 tokens, and the demo's engines take 3328"):
        stand_in_load(load_trace(path, None), pace=6.0, speed=1.0)


def test_a_bad_trace_is_refused_before_anything_starts(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,client,input_tokens,output_tokens\n0,a,10\n")
    with pytest.raises(TraceError, match="line 2"):
        load_trace(path, None)


@pytest.mark.parametrize(
    ("client", "tenant"),
    [("0", "client-00"), ("13", "client-13"), ("Team Blue!", "team-blue"), ("client-07", "client-07")],
)
def test_clients_become_names_that_kubernetes_takes(client, tenant):
    assert tenant_of(client) == tenant


def test_a_client_without_a_name_is_refused():
    with pytest.raises(DemoError, match="has no letter or digit"):
        tenant_of("!!!")


def test_the_shipped_tenants_are_those_of_the_look_alike_and_as_others_are_made():
    keys = shipped_keys(checkout())
    assert set(keys) == {tenant_of(client) for client in arena_like().clients}
    assert len(set(keys.values())) == len(keys)
    assert min(map(len, keys.values())) >= 32
    text = (checkout() / "manifests" / "demo" / "tenants.yaml").read_text()
    shipped = [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == "client-05"]
    assert list(yaml.safe_load_all(tenant_manifest("client-05"))) == shipped


@pytest.mark.skipif(not ARENA.exists(), reason=f"{ARENA} is not beside the checkout")
def test_the_arena_trace_has_the_shipped_tenants():
    assert set(load_trace(ARENA, None).clients) == set(shipped_keys(checkout()))


def test_a_steady_rate_is_taken_up_to_half_of_the_work():
    """10 tokens at 1, 2, ..., 10 s, of 2 each, after a prompt of 4 at once: half of 24 is there at 4 s."""
    outcome = Outcome("a", 0.0, 4, 10, first_token=1.0, tokens=[(float(n), 1) for n in range(1, 11)])
    assert steady_rate([outcome]) == 12 / 4
    with pytest.raises(DemoError, match="nothing came"):
        steady_rate([])
