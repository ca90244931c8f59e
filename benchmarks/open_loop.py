"""The calls of a workload, sent to a real engine when they are due, and when each token of the answers came."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from equipoise_scheduling.measures import ServiceSeries
from equipoise_simulator.workload import Call, Workload

TTFT_HEADER = "X-Equipoise-TTFT-Milliseconds"


@dataclass
class Answer:
    """One request of the real run. Seconds from the run's start."""

    call: Call
    sent: float
    first: float | None = None
    generated: int = 0
    deliveries: list[tuple[float, float]] = field(default_factory=list)
    """(time, cost)"""
    error: str | None = None


async def replay(
    url: str, load: Workload, headers: Mapping[str, Mapping[str, str]]
) -> tuple[list[Answer], float]:
    """Send every call when it is due; return the answers and the seconds until the last one ended.

    `headers` are each tenant's; a call with a budget for its first token says so itself. Raises RuntimeError when any failed.
    """
    source = random.Random()  # not seeded: what was sent before would come from the prefix cache
    prompts = {
        call.id: [source.randrange(100, 1000) for _ in range(call.prompt_tokens)] for call in load.calls
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        began = time.perf_counter()

        async def send(call: Call) -> Answer:
            await asyncio.sleep(max(0.0, call.arrival - (time.perf_counter() - began)))
            answer = Answer(call, time.perf_counter() - began)
            body = {
                "model": "m",
                "prompt": prompts[call.id],
                "max_tokens": call.output_tokens,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
            own = dict(headers[call.tenant])
            if call.ttft_budget is not None:
                own[TTFT_HEADER] = f"{call.ttft_budget * 1000:.0f}"
            async with session.post(f"{url}/v1/completions", json=body, headers=own) as response:
                if response.status != 200:
                    answer.error = f"{response.status}: {(await response.text())[:200]}"
                    return answer
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
                    if tokens <= answer.generated:
                        continue
                    at = time.perf_counter() - began
                    cost = 2 * (tokens - answer.generated)
                    if answer.first is None:
                        answer.first = at
                        cost += call.prompt_tokens
                    answer.generated = tokens
                    answer.deliveries.append((at, cost))
            return answer

        answers = await asyncio.gather(*(send(call) for call in load.calls))
        lasted = time.perf_counter() - began
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first with {failed[0]}")
    return list(answers), lasted


def service(load: Workload, answers: list[Answer]) -> dict[str, ServiceSeries]:
    """Return what each tenant asked for and was delivered, as the simulator measures its own."""
    series = {name: ServiceSeries() for name in load.tenants}
    for answer in sorted(answers, key=lambda answer: answer.sent):
        series[answer.call.tenant].demand(
            answer.sent, answer.call.prompt_tokens + 2 * answer.call.output_tokens
        )
    for at, cost, tenant in sorted(
        (at, cost, answer.call.tenant) for answer in answers for at, cost in answer.deliveries
    ):
        series[tenant].deliver(at, cost)
    return series
