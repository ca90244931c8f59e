"""The demo as a story: set up, replay under FCFS, patch the policy, replay under VTC, compare."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import uvloop

from equipoise_api.names import DATA_PORT
from equipoise_demo import report
from equipoise_demo.follow import following
from equipoise_demo.outcome import Result, measure
from equipoise_demo.places import MODEL, NAMESPACE, POLICY, DemoError
from equipoise_demo.replay import Replay, Target, body_of, replay
from equipoise_demo.sdk import Sdk, chosen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from equipoise_cluster import ConsoleProgress
    from equipoise_demo.load import Load
    from equipoise_demo.stack import Stack

PATIENCE = 1_800.0
"""Seconds of the trace that a request may take; a backlog of the whole trace is gone by then."""
UNEQUAL = 1.25
"""Factor of throughput between two replays above which something else than the algorithm differed, such as a busy machine."""
LATE_SECONDS = 0.5
"""Real seconds by which a stand-in may fall behind its model before the figures are doubted."""


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
    notes: list[str] = field(default_factory=list)
    """Why figures are not to be trusted."""
    texts: int = 0
    """Answers through the SDK whose text was right."""
    shares: list[float] = field(default_factory=list)

    def tell(self, folder: Path) -> list[Path]:
        """Replay twice, print the comparison, leave it in `folder`; return the files. DemoError when a text was wrong."""
        before = self.replay("FCFS")
        self.progress.step("Restarting the sidecars without what they learnt: both replays begin alike")
        self.stack.forget()
        self.progress.step("Patching the policy: FCFS to VTC")
        self.stack.set_algorithm("VTC")
        after = self.replay("VTC")
        if not 1 / UNEQUAL < after.tokens_per_second / max(before.tokens_per_second, 1e-9) < UNEQUAL:
            self.notes.append("the engines' throughput differs much between the replays: they compare badly")
        objects = self.stack.objects()
        self.console.print(objects, markup=False, highlight=False, soft_wrap=True)
        for table in report.tables(before, after):
            self.console.print(table)
        for note in self.notes:
            self.console.print(f"Note: {note}", style="yellow", markup=False)
        files = report.write(folder, before, after, self.facts())
        objects_file = folder / "objects.yaml"
        objects_file.write_text(self.stack.objects_yaml(), encoding="utf-8")
        return [*files, objects_file]

    def replay(self, algorithm: str) -> Result:
        """Replay the trace once under the algorithm that is in force."""
        trace = self.load.trace
        late = self._late()
        with following(f"Replay under {algorithm}", trace.seconds, self.console, self.progress) as follow:
            outcome, sdk = uvloop.run(self._replay(follow))
        self.stack.check()
        self.notes += [f"{algorithm}: {note}" for note in outcome.notes]
        self.shares.append(outcome.cpu_share)
        behind = self._late() - late
        if behind > LATE_SECONDS:
            self.notes.append(
                f"{algorithm}: the stand-in engines fell {behind:.1f} s behind: the machine is too busy for --pace"
            )
        if sdk.wrong:
            raise DemoError(f"{algorithm}: answers through the OpenAI SDK were wrong: {'; '.join(sdk.wrong)}")
        self.texts += sdk.right
        result = measure(algorithm, outcome.outcomes, trace.seconds, self.load.capacity)
        if result.failed:
            errors = sorted({each.error for each in outcome.outcomes if each.error})
            self.notes.append(f"{algorithm}: {result.failed} requests failed: {'; '.join(errors[:3])}")
        return result

    async def _replay(self, follow: Callable[[Any], None]) -> tuple[Replay, Sdk]:
        load = self.load
        endpoints = [pair.endpoint for pair in self.stack.pairs]
        target = Target(endpoints, self.stack.keys, MODEL, self.words_a_token)
        sdk = Sdk(
            endpoints=endpoints,
            keys=self.stack.keys,
            body=lambda row, index: body_of(row, index, target),
            expected=self.expected,
            timeout=PATIENCE / load.pace,
        )
        others = dict.fromkeys(chosen(load.trace), sdk.send)
        try:
            outcome = await replay(
                load.trace, target, speed=load.pace, timeout=PATIENCE, follow=follow, others=others
            )
        finally:
            await sdk.close()
        return outcome, sdk

    def facts(self) -> dict[str, Any]:
        """Return what the figures hold for."""
        trace = self.load.trace
        return {
            "trace": f"{trace.name}: {len(trace.rows)} requests of {len(trace.clients)} tenants in {trace.seconds:g} s",
            "engines": self.engine,
            "demand": f"{self.load.ratio:.2f} times what the engines can serve",
            "pace": f"{self.load.pace:g} seconds of the trace in a real second",
            "replayer": f"{max(self.shares):.0%} of a core",
            "texts checked through the OpenAI SDK": self.texts,
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

Change a weight:   kubectl -n {NAMESPACE} patch tenant {name} --type=merge --patch='{{"spec":{{"weight":4}}}}'
Add a tenant:      sed s/client-00/blue/g manifests/demo/tenants.yaml | head -12 | kubectl apply -f - &&
                   kubectl -n {NAMESPACE} get tenant blue,fairnesspolicy/{POLICY}
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
