"""The certificate is renewed in time and an issuer that fails, or errs, is neither believed nor flooded."""

import asyncio
import contextlib
import datetime as dt
import random

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from loopback import served

from equipoise_api.names import CERTIFICATES_PATH
from equipoise_sidecar.certificate import CertificateKeeper, Issued, Issuer, IssuerError, peer_identities

NOW = dt.datetime.now(dt.UTC)


def certificate(key, *names, extended=True):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
    )
    if extended:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def pem(thing):
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM).decode()
    return thing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def issued(seconds, *, age=0):
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
    return Issued("chain", b"key", "ca", begin, begin + dt.timedelta(seconds=seconds))


class FakeIssuer:
    """Issues what it is told, or fails."""

    def __init__(self, tmp_path, answer):
        self.ca_file = tmp_path / "ca.pem"
        self.ca_file.write_text("authority")
        self.answer = answer
        self.asked = 0

    async def issue(self):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def kept(issuer, seconds, use=lambda _issued: None):
    keeper = CertificateKeeper(issuer, use, random.Random(1))
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return keeper


@pytest.mark.looptime
async def test_a_failing_issuer_is_asked_again_at_most_every_ten_seconds_or_so(tmp_path):
    issuer = FakeIssuer(tmp_path, IssuerError("away"))
    keeper = await kept(issuer, 100)
    assert 9 <= issuer.asked <= 16
    assert keeper.failures == issuer.asked
    assert keeper.current is None


@pytest.mark.looptime
async def test_an_issuer_that_says_when_to_come_again_is_not_asked_earlier(tmp_path):
    issuer = FakeIssuer(tmp_path, IssuerError("busy", again=30.0))
    await kept(issuer, 29)
    assert issuer.asked == 1
    issuer = FakeIssuer(tmp_path, IssuerError("busy", again=30.0))
    await kept(issuer, 46)
    assert issuer.asked == 2


@pytest.mark.looptime
async def test_however_long_it_says_it_is_asked_again_after_a_minute_and_a_half(tmp_path):
    issuer = FakeIssuer(tmp_path, IssuerError("busy", again=float("inf")))
    await kept(issuer, 91)
    assert issuer.asked == 2


@pytest.mark.looptime
async def test_a_certificate_that_has_ended_already_is_not_asked_for_in_a_loop(tmp_path):
    issuer = FakeIssuer(tmp_path, issued(60, age=3600))
    await kept(issuer, 10)
    assert 5 <= issuer.asked <= 11


@pytest.mark.looptime
async def test_a_fresh_one_is_kept_until_it_is_due_or_the_authority_changes(tmp_path):
    issuer = FakeIssuer(tmp_path, issued(86_400))
    keeper = CertificateKeeper(issuer, lambda _issued: None)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(600)
    assert issuer.asked == 1
    issuer.ca_file.write_text("another authority")
    await asyncio.sleep(10)
    assert issuer.asked == 2
    task.cancel()


@pytest.mark.looptime
async def test_a_certificate_that_cannot_be_used_counts_as_a_failure(tmp_path):
    def refuse(_issued):
        raise ValueError("no certificate in it")

    keeper = await kept(FakeIssuer(tmp_path, issued(86_400)), 5, refuse)
    assert keeper.failures >= 2
    assert keeper.current is None


def test_it_is_due_after_two_thirds_of_its_life():
    one = issued(24 * 3600)
    assert (one.renew_at() - one.not_before) == dt.timedelta(hours=16)


def test_a_peers_identities_are_the_uris_of_its_certificate():
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier("spiffe://a/operator"), x509.DNSName("spiffe.example")]
    der = certificate(key, *names).public_bytes(serialization.Encoding.DER)
    assert peer_identities(der) == {"spiffe://a/operator"}
    bare = certificate(key, extended=False).public_bytes(serialization.Encoding.DER)
    assert peer_identities(bare) == peer_identities(None) == set()


class TestIssuer:
    @pytest.fixture
    async def endpoint(self, tmp_path):
        """Start an issuer over TLS that answers with what `answer` returns."""
        import ssl

        key = ec.generate_private_key(ec.SECP256R1())
        own = certificate(key, x509.DNSName("localhost"))
        (tmp_path / "server.pem").write_text(pem(key) + pem(own))
        (tmp_path / "ca.pem").write_text(pem(own))
        (tmp_path / "token").write_text("token\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        async with contextlib.AsyncExitStack() as servers:

            async def start(answer):
                app = web.Application()
                app.router.add_post(CERTIFICATES_PATH, answer)
                port = await servers.enter_async_context(served(app, tls=context))
                return Issuer(f"https://localhost:{port}/", tmp_path / "ca.pem", tmp_path / "token")

            yield start

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (web.json_response({"message": "no such pod"}, status=403), "answered 403: .*no such pod"),
            (web.Response(status=302, headers={"Location": "https://evil/"}), "answered 302"),
            (web.Response(text="hello"), "is not a certificate"),
            (web.json_response({"certificate": "nonsense", "ca": ""}), "cannot be read"),
        ],
    )
    async def test_an_answer_that_is_none_is_an_error(self, endpoint, answer, said):
        async def reply(_request):
            return answer

        issuer = await endpoint(reply)
        with pytest.raises(IssuerError, match=said):
            await issuer.issue()

    @pytest.mark.parametrize(
        ("status", "told", "again"),
        [(429, "7", 7.0), (503, "0", 0.0), (503, None, 0.0), (429, "Fri, 31 Dec 1999 23:59:59 GMT", 0.0)],
    )
    async def test_when_to_come_again_is_heard(self, endpoint, status, told, again):
        async def reply(_request):
            return web.Response(status=status, headers={} if told is None else {"Retry-After": told})

        issuer = await endpoint(reply)
        with pytest.raises(IssuerError) as error:
            await issuer.issue()
        assert error.value.again == again

    async def test_a_certificate_for_another_key_is_refused(self, endpoint):
        other = ec.generate_private_key(ec.SECP256R1())

        async def reply(_request):
            return web.json_response({"certificate": pem(certificate(other)), "ca": "x"})

        issuer = await endpoint(reply)
        with pytest.raises(IssuerError, match="for another key"):
            await issuer.issue()

    async def test_the_token_is_read_anew_and_shown(self, endpoint, tmp_path):
        shown = []

        async def reply(request):
            shown.append(request.headers["Authorization"])
            return web.Response(status=401)

        issuer = await endpoint(reply)
        for token in ("first", "second"):
            (tmp_path / "token").write_text(token)
            with pytest.raises(IssuerError, match="401"):
                await issuer.issue()
        assert shown == ["Bearer first", "Bearer second"]

    async def test_an_issuer_that_the_ca_file_does_not_vouch_for_gets_no_token(self, endpoint, tmp_path):
        asked = []

        async def reply(request):
            asked.append(request)
            return web.Response()

        issuer = await endpoint(reply)
        stranger = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "ca.pem").write_text(pem(certificate(stranger, x509.DNSName("localhost"))))
        with pytest.raises(IssuerError):
            await issuer.issue()
        assert asked == []

    async def test_a_missing_token_file_is_named(self, endpoint, tmp_path):
        async def reply(_request):
            return web.Response()

        issuer = await endpoint(reply)
        (tmp_path / "token").unlink()
        with pytest.raises(IssuerError, match="token"):
            await issuer.issue()
