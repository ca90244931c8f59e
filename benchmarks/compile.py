"""From the operator's start to its first compile, at 1,000 and 10,000 tenants, each with a Secret, on a real API server.

    python benchmarks/compile.py [--sizes 1000,10000] [--write]

Starts a control plane on loopback, installs the chart's RBAC, creates the objects, then starts the operator as a process
under the chart's ServiceAccount, three times a size. Times are the operator's own log lines after the moment of its start;
CPU and memory are read from /proc when the first compile is done. `--write` puts the table into results/compile.md.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import described, machine

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.sidecar_config import HmacKey
from equipoise_api.tenant import Tenant
from equipoise_cluster import Cluster, ConsoleProgress, ControlPlane, find
from equipoise_operator import credentials, objects
from equipoise_operator.compile import Sources, compile_policy
from equipoise_operator.kube import Kube, path

ROOT = Path(__file__).parents[1]
INSTALL = "bench"
CONCURRENCY = 64
REPEATS = 3


@dataclass
class Start:
    """One start of the operator, seconds after its process was started."""

    listening: float
    observed: float
    compiled: float
    cpu: float
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    facts = machine("benchmarks.compile")
    facts["command"] = f"python benchmarks/compile.py --sizes {arguments.sizes} --write"
    with ControlPlane.start(find(progress=ConsoleProgress())) as cluster:
        prepare(cluster)
        lines = [row(size, pure(size), start(cluster, size)) for size in sizes]
    text = report(lines, facts)
    print(text)
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "compile.md").write_text(text)


def prepare(cluster: Cluster) -> None:
    for crd in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", f"--filename={crd}")
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")


def start(cluster: Cluster, size: int) -> list[Start]:
    """Fill a namespace of its own and start the operator on it."""
    namespace = cluster.create_namespace(f"bench-{size}")
    rbac = cluster.helm(
        *("template", INSTALL, str(ROOT / "charts" / "equipoise"), f"--namespace={namespace}"),
        *("--show-only=templates/rbac.yaml", "--show-only=templates/serviceaccount.yaml"),
        *("--set", f"watchNamespaces={{{namespace}}}", "--set", f"fullnameOverride={INSTALL}"),
    )
    cluster.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=rbac)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    asyncio.run(fill(namespace, size))
    kubeconfig = cluster.kubeconfig_for(INSTALL, namespace=namespace)
    measured = []
    for number in range(REPEATS):
        measured.append(start_once(namespace, size, kubeconfig))
        print(f"{size} tenants, start {number + 1}: {measured[-1]}", file=sys.stderr)
    return measured


async def fill(namespace: str, size: int) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)
    async with Kube(credentials.load) as kube:

        async def create(where: str, body: dict[str, Any]) -> None:
            async with slots:
                await kube.create(where, body, deadline=120)

        await create(path(names.API_VERSION, names.FAIRNESS_POLICIES, namespace), policy(namespace))
        tenants = path(names.API_VERSION, names.TENANTS, namespace)
        secrets = path("v1", "secrets", namespace)
        await asyncio.gather(
            *(create(tenants, tenant(namespace, number)) for number in range(size)),
            *(create(secrets, secret(namespace, number)) for number in range(size)),
        )


def start_once(namespace: str, size: int, kubeconfig: Path) -> Start:
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "EQUIPOISE_INSTALL": INSTALL,
        "EQUIPOISE_CLASS_NAME": INSTALL,
        "EQUIPOISE_WATCH_NAMESPACES": namespace,
        "EQUIPOISE_HTTP_PORT": "0",
        "EQUIPOISE_ISSUER_PORT": "0",
        "EQUIPOISE_HOST": "127.0.0.1",
        "POD_NAME": "operator",
        "POD_NAMESPACE": namespace,
    }
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "equipoise_operator"], env=os.environ | environment, stderr=log, stdout=log
        )
        try:
            while not (compiled := said(log.name, "compiled")):
                if process.poll() is not None or time.time() - began > 600:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.01)
            cpu, megabytes = usage(process.pid)
            if compiled["tenants"] != size:
                raise SystemExit(f"compiled {compiled['tenants']} tenants of {size}")
            times = [said(log.name, event)["at"] - began for event in ("listening", "observed", "compiled")]
        finally:
            process.terminate()
            process.wait(30)
    return Start(*times, cpu, megabytes)


def said(log: str, event: str) -> dict[str, Any]:
    for line in Path(log).read_text().splitlines():
        if f'"event": "{event}"' in line:
            entry: dict[str, Any] = json.loads(line)
            return entry | {"at": datetime.fromisoformat(entry["timestamp"]).timestamp()}
    return {}


def usage(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return cpu, kilobytes / 1024


def pure(size: int) -> tuple[float, int]:
    """Return the CPU seconds of the compile step alone (best of three), and the bytes that it makes."""
    secrets = {}
    for number in range(size):
        body = secret("team", number)
        metadata = {"uid": f"s-{number}", "resourceVersion": "1", "namespace": "team"}
        parsed = objects.secret(body | {"metadata": body["metadata"] | metadata}).object
        assert parsed is not None
        secrets["team", parsed.name] = parsed
    sources = Sources(
        policy=FairnessPolicy.model_validate(policy("team")),
        tenants=[Tenant.model_validate(tenant("team", number)) for number in range(size)],
        secrets=secrets,
        hmac_keys=[HmacKey(id="20260101T000000Z", secret="a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=")],
    )
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        compiled = compile_policy(sources)
        best = min(best, time.process_time() - began)
    return best, len(compiled.body)


def policy(namespace: str) -> dict[str, Any]:
    target = {"selector": {"matchLabels": {"app": "vllm"}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "FairnessPolicy",
        "metadata": {"name": "policy", "namespace": namespace},
        "spec": {"className": INSTALL, "target": target},
    }


def tenant(namespace: str, number: int) -> dict[str, Any]:
    identity = {"apiKeys": [{"secretName": f"keys-{number}"}]}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Tenant",
        "metadata": {"name": f"tenant-{number}", "namespace": namespace},
        "spec": {"weight": 1 + number % 9, "identity": identity, "slo": {"ttftMilliseconds": 800}},
    }


def secret(namespace: str, number: int) -> dict[str, Any]:
    data = {"key": base64.b64encode(f"sk-{number:040}".encode()).decode()}
    labels = {names.CREDENTIAL_LABEL: "true"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"keys-{number}", "namespace": namespace, "labels": labels},
        "data": data,
    }


def row(size: int, alone: tuple[float, int], starts: list[Start]) -> list[str]:
    median = lambda name: statistics.median(getattr(each, name) for each in starts)  # noqa: E731
    begun = median("listening")
    return [
        f"{size:,}",
        f"{1000 * alone[0]:.0f} ms",
        f"{alone[1] / 1e6:.2f} MB",
        f"{begun:.2f} s",
        f"{median('observed') - begun:.2f} s",
        f"{median('compiled') - median('observed'):.2f} s",
        f"{median('cpu'):.1f} s",
        f"{median('megabytes'):.0f} MB",
    ]


def report(lines: list[list[str]], facts: dict[str, str]) -> str:
    head = [
        "Tenants",
        "Compile alone, CPU",
        "Configuration",
        "Process start",
        "then all seen",
        "then leading and compiled",
        "CPU until then",
        "Memory",
    ]
    table = [head, ["---:"] * len(head), *lines]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    return f"""# Start to first compile

{described(facts)}

{text}

Medians of {REPEATS} starts, each on a namespace with that many Tenants and as many labelled Secrets, on a real API server on
the same machine. "Process start" is Python's and the libraries' import. "All seen" means that every kind was listed and each
of its objects is in the store.
"""


if __name__ == "__main__":
    main()
