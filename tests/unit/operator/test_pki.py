"""Certificates and the authority's succession, on real cryptography and a clock that is given."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from equipoise_operator import authority as keeper
from equipoise_operator import pki
from equipoise_operator.pki import Authority, KeyPair, RequestError, new_authority

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URI = "spiffe://equipoise/pod/1234"


@pytest.fixture(scope="module")
def authority():
    return Authority(new_authority("equipoise", NOW))


def csr(key, algorithm=None):
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def verify(certificate, bundle, at, host="example.test"):
    trusted = Store(x509.load_pem_x509_certificates(bundle.encode()))
    verifier = PolicyBuilder().store(trusted).time(at).build_server_verifier(x509.DNSName(host))
    return verifier.verify(certificate, [])


def uris(certificate):
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)


def test_a_certificate_names_who_it_is_for_and_lives_a_day(authority):
    certificate = authority.own(NOW, uris=[URI]).certificate
    assert uris(certificate) == [URI]
    assert certificate.not_valid_after_utc == NOW + timedelta(hours=24)
    assert certificate.not_valid_before_utc < NOW


def test_a_certificate_for_hosts_passes_a_strict_verifier(authority):
    certificate = authority.own(NOW, hosts=["example.test", "10.0.0.1", "::1"]).certificate
    verify(certificate, authority.bundle(), NOW)
    with pytest.raises(VerificationError):
        verify(certificate, authority.bundle(), NOW, host="another.test")
    with pytest.raises(VerificationError):
        verify(certificate, authority.bundle(), NOW + timedelta(hours=25))


def test_a_certificate_cannot_sign_others(authority):
    constraints = authority.own(NOW, uris=[URI]).certificate.extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert constraints.critical
    assert not constraints.value.ca


def test_another_authority_of_the_same_name_is_not_trusted(authority):
    other = Authority(new_authority("equipoise", NOW))
    with pytest.raises(VerificationError):
        verify(other.own(NOW, hosts=["example.test"]).certificate, authority.bundle(), NOW)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()),
        (ed25519.Ed25519PrivateKey.generate(), None),
        (rsa.generate_private_key(65537, 2048), hashes.SHA256()),
    ],
    ids=["ecdsa", "ed25519", "rsa"],
)
def test_requests_with_usual_keys_are_signed(authority, key, algorithm):
    public = pki.requested_key(csr(key, algorithm))
    assert public == key.public_key()
    assert uris(authority.sign(public, NOW, uris=[URI])) == [URI]


def test_requests_that_prove_nothing_or_too_little_are_refused():
    with pytest.raises(RequestError, match="not a PKCS#10"):
        pki.requested_key("nonsense")
    with pytest.raises(RequestError, match="at least 2048"):
        pki.requested_key(csr(rsa.generate_private_key(65537, 1024), hashes.SHA256()))
    with pytest.raises(RequestError, match="ECDSA"):
        pki.requested_key(csr(dsa.generate_private_key(2048), hashes.SHA256()))
    good = csr(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    lines = good.splitlines()
    tampered = "\n".join([*lines[:-2], lines[-2][:-8] + "AAAAAAA=", lines[-1]])
    with pytest.raises(RequestError):
        pki.requested_key(tampered)


def test_an_authority_stays_as_long_as_it_is_young(authority):
    assert authority.due("equipoise", NOW + timedelta(days=3650 - 366)) is None


def test_succession_first_publishes_then_signs_then_keeps_the_former_while_it_lives(authority):
    late = NOW + timedelta(days=3650 - 300)
    published = authority.due("equipoise", late)
    assert published.present == authority.present
    assert published.bundle().count("BEGIN CERTIFICATE") == 2

    leaf = published.own(late, hosts=["example.test"]).certificate
    verify(leaf, authority.bundle(), late)
    assert published.due("equipoise", late + timedelta(hours=23)) is None

    succeeded = published.due("equipoise", late + timedelta(hours=25))
    assert succeeded.present == published.following
    assert succeeded.bundle().count("BEGIN CERTIFICATE") == 2
    at = late + timedelta(hours=25)
    verify(succeeded.own(at, hosts=["example.test"]).certificate, published.bundle(), at)
    verify(leaf, succeeded.bundle(), late + timedelta(hours=12))
    assert succeeded.due("equipoise", at) is None


def test_no_certificate_outlives_its_authority(authority):
    last = NOW + timedelta(days=3650) - timedelta(hours=1)
    assert authority.own(last, uris=[URI]).certificate.not_valid_after_utc == authority.present.expires()


def test_the_authority_survives_its_secret(authority):
    late = NOW + timedelta(days=3650 - 300)
    for held in (
        authority,
        authority.due("equipoise", late),
        authority.due("equipoise", late).due("equipoise", late + timedelta(days=2)),
    ):
        again = keeper.decode(keeper.encode(held))
        assert again.bundle() == held.bundle()
        assert again.present.key_pem == held.present.key_pem


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("tls.key"),
        lambda data: data.update({"tls.crt": "AAAA"}),
        lambda data: data.update({"tls.key": data["tls.crt"]}),
        lambda data: data.update({"tls.crt": "%"}),
    ],
)
def test_a_spoilt_secret_is_an_error_that_says_what_to_do(authority, spoil):
    data = keeper.encode(authority)
    spoil(data)
    with pytest.raises(keeper.AuthorityError, match="delete it"):
        keeper.decode(data)


def test_a_key_that_is_not_the_certificates_is_refused(authority):
    other = new_authority("equipoise", NOW)
    with pytest.raises(ValueError, match="not the certificate's"):
        KeyPair.from_pem(authority.present.certificate_pem, other.key_pem)
