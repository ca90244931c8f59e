"""The stand-in's language: a tokenizer of one rule, and texts that follow from the prompt.

Tokenizer: every run of up to four characters that are not white space is a token ("hello world" has four). A chat adds three
tokens a message and three for the answer's header. Every generated token is one word of at most four letters, so a text of n
tokens has n tokens for the tokenizer too. What is generated depends on the prompt, the choice and the seed alone.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY = 32_000
TOKENS_A_MESSAGE = 3
TOKENS_BEFORE_ANSWER = 3
_TOKEN = re.compile(r"\S{1,4}")

_WORD_LIST = """
able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt
best bill bird blow blue boat body bomb bond bone book boom born boss both bowl bulk burn bush busy
call calm came camp card care case cash cast cell chat chip city club coal coat code cold come cook
cool cope copy core cost crew crop dark data date dawn days dead deal dean dear debt deep deny desk
dial diet disc disk does done door dose down draw drew drop drug dual duke dust duty each earn ease
east easy edge else even ever evil exit face fact fail fair fall farm fast fate fear feed feel feet
fell felt file fill film find fine fire firm fish five flat flow food foot ford form fort four free
from fuel full fund gain game gate gave gear gene gift girl give glad goal goes gold golf gone good
gray grew grey grow gulf hair half hall hand hang hard harm hate have head hear heat held hell help
here hero high hill hire hold hole holy home hope host hour huge hung hunt hurt idea inch into iron
item jack jane jean john join jump jury just keen keep kent kept kick kill kind king knee knew know
lack lady laid lake land lane last late lead left less life lift like line link list live load loan
lock logo long look lord lose loss lost love luck made mail main make male many
"""
_FIRST = tuple(_WORD_LIST.split())
_LATER = tuple(" " + word for word in _FIRST)


def count_tokens(text: str) -> int:
    """Return the number of tokens in a text; O(length)."""
    return sum(1 for _ in _TOKEN.finditer(text))


def token_ids(text: str) -> list[int]:
    """Return the tokens' ids: a checksum of each piece, below `VOCABULARY`."""
    return [crc32(piece.encode()) % VOCABULARY for piece in _TOKEN.findall(text)]


def seed_of(prompt: str, choice: int = 0, seed: int | None = None) -> int:
    """Return the seed from which an answer follows."""
    return crc32(
        f"{choice}/{'' if seed is None else seed}/".encode(), crc32(prompt.encode("utf-8", "surrogatepass"))
    )


def words(seed: int) -> Iterator[str]:
    """Yield the answer's tokens for ever, each as its text: the first is bare, the others begin with a space."""
    state = seed & 0xFFFFFFFF
    pieces = _FIRST
    while True:
        state = (state * 1_664_525 + 1_013_904_223) & 0xFFFFFFFF
        yield pieces[state >> 24]
        pieces = _LATER


def answer(prompt: str, tokens: int, choice: int = 0, seed: int | None = None) -> str:
    """Return the text of `tokens` generated tokens: what a client has to find."""
    source = words(seed_of(prompt, choice, seed))
    return "".join(next(source) for _ in range(tokens))


def natural_length(seed: int) -> int:
    """Return where an answer ends by itself, its end token counted: lognormal, median 134 tokens, mean about 221."""
    return max(1, min(4_096, round(random.Random(seed).lognormvariate(4.9, 1.0))))  # noqa: S311 - no secret
