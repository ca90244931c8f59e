"""What can be seen of a request before it runs, beside its sizes: shape of the body and cheap cues in its text.

The text itself is never kept. Whoever has the body fills `Features` in; a predictor reads it. All cues are English
words: where a text has none of them the sizes, the tenant and the application still speak.
"""

import re
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

TEXT_SEEN: Final = 500
"""Characters looked at from each end of a text: instructions stand at an end, and the cost stays bounded."""

MAX_ASKED: Final = 16_384


class Cue(IntFlag):
    """What a text says about the length or the form of its answer. A mask of these is a plain int."""

    BRIEF = 1
    """briefly, in short, one word, concise"""
    LONG = 2
    """in detail, comprehensive, long, essay, step by step"""
    LIST = 4
    DATA = 8
    """JSON, YAML, XML, CSV, a table"""
    CODE = 16
    """A code fence, or a word for code"""
    QUESTION = 32
    """A question mark"""
    SUMMARY = 64
    REWRITE = 128
    """translate, rephrase, correct: an answer about as long as the input"""
    CLASSIFY = 256
    """classify, extract, yes or no, true or false"""
    WRITE = 512
    """write, draft, story, poem"""
    EXPLAIN = 1024
    """explain, why, how"""


_WORDS: Final = {
    Cue.BRIEF: "brief briefly short shortly concise concisely tldr only just single",
    Cue.LONG: "detail details detailed depth comprehensive thorough thoroughly long lengthy complete full",
    Cue.LIST: "list lists bullet bullets enumerate items top",
    Cue.DATA: "json yaml xml csv table schema",
    Cue.CODE: "code function python javascript java sql script program implement class regex",
    Cue.SUMMARY: "summary summarise summarize summarised summarized tldr abstract recap",
    Cue.REWRITE: "translate translation rewrite rephrase paraphrase proofread correct edit fix",
    Cue.CLASSIFY: "classify categorise categorize label sentiment extract true yes",
    Cue.WRITE: "write draft compose generate create story poem essay article blog letter email speech",
    Cue.EXPLAIN: "explain why how describe discuss compare what",
}
_PHRASES: Final = {
    "?": Cue.QUESTION.value,
    "```": Cue.CODE.value,
    "one word": Cue.BRIEF.value,
    "one sentence": Cue.BRIEF.value,
    "step by step": Cue.LONG.value,
    "key points": Cue.SUMMARY.value,
}
_TOKENS_EACH: Final = {
    "word": 1.4,
    "sentence": 25,
    "line": 15,
    "paragraph": 120,
    "bullet": 25,
    "point": 25,
    "item": 20,
    "page": 700,
    "token": 1,
    "character": 0.25,
}
_NUMBERS: Final = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_ASKED: Final = re.compile(
    rf"\b(\d{{1,5}}|{'|'.join(_NUMBERS)})[- ](?:bullet )?({'|'.join(_TOKENS_EACH)})s?\b"
)
_UNITS: Final = frozenset(_TOKENS_EACH) | {f"{unit}s" for unit in _TOKENS_EACH}
_WORD: Final = re.compile(r"[a-z]+")
_CUES_OF: Final[dict[str, int]] = {}
for _cue, _words in _WORDS.items():
    for _word in _words.split():
        _CUES_OF[_word] = _CUES_OF.get(_word, 0) | _cue.value
_CUE_WORDS: Final = frozenset(_CUES_OF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the body of a request shows. Every field has a value that says "not known"."""

    endpoint: str = ""
    """The path, such as `/v1/chat/completions`."""
    limit_given: bool = False
    """The client set `max_tokens` itself; else it is what the context leaves and says nothing."""
    messages: int = 0
    """Messages of a chat, 1 for a plain prompt; 0: not known."""
    last_characters: int = 0
    """Length of the last user message."""
    stops: int = 0
    """Stop strings."""
    temperature: float | None = None
    tools: int = 0
    """Tools offered."""
    structured: bool = False
    """The answer has to follow a grammar or a schema (`response_format`, structured outputs)."""
    cues: int = 0
    """A mask of `Cue`, of the last user message."""
    asked_tokens: int = 0
    """What the text asks for by number ("in 50 words"), in tokens; 0: it names none."""


def cues_in(text: str) -> tuple[int, int]:
    """Return `Features.cues` and `Features.asked_tokens` of a text. O(TEXT_SEEN), under 0.1 ms.

    Of a long text only its two ends are read.
    """
    if len(text) > 2 * TEXT_SEEN:
        text = f"{text[:TEXT_SEEN]}\n{text[-TEXT_SEEN:]}"
    text = text.lower()
    words = set(_WORD.findall(text))
    cues = 0
    for word in words & _CUE_WORDS:
        cues |= _CUES_OF[word]
    for phrase, cue in _PHRASES.items():
        if phrase in text:
            cues |= cue
    asked = 0
    if words & _UNITS:
        for number, unit in _ASKED.findall(text):
            count = _NUMBERS.get(number) or int(number)
            asked = max(asked, round(count * _TOKENS_EACH[unit]))
    return cues, min(asked, MAX_ASKED)
