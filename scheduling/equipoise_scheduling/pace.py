"""The engine's present pace, learnt from what schedulers are told anyway: when tokens came.

Two figures: seconds a prompt token takes until the first token is there, and seconds between two tokens of a sequence.
Both are means over recent tokens, older ones counting half as much after each `HALF_LIFE_SECONDS`.
"""

from typing import Any

PROMPT_SECONDS = 0.0002
"""Prior: Llama-2-7B on an A10G."""
STEP_SECONDS = 0.03
PRIOR_TOKENS = (256.0, 8.0)
"""What the priors count for: prompt tokens, steps of a sequence."""
HALF_LIFE_SECONDS = 10.0


class Ratio:
    """Seconds a token, as a mean that forgets."""

    __slots__ = ("seconds", "tokens")

    def __init__(self, prior: float, tokens: float) -> None:
        self.seconds, self.tokens = prior * tokens, tokens

    def add(self, seconds: float, tokens: float) -> None:
        """Take in tokens that took so long."""
        self.seconds += seconds
        self.tokens += tokens

    def fade(self, share: float) -> None:
        """Keep so much of what was learnt."""
        self.seconds *= share
        self.tokens *= share

    @property
    def value(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Pace:
    """Seconds a prompt token and seconds a step. O(1) a request and a tick for each request in flight.

    A request counts from its first token on, unless that came together with many others: then nobody watched it stream.
    """

    def __init__(self) -> None:
        self.prompt = Ratio(PROMPT_SECONDS, PRIOR_TOKENS[0])
        self.step = Ratio(STEP_SECONDS, PRIOR_TOKENS[1])
        self._marks: dict[str, tuple[float, float]] = {}
        """When each request that streams was last looked at, and how many tokens each of its sequences had."""
        self._faded: float | None = None

    def service_seconds(self, prompt_tokens: int, output_tokens: int) -> float:
        """Return how long a request takes at the present pace, from its dispatch to its end."""
        return prompt_tokens * self.prompt.value + output_tokens * self.step.value

    def first(self, request: str, prompt_tokens: int, seconds: float, tokens: float, now: float) -> None:
        """Take in that a request's first output, `tokens` of each sequence, came `seconds` after its dispatch."""
        if tokens > 2:
            return
        self._marks[request] = (now, tokens)
        if prompt_tokens:
            self.prompt.add(max(0.0, seconds - self.step.value), prompt_tokens)

    def seen(self, request: str, tokens: float, now: float) -> None:
        """Take in how many tokens of each sequence there are by now."""
        mark = self._marks.get(request)
        if mark is not None and tokens > mark[1]:
            self.step.add(now - mark[0], tokens - mark[1])
            self._marks[request] = (now, tokens)

    def ended(self, request: str) -> None:
        """Stop watching a request."""
        self._marks.pop(request, None)

    def tick(self, now: float) -> None:
        """Let what was learnt fade; without news the last of it stays."""
        if self._faded is None:
            self._faded = now
        share = 0.5 ** ((now - self._faded) / HALF_LIFE_SECONDS)
        self._faded = now
        for ratio, least in zip((self.prompt, self.step), PRIOR_TOKENS, strict=True):
            ratio.fade(max(share, min(1.0, least / ratio.tokens)))

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        return {"prompt_seconds": self.prompt.value, "step_seconds": self.step.value}

    def restore(self, data: object) -> None:
        """Take over a snapshot, to count for as much as the priors. ValueError if it cannot be read."""
        if not isinstance(data, dict):
            raise ValueError("snapshot: pace must be an object")  # noqa: TRY004 - what every snapshot raises
        for name, ratio, tokens in (
            ("prompt_seconds", self.prompt, PRIOR_TOKENS[0]),
            ("step_seconds", self.step, PRIOR_TOKENS[1]),
        ):
            value = data.get(name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"snapshot: pace.{name} must be a number of seconds")
            ratio.seconds, ratio.tokens = value * tokens, tokens
