"""Error and cost of output-length prediction: the mixture, one single expert and the moving average, on the same requests.

Requests arrive as the trace says and teach when they end (a fixed 30 ms a token after arrival). Each prediction is
judged just before its request teaches. The public traces have no text: sizes, and in one of them tenants, are all that
can be seen. The text load is made here: eight tenants, each sending seven kinds of instruction; a kind has a median
length, a tenant a manner (a factor of its own), an answer log-normal noise; one instruction in ten says nothing.

    python -m benchmarks.prediction --write
"""

import argparse
import heapq
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import described, machine
from benchmarks.traces import ARENA, AZURE_CODE, AZURE_CONVERSATION, trace_path

from equipoise_scheduling.features import Features, cues_in
from equipoise_scheduling.mixture import Mixture
from equipoise_scheduling.prediction import MovingAverage, Predictor
from equipoise_scheduling.prediction_error import PredictionError
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_simulator.traces import read_trace

RESULTS = Path(__file__).parent / "results"
SECONDS_A_TOKEN = 0.03
MAX_TOKENS = 4096
PREDICTORS = ("mixture", "single_expert", "moving_average")

KINDS: tuple[tuple[str, int | None, float], ...] = (
    ("Classify the sentiment: yes or no?", 4, 0.3),
    ("Summarise the text briefly.", 45, 0.4),
    ("Translate the text into French.", None, 0.2),
    ("List the main items as bullets.", 180, 0.4),
    ("Explain why this happens.", 330, 0.45),
    ("Implement a function for this in Python.", 480, 0.5),
    ("Write a long story about it.", 900, 0.35),
)
"""Instruction, median tokens of the answer (None: as long as the prompt), spread of its logarithm."""


@dataclass(frozen=True)
class Sample:
    """A request, and the tokens that it turns out to generate."""

    request: Request
    output: int
    mean: float | None = None
    """Of all such answers, where the load was made here."""


@dataclass(frozen=True)
class Result:
    """One load's errors, and the mean CPU of each predictor a request."""

    trace: str
    requests: int
    mean: float
    noise: float | None
    """Mean absolute error of knowing each answer's true mean."""
    errors: dict[str, PredictionError]
    predict_microseconds: dict[str, float]
    learn_microseconds: dict[str, float]


def traced(path: Path) -> Iterator[Sample]:
    for number, row in enumerate(read_trace(path).rows):
        request = Request(
            id=str(number),
            tenant=row.client,
            arrival=row.arrival,
            prompt_tokens=row.input_tokens,
            max_tokens=MAX_TOKENS,
        )
        yield Sample(request, row.output_tokens)


def text_load(count: int, seed: int = 1, tenants: int = 8) -> Iterator[Sample]:
    rng = random.Random(seed)
    manners = [rng.lognormvariate(0, 0.3) for _ in range(tenants)]
    now = 0.0
    for number in range(count):
        now += rng.expovariate(4)
        tenant = rng.randrange(tenants)
        instruction, median, spread = rng.choice(KINDS)
        prompt = 10 + int(rng.lognormvariate(5, 1))
        typical = median * manners[tenant] if median else prompt
        output = typical * rng.lognormvariate(0, spread)
        cues, asked = cues_in(instruction if rng.random() < 0.9 else "As before, please.")
        request = Request(
            id=str(number),
            tenant=f"tenant-{tenant}",
            arrival=now,
            prompt_tokens=prompt,
            max_tokens=MAX_TOKENS,
            features=Features(
                endpoint="/v1/chat/completions",
                messages=1,
                last_characters=3 * prompt,
                cues=cues,
                asked_tokens=asked,
            ),
        )
        yield Sample(request, min(MAX_TOKENS, max(1, round(output))), typical * math.exp(spread**2 / 2))


def measure(trace: str, samples: list[Sample]) -> Result:
    everything = len(samples) + 1
    predictors: dict[str, Predictor] = {
        "mixture": Mixture(error_window=everything),
        "moving_average": MovingAverage(),
    }
    predicting = dict.fromkeys(predictors, 0.0)
    learning = dict.fromkeys(predictors, 0.0)
    running: list[tuple[float, int]] = []

    def teach(until: float) -> None:
        while running and running[0][0] <= until:
            sample = samples[heapq.heappop(running)[1]]
            usage = Usage(sample.request.prompt_tokens, sample.output)
            for name, predictor in predictors.items():
                start = time.process_time()
                predictor.learn(sample.request, usage, Outcome.FINISHED)
                learning[name] += time.process_time() - start

    for number, sample in enumerate(samples):
        teach(sample.request.arrival)
        for name, predictor in predictors.items():
            start = time.process_time()
            predictor.predict(sample.request)
            predicting[name] += time.process_time() - start
        heapq.heappush(running, (sample.request.arrival + SECONDS_A_TOKEN * sample.output, number))
    teach(float("inf"))
    count = len(samples)
    noise = [abs(sample.output - sample.mean) for sample in samples if sample.mean is not None]
    return Result(
        trace,
        count,
        sum(sample.output for sample in samples) / count,
        sum(noise) / count if noise else None,
        dict(predictors["mixture"].errors()),
        {name: seconds / count * 1e6 for name, seconds in predicting.items()},
        {name: seconds / count * 1e6 for name, seconds in learning.items()},
    )


def cue_microseconds() -> float:
    text = "The quick brown foxes jumped over the lazy dogs, and then they rested. " * 60
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(500):
            cues_in(text)
        best = min(best, (time.process_time() - start) / 500 * 1e6)
    return best


def table(results: list[Result], cues: float) -> str:
    lines = [
        "# Prediction of output length",
        "",
        described(machine("benchmarks.prediction")),
        "",
        "Mean absolute error in tokens, and in brackets the bias (predicted less generated), over all requests of a",
        "load from the first one on; every predictor is judged on the same requests, just before each teaches it. Noise",
        "alone is the error of who knows kind, tenant and prompt of each request exactly.",
        "",
        "| load | requests | mean output | mixture | single expert | moving average | noise alone | mixture to moving average |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        shown = [
            f"{result.errors[name].mean_absolute:.1f} ({result.errors[name].bias:+.1f})"
            for name in PREDICTORS
        ]
        ratio = result.errors["mixture"].mean_absolute / result.errors["moving_average"].mean_absolute
        shown.append("" if result.noise is None else f"{result.noise:.1f}")
        lines.append(
            f"| {result.trace} | {result.requests:,} | {result.mean:.0f} | {' | '.join(shown)} | {ratio:.2f} |"
        )
    lines += [
        "",
        "CPU a request, microseconds (the mixture learns all three, so its column includes the comparison):",
        "",
        "| load | predict: mixture | predict: moving average | learn: mixture | learn: moving average |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        times = [
            f"{times[name]:.1f}"
            for times in (result.predict_microseconds, result.learn_microseconds)
            for name in ("mixture", "moving_average")
        ]
        lines.append(f"| {result.trace} | {' | '.join(times)} |")
    lines += ["", f"Reading the cues of a text of 4,260 characters: {cues:.0f} us, once a request.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/prediction.md")
    arguments = parser.parse_args()
    results = []
    for name in (ARENA, AZURE_CONVERSATION, AZURE_CODE):
        path = trace_path(name)
        results.append(measure(path.stem, list(traced(path))))
    results += [
        measure("text load", list(text_load(4_000))),
        measure("text load, its first 300", list(text_load(300))),
    ]
    text = table(results, cue_microseconds())
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "prediction.md").write_text(text)


if __name__ == "__main__":
    main()
