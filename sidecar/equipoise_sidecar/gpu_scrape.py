"""Fetches the exporter's exposition, off the hot path: one small request every few seconds, with limits to time and size."""

from __future__ import annotations

import asyncio
import random
import time

import aiohttp

from equipoise_sidecar.dcgm import DcgmError, PodId, Reading, read
from equipoise_sidecar.dispatcher import Dispatcher

TIMEOUT_SECONDS = 5.0
LARGEST_ANSWER = 16 * 1024 * 1024
"""Far above a node of eight GPUs with seven instances each: about 1 MB."""
JITTER = 0.1


class GpuScraper:
    """Reads for one pod."""

    def __init__(self, dispatcher: Dispatcher, pod: PodId, *, seed: int | None = None) -> None:
        self._dispatcher = dispatcher
        self._pod = pod
        self._random = random.Random(seed)  # noqa: S311 - jitter

    async def run(self) -> None:
        """Read until cancelled, as often as the policy says, and at once where the place changes."""
        gpu = self._dispatcher.engine.gpu
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                gpu.moved.clear()
                await self.look(session)
                try:
                    async with asyncio.timeout(
                        gpu.settings.scrape_seconds * self._random.uniform(1 - JITTER, 1 + JITTER)
                    ):
                        await gpu.moved.wait()
                except TimeoutError:
                    continue

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Read once and hand on what there is."""
        dispatcher, gpu = self._dispatcher, self._dispatcher.engine.gpu
        url = gpu.url
        if url is None:
            return
        try:
            text = await _fetch(session, url)
            # A node's exposition may have thousands of rows: not on the loop that answers.
            reading = await asyncio.to_thread(read, text, self._pod)
            _check_age(reading, gpu.settings.stale_seconds)
        except DcgmError as error:
            if gpu.url == url:
                gpu.failed(error, dispatcher.clock())
        else:
            if gpu.url == url:
                dispatcher.observe_gpu(reading)


async def _fetch(session: aiohttp.ClientSession, url: str) -> bytes:
    """Return the body. DcgmError: no answer in time, not 200, or too large."""
    pieces, length = [], 0
    try:
        async with session.get(url, headers={"Accept": "text/plain"}, allow_redirects=False) as answer:
            if answer.status != 200:
                raise DcgmError("BadAnswer", f"{url} answered {answer.status}")
            async for piece in answer.content.iter_any():
                pieces.append(piece)
                length += len(piece)
                if length > LARGEST_ANSWER:
                    raise DcgmError("BadAnswer", f"{url}: an answer of more than {LARGEST_ANSWER} bytes")
    except TimeoutError:
        raise DcgmError("Unreachable", f"{url}: no answer within {TIMEOUT_SECONDS:.0f} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise DcgmError("Unreachable", f"{url}: {str(error) or type(error).__name__}") from error
    return b"".join(pieces)


def _check_age(reading: Reading, stale_seconds: float) -> None:
    if reading.sampled_at is None:
        return
    age = time.time() - reading.sampled_at
    if age > stale_seconds:
        raise DcgmError("Frozen", f"the newest sample is {age:.0f} s old")
