"""What a text shows of its answer's length."""

import pytest

from equipoise_scheduling.features import MAX_ASKED, TEXT_SEEN, Cue, Features, cues_in


@pytest.mark.parametrize(
    ("text", "cues"),
    [
        ("Summarise this briefly.", Cue.SUMMARY | Cue.BRIEF),
        ("Write a long story", Cue.WRITE | Cue.LONG),
        ("List them as JSON, step by step", Cue.LIST | Cue.DATA | Cue.LONG),
        ("Why?", Cue.EXPLAIN | Cue.QUESTION),
        ("fix ```x = 1```", Cue.REWRITE | Cue.CODE),
        ("Is it spam? Answer yes or no in one word", Cue.CLASSIFY | Cue.BRIEF | Cue.QUESTION),
        ("shortbread listless writer", Cue(0)),
        ("", Cue(0)),
    ],
)
def test_cues_are_whole_words_of_any_case(text, cues):
    assert Cue(cues_in(text)[0]) == cues
    assert Cue(cues_in(text.upper())[0]) == cues


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("in 50 words", 70),
        ("a 500-word piece", 700),
        ("three bullet points", 75),
        ("one sentence, or 40 words at most", 56),
        ("2 pages", 1400),
        ("in 1999 people", 0),
        ("many words", 0),
        ("99999 pages", MAX_ASKED),
    ],
)
def test_length_that_the_text_names_is_read_in_tokens(text, tokens):
    assert cues_in(text)[1] == tokens


def test_both_ends_of_a_long_text_are_read_and_its_middle_is_not():
    filler = "x " * TEXT_SEEN
    assert cues_in(f"Translate {filler}")[0] == Cue.REWRITE
    assert cues_in(f"{filler} translate")[0] == Cue.REWRITE
    assert cues_in(f"{filler} translate {filler}")[0] == 0


def test_features_know_nothing_unless_told():
    unknown = Features()
    assert (unknown.messages, unknown.cues, unknown.asked_tokens, unknown.temperature) == (0, 0, 0, None)
