"""LLM agents' interactions, made from the statistics that FairServe publishes of a production trace.

An interaction is one end-user action that takes several calls. Source of the figures: FairServe (arXiv 2411.15997) and its artifact:
1,358 users, 23 applications, 5,251 interactions, mostly of 1, 4, 3, 2 or 5 calls; input mean 5,809, median 3,573, p90
13,710 tokens, output mean 109, median 31, p90 312, both divided by 8 as in its experiments, calls of 2,000 tokens or more
dropped; about 9,241 calls within 72 s; heaviest users 2,092, 600 and 288 calls, largest application 4,680. What it does
not say and is assumed here: shares of the counts of calls, a Zipf tail of users and applications, how far lengths are
an application's own, the gaps between calls. Every user is a tenant.
"""

from __future__ import annotations

import random
from itertools import accumulate
from statistics import NormalDist
from typing import TYPE_CHECKING

from equipoise_simulator.traces import length_at
from equipoise_simulator.workload import Call, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 72.0
CLIENT_TIMEOUT = 480.0
DIVISOR = 8
DROPPED_FROM = 2_000
USERS, APPLICATIONS, INTERACTIONS = 1_380, 23, 5_557
"""Drawn; the published 1,358 users and 5,251 interactions are left when the longest calls are dropped."""
HEAVIEST_USERS = (2_092, 600, 288)
LARGEST_APPLICATION = 4_680
CALLS = {1: 0.665, 4: 0.105, 3: 0.09, 2: 0.08, 5: 0.06}
"""Calls of an interaction and their assumed shares, in the published order of frequency."""
INPUT = ((0.0, 300), (0.5, 3_573), (0.9, 13_710), (1.0, 31_300))
OUTPUT = ((0.0, 4), (0.5, 31), (0.9, 312), (1.0, 850))
"""Quantiles; log-uniform between them, the ends such that the published means come out."""
APPLICATIONS_OWN = 0.5
"""Share of a length's variance that is its application's."""
SYSTEM_SHARE = 0.25
"""System prompt of an application, as a share of its shortest prompts."""
GAP_SECONDS = 2.0
"""Mean time between the arrivals of an interaction's calls (open loop)."""
THINK_SECONDS = 0.5
"""Mean time from a call's end to the next one's arrival (closed loop)."""


def interactions(seed: int, *, closed_loop: bool = True) -> Workload:
    """Make the workload: closed loop, where each call is sent after the last one finished, or open, as in the artifact."""
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    counts = _shuffled(source, _by_share([*CALLS.values()], INTERACTIONS, [*CALLS]))
    total = sum(counts)
    scale = total / 9_241
    users = _deal(source, counts, [round(n * scale) for n in HEAVIEST_USERS], USERS, exponent=0.6)
    applications = _deal(source, counts, [LARGEST_APPLICATION], APPLICATIONS, exponent=1.0)
    owners = [
        application for application, count in zip(applications, counts, strict=True) for _ in range(count)
    ]
    inputs = _lengths(source, owners, INPUT)
    outputs = _lengths(source, owners, OUTPUT)
    shortest: dict[int, int] = {}
    for owner, tokens in zip(owners, inputs, strict=True):
        shortest[owner] = min(tokens, shortest.get(owner, tokens))
    calls: list[Call] = []
    place = 0
    for number, count in enumerate(counts):
        arrival = source.uniform(0, SECONDS)
        kept = [
            (inputs[index], outputs[index])
            for index in range(place, place + count)
            if inputs[index] + outputs[index] < DROPPED_FROM
        ]
        place += count
        before: str | None = None
        for index, (prompt, output) in enumerate(kept, 1):
            gap = (
                source.expovariate(1 / (THINK_SECONDS if closed_loop else GAP_SECONDS)) if index > 1 else 0.0
            )
            arrival = min(arrival + gap, SECONDS - 1e-3)
            name = f"{number}.{index}"
            user = f"user-{users[number]:04d}"
            calls.append(
                Call(
                    id=name,
                    tenant=user,
                    user=user,
                    application=f"application-{applications[number]:02d}",
                    interaction=str(number),
                    call_index=index,
                    call_count=len(kept),
                    system_tokens=round(SYSTEM_SHARE * shortest[applications[number]]),
                    arrival=gap if closed_loop and index > 1 else arrival,
                    after=before if closed_loop else None,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    max_tokens=max(1_024, output),
                )
            )
            before = name
    return Workload(
        name="interactions" if closed_loop else "interactions_open",
        calls=tuple(calls),
        seconds=SECONDS,
        client_timeout=CLIENT_TIMEOUT,
        profile="large",
        warmup=0.0,
    )


def _by_share(shares: Sequence[float], total: int, values: Sequence[int]) -> list[int]:
    """Return `total` values in proportion to their shares."""
    sums = list(accumulate(shares))
    marks = [round(total * part / sums[-1]) for part in sums]
    return [
        value
        for value, first, last in zip(values, [0, *marks], marks, strict=False)
        for _ in range(last - first)
    ]


def _shuffled(source: random.Random, values: list[int]) -> list[int]:
    source.shuffle(values)
    return values


def _deal(
    source: random.Random, counts: Sequence[int], heaviest: Sequence[int], owners: int, *, exponent: float
) -> list[int]:
    """Give each interaction an owner: the first few get so many calls, the rest falls as 1/rank**exponent; nobody gets none."""
    order = list(range(len(counts)))
    source.shuffle(order)
    result = [0] * len(counts)
    place = 0
    for owner, wanted in enumerate(heaviest):
        got = 0
        while got < wanted:
            result[order[place]] = owner
            got += counts[order[place]]
            place += 1
    others = range(len(heaviest), owners)
    rest = order[place:]
    for owner, interaction in zip(others, rest, strict=False):
        result[interaction] = owner
    weights = [1 / (rank + 1) ** exponent for rank in range(len(others))]
    left = rest[len(others) :]
    for owner, interaction in zip(source.choices(others, weights, k=len(left)), left, strict=True):
        result[interaction] = owner
    return result


def _lengths(
    source: random.Random, owners: Sequence[int], quantiles: Sequence[tuple[float, int]]
) -> list[int]:
    """Draw a length for each call: near its application's own, and all together as `quantiles` say."""
    normal = NormalDist()
    own = {owner: normal.inv_cdf(source.uniform(0.02, 0.98)) for owner in sorted(set(owners))}
    own[0] = 0.0  # the largest application's lengths are usual ones: few of its calls are dropped
    scores = [
        APPLICATIONS_OWN**0.5 * own[owner] + (1 - APPLICATIONS_OWN) ** 0.5 * source.gauss(0, 1)
        for owner in owners
    ]
    lengths = [0] * len(scores)
    for rank, index in enumerate(sorted(range(len(scores)), key=scores.__getitem__)):
        lengths[index] = max(1, round(length_at(quantiles, (rank + 0.5) / len(scores)) / DIVISOR))
    return lengths
