"""TLS contexts: the operator towards sidecars, whose certificate must name the pod that is meant, and its own server.

Private keys reach OpenSSL through memory, never through a file on disk.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime

from typing_extensions import override

from equipoise_api import names
from equipoise_operator.pki import RENEWAL, Authority, KeyPair


class OperatorTls:
    """The operator's two certificates, renewed while it runs."""

    def __init__(self, install: str, hosts: Sequence[str]) -> None:
        self._install = install
        self._hosts = list(dict.fromkeys(hosts))
        self._authority: Authority | None = None
        self._issued = datetime.min.replace(tzinfo=UTC)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """For the issuer. Has a certificate from the first `renew` on."""
        self.server.minimum_version = ssl.TLSVersion.TLSv1_2
        self.client: ssl.SSLContext | None = None
        """For calls to sidecars: `server_hostname` of a call is the pod's uid. None before the first `renew`."""

    def renew(self, authority: Authority, now: datetime) -> bool:
        """Sign both anew if the authority changed or they are half through. Return whether that was done."""
        if authority == self._authority and now - self._issued < RENEWAL:
            return False
        _load(self.server, authority.own(now, hosts=self._hosts))
        client = _client_context(self._install, authority.bundle())
        _load(client, authority.own(now, uris=[names.operator_identity(self._install)]))
        self.client = client
        self._authority, self._issued = authority, now
        return True


def _client_context(install: str, bundle: str) -> ssl.SSLContext:
    class PodConnection(ssl.SSLObject):
        """A connection that ends its handshake only with the pod named by `server_hostname`."""

        @override
        def do_handshake(self) -> None:
            super().do_handshake()
            wanted = names.pod_identity(install, self.server_hostname or "")
            names_in_it = (self.getpeercert() or {}).get("subjectAltName", ())
            found = [str(pair[1]) for pair in names_in_it if pair[0] == "URI"]
            if wanted not in found:
                raise ssl.SSLCertVerificationError(f"the peer is {', '.join(found)}, not {wanted}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.load_verify_locations(cadata=bundle)
    context.sslobject_class = PodConnection
    return context


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.certificate_pem + pair.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
