"""Certificates: an authority, what it signs, and how it is succeeded. Pure but for random keys.

ECDSA on P-256. An authority lives ten years. In its last year a successor is made: for a day both are published while the
old one signs, so that every peer trusts the new one before it sees it; then the new one signs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SUCCESSION = timedelta(days=365)
"""What is left of an authority's life when its successor is made."""
PUBLICATION = timedelta(days=1)
"""How long a successor is published before it signs."""
LEAF_LIFETIME = timedelta(hours=24)
RENEWAL = timedelta(hours=12)
"""Age at which the operator's own certificates are replaced."""
SKEW = timedelta(minutes=5)
"""How far a peer's clock may be behind."""


class RequestError(ValueError):
    """A certificate request that cannot be signed; the message says why."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> Self:
        """Parse both. ValueError if either is malformed or they do not belong together."""
        private = serialization.load_pem_private_key(key, password=None)
        parsed = x509.load_pem_x509_certificate(certificate)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != parsed.public_key():
            raise ValueError("the private key is not the certificate's")
        return cls(parsed, private)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PKCS#8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def expires(self) -> datetime:
        """Return the end of its validity."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs, who will, and who did: all that peers must trust."""

    present: KeyPair
    following: KeyPair | None = None
    former: tuple[x509.Certificate, ...] = ()

    def bundle(self) -> str:
        """Return every certificate that a peer verifies against, PEM."""
        trusted = [self.present.certificate, *([self.following.certificate] if self.following else [])]
        return "".join(
            certificate.public_bytes(serialization.Encoding.PEM).decode()
            for certificate in (*trusted, *self.former)
        )

    def due(self, install: str, now: datetime) -> Authority | None:
        """Return what the authority must become; None while it stays."""
        if self.following is not None:
            if now < self.following.certificate.not_valid_before_utc + SKEW + PUBLICATION:
                return None
            former = [c for c in (self.present.certificate, *self.former) if c.not_valid_after_utc > now]
            return Authority(self.following, None, tuple(former))
        if self.present.expires() - now > SUCCESSION:
            return None
        return Authority(self.present, new_authority(install, now), self.former)

    def sign(
        self,
        public_key: CertificatePublicKeyTypes,
        now: datetime,
        *,
        uris: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        """Sign a certificate for 24 hours. `hosts` are DNS names or addresses."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [_host(host) for host in hosts]
        ends = min(now + LEAF_LIFETIME, self.present.expires())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        return (
            _builder(public_key, self.present.certificate.subject, now, ends)
            .subject_name(x509.Name([]))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Critical, since the subject is empty (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.present.key.public_key()),
                critical=False,
            )
            .sign(self.present.key, hashes.SHA256())
        )

    def own(self, now: datetime, *, uris: Sequence[str] = (), hosts: Sequence[str] = ()) -> KeyPair:
        """Make a key of the operator's own and sign it."""
        key = ec.generate_private_key(ec.SECP256R1())
        return KeyPair(self.sign(key.public_key(), now, uris=uris, hosts=hosts), key)


def new_authority(install: str, now: datetime) -> KeyPair:
    """Make a self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{install} authority {now:%Y-%m-%d}")])
    certificate = (
        _builder(key.public_key(), subject, now, now + AUTHORITY_LIFETIME)
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate, key)


def requested_key(csr: str) -> CertificatePublicKeyTypes:
    """Return the public key of a PKCS#10 request that proves possession of it. RequestError if it does not."""
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        proven = request.is_signature_valid
        key = request.public_key()
    except Exception as error:  # the parser raises its own kinds, among them UnsupportedAlgorithm
        raise RequestError(f"csr: not a PKCS#10 request in PEM: {error}") from error
    if not proven:
        raise RequestError("csr: its signature is not by its key")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    if isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        return key
    raise RequestError("csr: the key must be ECDSA, Ed25519, or RSA of at least 2048 bits")


def _builder(
    public_key: CertificatePublicKeyTypes, issuer: x509.Name, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
