"""Whose a request is, from its headers alone, in a fixed order: API key, then the trusted header.

A key is looked up by its HMAC-SHA-256 under the policy's key (two while it is rotated): the same few microseconds at any
number of tenants, and the time taken says nothing about the key.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from equipoise_api.names import LLM_D_FAIRNESS_ID_HEADERS
from equipoise_api.sidecar_config import SidecarConfig

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_BEARER = b"bearer "
_LONGEST_KEY = 4096
_PEERS_REMEMBERED = 4096


class Identity:
    """A configuration's keys and trusted header, ready for lookups. Immutable.

    Raises ValueError, as `field: reason`, for what the types alone do not exclude.
    """

    def __init__(self, config: SidecarConfig) -> None:
        self._secrets = [_secret(index, key.secret) for index, key in enumerate(config.hmac_keys)]
        self._by_digest: dict[bytes, str] = {}
        self._by_header: dict[bytes, str] = {}
        for index, tenant in enumerate(config.tenants):
            for digest in tenant.key_digests:
                self._claim(self._by_digest, _digest(index, digest), tenant.id, f"tenants.{index}.keyDigests")
            for value in tenant.header_values:
                self._claim(
                    self._by_header, value.encode("latin-1"), tenant.id, f"tenants.{index}.headerValues"
                )
        self.header: bytes | None = None
        """Lower-case name of the trusted header."""
        self._named_by: tuple[bytes, ...] = ()
        """Headers that may name the tenant, the one that counts first."""
        self._llm_d = False
        self._peers: tuple[Network, ...] = ()
        if config.trusted_header is not None:
            self.header = config.trusted_header.name.lower().encode()
            self._llm_d = config.trusted_header.llm_d == "Accept"
            also = LLM_D_FAIRNESS_ID_HEADERS if self._llm_d else ()
            self._named_by = tuple(dict.fromkeys((self.header, *(name.encode() for name in also))))
            self._peers = tuple(
                _network(index, peer) for index, peer in enumerate(config.trusted_header.peers)
            )
        self._is_trusted = lru_cache(maxsize=_PEERS_REMEMBERED)(self._within_peers)

    @staticmethod
    def _claim(claims: dict[bytes, str], value: bytes, tenant: str, field: str) -> None:
        if claims.setdefault(value, tenant) != tenant:
            raise ValueError(f"{field}: {tenant} claims what {claims[value]} has")

    def tenant_of(self, headers: Sequence[tuple[bytes, bytes]], peer: str | None) -> str | None:
        """Return the tenant that the headers prove; None where they prove none. Names are lower-case.

        The trusted header counts only from a trusted peer and only if all its occurrences agree: a gateway that adds
        to what the client sent, rather than replacing it, must not let the client choose.
        """
        claims: dict[bytes, bytes | None] = {}
        for name, value in headers:
            if name == b"authorization":
                key = value[7:].strip() if value[:7].lower() == _BEARER else b""
            elif name == b"x-api-key":
                key = value.strip()
            else:
                if name in self._named_by:
                    claims[name] = value if claims.get(name, value) == value else None
                continue
            if key and (tenant := self._tenant_of_key(key)) is not None:
                return tenant
        if not claims or peer is None or not self._is_trusted(peer):
            return None
        claimed = next(claims[name] for name in self._named_by if name in claims)
        return None if claimed is None else self._by_header.get(claimed.strip())

    def speaks_llm_d(self, peer: str | None) -> bool:
        """Whether llm-d's headers from this peer are to be believed."""
        return self._llm_d and peer is not None and self._is_trusted(peer)

    def _tenant_of_key(self, key: bytes) -> str | None:
        if len(key) > _LONGEST_KEY:
            return None
        for secret in self._secrets:
            tenant = self._by_digest.get(hmac.digest(secret, key, "sha256"))
            if tenant is not None:
                return tenant
        return None

    def _within_peers(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._peers)


def _secret(index: int, text: str) -> bytes:
    try:
        secret = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"hmacKeys.{index}.secret: not base64") from None
    if len(secret) != 32:
        raise ValueError(f"hmacKeys.{index}.secret: {len(secret)} bytes, must be 32")
    return secret


def _digest(index: int, text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"tenants.{index}.keyDigests: {text!r} is not the hex of a SHA-256")
    return digest


def _network(index: int, text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"trustedHeader.peers.{index}: {error}") from None
