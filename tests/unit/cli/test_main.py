"""The command: light to start, and plain about what is missing."""

import subprocess
import sys

import pytest

from equipoise_cli import main


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_loads_no_part():
    heavy = (
        "kopf",
        "kubernetes",
        "fastapi",
        "uvicorn",
        "matplotlib",
        "rich.progress",
        "cryptography",
        "aiohttp",
    )
    done = python(
        f"import sys, equipoise_cli.main\nprint([name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_extra_is_named(monkeypatch):
    def app():
        raise ModuleNotFoundError("No module named 'kopf'", name="kopf")

    monkeypatch.setattr(main, "app", app)
    monkeypatch.setattr(sys, "argv", ["equipoise", "operator", "run"])
    with pytest.raises(SystemExit, match=r"equipoise operator needs kopf: .*equipoise\[operator\]"):
        main.main()


def test_crds_outside_a_checkout_says_so(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main.app, ["crds"])
    assert result.exit_code == 1
    assert "no checkout of equipoise" in str(result.exception or result.output)


def test_a_subcommands_status_is_the_commands():
    done = python("from equipoise_cli.main import main; main()", "sidecar", "drain")
    assert done.returncode == 2
    assert "EQUIPOISE_STATE_DIR" in done.stderr


@pytest.mark.parametrize("command", ["run", "drain"])
def test_every_flag_of_the_sidecar_says_what_it_is_for(command):
    import typer

    group = typer.main.get_command(main.app)
    flags = [flag for flag in group.commands["sidecar"].commands[command].params if flag.name != "help"]
    assert flags
    for flag in flags:
        assert "[EQUIPOISE_" in (flag.help or ""), flag.name
