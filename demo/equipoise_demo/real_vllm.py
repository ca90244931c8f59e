"""The demo on real vLLM: three servers on the CPU, a small model with random weights, and what they can serve, measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import uvloop

from equipoise_cluster.vllm import Vllm
from equipoise_demo.load import WANTED_RATIO, Load, refuse_idle
from equipoise_demo.places import MODEL, DemoError
from equipoise_demo.replay import Target, replay
from equipoise_simulator.standin import answer
from equipoise_simulator.traces import OUTPUT_WEIGHT, Row, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from equipoise_cluster import Progress
    from equipoise_demo.outcome import Outcome
    from equipoise_demo.stack import Stack
    from equipoise_demo.traffic import Traffic

MAX_NUM_SEQS = 8
MAX_MODEL_LEN = 4_096
KV_TOKENS = 16_384
START_SECONDS = 600.0
"""Three at a time on two cores take minutes."""
BURST = 16
"""Requests an engine in the measurement: twice what runs at a time."""
BURST_TOKENS = 96
"""Longest answer in the measurement."""
BURST_SECONDS = 300.0
SAMPLE_WORDS = 1_000


class VllmProcess:
    """One vLLM on a Unix socket."""

    def __init__(self, folder: Path, number: int, progress: Progress) -> None:
        self._progress = progress
        self._vllm = Vllm.launch(
            log=folder / f"vllm-{number}.log",
            uds=folder / "engine.sock",
            model=MODEL,
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=MAX_MODEL_LEN,
            kv_tokens=KV_TOKENS,
            scheduling_policy="priority",
            progress=progress,
        )

    @property
    def uds(self) -> Path | None:
        """Its socket."""
        return self._vllm.uds

    def wait_ready(self) -> None:
        """Return when it has loaded."""
        self._vllm.wait_ready(START_SECONDS, self._progress)

    def stop(self) -> None:
        """End it."""
        self._vllm.stop()

    def words_a_token(self) -> float:
        """Return how many of the demo's words make a token of its tokenizer."""
        body = json.dumps({"model": MODEL, "prompt": answer("tokens", SAMPLE_WORDS)})
        connection = self._vllm.connection()
        try:
            connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            raise DemoError(f"vLLM's tokenizer answers {reply.status}: {text[:200]!r}")
        return float(SAMPLE_WORDS / json.loads(text)["count"])


def measured_load(
    stack: Stack, traffic: Traffic, *, words_a_token: float, pace: float | None, progress: Progress
) -> Load:
    """Measure what the engines serve through the sidecars, and choose the pace, unless given, for the wanted demand."""
    trace = traffic.trace
    progress.step("Measuring what the engines can serve")
    capacity = uvloop.run(_burst_rate(stack, trace, words_a_token))
    demand = sum(row.cost for row in trace.rows) / trace.seconds
    pace = WANTED_RATIO * capacity / demand if pace is None else pace
    ratio = demand * pace / capacity
    progress.step(
        f"The engines serve {capacity:.0f} weighted tokens/s; at {pace:.2f} seconds of the trace a second demand is {ratio:.2f} times that"
    )
    refuse_idle(ratio, f"raise --pace to {WANTED_RATIO * capacity / demand:.2g}")
    return Load(traffic, ratio, pace, 1.0)


async def _burst_rate(stack: Stack, trace: Trace, words_a_token: float) -> float:
    """Return the weighted tokens a second that come while all engines have more to do than they can run at a time."""
    endpoints = [pair.endpoint for pair in stack.pairs]
    stride = max(1, len(trace.rows) // (BURST * len(endpoints)))
    rows = tuple(
        Row(0.0, row.client, row.input_tokens, min(row.output_tokens, BURST_TOKENS))
        for row in trace.rows[::stride]
    )
    burst = Trace("burst", rows, 1.0)
    target = Target(endpoints, stack.keys, MODEL, words_a_token=words_a_token)
    found = await replay(burst, target, speed=1.0, timeout=BURST_SECONDS)
    failed = [outcome.error for outcome in found.outcomes if outcome.error]
    if failed:
        raise DemoError(f"the engines could not be measured: {failed[0]}")
    return steady_rate(found.outcomes)


def steady_rate(outcomes: Sequence[Outcome]) -> float:
    """Return weighted tokens a second until half of all that was asked for had come."""
    events = sorted(
        event
        for outcome in outcomes
        for event in (
            (outcome.first_token or 0.0, float(outcome.input_tokens)),
            *((at, float(OUTPUT_WEIGHT * count)) for at, count in outcome.tokens),
        )
    )
    half = sum(cost for _, cost in events) / 2
    served = 0.0
    for at, cost in events:
        served += cost
        if served >= half and at > 0:
            return served / at
    raise DemoError("the engines could not be measured: nothing came")
