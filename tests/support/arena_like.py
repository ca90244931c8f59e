"""A load like the VTC paper's arena trace, which is not ours to ship, made from its summary statistics."""

import random

from equipoise_simulator.traces import Row, Trace, length_at

# Summary statistics of the ten minutes of Chatbot Arena traffic that the VTC paper (arXiv 2401.00588) replays; its
# artifact publishes the trace under Apache-2.0. Each client's requests, and the seconds between which they arrive:
SECONDS = 600.0
CLIENTS = (
    (296, 0, 598),
    (262, 0, 600),
    (199, 0, 582),
    (120, 1, 597),
    (67, 14, 583),
    (66, 288, 596),
    (56, 1, 598),
    (46, 0, 582),
    (44, 0, 597),
    (43, 105, 579),
    (40, 20, 577),
    (36, 9, 597),
    (31, 413, 593),
    (26, 19, 587),
    (25, 0, 598),
    (23, 50, 573),
    (22, 44, 269),
    (22, 453, 589),
    (19, 13, 150),
    (19, 409, 571),
    (12, 4, 149),
    (11, 11, 83),
    (7, 16, 118),
    (3, 15, 28),
    (2, 27, 64),
    (2, 590, 594),
    (1, 592, 592),
)
# Quantiles of the lengths, in tokens; between them lengths are taken as log-uniform.
INPUT = (
    (0, 2),
    (0.05, 2),
    (0.1, 5),
    (0.25, 13),
    (0.5, 40),
    (0.75, 161),
    (0.9, 432),
    (0.95, 656),
    (1, 1021),
)
OUTPUT = (
    (0, 2),
    (0.05, 10),
    (0.1, 18),
    (0.25, 62),
    (0.5, 211),
    (0.75, 462),
    (0.8, 513),
    (0.95, 513),
    (1, 977),
)


def arena_like(seed: int = 0) -> Trace:
    """Make a look-alike of the VTC paper's arena trace: 1,500 requests of 27 clients in 600 s, the same for a seed.

    Each client sends as many requests as in the original, at times uniform between its first and last.
    """
    source = random.Random(seed)
    rows = [
        Row(
            arrival=round(source.uniform(first, last), 6),
            client=f"client-{number:02d}",
            input_tokens=length_at(INPUT, source.random()),
            output_tokens=length_at(OUTPUT, source.random()),
        )
        for number, (requests, first, last) in enumerate(CLIENTS)
        for _ in range(requests)
    ]
    rows.sort(key=lambda row: (row.arrival, row.client))
    return Trace(f"look-alike of the arena trace, seed {seed}", tuple(rows), SECONDS)
