"""What a client reads through the sidecar is what vLLM sends, byte for byte, but for ids and times.

The requests are those of tests/data/vllm/recordings.json, sent to one real vLLM directly and through the sidecar.
"""

import http.client
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.sidecar import Account, Sidecar, configuration, start

from equipoise_api.policy import Capacity
from equipoise_sidecar.headers import QUEUED, SCHEDULER, TENANT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

RECORDINGS = json.loads((Path(__file__).parents[1] / "data/vllm/recordings.json").read_text())
ATTEMPTS = 40
UNLIKE = re.compile(rb'(?:chatcmpl-tool|chatcmpl|cmpl|resp|msg)[-_][0-9a-f]{16}|"created(?:_at)?":\d+')
CHOICE = re.compile(rb'"choices":\[\{"index":(\d+)')
REFUSED = {"error-not-json": 400, "error-unknown-path": 404}
"""What the sidecar answers itself: it schedules nothing that it cannot read, and offers an allow-list of paths."""
CLIENT = Account("team/client")
HOP_BY_HOP = {"date", "server", "connection", "keep-alive"}
OURS = {name.decode() for name in (TENANT, QUEUED, SCHEDULER)}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: frozenset[tuple[str, str]]
    body: bytes


@pytest.fixture(scope="module")
def sidecar(vllm, tmp_path_factory):
    config = configuration([CLIENT], capacity=Capacity(max_in_flight=8))
    with start(f"unix:{vllm.uds}", config, tmp_path_factory.mktemp("sidecar")) as running:
        yield running


def ask(connection: http.client.HTTPConnection, recording, headers=()) -> Answer:
    """The answer, with what differs from request to request masked, and the order of parallel choices made one.

    vLLM sends the chunks of several choices (n = 2, two prompts) in the order in which they happen to be ready; each
    choice's own chunks keep theirs.
    """
    body = recording["request"].encode()
    connection.request("POST", recording["path"], body, {"Content-Type": "application/json", **dict(headers)})
    answer = connection.getresponse()
    masked = UNLIKE.sub(b"X", answer.read())
    connection.close()
    events = masked.split(b"\n\n")
    if len(events) > 1:
        # Stable: one choice's events stay in order. The usage chunk and [DONE] have no choice, and stay last.
        events.sort(key=lambda event: int(match[1]) if (match := CHOICE.search(event)) else len(events))
    kept = {(k.lower(), v) for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
    return Answer(answer.status, frozenset(kept), b"\n\n".join(events))


def through(sidecar: Sidecar, recording) -> Answer:
    answer = ask(
        http.client.HTTPConnection("127.0.0.1", sidecar.data, timeout=300), recording, CLIENT.headers.items()
    )
    added = frozenset(pair for pair in answer.headers if pair[0] in OURS)
    assert (TENANT.decode(), CLIENT.id) in added
    return Answer(answer.status, answer.headers - added, answer.body)


@pytest.mark.parametrize(
    "recording", [r for r in RECORDINGS if r["name"] not in REFUSED], ids=lambda recording: recording["name"]
)
def test_the_client_reads_the_engines_bytes(vllm, sidecar, recording):
    # How many tokens vLLM puts into a chunk depends on how busy the machine is: an answer through the sidecar must be
    # one that vLLM gives directly, within a few tries.
    direct, proxied = set(), set()
    for _ in range(ATTEMPTS):
        direct.add(ask(vllm.connection(timeout=300), recording))
        proxied.add(through(sidecar, recording))
        if direct & proxied:
            return
    assert proxied == direct


@pytest.mark.parametrize(("name", "status"), REFUSED.items())
def test_what_the_sidecar_refuses_itself_has_the_engines_status_and_an_openai_error_body(
    vllm, sidecar, name, status
):
    recording = next(r for r in RECORDINGS if r["name"] == name)
    direct = ask(vllm.connection(timeout=300), recording)
    answer = ask(
        http.client.HTTPConnection("127.0.0.1", sidecar.data, timeout=300), recording, CLIENT.headers.items()
    )
    assert answer.status == direct.status == status
    error = json.loads(answer.body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"]
