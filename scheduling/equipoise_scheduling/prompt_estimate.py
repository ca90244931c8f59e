"""Prompt tokens from text bytes, without a tokenizer: a line learnt for each model, tenant and application.

tokens = overhead + ratio * bytes: a chat template adds its tokens to a prompt of any length, and a ratio alone would
call short prompts dense and then reserve many times too much for long ones.
`/tokenize` costs 5 to 120 ms and is never on the path. Prompts that come as token ids are counted, not estimated.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from equipoise_scheduling.client_memory import ClientMemory
from equipoise_scheduling.plain import check_numbers

PRIOR_RATIO = 1 / 3
"""Tokens in a byte of text where nothing is known."""
PRIOR_UPPER = 1.5
"""How many times the estimate the upper quantile is where nothing is known."""
QUANTILE = 0.95
SAMPLES = 64
"""Recent requests that the upper quantile is taken of."""
SAVED_SAMPLES = 16
"""Of these, the newest, go into a snapshot."""
ENOUGH = 8
"""Requests after which a key's own figures are used."""
LINES = 2048
"""Remembered by tenant, application and model. Beyond that the tenant with most of them forgets its longest unused:
applications are names that clients make up."""
MODELS = 256
"""Remembered on the whole."""
DECAY = 0.98
"""Weight of the past at each request: the line follows about the last 50."""
LEAST_SPREAD = 0.05
"""Standard deviation of the texts' lengths, over their mean, from which an overhead can be told from the ratio."""
SNAPSHOT_VERSION = 2


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
    """Estimates in O(1), learns in O(log tenants + SAMPLES log SAMPLES) a request.

    A key that has been seen fewer than `ENOUGH` times uses its model's figures, and a model that has been, the prior.
    """

    def __init__(self) -> None:
        self._lines: ClientMemory[Line] = ClientMemory(LINES)
        """By tenant, application and model."""
        self._models: ClientMemory[Line] = ClientMemory(MODELS)
        """By model alone: what all tenants' requests taught."""

    def estimate(
        self, model: str, tenant: str, application: str, text_bytes: int, counted: int = 0
    ) -> PromptEstimate:
        """Estimate a prompt of `text_bytes` of text and `counted` tokens that are known (token ids, images)."""
        own = self._lines.get((tenant, application, model))
        line = _known(own) or _known(self._models.get((model,))) or Line()
        if text_bytes == 0:
            return PromptEstimate(counted, counted)
        tokens = line.at(text_bytes)
        return PromptEstimate(counted + round(tokens), counted + -int(-tokens * line.upper // 1))

    def learn(self, key: tuple[str, str, str], text_bytes: int, counted: int, prompt_tokens: int) -> None:
        """Take in a request's exact prompt tokens; `key` is (model, tenant, application)."""
        tokens = prompt_tokens - counted
        if text_bytes <= 0 or tokens <= 0:
            return
        model, tenant, application = key
        for memory, name in ((self._lines, (tenant, application, model)), (self._models, (model,))):
            line = memory.get(name) or Line()
            line.learn(text_bytes, tokens)
            memory.put(name, line)

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        memories = (self._lines, self._models)
        lines = [[list(key), *_plain(line)] for memory in memories for key, line in memory.items()]
        return {"version": SNAPSHOT_VERSION, "lines": lines}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""
        if not isinstance(data, dict) or data.get("version") != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot of prompt estimates: version must be {SNAPSHOT_VERSION}")
        check_numbers(data, "snapshot of prompt estimates")
        fresh = PromptEstimator()
        try:
            for names, *values in data["lines"]:
                key = _key(names)
                memory = fresh._lines if len(key) > 1 else fresh._models
                memory.put(key, _line(*values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"snapshot of prompt estimates cannot be read: {error!r}") from error
        self._lines, self._models = fresh._lines, fresh._models


def _known(line: Line | None) -> Line | None:
    """Return a line that was seen often enough to go by."""
    return line if line is not None and line.seen >= ENOUGH else None


def _plain(line: Line) -> list[Any]:
    sums = [line.weight, line.text, line.tokens, line.squares, line.products, line.seen]
    recent = list(map(list, list(line.recent)[-SAVED_SAMPLES:]))
    return [sums, recent, [line.overhead, line.ratio, line.upper]]


def _key(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) not in (1, 3):
        raise ValueError(f"{names!r} must be tenant, application and model, or a model")
    return tuple(map(str, names))


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
