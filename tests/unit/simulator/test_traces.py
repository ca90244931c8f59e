"""Traces: reading, slicing, the generated look-alike, and how much of an engine a trace asks for."""

import math
from pathlib import Path
from statistics import mean, median

import pytest
from arena_like import arena_like

from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.traces import (
    ALONE,
    Columns,
    Row,
    Trace,
    TraceError,
    capacity,
    demand_ratio,
    read_trace,
)

ARENA = Path(__file__).parents[4] / "shared" / "data" / "arena_27_clients.csv"
HEADER = "arrival_s,client,input_tokens,output_tokens\n"


def written(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_and_put_in_order_of_arrival(tmp_path):
    trace = read_trace(written(tmp_path, HEADER + "2.5,b,10,20\n0.5,a,1,2\n"))
    assert trace.rows == (Row(0.5, "a", 1, 2), Row(2.5, "b", 10, 20))
    assert (trace.seconds, trace.clients) == (2.5, ["b", "a"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty: a trace begins with a line of column names"),
        ("\n", "line 1: the columns arrival_s, input_tokens, output_tokens are missing"),
        ("arrival_s,client,output_tokens\n0,a,1\n", "line 1: the columns input_tokens are missing"),
        (HEADER, "no rows below the header"),
        (
            HEADER + "0,a,1,1\nsoon,a,1,1\n",
            "line 3: arrival_s must be seconds from the start or since 1970, not 'soon'",
        ),
        (HEADER + "-1,a,1,1\n", "line 2: arrival_s must be seconds"),
        (HEADER + "nan,a,1,1\n", "line 2: arrival_s must be seconds"),
        (HEADER + "0,,1,1\n", "line 2: client is empty"),
        (HEADER + "0,a,0,1\n", "line 2: input_tokens must be a whole number from 1 to 10,000,000, not '0'"),
        (
            HEADER + "0,a,1,1.5\n",
            "line 2: output_tokens must be a whole number from 1 to 10,000,000, not '1.5'",
        ),
        (HEADER + "0,a,1\n", "line 2: output_tokens must be a whole number from 1 to 10,000,000, not None"),
        (HEADER + "0,a,1,inf\n", "line 2: output_tokens must be a whole number"),
        (HEADER + "0,a,1,10000001\n", "line 2: output_tokens must be a whole number"),
        (HEADER + "0,a,1,024,7\n", "line 2: 5 fields where the header names 4"),
        (HEADER + "\n\n0,a,1,x\n", "line 4: output_tokens"),
        (HEADER + '0,"a\nb",1,1\n1,c,1,x\n', "line 4: output_tokens"),
        ("arrival_s,client,client,input_tokens,output_tokens\n", "line 1: 2 columns are named client"),
        (HEADER + "1700000000500,a,1,1\n", "line 2: arrival_s must be seconds"),
        (
            HEADER + "2678402,a,1,1\n0,a,1,1\n1,a,1,1\n",
            "line 2: arrival_s is 31 days after the start, more than 31",
        ),
        (HEADER + '0,"a,1,1\n', "line 2: unexpected end of data"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path, text, complaint):
    with pytest.raises(TraceError) as refusal:
        read_trace(written(tmp_path, text))
    assert complaint in str(refusal.value)


def test_every_bad_row_is_named_up_to_ten(tmp_path):
    bad = "".join(f"{n},a,1,none\n{n},a,1,1\n" for n in range(12))
    with pytest.raises(TraceError) as refusal:
        read_trace(written(tmp_path, HEADER + bad))
    told = str(refusal.value).splitlines()
    assert len(told) == 11
    assert [line.split(": ")[1] for line in told[:10]] == [f"line {line}" for line in range(2, 22, 2)]
    assert told[10].endswith("trace.csv: 2 more bad rows")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "0.5,a,10,20\n",
        HEADER.replace("\n", "\r\n") + "0.5,a,10,20\r\n",
        (HEADER + "0.5,a,10,20\n").replace(",", ";"),
        (HEADER + "0.5,a,10,20\n").replace(",", "\t"),
        HEADER.replace(",", ", ") + "0.5, a, 10, 20\n",
        HEADER + '"0.5","a","10","20"\n',
        HEADER + "0.5,a,10.0,20.0\n",
        HEADER + "0.5,a,10,20,,\n",
    ],
    ids=["BOM", "CRLF", "semicolons", "tabs", "spaces", "quotes", "floats", "trailing commas"],
)
def test_what_spreadsheets_and_tools_write_is_read_alike(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    assert read_trace(path).rows == (Row(0.5, "a", 10, 20),)


def test_seconds_since_1970_become_seconds_from_the_first(tmp_path):
    trace = read_trace(written(tmp_path, HEADER + "1700000003.5,a,1,1\n1700000001,b,1,1\n"))
    assert [row.arrival for row in trace.rows] == [0.0, 2.5]
    assert trace.seconds == 2.5


def test_time_stamps_become_seconds_from_the_first(tmp_path):
    rows = [
        "2023-11-16 18:17:04.0319600,3180,8",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16T18:18:04+00:00,110,27",
    ]
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n"
    trace = read_trace(written(tmp_path, text))
    assert [row.arrival for row in trace.rows] == pytest.approx([0.0, 0.052, 60.02004])
    assert [row.input_tokens for row in trace.rows] == [4808, 3180, 110]
    assert {row.client for row in trace.rows} == {ALONE}


def test_columns_are_found_by_the_names_given(tmp_path):
    path = written(tmp_path, "t,team,in,out,client\n1,blue,10,20,x\n")
    trace = read_trace(path, Columns(arrival="t", tenant="team", input="in", output="out"))
    assert trace.rows == (Row(1.0, "blue", 10, 20),)
    with pytest.raises(
        TraceError, match=r"line 1: the columns who are missing \(there are: t, team, in, out, client"
    ):
        read_trace(path, Columns(arrival="t", tenant="who", input="in", output="out"))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            "2023-11-16 18:17:03,1,1\nlater,1,1\n",
            "line 3: TIMESTAMP must be a time stamp like .*, not 'later'",
        ),
        ("2023-11-16 18:17:03,1,1\n2023-13-16 18:17:03,1,1\n", "line 3: TIMESTAMP must be a time stamp"),
        ("1.5,1,1\n2023-11-16 18:17:03,1,1\n", "line 3: TIMESTAMP must be seconds from the start"),
        ("soon,1,1\n", "line 2: TIMESTAMP must be"),
        (",1,1\n", "line 2: TIMESTAMP must be"),
    ],
)
def test_a_time_that_is_none_is_refused_with_its_line(tmp_path, rows, complaint):
    path = written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    with pytest.raises(TraceError, match=complaint):
        read_trace(path)


def test_a_trace_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"0,a,1,1\n" * 2_000 + b"0,\xff\xfe,1,1\n" + b"0,a,1,1\n" * 2_000)
    with pytest.raises(TraceError, match="line 2002: is no UTF-8 text"):
        read_trace(path)


def test_a_slice_has_what_arrives_before_its_end():
    trace = arena_like()
    slice_ = trace.first(150)
    assert slice_.rows == tuple(row for row in trace.rows if row.arrival < 150)
    assert slice_.seconds == 150
    with pytest.raises(TraceError, match="nothing arrives in the first 0 s"):
        trace.first(0)


def test_the_look_alike_is_the_same_for_a_seed_and_another_for_another():
    assert arena_like(3) == arena_like(3)
    assert arena_like(3) != arena_like(4)


@pytest.mark.skipif(not ARENA.exists(), reason=f"{ARENA} is not beside the checkout")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_look_alike_looks_like_the_arena_trace(seed):
    original, made = read_trace(ARENA), arena_like(seed)
    assert (len(made.rows), len(made.clients)) == (len(original.rows), len(original.clients)) == (1_500, 27)

    def counts(trace):
        return sorted(sum(row.client == client for row in trace.rows) for client in trace.clients)

    assert counts(made) == counts(original)
    for column in ("input_tokens", "output_tokens"):
        ours = [getattr(row, column) for row in made.rows]
        theirs = [getattr(row, column) for row in original.rows]
        assert math.isclose(mean(ours), mean(theirs), rel_tol=0.1), column
        assert math.isclose(median(ours), median(theirs), rel_tol=0.2), column
        assert (min(ours), max(ours)) <= (min(theirs), max(theirs) + 1)
    ratios = [demand_ratio(trace, PROFILES["papers"], 1) for trace in (made, original)]
    assert math.isclose(*ratios, rel_tol=0.1)


def test_capacity_is_that_of_an_engine_that_always_has_work():
    """One request at a time, 1 s a step: 10 tokens in and 5 out take 5 s, so 20 weighted tokens in 5 s."""
    profile = PROFILES["fast"].__class__(name="unit", a0=1.0, a1=0.0, a2=0.0, a3=0.0, max_num_seqs=1)
    trace = Trace("made", tuple(Row(0.0, "a", 10, 5) for _ in range(100)), 100.0)
    assert math.isclose(capacity(trace, profile, 1), 4.0, rel_tol=0.05)
    assert math.isclose(capacity(trace, profile, 4), 16.0, rel_tol=0.2)
    assert math.isclose(demand_ratio(trace, profile, 1), 2000 / 100 / 4, rel_tol=0.05)


def test_a_slower_engine_makes_demand_larger_in_proportion():
    trace = arena_like().first(150)
    ratio = demand_ratio(trace, PROFILES["fast"], 3)
    assert math.isclose(demand_ratio(trace, PROFILES["fast"].scaled(0.25), 3), 4 * ratio, rel_tol=1e-6)


def test_a_request_that_fits_no_engine_is_named():
    with pytest.raises(ValueError, match="20001 tokens never fit"):
        capacity(Trace("huge", (Row(0.0, "a", 1, 20_000),), 1.0), PROFILES["fast"], 1)
