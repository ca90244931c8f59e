"""An adversary for schedulers: any events in any order, and its own books to judge by.

It decides everything a scheduler has no say in: who sends what and when, how wrong the estimates are, what the engine
delivers in which order, who leaves when, when the engine is busy. Operations are small tuples of numbers, so that
hypothesis can shrink them.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.gate import Gate, GateSettings
from equipoise_scheduling.request import Outcome, Reason, Request, Usage

TENANTS = ("a", "b", "c", "d")

SETTLE = (
    (Outcome.FINISHED, True),
    (Outcome.FINISHED, False),
    (Outcome.CANCELLED, True),
    (Outcome.CANCELLED, False),
    (Outcome.FAILED, False),
)


class Numbers(NamedTuple):
    """What an operation is made of."""

    x: int
    y: int
    z: int


KINDS = (
    "enqueue",
    "pump",
    "deliver",
    "end",
    "enqueue",
    "pump",
    "deliver",
    "end",
    "cancel",
    "requeue",
    "tick",
)


def decode(number: int) -> tuple[str, int, int, int]:
    """Read an operation out of one number: one draw of hypothesis instead of four."""
    number, kind = divmod(number, len(KINDS))
    return (KINDS[kind], number & 63, number >> 6 & 63, number >> 12 & 63)


operations = st.lists(
    st.integers(0, len(KINDS) * 2**18 - 1).map(decode),
    min_size=20,
    max_size=150,
)
gates = st.builds(
    lambda kind, pool: (kind, pool), st.sampled_from(["peak", "reserve"]), st.sampled_from([300, 1000, 5000])
)


@dataclass
class Sent:
    """A request and what is true of it."""

    request: Request
    prompt: int
    output: int
    shown: int = 0
    """Generated tokens reported so far."""
    shown_prompt: int = 0
    started: bool = False
    """Anything was reported."""


@dataclass
class Chaos:
    """Feeds operations to a scheduler and logs what everybody received."""

    scheduler: TenantScheduler
    gate: Gate
    weights: dict[str, float]
    requeues: bool = True
    overestimates: bool = True
    now: float = 0.0
    accepted: dict[str, Sent] = field(default_factory=dict)
    queued: dict[str, Sent] = field(default_factory=dict)
    flying: dict[str, Sent] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    dispatched: list[str] = field(default_factory=list)
    received: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Weighted tokens by tenant, as reported."""
    log: list[tuple[dict[str, float], set[str]]] = field(default_factory=list)
    """After each event: service over weight by tenant, and who is backlogged."""

    @classmethod
    def over(cls, scheduler: TenantScheduler, gate: tuple[str, int], weights: dict[str, float], **kwargs):
        made = Gate(GateSettings(kind=gate[0]))
        made.set_pool(gate[1], 4)
        return cls(scheduler, made, weights, **kwargs)

    def run(self, ops) -> "Chaos":
        for op in ops:
            self.apply(*op)
            self.note()
        return self

    def note(self) -> None:
        shares = {name: self.received[name] / self.weights.get(name, 1.0) for name in TENANTS}
        self.log.append((shares, set(self.scheduler.choice)))

    def apply(self, what: str, *numbers: int) -> None:
        op = Numbers(*numbers)
        self.now += op.x / 64
        getattr(self, f"_{what}")(op)

    def _enqueue(self, op: Numbers) -> None:
        prompt, most = 1 + op.y, 1 + op.z * 2
        request = Request(
            id=str(len(self.accepted)),
            tenant=TENANTS[op.x % len(TENANTS)],
            arrival=self.now,
            prompt_tokens=max(1, prompt * (op.x % 5) // 2),
            max_tokens=most,
            **self._facts(op),
        )
        sent = Sent(request, prompt, 1 + (op.x * op.y) % most)
        refusal = self.gate.refuse(request)
        if refusal is None and (refusal := self.scheduler.enqueue(request, self.now)) is None:
            self.accepted[request.id] = self.queued[request.id] = sent
        elif refusal.reason is not Reason.NEVER_FITS:
            self._turned_away(request)

    def _facts(self, _: Numbers) -> dict[str, Any]:
        """Say more of a request: a test's own."""
        return {}

    def _turned_away(self, request: Request) -> None:
        """Look at a request that the scheduler refused on arrival: a test's own check."""
        raise AssertionError(f"{request.id} was refused")

    def _throttled(self, request: Request) -> None:
        """Look at a request that was refused in the queue: a test's own check."""

    def _pump(self, op: Numbers) -> None:
        for _ in range(1 + op.y % 4):
            request = self.scheduler.next(self.now, lambda r: self.gate.fits(r, self.now))
            for refused, _ in self.scheduler.refused():
                self._throttled(refused)
                del self.queued[refused.id]
                self.ended[refused.id] = Outcome.REFUSED
            if request is None:
                return
            self.gate.start(request)
            self.flying[request.id] = self.queued.pop(request.id)
            self.dispatched.append(request.id)
            self._moved(request)
            self.note()

    def _moved(self, request: Request) -> None:
        """Look at a dispatch: a test's own check."""

    def _pick(self, group: dict[str, Sent], place: int) -> Sent | None:
        return group[list(group)[place % len(group)]] if group else None

    def _show(self, sent: Sent, prompt: int, generated: int) -> None:
        """Count a report the way the contract says: cumulative, never less."""
        name = sent.request.tenant
        self.received[name] += (prompt - sent.shown_prompt) + 2 * (generated - sent.shown)
        sent.shown_prompt, sent.shown, sent.started = prompt, generated, True

    def _deliver(self, op: Numbers) -> None:
        sent = self._pick(self.flying, op.x)
        if sent is None:
            return
        generated = min(sent.output, sent.shown + op.z)
        if self.overestimates and op.y % 8 == 0:  # a clock that runs fast
            generated = min(sent.request.max_tokens, sent.shown + 2 * op.z)
        generated = max(generated, sent.shown)
        if generated == sent.shown:
            return
        self.scheduler.progress(sent.request, sent.prompt, generated, self.now)
        self.gate.progress(sent.request, sent.prompt, generated)
        self._show(sent, sent.prompt, generated)

    def _end(self, op: Numbers) -> None:
        sent = self._pick(self.flying, op.x)
        if sent is None:
            return
        outcome, exact = SETTLE[op.y % len(SETTLE)]
        generated = sent.output if outcome is Outcome.FINISHED else min(sent.output, sent.shown + op.z % 4)
        prompt = sent.prompt if (sent.started or exact or op.z % 2) else 0
        self.scheduler.settle(sent.request, Usage(prompt, generated, exact=exact), outcome, self.now)
        self.gate.finish(sent.request)
        if not exact:
            generated = max(generated, sent.shown)
            prompt = max(prompt, sent.shown_prompt)
        self._show(sent, prompt, generated)
        del self.flying[sent.request.id]
        self.ended[sent.request.id] = outcome

    def _cancel(self, op: Numbers) -> None:
        sent = self._pick(self.queued, op.x)
        if sent is not None:
            outcome = Outcome.EXPIRED if op.y % 2 else Outcome.CANCELLED
            self.scheduler.cancel(sent.request, self.now, outcome)
            del self.queued[sent.request.id]
            self.ended[sent.request.id] = outcome

    def _requeue(self, op: Numbers) -> None:
        fresh = {name: sent for name, sent in self.flying.items() if not sent.started}
        sent = self._pick(fresh, op.x)
        if sent is not None and self.requeues:
            self.scheduler.requeue(sent.request, self.now)
            self.gate.finish(sent.request)
            self.queued[sent.request.id] = self.flying.pop(sent.request.id)

    def _tick(self, _: Numbers) -> None:
        self.now += 1
        self.scheduler.tick(self.now)
        self.gate.tick(self.now)

    def finish_all(self) -> None:
        """Let everything that is left run to its end."""
        while self.queued or self.flying:
            before = len(self.ended)
            self._pump(Numbers(0, 3, 0))
            if self.flying:
                self._end(Numbers(0, 0, 0))
            assert len(self.ended) > before, "nothing moves although nothing is in flight"

    def widest_gaps(self) -> dict[tuple[str, str], float]:
        """Largest |W_f/w_f - W_g/w_g| of each pair over all intervals in which both stayed backlogged."""
        widest: dict[tuple[str, str], float] = {}
        for at, f in enumerate(TENANTS):
            for g in TENANTS[at + 1 :]:
                low = high = None
                worst = 0.0
                for shares, backlogged in self.log:
                    if f not in backlogged or g not in backlogged:
                        low = high = None
                        continue
                    lead = shares[f] - shares[g]
                    low = lead if low is None else min(low, lead)
                    high = lead if high is None else max(high, lead)
                    worst = max(worst, high - low)
                widest[f, g] = worst
        return widest


def assert_put_back_leaves_no_trace(busy: Chaos, quiet: Chaos) -> None:
    """Of two that went through the same: dispatch one request in `busy` and put it back; both go on alike."""
    request = busy.scheduler.next(busy.now, lambda _: True)
    if request is None:
        return
    busy.scheduler.requeue(request, busy.now)
    assert busy.scheduler.snapshot() == quiet.scheduler.snapshot()
    for chaos in (busy, quiet):
        chaos.finish_all()
    assert busy.dispatched == quiet.dispatched
