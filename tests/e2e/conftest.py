"""One real vLLM for all tests that need it: its start takes most of a minute."""

from collections.abc import Iterator

import pytest

from equipoise_cluster import ConsoleProgress
from equipoise_cluster.vllm import Vllm, prepare


def pytest_collection_finish(session: pytest.Session) -> None:
    # Not in a fixture: a first installation takes longer than a test may, and its progress is to be seen.
    if session.config.option.collectonly or not any(i.get_closest_marker("vllm") for i in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        prepare(ConsoleProgress())


@pytest.fixture(scope="session")
def vllm(tmp_path_factory) -> Iterator[Vllm]:
    """vLLM on a socket: 8 sequences, 4,096 tokens of KV cache, priority scheduling."""
    folder = tmp_path_factory.mktemp("vllm")
    with Vllm.start(
        log=folder / "vllm.log",
        uds=folder / "vllm.sock",
        max_num_seqs=8,
        max_model_len=1024,
        kv_tokens=4096,
    ) as engine:
        yield engine
