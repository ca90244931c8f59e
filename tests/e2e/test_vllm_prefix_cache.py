"""What the sidecar expects of a real vLLM's prefix cache is what vLLM then says it served."""

import json
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from benchmarks.sidecar import Account, configuration, start

from equipoise_api.policy import Capacity
from equipoise_cluster.vllm import Vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

BLUE, RED = Account("team/blue"), Account("team/red")
WORDS = [
    "the",
    "system",
    "answers",
    "questions",
    "of",
    "customers",
    "about",
    "orders",
    "and",
    "returns",
    "in",
    "a",
    "friendly",
    "tone",
]
KV_BLOCK = 128
ENOUGH = 8
"""Requests after which prompt tokens are known well."""


def text(seed: int, words: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(words))


def asking(question: int) -> list[dict[str, str]]:
    """Some 1,100 tokens, of which all but 60 are the system prompt's."""
    return [{"role": "system", "content": text(1, 500)}, {"role": "user", "content": text(question, 30)}]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    """A sidecar before a vLLM that reports cached tokens."""
    folder = tmp_path_factory.mktemp("prefix")
    socket = folder / "vllm.sock"
    extra = ["--enable-prompt-tokens-details"]
    config = configuration([BLUE, RED], "Equipoise", Capacity(max_in_flight=4))
    with (
        Vllm.start(log=folder / "vllm.log", uds=socket, max_model_len=2048, kv_tokens=16_384, extra=extra),
        start(f"unix:{socket}", config, folder) as running,
    ):
        until = time.monotonic() + 120
        while not shown(running, "active"):
            assert time.monotonic() < until, "the sidecar does not see that vLLM caches prefixes"
            time.sleep(0.1)
        yield running


def shown(sidecar, name: str) -> float:
    return sidecar.metrics()[f"equipoise_prefix_{name}", ""]


def ask(sidecar, account: Account, messages) -> int:
    """The cached tokens that vLLM reports."""
    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 4, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", **account.headers}
    request = urllib.request.Request(f"{sidecar.url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]


def predicted(sidecar, account: Account, messages) -> tuple[int, int]:
    """What was expected, and what vLLM reports."""
    before = shown(sidecar, "predicted_tokens_total")
    reported = ask(sidecar, account, messages)
    return round(shown(sidecar, "predicted_tokens_total") - before), reported


def test_a_shared_system_prompt_is_expected_to_the_block(sidecar):
    pairs = [predicted(sidecar, BLUE, asking(100 + number)) for number in range(2 * ENOUGH)]
    assert pairs[0] == (0, 0)
    for expected, reported in pairs[ENOUGH:]:
        assert reported >= 1000 - KV_BLOCK
        assert abs(expected - reported) <= KV_BLOCK
    assert shown(sidecar, "agreement_ratio") > 0.95


def test_another_tenants_prompts_earn_nothing_though_the_engine_shares_them(sidecar):
    ask(sidecar, BLUE, asking(200))
    expected, reported = predicted(sidecar, RED, asking(200))
    assert expected == 0
    assert reported > 0


def test_what_is_sent_at_once_is_shared_from_its_dispatch(sidecar):
    """Why a prompt enters the index when it is dispatched."""
    twin = [{"role": "user", "content": text(300, 600)}]
    before = shown(sidecar, "predicted_tokens_total")
    with ThreadPoolExecutor(4) as clients:
        reported = sorted(clients.map(lambda _: ask(sidecar, BLUE, twin), range(4)))
    assert reported[0] == 0
    assert reported[1] > 1000
    expected = shown(sidecar, "predicted_tokens_total") - before
    assert abs(expected - sum(reported)) <= 3 * KV_BLOCK
