"""A client that takes nothing of its answer does not stop the engine, and pays for what that makes meanwhile."""

import asyncio
import json

from engine_fakes import Connection, chunk, engine
from stack import CHAT, HELLO, head, stack

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}],"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n'
SHOWN = 300
"""Tokens of 100 kB each: more than fits in all buffers on the way."""


async def test_who_reads_nothing_pays_for_what_the_engine_makes_unseen(monkeypatch):
    monkeypatch.setattr("equipoise_sidecar.client.STALL_SECONDS", 0.3)
    cut = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        connection.send(EVENTS)
        try:
            for number in range(1, SHOWN + 1):
                connection.send(chunk(TOKEN % (b"x" * 100_000, number)))
                await connection.writer.drain()
        except ConnectionError:
            cut.set()

    async with engine(script) as it, stack(it.url) as way:
        dispatcher = way.dispatcher
        dispatcher.engine.pace.started(1, dispatcher.clock())
        dispatcher.engine.pace.ended(1, dispatcher.clock(), seconds=1, generated=10_000)
        _, writer = await way.connect()
        writer.transport.pause_reading()
        body = json.dumps({**HELLO, "stream": True, "max_tokens": 2000}).encode()
        writer.write(head(CHAT, body) + body)
        await asyncio.wait_for(cut.wait(), 120)
        await way.settled(cancelled=1)
        total = dispatcher.scheduler.shares(0.0)[0].total
        assert total.prompt == 9
        assert SHOWN < total.generated <= 2000
        writer.transport.abort()
