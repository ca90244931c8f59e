"""Certificates for sidecars: a ServiceAccount token of a pod in, a certificate for that pod out.

The token has an audience of its own, so that no other token will do; the API server says (TokenReview) whose it is. Of the
request only the public key counts. Every replica serves this, so that a sidecar can start while the leader changes.

Anybody who reaches the port can show a token, and each is a call of the API server: an address has its own budget of requests
(429 beyond it), and all together have a few reviews at a time (503 for whoever waits too long). Both answers say when to come
again. A sidecar asks twice a day, and less than once a second while it is refused, so that only crowds behind one address meet
the limit, and they pass in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from equipoise_api import names
from equipoise_api.certificates import CertificateRequest, CertificateResponse
from equipoise_api.sidecar_config import Problem
from equipoise_operator.budget import Budget, Budgets
from equipoise_operator.kube import ApiError, Json, Kube
from equipoise_operator.pki import Authority, RequestError, requested_key

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
LARGEST_BODY = 16 * 1024
ADDRESS_RATE, ADDRESS_BURST = 5.0, 20.0
"""Requests of one address a second, and at once after quiet."""
LINES_RATE, LINES_BURST = 1.0, 20.0
"""Lines of the log on refusals."""
REVIEWS = 8
"""Tokens under review at a time: the API server takes milliseconds for one."""
LONGEST_WAIT = 3.0
"""Seconds for a review's turn; with the review itself less than a sidecar's patience."""
REVIEW_SECONDS = 5.0
AGAIN_SECONDS = 2.0
"""When to come again after a 503."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class RefusedError(Exception):
    """A request for a certificate is refused, with an HTTP status, and the seconds after which it may be made again."""

    def __init__(self, status: int, message: str, *, again: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.again = again


class Issuer:
    """The endpoint. `authority` returns the present one, None before it is known."""

    def __init__(
        self,
        kube: Kube,
        *,
        install: str,
        namespaces: Collection[str],
        authority: Callable[[], Authority | None],
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._install = install
        self._namespaces = namespaces
        self._authority = authority
        self._addresses = Budgets(ADDRESS_RATE, ADDRESS_BURST, clock)
        self._lines = Budget(LINES_RATE, LINES_BURST, clock)
        self._reviews = asyncio.Semaphore(REVIEWS)
        self.on_answer: Callable[[int], None] | None = None
        """Told of every answer's HTTP status."""

    def app(self) -> web.Application:
        """Return the application that serves it."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_post(names.CERTIFICATES_PATH, self._guarded(self._issue))
        return app

    def _guarded(
        self, handle: Callable[[web.Request], Awaitable[CertificateResponse]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                issued = await handle(request)
            except RefusedError as refusal:
                if not self._lines.take():
                    log.warning(
                        "certificate-refused",
                        status=refusal.status,
                        address=request.remote,
                        error=str(refusal),
                    )
                headers = {} if refusal.again is None else {"Retry-After": str(math.ceil(refusal.again))}
                response = web.json_response(
                    Problem(message=str(refusal)).document(), status=refusal.status, headers=headers
                )
            else:
                response = web.json_response(issued.document())
            if self.on_answer is not None:
                self.on_answer(response.status)
            return response

        return answer

    async def _issue(self, request: web.Request) -> CertificateResponse:
        authority = self._authority()
        if authority is None:
            raise RefusedError(503, "the authority is not ready", again=AGAIN_SECONDS)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise RefusedError(401, "Authorization: Bearer with the pod's ServiceAccount token is missing")
        address = request.remote or ""
        wait = self._addresses.take(address)
        if wait:
            raise RefusedError(429, f"too many requests of {address}", again=wait)
        try:
            key = requested_key(CertificateRequest.model_validate_json(await request.read()).csr)
        except (ValidationError, RequestError) as error:
            raise RefusedError(400, str(error)) from error
        pod = await self._reviewed(token.strip())
        if self._namespaces and pod.namespace not in self._namespaces:
            raise RefusedError(403, f"namespace {pod.namespace} is not served by install {self._install}")
        identity = names.pod_identity(self._install, pod.uid)
        certificate = authority.sign(key, datetime.now(UTC), uris=[identity])
        log.info("certificate-issued", namespace=pod.namespace, pod=pod.name, uid=pod.uid)
        return CertificateResponse(
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(), ca=authority.bundle()
        )

    async def _reviewed(self, token: str) -> PodIdentity:
        body: Json = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        try:
            async with self._turn():
                answer = await self._kube.create(TOKEN_REVIEWS, body, deadline=REVIEW_SECONDS)
        except ApiError as error:
            message = f"the token could not be reviewed: {error}"
            raise RefusedError(503, message, again=AGAIN_SECONDS) from error
        status = answer.get("status", {})
        if not status.get("authenticated") or names.TOKEN_AUDIENCE not in status.get("audiences", ()):
            reason = status.get("error") or f"not a token for audience {names.TOKEN_AUDIENCE}"
            raise RefusedError(401, f"token refused: {reason}")
        user = status.get("user", {})
        extra = user.get("extra", {})
        pod_name = _first(extra, "authentication.kubernetes.io/pod-name")
        uid = _first(extra, "authentication.kubernetes.io/pod-uid")
        parts = str(user.get("username", "")).split(":")
        if not uid or len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
            raise RefusedError(403, "the token is not bound to a pod: project it into the pod's volumes")
        return PodIdentity(parts[2], pod_name, uid)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await self._reviews.acquire()
        except TimeoutError as late:
            raise RefusedError(503, "too many tokens are to be reviewed", again=AGAIN_SECONDS) from late
        try:
            yield
        finally:
            self._reviews.release()


def _first(extra: Json, claim: str) -> str:
    values = extra.get(claim) or [""]
    return str(values[0])
