"""The stand-in's prefix cache: whole blocks of prompts computed before need no computing, the least recently used go first.

As in vLLM a block is shared from when it is scheduled, the last token of a prompt is always computed, and generated tokens are
kept but for the last, which was never computed. Unlike vLLM's the cache has the whole pool's size beside what runs, and takes
generated tokens in when their answer is complete.
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
        keys = self._keys(choice.prompt.ids())
        known = next((place for place, key in enumerate(keys) if key not in self._blocks), len(keys))
        cached = min(known * self._block, (sequence.prompt_tokens - 1) // self._block * self._block)
        self._put(keys)
        if choice.cached is None:  # a preempted one comes again
            choice.cached = cached
            self.queries += sequence.prompt_tokens
            self.hits += cached
        return cached

    def complete(self, choice: Choice) -> None:
        """Take in what was generated. Linear in prompt and answer."""
        self._put(self._keys([*choice.prompt.ids(), *choice.computed_ids()]))

    def _keys(self, ids: list[int]) -> list[int]:
        """Return the keys of the whole blocks."""
        keys, key, size = [], 0, self._block
        for at in range(size, len(ids) + 1, size):
            key = hash((key, *ids[at - size : at]))
            keys.append(key)
        return keys

    def _put(self, keys: list[int]) -> None:
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
