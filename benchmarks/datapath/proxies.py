"""What is measured: nothing in between, nginx, the sidecar, LiteLLM's proxy. Each on loopback, one process or worker."""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sidecar import Account, configuration, running, start

from equipoise_api.policy import Capacity
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
    account = Account("benchmark/one")
    config = configuration([account], capacity=Capacity(max_in_flight=256))
    with start(f"http://127.0.0.1:{engine}", config, folder) as running_sidecar:
        yield Proxy("sidecar", running_sidecar.data, running_sidecar.process, account.headers)


PROXIES: dict[str, Callable[[int, Path], AbstractContextManager[Proxy]]] = {
    "direct": direct,
    "nginx": nginx,
    "sidecar": sidecar,
    "litellm": litellm,
}
