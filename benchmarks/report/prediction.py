"""How far predictions of the output length are off, on each trace, and what one costs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prediction import PREDICTORS, Result, measure, text_load, traced
from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Results, Run

TEXT_REQUESTS = 4_000


def runs(inputs: Inputs) -> list[Run]:
    """Simulate nothing: requests teach after a fixed time."""
    del inputs
    return []


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    del results
    page = Page("Prediction")
    page.say(
        "Mean absolute error in tokens (bias in brackets), every predictor judged on the same requests just before each"
        " teaches it. The traces have no text: sizes, and in one of them tenants, are all that can be seen. The text load is"
        " made by benchmarks/prediction.py. CPU a request: predicting and learning; the mixture's includes the comparison"
        " with the other two."
    )
    paths = (inputs.arena, inputs.azure_conversation, inputs.azure_code)
    found = [measure(Path(path).stem, list(traced(Path(path)))) for path in paths]
    found.append(measure("text load", list(text_load(TEXT_REQUESTS))))
    page.table(
        ("load", "requests", "mean output", *(name.replace("_", " ") for name in PREDICTORS), "CPU, us"),
        [
            (
                each.trace,
                each.requests,
                each.mean,
                *(
                    f"{each.errors[name].mean_absolute:.1f} ({each.errors[name].bias:+.1f})"
                    for name in PREDICTORS
                ),
                each.predict_microseconds["mixture"] + each.learn_microseconds["mixture"],
            )
            for each in found
        ],
    )

    def ratio(each: Result) -> float:
        return each.errors["mixture"].mean_absolute / each.errors["moving_average"].mean_absolute

    blind = [ratio(each) for each in found[:-1]]
    page.claim(
        "without text the mixture is no worse than the moving average",
        f"{min(blind):.2f} to {max(blind):.2f} of its error",
        holds=max(blind) <= 1.02,
    )
    page.claim(
        "with text it is clearly better",
        f"{ratio(found[-1]):.2f} of its error",
        holds=ratio(found[-1]) <= 0.8,
    )
    cpu = max(each.predict_microseconds["mixture"] + each.learn_microseconds["mixture"] for each in found)
    page.claim("it costs well under 0.1 ms a request", f"{cpu:.0f} us at most", holds=cpu < 100)
    return page
