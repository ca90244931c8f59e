"""MoPE: output length by a mixture of prediction experts, from what a sidecar sees of a request. After Equinox.

Each request is a few dozen binary features (`features_of`); each feature has one row of weights shared by everybody
and one of the request's own tenant, so a new tenant starts from what is true of all and soon goes its own way.
`experts` does the arithmetic; here is who remembers what, and for how long.

Deterministic: the same requests in the same order give the same predictions, across a snapshot too. About 10 us a
prediction, 20 us to learn. Memory is bounded by `MAX_SHARED`, `MAX_OWN` and `MAX_ROWS`, whatever clients send.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite, log2
from typing import Any, Final

from typing_extensions import override

from equipoise_scheduling.experts import ROW_LENGTH, Experts, Row
from equipoise_scheduling.features import Cue
from equipoise_scheduling.prediction import MovingAverage, Predictor, learnable
from equipoise_scheduling.prediction_error import ErrorTracker, PredictionError
from equipoise_scheduling.request import Outcome, Request, Usage

MAX_SHARED: Final = 512
"""Rows that all tenants share."""
MAX_OWN: Final = 128
"""Rows of one tenant; the one unused for longest goes first."""
MAX_ROWS: Final = 4_096
"""Rows of all tenants; those of the tenant unseen for longest go first. About 2.5 MB, 0.7 MB as a snapshot that takes 5 ms."""
MAX_APPLICATIONS: Final = 32
"""Applications a tenant whose recent output is kept."""
RECENT: Final = 1 / 20
"""Weight of the newest output in a recent mean."""
_ROW: Final = struct.Struct(f"<{ROW_LENGTH}d")


@lru_cache(maxsize=1024)
def _bucket(size: int) -> int:
    """Half-octaves: 0, 1 ... 2*log2(1 + size)."""
    return int(2 * log2(1 + size))


@lru_cache(maxsize=1 << len(Cue))
def _cues(mask: int) -> tuple[str, ...]:
    return tuple(f"cue:{cue.value}" for cue in Cue if mask & cue)


def features_of(request: Request) -> list[str]:
    """Return what is known of a request itself, as names of features. O(1)."""
    names = ["any", f"prompt:{_bucket(request.prompt_tokens // request.prompts)}"]
    if request.interaction:
        names.append(f"call:{min(request.call_index, 4)}")
    seen = request.features
    if seen is None:
        return names
    names += (
        f"endpoint:{seen.endpoint}",
        f"messages:{min(seen.messages, 8)}",
        f"last:{_bucket(seen.last_characters)}",
        f"limit:{_bucket(request.max_tokens)}" if seen.limit_given else "limit",
    )
    if seen.stops:
        names.append("stops")
    if seen.temperature is not None:
        names.append(f"temperature:{min(4, int(2 * seen.temperature))}")
    if seen.tools:
        names.append("tools")
    if seen.structured:
        names.append("structured")
    if seen.asked_tokens:
        names.append(f"asked:{_bucket(seen.asked_tokens)}")
    names += _cues(seen.cues)
    return names


class Memory:
    """What was learnt of one tenant."""

    __slots__ = ("applications", "recent", "rows")

    def __init__(self, recent: float) -> None:
        self.rows: dict[str, Row] = {}
        """The longest unused first."""
        self.recent = recent
        """Mean of its recent outputs."""
        self.applications: dict[str, float] = {}
        """The same by application, the longest unused first."""


class Mixture(Predictor):
    """A router to three experts, beside one single expert and the tenant's moving average for comparison."""

    def __init__(self, prior: int = 256, *, error_window: int = 500) -> None:
        self._prior = prior
        self._experts = Experts(prior)
        self._shared: dict[str, Row] = {}
        self._tenants: dict[str, Memory] = {}
        """The longest unseen first."""
        self._own = 0
        """Rows of all tenants."""
        self._average = MovingAverage(prior)
        self._errors = {
            name: ErrorTracker(error_window) for name in ("mixture", "single_expert", "moving_average")
        }

    @override
    def predict(self, request: Request) -> int | None:
        memory = self._tenants.get(request.tenant)
        shared, own = self._names(request, memory)
        rows = [row for name in shared if (row := self._shared.get(name)) is not None]
        if memory is not None:
            rows += [row for name in own if (row := memory.rows.get(name)) is not None]
        return _clip(self._experts.believe(rows).mixture, request)

    @override
    def learn(self, request: Request, usage: Usage, outcome: Outcome) -> None:
        if not learnable(usage, outcome):
            return
        output = usage.generated / request.sequences
        memory = self._tenants.pop(request.tenant, None) or Memory(self._prior)
        self._tenants[request.tenant] = memory
        shared, own = self._names(request, memory)
        rows = _touch(self._shared, shared, MAX_SHARED)
        before = len(memory.rows)
        rows += _touch(memory.rows, own, MAX_OWN)
        self._own += len(memory.rows) - before
        self._judge(request, rows, output)
        self._experts.learn(rows, max(1.0, output))
        self._remember(memory, request.application, output)
        self._average.learn(request, usage, outcome)
        self.learned += 1
        while self._own > MAX_ROWS:
            self.forget(next(iter(self._tenants)))

    def _judge(self, request: Request, rows: list[Row], output: float) -> None:
        """Judge what all three would have said just before this request taught them."""
        belief = self._experts.believe(rows)
        average = self._average.predict(request)
        for name, tokens in (
            ("mixture", belief.mixture),
            ("single_expert", belief.single),
            ("moving_average", average or 0),
        ):
            self._errors[name].add(_clip(tokens, request), output)

    def _remember(self, memory: Memory, application: str, output: float) -> None:
        memory.recent += RECENT * (output - memory.recent)
        if application:
            mean = memory.applications.pop(application, memory.recent)
            memory.applications[application] = mean + RECENT * (output - mean)
            if len(memory.applications) > MAX_APPLICATIONS:
                del memory.applications[next(iter(memory.applications))]

    @staticmethod
    def _names(request: Request, memory: Memory | None) -> tuple[list[str], list[str]]:
        """Return the names of a request's rows: shared ones, and its tenant's own."""
        own = features_of(request)
        shared = own
        if memory is not None:
            shared = [*own, f"recent:{_bucket(round(memory.recent))}"]
            recent = memory.applications.get(request.application)
            if recent is not None:
                shared.append(f"application:{_bucket(round(recent))}")
        if request.application:
            own = [*own, f"application:{request.application}"]
        return shared, own

    @override
    def errors(self) -> Mapping[str, PredictionError]:
        return {name: tracker.error() for name, tracker in self._errors.items()}

    @override
    def forget(self, tenant: str) -> None:
        self._average.forget(tenant)
        memory = self._tenants.pop(tenant, None)
        if memory is not None:
            self._own -= len(memory.rows)

    @override
    def snapshot(self) -> dict[str, Any]:
        # Lists, not mappings: the order says what was used last, whatever writes the snapshot.
        return {
            **self._average.snapshot(),
            "outputs": self._experts.terciles.snapshot(),
            "shared": _rows(self._shared),
            "tenants": [
                [tenant, memory.recent, [*map(list, memory.applications.items())], _rows(memory.rows)]
                for tenant, memory in self._tenants.items()
            ],
        }

    @override
    def restore(self, data: dict[str, Any]) -> None:
        average = MovingAverage(self._prior)
        average.restore(data)
        try:
            outputs = [_number(value) for value in data.get("outputs", [])]
            shared = _read_rows(data.get("shared", []))
            tenants: dict[str, Memory] = {}
            for tenant, recent, applications, rows in data.get("tenants", []):
                memory = tenants[str(tenant)] = Memory(_number(recent))
                memory.applications = {str(name): _number(mean) for name, mean in applications}
                memory.rows = _read_rows(rows)
        except (TypeError, ValueError, struct.error) as error:
            raise ValueError(f"snapshot: predictor cannot be read: {error}") from error
        self._average, self._shared, self._tenants = average, shared, tenants
        self._own = sum(len(memory.rows) for memory in tenants.values())
        self._experts.terciles.restore(outputs)


def _clip(tokens: float, request: Request) -> int:
    return min(max(1, round(tokens)), request.max_tokens)


def _touch(rows: dict[str, Row], names: list[str], most: int) -> list[Row]:
    """Return the rows of `names`, new ones made, all of them moved to the end: used last."""
    touched = []
    for name in names:
        row = rows.pop(name, None) or [0.0] * ROW_LENGTH
        rows[name] = row
        touched.append(row)
    while len(rows) > most:
        del rows[next(iter(rows))]
    return touched


def _rows(rows: Mapping[str, Row]) -> list[list[str]]:
    # In hexadecimal, for speed: as decimals thousands of rows would hold up the process for a tenth of a second.
    return [[name, _ROW.pack(*row).hex()] for name, row in rows.items()]


def _read_rows(data: Any) -> dict[str, Row]:
    rows = {str(name): list(_ROW.unpack(bytes.fromhex(packed))) for name, packed in data}
    if not all(isfinite(value) for row in rows.values() for value in row):
        raise ValueError("a row has a number that is not finite")
    return rows


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise TypeError(f"{value!r} is not a count of tokens")
    return float(value)
