"""How fairness is measured: the one set of definitions behind state, status, reports and tests.

W_i(t1, t2) is the service that tenant i received, in weighted tokens: input when it is prefilled, each output token
when it comes. Times are seconds.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate


def max_min(demands: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """Share `capacity` by weighted max-min: nobody gets more than they ask for, what they leave goes to the rest.

    O(n log n). Demands and capacity in one unit; weights positive.
    """
    shares = [0.0] * len(demands)
    left, weight_left = max(0.0, capacity), math.fsum(weights)
    for place in sorted(range(len(demands)), key=lambda i: demands[i] / weights[i]):
        share = min(max(0.0, demands[place]), left * weights[place] / weight_left)
        shares[place] = share
        left -= share
        weight_left = max(weight_left - weights[place], weights[place] * 1e-12)
    return shares


def jain(values: Sequence[float]) -> float:
    """Jain's index (sum x)^2 / (n * sum x^2): 1 when all are equal, 1/n when one has all, 1 for nobody."""
    squares = math.fsum(value * value for value in values)
    if squares == 0:
        return 1.0
    return math.fsum(values) ** 2 / (len(values) * squares)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0 to 1) with linear interpolation, NaN of nothing. O(n log n)."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def attainment(kept: int, total: int) -> float | None:
    """Share of requests that kept their SLO; None where none had one."""
    return kept / total if total else None


def isolation(p99_with: float, p99_without: float) -> float:
    """P99 TTFT of a tenant within its share with an aggressor over that without: 1 is perfect isolation."""
    return p99_with / p99_without if p99_without > 0 else math.inf


@dataclass(slots=True)
class ServiceSeries:
    """What one tenant received and asked for over time. Events must come in order of time.

    `received` and `demanded` answer for any interval in O(log n).
    """

    _times: list[float] = field(default_factory=list)
    _sums: list[float] = field(default_factory=list)
    _ask_times: list[float] = field(default_factory=list)
    _ask_sums: list[float] = field(default_factory=list)

    def deliver(self, time: float, cost: float) -> None:
        """Count `cost` delivered at `time`. ValueError if time runs backwards."""
        _append(self._times, self._sums, time, cost)

    def demand(self, time: float, cost: float) -> None:
        """Count a request that arrives at `time` and asks for `cost` in all. ValueError if time runs backwards."""
        _append(self._ask_times, self._ask_sums, time, cost)

    def received(self, start: float, end: float) -> float:
        """Service in [start, end)."""
        return _between(self._times, self._sums, start, end)

    def demanded(self, start: float, end: float) -> float:
        """Cost of the requests that arrived in [start, end)."""
        return _between(self._ask_times, self._ask_sums, start, end)

    def total(self, end: float) -> float:
        """Service before and at `end`."""
        place = bisect_right(self._times, end)
        return self._sums[place - 1] if place else 0.0


def _append(times: list[float], sums: list[float], time: float, cost: float) -> None:
    before = sums[-1] if sums else 0.0
    if times and time <= times[-1]:
        if time < times[-1]:
            raise ValueError(f"service at {time} s after service at {times[-1]} s: give events in order")
        sums[-1] = before + cost
        return
    times.append(time)
    sums.append(before + cost)


def _between(times: list[float], sums: list[float], start: float, end: float) -> float:
    first, last = bisect_left(times, start), bisect_left(times, end)
    if last <= first:
        return 0.0
    return sums[last - 1] - (sums[first - 1] if first else 0.0)


class SpreadSeries:
    """What one tenant received when each request's cost is spread evenly over [first token, end].

    The measure of the VTC artifact (there with in + 2 * out). Requests may come in any order; the first question
    after a delivery costs O(n log n), the others O(log n).
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float, float]] = []
        self._asks: list[tuple[float, float]] = []
        self._curve: tuple[list[float], list[float], list[float]] | None = None
        self._ask_curve: tuple[list[float], list[float]] | None = None

    def deliver(self, first_token: float, end: float, cost: float) -> None:
        """Count a request that generated from `first_token` to `end`."""
        self._spans.append((first_token, max(end, first_token + 1e-6), cost))
        self._curve = None

    def demand(self, time: float, cost: float) -> None:
        """Count a request that arrives at `time` and asks for `cost` in all."""
        self._asks.append((time, cost))
        self._ask_curve = None

    def received(self, start: float, end: float) -> float:
        """Service in [start, end]."""
        return self.total(end) - self.total(start)

    def demanded(self, start: float, end: float) -> float:
        """Cost of the requests that arrived in [start, end)."""
        if self._ask_curve is None:
            self._asks.sort()
            self._ask_curve = (
                [time for time, _ in self._asks],
                list(accumulate(cost for _, cost in self._asks)),
            )
        return _between(*self._ask_curve, start, end)

    def total(self, end: float) -> float:
        """Service before `end`."""
        if self._curve is None:
            self._curve = self._integrate()
        times, sums, rates = self._curve
        place = bisect_right(times, end) - 1
        return sums[place] + rates[place] * (end - times[place]) if place >= 0 else 0.0

    def _integrate(self) -> tuple[list[float], list[float], list[float]]:
        steps: list[tuple[float, float]] = []
        for start, end, cost in self._spans:
            rate = cost / (end - start)
            steps += [(start, rate), (end, -rate)]
        times: list[float] = []
        sums: list[float] = []
        rates: list[float] = []
        total = rate = 0.0
        for time, change in sorted(steps):
            if times:
                total += rate * (time - times[-1])
            rate += change
            times.append(time)
            sums.append(total)
            rates.append(rate)
        if rates:
            rates[-1] = 0.0
        return times, sums, rates


Series = ServiceSeries | SpreadSeries


@dataclass(frozen=True, slots=True)
class Difference:
    """Service difference over a run: of its ticks the largest, the mean and the variance. Weighted tokens/s."""

    max: float
    mean: float
    variance: float


def service_difference(
    tenants: Mapping[str, Series], ticks: Iterable[float], window: float = 60.0
) -> Difference:
    """Measure how far tenants that wanted more were behind the best served one.

    At tick x it is the sum over tenants of min(max_j y_j - y_i, |demand_i - y_i|), where y_i is the service and
    demand_i the cost of what arrived in [x - window/2, x + window/2), both a second.
    Source: VTC (arXiv 2401.00588), section 5.1.
    """
    values = []
    for tick in ticks:
        start, end = tick - window / 2, tick + window / 2
        rates = [series.received(start, end) / window for series in tenants.values()]
        asks = [series.demanded(start, end) / window for series in tenants.values()]
        best = max(rates, default=0.0)
        values.append(
            math.fsum(min(best - rate, abs(ask - rate)) for rate, ask in zip(rates, asks, strict=True))
        )
    if not values:
        return Difference(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return Difference(max(values), mean, variance)


def accumulated_difference(tenants: Mapping[str, Series], ticks: Iterable[float]) -> float:
    """Largest max_i A_i - min_i A_i over the ticks, A_i being the service of tenant i since the start."""
    largest = 0.0
    for tick in ticks:
        totals = [series.total(tick) for series in tenants.values()]
        if totals:
            largest = max(largest, max(totals) - min(totals))
    return largest


def jain_over_time(
    tenants: Mapping[str, Series], ticks: Iterable[float], window: float = 60.0
) -> list[float | None]:
    """Jain's index of service in the window around each tick, among the tenants whose demand so far was not met.

    A tenant counts at a tick when it had asked for more by the window's start than it had received by its end: it waited
    all the time. None where fewer than two did.
    """
    values: list[float | None] = []
    for tick in ticks:
        start, end = tick - window / 2, tick + window / 2
        rates = [
            series.received(start, end)
            for series in tenants.values()
            if series.demanded(-math.inf, start) > series.total(end) + 1e-9
        ]
        values.append(jain(rates) if len(rates) > 1 else None)
    return values


def jain_of_entitlement(
    tenants: Mapping[str, Series], ticks: Iterable[float], weights: Mapping[str, float], window: float = 60.0
) -> list[float | None]:
    """Jain's index, in the window around each tick, of what tenants received over what they were entitled to.

    Entitled is the weighted max-min share of all that was delivered, by what each one had waiting and asked for in the
    window: 1 means that everybody got their share, whatever they asked for. `tenants` hold service over weight. None where
    nothing was delivered.
    """
    values: list[float | None] = []
    names = list(tenants)
    heavy = [weights.get(name, 1.0) for name in names]
    for tick in ticks:
        start, end = tick - window / 2, tick + window / 2
        received, asked = [], []
        for name, weight in zip(names, heavy, strict=True):
            series = tenants[name]
            received.append(weight * series.received(start, end))
            asked.append(weight * max(0.0, series.demanded(-math.inf, end) - series.total(start)))
        entitled = max_min(asked, heavy, math.fsum(received))
        shares = [got / due for got, due in zip(received, entitled, strict=True) if due > 0]
        values.append(jain(shares) if shares else None)
    return values


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and quantiles of a set of durations, in seconds; NaN of nothing."""

    mean: float
    p50: float
    p90: float
    p99: float


def summary(values: Sequence[float]) -> Summary:
    """Summarise durations. O(n log n)."""
    mean = math.fsum(values) / len(values) if values else math.nan
    return Summary(mean, quantile(values, 0.5), quantile(values, 0.9), quantile(values, 0.99))
