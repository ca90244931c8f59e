"""How `vllm serve` is started, waited for and ended, with a small program in its place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equipoise_cluster import ClusterError
from equipoise_cluster.progress import Silent
from equipoise_cluster.vllm import Environment, Vllm, process

PROGRAM = f"""\
#!{sys.executable}
import http.server, json, os, signal, socketserver, subprocess, sys
arguments = sys.argv[1:]
print(json.dumps(arguments), flush=True)
if "--broken" in arguments:
    sys.exit("no such model")

def end(*_):
    os.write(1, b"told to end")
    os._exit(0)

signal.signal(signal.SIGTERM, end)

class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "uds"
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

socketserver.UnixStreamServer(arguments[arguments.index("--uds") + 1], Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    program = tmp_path / "bin-vllm"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    made = Environment(Path(sys.executable), program, tmp_path / "model")
    monkeypatch.setattr(process, "prepare", lambda _: made)
    return made


def options(tmp_path, **more):
    return {"log": tmp_path / "log", "uds": tmp_path / "s", "progress": Silent(), **more}


def test_it_is_ready_when_health_answers_and_gone_afterwards(environment, tmp_path):
    with Vllm.start(**options(tmp_path, max_num_seqs=3, kv_tokens=4096)) as engine:
        pid = engine.process.pid
        connection = engine.connection()
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    said = (tmp_path / "log").read_text()
    assert '"--max-num-seqs", "3"' in said
    assert '"--num-gpu-blocks-override", "32"' in said


def test_a_socket_that_a_former_engine_left_is_no_obstacle(environment, tmp_path):
    for _ in range(2):
        with Vllm.start(**options(tmp_path)):
            pass
    assert (tmp_path / "s").exists(), "like vLLM, the program leaves it behind"


def test_an_engine_that_ends_while_it_loads_is_told_with_its_log(environment, tmp_path):
    with (
        pytest.raises(ClusterError, match="no such model"),
        Vllm.start(**options(tmp_path, extra=["--broken"])),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"port": 8000}, "either uds or port"),
        ({"kv_tokens": 2048, "max_model_len": 2048}, "at least max_model_len"),
    ],
)
def test_options_that_cannot_work_are_refused(environment, tmp_path, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Vllm.launch(**options(tmp_path, **wrong))


def test_it_gets_sigterm_when_the_process_that_started_it_is_killed(environment, tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from equipoise_cluster.vllm import Environment, Vllm, process
process.prepare = lambda _: Environment(Path(), Path({str(environment.vllm)!r}), Path())
engine = Vllm.launch(log=Path({str(tmp_path / "log")!r}), uds=Path({str(tmp_path / "s")!r}))
engine.wait_ready()
print(engine.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    until = time.monotonic() + 90
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.05)
    assert (tmp_path / "log").read_text().endswith("told to end"), "SIGKILL would leave vLLM's workers behind"
