"""KV cache of the requests in flight: what each holds, is expected to hold still, and the fullest moment ahead.

With kv_i the tokens that a request holds now, rem_i what it is predicted to generate still, sorted by rem falling, and
all advancing a token a step, the cache is fullest just before one of them ends:

    peak = max over j of (kv_1 + ... + kv_j) + j * rem_j        (a request of n sequences counts n in j)
"""

from collections.abc import Iterable

from equipoise_scheduling.request import Request


class Held:
    """What one request in flight holds and is expected to hold."""

    __slots__ = (
        "estimated",
        "generated",
        "kv",
        "mark",
        "prompt",
        "remaining",
        "request",
        "reserved",
        "sequences",
    )

    def __init__(self, request: Request, block: int, context: int | None) -> None:
        self.request = request
        self.sequences = request.sequences
        self.prompt = request.prompt_upper
        self.generated = 0
        """Over all sequences."""
        self.estimated = False
        """Whether `generated` is by the clock: such a request says nothing of the engine's pace."""
        self.mark: int | None = None
        """`generated` when the measured interval began; None where it did not decode then."""
        self.kv = 0
        self.remaining = 0
        """Output to come of each sequence, as predicted."""
        self.reserved = 0
        self.update(block, context)

    @property
    def prefill(self) -> int:
        """Prompt tokens that the engine has still to compute: all but the cached ones until the first token."""
        return 0 if self.generated else max(0, self.prompt - self.request.cached_tokens)

    def update(self, block: int, context: int | None) -> None:
        """Recompute tokens held, to come and reserved. O(1)."""
        request, n = self.request, self.sequences
        made = -(-self.generated // n)
        self.kv = held_tokens(self.prompt, request.prompts, n, made, block)
        most = request.max_tokens
        if context is not None:
            most = min(most, max(0, context - self.prompt // request.prompts))
        left = max(0, most - made)
        predicted = request.predicted_tokens
        if predicted is None:
            self.remaining = left
        elif made < predicted:
            self.remaining = min(predicted - made, left)
        else:
            self.remaining = min(max(16, (3 * made) // 10), left)
        self.reserved = held_tokens(self.prompt, request.prompts, n, most, block)


def held_tokens(prompt: int, prompts: int, sequences: int, generated: int, block: int) -> int:
    """Return the KV tokens, in whole blocks, of a request with `generated` tokens in each sequence.

    The sequences of one prompt share its full blocks; the rest of the prompt and the output are each one's own.
    """
    each = -(-prompt // prompts)
    shared = each // block * block
    own = each - shared + generated
    return shared * prompts + -(-own // block) * block * sequences


def future_peak(ordered: Iterable[Held], kv: int, sequences: int) -> tuple[int, int, int]:
    """Fold requests, sorted by remaining output falling, into (KV held, sequences, highest KV on the way)."""
    highest = 0
    for held in ordered:
        kv += held.kv
        sequences += held.sequences
        highest = max(highest, kv + sequences * held.remaining)
    return kv, sequences, highest
