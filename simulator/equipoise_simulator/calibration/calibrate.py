"""Calibrates a profile: sizes from what the engine says, costs from what it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from equipoise_simulator.calibration.fit import Fit, fit
from equipoise_simulator.calibration.probe import Probe
from equipoise_simulator.profiles import Profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from equipoise_simulator.calibration.steps import Observation


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile, the fit behind it, and what it was fitted to."""

    profile: Profile
    fit: Fit
    observations: tuple[Observation, ...]

    def joined(self, other: Calibration) -> Calibration:
        """Fit what both observed of one engine, so that a machine whose speed drifts is met at its mean."""
        observations = self.observations + other.observations
        found = fit(observations)
        return Calibration(replace(self.profile, **found.costs), found, observations)


async def calibrate(
    url: str,
    *,
    name: str,
    uds: str | None = None,
    api_key: str | None = None,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = 2048,
    rounds: int = 2,
    seconds: float = 10.0,
    tell: Callable[[str], None] = print,
) -> Calibration:
    """Measure the engine at `url` (over the Unix socket `uds`, if given), which has nothing else to do.

    What is None is measured. Takes about `rounds` times `seconds` times the doublings up to `max_num_seqs` and
    three. Raises ProbeError and ValueError, with what is missing.
    """
    async with Probe(url, uds, api_key=api_key, tell=tell) as probe:
        sizes = await probe.sizes(kv_tokens)
        widest = max_num_seqs or await probe.widest_batch(sizes)
        observations = await probe.observe(
            sizes, widest, max_num_batched_tokens, rounds=rounds, seconds=seconds
        )
    found = fit(observations)
    profile = Profile(
        name=name,
        **found.costs,
        plans_ahead=True,
        kv_tokens=sizes.kv_tokens,
        block_size=sizes.block_size,
        max_num_seqs=widest,
        max_num_batched_tokens=max(max_num_batched_tokens, widest),
        max_model_len=min(sizes.max_model_len, sizes.kv_tokens // sizes.block_size * sizes.block_size),
    )
    return Calibration(profile, found, tuple(observations))
