"""What a result was measured on, and with which command: stands at the head of every committed result."""

import os
import sys
from pathlib import Path


def machine(module: str) -> dict[str, str]:
    """Describe this machine and this run of `python -m module`."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(":")[2].strip(),
        "cpus": str(len(models)),
        "python": sys.version.split()[0],
        "load": f"{os.getloadavg()[0]:.1f}",
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
    }


def described(facts: dict[str, str]) -> str:
    """Return one sentence of it."""
    return (
        f"`{facts['command']}` on {facts['cpus']} x {facts['cpu']}, Python {facts['python']}, "
        f"load average at the start {facts['load']}."
    )
