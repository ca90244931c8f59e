"""Where long steps say what they do and how far they are."""

import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Progress(Protocol):
    """What a caller passes to follow a long step."""

    def step(self, text: str) -> None:
        """Something began or ended: worth a line of its own."""

    def update(self, text: str) -> None:
        """How far the current step is. Comes about once a second; the newest replaces the one before."""


class Silent:
    """Says nothing."""

    def step(self, text: str) -> None:
        pass

    def update(self, text: str) -> None:
        pass


class ConsoleProgress:
    """Lines for steps; a live last line on a terminal, or a line every `every` seconds into a file or a CI log."""

    def __init__(self, console: Console | None = None, every: float = 15.0) -> None:
        self._console = console or Console(stderr=True)
        self._every = every
        self._status: Status | None = None
        self._written = time.monotonic()

    def step(self, text: str) -> None:
        if self._status:
            self._status.stop()
            self._status = None
        self._print(text)

    def update(self, text: str) -> None:
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status(escape(text))
                self._status.start()
            else:
                self._status.update(escape(text))
        elif time.monotonic() - self._written >= self._every:
            self._print(text)

    def _print(self, text: str) -> None:
        self._written = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
