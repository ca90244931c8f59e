"""A request's way through the sidecar: identify, admit, queue, send, stream, settle. A raw ASGI application.

    DataPath.__call__ ─┬─ not offered                        404
                       ├─ public, or not scheduled           passed on at once (`_pass`)
                       └─ scheduled ── _schedule ── body ── Dispatcher.submit ── ticket ── _serve ── _answer

Whatever happens after `submit`, the `finally` of `_schedule` ends the ticket, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from equipoise_api.names import DEFAULT_TENANT
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.admission import DRAINING, Refused, Reservation
from equipoise_sidecar.body import BodyError
from equipoise_sidecar.client import CLOSE, BodyRefusedError, Client, ClientLeftError, Receive, Scope, Send
from equipoise_sidecar.declared import DeclarationError, read_headers
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.engine.errors import EngineAbandonedError, EngineError, EngineUnreachableError
from equipoise_sidecar.engine.http1 import EngineConnection
from equipoise_sidecar.engine.pool import EnginePool
from equipoise_sidecar.errors import error_event
from equipoise_sidecar.facts import EndpointKind, Rejection
from equipoise_sidecar.headers import QUEUED, SCHEDULER, TENANT, Headers, request_head, response_headers
from equipoise_sidecar.job import Job, prepare, read_job
from equipoise_sidecar.paths import Endpoint, find
from equipoise_sidecar.progress import Reader, WholeReader
from equipoise_sidecar.ticket import Ticket

log = logging.getLogger(__name__)

_NOTHING_USED = Usage(prompt=0, generated=0)
_EVENT_STREAM = b"text/event-stream"
_SMALL_ANSWER = 64 * 1024
_DISCARD_SECONDS = 1.0
_PUBLIC_BODY_BYTES = 64 * 1024
"""Of a request that nobody has to prove anything for: probes and preflights have no body."""


class DataPath:
    """The application that clients talk to."""

    def __init__(self, dispatcher: Dispatcher, pool: EnginePool) -> None:
        self._dispatcher = dispatcher
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here: run uvicorn with lifespan='off' and ws='none'")
        client = Client(scope, receive, send)
        endpoint = find(scope["path"])
        if endpoint is None:
            message = f"{scope['path']} is not an endpoint of this service."
            rejection = Rejection(404, Refused.UNKNOWN_PATH, message)
            await client.refuse(EndpointKind.CHAT, self._dispatcher.refuse(DEFAULT_TENANT, rejection))
            return
        with contextlib.suppress(ClientLeftError):
            await self._route(client, endpoint)

    async def _route(self, client: Client, endpoint: Endpoint) -> None:
        method = client.scope["method"]
        # a browser's preflight carries no credentials, and the engine answers it without work
        if endpoint.public or method == "OPTIONS":
            await self._pass(client, endpoint, DEFAULT_TENANT, limit=_PUBLIC_BODY_BYTES)
            return
        tenant = self._dispatcher.identify(client.headers, client.peer)
        if isinstance(tenant, Rejection):
            await client.refuse(endpoint.shape, tenant)
        elif endpoint.kind is not None and method == "POST":
            await self._schedule(client, endpoint, endpoint.kind, tenant)
        else:
            await self._pass(client, endpoint, tenant, limit=self._limit)

    @property
    def _limit(self) -> int | None:
        """Bytes of the largest body; None where requests pass through."""
        policy = self._dispatcher.policy
        return policy.max_body_bytes if policy.enforce else None

    # -- not scheduled ----------------------------------------------------------------------------------------------

    async def _pass(self, client: Client, endpoint: Endpoint, tenant: str, *, limit: int | None) -> None:
        """Send a request on at once, and its answer back as it is. What is refused counts as `tenant`'s."""
        if not client.has_body:
            await self._relay(client, endpoint, tenant, None)
            return
        room = self._dispatcher.reserve(tenant, client.content_length, waits=False)
        if isinstance(room, Rejection):
            await client.refuse(endpoint.shape, room)
            return
        try:
            timeout = self._dispatcher.policy.body_timeout_seconds
            body = await client.body(limit=limit, timeout=timeout, grown=room.grow)
            await self._relay(client, endpoint, tenant, body)
        except BodyRefusedError as error:
            await client.refuse(endpoint.shape, self._dispatcher.refuse(tenant, error.rejection))
        finally:
            room.release()

    async def _relay(self, client: Client, endpoint: Endpoint, tenant: str, body: bytes | None) -> None:
        head = self._head(client, endpoint, body)
        async with client.watched():
            try:
                answer = await self._pool.exchange(
                    head, body or b"", no_body=client.scope["method"] == "HEAD"
                )
            except EngineError as error:
                await client.refuse(endpoint.shape, self._dispatcher.refuse(tenant, _failed(error)))
                return
            try:
                await client.start(answer.status, response_headers(answer.headers))
                while data := await answer.read():
                    await client.write(data)
                await client.finish()
            except EngineError as error:
                _leave_open(endpoint, error)
            finally:
                self._pool.release(answer)

    # -- scheduled --------------------------------------------------------------------------------------------------

    async def _schedule(self, client: Client, endpoint: Endpoint, kind: EndpointKind, tenant: str) -> None:
        """Admit a request, wait for its turn, serve it, and end its ticket whatever happens."""
        reservation = self._dispatcher.reserve(tenant, client.content_length)
        if isinstance(reservation, Rejection):
            await client.refuse(endpoint.shape, reservation)
            return
        try:
            job = await self._read(client, endpoint, kind, reservation)
            ticket = self._dispatcher.submit(tenant, job.facts, reservation)
        except BodyRefusedError as error:
            await client.refuse(endpoint.shape, self._dispatcher.refuse(tenant, error.rejection))
            return
        finally:
            reservation.release()
        if isinstance(ticket, Rejection):
            await client.refuse(endpoint.shape, ticket)
            return
        try:
            async with client.watched():
                await self._serve(client, job, ticket)
        finally:
            ticket.finish(Outcome.CANCELLED if client.left else Outcome.FAILED)

    async def _read(
        self, client: Client, endpoint: Endpoint, kind: EndpointKind, reservation: Reservation
    ) -> Job:
        """Read the body and what it says. Raises BodyRefusedError, ClientLeftError."""
        policy = self._dispatcher.policy
        try:
            declared = read_headers(client.headers, llm_d=policy.identity.speaks_llm_d(client.peer))
        except DeclarationError as error:
            if policy.enforce:
                raise BodyRefusedError(Rejection(400, Refused.BAD_DECLARATION, str(error))) from None
            declared = {}
        raw = await client.body(
            limit=self._limit,
            timeout=policy.body_timeout_seconds,
            grown=reservation.grow,
        )
        try:
            job = read_job(
                endpoint,
                kind,
                raw,
                declared,
                strict=policy.enforce,
                features=policy.looks_at_requests,
                prefixes=policy.schedules and self._dispatcher.engine.prefixes.active,
            )
        except DeclarationError as error:
            raise BodyRefusedError(Rejection(400, Refused.BAD_DECLARATION, str(error))) from None
        except BodyError as error:
            raise BodyRefusedError(Rejection(400, Refused.BAD_BODY, str(error))) from None
        request_id = client.header(b"x-request-id")
        job.facts.request_id = request_id.decode("latin-1") if request_id else ""
        return job

    async def _serve(self, client: Client, job: Job, ticket: Ticket) -> None:
        """Wait for the engine to take the request, then send its answer back."""
        endpoint = job.endpoint
        while (rejection := await ticket.dispatched()) is None:
            policy = self._dispatcher.policy
            profile = self._dispatcher.engine.profile
            body, reader = prepare(job, profile, edit=policy.enforce)
            priority = (ticket.priority if profile.priorities else 0) if policy.enforce else None
            head = self._head(client, endpoint, body, priority)
            try:
                answer = await self._pool.exchange(head, body)
            except EngineError as error:
                if isinstance(error, EngineUnreachableError):
                    ticket.unreachable()
                    continue
                log.warning("%s: %s", endpoint.path, error)
                ticket.finish(Outcome.FAILED)
                await client.refuse(endpoint.shape, _failed(error), self._explain(ticket))
                return
            try:
                if answer.status == 503 and policy.enforce:
                    await _discard(answer)
                    ticket.busy()
                    continue
                job.forget()
                del body
                await self._answer(client, job, ticket, answer, reader)
                return
            finally:
                self._pool.release(answer)
        await client.refuse(endpoint.shape, rejection, self._explain(ticket))

    async def _answer(
        self, client: Client, job: Job, ticket: Ticket, answer: EngineConnection, reader: Reader
    ) -> None:
        """Send the engine's answer on, and note how far it is."""
        readable = answer.header(b"content-encoding") in (b"", b"identity")
        streams = readable and answer.header(b"content-type").startswith(_EVENT_STREAM)
        if not streams:
            reader = WholeReader()
        ticket.streams = streams
        if ticket.prefix is not None and ticket.prefix.goes_on:
            reader.hearer = ticket.prefix.said
        good = answer.status < 400
        await client.start(answer.status, self._answer_head(answer, ticket))
        waiting = good
        seen = -1
        try:
            while data := await answer.read():
                data = reader.feed(data)
                if waiting and reader.started:
                    waiting = False
                    ticket.first_token()
                if reader.generated != seen and streams:
                    seen = reader.generated
                    ticket.progress(reader.prompt, seen, exact=reader.exact)
                if data:
                    ticket.stalled = True
                    await client.write(data)
                    ticket.stalled = False
        except EngineError as error:
            ticket.finish(Outcome.FAILED)
            if streams:
                await client.write(error_event(job.facts.kind, _failed(error).status, str(error)))
            _leave_open(job.endpoint, error)
            return
        rest = reader.end()
        # settled before the last bytes are sent: the engine is done, however slow the client is
        ticket.finish(*_settlement(answer.status, reader))
        await client.finish(rest)

    def _head(
        self, client: Client, endpoint: Endpoint, body: bytes | None, priority: int | None = None
    ) -> bytes:
        policy = self._dispatcher.policy
        query: bytes = client.scope["query_string"]
        target = endpoint.path.encode() + (b"?" + query if query else b"")
        return request_head(
            client.scope["method"],
            target,
            client.headers,
            authority=self._pool.address.authority,
            body_bytes=None if body is None else len(body),
            dropped=policy.trusted_header,
            api_key=policy.engine_api_key,
            priority=priority,
        )

    def _answer_head(self, answer: EngineConnection, ticket: Ticket) -> Headers:
        headers = response_headers(answer.headers)
        if ticket.streams:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        if self._dispatcher.draining:
            headers.append(CLOSE)  # the next request belongs to another replica
        return headers + self._explain(ticket)

    def _explain(self, ticket: Ticket) -> Headers:
        return [
            (TENANT, ticket.tenant.encode()),
            (QUEUED, b"%d" % (ticket.queued_seconds * 1000)),
            (SCHEDULER, self._dispatcher.policy.algorithm.encode()),
        ]


def _settlement(status: int, reader: Reader) -> tuple[Outcome, Usage | None]:
    """Say how an answer that came to its end ended, and what it used as far as the engine said so."""
    usage = reader.usage
    if reader.failed or status >= 500:
        return Outcome.FAILED, usage
    if status >= 400:
        return Outcome.FINISHED, usage or _NOTHING_USED
    return Outcome.FINISHED, usage


async def _discard(answer: EngineConnection) -> None:
    """Read a refusal to its end, so that its connection can be used again; give up on one that has no end."""
    length = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while length < _SMALL_ANSWER and (data := await answer.read()):
                length += len(data)
    except (EngineError, TimeoutError) as error:
        log.debug("the engine's 503 broke off: %s", error)


def _failed(error: EngineError) -> Rejection:
    if isinstance(error, EngineUnreachableError):
        return Rejection(503, Refused.ENGINE_UNREACHABLE, "The engine does not answer.", 1.0)
    if isinstance(error, EngineAbandonedError):
        return DRAINING
    return Rejection(502, Refused.ENGINE_FAILED, f"The engine failed: {error}.")


def _leave_open(endpoint: Endpoint, error: EngineError) -> None:
    """Note an answer that broke off. It is not completed: uvicorn then closes the connection, and the client knows."""
    log.warning("%s: the engine's answer broke off: %s", endpoint.path, error)
