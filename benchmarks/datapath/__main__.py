"""Data path: CPU a streamed chunk and added time to the first token, against nginx and LiteLLM in the same run.

    .venv/bin/python -m benchmarks.datapath            writes benchmarks/results/datapath.{md,json}

Everything on loopback, engine and client on the same cores. Each proxy runs each load several times, in turns, so that
what else the machine does falls on all of them; the table has the median of the rounds.
"""

import argparse
import http.client
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop
from benchmarks.datapath import load
from benchmarks.datapath.load import Load
from benchmarks.datapath.proxies import PROXIES, Proxy
from benchmarks.machine import described, machine
from benchmarks.sidecar import running
from rich.progress import Progress

from equipoise_cluster.ports import choose

ROOT = Path(__file__).parents[2]
LOADS = {
    "paced": Load(streams=8, chunks=40, seconds=10, interval_ms=25),
    "saturated": Load(streams=8, chunks=400, seconds=5, interval_ms=0),
}
WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Round:
    """One proxy under one load, once."""

    proxy: str
    load: str
    chunks: int
    chunks_per_second: float
    cpu_us_per_chunk: float
    cpu_cores: float
    ttft_ms_p50: float
    ttft_ms_p99: float


def measure(proxy: Proxy, name: str) -> Round:
    """Run one load against one proxy."""
    wanted = LOADS[name]
    before = proxy.cpu_seconds()
    seen = uvloop.run(load.run(wanted, proxy.port, proxy.headers))
    cpu = proxy.cpu_seconds() - before
    cuts = statistics.quantiles(seen.first, n=100)
    return Round(
        proxy=proxy.name,
        load=name,
        chunks=seen.chunks,
        chunks_per_second=seen.chunks / seen.seconds,
        cpu_us_per_chunk=cpu / seen.chunks * 1e6,
        cpu_cores=cpu / seen.seconds,
        ttft_ms_p50=cuts[49] * 1000,
        ttft_ms_p99=cuts[98] * 1000,
    )


def set_pace(engine: int, interval_ms: float) -> None:
    """Tell the engine how fast to stream."""
    connection = http.client.HTTPConnection("127.0.0.1", engine)
    connection.request("PUT", "/pace", json.dumps({"interval_ms": interval_ms}))
    connection.getresponse().read()
    connection.close()


def run(names: list[str], rounds: int) -> list[Round]:
    """Start the engine and every proxy, and measure them in turns."""
    measured = []
    with TemporaryDirectory() as place, ExitStack() as stack, Progress() as progress:
        (engine,) = choose(1)
        command = [sys.executable, "-m", "benchmarks.datapath.engine", str(engine)]
        log, ready = Path(place, "engine.log"), f"http://127.0.0.1:{engine}/health"
        stack.enter_context(running(command, log, ready))
        proxies = []
        for name in names:
            folder = Path(place, name)
            folder.mkdir()
            progress.console.print(f"starting {name}")
            proxies.append(stack.enter_context(PROXIES[name](engine, folder)))
        task = progress.add_task("measuring", total=rounds * len(LOADS) * len(proxies))
        for name, wanted in LOADS.items():
            set_pace(engine, wanted.interval_ms)
            warm_up = Load(wanted.streams, wanted.chunks, WARM_UP_SECONDS, wanted.interval_ms)
            for proxy in proxies:
                uvloop.run(load.run(warm_up, proxy.port, proxy.headers))
            for _ in range(rounds):
                for proxy in proxies:
                    measured.append(measure(proxy, name))
                    progress.advance(task)
    return measured


def median(measured: list[Round], proxy: str, load_name: str, field: str) -> float:
    """Return the median over the rounds."""
    return statistics.median(
        float(getattr(r, field)) for r in measured if r.proxy == proxy and r.load == load_name
    )


def report(measured: list[Round], names: list[str], rounds: int, facts: dict[str, str]) -> str:
    """Write the tables in Markdown."""
    lines = [
        "# Data path: what a proxy costs a streamed chunk",
        "",
        (
            f"{described(facts)} Engine, client and proxy share the cores. Median of {rounds} rounds, the proxies "
            "in turns."
        ),
        "",
    ]
    for name, wanted in LOADS.items():
        pace = f"a chunk each {wanted.interval_ms:g} ms" if wanted.interval_ms else "as fast as it goes"
        lines += [
            f"## {name.capitalize()}: {wanted.streams} streams of {wanted.chunks} chunks, {pace}",
            "",
            "| proxy | CPU a chunk, us | x nginx | chunks/s | x direct | TTFT p50 / p99, ms | added p50 / p99, ms |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for proxy in names:
            row = {
                field: median(measured, proxy, name, field)
                for field in ("cpu_us_per_chunk", "chunks_per_second", "ttft_ms_p50", "ttft_ms_p99")
            }
            direct = {field: median(measured, "direct", name, field) for field in row}
            times = "-"
            if proxy != "direct" and "nginx" in names:
                times = f"{row['cpu_us_per_chunk'] / median(measured, 'nginx', name, 'cpu_us_per_chunk'):.1f}"
            cpu = "-" if proxy == "direct" else f"{row['cpu_us_per_chunk']:.1f}"
            added = [row[f] - direct[f] for f in ("ttft_ms_p50", "ttft_ms_p99")]
            lines.append(
                f"| {proxy} | {cpu} | {times} | {row['chunks_per_second']:,.0f} "
                f"| {row['chunks_per_second'] / direct['chunks_per_second']:.3f} "
                f"| {row['ttft_ms_p50']:.2f} / {row['ttft_ms_p99']:.2f} "
                + ("| - |" if proxy == "direct" else f"| {added[0]:.2f} / {added[1]:.2f} |")
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", default=",".join(PROXIES), help="comma-separated; direct is always run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    wanted = arguments.proxies.split(",")
    if unknown := set(wanted) - set(PROXIES):
        parser.error(f"--proxies: {', '.join(sorted(unknown))}: not one of {', '.join(PROXIES)}")
    names = [name for name in PROXIES if name == "direct" or name in wanted]
    facts = machine("benchmarks.datapath")
    measured = run(names, arguments.rounds)
    text = report(measured, names, arguments.rounds, facts)
    print(text)
    (arguments.out / "datapath.md").write_text(text)
    document = {"machine": facts, "loads": {n: asdict(w) for n, w in LOADS.items()}}
    document["measured"] = [asdict(r) for r in measured]
    (arguments.out / "datapath.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
