"""What is known of a tenant's prompts is its own to lose, whatever names another tenant makes up."""

from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from equipoise_scheduling import prompt_estimate
from equipoise_scheduling.prompt_estimate import ENOUGH, PromptEstimator

ROOM = 40
"""Lines: more than the quiet tenants have together, with as many of the flood's as any of them has."""
quiet = st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y"]), st.integers(1, 4))
"""Tenant, application, and how many bytes there are in a token of it."""


@settings(deadline=None)
@given(
    requests=st.lists(quiet, max_size=60),
    flood=st.lists(st.integers(0, 10 * ROOM), max_size=60),
    each=st.integers(1, 5),
)
@example(requests=[("a", "", 2)] * ENOUGH, flood=list(range(60)), each=5)
def test_a_flood_of_applications_leaves_other_tenants_their_estimates(requests, flood, each):
    with patch.object(prompt_estimate, "LINES", ROOM):
        flooded, calm = PromptEstimator(), PromptEstimator()
    seen = dict.fromkeys(requests, 0)
    floods = iter(flood)
    for place, (tenant, application, density) in enumerate(requests):
        text = 100 + 37 * (place % 9)
        for estimator in (flooded, calm):
            estimator.learn(("m", tenant, application), text, 0, text // density)
        seen[tenant, application, density] += 1
        for name in (next(floods, None) for _ in range(each)):
            if name is not None:
                flooded.learn(("m", "flood", f"{name}"), 500, 0, 499)
    for name in floods:
        flooded.learn(("m", "flood", f"{name}"), 500, 0, 499)
    of_key: dict[tuple[str, str], int] = {}
    for (tenant, application, _), count in seen.items():
        of_key[tenant, application] = of_key.get((tenant, application), 0) + count
    for (tenant, application), count in of_key.items():
        if count >= ENOUGH:
            for text in (50, 300, 5000):
                assert flooded.estimate("m", tenant, application, text) == calm.estimate(
                    "m", tenant, application, text
                )
    assert len(flooded.snapshot()["lines"]) <= ROOM + 1, "and the model's own"
