"""Nothing is lost in a simulation: every call ends once, every token of an answer is delivered once."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome
from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.simulation import simulate
from equipoise_simulator.workload import Call, Workload

SMALL = replace(
    PROFILES["fast"], kv_tokens=640, max_model_len=400, max_num_seqs=6, max_num_batched_tokens=128
)
ARTIFACT = replace(PROFILES["papers"], kv_tokens=640, max_model_len=400, max_num_seqs=6)

call_facts = st.tuples(
    st.floats(0, 30),
    st.sampled_from(["blue", "green", "red"]),
    st.integers(1, 250),
    st.integers(1, 250),
    st.booleans(),
)


def workload(rows, timeout):
    calls = []
    for number, (arrival, tenant, prompt, output, follows) in enumerate(rows):
        after = calls[-1] if follows and calls and calls[-1].tenant == tenant else None
        calls.append(
            Call(
                id=str(number),
                tenant=tenant,
                arrival=arrival / 10 if after else arrival,
                prompt_tokens=prompt,
                output_tokens=output,
                max_tokens=300,
                after=after.id if after else None,
                interaction=after.interaction if after else f"i{number}",
                call_index=after.call_index + 1 if after else 1,
                user=f"{tenant}'s",
                application="chat",
                e2e_budget=12.0,
            )
        )
    return Workload(name="random", calls=tuple(calls), seconds=30.0, client_timeout=timeout)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(call_facts, min_size=1, max_size=40),
    timeout=st.sampled_from([None, 4.0, 20.0]),
    algorithm=st.sampled_from(sorted(SCHEDULERS)),
    predictor=st.sampled_from(["none", "average", "noisy", "oracle", "50"]),
    gate=st.sampled_from(["peak", "prompt", "reserve", "open", "artifact"]),
    resolution=st.sampled_from([1, 8]),
)
def test_every_call_ends_once_and_every_token_comes_once(
    *, rows, timeout, algorithm, predictor, gate, resolution
):
    load = workload(rows, timeout)
    result = simulate(
        load,
        f"{algorithm}:{predictor}",
        gate="peak" if gate == "artifact" else gate,
        profile=ARTIFACT if gate == "artifact" else SMALL,
        resolution=resolution,
    )
    ends = {record.call.id: record for record in result.records}
    assert len(ends) == len(result.records)
    for call in load.calls:
        sent = call.after is None or (call.after in ends and ends[call.after].finished)
        assert (call.id in ends) == sent
    for record in result.records:
        assert record.ended is not None
        assert record.outcome in {Outcome.FINISHED, Outcome.REFUSED, Outcome.CANCELLED}
        assert (record.outcome is Outcome.REFUSED) == (record.reason is not None)
        if record.finished:
            assert record.generated == record.call.output_tokens
            assert record.arrival <= record.dispatched <= record.first_token <= record.ended
        else:
            assert record.generated < record.call.output_tokens
            assert record.outcome is not Outcome.CANCELLED or record.ended >= record.arrival + timeout
    delivered = sum(series.total(float("inf")) for series in result.series.values())
    assert delivered == sum(record.prompt + 2 * record.generated for record in result.records)

    document = result.document()
    requests = document["requests"]
    assert requests["arrived"] == len(result.records)
    assert requests["arrived"] == (
        requests["finished"]
        + sum(requests["rejected"].values())
        + requests["cancelled"]
        + requests["expired"]
    )
    for key in ("arrived", "finished", "cancelled"):
        assert requests[key] == sum(tenant["requests"][key] for tenant in document["tenants"].values())
    assert document["wasted_tokens"] == sum(
        tenant["wasted_tokens"] for tenant in document["tenants"].values()
    )
    if gate != "artifact" and result.profile is SMALL and gate in {"peak", "reserve"}:
        assert result.bound.met
