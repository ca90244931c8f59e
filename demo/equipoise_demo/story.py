"""The demo as a story: one traffic under FCFS, then VTC, then Equipoise, changed by a field of the live policy; and what each made of it."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import uvloop

from equipoise_api.names import DATA_PORT
from equipoise_demo import report
from equipoise_demo.claims import Claim, claims
from equipoise_demo.counted import Counted
from equipoise_demo.follow import following
from equipoise_demo.outcome import measure
from equipoise_demo.phase import Phase
from equipoise_demo.places import MODEL, NAMESPACE, POLICY, PROMISE_MILLISECONDS, DemoError
from equipoise_demo.replay import Replay, Target, body_of, headers_of, replay
from equipoise_demo.sdk import Sdk, chosen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from equipoise_cluster import ConsoleProgress
    from equipoise_demo.load import Load
    from equipoise_demo.replay import Following
    from equipoise_demo.stack import Stack

ALGORITHMS = ("FCFS", "VTC", "Equipoise")
PATIENCE = 12.0
"""Lengths of the traffic that a request may take; any backlog of it is gone by then."""
LATE_SECONDS = 0.5
"""Real seconds by which a stand-in may fall behind its model before the figures are doubted."""
SAME = 0.05
"""By which clients and sidecars may differ in what was delivered before the figures are doubted."""


@dataclass
class Story:
    """One run of the demo on a stack that is up."""

    stack: Stack
    load: Load
    engine: str
    """What serves, in words."""
    expected: Callable[[str, int], str] | None
    words_a_token: float
    console: Console
    progress: ConsoleProgress
    strict: bool
    """Whether it is known what each algorithm makes of this traffic on these engines."""
    notes: list[str] = field(default_factory=list)
    """Why figures are not to be trusted."""
    texts: int = 0
    """Answers through the SDK whose text was right."""
    shares: list[float] = field(default_factory=list)

    def tell(self, folder: Path) -> tuple[list[Path], list[Claim]]:
        """Replay under each algorithm, print the comparison, leave it in `folder`; return the files and what was checked.

        DemoError when a text was wrong.
        """
        if self.promise_milliseconds != PROMISE_MILLISECONDS:
            self.stack.promise(self.promise_milliseconds)
        following_ones = (*ALGORITHMS[1:], None)
        phases = [self.phase(name, then) for name, then in zip(ALGORITHMS, following_ones, strict=True)]
        objects = self.stack.objects()
        self.progress.step(
            f"The objects' status, of the last minute; part of it was still under {ALGORITHMS[-2]}:"
        )
        self.console.print(objects, markup=False, highlight=False, soft_wrap=True)
        for table in report.tables(phases, self.promise_seconds):
            self.console.print(table)
        checked = claims(phases, own=self.strict)
        for claim in checked:
            self.console.print(f"{'✓' if claim.held else '✗'} {claim.text}", markup=False, highlight=False)
        for note in self.notes:
            self.console.print(f"Note: {note}", style="yellow", markup=False)
        files = report.write(folder, phases, self.facts(checked), self.promise_seconds)
        objects_file = folder / "objects.yaml"
        objects_file.write_text(self.stack.objects_yaml(), encoding="utf-8")
        return [*files, objects_file], checked

    @property
    def promise_milliseconds(self) -> int:
        """The promised time to first token: a second, and no less of the trace's time where that goes slower."""
        return round(PROMISE_MILLISECONDS / min(1.0, self.load.pace))

    @property
    def promise_seconds(self) -> float:
        """The same in the trace's time."""
        return self.promise_milliseconds / 1000 * self.load.pace

    def phase(self, algorithm: str, then: str | None) -> Phase:
        """Replay the traffic under the algorithm in force; when its time is over change to the next, with the queue as it is."""
        trace = self.load.trace
        late, began = self._late(), self.stack.counted()
        seen: list[tuple[Counted, dict[str, Any], float | None]] = []

        def at_end() -> None:
            counted, policy = self.stack.counted(), self.stack.policy()
            patched = time.monotonic()
            if then is not None:
                self.stack.set_algorithm(then)
            seen.append((counted, policy, time.monotonic() - patched if then is not None else None))

        with following(f"Replay under {algorithm}", trace.seconds, self.console, self.progress) as follow:
            outcome, sdk = uvloop.run(self._replay(follow, at_end))
        self.stack.check()
        ((counted, policy, change_seconds),) = seen
        if then is not None:
            self.progress.step(
                f"Patched spec.algorithm.type {algorithm} → {then} while {counted.waiting} requests waited: "
                f"in force everywhere after {change_seconds:.1f} s, the queue kept"
            )
        self._doubt(algorithm, outcome, sdk, self._late() - late)
        counted = counted.since(began)
        rate = counted.service.total() / trace.seconds
        if rate == 0:
            raise DemoError(f"{algorithm}: the sidecars' metrics show no service")
        result = measure(algorithm, outcome.outcomes, trace.seconds, rate)
        seen_by_clients = sum(row.service for row in result.tenants)
        if abs(seen_by_clients / rate - 1) > SAME:
            self.notes.append(
                f"{algorithm}: clients saw {seen_by_clients:.0f} weighted tokens/s and the sidecars counted {rate:.0f}"
            )
        if result.failed:
            errors = sorted({each.error for each in outcome.outcomes if each.error})
            self.notes.append(f"{algorithm}: {result.failed} requests failed: {'; '.join(errors[:3])}")
        return Phase(result, counted, self.stack.counted().since(began), policy, change_seconds)

    def _doubt(self, algorithm: str, outcome: Replay, sdk: Sdk, behind: float) -> None:
        """Note why the figures of a replay are not to be trusted. DemoError when a text was wrong."""
        self.notes += [f"{algorithm}: {note}" for note in outcome.notes]
        self.shares.append(outcome.cpu_share)
        if behind > LATE_SECONDS:
            self.notes.append(
                f"{algorithm}: the stand-in engines fell {behind:.1f} s behind: the machine is too busy for --pace"
            )
        if sdk.wrong:
            raise DemoError(f"{algorithm}: answers through the OpenAI SDK were wrong: {'; '.join(sdk.wrong)}")
        self.texts += sdk.right

    async def _replay(
        self, follow: Callable[[Following], None], at_end: Callable[[], None]
    ) -> tuple[Replay, Sdk]:
        load = self.load
        endpoints = [pair.endpoint for pair in self.stack.pairs]
        target = Target(endpoints, self.stack.keys, MODEL, load.traffic.interactive, self.words_a_token)
        patience = PATIENCE * load.trace.seconds
        sdk = Sdk(
            endpoints=endpoints,
            keys=self.stack.keys,
            body=lambda row, index: body_of(row, index, target),
            headers=lambda index: headers_of(index, target),
            expected=self.expected,
            timeout=patience / load.pace,
        )
        others = dict.fromkeys(chosen(load.trace), sdk.send)
        try:
            outcome = await replay(
                load.trace,
                target,
                speed=load.pace,
                timeout=patience,
                follow=follow,
                others=others,
                at_end=at_end,
            )
        finally:
            await sdk.close()
        return outcome, sdk

    def facts(self, checked: list[Claim]) -> dict[str, Any]:
        """Return what the figures hold for."""
        return {
            "traffic": self.load.traffic.words,
            "engines": self.engine,
            "demand": f"{self.load.ratio:.2f} times what the engines can serve",
            "promise to interactive requests": f"first token within {self.promise_seconds:g} s",
            "pace": f"{self.load.pace:g} seconds of the trace in a real second",
            "replayer": f"{max(self.shares):.0%} of a core",
            "texts checked through the OpenAI SDK": self.texts,
            "checked": [f"{'held' if claim.held else 'not held'}: {claim.text}" for claim in checked],
            "notes": "; ".join(self.notes) or "none",
            "version": version("equipoise"),
        }

    def to_try(self) -> str:
        """Return what to do with a demo that is kept."""
        host = self.stack.pairs[0].address
        name, key = next(iter(self.stack.keys.items()))
        body = (
            f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 12}}'
        )
        kubectl = self.stack.cluster.binaries["kubectl"]
        return f"""
export KUBECONFIG={self.stack.cluster.kubeconfig} PATH={kubectl.parent}:$PATH

Change algorithm:  kubectl -n {NAMESPACE} patch fairnesspolicy {POLICY} --type=merge --patch='{{"spec":{{"algorithm":{{"type":"DRR"}}}}}}'
Change a weight:   kubectl -n {NAMESPACE} patch tenant {name} --type=merge --patch='{{"spec":{{"weight":4}}}}'
Add a tenant:      sed s/{name}/blue/g manifests/demo/tenants.yaml | head -16 | kubectl apply -f - &&
                   kubectl -n {NAMESPACE} get tenant/blue fairnesspolicy/{POLICY}
Ask with a key:    curl -si http://{host}:{DATA_PORT}/v1/chat/completions -H 'Authorization: Bearer {key}' -d '{body}'
"""

    def _late(self) -> float:
        """Return the real seconds by which stand-ins have fallen behind their models; 0 with other engines."""
        total = 0.0
        for pair in self.stack.pairs:
            host, port = pair.endpoint
            with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5.0) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith("standin:late_seconds_total{"):
                        total += float(line.rpartition(" ")[2])
        return total
