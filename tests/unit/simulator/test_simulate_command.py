"""`equipoise simulate`: what it prints and writes, and what it says of options that make no sense."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise_api.policy import Algorithm
from equipoise_cli.main import app
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_simulator import command
from equipoise_simulator.page import page
from equipoise_simulator.profiles import PROFILES, find_profile
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import SUITES, suite
from equipoise_simulator.table import MOST_TENANTS, RUN_COLUMNS, text

TRACE = "at,who,prompt,answer\n" + "".join(
    f"{n / 2},team-{n % 3},{200 + 5 * n},{300 + n % 7}\n" for n in range(60)
)
COLUMNS = [
    "--arrival-column",
    "at",
    "--tenant-column",
    "who",
    "--input-column",
    "prompt",
    "--output-column",
    "answer",
]

RUN_KEYS = {
    "scheduler",
    "requests",
    "tokens_per_second",
    "jain",
    "service_difference",
    "accumulated_difference_max",
    "bound",
    "queue_delay_seconds",
    "ttft_seconds",
    "tpot_seconds",
    "slo_attainment",
    "gpu_utilisation",
    "wasted_tokens",
    "tenants",
}
TENANT_KEYS = {
    "requests",
    "tokens_per_second",
    "service_difference",
    "accumulated_difference_max",
    "gpu_utilisation",
    "queue_delay_seconds",
    "ttft_seconds",
    "tpot_seconds",
    "slo_attainment",
    "wasted_tokens",
}


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return str(path)


def equipoise(*arguments):
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_json_holds_a_run_a_scheduler_with_every_measure_for_all_and_for_each_tenant(trace):
    done = equipoise(
        "--trace", trace, *COLUMNS, "--scheduler", "FCFS", "--scheduler", "VTC:oracle", "--format", "json"
    )
    assert done.exit_code == 0, done.output
    runs = json.loads(done.stdout)["runs"]
    assert [run["scheduler"] for run in runs] == ["FCFS", "VTC:oracle"]
    for run in runs:
        assert run.keys() >= RUN_KEYS
        assert set(run["service_difference"]) == {"max", "mean", "variance"}
        for key in ("queue_delay_seconds", "ttft_seconds", "tpot_seconds"):
            assert set(run[key]) == {"mean", "p50", "p90", "p99"}
        assert run["requests"] == {
            "arrived": 60,
            "finished": 60,
            "rejected": {},
            "cancelled": 0,
            "expired": 0,
        }
        assert set(run["tenants"]) == {"team-0", "team-1", "team-2"}
        assert all(tenant.keys() >= TENANT_KEYS for tenant in run["tenants"].values())
    assert runs[0]["bound"] is None
    assert runs[1]["bound"]["met"]


@pytest.mark.parametrize("metric", ["token", "artifact"])
@pytest.mark.parametrize("scheduler", ["FCFS", "Equipoise", "RPM:limit=30", "FairServe:userLimit=50"])
def test_the_tenants_figures_add_up_to_the_runs(scheduler, metric):
    result = simulate(suite("mixed_slo").first(90), scheduler)
    run = result.document(metric)
    tenants = run["tenants"].values()

    def total(key):
        return sum(tenant[key] for tenant in tenants)

    requests = run["requests"]
    assert requests["arrived"] == sum(
        (
            requests["finished"],
            requests["cancelled"],
            requests["expired"],
            *requests["rejected"].values(),
        )
    )
    for key in ("arrived", "finished", "cancelled", "expired"):
        assert requests[key] == sum(tenant["requests"][key] for tenant in tenants), key
    for reason, count in requests["rejected"].items():
        assert count == sum(tenant["requests"]["rejected"].get(reason, 0) for tenant in tenants)
    for key in ("tokens_per_second", "gpu_utilisation", "wasted_tokens"):
        assert total(key) == pytest.approx(run[key]), key
    means = [tenant["service_difference"]["mean"] for tenant in tenants]
    assert sum(means) == pytest.approx(run["service_difference"]["mean"])
    furthest = max(tenant["accumulated_difference_max"] for tenant in tenants)
    assert furthest == run["accumulated_difference_max"] == pytest.approx(result.accumulated(metric))


def test_the_table_has_a_line_a_scheduler_and_a_line_a_tenant(trace):
    done = equipoise("--trace", trace, *COLUMNS, "--scheduler", "FCFS", "--scheduler", "RPM:limit=10")
    assert done.exit_code == 0, done.output
    assert re.search(r"^FCFS .* 60 +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^RPM:limit=10 .* 30 +30 ", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^team-[012] ", done.stdout, re.MULTILINE)) == 6


def test_the_metric_the_seed_and_the_gate_reach_the_run(trace):
    def run(*options):
        done = equipoise("--trace", trace, *COLUMNS, "--scheduler", "VTC:noisy", "--format", "json", *options)
        return json.loads(done.stdout)["runs"][0]

    plain, artifact = run(), run("--metric", "artifact")
    assert plain["accumulated_difference_max"] != artifact["accumulated_difference_max"]
    assert run("--seed", "1")["prediction_error_tokens"] != plain["prediction_error_tokens"]
    assert (plain["gate"], run("--gate", "reserve")["gate"]) == ("peak", "reserve")
    assert (plain["profile"], run("--profile", "papers")["profile"]) == ("fast", "papers")
    assert run("--seconds", "10")["requests"]["arrived"] == 20


def test_a_trace_without_tenants_is_one_or_split(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.0319600,30,8\n"
        "2023-11-16 18:17:03.9799600,40,10\n"
        "2023-11-16 18:17:05,50,12\n"
    )
    one = json.loads(equipoise("--trace", str(path), "--format", "json").stdout)["runs"][0]
    assert (one["scheduler"], one["requests"]["arrived"], list(one["tenants"])) == (
        Algorithm().type,
        3,
        ["tenant"],
    )
    many = json.loads(equipoise("--trace", str(path), "--split", "5", "--format", "json").stdout)["runs"][0]
    assert all(re.fullmatch(r"tenant-\d", name) for name in many["tenants"])


def test_a_page_needs_nothing_else_and_shows_every_run(trace, tmp_path):
    report = tmp_path / "report.html"
    done = equipoise(
        "--trace",
        trace,
        *COLUMNS,
        "--scheduler",
        "FCFS",
        "--scheduler",
        "VTC<oracle",
        "--output",
        str(report),
    )
    assert done.exit_code == 1
    done = equipoise(
        "--trace", trace, *COLUMNS, "--scheduler", "FCFS", "--scheduler", "VTC:oracle", "--format", "html",
        "--output", str(report),
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (0, "")
    written = report.read_text()
    assert written.count("<svg") == 4
    assert "FCFS" in written
    assert "VTC:oracle" in written
    assert not re.findall(r'(?:src|href)="(?!#)', written)


def test_names_from_a_trace_cannot_break_the_page():
    from equipoise_simulator.traces import Row, Trace
    from equipoise_simulator.workload import from_trace

    rows = tuple(Row(n, "<script>$x_$", 10, 10) for n in range(3))
    result = simulate(from_trace(Trace("<b>.csv", rows, 3.0)), "FCFS")
    written = page([result], [result.document()])
    assert "<script>" not in written
    assert "<b>" not in written


def test_a_page_is_the_same_in_another_process(trace, tmp_path):
    pages = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"{hash_seed}.html"
        subprocess.run(
            [
                *(Path(sys.executable).parent / "equipoise", "simulate", "--trace", trace, *COLUMNS),
                *("--scheduler", "Equinox", "--scheduler", "FairServe"),
                *("--format", "html", "--output", out),
            ],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
        )
        pages.append(out.read_bytes())
    assert pages[0] == pages[1]


def test_a_page_has_a_row_for_each_of_a_hundred_tenants_and_says_which_have_a_box():
    from equipoise_simulator.traces import Row, Trace
    from equipoise_simulator.workload import from_trace

    rows = tuple(Row(n / 10, f"tenant-{n % 100:02d}", 10, 10) for n in range(200))
    result = simulate(from_trace(Trace("many.csv", rows, 20.0)), "FCFS")
    written = page([result], [result.document()])
    assert all(f"<td>tenant-{n:02d}</td>" in written for n in range(100))
    assert "the 24 of 100 tenants that asked for the most" in written
    assert "mean of 92 more" in written  # text is text in the plots


@pytest.mark.filterwarnings("error")
def test_a_name_in_any_script_is_drawn_without_a_warning():
    from equipoise_simulator.traces import Row, Trace
    from equipoise_simulator.workload import from_trace

    rows = tuple(
        Row(n / 10, ("\N{CJK UNIFIED IDEOGRAPH-540D}", "\x1b[31mred")[n % 2], 10, 10) for n in range(9)
    )
    result = simulate(from_trace(Trace("t.csv", rows, 1.0)), "FCFS")
    written = page([result], [result.document()])
    assert "\x1b" not in written
    assert "\N{CJK UNIFIED IDEOGRAPH-540D}</text>" in written


def test_a_name_cannot_command_the_terminal_nor_break_the_table():
    from equipoise_simulator.traces import Row, Trace
    from equipoise_simulator.workload import from_trace

    names = ["\x1b[2Jgone", "two\nlines", "n" * 500, "\N{CJK UNIFIED IDEOGRAPH-540D}" * 2]
    rows = tuple(Row(n / 10, names[n % 4], 10, 10) for n in range(8))
    shown = text([simulate(from_trace(Trace("t.csv", rows, 1.0)), "FCFS").document()])
    assert "\x1b" not in shown
    lines = shown.splitlines()[-4:]
    assert any(line.startswith("two\\nlines") for line in lines)
    assert max(map(len, lines)) < 200
    # a wide character takes two cells
    ends = {len(line) + line.count("\N{CJK UNIFIED IDEOGRAPH-540D}") for line in lines}
    assert len(ends) == 1


def test_a_table_fits_the_terminal_as_far_as_a_column_does(trace):
    result = simulate(suite("overload").first(10), "FCFS")
    document = result.document()
    for width in (120, 80, 40):
        lines = [
            line for line in text([document, document], width).splitlines()[2:] if "by tenant" not in line
        ]
        assert max(map(len, lines)) <= width
    narrow = text([document], 60)
    assert len(re.findall(r"^scheduler ", narrow, re.MULTILINE)) > 1
    assert all(title in narrow for title, _ in RUN_COLUMNS)


def test_what_was_rejected_is_told_with_its_reason(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("arrival,tenant,input_tokens,output_tokens\n0,a,5000,10\n1,a,10,10\n2,b,10,10\n")
    done = equipoise("--trace", str(path), "--scheduler", "FCFS")
    assert "FCFS rejected 1 never-fits\n" in done.stdout


def test_a_report_that_cannot_be_written_is_said_before_the_run(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", None)
    for output, complaint in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "r.html", "there is no folder"),
        (Path(trace), "would overwrite what is read"),
    ):
        done = equipoise("--trace", trace, *COLUMNS, "--output", str(output))
        assert done.exit_code == 1
        assert complaint in str(done.exception) + done.output
    assert Path(trace).read_text() == TRACE


def test_a_reader_that_has_seen_enough_is_no_error(trace):
    command_line = [Path(sys.executable).parent / "equipoise", "simulate", "--trace", "-", *COLUMNS]
    with subprocess.Popen(
        [*command_line, "--format", "json", "--scheduler", "FCFS"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        process.stdin.write(TRACE.encode())
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_terminal_that_cannot_show_a_name_costs_no_report(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival,tenant,input_tokens,output_tokens\n0,caf\N{LATIN SMALL LETTER E WITH ACUTE},9,9\n1,b,9,9\n"
    )
    done = subprocess.run(
        [Path(sys.executable).parent / "equipoise", "simulate", "--trace", path, "--scheduler", "FCFS"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"\ncaf\\xe9 " in done.stdout


def test_a_gate_that_the_engine_does_not_use_is_named(trace):
    def told(*options):
        return equipoise("--suite", "overload", "--seconds", "2", "--scheduler", "FCFS", *options).stderr

    assert "profile papers has the VTC artifact's own gate" in told("--gate", "reserve")
    assert told("--gate", "reserve", "--profile", "fast") == told("--gate", "peak") == told() == ""


def test_two_policies_of_one_name_can_be_told_apart(trace, tmp_path):
    for file, kind in (("a.yaml", "VTC"), ("b.yaml", "VTC")):
        (tmp_path / file).write_text(
            "kind: FairnessPolicy\nmetadata: {name: chat}\n"
            f"spec: {{target: {{selector: {{matchLabels: {{app: vllm}}}}}}, algorithm: {{type: {kind}}}}}\n"
        )
    policies = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    labels = [contender.label for contender in command.contenders_of((), policies, None)]
    assert labels == [f"chat (VTC) of {policy}" for policy in policies]
    assert [each.label for each in command.contenders_of(("VTC",), policies[:1], None)] == [
        "chat (VTC)",
        "VTC",
    ]


def test_help_names_every_suite_and_scheduler():
    shown = re.sub(r"[\s│]+", " ", equipoise("--help").stdout)
    for name in (*SUITES, *SCHEDULERS):
        assert re.sub(r"exfairs_[2-4]", "exfairs_1", name) in shown, name


def test_many_tenants_are_shown_in_part():
    result = simulate(suite("interactions").first(2), "FCFS")
    shown = text([result.document()])
    more = len(result.series) - MOST_TENANTS
    assert f"({more} more in JSON)" in shown


def test_tenants_that_a_policy_does_not_know_are_named(trace, tmp_path):
    metadata = "metadata: {name: team-1, namespace: inference}"
    (tmp_path / "policy.yaml").write_text(
        "kind: FairnessPolicy\nmetadata: {name: chat, namespace: inference}\n"
        "spec: {target: {selector: {matchLabels: {app: vllm}}}, algorithm: {type: VTC}}\n"
        f"---\nkind: Tenant\n{metadata}\nspec: {{}}\n"
    )
    done = equipoise("--trace", trace, *COLUMNS, "--policy", str(tmp_path / "policy.yaml"))
    assert done.exit_code == 0, done.output
    told = (
        "chat (VTC): 2 of 3 tenants are no Tenants of the policy and share the default tenant: team-0, team-2"
    )
    assert told in done.stderr
    assert re.search(r"^default .* 40 ", done.stdout, re.MULTILINE)


def test_a_profile_is_found_by_name_or_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**PROFILES["fast"].document(), "name": "mine", "a0": 0.5}))
    assert find_profile("fast") is PROFILES["fast"]
    assert (find_profile(str(path)).name, find_profile(str(path)).a0) == ("mine", 0.5)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("[]", "a profile must be a JSON object"),
        ("{", "mine.json"),
        ('{"name": "x"}', "a profile needs a0; it has name"),
        ('{"name": "x", "a0": "1", "a1": 0, "a2": 0, "a3": 0}', "a0='1' must be a number"),
        (
            '{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": 0, "kv_tokens": 1.5}',
            "kv_tokens=1.5 must be a whole number",
        ),
        ('{"name": "x", "a0": 0, "a1": 0, "a2": 0, "a3": 0}', "a0 must be above 0"),
        (
            '{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": 0, "decode_steps": [[1, "2"]]}',
            "decode_steps=[[1, '2']] must be a list of pairs [sequences, seconds]",
        ),
        (
            '{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": 0, "decode_steps": [[2, 0.1], [1, 0.1]]}',
            "decode_steps must rise in sequences, which start at 1",
        ),
        (
            '{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": 0, "decode_steps": [[1, 0]]}',
            "and have seconds above 0",
        ),
        ('{"name": "x", "a0": NaN, "a1": 0, "a2": 0, "a3": 0}', "all finite"),
        ('{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": Infinity}', "all finite"),
        (
            '{"name": "x", "a0": 1, "a1": 0, "a2": 0, "a3": 0, "loop": "sglang"}',
            "loop='sglang' must be vllm or artifact",
        ),
    ],
)
def test_a_profile_that_cannot_be_read_is_refused_by_field(tmp_path, document, complaint):
    path = tmp_path / "mine.json"
    path.write_text(document)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        find_profile(str(path))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing to run: give --trace FILE or --suite NAME"),
        (["--suite", "real"], "name its file with --trace"),
        (["--suite", "overload", "--trace", "TRACE"], "suite overload makes its own requests"),
        (["--suite", "overload", "--split", "3"], "leave out --suite"),
        (["--trace", "TRACE"], "the columns arrival_s, input_tokens, output_tokens are missing (there are: at, who, prompt, answer)"),
        (["--trace", "/nowhere.csv"], "No such file"),
        (["--suite", "overload", "--tenants", "."], "--tenants are a policy's"),
        (["--suite", "overload", "--profile", "swift"], "profile 'swift' is unknown; there are fast, large, papers, slow"),
        (["--suite", "overload", "--scheduler", "SJF"], "scheduler 'SJF' is unknown: use one of FCFS"),
        (["--suite", "overload", "--seconds", "0"], "seconds=0.0 must be above 0"),
        (["--suite", "overload", "--load", "2"], "only mixed_slo has one"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_ends_with_one_line(trace, arguments, complaint):
    done = equipoise(*[trace if word == "TRACE" else word for word in arguments])
    assert done.exit_code == 1
    assert complaint in str(done.exception or "") + done.output
    assert "Traceback" not in done.output


def test_a_bar_shows_progress_only_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with command._progress(2) as tell:
        assert tell(0, "VTC") is None
    monkeypatch.setattr(command.sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with command._progress(2) as tell:
        tell(0, "VTC:oracle")(0.5)
    assert "VTC:oracle" in command.sys.stderr.getvalue()
