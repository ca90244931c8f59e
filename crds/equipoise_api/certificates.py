"""How a sidecar gets its identity: it keeps its key in memory and shows the issuer a ServiceAccount token."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from equipoise_api.model import ApiModel


class CertificateRequest(ApiModel):
    """Body of a POST to the issuer; the bearer token in `Authorization` says who asks."""

    csr: Annotated[str, StringConstraints(max_length=8192)]
    """PKCS#10 request, PEM. Only its public key is used: the identity comes from the token's pod."""


class CertificateResponse(ApiModel):
    """The signed certificate."""

    certificate: str
    """Chain for the sidecar's key, PEM, leaf first; valid for 24 hours."""
    ca: str
    """Certificates that peers are verified against, PEM (two while the authority rotates)."""
