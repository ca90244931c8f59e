"""One replica, the whole operator in one process: what is made, what knows whom, and in which order it starts and stops.

Every replica observes, serves certificates and answers probes. The one that gets the Lease also compiles, pushes and
reports. The process ends when anything that should run for ever ends: the kubelet starts it anew, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import kopf
import structlog
from aiohttp import web

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_operator import handlers, health
from equipoise_operator.authority import AuthorityKeeper
from equipoise_operator.ca_bundle import CaBundle
from equipoise_operator.compile import Compiled
from equipoise_operator.controller import Controller
from equipoise_operator.events import Events, Kind
from equipoise_operator.exporters import Exporters
from equipoise_operator.fleet import Fleet
from equipoise_operator.issuer import Issuer
from equipoise_operator.kube import ApiError, Kube
from equipoise_operator.leader import Leader, LeadershipLostError, Timing, boot_clock
from equipoise_operator.listen import every_address
from equipoise_operator.metrics import Metrics
from equipoise_operator.objects import Key, Pod, Secret
from equipoise_operator.observe import channels
from equipoise_operator.pki import Authority
from equipoise_operator.push import Pusher
from equipoise_operator.relist import Relister
from equipoise_operator.reporter import Reporter
from equipoise_operator.settings import Settings
from equipoise_operator.sidecar_client import SidecarClient
from equipoise_operator.status_writer import StatusWriter
from equipoise_operator.store import Change, Store
from equipoise_operator.tls import OperatorTls
from equipoise_operator.unlabelled import UnlabelledSecrets

RENEWAL_CHECK_SECONDS = 60.0
RECOMPILE_SECONDS = 600.0
CRD_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Replica:
    """One replica. `run` until it returns the process's exit code."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], kopf.ConnectionInfo],
        *,
        timing: Timing | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.store = Store()
        self._load = load
        self._stop = asyncio.Event()
        clock = boot_clock
        self._kube = Kube(load)
        self._leader = Leader(
            self._kube,
            namespace=settings.pod_namespace,
            name=settings.lease_name,
            candidate=settings.pod_name,
            timing=timing,
        )
        leads = self._leader.leads
        self._tls = OperatorTls(
            settings.install,
            [
                *settings.issuer_names,
                *([settings.pod_ip] if settings.pod_ip else []),
                "localhost",
                "127.0.0.1",
            ],
        )
        self._authority = AuthorityKeeper(
            self._kube, namespace=settings.pod_namespace, install=settings.install, leads=leads
        )
        self._issuer = Issuer(
            self._kube,
            install=settings.install,
            namespaces=settings.watch_namespaces,
            authority=lambda: self._authority.authority,
            clock=clock,
        )
        client = SidecarClient(
            require=self._leader.require,
            context=lambda: self._tls.client,
            push_seconds=self._leader.timing.grace,
        )
        pusher = Pusher(client, epoch=lambda: self._leader.epoch, raise_above=self._leader.raise_above)
        self._exporters = Exporters(
            self._kube, namespace=settings.dcgm_namespace, selectors=settings.dcgm_selectors, leads=leads
        )
        self._fleet = Fleet(
            client,
            pusher,
            epoch=lambda: self._leader.epoch,
            clock=clock,
            exporter_on=self._exporters.on,
        )
        self._controller = Controller(
            kube=self._kube,
            store=self.store,
            fleet=self._fleet,
            install=settings.install,
            class_name=settings.class_name,
            require=self._leader.require,
        )
        self._events = Events(self._kube, instance=settings.pod_name, leads=leads, clock=clock)
        self._writer = StatusWriter(self._kube, self._events, require=self._leader.require, clock=clock)
        self._reporter = Reporter(
            store=self.store,
            controller=self._controller,
            fleet=self._fleet,
            writer=self._writer,
            clock=clock,
            exporters_problem=lambda: self._exporters.problem,
        )
        self._bundle = CaBundle(self._kube, install=settings.install, leads=leads)
        self._unlabelled = UnlabelledSecrets(
            self._kube,
            self.store.unlabelled,
            leads=leads,
            clock=clock,
            on_change=self._controller.secret_key_changed,
        )
        self._channels = channels(
            self.store,
            tenant=self._tenant_changed,
            policy=self._policy_changed,
            pod=self._pod_changed,
            secret=self._secret_changed,
        )
        self._relister = Relister(self._kube, self._channels, settings.watch_namespaces)
        self._leader.on_recovered = self._relister.request
        self._controller.on_compiled = self._compiled
        self._controller.on_forgotten = self._forgotten
        self._controller.on_placed = self._placed
        self._count(pusher)

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT (0), or until something that must not end has ended (1)."""
        self._catch_signals()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._kube.close)
            await self._serve(
                stack, health.app(alive=self._alive, ready=self._ready, metrics=self._exposition)
            )
            waiting = asyncio.create_task(self._stop.wait(), name="stop")
            forever = [
                asyncio.create_task(part, name=name)
                for name, part in (
                    ("relister", self._relister.run()),
                    ("authority", self._authority.run(self._authority_changed)),
                    ("renewal", self._renew()),
                    ("issuer", self._serve_certificates(stack)),
                    ("leader", self._lead()),
                )
            ]
            # kopf last: on its way out it cancels every task that is younger than itself.
            forever.append(asyncio.create_task(self._once_defined(self._watch), name="kopf"))
            done, _ = await asyncio.wait([waiting, *forever], return_when=asyncio.FIRST_COMPLETED)
            code = 0 if waiting in done else self._post_mortem(done)
            await self._shut_down([waiting, *forever])
            return code

    # Parts that run for ever

    async def _lead(self) -> None:
        """Wait for a full store and the Lease, then work as long as it is ours."""
        await self._relister.filled.wait()
        # The store lives as long as the process, and what compiles and states make holds no cycles: what a collection looks
        # through in vain is to be little at a time, and soon out of its way. With more in the younger generations the states
        # of a few sidecars with 10,000 tenants each made one take 0.4 s; with Python's own thresholds a compile takes double.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 1, 10_000)
        log.info("observed", tenants=len(self.store.tenants), pods=len(self.store.pods))
        await self._leader.campaign()
        self._controller.start()
        async with asyncio.TaskGroup() as group:
            for part in (
                self._leader.keep(),
                self._reporter.run(),
                self._writer.run(),
                self._events.run(),
                self._bundle.run(),
                self._unlabelled.run(),
                self._exporters.run(),
                self._recompile(),
            ):
                group.create_task(part)

    async def _watch(self) -> None:
        await self._relister.fill()
        ready = asyncio.Event()
        namespaces = self.settings.watch_namespaces
        retake = asyncio.create_task(self._retake_signals(ready))
        try:
            await kopf.operator(
                registry=handlers.registry(
                    self._channels, login=self._load, on_listed=self._relister.request
                ),
                settings=handlers.settings(self._channels),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                ready_flag=ready,
            )
        finally:
            retake.cancel()

    async def _once_defined(self, then: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for both CRDs: kopf scans once, and a chart may bring them after the Deployment."""
        told = False
        while True:
            try:
                group = await self._kube.get(f"/apis/{names.API_VERSION}")
                defined = {resource["name"] for resource in group["resources"]}
                missing = {names.TENANTS, names.FAIRNESS_POLICIES} - defined
            except ApiError as error:
                missing = {str(error)}
            if not missing:
                break
            if not told:
                log.warning("crds-missing", missing=sorted(missing))
            told = True
            await asyncio.sleep(CRD_SECONDS)
        await then()

    async def _renew(self) -> None:
        while True:
            authority = await self._authority.ready()
            self._tls.renew(authority, datetime.now(UTC))
            await asyncio.sleep(RENEWAL_CHECK_SECONDS)

    async def _recompile(self) -> None:
        while True:
            await asyncio.sleep(RECOMPILE_SECONDS)
            self._controller.mark_all()

    async def _serve_certificates(self, stack: contextlib.AsyncExitStack) -> None:
        await self._authority.ready()
        await self._serve(stack, self._issuer.app(), certificates=True)
        await asyncio.Event().wait()

    async def _serve(
        self, stack: contextlib.AsyncExitStack, app: web.Application, *, certificates: bool = False
    ) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        port = self.settings.issuer_port if certificates else self.settings.http_port
        context = self._tls.server if certificates else None
        host = self.settings.host
        site = (
            web.SockSite(runner, every_address(port), ssl_context=context)
            if host is None
            else web.TCPSite(runner, host, port, ssl_context=context)
        )
        await site.start()
        log.info("listening", what="issuer" if certificates else "http", address=runner.addresses[0])

    # What becomes of changes

    def _tenant_changed(self, change: Change[Tenant]) -> None:
        self.metrics.events.labels("tenant").inc()
        self._controller.tenant_changed(change)
        self._reporter.mark(change.key)
        self._forget_former("Tenant", change)

    def _policy_changed(self, change: Change[FairnessPolicy]) -> None:
        self.metrics.events.labels("policy").inc()
        self._controller.policy_changed(change)
        self._forget_former("FairnessPolicy", change)

    def _pod_changed(self, change: Change[Pod]) -> None:
        self.metrics.events.labels("pod").inc()
        self._controller.pod_changed(change)

    def _secret_changed(self, change: Change[Secret]) -> None:
        self.metrics.events.labels("secret").inc()
        self._controller.secret_changed(change)

    def _forget_former(self, kind: Kind, change: Change[Any]) -> None:
        former = change.before
        if former is not None and (change.after is None or change.after.uid != former.uid):
            self._reporter.gone(kind, change.key, former.uid)

    def _compiled(self, key: Key, compiled: Compiled, seconds: float) -> None:
        self.metrics.compiles.observe(seconds)
        self._reporter.compiled(key, compiled)
        self._unlabelled.miss(key, compiled.missing_secrets)

    def _forgotten(self, key: Key) -> None:
        self._reporter.forgotten(key)
        self._unlabelled.miss(key, frozenset())

    def _placed(self) -> None:
        self._bundle.want(self._controller.served_namespaces())

    def _authority_changed(self, authority: Authority) -> None:
        self._tls.renew(authority, datetime.now(UTC))
        self._bundle.publish(authority.bundle())

    # Probes and metrics

    def _alive(self) -> str:
        return "stopping" if self._stop.is_set() else ""

    def _ready(self) -> str:
        if not self._relister.filled.is_set():
            return "the cluster's objects are not all seen yet"
        if self._tls.client is None:
            return f"no authority: {self._authority.problem}"
        return self._alive()

    def _exposition(self) -> bytes:
        leads = self._leader.leads()
        self.metrics.leading.set(leads)
        self.metrics.epoch.set(self._leader.epoch)
        self.metrics.status_pending.set(self._writer.pending)
        for kind in ("tenants", "policies", "pods", "secrets"):
            self.metrics.objects.labels(kind).set(len(getattr(self.store, kind)))
        for state, count in self._fleet.census().items():
            self.metrics.sidecars.labels(state).set(count)
        return self.metrics.text()

    def _count(self, pusher: Pusher) -> None:
        metrics = self.metrics
        pusher.on_push = lambda method, status: metrics.pushes.labels(method, str(status)).inc()
        self._writer.on_write = lambda kind, status: metrics.status_writes.labels(kind, str(status)).inc()
        self._issuer.on_answer = lambda status: metrics.certificates.labels(str(status)).inc()
        self._events.on_drop = metrics.events_dropped.inc
        self._reporter.on_failure = metrics.failures.inc
        self._controller.policies.on_failure = metrics.failures.inc
        self._controller.namespaces.on_failure = metrics.failures.inc
        self._kube.on_answer = lambda method, resource, status, seconds: metrics.api_calls.labels(
            method, resource, str(status)
        ).observe(seconds)

    # The end

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _retake_signals(self, ready: asyncio.Event) -> None:
        # kopf sets handlers of its own as it starts, which would end it before the Lease is released.
        await ready.wait()
        await asyncio.sleep(0.1)
        self._catch_signals()

    def _post_mortem(self, done: set[asyncio.Task[Any]]) -> int:
        stopped = True
        for task in done:
            error = None if task.cancelled() else task.exception()
            lost = isinstance(error, ExceptionGroup) and error.subgroup(LeadershipLostError) is not None
            if lost:
                log.error("leadership-lost", error=str(error.exceptions[0]))  # type: ignore[union-attr]
            elif error is not None:
                log.error("ended", part=task.get_name(), exc_info=error)
            # kopf ends without an error when a signal came before its handlers were replaced.
            stopped = stopped and error is None and task.get_name() == "kopf"
        return 0 if stopped else 1

    async def _shut_down(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Stop pushing, then give the Lease up, then stop the rest."""
        self._stop.set()
        self._controller.stop()
        await self._fleet.close()
        by_name = {task.get_name(): task for task in tasks}
        await _cancel(by_name.pop("leader"))
        await self._leader.release()
        kopf_task = by_name.pop("kopf")
        for task in by_name.values():
            await _cancel(task)
        await _cancel(kopf_task)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=5.0)
