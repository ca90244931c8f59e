"""The certificate endpoint, over HTTP, with an API server that reviews tokens as it is told."""

from datetime import UTC, datetime

import loopback
import pytest
from aiohttp import ClientSession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from equipoise_api.names import CERTIFICATES_PATH, TOKEN_AUDIENCE
from equipoise_operator.issuer import Issuer
from equipoise_operator.kube import ApiUnreachableError
from equipoise_operator.pki import Authority, new_authority

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

    async def create(self, where, body, *, deadline):
        self.asked.append(body["spec"])
        if self.error:
            raise self.error
        return {"status": self.status}


@pytest.fixture
async def served():
    reviewer = Reviewer()
    authority = Authority(new_authority("equipoise", datetime.now(UTC)))
    issuer = Issuer(reviewer, install="equipoise", namespaces=(), authority=lambda: issuer.current)
    issuer.current = authority
    issuer.counted = []
    issuer.on_answer = issuer.counted.append
    async with loopback.served(issuer.app()) as port:
        issuer.url = f"http://127.0.0.1:{port}{CERTIFICATES_PATH}"
        yield issuer, reviewer


def request():
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(KEY, hashes.SHA256())
    return {"csr": made.public_bytes(serialization.Encoding.PEM).decode()}


async def ask(issuer, *, body=None, token="t", header=None):
    headers = {} if header == "" else {"Authorization": header or f"Bearer {token}"}
    async with (
        ClientSession() as session,
        session.post(issuer.url, json=request() if body is None else body, headers=headers) as response,
    ):
        return response.status, await response.json()


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


async def test_a_body_that_is_too_large_is_not_read(served):
    issuer, _ = served
    async with (
        ClientSession() as session,
        session.post(issuer.url, data=b"x" * 100_000, headers={"Authorization": "Bearer t"}) as response,
    ):
        assert response.status == 413
