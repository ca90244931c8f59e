"""Faults that a test switches on: in the connection (before HTTP) and in the answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

GARBAGE = b"\x00\xff\xfe this is no HTTP \r\n\r\n{]"


@dataclass(slots=True)
class Faults:
    """What goes wrong; all off by default. May be changed while the engine runs."""

    die_after_tokens: int | None = None
    """Cut each answer's connection once it has that many tokens (streams: after they were sent)."""
    garbage: bool = False
    """Answer every connection with bytes that are no HTTP."""
    garbage_events: bool = False
    """Stream events that are no JSON, or a body that is none."""
    busy: bool = False
    """Answer every generation with vLLM's 503."""
    accept_delay_seconds: float = 0.0
    """Leave what a connection sends unread for so long."""
    close_connections: bool = False
    """Close each connection when its first bytes come."""


class FaultyProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the connection's faults in it, and a way for the application to cut the connection."""

    faults: Faults

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._held: list[bytes] | None = None

    @override
    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope["cut"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # read by the application

    @override
    def data_received(self, data: bytes) -> None:
        faults = self.faults
        if faults.close_connections:
            self.transport.abort()
        elif faults.garbage:
            self.transport.write(GARBAGE)
            self.transport.close()
        elif self._held is not None:
            self._held.append(data)
        elif faults.accept_delay_seconds > 0:
            self._held = [data]
            asyncio.get_running_loop().call_later(faults.accept_delay_seconds, self._release)
        else:
            super().data_received(data)

    def _release(self) -> None:
        held, self._held = self._held, None
        for data in held or []:
            if not self.transport.is_closing():
                super().data_received(data)


def protocol_with(faults: Faults) -> type[FaultyProtocol]:
    """Return the protocol class for one engine's faults."""
    return type("FaultyProtocol", (FaultyProtocol,), {"faults": faults})
