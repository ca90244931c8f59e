"""Everything at once, seeded: whatever happens to requests, each ends once and nothing stays held."""

import asyncio
import json
import random

import pytest
from stack import CHAT, HELLO, NOTHING, head, stack

from equipoise_sidecar.engine.errors import EngineError
from equipoise_simulator.standin import Faults, StandIn

REQUESTS = 150
ENDING = b"Internal Server Error"
"""What the engine's own server says to the requests that its end cancels."""


async def leave(way, body: bytes, after: float, path: str = CHAT) -> None:
    """Send a request, or a part of it, and leave."""
    _, writer = await way.connect()
    writer.write(head(path, body) + body[: random.Random(after).randrange(len(body) * 2)])
    await asyncio.sleep(after)
    writer.close()


async def ask(way, document) -> None:
    answer = await way.ask(document=document)
    assert answer.status in {200, 404, 429, 502, 503} or answer.body == ENDING


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_happens_each_request_ends_once_and_nothing_stays_held(seed, tmp_path):
    dice = random.Random(seed)
    address = tmp_path / "engine.sock"
    faults = Faults()

    async def run_engines() -> None:
        for _ in range(3):
            async with StandIn(profile="fast", speed=40, uds=address, faults=faults):
                for _ in range(6):
                    faults.busy = dice.random() < 0.2
                    faults.die_after_tokens = dice.choice([None, None, 1, 3])
                    faults.garbage_events = dice.random() < 0.1
                    await asyncio.sleep(0.15)
            await asyncio.sleep(0.1)
        faults.busy = faults.garbage_events = False
        faults.die_after_tokens = None
        async with StandIn(profile="fast", speed=40, uds=address, faults=faults):
            await done.wait()

    done = asyncio.Event()
    engines = asyncio.create_task(run_engines())
    limits = {
        "capacity": {"maxInFlight": 6, "kvTokens": 4000},
        "queue": {"maxRequests": 60, "maxWaitSeconds": 20},
    }
    async with stack(f"unix:{address}", watch_engine=True, **limits) as way:
        tasks = []
        for number in range(REQUESTS):
            document = {**HELLO, "n": dice.choice([1, 1, 2]), "stream": dice.random() < 0.6}
            document["max_tokens"] = dice.randrange(1, 60)
            if dice.random() < 0.1:
                document["model"] = "nobody"
            if dice.random() < 0.3:
                tasks.append(leave(way, json.dumps(document).encode(), dice.random() * 0.3))
            else:
                tasks.append(ask(way, document))
            tasks[-1] = asyncio.create_task(tasks[-1], name=str(number))
            await asyncio.sleep(dice.random() * 0.02)
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 200)
        # a stream that broke off is a broken answer for its client, nothing else is
        strange = [error for error in ended if error is not None and not isinstance(error, EngineError)]
        assert strange == []
        async with asyncio.timeout(60):
            while way.held() != NOTHING:
                await asyncio.sleep(0.01)
        outcomes = way.outcomes()
        assert sum(outcomes.values()) <= REQUESTS
        assert {"finished", "failed", "cancelled"} <= set(
            outcomes
        )  # how many of each is the machine's matter
        account = way.dispatcher.accounting.get("default")
        assert (account.queued, account.running) == (0, 0)
        done.set()
        await engines
