"""An operator process, its log and its metrics."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
from patience import eventually


class Operator:
    """An operator process and its log."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[dict[str, Any]] = []
        self._reader: asyncio.Task[None] | None = None
        self._file: Any = None

    @property
    def name(self) -> str:
        return self.environment["POD_NAME"]

    def spawn(self) -> "Operator":
        self.lines = []
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "equipoise_operator"],
            env=os.environ | self.environment,
            stderr=self._file,
            stdout=self._file,
            cwd=tempfile.gettempdir(),
        )
        return self

    def read(self) -> list[dict[str, Any]]:
        for line in Path(self._file.name).read_text().splitlines()[len(self.lines) :]:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line})
        return self.lines

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.read()
            if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def address(self, what: str) -> int:
        return self.said("listening", what=what)[0]["address"][1]

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.address('http')}"

    @property
    def issuer(self) -> str:
        return f"https://127.0.0.1:{self.address('issuer')}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    async def ended(self) -> int:
        await eventually(lambda: not self.alive, what=f"{self.name} does not end", also=self.tail)
        return self.process.returncode

    def close(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    async def leading(self) -> "Operator":
        await eventually(lambda: self.said("leading"), what=f"{self.name} does not lead", also=self.tail)
        return self

    def tail(self) -> str:
        return "\n".join(json.dumps(line)[:600] for line in self.read()[-30:])

    async def metric(self, name: str, **labels: str) -> float | None:
        async with aiohttp.ClientSession() as session, session.get(self.http + "/metrics") as response:
            text = await response.text()
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        prefix = f"equipoise_operator_{name}{{{shown}}} " if shown else f"equipoise_operator_{name} "
        return next(
            (float(line[len(prefix) :]) for line in text.splitlines() if line.startswith(prefix)), None
        )
