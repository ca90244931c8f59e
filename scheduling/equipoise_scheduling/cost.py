"""What a request costs: h(prompt, cached, generated), the service that fairness is about."""

from dataclasses import dataclass


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
