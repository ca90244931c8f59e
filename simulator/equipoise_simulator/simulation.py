"""A run of the sidecar's own scheduler, gate and predictor over a model of the engine: pure, seeded, deterministic.

    from equipoise_simulator.simulation import simulate
    from equipoise_simulator.suites import suite

    result = simulate(suite("overload"), "VTC:oracle", gate="peak", profile="papers", seed=0)
    result.document()["service_difference"]

`simulate` takes a `Workload`, a `Contender` (or its name, see `contender.py`), a gate (its kind or `GateSettings`) and a
profile (its name or a `Profile`), and gives a `Result` (see `result.py`): every call's `Record`, the tenants' service over
time, and the measures as plain data.

What happens when, as in the sidecar: a decision is made whenever something arrives, ends or is preempted, and once a
second. Scheduler and gate are told of tokens just before a decision in which somebody has to wait, and once a second,
not token by token: nobody asks them in between. Events within one step of the engine are taken at its end. With more than
`MANY_CALLS` calls they are told of a request's tokens `COARSE_TOKENS` at a time, as by an engine that streams in chunks.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.gate import GateSettings
from equipoise_scheduling.measures import ServiceSeries
from equipoise_scheduling.request import Outcome, Reason, Request, Usage
from equipoise_simulator.artifact_engine import ArtifactEngine, ArtifactGate
from equipoise_simulator.contender import Contender
from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.engines import GateName, gate_of
from equipoise_simulator.profiles import Profile, profile_named
from equipoise_simulator.record import Record
from equipoise_simulator.result import BoundSeen, Result
from equipoise_simulator.rules import UNAUTHENTICATED, MinuteLimits
from equipoise_simulator.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable

    from equipoise_scheduling.base import TenantScheduler
    from equipoise_simulator.engines import Admission, Engine
    from equipoise_simulator.sequence import Step
    from equipoise_simulator.workload import Call, Workload

TICK_SECONDS = 1.0
MANY_CALLS = 10_000
COARSE_TOKENS = 32
STUCK_SECONDS = 3_600.0
"""A queue out of which nothing goes for so long while the engine is empty is a scheduler's fault."""


def simulate(
    workload: Workload,
    contender: Contender | str,
    *,
    gate: GateSettings | GateName | None = None,
    profile: Profile | str | None = None,
    seed: int = 0,
    resolution: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run a workload to its end and measure it.

    Args:
        workload: Who asks for what, when.
        contender: The scheduler with its settings and predictor, or its name, such as "VTC:oracle".
        gate: What may be in flight; None: what the contender says, else `peak`. The "papers" profile has a gate of its own.
        profile: The engine; None: the one that the workload is meant for.
        seed: Of the noisy predictor; workloads have their own.
        resolution: Tokens of a request after which scheduler and gate are told; None: 1, or `COARSE_TOKENS` of many calls.
        progress: Called with the share of the calls that have ended, at most once a simulated second.

    Raises ValueError for an unknown name or a setting that cannot be. Takes time in proportion to the calls, times the
    requests in flight.
    """
    if isinstance(contender, str):
        contender = Contender.parse(contender)
    if profile is None:
        profile = workload.profile
    if isinstance(profile, str):
        profile = profile_named(profile)
    name: GateName
    if isinstance(gate, GateSettings):
        name, settings = gate.kind, gate
    else:
        settings = contender.gate or GateSettings()
        name = gate or (settings.kind if contender.enforced else "open")
        if name != "open":
            settings = replace(settings, kind=name)
    return _Run(
        workload, contender, (name, settings), profile, seed=seed, resolution=resolution, progress=progress
    ).run()


class _Run:
    """The state of one simulation."""

    def __init__(
        self,
        workload: Workload,
        contender: Contender,
        gate: tuple[GateName, GateSettings],
        profile: Profile,
        *,
        seed: int,
        resolution: int | None,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.workload, self.contender, self.profile = workload, contender, profile
        self.scheduler: TenantScheduler = contender.scheduler(workload, seed)
        self.cost = LinearCost()
        coarse = COARSE_TOKENS if len(workload.calls) > MANY_CALLS else 1
        self.resolution = coarse if resolution is None else resolution
        self.engine: Engine
        self.gate: Admission
        self.artifact: ArtifactGate | None = None
        if profile.loop == "artifact":
            self.engine = ArtifactEngine(profile)
            lengths = {call.id: call.output_tokens for call in workload.calls}
            self.gate = self.artifact = ArtifactGate(profile, lengths, workload.adapter_rank)
        else:
            self.engine = EngineModel(profile)
            self.gate = gate_of(*gate, profile, contender.capacity)
        self.gate_name = "artifact" if self.artifact else gate[0]
        self.scheduler.set_pool(contender.capacity.kv_tokens or profile.kv_blocks * profile.block_size)
        self.rules = contender.rules if contender.enforced else None
        self.limits = MinuteLimits(self.rules) if self.rules is not None else None
        self.records: list[Record] = []
        self.living: dict[str, Record] = {}
        tenants = sorted({self._tenant_of(name) or name for name in workload.tenants})
        self.series: dict[str, ServiceSeries] = {name: ServiceSeries() for name in tenants}
        self.weights = {name: contender.weight(name, workload) for name in tenants}
        self.bound = BoundSeen()
        self.bounded = self.gate_name not in {"open", "prompt"}
        """Whether outputs to come are limited, without which no bound is published."""
        self.busy = self.work = 0.0
        self._handed: list[Sequence] = []
        """Dispatched, and too late for the step that begins."""
        self.now = 0.0
        self._progress = progress
        self._synced = -1.0
        self._tick = 0.0
        self._arrivals: list[tuple[float, int, Call]] = []
        self._followers: dict[str, list[Call]] = {}
        self._leaves: list[tuple[float, int, Record, Outcome]] = []
        for number, call in enumerate(workload.calls):
            if call.after is None:
                self._arrivals.append((call.arrival + profile.latency, number, call))
            else:
                self._followers.setdefault(call.after, []).append(call)
        self._numbers = len(workload.calls)
        heapq.heapify(self._arrivals)

    def run(self) -> Result:
        """Step from event to event until nothing is left."""
        scheduler = self.scheduler
        dispatched = 0.0
        while True:
            now = self.now
            self._leave()
            self._arrive()
            if now >= self._tick:
                self._pass_time()
            until, step = self._decide()
            if step is not None:
                dispatched = self.now = step.ends
                self._end_step()
            elif scheduler.queued:
                if now - dispatched > STUCK_SECONDS:
                    raise RuntimeError(
                        f"{self.contender.label} lets none of {scheduler.queued} requests go while the engine is empty"
                    )
                self.now = until
            elif self._arrivals:
                self.now = max(now, self._arrivals[0][0])
                dispatched = self.now
            else:
                return self._result()

    def _decide(self) -> tuple[float, Step | None]:
        """Dispatch what may go and begin a step, if there is one; return when to look again without one, and the step."""
        engine, scheduler, handed = self.engine, self.scheduler, self._handed
        artifact = engine if isinstance(engine, ArtifactEngine) else None
        if scheduler.queued and (artifact is None or artifact.open):
            self._dispatch(handed.append if self.profile.plans_ahead else engine.add)
        until = self._next_event()
        one_step = handed or (artifact and artifact.open and scheduler.queued)
        step = engine.begin(self.now, until=self.now if one_step else until)
        if handed:
            for sequence in handed:
                engine.add(sequence)
            handed.clear()
            if step is None:
                step = engine.begin(self.now, until=until)
        return until, step

    def _end_step(self) -> None:
        """End the step that is over at the present time."""
        if self.profile.plans_ahead:
            # What came while it ran has reached the engine before that plans the next.
            self._arrive()
            if self.scheduler.queued:
                self._dispatch(self.engine.add)
        self._deliver(self.engine.finish())

    def _result(self) -> Result:
        self._pass_time()
        return Result(
            workload=self.workload,
            label=self.contender.label,
            gate=self.gate_name,
            profile=self.profile,
            records=self.records,
            series=self.series,
            weights=self.weights,
            cost=self.cost,
            bound=self.bound,
            simulated_seconds=self.now,
            busy_seconds=self.busy,
            work_seconds=self.work,
            preemptions=self.engine.preemptions,
            recomputed_tokens=self.engine.recomputed_tokens,
        )

    def _next_event(self) -> float:
        until = self._tick
        if self._arrivals and self._arrivals[0][0] < until:
            until = self._arrivals[0][0]
        leaves = self._leaves
        while leaves and leaves[0][2].outcome is not None:
            heapq.heappop(leaves)
        if leaves and leaves[0][0] < until:
            until = leaves[0][0]
        return until

    # -- arrivals and departures of clients

    def _arrive(self) -> None:
        now, arrivals = self.now, self._arrivals
        if arrivals and arrivals[0][0] <= now and self.scheduler.queued:
            self._sync()
        while arrivals and arrivals[0][0] <= now:
            reached, _, call = heapq.heappop(arrivals)
            self._submit(call, reached - self.profile.latency)

    def _tenant_of(self, name: str) -> str | None:
        return name if self.rules is None else self.rules.tenant_of(name)

    def _submit(self, call: Call, arrival: float) -> None:
        tenant = self._tenant_of(call.tenant)
        record = self._record(call, tenant or call.tenant, arrival)
        request = record.request
        self.records.append(record)
        expected = self.cost(call.prompt_tokens, 0, call.output_tokens)
        self.series[request.tenant].demand(self.now, expected / self.weights[request.tenant])
        reason = self._refusal(record) if tenant is not None else UNAUTHENTICATED
        if reason is not None:
            self._end(record, Outcome.REFUSED, reason)
            return
        self.living[call.id] = record
        timeout = self.workload.client_timeout
        if timeout is not None:
            heapq.heappush(self._leaves, (arrival + timeout, len(self.records), record, Outcome.CANCELLED))
        if self.rules is not None:
            entry = (arrival + self.rules.max_wait, len(self.records), record, Outcome.EXPIRED)
            heapq.heappush(self._leaves, entry)

    def _record(self, call: Call, tenant: str, arrival: float) -> Record:
        promise = self.rules.of(tenant).promise(call.application) if self.rules is not None else None
        ttft, e2e, tpot = call.ttft_budget, call.e2e_budget, None
        if promise is not None:
            ttft = _seconds(promise.ttft_milliseconds) if ttft is None else ttft
            e2e = _seconds(promise.e2e_milliseconds) if e2e is None else e2e
            tpot = _seconds(promise.tpot_milliseconds)
        request = Request(
            id=call.id,
            tenant=tenant,
            arrival=arrival,
            prompt_tokens=call.prompt_tokens,
            max_tokens=max(1, min(call.max_tokens, self.profile.max_model_len - call.prompt_tokens)),
            application=call.application,
            user=call.user,
            interaction=call.interaction,
            call_index=call.call_index,
            call_count=call.call_count,
            system_tokens=call.system_tokens,
            ttft_budget=ttft,
            e2e_budget=e2e,
        )
        return Record(call, request, tpot_budget=tpot)

    def _refusal(self, record: Record) -> str | None:
        """Offer a request to limits, gate and scheduler; return why it is refused."""
        call, request = record.call, record.request
        if call.prompt_tokens + call.output_tokens > self.profile.max_model_len:
            return Reason.NEVER_FITS
        if self.limits is not None:
            reason = self.limits.refusal(request.tenant, call, self.now)
            if reason is not None:
                return reason
        refusal = self.gate.refuse(request) or self.scheduler.enqueue(request, self.now)
        return None if refusal is None else refusal.reason

    def _leave(self) -> None:
        """Let requests go whose client has waited long enough, or that have waited in the queue as long as they may."""
        leaves = self._leaves
        while leaves and leaves[0][0] <= self.now:
            _, _, record, outcome = heapq.heappop(leaves)
            sequence = record.sequence
            if record.outcome is not None or (outcome is Outcome.EXPIRED and sequence is not None):
                continue
            if sequence is None:
                self.scheduler.cancel(record.request, self.now, outcome)
            else:
                self._count(record, self.engine.generated(sequence))
                self.engine.abort(sequence)
                usage = Usage(record.call.prompt_tokens, record.generated, exact=False)
                self.scheduler.settle(record.request, usage, outcome, self.now)
                self.gate.finish(record.request)
            self._end(record, outcome)

    def _end(self, record: Record, outcome: Outcome, reason: str | None = None) -> None:
        """End a call, however; the one place where that happens."""
        call = record.call
        record.outcome, record.reason, record.ended = outcome, reason, self.now
        self.living.pop(call.id, None)
        followers = self._followers.pop(call.id, ())
        if outcome is Outcome.FINISHED:
            for follower in followers:
                reaches = self.now + follower.arrival + self.profile.latency
                heapq.heappush(self._arrivals, (reaches, self._numbers, follower))
                self._numbers += 1

    # -- decisions

    def _dispatch(self, hand: Callable[[Sequence], object]) -> None:
        self._sync()
        now, scheduler, gate = self.now, self.scheduler, self.gate
        if self.artifact is not None:
            self.artifact.pass_begins()

        def fits(request: Request) -> bool:
            return gate.fits(request, now)

        while (request := scheduler.next(now, fits)) is not None:
            record = self.living[request.id]
            gate.start(request)
            record.dispatched, record.predicted, record.work = now, request.predicted_tokens, self.work
            record.sequence = Sequence(
                record.call.prompt_tokens,
                record.call.leaves_after or record.call.output_tokens,
                priority=request.priority,
                arrival=now,
                owner=record,
            )
            hand(record.sequence)
        self._collect_refused()

    def _collect_refused(self) -> None:
        for request, refusal in self.scheduler.refused():
            self._end(self.living[request.id], Outcome.REFUSED, refusal.reason)

    def _pass_time(self) -> None:
        """Tick, as the sidecar does once a second."""
        self._sync()
        self.scheduler.tick(self.now)
        self.gate.tick(self.now)
        self._collect_refused()
        if self.bounded:
            self.bound.note(self.scheduler.bound(self.now))
        self._tick = (math.floor(self.now / TICK_SECONDS) + 1) * TICK_SECONDS
        if self._progress is not None:
            ended = len(self.records) - len(self.living)
            self._progress(ended / len(self.workload.calls))

    # -- delivery

    def _sync(self) -> None:
        """Tell scheduler, gate and measures what every sequence has generated so far."""
        if self._synced == self.now:
            return
        self._synced = self.now
        resolution = self.resolution
        for sequence, generated in self.engine.decoded():
            record = sequence.owner
            if generated - record.generated >= resolution:
                self._count(record, generated)

    def _count(self, record: Record, generated: int) -> None:
        news = generated - record.generated
        if news <= 0:
            return
        prompt, tenant, cost = record.call.prompt_tokens, record.request.tenant, self.cost
        service = cost.output * news + (0.0 if record.generated else cost.input * prompt)
        record.generated = generated
        self.series[tenant].deliver(self.now, service / self.weights[tenant])
        self.scheduler.progress(record.request, prompt, generated, self.now)
        self.gate.progress(record.request, prompt, generated)

    def _deliver(self, step: Step) -> None:
        now = self.now
        seconds = step.ends - step.begins
        self.busy += max(0.0, min(step.ends, self.workload.seconds) - step.begins)
        self.work += seconds - self.profile.a0 * max(1, step.count)
        for sequence in step.preempted:
            self._count(sequence.owner, self.engine.generated(sequence))
        if step.preempted:
            self.gate.preempted(now, len(step.preempted))
        for sequence in step.first:
            record = sequence.owner
            if record.first_token is None:
                record.first_token = now
            self._count(record, self.engine.generated(sequence))
        for sequence in step.finished:
            record = sequence.owner
            call = record.call
            generated = call.leaves_after or call.output_tokens
            self._count(record, generated)
            life = now - record.dispatched
            outcome = Outcome.FINISHED if call.leaves_after is None else Outcome.CANCELLED
            usage = Usage(
                call.prompt_tokens,
                generated,
                exact=call.leaves_after is None,
                gpu_utilisation=min(1.0, max(0.0, (self.work - record.work) / life)) if life > 0 else None,
            )
            self.scheduler.settle(record.request, usage, outcome, now)
            self.gate.finish(record.request)
            self._end(record, outcome)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
