"""The command `equipoise`: one door to every part.

Each part's `cli` module is light; what a subcommand needs is imported when it runs, so that an image with one extra
installed still answers `--help`, and a missing extra is named rather than traced.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from equipoise_api import cli as api_cli
from equipoise_cluster import cli as cluster_cli
from equipoise_demo import cli as demo_cli
from equipoise_operator import cli as operator_cli
from equipoise_sidecar import cli as sidecar_cli
from equipoise_simulator import cli as simulator_cli


def exit_with(status: object, **_: object) -> None:
    """End the process with what a subcommand returned, where that is a number."""
    if isinstance(status, int):
        raise typer.Exit(status)


app = typer.Typer(
    no_args_is_help=True,
    result_callback=exit_with,
    pretty_exceptions_enable=False,
    help="Makes shared vLLM fair on Kubernetes.",
)


@app.callback(invoke_without_command=True)
def root(
    *, show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    """Say what the command is, or its version."""
    if show_version:
        typer.echo(version("equipoise"))
        raise typer.Exit


@app.command()
def crds(
    *,
    check: Annotated[bool, typer.Option(help="Write nothing; fail if a file is stale.")] = False,
) -> None:
    """Write the CustomResourceDefinitions and the API reference from the types; call it in a checkout."""
    root = Path.cwd()
    if not (root / "crds").is_dir():
        sys.exit(f"{root} is no checkout of equipoise: it has no folder crds")
    if check:
        stale = api_cli.stale(root)
        for path in stale:
            typer.echo(f"{path} is stale: run `equipoise crds`", err=True)
        raise typer.Exit(bool(stale))
    for path in api_cli.write(root):
        typer.echo(f"wrote {path}")


app.command()(simulator_cli.simulate)
app.command()(simulator_cli.engine)
app.command()(simulator_cli.calibrate)
app.command()(demo_cli.demo)

operator = typer.Typer(no_args_is_help=True, help="The operator.")
app.add_typer(operator, name="operator")
operator.command()(operator_cli.run)

sidecar = typer.Typer(no_args_is_help=True, help="The scheduling sidecar.")
app.add_typer(sidecar, name="sidecar")
sidecar.command()(sidecar_cli.run)
sidecar.command()(sidecar_cli.drain)

cluster = typer.Typer(no_args_is_help=True, help="The Kubernetes control plane that tests and demo use.")
app.add_typer(cluster, name="cluster")
cluster.command()(cluster_cli.build)
cluster.command()(cluster_cli.up)
cluster.command()(cluster_cli.clean)


def main() -> None:
    """Run the command; a missing extra becomes one line that says how to install it."""
    try:
        app()
    except ModuleNotFoundError as error:
        part = next((word for word in sys.argv[1:] if not word.startswith("-")), "this")
        extra = {
            "simulate": "simulator",
            "calibrate": "simulator",
            "engine": "simulator",
            "cluster": "demo",
        }.get(part, part)
        sys.exit(f"equipoise {part} needs {error.name}: install it with `pip install 'equipoise[{extra}]'`")
