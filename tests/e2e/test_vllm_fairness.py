"""Two tenants with a backlog on one real vLLM: each gets its weight's share, whatever the other sends.

Each run lasts until 2U, twice the most undelivered cost of one tenant in flight, is at most 5 % of the smaller service:
then the shares must be within 5 % of the weights. What is delivered is counted by the clients and by the engine.
"""

import pytest
from benchmarks import cancelling, fairness_vllm
from benchmarks.fairness_vllm import SETTLED_SHARE, Scenario

# 20 to 90 s each on two idle cores; the limit is for busy ones.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

IN_FLIGHT = 4
"""Half of what the engine can take: U is half as large, and the runs half as long."""


@pytest.mark.parametrize("weights", [(1, 1), (1, 3)], ids=["1:1", "1:3"])
def test_a_tenant_that_sends_ten_times_as_much_gets_its_weights_share(vllm, tmp_path, weights):
    scenario = Scenario("VTC", steady_weight=weights[0], aggressor_weight=weights[1])
    outcome = fairness_vllm.play(vllm, tmp_path, scenario, in_flight=IN_FLIGHT)
    assert outcome.least_queued > 0, "the steady tenant had no backlog: nothing is shown"
    assert outcome.uncertainty <= SETTLED_SHARE
    assert outcome.ratio == pytest.approx(1, abs=0.05)
    gap = abs(outcome.steady / weights[0] - outcome.aggressor / weights[1])
    assert gap <= outcome.bound


def test_first_come_first_served_lets_it_take_over(vllm, tmp_path):
    outcome = fairness_vllm.play(vllm, tmp_path, Scenario("FCFS"), 15, in_flight=IN_FLIGHT)
    assert outcome.least_queued > 0
    assert outcome.ratio > 5


def test_cancelling_every_request_just_before_its_answer_brings_no_more_service(vllm, tmp_path):
    outcome = cancelling.play(vllm, tmp_path, in_flight=IN_FLIGHT)
    # On a busy machine some answers come before anybody can know that they are due. Were a cancelled request free, even
    # half of them would bring twice the service.
    assert outcome.cancelled > outcome.finished
    assert 2 * outcome.outstanding <= SETTLED_SHARE * min(outcome.finisher, outcome.canceller)
    assert outcome.ratio <= 1.05
    assert outcome.believed == pytest.approx(outcome.finisher, rel=SETTLED_SHARE)
    # The engine's word: what the sidecar charges for unfinished answers is near what they cost.
    assert outcome.believed == pytest.approx(outcome.canceller, rel=0.15)
