"""How much of a prompt the engine's prefix cache is expected to serve: `Request.cached_tokens`.

The estimate is the longest known beginning of the prompt, in whole KV blocks and less than the whole prompt as vLLM has it,
times the share of such estimates that the engine has lately borne out. On while the engine says that it caches prefixes
and how large its KV cache is; the index has the room of that cache, and is emptied when the engine restarts or sleeps.

A prompt enters the index when it is dispatched: what the engine gets earlier it computes earlier, and it shares blocks
from when they are scheduled. So two that wait count nothing on each other, and the second one's estimate is made anew when
its turn comes. What ends before its first token is taken out again, unless it was known before.

The engine keeps what it generated too. A chat's answer is hashed as it passes by, behind its prompt and as the next turn will
bring it back, and enters the index at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from equipoise_scheduling.prediction_error import ErrorTracker
from equipoise_scheduling.request import Request, Usage
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EndpointKind, EngineProfile, Facts
from equipoise_sidecar.prefix_index import ENDS, Blocks, PrefixIndex
from equipoise_sidecar.prompt_bytes import ANSWER_BEGINS, ANSWER_ENDS

KV_BLOCK_TOKENS = 16
"""Of a KV block where the engine does not say: vLLM's default."""
DECAY = 0.98
"""Weight of the past at each figure: the share follows about the last 50."""
PRIOR_TOKENS = 1000.0
"""So many tokens are taken to have turned out as estimated before any was."""
_THOUGHT_ENDS = b"</think>"
"""Where an engine without a parser of thoughts leaves them in the text: a token of its own, so never in two pieces."""
_REPORTING = frozenset((EndpointKind.CHAT, EndpointKind.COMPLETIONS))
"""Whose usage says cached tokens where the probe's did."""


@dataclass(slots=True)
class Chain:
    """One prompt of a request, and what came of it."""

    blocks: Blocks
    new: int = 0
    """First block that was not known when the request was dispatched."""


@dataclass(slots=True)
class Prefix:
    """What is known of a request's prompts."""

    chains: list[Chain]
    sizes: tuple[int, ...]
    """Bytes of each prompt."""
    goes_on: bool = False
    """Whether a next turn would bring the answer back."""
    matched: int = 0
    """Tokens known when the request was dispatched, uncorrected."""
    size: int = field(init=False)
    _asked: int | None = field(default=None, init=False)
    """Blocks of the prompt, once the answer has begun."""

    def __post_init__(self) -> None:
        self.size = sum(self.sizes)

    def said(self, text: bytes) -> None:
        """Take a piece of the answer, of one that goes on; `text` as JSON has it in a string. Linear in its bytes."""
        if not self.goes_on:
            return
        blocks = self.chains[0].blocks
        if self._asked is None:
            self._asked = len(blocks.keys)
            blocks.add(ANSWER_BEGINS)
        if _THOUGHT_ENDS in text:
            self.goes_on = False
            del blocks.keys[self._asked :]
        else:
            blocks.add(text)

    def ended(self) -> None:
        """Take the end of the answer, if there was any."""
        if self.goes_on and self._asked is not None:
            self.goes_on = False
            self.chains[0].blocks.add(ANSWER_ENDS)


class Agreement:
    """What share of the tokens that were expected from the cache came from it. O(1)."""

    def __init__(self) -> None:
        self._expected = self._served = 0.0

    @property
    def ratio(self) -> float:
        """At most 1: what an engine serves beyond is not known to be there the next time."""
        return min(1.0, (PRIOR_TOKENS + self._served) / (PRIOR_TOKENS + self._expected))

    def seen(self, expected: float, served: float) -> None:
        """Take in a request, or what all requests of an interval came to. Where nothing was expected it says nothing."""
        if expected <= 0:
            return
        self._expected = DECAY * self._expected + expected
        self._served = DECAY * self._served + served


class PrefixCache:
    """The engine's prefix cache as far as it can be known from outside."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.agreement = Agreement()
        self.error = ErrorTracker()
        self.predicted_tokens = 0
        """Of the requests of which the engine said the cached tokens."""
        self.reported_tokens = 0
        """Of the same requests."""
        self._signals: EngineSignals | None = None
        self._caching = False
        self._block = KV_BLOCK_TOKENS
        self._matched = self._prompts = 0
        """Tokens dispatched since the engine's counters moved."""

    @property
    def active(self) -> bool:
        """Whether there is anything to expect."""
        return self._caching and self.index.capacity > 0

    # -- what the engine says

    def observe(self, signals: EngineSignals, profile: EngineProfile, kv_tokens: int | None) -> None:
        """Take in fresh metrics. `kv_tokens`: the KV cache's size where they lack it."""
        before, self._signals = self._signals, signals
        caching = signals.prefix_caching
        self._caching = bool(signals.cached_tokens) if caching is None else caching
        self._block = signals.block_tokens or KV_BLOCK_TOKENS
        restarted = before is not None and signals.restarted_since(before)
        if restarted or signals.asleep or not self._caching:
            self.index.clear()
        self.index.resize(signals.kv_tokens or kv_tokens or 0)
        if before is None or restarted:
            self._matched = self._prompts = 0
        elif not profile.reports_cached_tokens:
            self._compare(before, signals)

    def _compare(self, before: EngineSignals, after: EngineSignals) -> None:
        """Hold what was expected against the engine's own counters, where requests say nothing."""
        counts = (before.prompt_tokens, after.prompt_tokens, before.cached_tokens, after.cached_tokens)
        if None in counts:
            return
        prompts = (after.prompt_tokens or 0) - (before.prompt_tokens or 0)
        cached = (after.cached_tokens or 0) - (before.cached_tokens or 0)
        if prompts > 0 and self._prompts > 0:
            self.agreement.seen(prompts * self._matched / self._prompts, cached)
            self._matched = self._prompts = 0

    # -- a request's way

    def read(self, tenant: str, facts: Facts) -> Prefix | None:
        """Hash a request's prompts, which `facts` then no longer hold; None where nothing can be said of them."""
        prompts, facts.prompt_bytes = facts.prompt_bytes, None
        if prompts is None or not self.active:
            return None
        chains, room = [], len(ENDS)
        for prompt in prompts.prompts:
            blocks = self.index.blocks(tenant, prompts.root, prompt, room)
            room -= len(blocks.keys)
            chains.append(Chain(blocks))
        return Prefix(chains, prompts.sizes, prompts.goes_on)

    def estimate(self, prefix: Prefix | None, prompt_tokens: int) -> int:
        """Return the tokens of a prompt that the engine's cache is expected to serve. O(known blocks)."""
        if prefix is None or not self.active:
            return 0
        return int(self._known(prefix, prompt_tokens) * self.agreement.ratio)

    def _known(self, prefix: Prefix, prompt_tokens: int) -> int:
        total = 0
        for chain, size in zip(prefix.chains, prefix.sizes, strict=True):
            if shared := self.index.shared(chain.blocks.keys):
                each = prompt_tokens / prefix.size
                # the last token is always computed, for the one after it follows from it
                total += int(min(shared * each, size * each - 1) // self._block) * self._block
        return max(0, total)

    def dispatched(self, prefix: Prefix | None, request: Request) -> None:
        """Note that a request goes to the engine."""
        if not self.active:
            return
        self._prompts += request.prompt_tokens
        if prefix is None:
            return
        prefix.matched = self._known(prefix, request.prompt_tokens)
        self._matched += prefix.matched
        for chain in prefix.chains:
            chain.new = self.index.add(chain.blocks.keys, _tokens_a_byte(prefix, request))

    def undone(self, prefix: Prefix | None) -> None:
        """Note that the engine did not compute what was dispatched."""
        if prefix is not None:
            for chain in prefix.chains:
                self.index.drop(chain.blocks.keys[chain.new :])

    def ended(self, prefix: Prefix | None, request: Request, usage: Usage) -> None:
        """Note that a computed request ended: its blocks are the engine's newest."""
        if not self.active:
            return
        rest = float(usage.prompt + usage.generated)
        if prefix is not None:
            prefix.ended()
            each = _tokens_a_byte(prefix, request)
            for chain in prefix.chains:
                keys = chain.blocks.keys
                self.index.add(keys, each)
                rest -= each * (ENDS[len(keys) - 1] if keys else 0)
        self.index.occupy(rest)

    def reported(
        self,
        prefix: Prefix | None,
        request: Request,
        usage: Usage,
        kind: EndpointKind,
        profile: EngineProfile,
    ) -> None:
        """Hold what was expected of a request that was answered to its end against the engine's own word."""
        if not self.active or prefix is None or request.sequences != 1:
            return
        if kind in _REPORTING and profile.reports_cached_tokens:
            # how long the prompt was taken to be is not the cache's error
            known = prefix.matched * usage.prompt / max(1, request.prompt_tokens)
            self.agreement.seen(known, usage.cached)
            self.error.add(request.cached_tokens, usage.cached)
            self.predicted_tokens += request.cached_tokens
            self.reported_tokens += usage.cached


def _tokens_a_byte(prefix: Prefix, request: Request) -> float:
    return request.prompt_tokens / max(1, prefix.size)
