"""Our sidecar as a process on loopback, configured by a file: what benchmarks and end-to-end tests put before an engine."""

import base64
import hashlib
import hmac
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from equipoise_api.policy import Algorithm, AlgorithmType, Capacity, DefaultTenant, Queue
from equipoise_api.sidecar_config import HmacKey, SidecarConfig, TenantConfig
from equipoise_cluster.ports import choose
from equipoise_cluster.processes import Process

START_SECONDS = 120.0
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Account:
    """A tenant as its client knows it: identifier, weight, API key."""

    id: str
    weight: int = 1
    key: str = field(default_factory=lambda: "sk-" + secrets.token_hex(24))

    @property
    def headers(self) -> dict[str, str]:
        """What a request of the tenant carries."""
        return {"Authorization": f"Bearer {self.key}"}


def configuration(
    accounts: list[Account],
    algorithm: AlgorithmType = "VTC",
    capacity: Capacity | None = None,
    queue: Queue | None = None,
) -> SidecarConfig:
    """Return a configuration that knows these tenants and refuses everybody else."""
    secret = secrets.token_bytes(32)

    def digest(key: str) -> str:
        return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()

    return SidecarConfig(
        mode="Enforce",
        algorithm=Algorithm(type=algorithm),
        capacity=capacity or Capacity(),
        queue=queue or Queue(),
        default_tenant=DefaultTenant(mode="Reject"),
        hmac_keys=[HmacKey(id="one", secret=base64.b64encode(secret).decode())],
        tenants=sorted(
            (TenantConfig(id=a.id, weight=a.weight, key_digests=[digest(a.key)]) for a in accounts),
            key=lambda tenant: tenant.id,
        ),
    )


@dataclass(frozen=True)
class Sidecar:
    """A running sidecar: its ports on 127.0.0.1."""

    data: int
    health: int
    process: Process

    @property
    def url(self) -> str:
        """Where clients send."""
        return f"http://127.0.0.1:{self.data}"

    def metrics(self) -> dict[tuple[str, str], float]:
        """Return the present metrics by sample name and tenant ("" where there is none)."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.health}/metrics", timeout=ANSWER_SECONDS
        ) as answer:
            text = answer.read().decode()
        return {
            (sample.name, sample.labels.get("tenant", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def table(self, name: str) -> list[dict[str, str]]:
        """Return one of the debug tables: tenants, queues, requests."""
        url = f"http://127.0.0.1:{self.health}/debug/fairness/{name}"
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            head, *rows = [
                [cell.strip() for cell in line.split(",")] for line in answer.read().decode().splitlines()
            ]
        return [dict(zip(head, row, strict=False)) for row in rows]


@contextmanager
def start(
    engine: str, config: SidecarConfig, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Sidecar]:
    """Start a sidecar before an engine (`unix:PATH` or `http://HOST:PORT`), wait until it is ready, stop it.

    Raises ClusterError with the end of its log.
    """
    data, health = choose(2)
    file = folder / "config.json"
    file.write_bytes(config.canonical())
    settings = {
        "EQUIPOISE_ENGINE": engine,
        "EQUIPOISE_HOST": "127.0.0.1",
        "EQUIPOISE_DATA_PORT": str(data),
        "EQUIPOISE_HEALTH_PORT": str(health),
        "EQUIPOISE_CONFIG_FILE": str(file),
        **(environment or {}),
    }
    command = [str(Path(sys.executable).with_name("equipoise")), "sidecar", "run"]
    with running(command, folder / "sidecar.log", f"http://127.0.0.1:{health}/readyz", settings) as process:
        yield Sidecar(data, health, process)


@contextmanager
def running(
    command: list[str],
    log: Path,
    ready: str,
    environment: Mapping[str, str] | None = None,
    timeout: float = START_SECONDS,
) -> Iterator[Process]:
    """Start a server, wait until `ready` (a URL) answers 200, stop it. Raises ClusterError, TimeoutError."""
    root = Path(__file__).parents[1]
    process = Process(command, log, env={**os.environ, **(environment or {})}, cwd=root)
    try:
        until = time.monotonic() + timeout
        while not _answers(ready):
            process.check()
            if time.monotonic() > until:
                raise TimeoutError(
                    f"{ready} did not answer within {timeout} s. The log ends:\n{process.tail()}"
                )
            time.sleep(0.1)
        yield process
    finally:
        process.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
