"""The engines of the demo and the sidecars before them: local processes, a loopback address a pair, as a pod would have.

Every process ends with this one, however it ends.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from equipoise_api.names import ADMIN_PORT, DATA_PORT, HEALTH_PORT
from equipoise_cluster.ports import is_free
from equipoise_cluster.processes import Process
from equipoise_demo.places import MODEL, NAMESPACE, RELEASE, DemoError

if TYPE_CHECKING:
    from collections.abc import Callable

    from equipoise_cluster import Progress
    from equipoise_simulator.profiles import Profile

START_SECONDS = 120.0
STOP_SECONDS = 5.0
DCGM_PORT = 9400
DCGM_SECONDS = 1.0
"""Between two samples of a stand-in's GPU."""


class EngineProcess(Protocol):
    """An engine on a Unix socket."""

    @property
    def uds(self) -> Path | None:
        """Its socket."""

    def wait_ready(self) -> None:
        """Return when it answers; an error with the end of its log otherwise."""

    def stop(self) -> None:
        """End it."""


@dataclass(frozen=True)
class StandInProcess:
    """`equipoise engine` as a process of its own."""

    process: Process
    uds: Path

    @classmethod
    def launch(
        cls, uds: Path, log: Path, profile: Profile, speed: float, *, pod: str, address: str
    ) -> StandInProcess:
        """Start it and return at once. A pod's GPU metrics are at its address."""
        command = Path(sys.executable).with_name("equipoise")
        if not command.exists():
            raise DemoError(
                f"{command} is missing: install the project into the environment of {sys.executable}"
            )
        sizes = [f"--kv-tokens={profile.kv_tokens}", f"--max-model-len={profile.max_model_len}"]
        pace = [f"--profile={profile.name}", f"--speed={speed}"]
        serving = [f"--model={MODEL}", f"--uds={uds}", "--priority-scheduling"]
        gpu = [
            *(f"--dcgm-host={address}", f"--dcgm-port={DCGM_PORT}", f"--dcgm-seconds={DCGM_SECONDS}"),
            *(f"--dcgm-pod={pod}", f"--dcgm-namespace={NAMESPACE}"),
        ]
        return cls(Process([command, "engine", *pace, *sizes, *serving, *gpu], log, env=environment()), uds)

    def wait_ready(self) -> None:
        """Return when the socket is there."""
        until("the engine listens", self.uds.exists, [self.process])

    def stop(self) -> None:
        """End it."""
        self.process.stop(STOP_SECONDS)


class Pair:
    """One engine and the sidecar before it, at a pod's address."""

    def __init__(self, pod: PodPlace, engine: Path, issuer_url: str, ca_file: Path, token_file: Path) -> None:
        """Start the sidecar as its container would be started: by its environment."""
        self.address = pod.address
        self._log = pod.folder / "sidecar.log"
        self._history = pod.folder / "state"
        self._settings = {
            "EQUIPOISE_ENGINE": f"unix:{engine}",
            "EQUIPOISE_HOST": pod.address,
            "EQUIPOISE_STATE_DIR": str(self._history),
            "EQUIPOISE_DRAIN_SECONDS": "1",
            "EQUIPOISE_INSTALL": RELEASE,
            "EQUIPOISE_ISSUER_URL": issuer_url,
            "EQUIPOISE_CA_FILE": str(ca_file),
            "EQUIPOISE_TOKEN_FILE": str(token_file),
            "POD_NAME": pod.name,
            "POD_NAMESPACE": NAMESPACE,
            "POD_UID": pod.uid,
        }
        self.sidecar = self._start()

    @property
    def endpoint(self) -> tuple[str, int]:
        """Where clients connect."""
        return self.address, DATA_PORT

    def ready(self) -> bool:
        """Whether the sidecar has a configuration and an engine."""
        return answers(f"http://{self.address}:{HEALTH_PORT}/readyz")

    def stop(self) -> None:
        """End the sidecar."""
        self.sidecar.stop(STOP_SECONDS)

    def _start(self) -> Process:
        self._history.mkdir()
        command = [sys.executable, "-m", "equipoise_sidecar"]
        return Process(command, self._log, env=environment(self._settings))


@dataclass(frozen=True)
class PodPlace:
    """A Pod object of the demo, its address, and the folder for what would be its volumes."""

    name: str
    uid: str
    address: str
    folder: Path


def addresses(count: int) -> list[str]:
    """Return loopback addresses on which all ports of a sidecar are free, 127.0.B.1 to 127.0.B.count for the first B that has."""
    for block in range(1, 255):
        block_addresses = [f"127.0.{block}.{number}" for number in range(1, count + 1)]
        ports = (DATA_PORT, ADMIN_PORT, HEALTH_PORT, DCGM_PORT)
        if all(is_free(port, address) for address in block_addresses for port in ports):
            return block_addresses
    raise DemoError(
        f"no loopback addresses have the ports {DATA_PORT}, {ADMIN_PORT}, {HEALTH_PORT} and {DCGM_PORT} free"
    )


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what would lead a part to another cluster or configuration."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EQUIPOISE_", "KUBE", "POD_")) and "PROXY" not in name.upper()
    }
    return {**kept, **(extra or {})}


def answers(url: str) -> bool:
    """Say whether a plain URL on loopback answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def until(
    what: str,
    holds: Callable[[], bool],
    processes: list[Process],
    *,
    seconds: float = START_SECONDS,
    progress: Progress | None = None,
) -> None:
    """Wait until something holds, while the processes run. ClusterError with a log's end, or DemoError after `seconds`."""
    began = time.monotonic()
    while not holds():
        for process in processes:
            process.check()
        waited = time.monotonic() - began
        if waited > seconds:
            logs = "\n".join(f"-- {process.log.name}\n{process.tail()}" for process in processes)
            raise DemoError(f"not after {seconds:g} s: {what}\n{logs}")
        if progress is not None and waited > 1:
            progress.update(f"Waiting until {what}, {waited:.0f} s")
        time.sleep(0.05)
