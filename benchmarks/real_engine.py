"""A real vLLM on the CPU, or the stand-in in its place, with a core of its own as a GPU would be, and its calibrated profile."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sidecar import running, start

from equipoise_api.sidecar_config import SidecarConfig
from equipoise_cluster.ports import choose
from equipoise_cluster.vllm import Vllm
from equipoise_simulator.calibration.calibrate import Calibration, calibrate


@dataclass(frozen=True)
class Size:
    """What the engine holds."""

    sequences: int
    kv_tokens: int
    context: int
    """Tokens of the longest request, and of prompts in one step."""
    block_tokens: int = 128


def set_apart(session: int, cpu: int) -> None:
    """Give a CPU to the engine core among the processes of a session.

    Raises LookupError when there is no such process.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_core = (process / "comm").read_text().startswith("VLLM::EngineCor")
            if not is_core or os.getsid(int(process.name)) != session:
                continue
            for thread in (process / "task").iterdir():
                os.sched_setaffinity(int(thread.name), {cpu})
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        return
    raise LookupError("vLLM runs without an engine core of its own")


@contextmanager
def engine(folder: Path, size: Size, *, stand_in: bool) -> Iterator[str]:
    """Start the engine; gives its address for a sidecar."""
    if stand_in:
        (port,) = choose(1)
        url = f"http://127.0.0.1:{port}"
        options = {
            "--port": port,
            "--max-num-seqs": size.sequences,
            "--kv-tokens": size.kv_tokens,
            "--max-model-len": size.context,
            "--model": "m",
        }
        command = [str(Path(sys.executable).with_name("equipoise")), "engine"]
        command += [str(word) for pair in options.items() for word in pair]
        with running(command, folder / "engine.log", f"{url}/health"):
            yield url
        return
    socket = folder / "vllm.sock"
    *others, cpu = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {cpu})  # what is started from here inherits it
    with Vllm.start(
        log=folder / "vllm.log",
        uds=socket,
        max_num_seqs=size.sequences,
        max_model_len=size.context,
        kv_tokens=size.kv_tokens,
        extra=(
            *("--max-num-batched-tokens", str(size.context)),
            *("--block-size", str(size.block_tokens)),
            *("--num-gpu-blocks-override", str(size.kv_tokens // size.block_tokens)),
        ),
    ) as vllm:
        set_apart(vllm.process.pid, cpu)
        yield f"unix:{socket}"


def calibrated(url: str, folder: Path, size: Size, tell: Callable[[str], None]) -> Calibration:
    """Calibrate as the engine will be used: behind a sidecar, which shares the engine's machine here."""
    with start(url, SidecarConfig(), folder) as sidecar:
        return asyncio.run(
            calibrate(
                sidecar.url,
                name="vllm-cpu",
                max_num_seqs=size.sequences,
                max_num_batched_tokens=size.context,
                rounds=1,
                seconds=6.0,
                tell=tell,
            )
        )
