"""The process: three ports, the tasks beside them, and an orderly end.

Up: what is on disk is restored, then the ports open, the plain one first. Down (SIGTERM, SIGINT): readiness fails, new
work is refused, what is queued or in flight gets its time, and so do clients that still read; then what is left gets an
error and the ports close. A second signal ends that time. A task that dies takes the process with it: a sidecar without
its feedback or its clock must be restarted, not half alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import structlog
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from pydantic import ValidationError

from equipoise_api.sidecar_config import SidecarConfig
from equipoise_sidecar.admin import AdminTls, admin_app, admin_protocol
from equipoise_sidecar.app import DataPath
from equipoise_sidecar.certificate import CertificateKeeper, Issued, Issuer
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.control import ControlSocket
from equipoise_sidecar.dcgm import PodId
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.engine.pool import EnginePool
from equipoise_sidecar.exposition import exposition
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.gpu_scrape import GpuScraper
from equipoise_sidecar.health import health_app
from equipoise_sidecar.listener import Listener
from equipoise_sidecar.metrics import SidecarMetrics
from equipoise_sidecar.policy import compile_policy
from equipoise_sidecar.report import Reporter
from equipoise_sidecar.settings import Settings, SettingsError
from equipoise_sidecar.snapshots import Snapshots

TICK_SECONDS = 0.25
CUT_SECONDS = 1.0
"""What answers get after the drain's time is over."""

log = structlog.get_logger(__name__)


class Sidecar:
    """One sidecar process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        directory = settings.state_dir
        self.dispatcher = Dispatcher()
        self._pool = EnginePool(settings.engine)
        self._feedback = Feedback(self.dispatcher, self._pool)
        pod = PodId(settings.pod_namespace, settings.pod_name, settings.pod_uid)
        self._gpu = GpuScraper(self.dispatcher, pod)
        self._store = ConfigStore(self.dispatcher.apply, directory if settings.config_file is None else None)
        self._snapshots = Snapshots(self.dispatcher.snapshot, directory) if directory is not None else None
        self._reporter = Reporter(
            self.dispatcher, self._feedback, self._store, settings.pod_uid, secrets.token_hex(8)
        )
        self._keeper: CertificateKeeper | None = None
        self._tls: AdminTls | None = None
        self._listeners: dict[str, Listener] = {}
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = False
        self._patience: set[asyncio.Timeout] = set()
        """Of each drain that is going on."""
        self._drain_until: float | None = None
        """On the loop's clock, from the first request to drain on: a preStop hook and SIGTERM share the time."""

    async def run(self) -> int:
        """Serve until told to end; return the exit status. Raises SettingsError, ListenError, ControlError."""
        settings = self._settings
        await self._restore()
        registry = CollectorRegistry()
        if (
            settings.issuer_url is not None
            and settings.ca_file is not None
            and settings.token_file is not None
        ):
            issuer = Issuer(settings.issuer_url, settings.ca_file, settings.token_file)
            self._keeper = CertificateKeeper(issuer, self._use_certificate)
        ProcessCollector(registry=registry)
        metrics = SidecarMetrics(self._reporter, self._snapshots, self._keeper, self._listeners)
        health = self._listeners["health"] = Listener(
            health_app(self._reporter, lambda: exposition(metrics, registry)),
            settings.host,
            settings.health_port,
            setting="EQUIPOISE_HEALTH_PORT",
        )
        data = self._listeners["data"] = Listener(
            DataPath(self.dispatcher, self._pool),
            settings.host,
            settings.data_port,
            setting="EQUIPOISE_DATA_PORT",
        )
        path = settings.control_socket
        control = ControlSocket(path, self._drained) if path is not None else None
        try:
            await health.start()
            await data.start()
            if control is not None:
                await control.start()
            self._listen_to_signals()
            self._start_tasks()
            log.info("serving", engine=str(settings.engine), data_port=settings.data_port)
            await self._stop.wait()
            await self._drained()
            await self._until_sent(data)
        finally:
            await data.stop(CUT_SECONDS)
            await self._end_tasks()
            if (admin := self._listeners.get("admin")) is not None:
                await admin.stop(CUT_SECONDS)
            if control is not None:
                await control.stop()
            if self._snapshots is not None:
                await self._snapshots.write()
            await self._store.close()
            self._pool.close()
            await health.stop(CUT_SECONDS)
        log.info("ended")
        return 1 if self._failed else 0

    # -- up

    async def _restore(self) -> None:
        directory = self._settings.state_dir
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise SettingsError(f"EQUIPOISE_STATE_DIR: {directory}: {error.strerror}") from error
        else:
            log.warning("no EQUIPOISE_STATE_DIR: a restart forgets configuration and counters")
        if self._settings.drained_file is not None:
            self._settings.drained_file.unlink(missing_ok=True)
        if self._settings.config_file is not None:
            self._read_config_file(self._settings.config_file)
        else:
            await self._store.restore()
        if self._snapshots is not None and (state := self._snapshots.read()) is not None:
            self.dispatcher.restore(state)

    def _read_config_file(self, path: Path) -> None:
        try:
            config = SidecarConfig.strictly(yaml.safe_load(path.read_text()))
            self.dispatcher.apply(compile_policy(config, config.revision))
        except OSError as error:
            raise SettingsError(f"--config-file: {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"])
            raise SettingsError(f"--config-file: {path}: {place}: {first['msg']}") from error
        except (ValueError, yaml.YAMLError) as error:
            raise SettingsError(f"--config-file: {path}: {error}") from error
        log.info("configuration applied", revision=config.revision, tenants=len(config.tenants))

    def _start_tasks(self) -> None:
        self._start("feedback", self._feedback.run())
        self._start("clock", self._tick())
        self._start("gpu", self._gpu.run())
        if self._snapshots is not None:
            self._start("snapshots", self._snapshots.run())
        if self._keeper is not None:
            self._start("certificate", self._keeper.run())

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("a task died: the process ends", task=task.get_name(), exc_info=error)
            self._failed = True
            self._stop.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.dispatcher.tick()

    def _use_certificate(self, issued: Issued) -> None:
        if self._tls is not None:
            self._tls.use(issued)
            return
        self._tls = AdminTls(issued)
        self._start("admin", self._open_admin(self._tls))

    async def _open_admin(self, tls: AdminTls) -> None:
        assert self._settings.install is not None
        admin = self._listeners["admin"] = Listener(
            admin_app(self._store, self._reporter),
            self._settings.host,
            self._settings.admin_port,
            setting="EQUIPOISE_ADMIN_PORT",
            tls=tls.context,
            protocol=admin_protocol(self._settings.install),
        )
        await admin.start()
        log.info("admin port open", port=self._settings.admin_port)

    # -- down

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end, number)
        if self._settings.config_file is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reread, self._settings.config_file)

    def _told_to_end(self, number: int) -> None:
        if self._stop.is_set():
            log.warning("told twice: what is left is cut off")
            self._drain_until = asyncio.get_running_loop().time()
            for patience in self._patience:
                patience.reschedule(self._drain_until)
            return
        log.info("draining", signal=signal.Signals(number).name, seconds=self._settings.drain_seconds)
        self.dispatcher.drain()
        self._stop.set()

    def _reread(self, path: Path) -> None:
        try:
            self._read_config_file(path)
        except SettingsError as error:
            log.error("configuration file not taken, the former goes on", error=str(error))  # noqa: TRY400

    async def _drained(self) -> str:
        """Refuse new work and wait for the old, at most as long as is allowed; what is queued still is then turned away."""
        self.dispatcher.drain()
        if self._drain_until is None:
            self._drain_until = asyncio.get_running_loop().time() + self._settings.drain_seconds
        try:
            async with self._drain_time():
                await self.dispatcher.drained()
        except TimeoutError:
            left = sum(1 for _ in self.dispatcher.tickets())
            log.warning("drain ran out of time", left=left)
            self.dispatcher.turn_away()
            return f"timeout: {left} requests left"
        log.info("drained")
        return "drained"

    async def _until_sent(self, data: Listener) -> None:
        """Let clients take the rest of their answers in what is left of the drain's time; then give up on the engine's."""
        try:
            async with self._drain_time():
                await data.drain()
        except TimeoutError:
            log.warning("answers are cut off", connections=data.connections)
            self._pool.abandon()

    @contextlib.asynccontextmanager
    async def _drain_time(self) -> AsyncIterator[None]:
        """Raise TimeoutError when the drain's time is over. A second signal ends it at once."""
        async with asyncio.timeout_at(self._drain_until) as patience:
            self._patience.add(patience)
            try:
                yield
            finally:
                self._patience.discard(patience)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
