"""How a run ends: with a message when what it is to show was not seen."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from equipoise_demo.claims import Claim
from equipoise_demo.places import DemoError
from equipoise_demo.run import Options, _finish


def story_of(*claims, notes=()):
    steps = []
    return SimpleNamespace(
        tell=lambda folder: ([folder / "result.json"], list(claims)),
        progress=SimpleNamespace(step=steps.append),
        notes=list(notes),
        steps=steps,
    )


OPTIONS = Options(
    trace=None,
    full=False,
    seconds=None,
    speed=None,
    pace=None,
    vllm=False,
    existing=False,
    keep=False,
    folder=Path("somewhere"),
)


def test_a_claim_that_did_not_hold_ends_the_demo_with_it_and_why_that_may_be():
    story = story_of(
        Claim("VTC is fairer", held=False), Claim("nothing lost", held=True), notes=["a busy machine"]
    )
    with pytest.raises(DemoError, match=r"^not seen: VTC is fairer\. Perhaps because: a busy machine\.$"):
        _finish(story, OPTIONS)
    assert story.steps[0] == "Report: somewhere/result.json"


def test_a_claim_that_decides_nothing_does_not():
    _finish(story_of(Claim("it keeps more promises", held=False, decides=False)), OPTIONS)
