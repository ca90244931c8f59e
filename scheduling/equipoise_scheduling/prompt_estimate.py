"""Prompt tokens from text bytes, without a tokenizer: a line learnt for each model, tenant and application.

tokens = overhead + ratio * bytes: a chat template adds its tokens to a prompt of any length, and a ratio alone would
call short prompts dense and then reserve many times too much for long ones.
`/tokenize` costs 5 to 120 ms and is never on the path. Prompts that come as token ids are counted, not estimated.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from equipoise_scheduling.plain import check_numbers

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
"""Weight of the past at each request: the line follows about the last 50."""
LEAST_SPREAD = 0.05
"""Standard deviation of the texts' lengths, over their mean, from which an overhead can be told from the ratio."""

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptEstimate:
    """Tokens of a prompt: the best guess for charging and an upper quantile for the gate."""

    tokens: int
    upper: int


@dataclass(slots=True)
class Line:
    """Tokens by bytes, for one key: least squares over what was seen, the newest counting most."""

    weight: float = 0.0
    text: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    seen: int = 0
    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """Bytes and tokens of recent requests: how far they are off the line is the margin, and in none of them is the
    overhead more than all."""
    overhead: float = 0.0
    ratio: float = PRIOR_RATIO
    upper: float = PRIOR_UPPER

    def at(self, text_bytes: int) -> float:
        """Return the best guess for a text."""
        return max(1.0, self.overhead + self.ratio * text_bytes)

    def learn(self, text_bytes: int, tokens: int) -> None:
        """Take in one request whose text had that many tokens."""
        self.recent.append((text_bytes, tokens))
        self.weight = self.weight * DECAY + 1
        self.text = self.text * DECAY + text_bytes
        self.tokens = self.tokens * DECAY + tokens
        self.squares = self.squares * DECAY + text_bytes * text_bytes
        self.products = self.products * DECAY + text_bytes * tokens
        self.seen += 1
        self._fit()
        ordered = sorted(actual / self.at(size) for size, actual in self.recent)
        self.upper = max(1.0, ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))])

    def _fit(self) -> None:
        text, tokens = self.text / self.weight, self.tokens / self.weight
        variance = self.squares / self.weight - text * text
        self.overhead = 0.0
        if variance > (LEAST_SPREAD * text) ** 2:
            slope = (self.products / self.weight - text * tokens) / variance
            self.overhead = min(max(0.0, tokens - slope * text), *(actual for _, actual in self.recent))
        self.ratio = max(0.0, tokens - self.overhead) / text


class PromptEstimator:
    """Estimates and learns in O(1), O(SAMPLES log SAMPLES) a learnt request.

    A key that has been seen fewer than `ENOUGH` times uses its model's figures, and a model that has been, the prior.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Key, Line] = OrderedDict()

    def estimate(
        self, model: str, tenant: str, application: str, text_bytes: int, counted: int = 0
    ) -> PromptEstimate:
        """Estimate a prompt of `text_bytes` of text and `counted` tokens that are known (token ids, images)."""
        line = self._known((model, tenant, application)) or self._known((model,)) or Line()
        if text_bytes == 0:
            return PromptEstimate(counted, counted)
        tokens = line.at(text_bytes)
        return PromptEstimate(counted + round(tokens), counted + -int(-tokens * line.upper // 1))

    def _known(self, key: Key) -> Line | None:
        line = self._lines.get(key)
        return line if line is not None and line.seen >= ENOUGH else None

    def learn(self, key: tuple[str, str, str], text_bytes: int, counted: int, prompt_tokens: int) -> None:
        """Take in a request's exact prompt tokens; `key` is (model, tenant, application)."""
        tokens = prompt_tokens - counted
        if text_bytes <= 0 or tokens <= 0:
            return
        for each in (key, key[:1]):
            line = self._lines.get(each)
            if line is None:
                line = self._lines[each] = Line()
                if len(self._lines) > KEYS:
                    self._lines.popitem(last=False)
            self._lines.move_to_end(each)
            line.learn(text_bytes, tokens)

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        lines = [[list(key), *_plain(line)] for key, line in self._lines.items()]
        return {"version": 1, "lines": lines}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""
        if not isinstance(data, dict) or data.get("version") != 1:
            raise ValueError("snapshot of prompt estimates: version must be 1")
        check_numbers(data, "snapshot of prompt estimates")
        try:
            lines = {tuple(map(str, key)): _line(*values) for key, *values in data["lines"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"snapshot of prompt estimates cannot be read: {error!r}") from error
        self._lines = OrderedDict(lines)


def _plain(line: Line) -> list[Any]:
    sums = [line.weight, line.text, line.tokens, line.squares, line.products, line.seen]
    return [sums, list(map(list, line.recent)), [line.overhead, line.ratio, line.upper]]


def _line(sums: list[Any], recent: list[tuple[int, int]], fitted: list[float]) -> Line:
    weight, text, tokens, squares, products = (_positive(value) for value in sums[:-1])
    overhead, ratio, upper = map(float, fitted)
    pairs = deque(((int(size), int(actual)) for size, actual in recent), maxlen=SAMPLES)
    return Line(weight, text, tokens, squares, products, int(sums[-1]), pairs, overhead, ratio, upper)


def _positive(value: Any) -> float:
    """Return a sum over what was seen: all are, and are divided by."""
    if not float(value) > 0:
        raise ValueError(f"{value} must be above 0")
    return float(value)
