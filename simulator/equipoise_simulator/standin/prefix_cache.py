"""The stand-in's prefix cache: whole blocks of prompts computed before need no computing, the least recently used go first.

As in vLLM a block is shared from when it is scheduled, and the last token of a prompt is always computed. Unlike vLLM's the
cache has the whole pool's size beside what runs, and keeps no generated tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise_simulator.profiles import Profile
    from equipoise_simulator.sequence import Sequence
    from equipoise_simulator.standin.answer import Choice


class PrefixCache:
    """Blocks by everything up to their end, the most recently used last."""

    def __init__(self, profile: Profile) -> None:
        self.queries = 0
        """Prompt tokens looked up."""
        self.hits = 0
        """Of these, those that were here."""
        self._block = profile.block_size
        self._most = profile.kv_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def admit(self, sequence: Sequence) -> int:
        """Return how many tokens of a prompt are here; all its whole blocks are afterwards. Linear in the prompt."""
        choice: Choice = sequence.owner
        ids, size = choice.prompt.ids(), self._block
        keys, key = [], 0
        for at in range(size, len(ids) + 1, size):
            key = hash((key, *ids[at - size : at]))
            keys.append(key)
        known = next((place for place, key in enumerate(keys) if key not in self._blocks), len(keys))
        cached = min(known * size, (sequence.prompt_tokens - 1) // size * size)
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        if choice.cached is None:  # a preempted one comes again
            choice.cached = cached
            self.queries += sequence.prompt_tokens
            self.hits += cached
        return cached
