"""The request's way as it runs: uvicorn on loopback, the dispatcher behind it, an engine that the test chose."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from equipoise_api.names import DEFAULT_TENANT
from equipoise_api.sidecar_config import SidecarConfig
from equipoise_scheduling.request import Outcome
from equipoise_sidecar.app import DataPath
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.engine.pool import EngineAddress, EnginePool
from equipoise_sidecar.facts import EngineProfile
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.listener import Listener
from equipoise_sidecar.policy import compile_policy

NOTHING = (0, 0, 0, 0, 0, 0)
CHAT = "/v1/chat/completions"
HELLO = {"model": "standin", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stack:
    """A running data path and short ways to talk to it."""

    dispatcher: Dispatcher
    pool: EnginePool
    listener: Listener
    port: int
    clients: list[EnginePool] = field(default_factory=list)

    def client(self) -> EnginePool:
        """Return keep-alive connections to the sidecar: the engine's client serves as one."""
        pool = EnginePool(EngineAddress.parse(f"http://127.0.0.1:{self.port}"))
        self.clients.append(pool)
        return pool

    async def ask(
        self,
        path: str = CHAT,
        document: Any = HELLO,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        client: EnginePool | None = None,
    ) -> Answer:
        """Send one request, `document` as JSON or as bytes, and read the whole answer."""
        body = (
            document
            if isinstance(document, bytes)
            else b""
            if document is None
            else json.dumps(document).encode()
        )
        method = method or ("GET" if document is None else "POST")
        answer = await (pool := client or self.client()).exchange(
            head(path, body, method, headers), body, no_body=method == "HEAD"
        )
        try:
            pieces = []
            while data := await answer.read():
                pieces.append(data)
            names = {name.decode(): value.decode() for name, value in answer.headers}
            return Answer(answer.status, names, b"".join(pieces))
        finally:
            pool.release(answer)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    def outcomes(self, tenant: str = DEFAULT_TENANT) -> dict[Outcome, int]:
        account = self.dispatcher.accounting.get(tenant)
        return dict(account.outcomes) if account is not None else {}

    async def settled(self, **outcomes: int) -> None:
        """Wait until the default tenant's requests ended so, and nothing is held."""
        expected = {Outcome(name): count for name, count in outcomes.items()}
        async with asyncio.timeout(60):
            while self.outcomes() != expected or self.held() != NOTHING:
                await asyncio.sleep(0.005)

    def held(self) -> tuple[int, ...]:
        """What the requests that have not ended hold."""
        dispatcher = self.dispatcher
        scheduler, admission = dispatcher.scheduler, dispatcher.admission
        return (
            len(list(dispatcher.tickets())),
            scheduler.queued,
            scheduler.in_flight,
            admission.held_bytes,
            admission.reading,
            dispatcher.engine.capacity.gate.sequences,
        )


def head(path: str, body: bytes, method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: service", "content-type: application/json"]
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@contextlib.asynccontextmanager
async def stack(
    engine: str,
    *,
    profile: EngineProfile | None = None,
    watch_engine: bool = False,
    **config: Any,
) -> AsyncIterator[Stack]:
    """Run the data path before the engine at this address. `watch_engine`: with the feedback loop, which probes it."""
    config.setdefault("mode", "Enforce")
    config.setdefault("algorithm", {"type": "VTC"})
    config.setdefault("capacity", {"maxInFlight": 100, "kvTokens": 100_000})
    document = SidecarConfig.model_validate(config)
    dispatcher = Dispatcher()
    dispatcher.apply(compile_policy(document, document.revision))
    pool = EnginePool(EngineAddress.parse(engine))
    listener = Listener(DataPath(dispatcher, pool), "127.0.0.1", 0, setting="EQUIPOISE_DATA_PORT")
    await listener.start()
    port = listener._server.servers[0].sockets[0].getsockname()[1]
    tasks = []
    if watch_engine:
        tasks.append(asyncio.create_task(Feedback(dispatcher, pool).run()))
    else:
        dispatcher.connected(
            profile or EngineProfile(max_model_len=4096, models=("served",), priorities=True)
        )
        dispatcher.engine_answers(reachable=True)
    it = Stack(dispatcher, pool, listener, port)
    try:
        yield it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in it.clients:
            client.close()
        pool.close()
        await listener.stop(1)
