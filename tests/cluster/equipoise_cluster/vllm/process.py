"""One `vllm serve` process on the CPU: started, waited for, stopped by its own id.

The server listens on a Unix socket or on one loopback port. When its parent dies it gets SIGTERM (`setpriv
--pdeathsig`): after SIGKILL its engine core and workers would go on alone.
"""

import http.client
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Required, Self, TypedDict, Unpack

from typing_extensions import override

from equipoise_cluster.errors import ClusterError
from equipoise_cluster.processes import Process
from equipoise_cluster.progress import ConsoleProgress, Progress
from equipoise_cluster.vllm.environment import prepare

START_SECONDS = 600.0
"""A start takes 25 to 60 s on two idle cores, several times that when they are busy."""

STOP_SECONDS = 20.0

KV_BLOCK = 128
"""Tokens in a block: what vLLM takes on a CPU by itself."""

KV_BYTES = 32_768
"""Bytes a token of the small model: 8 layers, keys and values, 512 wide, 4 bytes."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # More threads than one fight the server's own process and the tests for two cores.
    "OMP_NUM_THREADS": "1",
    # The model then runs within the engine core. As a process of its own, the core would spin while it waits for it, and
    # so take the second core from the front end, the sidecar and the clients.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Options(TypedDict, total=False):
    """How to start a server. `log` and exactly one of `uds` and `port` are required."""

    log: Required[Path]
    """Gets the server's standard output and error."""
    uds: Path
    host: str
    """Default 127.0.0.1; any loopback address."""
    port: int
    model: str
    """The served name; default "m"."""
    max_num_seqs: int
    """Default 8."""
    max_model_len: int
    """Tokens, prompt and output; default 2,048, at most 8,192."""
    kv_tokens: int
    """Size of the KV pool, cut to whole blocks of 128; default 32,768, which is 1 GiB."""
    scheduling_policy: Literal["fcfs", "priority"]
    """Default "priority": X-Vllm-Priority counts."""
    extra: Sequence[str]
    """Further arguments of `vllm serve`."""
    progress: Progress
    """Follows the installation and the start; default ConsoleProgress."""


@dataclass(frozen=True)
class Vllm:
    """A running vLLM. Exactly one of `uds` and `port` is set; `url` is the base address of the latter."""

    process: Process
    model: str
    uds: Path | None
    host: str
    port: int | None

    @property
    def url(self) -> str:
        """The base address, for clients that speak TCP."""
        return f"http://{self.host}:{self.port}"

    @classmethod
    @contextmanager
    def start(cls, *, timeout: float = START_SECONDS, **options: Unpack[Options]) -> Iterator[Self]:
        """Start a server, wait until it is ready, yield it, stop it. Raises as `launch` and `wait_ready`."""
        engine = cls.launch(**options)
        try:
            engine.wait_ready(timeout, options.get("progress"))
            yield engine
        finally:
            engine.stop()

    @classmethod
    def launch(cls, **options: Unpack[Options]) -> Self:
        """Start a server and return at once, so that several load at the same time. The caller stops it.

        Raises ClusterError, and ValueError for options that contradict each other.
        """
        uds, port = options.get("uds"), options.get("port")
        host, model = options.get("host", "127.0.0.1"), options.get("model", "m")
        kv_tokens, longest = options.get("kv_tokens", 32_768), options.get("max_model_len", 2048)
        if (uds is None) == (port is None):
            raise ValueError("give either uds or port: vLLM listens on one of them")
        if kv_tokens < longest + KV_BLOCK:
            # vLLM keeps one block for itself
            raise ValueError(f"kv_tokens={kv_tokens} must be at least max_model_len + {KV_BLOCK}")
        environment = prepare(options.get("progress"))
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise ClusterError("setpriv is missing: install util-linux")
        listen = ["--uds", str(uds)] if uds else ["--host", host, "--port", str(port)]
        command = [
            *(setpriv, "--pdeathsig", "TERM", "--"),
            *(str(environment.vllm), "serve", str(environment.model), "--served-model-name", model),
            *listen,
            *("--enforce-eager", "--dtype", "float32"),
            *("--max-model-len", str(longest)),
            *("--max-num-seqs", str(options.get("max_num_seqs", 8))),
            *("--scheduling-policy", options.get("scheduling_policy", "priority")),
            *("--block-size", str(KV_BLOCK), "--num-gpu-blocks-override", str(kv_tokens // KV_BLOCK)),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *options.get("extra", ()),
        ]
        if uds:
            # vLLM leaves its socket behind, and a next one cannot bind it.
            uds.unlink(missing_ok=True)
        space = max(1, -(-kv_tokens * KV_BYTES // 2**30))
        env = {**os.environ, **ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(space)}
        return cls(Process(command, options["log"], env=env), model, uds, host, port)

    def connection(self, timeout: float = 5.0) -> http.client.HTTPConnection:
        """Return a new connection to the server."""
        if self.uds:
            return _UnixConnection(self.uds, timeout)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def wait_ready(self, timeout: float = START_SECONDS, progress: Progress | None = None) -> None:
        """Return when `/health` answers 200. Raises ClusterError with the log's end."""
        progress = progress or ConsoleProgress()
        began = time.monotonic()
        while not self._healthy():
            self.process.check()
            waited = time.monotonic() - began
            if waited > timeout:
                log = self.process.tail(30)
                raise ClusterError(f"vLLM was not ready after {timeout:.0f} s. Its log ends:\n{log}")
            progress.update(f"vLLM loads, {waited:.0f} s so far (25 to 60 s is usual)")
            time.sleep(0.25)
        progress.step(f"vLLM is ready after {time.monotonic() - began:.0f} s")

    def stop(self) -> None:
        """End the server and all its processes: SIGTERM, and SIGKILL after 20 s."""
        self.process.stop(STOP_SECONDS)

    def _healthy(self) -> bool:
        connection = self.connection(timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
