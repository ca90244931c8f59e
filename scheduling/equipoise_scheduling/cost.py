"""What a request costs: h(prompt, cached, generated), the service that fairness is about."""

from dataclasses import dataclass
from typing import Protocol


class Cost(Protocol):
    """Cost of what was computed so far of a request; rises in both counts, and 0 of nothing."""

    def __call__(self, prompt: int, cached: int, generated: int) -> float:
        """Cost of `prompt` tokens, `cached` of them from the prefix cache, and of `generated` ones."""


@dataclass(frozen=True, slots=True)
class LinearCost:
    """h = input * (prompt - cached) + cached * cached + output * generated.

    Source: VTC (arXiv 2401.00588), with w_p = 1 and w_q = 2 as in its experiments; cached prompt tokens are
    charged in full unless the policy says less.
    """

    input: float = 1.0
    output: float = 2.0
    cached: float | None = None
    """None: as `input`."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"cost.{name}={value} must be a number not below 0")
        if self.output == 0 and self.input == 0:
            raise ValueError("cost.input and cost.output are both 0: nothing would cost anything")

    def __call__(self, prompt: int, cached: int, generated: int) -> float:
        """Cost in weighted tokens; `cached` is part of `prompt`. O(1)."""
        price = self.input if self.cached is None else self.cached
        return self.input * (prompt - cached) + price * cached + self.output * generated


@dataclass(frozen=True, slots=True)
class ProfiledCost:
    """h = base + input * in + output * out + product * in * out + square * out * out, in milliseconds of the engine.

    Source: VTC (arXiv 2401.00588), section 4.2, and its artifact, whose profile of Llama-2-7B on an A10G is the default.
    """

    base: float = 1.14601454
    input: float = 0.21001891
    output: float = 0.10075395
    product: float = 0.0039868
    square: float = 0.00324733

    def __post_init__(self) -> None:
        for name in ("base", "input", "output", "product", "square"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"cost.profiled.{name}={value} must be a number not below 0")
        if self.input == 0 and self.output == 0:
            raise ValueError("cost.profiled: input and output are both 0: nothing would cost anything")

    def __call__(self, prompt: int, cached: int, generated: int) -> float:
        """Cost in milliseconds; cached tokens count in full. O(1)."""
        del cached
        if not prompt and not generated:
            return 0.0
        return (
            self.base
            + self.input * prompt
            + (self.output + self.product * prompt + self.square * generated) * generated
        )
