"""What is measured: nothing in between, nginx, the sidecar, LiteLLM's proxy. Each on loopback, one process or worker."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from equipoise_api.policy import Algorithm, Capacity, DefaultTenant
from equipoise_api.sidecar_config import HmacKey, SidecarConfig, TenantConfig
from equipoise_cluster.environments import Workshop, cache_directory
from equipoise_cluster.ports import choose
from equipoise_cluster.processes import Process
from equipoise_cluster.progress import ConsoleProgress

HERE = Path(__file__).parent
LITELLM = "1.106.2"
KEY = "sk-" + secrets.token_hex(32)

NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    keepalive_requests 1000000;
    upstream engine {{
        server 127.0.0.1:{engine};
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy: where to send, with which headers, and whose CPU it uses (None: there is no proxy)."""

    name: str
    port: int
    process: Process | None
    headers: Mapping[str, str] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """CPU used so far by all processes of its group."""
        if self.process is None:
            return 0.0
        return group_cpu_seconds(self.process.pid)


def group_cpu_seconds(group: int) -> float:
    """Run time of every thread of a process group, in seconds, to the nanosecond (`/proc/*/task/*/schedstat`)."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # after the name, which may hold spaces: state, parent, group
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                total += sum(int(t.read_text().split()[0]) for t in process.glob("task/*/schedstat"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


@contextmanager
def running(
    command: list[str], log: Path, ready: str, env: Mapping[str, str] | None = None, timeout: float = 120.0
) -> Iterator[Process]:
    """Start a server, wait until `ready` (a URL) answers 200, stop it afterwards. Raises ClusterError."""
    process = Process(command, log, env=None if env is None else {**os.environ, **env}, cwd=HERE.parents[1])
    try:
        until = time.monotonic() + timeout
        while not _answers(ready):
            process.check()
            if time.monotonic() > until:
                raise TimeoutError(f"{ready} did not answer within {timeout} s.\n{process.tail()}")
            time.sleep(0.2)
        yield process
    finally:
        process.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def direct(engine: int, folder: Path) -> Iterator[Proxy]:
    """Nothing in between."""
    del folder
    yield Proxy("direct", engine, None)


@contextmanager
def nginx(engine: int, folder: Path) -> Iterator[Proxy]:
    """Debian's nginx: one worker, unbuffered, kept connections."""
    program = shutil.which("nginx")
    if program is None:
        raise FileNotFoundError(
            "nginx is missing: apt-get install nginx-light, or leave it out with --proxies"
        )
    (port,) = choose(1)
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, engine=engine, port=port))
    command = [program, "-p", str(folder), "-c", str(configuration)]
    with running(command, folder / "nginx.log", f"http://127.0.0.1:{port}/health") as process:
        yield Proxy("nginx", port, process)


@contextmanager
def litellm(engine: int, folder: Path) -> Iterator[Proxy]:
    """LiteLLM's proxy from the package index, in an environment of its own: one worker, no database, no logging."""
    with Workshop(cache_directory("litellm", LITELLM), ConsoleProgress()) as workshop:
        environment = workshop.environment(
            f"installing LiteLLM {LITELLM} (0.6 GB)", HERE / "litellm-requirements.txt"
        )
    (port,) = choose(1)
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    configuration = folder / "litellm.yaml"
    # JSON is YAML
    configuration.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": model}]}))
    command = [str(environment / "bin/litellm"), "--config", str(configuration), "--telemetry", "False"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    env = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    ready = f"http://127.0.0.1:{port}/health/liveliness"
    with running(command, folder / "litellm.log", ready, env) as process:
        yield Proxy("litellm", port, process, {"Authorization": f"Bearer {KEY}"})


@contextmanager
def sidecar(engine: int, folder: Path) -> Iterator[Proxy]:
    """Our sidecar, scheduling by VTC over a tenant with an API key, with room for every stream at once."""
    secret = secrets.token_bytes(32)
    digest = hmac.new(secret, KEY.encode(), hashlib.sha256).hexdigest()
    configuration = SidecarConfig(
        mode="Enforce",
        algorithm=Algorithm(type="VTC"),
        capacity=Capacity(max_in_flight=256),
        default_tenant=DefaultTenant(mode="Reject"),
        hmac_keys=[HmacKey(id="one", secret=base64.b64encode(secret).decode())],
        tenants=[TenantConfig(id="benchmark/one", key_digests=[digest])],
    )
    file = folder / "config.json"
    file.write_text(configuration.model_dump_json(by_alias=True))
    data, health = choose(2)
    env = {
        "EQUIPOISE_ENGINE": f"http://127.0.0.1:{engine}",
        "EQUIPOISE_HOST": "127.0.0.1",
        "EQUIPOISE_DATA_PORT": str(data),
        "EQUIPOISE_HEALTH_PORT": str(health),
        "EQUIPOISE_CONFIG_FILE": str(file),
    }
    command = [sys.executable, "-m", "equipoise_cli.main", "sidecar", "run"]
    ready = f"http://127.0.0.1:{health}/readyz"
    with running(command, folder / "sidecar.log", ready, env) as process:
        yield Proxy("sidecar", data, process, {"Authorization": f"Bearer {KEY}"})


PROXIES: dict[str, Callable[[int, Path], AbstractContextManager[Proxy]]] = {
    "direct": direct,
    "nginx": nginx,
    "sidecar": sidecar,
    "litellm": litellm,
}
