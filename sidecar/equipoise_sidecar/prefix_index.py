"""Which beginnings of prompts the engine has computed lately: a bounded set of hashes, the least recently used going first.

A prompt is cut at `ENDS`, finely where most prompts part from one another: behind a system prompt. The key of a block is a keyed hash of everything up to its end, so equal keys
mean equal beginnings. Keys are hashed under a random secret of the process and never leave it. A tenant's prompts are
hashed under its name: what one tenant sends says nothing of what others have sent.

A chain of blocks is touched from its end to its beginning, as vLLM frees a request's blocks: what is dropped for want of
room is the end of a chain, and the beginning stays of use. What has no key, generated tokens above all, takes its room
too.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile

from equipoise_sidecar.prompt_bytes import MOST_BYTES

FINE_BYTES, FINE_BLOCK, BLOCK = 4096, 64, 256
"""Blocks of 64 bytes (about 20 tokens of text) up to 4 kB, of 256 from there."""
ENDS = (*range(FINE_BLOCK, FINE_BYTES, FINE_BLOCK), *range(FINE_BYTES, MOST_BYTES + 1, BLOCK))
"""Where blocks end, in bytes. 100 kB are hashed in a third of a millisecond."""
_SIZES = tuple(end - begin for begin, end in zip((0, *ENDS), ENDS, strict=False))
MOST_ENTRIES = 65_536
"""Of the index, 16 MB at most: blocks of 5 million tokens of text."""
_DIGEST_BYTES = 16


class Blocks:
    """The keys of a text's whole blocks, as the text comes. Hashes are kept, and nothing of the text."""

    __slots__ = ("_left", "_most", "_state", "keys")

    def __init__(self, state: blake2b, most: int) -> None:
        self.keys: list[bytes] = []
        self._state = state
        self._most = most
        self._left = 0
        """Bytes until the block that has begun ends; 0: none has."""

    def add(self, text: bytes) -> None:
        """Take what comes next. Linear in the bytes looked at."""
        state, keys, begin, size = self._state, self.keys, 0, len(text)
        while begin < size and len(keys) < self._most:
            end = begin + (self._left or _SIZES[len(keys)])
            state.update(text[begin:end])
            if end > size:
                self._left = end - size
                return
            self._left = 0
            keys.append(state.digest())
            begin = end


class PrefixIndex:
    """Blocks by key, the most recently used last, with the tokens that each takes of the engine's cache.

    Invariant: the tokens sum to at most `capacity`, the entries number at most `MOST_ENTRIES`.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        """Tokens."""
        self.tokens = 0.0
        """Held."""
        self._entries: OrderedDict[bytes | int, float] = OrderedDict()
        self._secret = os.urandom(32)
        self._unnamed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def blocks(self, tenant: str, root: bytes, prompt: bytes, most: int = len(ENDS)) -> Blocks:
        """Return the first `most` blocks of a prompt, to which more may come. Linear in the bytes looked at.

        `root`: what else must be equal.
        """
        name = tenant.encode()
        start = b"%d:%b%b" % (len(name), name, root)
        blocks = Blocks(blake2b(start, key=self._secret, digest_size=_DIGEST_BYTES), most)
        blocks.add(prompt)
        return blocks

    def known(self, keys: Sequence[bytes]) -> int:
        """Return how many blocks from the beginning of a chain are here. Linear in that number."""
        return sum(1 for _ in takewhile(self._entries.__contains__, keys))

    def shared(self, keys: Sequence[bytes]) -> int:
        """Return how many bytes from the beginning of a chain are here. Linear in the blocks."""
        known = self.known(keys)
        return ENDS[known - 1] if known else 0

    def add(self, keys: Sequence[bytes], tokens_a_byte: float) -> int:
        """Note that a chain was computed; return how many blocks from its beginning were here."""
        entries, known = self._entries, self.known(keys)
        for place in range(len(keys) - 1, -1, -1):
            key = keys[place]
            if key in entries:
                entries.move_to_end(key)
            else:
                entries[key] = tokens = _SIZES[place] * tokens_a_byte
                self.tokens += tokens
        self._shrink()
        return known

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forget blocks."""
        for key in keys:
            self.tokens -= self._entries.pop(key, 0.0)

    def occupy(self, tokens: float) -> None:
        """Note tokens that the engine keeps and no prompt is known to begin with."""
        if tokens > 0:
            self._unnamed += 1
            self._entries[self._unnamed] = tokens
            self.tokens += tokens
            self._shrink()

    def resize(self, capacity: int) -> None:
        """Set the room, in tokens; what does not fit any more goes."""
        self.capacity = capacity
        self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.tokens = 0.0

    def _shrink(self) -> None:
        entries = self._entries
        while entries and (self.tokens > self.capacity or len(entries) > MOST_ENTRIES):
            self.tokens -= entries.popitem(last=False)[1]
        if not entries:
            self.tokens = 0.0  # what rounding left behind
