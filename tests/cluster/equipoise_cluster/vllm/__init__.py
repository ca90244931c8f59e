"""A real vLLM on the CPU: its environment and model in the user's cache, and its processes.

    with Vllm.start(log=folder / "vllm.log", uds=folder / "vllm.sock") as engine:
        ...

The first start installs 5.8 GB (about a minute with a fast mirror) and says what it does. Nothing is written
outside the cache and the caller's folder.
"""

from equipoise_cluster.vllm.environment import VERSION, Environment, prepare
from equipoise_cluster.vllm.process import Options, Vllm

__all__ = ["VERSION", "Environment", "Options", "Vllm", "prepare"]
