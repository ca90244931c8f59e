"""The stand-in's HTTP face: a raw ASGI application with vLLM's paths, bodies, errors and headers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from equipoise_simulator.standin.answer import Answer
from equipoise_simulator.standin.embedding import EmbeddingShape
from equipoise_simulator.standin.errors import RequestError, bad_request, busy, invalid
from equipoise_simulator.standin.events import MessagesShape, ResponsesShape
from equipoise_simulator.standin.request import (
    Endpoint,
    Generation,
    chat_prompt,
    check_model,
    parse_body,
    read_generation,
    read_prompts,
)
from equipoise_simulator.standin.shapes import ChatShape, CompletionShape, dumps
from equipoise_simulator.standin.text import token_ids

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from equipoise_simulator.standin.answer import Shape
    from equipoise_simulator.standin.engine_loop import EngineLoop
    from equipoise_simulator.standin.faults import Faults
    from equipoise_simulator.standin.stats import Stats

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

VERSION = "0.33.0+standin"
JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
PROMETHEUS = b"text/plain; version=1.0.0; charset=utf-8"
GARBAGE_EVENTS = b'data: {"choices":[{"index":0,"delta":{"con\n\nda\xff\xfe\n\ndata: 17\n\n'
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}


class _ClientLeftError(Exception):
    """The client left while its body was read."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `vllm serve` would be told."""

    model: str = "standin"
    api_key: str | None = None
    force_include_usage: bool = False
    prompt_tokens_details: bool = False
    prefix_caching: bool = False
    """vLLM's default is True."""
    stream_interval: int = 1

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of every answer."""
        return (
            f"vllm-{VERSION.split('+', maxsplit=1)[0]}-{hashlib.sha256(self.model.encode()).hexdigest()[:8]}"
        )


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self.send = send
        self.cut: Callable[[], None] = scope["cut"]

    @property
    def request_id(self) -> str:
        given = self.headers.get(b"x-request-id")
        return given.decode("latin-1") if given else uuid4().hex

    async def body(self) -> dict[str, Any]:
        parts: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return parse_body(b"".join(parts))

    async def start(self, status: int, content_type: bytes, length: int | None = None) -> None:
        headers = [(b"content-type", content_type)]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": not last})

    async def respond(self, body: bytes | str, content_type: bytes = JSON, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else body
        await self.start(status, content_type, len(data))
        await self.write(data, last=True)


class StandInApp:
    """Routes requests; one instance an engine."""

    def __init__(self, settings: Settings, loop: EngineLoop, stats: Stats, faults: Faults) -> None:
        self.settings = settings
        self.loop = loop
        self.stats = stats
        self.faults = faults
        self.max_model_len = loop.model.profile.max_model_len

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http", "lifespan and websockets are off"
        exchange = _Exchange(scope, receive, send)
        try:
            await self._route(exchange)
        except _ClientLeftError:
            return
        except RequestError as error:
            await exchange.respond(error.body(), status=error.status)

    async def _route(self, exchange: _Exchange) -> None:
        path = exchange.path
        if path.startswith("/v1/"):
            self._check_key(exchange)
        if path in ENDPOINTS:
            await self._generate(exchange, ENDPOINTS[path], await self._posted(exchange))
        elif path == "/v1/embeddings":
            await self._embed(exchange, await self._posted(exchange))
        elif path == "/tokenize":
            await exchange.respond(self._tokenize(await self._posted(exchange)))
        elif path == "/v1/models":
            await exchange.respond(self._models())
        elif path == "/health":
            await exchange.respond(b"")
        elif path == "/metrics":
            await exchange.respond(self.stats.exposition(), PROMETHEUS)
        elif path == "/version":
            await exchange.respond(dumps({"version": VERSION}))
        else:
            await exchange.respond(b'{"detail":"Not Found"}', status=404)

    def _check_key(self, exchange: _Exchange) -> None:
        key = self.settings.api_key
        if key is not None and exchange.headers.get(b"authorization") != f"Bearer {key}".encode():
            raise RequestError(401, "Unauthorized", kind="Unauthorized")

    async def _posted(self, exchange: _Exchange) -> dict[str, Any]:
        if exchange.method != "POST":
            raise RequestError(405, "Method Not Allowed", kind="Method Not Allowed")
        return await exchange.body()

    async def _generate(self, exchange: _Exchange, endpoint: Endpoint, body: dict[str, Any]) -> None:
        settings = self.settings
        generation = read_generation(endpoint, body, model=settings.model, max_model_len=self.max_model_len)
        if settings.force_include_usage and generation.stream:  # responses and messages do not look at it
            generation.include_usage = True
        self._set_priority(generation, exchange.headers)
        answer = Answer(
            generation,
            request_id=exchange.request_id,
            created=int(time.time()),
            stream_interval=settings.stream_interval,
        )
        answer.shape = self._shape(endpoint, answer)
        await self._run(exchange, answer)

    def _shape(self, endpoint: Endpoint, answer: Answer) -> Shape:
        settings = self.settings
        if endpoint == "responses":
            return ResponsesShape(answer, model=settings.model)
        if endpoint == "messages":
            return MessagesShape(answer, model=settings.model)
        shape = ChatShape if endpoint == "chat" else CompletionShape
        return shape(
            answer,
            model=settings.model,
            fingerprint=settings.fingerprint,
            cached_details=settings.prompt_tokens_details,
        )

    async def _embed(self, exchange: _Exchange, body: dict[str, Any]) -> None:
        check_model(body, self.settings.model)
        prompts = read_prompts(body.get("input"))
        longest = max(prompt.tokens for prompt in prompts)
        if longest >= self.max_model_len:
            raise bad_request(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt contains {longest} "
                "input tokens.",
                "input_tokens",
                longest,
            )
        generation = Generation("completions", prompts, max_tokens=1, ignore_eos=True)
        self._set_priority(generation, exchange.headers)
        answer = Answer(generation, request_id=exchange.request_id, created=int(time.time()))
        answer.shape = EmbeddingShape(answer, self.settings.model)
        await self._run(exchange, answer)

    async def _run(self, exchange: _Exchange, answer: Answer) -> None:
        """Have the answer generated and send it; whatever happens, its sequences leave the engine."""
        if self.faults.busy:
            raise busy("The engine is told to be busy.")
        try:
            self.loop.submit(answer)
        except ValueError as error:
            raise bad_request(str(error), "max_tokens") from None
        left = asyncio.ensure_future(
            exchange.receive()
        )  # the body is read: the next message is the disconnect
        left.add_done_callback(lambda _: answer.cancel())
        try:
            if answer.generation.stream:
                await exchange.start(200, EVENT_STREAM)
                while data := await answer.read():
                    spoilt = self.faults.garbage_events and answer.generated_tokens > 1
                    await exchange.write(GARBAGE_EVENTS if spoilt else data)
                    await self._maybe_die(exchange, answer, left)
                await exchange.write(b"", last=True)
            elif await answer.completed():
                await self._maybe_die(exchange, answer, left)
                await exchange.respond(GARBAGE_EVENTS if self.faults.garbage_events else answer.shape.whole())
        finally:
            left.cancel()
            self.loop.cancel(answer)

    async def _maybe_die(self, exchange: _Exchange, answer: Answer, left: asyncio.Future[Any]) -> None:
        if (
            self.faults.die_after_tokens is not None
            and answer.generated_tokens >= self.faults.die_after_tokens
        ):
            exchange.cut()
            await left
            raise _ClientLeftError

    def _set_priority(self, generation: Generation, headers: dict[bytes, bytes]) -> None:
        header = headers.get(b"x-vllm-priority")
        if header is not None:
            try:
                generation.priority = int(header)
            except ValueError:
                raise bad_request(
                    f"X-Vllm-Priority must be an integer, not {header!r}.", "priority"
                ) from None
        if not -(2**63) <= generation.priority < 2**63:
            raise bad_request("priority must be a signed 64-bit integer.", "priority")
        if generation.priority and not self.loop.model.priority_scheduling:
            raise bad_request(
                f"Got priority {generation.priority} but Priority scheduling is not enabled.", "priority"
            )

    def _models(self) -> str:
        model, created = self.settings.model, int(time.time())
        permission = {
            "id": f"modelperm-{uuid4().hex[:16]}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        card = {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": self.max_model_len,
            "permission": [permission],
        }
        return dumps({"object": "list", "data": [card]})

    def _tokenize(self, body: dict[str, Any]) -> str:
        check_model(body, self.settings.model)
        if isinstance(body.get("messages"), list):
            prompt = chat_prompt(body["messages"])
            ids = token_ids(prompt.text)
            ids += [0] * (prompt.tokens - len(ids))  # the template's own tokens
        elif isinstance(body.get("prompt"), str):
            ids = token_ids(body["prompt"])
        else:
            raise invalid("missing", "body.prompt", "Field required")
        return dumps(
            {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids, "token_strs": None}
        )
