"""Prompt tokens from text bytes, without a tokenizer: a ratio learnt for each model, tenant and application.

`/tokenize` costs 5 to 120 ms and is never on the path. Prompts that come as token ids are counted, not estimated.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

PRIOR_RATIO = 1 / 3
"""Tokens in a byte of text where nothing is known."""
PRIOR_UPPER = 1.5
"""How many times the estimate the upper quantile is where nothing is known."""
QUANTILE = 0.95
SAMPLES = 64
"""Recent requests that the upper quantile is taken of."""
ENOUGH = 8
"""Requests after which a key's own figures are used."""
KEYS = 8192
"""Keys remembered, the least recently used forgotten first."""
DECAY = 0.98
"""Weight of the past at each request: the ratio follows about the last 50."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptEstimate:
    """Tokens of a prompt: the best guess for charging and an upper quantile for the gate."""

    tokens: int
    upper: int


@dataclass(slots=True)
class Ratio:
    """Tokens in a byte, for one key."""

    text: float = 0.0
    tokens: float = 0.0
    seen: int = 0
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Actual over estimated tokens, of recent requests."""
    upper: float = PRIOR_UPPER

    @property
    def mean(self) -> float:
        """Tokens in a byte."""
        return self.tokens / self.text if self.text else PRIOR_RATIO

    def learn(self, text_bytes: int, tokens: int) -> None:
        """Take in one request whose text had that many tokens."""
        self.errors.append(tokens / max(1.0, self.mean * text_bytes))
        self.text = self.text * DECAY + text_bytes
        self.tokens = self.tokens * DECAY + tokens
        self.seen += 1
        ordered = sorted(self.errors)
        self.upper = max(1.0, ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))])


class PromptEstimator:
    """Estimates and learns in O(1), O(SAMPLES log SAMPLES) a learnt request.

    A key that has been seen fewer than `ENOUGH` times uses its model's figures, and a model that has been, the prior.
    """

    def __init__(self) -> None:
        self._ratios: OrderedDict[Key, Ratio] = OrderedDict()

    def estimate(
        self, model: str, tenant: str, application: str, text_bytes: int, counted: int = 0
    ) -> PromptEstimate:
        """Estimate a prompt of `text_bytes` of text and `counted` tokens that are known (token ids, images)."""
        ratio = self._known((model, tenant, application)) or self._known((model,))
        mean, upper = (ratio.mean, ratio.upper) if ratio else (PRIOR_RATIO, PRIOR_UPPER)
        if text_bytes == 0:
            return PromptEstimate(counted, counted)
        tokens = max(1.0, mean * text_bytes)
        return PromptEstimate(counted + round(tokens), counted + -int(-tokens * upper // 1))

    def _known(self, key: Key) -> Ratio | None:
        ratio = self._ratios.get(key)
        return ratio if ratio is not None and ratio.seen >= ENOUGH else None

    def learn(self, key: tuple[str, str, str], text_bytes: int, counted: int, prompt_tokens: int) -> None:
        """Take in a request's exact prompt tokens; `key` is (model, tenant, application)."""
        tokens = prompt_tokens - counted
        if text_bytes <= 0 or tokens <= 0:
            return
        for each in (key, key[:1]):
            ratio = self._ratios.get(each)
            if ratio is None:
                ratio = self._ratios[each] = Ratio()
                if len(self._ratios) > KEYS:
                    self._ratios.popitem(last=False)
            self._ratios.move_to_end(each)
            ratio.learn(text_bytes, tokens)

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        return {
            "version": 1,
            "ratios": [
                [list(key), ratio.text, ratio.tokens, ratio.seen, list(ratio.errors), ratio.upper]
                for key, ratio in self._ratios.items()
            ],
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""
        if data.get("version") != 1:
            raise ValueError("snapshot of prompt estimates: version must be 1")
        try:
            ratios = {
                tuple(key): Ratio(text, tokens, seen, deque(errors, maxlen=SAMPLES), upper)
                for key, text, tokens, seen, errors, upper in data["ratios"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"snapshot of prompt estimates cannot be read: {error!r}") from error
        self._ratios = OrderedDict(ratios)
