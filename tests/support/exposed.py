"""All that a sidecar and an operator can expose, from scenes in which every metric has something to say."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from equipoise_api.sidecar_config import SidecarConfig
from equipoise_operator.metrics import Metrics
from equipoise_scheduling.batching import LEAST_OBSERVATIONS
from equipoise_scheduling.mapper import Load
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.app import DataPath
from equipoise_sidecar.certificate import CertificateKeeper, Issued
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.dcgm import GR_ENGINE_ACTIVE, Reading
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EndpointKind, Facts, Rejection
from equipoise_sidecar.feedback import Feedback, Heard
from equipoise_sidecar.listener import Listener
from equipoise_sidecar.metrics import SidecarMetrics
from equipoise_sidecar.policy import compile_policy
from equipoise_sidecar.report import Reporter

BLUE, RED = "team/blue", "team/red"
READING = Reading(
    devices=1,
    utilisation=0.5,
    least_utilisation=0.5,
    busy_devices=0.5,
    sm_active=0.1,
    tensor_active=0.1,
    dram_active=0.1,
    power_watts=100.0,
    xid=0,
    fields=(GR_ENGINE_ACTIVE,),
)


@dataclass(frozen=True)
class Family:
    """One metric as Prometheus sees it."""

    name: str
    """As queries name it: a counter's with _total, a histogram's without _bucket."""
    type: str
    help: str
    labels: frozenset[str]
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]
    """Name, labels and value of each."""


def families(text: str) -> dict[str, Family]:
    """Read an exposition; those of the process and of Python are left out."""
    found = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("equipoise_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        samples = tuple((s.name, tuple(sorted(s.labels.items())), s.value) for s in family.samples)
        labels = {label for _, pairs, _ in samples for label, _ in pairs} - {"le"}
        found[name] = Family(name, family.type, family.documentation, frozenset(labels), samples)
    return found


def sidecar(algorithm: str = "Equinox") -> str:
    """Return the exposition of a healthy sidecar under load, with a GPU, a shadow and a certificate."""
    return asyncio.run(_sidecar(algorithm))


async def _sidecar(algorithm: str) -> str:
    now = 1000.0
    dispatcher = Dispatcher(clock=lambda: now)
    config = SidecarConfig.model_validate(
        {
            "mode": "Enforce",
            "algorithm": {"type": algorithm},
            "shadow": [{"type": "VTC"}],
            "capacity": {"maxInFlight": 2, "kvTokens": 10_000},
            "tenants": [
                {"id": BLUE, "slo": {"ttftMilliseconds": 2000}, "limits": {"maxQueued": 1}},
                {"id": RED},
            ],
        }
    )
    dispatcher.apply(compile_policy(config, config.revision))
    dispatcher.engine_answers(reachable=True)
    dispatcher.engine.gpu.point("http://10.0.0.9:9400/metrics", now)
    signals = EngineSignals(
        running=1, waiting=0, preemptions=0, generated_tokens=0, kv_tokens=10_000, kv_usage=0
    )
    dispatcher.observe(signals)

    def send(tenant=BLUE):
        facts = Facts(
            path="/v1/chat/completions",
            kind=EndpointKind.CHAT,
            prompt_ids=100,
            max_tokens=50,
            stream=True,
            body_bytes=1000,
        )
        reservation = dispatcher.reserve(tenant, facts.body_bytes)
        return None if isinstance(reservation, Rejection) else dispatcher.submit(tenant, facts, reservation)

    for seconds in (1.0, 3.0):  # kept its SLO, missed it
        ticket = send()
        now += seconds
        ticket.first_token()
        ticket.progress(100, 10, exact=True)
        now += 1.0
        ticket.finish(Outcome.FINISHED, Usage(100, 20, cached=30))
    dispatcher.observe_gpu(READING)
    running = [send(), send(RED)]
    send(RED)
    send()
    assert send() is None, "blue's queue has room for one"
    now += 1.0
    for ticket in running:
        ticket.first_token()
        ticket.progress(100, 10, exact=True)
    dispatcher.tick()
    for _ in range(LEAST_OBSERVATIONS):
        dispatcher.engine.capacity.gate.batching.model.observe(
            1.0, steps=20, prefill_tokens=100, tokens=40, context_tokens=500
        )
    if algorithm == "Equinox":
        dispatcher.scheduler.mapper.learn(10, 10, Load(), latency=1.0, utilisation=0.5)
    dispatcher.observe_gpu(READING)
    feedback = Feedback(dispatcher, None)
    feedback.heard = Heard(signals, now)
    keeper = CertificateKeeper(None, None)
    keeper.current = Issued("", b"", "", datetime.now(UTC), datetime.now(UTC) + timedelta(hours=24))
    store = ConfigStore(dispatcher.apply, None)
    listeners = {"data": Listener(DataPath(dispatcher, None), "127.0.0.1", 0, setting="")}
    registry = CollectorRegistry()
    reporter = Reporter(dispatcher, feedback, store, "uid", "x")
    registry.register(SidecarMetrics(reporter, None, keeper, listeners))
    try:
        return generate_latest(registry).decode()
    finally:
        await store.close()


def operator() -> str:
    """Return the exposition of an operator that leads and has done each of its tasks once."""
    metrics = Metrics()
    metrics.leading.set(1)
    metrics.epoch.set(1)
    metrics.objects.labels("pods").set(1)
    metrics.events.labels("pod").inc()
    metrics.compiles.observe(0.01)
    metrics.pushes.labels("PUT", "200").inc()
    for state, count in {"all": 1, "synced": 1, "failing": 0, "outdated": 0}.items():
        metrics.sidecars.labels(state).set(count)
    metrics.status_writes.labels("tenant", "200").inc()
    metrics.certificates.labels("200").inc()
    metrics.api_calls.labels("GET", "pods", "200").observe(0.01)
    return metrics.text().decode()
