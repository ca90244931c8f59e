"""Request traces: who asks when, for how many tokens; read from CSV.

A trace's CSV (commas, semicolons or tabs; UTF-8) has columns for arrival (seconds from the start or since 1970, or a time
stamp such as `2023-11-16 18:17:03.9799600`), tenant, input and output tokens. Their names may be given; else those of the
VTC paper's arena trace and of Azure's traces are known. A trace without tenants is one tenant. No row is left out: what
cannot be read is reported with its line.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, cast

from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.sequence import Sequence

if TYPE_CHECKING:
    from collections import abc
    from pathlib import Path

    from equipoise_simulator.profiles import Profile

ALONE = "tenant"
"""The tenant of a trace that names none."""
MAX_ROWS = 1_000_000
MAX_TOKENS = 10_000_000
MAX_DAYS = 31
"""Longer and the seconds are milliseconds, or a date is wrong; every simulated second costs."""
SINCE_1970 = 1e9
"""Arrivals from here on (2001) are seconds since 1970, not from the start."""
NO_SECONDS = 1e11
"""Arrivals from here on (the year 5138) are milliseconds, or nonsense."""
MOST_COMPLAINTS = 10
OUTPUT_WEIGHT = 2
"""An output token's share of demand, an input token's being 1: the schedulers' default cost."""


class TraceError(ValueError):
    """A trace that cannot be read; names the file and the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of a CSV's columns; None: the first of `KNOWN` that it has."""

    arrival: str | None = None
    tenant: str | None = None
    input: str | None = None
    output: str | None = None

    KNOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "arrival": ("arrival_s", "TIMESTAMP", "timestamp", "arrival"),
        "tenant": ("client", "tenant"),
        "input": ("input_tokens", "ContextTokens"),
        "output": ("output_tokens", "GeneratedTokens"),
    }

    def found(self, path: Path, header: abc.Sequence[str]) -> tuple[str, str | None, str, str]:
        """Return the columns of a file with that header; None for no tenants. TraceError names what is missing."""
        chosen: dict[str, str | None] = {}
        missing = []
        for fact, known in self.KNOWN.items():
            wanted: str | None = getattr(self, fact)
            name = next((each for each in ((wanted,) if wanted else known) if each in header), None)
            if name is not None and header.count(name) > 1:
                raise TraceError(f"{path}: line 1: {header.count(name)} columns are named {name}")
            if name is None and (wanted or fact != "tenant"):
                missing.append(wanted or known[0])
            chosen[fact] = name
        arrival, inputs, outputs = chosen["arrival"], chosen["input"], chosen["output"]
        if missing or arrival is None or inputs is None or outputs is None:
            raise TraceError(
                f"{path}: line 1: the columns {', '.join(missing)} are missing (there are: {', '.join(header)}); "
                "name them with --arrival-column, --tenant-column, --input-column and --output-column"
            )
        return arrival, chosen["tenant"], inputs, outputs


@dataclass(frozen=True, slots=True)
class Row:
    """One request."""

    arrival: float
    """Seconds from the trace's start."""
    client: str
    input_tokens: int
    output_tokens: int

    @property
    def cost(self) -> int:
        """Weighted tokens."""
        return self.input_tokens + OUTPUT_WEIGHT * self.output_tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival over `seconds`."""

    name: str
    rows: tuple[Row, ...]
    seconds: float

    @property
    def clients(self) -> list[str]:
        """Clients, those with the most demand first."""
        demand: dict[str, int] = {}
        for row in self.rows:
            demand[row.client] = demand.get(row.client, 0) + row.cost
        return sorted(demand, key=lambda client: (-demand[client], client))

    def first(self, seconds: float) -> Trace:
        """Return what arrives in the first `seconds`; ValueError when nothing does."""
        rows = tuple(row for row in self.rows if row.arrival < seconds)
        if not rows:
            raise TraceError(f"{self.name}: nothing arrives in the first {seconds:g} s")
        return Trace(f"{self.name}, first {seconds:g} s", rows, min(seconds, self.seconds))


def read_trace(path: Path, columns: Columns | None = None) -> Trace:
    """Read a CSV trace; times become seconds from its first row where they are time stamps.

    TraceError names the line and what is wrong there; OSError when the file cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = _text_lines(path, file)
        header = next(lines, "")
        if not header:
            raise TraceError(f"{path}: is empty: a trace begins with a line of column names")
        delimiter = max(",;\t", key=header.count)
        reader = csv.DictReader(
            chain([header], lines), delimiter=delimiter, skipinitialspace=True, strict=True
        )
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            names = (columns or Columns()).found(path, reader.fieldnames)
            rows, stamped, latest = _rows(path, reader, names)
        except csv.Error as error:
            raise TraceError(f"{path}: line {reader.line_num + 1}: {error}") from None
    if not rows:
        raise TraceError(f"{path}: no rows below the header")
    rows.sort(key=lambda row: row.arrival)
    start = rows[0].arrival if stamped or rows[0].arrival >= SINCE_1970 else 0.0
    days = (rows[-1].arrival - start) / 86_400
    if days > MAX_DAYS:
        raise TraceError(
            f"{path}: line {latest}: {names[0]} is {days:,.0f} days after the start, more than {MAX_DAYS}:"
            " give seconds or time stamps"
        )
    if start:
        rows = [replace(row, arrival=round(row.arrival - start, 6)) for row in rows]
    return Trace(path.name, tuple(rows), max(rows[-1].arrival, 1e-3))


def _text_lines(path: Path, file: abc.Iterable[str]) -> abc.Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                raise TraceError(
                    f"{path}: line {number}: is no UTF-8 text: unpack the file, or save it as CSV in UTF-8"
                ) from None
        yield line


def _rows(
    path: Path, reader: csv.DictReader[str], names: tuple[str, str | None, str, str]
) -> tuple[list[Row], bool, int]:
    """Return all rows, whether their times are stamps, and the latest one's line. TraceError names the first bad rows."""
    rows: list[Row] = []
    complaints: list[str] = []
    stamped: bool | None = None
    latest, latest_line = -math.inf, 0
    for values in reader:
        line = reader.line_num
        if stamped is None:
            stamped = not _is_number(values[names[0]])
        try:
            row = _row(path, line, values, names, stamped=stamped)
        except TraceError as error:
            complaints.append(str(error))
            continue
        rows.append(row)
        if row.arrival > latest:
            latest, latest_line = row.arrival, line
        if len(rows) > MAX_ROWS:
            raise TraceError(f"{path}: line {line}: more than {MAX_ROWS:,} rows")
    if complaints:
        more = len(complaints) - MOST_COMPLAINTS
        raise TraceError(
            "\n".join(complaints[:MOST_COMPLAINTS] + [f"{path}: {more:,} more bad rows"] * (more > 0))
        )
    return rows, bool(stamped), latest_line


def capacity(trace: Trace, profile: Profile, engines: int) -> float:
    """Return the weighted tokens a second that `engines` can serve of this trace's mix.

    Measured on the model: all requests are there at once, dealt out in turn. An engine's rate is what it served until its
    queue was empty, or to the end when the queue empties before half of the work. ValueError when a request fits no engine.
    """
    return sum(_backlogged_rate(trace.rows[number::engines], profile) for number in range(engines))


def _backlogged_rate(rows: tuple[Row, ...], profile: Profile) -> float:
    model, now = EngineModel(profile), 0.0
    sequences = [Sequence(row.input_tokens, row.output_tokens) for row in rows]
    for sequence in sequences:
        model.add(sequence)
    work = sum(row.cost for row in rows)
    while step := model.begin(now, until=math.inf):
        model.finish()
        now = step.ends
        if not model.waiting:
            counts = ((sequence.prompt_tokens, model.generated(sequence)) for sequence in sequences)
            served = sum(prompt + OUTPUT_WEIGHT * generated for prompt, generated in counts if generated)
            if served >= work / 2:
                return served / now
    return 0.0  # no rows: more engines than requests


def demand_ratio(trace: Trace, profile: Profile, engines: int) -> float:
    """Return what the trace asks for over what `engines` can serve in its time; above 1 a queue grows."""
    return sum(row.cost for row in trace.rows) / trace.seconds / capacity(trace, profile, engines)


def _row(
    path: Path,
    line: int,
    values: dict[str, str | None],
    names: tuple[str, str | None, str, str],
    *,
    stamped: bool,
) -> Row:
    arrival_name, tenant_name, input_name, output_name = names
    extra = cast("dict[None, list[str]]", values).get(None, ())  # where DictReader puts them
    if any(extra):
        named = len(values) - 1
        raise TraceError(f"{path}: line {line}: {named + len(extra)} fields where the header names {named}")
    arrival = _seconds(path, line, values, arrival_name, stamped=stamped)
    client = ALONE if tenant_name is None else (values[tenant_name] or "").strip()
    if not client:
        raise TraceError(f"{path}: line {line}: {tenant_name} is empty")
    return Row(
        arrival,
        client,
        _tokens(path, line, values, input_name),
        _tokens(path, line, values, output_name),
    )


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return not text or text[:4].isalpha()  # neither: complain about seconds, the usual form
    return True


def _seconds(path: Path, line: int, values: dict[str, str | None], column: str, *, stamped: bool) -> float:
    """Read an arrival: seconds from the start, or a time stamp as seconds since 1970."""
    text = values[column] or ""
    try:
        arrival = _stamp(text) if stamped else float(text)
    except ValueError:
        arrival = math.nan
    if not 0 <= arrival < NO_SECONDS:
        form = (
            "a time stamp like 2023-11-16 18:17:03.98" if stamped else "seconds from the start or since 1970"
        )
        raise TraceError(f"{path}: line {line}: {column} must be {form}, not {values[column]!r}")
    return arrival


def _stamp(text: str) -> float:
    """Return seconds since 1970, UTC where the stamp says nothing, with any number of decimals."""
    whole, dot, rest = text.partition(".")
    decimals = rest[: len(rest) - len(rest.lstrip("0123456789"))] if dot else ""
    at = datetime.fromisoformat(whole + rest[len(decimals) :])
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return at.timestamp() + (float(f"0.{decimals}") if decimals else 0.0)


def _tokens(path: Path, line: int, values: dict[str, str | None], column: str) -> int:
    text = values[column]
    try:
        tokens = int(text or "")
    except ValueError:
        tokens = _whole(text or "")
    if not 1 <= tokens <= MAX_TOKENS:
        raise TraceError(
            f"{path}: line {line}: {column} must be a whole number from 1 to {MAX_TOKENS:,}, not {text!r}"
        )
    return tokens


def _whole(text: str) -> int:
    """Return the number of `12.0`, as tables with gaps are written; 0 where it is none."""
    try:
        number = float(text)
    except ValueError:
        return 0
    return int(number) if number.is_integer() else 0


def length_at(quantiles: abc.Sequence[tuple[float, int]], share: float) -> int:
    """Return the length at `share` (0 to 1) of a distribution given by quantiles, log-uniform between them."""
    place = min(bisect_right(quantiles, (share, math.inf)), len(quantiles) - 1)
    (below, low), (above, high) = quantiles[place - 1], quantiles[place]
    within = (share - below) / (above - below)
    return round(math.exp(math.log(low) + within * (math.log(high) - math.log(low))))
