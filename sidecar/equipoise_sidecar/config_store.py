"""Takes configuration from the operator: in order of (epoch, sequence), whole or not at all, kept on disk.

One push at a time. Parsing, compiling and writing happen on a thread of their own; only `apply` runs on the event loop.
A push that cannot be taken changes nothing: the last good configuration goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import structlog

from equipoise_api.sidecar_config import ConfigPatch, Problem, PushResult
from equipoise_sidecar.config_document import ConfigDocument, read_patch, read_push
from equipoise_sidecar.files import write_atomically
from equipoise_sidecar.policy import ConfigError, Policy

T = TypeVar("T")

_FILE = "config.json"

log = structlog.get_logger(__name__)


class PushRefusedError(Exception):
    """A push that was not taken: HTTP status and body of the answer."""

    def __init__(self, status: HTTPStatus, problem: Problem) -> None:
        super().__init__(f"{status.value}: {problem.message}")
        self.status = status
        self.problem = problem


class ConfigStore:
    """The configuration in force and how it is replaced."""

    def __init__(self, apply: Callable[[Policy], None], directory: Path | None) -> None:
        """Hand each new policy to `apply` (ConfigError: nothing changed); keep it in `directory` if there is one."""
        self._apply = apply
        self._file = directory / _FILE if directory is not None else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="config")
        self._turn = asyncio.Lock()
        self.held: ConfigDocument | None = None
        self.error: str | None = None
        """Why the newest push was refused, while that is so."""
        self.write_errors = 0
        """Configurations that could not be written to disk."""

    async def put(self, body: bytes) -> PushResult:
        """Take a whole configuration. Raises PushRefusedError: 409, 422."""
        async with self._turn:
            return await self._take(await self._read(read_push, body))

    async def patch(self, body: bytes) -> PushResult:
        """Take changed tenants. Raises PushRefusedError: 409, 412, 422."""
        async with self._turn:
            patch = await self._read(read_patch, body)
            held = self.held
            self._check_order(patch.epoch, patch.sequence)
            if held is None or held.revision not in {patch.base_revision, patch.revision}:
                raise self._unknown_base(patch)
            if held.revision == patch.revision:
                return await self._hold(
                    ConfigDocument(patch.epoch, patch.sequence, held.revision, held.rest, held.parts)
                )
            patched = await self._on_thread(held.patched, patch)
            if await self._on_thread(patched.digest) != patch.revision:
                raise self._unknown_base(patch)
            return await self._take(patched)

    async def restore(self) -> bool:
        """Take the configuration on disk, if there is a readable one. Says whether there was."""
        if self._file is None:
            return False
        try:
            body = await self._on_thread(self._file.read_bytes)
            document = await self._on_thread(read_push, body)
            self._apply(await self._on_thread(document.policy))
        except FileNotFoundError:
            return False
        except (OSError, ConfigError) as error:
            log.warning("configuration on disk is not usable", file=str(self._file), error=str(error))
            return False
        self.held = document
        log.info("configuration restored", revision=document.revision, tenants=len(document.parts))
        return True

    async def close(self) -> None:
        """Wait for a push that is being taken, and stop the thread."""
        async with self._turn:
            self._thread.shutdown()

    async def _take(self, document: ConfigDocument) -> PushResult:
        self._check_order(document.epoch, document.sequence)
        if self.held is not None and self.held.revision == document.revision:
            held = self.held
            return await self._hold(
                ConfigDocument(document.epoch, document.sequence, held.revision, held.rest, held.parts)
            )
        try:
            self._apply(await self._on_thread(document.policy))
        except ConfigError as error:
            raise self._invalid(error) from error
        log.info(
            "configuration applied",
            revision=document.revision,
            epoch=document.epoch,
            sequence=document.sequence,
            tenants=len(document.parts),
        )
        return await self._hold(document, applied=True)

    async def _hold(self, document: ConfigDocument, *, applied: bool = False) -> PushResult:
        """Make `document` the one in force. It is on disk when the operator hears of it, unless the disk fails."""
        self.held = document
        self.error = None
        if self._file is not None:
            try:
                await self._on_thread(lambda file: write_atomically(file, document.push()), self._file)
            except OSError as error:
                self.write_errors += 1
                log.error("configuration not written to disk", file=str(self._file), error=str(error))  # noqa: TRY400
        return PushResult(
            revision=document.revision, epoch=document.epoch, sequence=document.sequence, applied=applied
        )

    async def _read(self, parse: Callable[[bytes], T], body: bytes) -> T:
        try:
            return await self._on_thread(parse, body)
        except ConfigError as error:
            raise self._invalid(error) from error

    def _check_order(self, epoch: int, sequence: int) -> None:
        held = self.held
        if held is not None and (epoch, sequence) < (held.epoch, held.sequence):
            raise PushRefusedError(
                HTTPStatus.CONFLICT,
                Problem(
                    message=f"({held.epoch}, {held.sequence}) was taken, which is newer than ({epoch}, {sequence})",
                    epoch=held.epoch,
                    sequence=held.sequence,
                    revision=held.revision,
                ),
            )

    def _unknown_base(self, patch: ConfigPatch) -> PushRefusedError:
        held = self.held
        return PushRefusedError(
            HTTPStatus.PRECONDITION_FAILED,
            Problem(
                message=f"revision {patch.revision} does not come of this patch on what is held here: send all",
                epoch=held and held.epoch,
                sequence=held and held.sequence,
                revision=held and held.revision,
            ),
        )

    def _invalid(self, error: ConfigError) -> PushRefusedError:
        self.error = str(error)
        log.warning("configuration refused", error=self.error)
        return PushRefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, Problem(message=str(error), field=error.field or None)
        )

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
