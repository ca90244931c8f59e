"""The stand-in engine as an object: `async with StandIn(profile="fast", speed=10, port=0) as engine: engine.url`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from typing_extensions import override

from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.profiles import Profile, profile_named
from equipoise_simulator.standin.app import Settings, StandInApp
from equipoise_simulator.standin.dcgm import DcgmExporter, DcgmPlace
from equipoise_simulator.standin.engine_loop import EngineLoop
from equipoise_simulator.standin.faults import Faults, protocol_with
from equipoise_simulator.standin.prefix_cache import PrefixCache
from equipoise_simulator.standin.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

KEEP_ALIVE_SECONDS = 5
SOCKET_MODE = 0o755


class _Server(uvicorn.Server):
    """uvicorn without its hold on the process's signals."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class StandIn:
    """An OpenAI-compatible server before an engine model that runs in real time, `speed` times as fast.

    Listens on `host`:`port` (0 takes a free one) or, with `uds`, on a Unix socket of mode 0755 as vLLM's. With `dcgm` there
    is a stand-in for dcgm-exporter, too.
    """

    def __init__(
        self,
        *,
        profile: Profile | str = "fast",
        speed: float = 1.0,
        host: str = "127.0.0.1",
        port: int = 0,
        uds: Path | str | None = None,
        settings: Settings | None = None,
        priority_scheduling: bool = False,
        max_num_queued_reqs: int | None = None,
        faults: Faults | None = None,
        dcgm: DcgmPlace | None = None,
    ) -> None:
        named = profile_named(profile) if isinstance(profile, str) else profile
        self.settings = settings or Settings()
        self.faults = faults or Faults()
        self.model = EngineModel(
            named.scaled(speed),
            priority_scheduling=priority_scheduling,
            max_num_queued_reqs=max_num_queued_reqs,
        )
        cache = PrefixCache(self.model.profile) if self.settings.prefix_caching else None
        if cache is not None:
            self.model.cached = cache.admit
        self.stats = Stats(self.model, self.settings.model, cache)
        self.loop = EngineLoop(self.model, self.stats)
        self.host = host
        self.port = port
        self.uds = None if uds is None else Path(uds)
        self.dcgm = None if dcgm is None else DcgmExporter(self.stats, dcgm)
        self.dcgm_port = 0
        """Where the exporter listens, once it does."""
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Base address, without a path; for a Unix socket the host is a name only."""
        return "http://localhost" if self.uds else f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        """Listen and begin to step."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop as a killed engine does: streams are cut."""
        await self.stop()

    async def start(self) -> None:
        """Listen and begin to step; OSError when an address cannot be had."""
        app = StandInApp(self.settings, self.loop, self.stats, self.faults)
        engine = _Server(_config(app, protocol_with(self.faults), self.uds))
        listener = None if self.uds else _bind(self.host, self.port)
        if listener is not None:
            self.port = listener.getsockname()[1]
        served = [(engine, listener)]
        if self.dcgm is not None:
            place = self.dcgm.place
            try:
                metrics = _bind(place.host, place.port)
            except OSError:
                if listener is not None:
                    listener.close()
                raise
            self.dcgm_port = metrics.getsockname()[1]
            served.append((_Server(_config(self.dcgm, "httptools", None)), metrics))
        self._servers = [server for server, _ in served]
        self._tasks = [
            asyncio.create_task(self.loop.run(), name="stand-in engine"),
            *(
                asyncio.create_task(
                    server.serve(sockets=None if found is None else [found]), name="stand-in HTTP"
                )
                for server, found in served
            ),
        ]
        while not all(server.started for server in self._servers):
            for task in self._tasks[1:]:
                if task.done():
                    task.result()
                    raise OSError(f"the stand-in could not listen on {self.uds or self.url}")
            await asyncio.sleep(0.005)
        if self.uds:
            self.uds.chmod(SOCKET_MODE)

    async def stop(self) -> None:
        """Close the listeners, cut what is open, free the addresses."""
        assert self._servers, "the stand-in was not started"
        for server in self._servers:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            server.should_exit = True
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.uds:
            self.uds.unlink(missing_ok=True)

    async def serve_forever(self) -> None:
        """Wait until the engine or the server ends; what ended it is raised."""
        ended, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


def _config(app: Any, protocol: Any, uds: Path | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol,
        uds=str(uds) if uds else None,
        lifespan="off",
        ws="none",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {host}:{port}") from None
    return listener
