"""Named cost profiles of an engine: what one step of continuous batching takes, and how large the KV pool is.

A step takes `a0 + a1*prefill_tokens + a2*decode_seqs + a3*context_tokens` seconds. "papers" is Llama-2-7B on
an A10G as the VTC paper's artifact (arXiv 2401.00588) describes it; "fast" is the same engine 1.24 times faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Profile:
    """An engine's costs (seconds) and sizes (tokens, sequences)."""

    name: str
    a0: float
    """Seconds that every step takes."""
    a1: float
    """Seconds a prompt token prefilled."""
    a2: float
    """Seconds a sequence that decodes."""
    a3: float
    """Seconds a token of context that the decoding sequences hold."""
    kv_tokens: int = 10_000
    """KV pool, tokens; rounded down to whole blocks."""
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2_048
    max_model_len: int = 4_096

    def __post_init__(self) -> None:
        if min(self.a0, self.a1, self.a2, self.a3) < 0 or self.a0 == 0:
            raise ValueError(f"profile {self.name}: a0 must be above 0 and a1, a2, a3 not below 0")
        if min(self.block_size, self.max_num_seqs, self.max_model_len) < 1:
            raise ValueError(
                f"profile {self.name}: block_size, max_num_seqs and max_model_len must be at least 1"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"profile {self.name}: max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs})"
            )
        if self.max_model_len > self.kv_blocks * self.block_size:
            raise ValueError(
                f"profile {self.name}: max_model_len ({self.max_model_len}) must fit the KV pool "
                f"({self.kv_blocks * self.block_size} tokens)"
            )

    @property
    def kv_blocks(self) -> int:
        """The pool in blocks."""
        return self.kv_tokens // self.block_size

    def scaled(self, speed: float) -> Profile:
        """Return the same engine `speed` times as fast; sizes stay.

        Raises ValueError unless `speed` is above 0.
        """
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed}")
        return replace(self, a0=self.a0 / speed, a1=self.a1 / speed, a2=self.a2 / speed, a3=self.a3 / speed)

    def step_seconds(self, prefill_tokens: int, decode_seqs: int, context_tokens: int) -> float:
        """Return how long one step takes."""
        return self.a0 + self.a1 * prefill_tokens + self.a2 * decode_seqs + self.a3 * context_tokens


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="papers", a0=0.0279, a1=0.00026, a2=0.000124, a3=0.0000011),
        Profile(name="fast", a0=0.0225, a1=0.00021, a2=0.0001, a3=0.0000009),
    )
}


def profile_named(name: str) -> Profile:
    """Return a profile by name; ValueError names the ones there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"profile {name!r} is unknown; there are {', '.join(sorted(PROFILES))}") from None
