"""The certificate endpoint, over HTTP, with an API server that reviews tokens as it is told."""

import asyncio
import math
import random
from datetime import UTC, datetime, timedelta

import loopback
import pytest
import structlog
from aiohttp import ClientSession, TCPConnector
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from equipoise_api.names import CERTIFICATES_PATH, TOKEN_AUDIENCE
from equipoise_operator import issuer as issuer_module
from equipoise_operator.budget import Budgets
from equipoise_operator.issuer import Issuer
from equipoise_operator.kube import ApiUnreachableError
from equipoise_operator.pki import Authority, new_authority
from equipoise_sidecar.certificate import CertificateKeeper, Issued, IssuerError

KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = {
    "authenticated": True,
    "audiences": [TOKEN_AUDIENCE],
    "user": {
        "username": "system:serviceaccount:team:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["vllm-0"],
            "authentication.kubernetes.io/pod-uid": ["uid-1"],
        },
    },
}


class Reviewer:
    def __init__(self):
        self.status = GOOD
        self.asked = []
        self.error = None
        self.open = asyncio.Event()
        self.open.set()
        self.now = 1000.0

    async def create(self, where, body, *, deadline):
        self.asked.append(body["spec"])
        await self.open.wait()
        if self.error:
            raise self.error
        return {"status": self.status}


@pytest.fixture
async def served():
    reviewer = Reviewer()
    authority = Authority(new_authority("equipoise", datetime.now(UTC)))
    issuer = Issuer(
        reviewer,
        install="equipoise",
        namespaces=(),
        authority=lambda: issuer.current,
        clock=lambda: reviewer.now,
    )
    issuer.current = authority
    issuer.counted = []
    issuer.on_answer = issuer.counted.append
    async with loopback.served(issuer.app()) as port:
        issuer.url = f"http://127.0.0.1:{port}{CERTIFICATES_PATH}"
        yield issuer, reviewer


def request():
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(KEY, hashes.SHA256())
    return {"csr": made.public_bytes(serialization.Encoding.PEM).decode()}


async def asked(issuer, *, body=None, token="t", header=None, address="127.0.0.1"):
    headers = {} if header == "" else {"Authorization": header or f"Bearer {token}"}
    async with (
        ClientSession(connector=TCPConnector(local_addr=(address, 0))) as session,
        session.post(issuer.url, json=request() if body is None else body, headers=headers) as response,
    ):
        return response.status, await response.json(), response.headers


async def ask(issuer, **more):
    status, answer, _ = await asked(issuer, **more)
    return status, answer


async def test_a_pods_token_gets_a_certificate_for_that_pod(served):
    issuer, reviewer = served
    status, answer = await ask(issuer)
    assert status == 200
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://equipoise/pod/uid-1"]
    assert certificate.public_key() == KEY.public_key()
    assert answer["ca"] == issuer.current.bundle()
    assert reviewer.asked == [{"token": "t", "audiences": [TOKEN_AUDIENCE]}]
    assert issuer.counted == [200]


async def test_the_identity_comes_from_the_token_and_not_from_the_request(served):
    issuer, _ = served
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "spiffe://equipoise/operator")])
    made = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://equipoise/operator")]),
            critical=False,
        )
        .sign(KEY, hashes.SHA256())
    )
    status, answer = await ask(issuer, body={"csr": made.public_bytes(serialization.Encoding.PEM).decode()})
    assert status == 200
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert b"equipoise/operator" not in certificate.public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"authenticated": False, "error": "expired"}, 401),
        ({"audiences": ["https://kubernetes.default.svc"]}, 401),
        ({"audiences": []}, 401),
        ({"user": GOOD["user"] | {"extra": {}}}, 403),
        ({"user": GOOD["user"] | {"username": "jane"}}, 403),
    ],
    ids=["expired", "another-audience", "no-audience", "not-of-a-pod", "not-a-service-account"],
)
async def test_other_tokens_get_nothing(served, change, status):
    issuer, reviewer = served
    reviewer.status = GOOD | change
    answered, problem = await ask(issuer)
    assert answered == status
    assert problem["message"]


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer ", "Bearer"])
async def test_without_a_token_nobody_is_asked(served, header):
    issuer, reviewer = served
    assert (await ask(issuer, header=header))[0] == 401
    assert reviewer.asked == []


@pytest.mark.parametrize("body", [{}, {"csr": "nonsense"}, {"csr": "x" * 9000}, []])
async def test_a_bad_request_is_400_before_anybody_is_asked(served, body):
    issuer, reviewer = served
    status, problem = await ask(issuer, body=body)
    assert status == 400
    assert (
        "csr" in problem["message"] or "object" in problem["message"].lower() or "model" in problem["message"]
    )
    assert reviewer.asked == []


async def test_a_namespace_that_is_not_watched_is_refused(served):
    issuer, _ = served
    issuer._namespaces = ("other",)
    assert (await ask(issuer))[0] == 403


async def test_without_an_authority_or_an_api_server_it_is_worth_another_try(served):
    issuer, reviewer = served
    reviewer.error = ApiUnreachableError("down")
    assert (await ask(issuer))[0] == 503
    issuer.current = None
    assert (await ask(issuer))[0] == 503


async def test_an_address_that_shows_junk_all_the_time_costs_the_api_server_little(served):
    issuer, reviewer = served
    reviewer.status = {"authenticated": False}
    for _ in range(100):
        status, _, headers = await asked(issuer, token="junk")
        reviewer.now += 0.01
    assert status == 429
    assert headers["Retry-After"] == "1"
    most = issuer_module.ADDRESS_BURST + issuer_module.ADDRESS_RATE * 1.0
    assert most - 1 <= len(reviewer.asked) <= most
    assert issuer.counted.count(429) == 100 - len(reviewer.asked)


async def test_beyond_the_limit_nothing_of_a_request_is_looked_at(served):
    issuer, _ = served
    for _ in range(20):
        assert (await ask(issuer, body={"csr": "nonsense"}))[0] == 400
    assert (await ask(issuer, body={"csr": "nonsense"}))[0] == 429


async def test_another_address_is_served_meanwhile(served):
    issuer, _ = served
    for _ in range(30):
        await ask(issuer)
    assert (await ask(issuer))[0] == 429
    assert (await ask(issuer, address="127.0.0.2"))[0] == 200


async def test_who_comes_again_when_told_comes_through(served):
    issuer, reviewer = served
    for _ in range(30):
        await ask(issuer)
    status, _, headers = await asked(issuer)
    assert status == 429
    reviewer.now += int(headers["Retry-After"])
    assert (await ask(issuer))[0] == 200


async def test_few_tokens_are_under_review_at_a_time_and_who_waits_too_long_is_told(served, monkeypatch):
    monkeypatch.setattr(issuer_module, "LONGEST_WAIT", 0.05)
    issuer, reviewer = served
    reviewer.open.clear()
    slow = [asyncio.create_task(ask(issuer, address=f"127.0.1.{n}")) for n in range(1, 20)]
    done, waiting = await asyncio.wait(slow, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 11:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert {task.result()[0] for task in done} == {503}
    assert len(reviewer.asked) == issuer_module.REVIEWS == len(waiting)
    assert (await asked(issuer))[2]["Retry-After"] == "2"
    reviewer.open.set()
    assert [(await task)[0] for task in waiting] == [200] * 8
    assert (await ask(issuer))[0] == 200, "every turn was given back"


async def test_a_review_that_fails_gives_its_turn_back(served):
    issuer, reviewer = served
    reviewer.error = ApiUnreachableError("down")
    for n in range(1, 20):
        status, _, headers = await asked(issuer, address=f"127.0.1.{n}")
        assert (status, headers["Retry-After"]) == (503, "2")
    reviewer.error = None
    assert (await ask(issuer))[0] == 200


async def test_refusals_fill_no_log(served):
    issuer, reviewer = served
    reviewer.status = {"authenticated": False}
    with structlog.testing.capture_logs() as lines:
        for n in range(60):
            await ask(issuer, address=f"127.0.1.{1 + n % 6}")
    assert len(lines) == issuer_module.LINES_BURST
    assert lines[0]["address"] == "127.0.1.1"


@pytest.mark.looptime
async def test_a_hundred_sidecars_behind_one_address_have_their_certificates_within_a_minute(tmp_path):
    """Both ends as they are: the operator's limit, and the sidecar's way of asking."""
    (tmp_path / "ca.pem").write_text("authority")
    loop = asyncio.get_running_loop()
    limit = Budgets(issuer_module.ADDRESS_RATE, issuer_module.ADDRESS_BURST, loop.time)
    issued_at = []

    class Endpoint:
        ca_file = tmp_path / "ca.pem"

        async def issue(self):
            wait = limit.take("10.0.0.1")
            if wait:
                raise IssuerError("429", again=math.ceil(wait))
            issued_at.append(loop.time())
            now = datetime.now(UTC)
            return Issued("chain", b"key", "ca", now, now + timedelta(days=1))

    keepers = [CertificateKeeper(Endpoint(), lambda _: None, random.Random(n)) for n in range(100)]
    tasks = [asyncio.create_task(keeper.run()) for keeper in keepers]
    await asyncio.sleep(60)
    for task in tasks:
        task.cancel()
    assert all(keeper.current is not None for keeper in keepers)
    assert len(issued_at) == 100


async def test_a_body_that_is_too_large_is_not_read(served):
    issuer, _ = served
    async with (
        ClientSession() as session,
        session.post(issuer.url, data=b"x" * 100_000, headers={"Authorization": "Bearer t"}) as response,
    ):
        assert response.status == 413
