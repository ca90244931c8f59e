"""Named cost profiles of an engine: what one step of continuous batching takes, and how large the KV pool is.

A step takes `a0 + a1*prefill_tokens + a2*decode_seqs + a3*context_tokens` seconds, where `a0 + a2*decode_seqs` may be
replaced by what batches of several sizes were measured to take. "papers" is Llama-2-7B on
an A10G as the VTC paper's artifact (arXiv 2401.00588) describes it, with that artifact's loop in place of vLLM's; "fast"
is the same engine 1.24 times faster, with vLLM's loop, "slow" half as fast as that, for ExFairS's scenarios, and "large"
three times as fast with a KV pool of 100,000 tokens, for FairServe's interactions (the engines of these two are not
described). Others are read from JSON files, as `equipoise calibrate` writes them.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal


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
    decode_steps: tuple[tuple[int, float], ...] = ()
    """(sequences that decode, seconds of their step but for prompts and context): measured points, more than nothing in size
    and time, in the order of their sizes, with lines between them and a slope of a2 behind the last. They take the place
    of `a0 + a2 * sequences`, which no engine follows closely: its kernels are made for some sizes of batches."""
    latency: float = 0.0
    """Seconds of a request's way to the engine and of its first token back, which no step shows."""
    plans_ahead: bool = False
    """The engine begins its next step before a proxy can have heard of the last one's ends: what takes their place joins
    one step later."""
    loop: Literal["vllm", "artifact"] = "vllm"
    """How steps are made up in a simulation: vLLM's chunked prefill, or the VTC artifact's (see `artifact_engine`)."""

    def __post_init__(self) -> None:
        costs = (self.a0, self.a1, self.a2, self.a3, self.latency)
        if not all(0 <= cost < math.inf for cost in costs) or self.a0 == 0:
            raise ValueError(
                f"profile {self.name}: a0 must be above 0 and a1, a2, a3, latency not below 0, all finite"
            )
        sizes = [size for size, _ in self.decode_steps]
        if sizes != sorted(set(sizes)) or not all(
            size > 0 and 0 < seconds < math.inf for size, seconds in self.decode_steps
        ):
            raise ValueError(
                f"profile {self.name}: decode_steps must rise in sequences, which start at 1, and have seconds above 0"
            )
        if self.loop not in {"vllm", "artifact"}:
            raise ValueError(f"profile {self.name}: loop={self.loop!r} must be vllm or artifact")
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
        return replace(
            self,
            a0=self.a0 / speed,
            a1=self.a1 / speed,
            a2=self.a2 / speed,
            a3=self.a3 / speed,
            decode_steps=tuple((size, seconds / speed) for size, seconds in self.decode_steps),
        )

    def step_seconds(self, prefill_tokens: int, decode_seqs: int, context_tokens: int) -> float:
        """Return how long one step takes. O(log points)."""
        return self._batch_seconds(decode_seqs) + self.a1 * prefill_tokens + self.a3 * context_tokens

    def _batch_seconds(self, sequences: int) -> float:
        points = self.decode_steps
        if not points or not sequences:
            return self.a0 + self.a2 * sequences
        place = bisect_left(points, (sequences,))
        if place == len(points):
            size, seconds = points[-1]
            return seconds + self.a2 * (sequences - size)
        size, seconds = points[place]
        before, least = points[place - 1] if place else (0, self.a0)
        return least + (seconds - least) * (sequences - before) / (size - before)

    @property
    def formula(self) -> str:
        """How long a step takes, in words."""
        sizes = ", ".join(f"{size}: {seconds * 1e3:.2f}" for size, seconds in self.decode_steps)
        decode = (
            f"({sizes}) ms for so many sequences"
            if sizes
            else f"{self.a0 * 1e3:.2f} ms + {self.a2 * 1e6:.0f} us a sequence"
        )
        return (
            f"{decode} + {self.a1 * 1e6:.0f} us a prompt token + {self.a3 * 1e6:.2f} us a token of context, "
            f"latency {self.latency * 1e3:.1f} ms"
        )

    def document(self) -> dict[str, Any]:
        """Return plain JSON data; `from_document` reads it back."""
        return asdict(self)

    @classmethod
    def from_document(cls, data: object) -> Profile:
        """Read what `document` gave. ValueError names the field and the mend; other keys are left aside."""
        if not isinstance(data, dict):
            raise ValueError("a profile must be a JSON object")  # noqa: TRY004 - bad input, not a bad call
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in data:
                if field.name in _NEEDED:
                    raise ValueError(
                        f"a profile needs {field.name}; it has {', '.join(map(str, data)) or 'nothing'}"
                    )
                continue
            value = data[field.name]
            if field.name == "decode_steps":
                values[field.name] = _points(value)
                continue
            wanted, kind = _KINDS.get(field.name, ((int,), "a whole number"))
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                raise ValueError(f"profile: {field.name}={value!r} must be {kind}")
            values[field.name] = value
        return cls(**values)


def _points(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(point, list | tuple) and [*map(type, point)] in ([int, float], [int, int])
        for point in value
    ):
        raise ValueError(f"profile: decode_steps={value!r} must be a list of pairs [sequences, seconds]")
    return tuple((size, seconds) for size, seconds in value)


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "a text"),
    "loop": ((str,), "a text"),
    "plans_ahead": ((bool,), "true or false"),
    **dict.fromkeys(("a0", "a1", "a2", "a3", "latency"), ((int, float), "a number")),
}
_NEEDED = ("name", "a0", "a1", "a2", "a3")


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="papers", a0=0.0279, a1=0.00026, a2=0.000124, a3=0.0000011, loop="artifact"),
        Profile(name="fast", a0=0.0225, a1=0.00021, a2=0.0001, a3=0.0000009),
        Profile(name="slow", a0=0.045, a1=0.00042, a2=0.0002, a3=0.0000018),
        Profile(name="large", a0=0.0075, a1=0.00007, a2=0.0000333, a3=0.0000003, kv_tokens=100_000),
    )
}


def profile_named(name: str) -> Profile:
    """Return a profile by name; ValueError names the ones there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"profile {name!r} is unknown; there are {', '.join(sorted(PROFILES))}") from None


def read_profile(path: Path) -> Profile:
    """Read a profile from a JSON file. ValueError names file and field; OSError when it cannot be read."""
    try:
        return Profile.from_document(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_profile(name_or_path: str) -> Profile:
    """Return a profile by its name, else from the JSON file of that path."""
    if name_or_path not in PROFILES and (name_or_path.endswith(".json") or Path(name_or_path).is_file()):
        return read_profile(Path(name_or_path))
    return profile_named(name_or_path)
