"""The five scenarios of ExFairS (AAAI 2026): clients with deadlines on whole answers, in rounds.

Ten rounds of 100 s with arrivals in the first 80 s of each; clients give up after 30 s; at most 256 output tokens. Rates
and SLOs are the artifact's. What it does not say and is assumed here: arrivals are Poisson; short prompts have 16 to 128
tokens, long ones 256 to 768, mixed clients send either; answers have 64 to 256 tokens; all uniform; the engine is the
"slow" profile, on which queue and answer together take about as long as the SLOs. On one 1.2 times as fast four of five
requests keep theirs; on "fast" all do, nobody waits, and every scheduler is the same. The artifact's short clients send
chats and its long ones documents, with answers to match; what that changes is in the report's section.
"""

from __future__ import annotations

import random

from equipoise_simulator.workload import Call, Workload

ROUND_SECONDS = 100.0
ACTIVE_SECONDS = 80.0
ROUNDS = 10
CLIENT_TIMEOUT = 30.0
MAX_TOKENS = 256
SHORT, LONG, OUTPUT = (16, 128), (256, 768), (64, 256)

Client = tuple[str, float, float]
"""(kind, requests a minute, SLO in seconds end to end)"""

SCENARIOS: dict[int, list[Client]] = {
    1: [("short", 32, 17), ("short", 32, 19), ("long", 32, 20), ("long", 32, 24)],
    2: [("short", 32, 16), ("short", 32, 16), ("long", 32, 18), ("long", 32, 18)],
    3: [("short", 24, 17), ("short", 24, 18), *(("long", 20.0, float(slo)) for slo in (19, 19, 21, 21))],
    4: [
        ("mixed", rate, slo)
        for rate, slo in zip([8.0] * 4 + [24.0] * 4, (14, 14, 15, 15, 17, 17, 19, 19), strict=True)
    ],
    5: [
        ("mixed", float(rate), float(slo))
        for rate, slo in zip(
            (8, 10, 12, 12, 12, 12, 14, 14, 16, 18), (13, 14, 14, 15, 15, 16, 16, 17, 18, 19), strict=True
        )
    ],
}


def exfairs(scenario: int, seed: int) -> Workload:
    """Make scenario 1 to 5."""
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    rows = []
    for number, (kind, rate, slo) in enumerate(SCENARIOS[scenario]):
        for start in range(ROUNDS):
            now = source.expovariate(rate / 60)
            while now < ACTIVE_SECONDS:
                long = kind == "long" or (kind == "mixed" and source.random() < 0.5)
                prompt = source.randint(*(LONG if long else SHORT))
                rows.append((start * ROUND_SECONDS + now, number, kind, slo, prompt, source.randint(*OUTPUT)))
                now += source.expovariate(rate / 60)
    rows.sort()
    return Workload(
        name=f"exfairs_{scenario}",
        calls=tuple(
            Call(
                id=str(place),
                tenant=f"{kind}-{number}",
                arrival=arrival,
                prompt_tokens=prompt,
                output_tokens=output,
                max_tokens=MAX_TOKENS,
                e2e_budget=slo,
            )
            for place, (arrival, number, kind, slo, prompt, output) in enumerate(rows)
        ),
        seconds=ROUNDS * ROUND_SECONDS,
        client_timeout=CLIENT_TIMEOUT,
        profile="slow",
    )
