"""A thin client of the API server: JSON in and out, every call with a deadline.

Not the `kubernetes` package: its models cost more than all else that the operator does with 10,000 objects, and its Lease
lock cannot create a Lease from asyncio. kopf's own client is private. What both have in common with this one is where
the credentials come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import kopf

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
NAMES_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"

DEADLINE = 10.0
"""Seconds that a call may take unless its caller says less."""
CREDENTIALS_SECONDS = 60.0
"""How long credentials are used before they are read again."""
PAGE = 500
"""Names in one page of a listing: with all that the API server says of each, 15 ms."""

Json = dict[str, Any]


class ApiError(Exception):
    """The API server refused; `status` is the HTTP status and `reason` its word for machines."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if reason else f"{status}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class ApiUnreachableError(ApiError):
    """No answer: connection refused or broken, or the deadline passed. `status` is 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


@dataclass(frozen=True, slots=True)
class Listing:
    """Who is there: uid by (namespace, name), as of a resource version."""

    uids: dict[tuple[str, str], str]
    version: int


def path(group_version: str, plural: str, namespace: str | None = None, *rest: str) -> str:
    """Return the path of a collection, or with a name (and a subresource) of one object."""
    root = f"/api/{group_version}" if "/" not in group_version else f"/apis/{group_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return "/".join([f"{root}{scope}/{plural}", *rest])


class Kube:
    """A session with the API server. An async context manager; safe to use from many tasks."""

    def __init__(self, load: Callable[[], kopf.ConnectionInfo]) -> None:
        self._load = load
        self._info = load()
        self._loaded = time.monotonic()
        self._session: aiohttp.ClientSession | None = None
        self.on_answer: Callable[[str, str, int, float], None] | None = None
        """Told of every call: method, resource, status (0: unreachable), seconds."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, where: str, *, deadline: float = DEADLINE, **params: str) -> Json:
        """Read one object or a list."""
        return await self.call("GET", where, deadline=deadline, params=params)

    async def create(self, where: str, body: Json, *, deadline: float = DEADLINE) -> Json:
        """Create an object in the collection `where`; ApiError 409 if it exists."""
        return await self.call("POST", where, body=body, deadline=deadline)

    async def replace(self, where: str, body: Json, *, deadline: float = DEADLINE) -> Json:
        """Replace an object; ApiError 409 if its resourceVersion is not the present one."""
        return await self.call("PUT", where, body=body, deadline=deadline)

    async def patch(
        self, where: str, body: Any, kind: str, *, deadline: float = DEADLINE, **params: str
    ) -> Json:
        """Patch an object with a body of one of the patch types above."""
        return await self.call("PATCH", where, body=body, content_type=kind, deadline=deadline, params=params)

    async def metadata(self, where: str, *, deadline: float = DEADLINE) -> Json:
        """Read an object's metadata alone: a Secret's data stays where it is."""
        answer = await self.call("GET", where, accept=METADATA_ONLY, deadline=deadline)
        metadata: Json = answer["metadata"]
        return metadata

    async def pages(
        self,
        where: str,
        *,
        selector: str = "",
        size: int = PAGE,
        deadline: float = DEADLINE,
        accept: str = JSON,
    ) -> AsyncIterator[Json]:
        """List page by page, all as of one resource version. The deadline is each page's."""
        params = {"limit": str(size)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self.call("GET", where, accept=accept, deadline=deadline, params=params)
            yield page
            following = page["metadata"].get("continue")
            if not following:
                return
            params["continue"] = following

    async def names(self, where: str, *, deadline: float = DEADLINE, selector: str = "") -> Listing:
        """List names and uids."""
        uids: dict[tuple[str, str], str] = {}
        version = 0
        async for page in self.pages(where, selector=selector, deadline=deadline, accept=NAMES_ONLY):
            for item in page["items"] or ():
                metadata = item["metadata"]
                uids[metadata.get("namespace", ""), metadata["name"]] = metadata["uid"]
            version = int(page["metadata"]["resourceVersion"])
        return Listing(uids, version)

    async def call(
        self,
        method: str,
        where: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        deadline: float = DEADLINE,
    ) -> Json:
        """Make one call. ApiError if refused, ApiUnreachableError without an answer in `deadline` seconds."""
        started = time.monotonic()
        status = 0
        try:
            async with _deadline(deadline, where):
                headers = {"Accept": accept, "Content-Type": content_type}
                status, text = await self._exchange(method, where, body, params, headers)
                if status == 401:
                    self._loaded = float("-inf")
                    status, text = await self._exchange(method, where, body, params, headers)
        except (aiohttp.ClientError, OSError, kopf.LoginError) as error:
            raise ApiUnreachableError(f"{method} {where}: {str(error) or type(error).__name__}") from error
        finally:
            if self.on_answer is not None:
                self.on_answer(method, _resource(where), status, time.monotonic() - started)
        if status >= 400:
            raise _refusal(status, text)
        try:
            answer: Json = json.loads(text)
        except ValueError as error:
            raise ApiUnreachableError(f"{method} {where}: not JSON: {text[:100]!r}") from error
        return answer

    async def _exchange(
        self,
        method: str,
        where: str,
        body: Any,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        info = self._credentials()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, ssl=info.as_ssl_context(), socket_factory=_socket_with_keepalive
                ),
                headers={"User-Agent": "equipoise-operator"},
                timeout=aiohttp.ClientTimeout(total=None),
            )
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(
            method,
            info.server.rstrip("/") + where,
            params=params,
            data=data,
            headers={**headers, **info.as_http_headers()},
        ) as response:
            return response.status, await response.read()

    def _credentials(self) -> kopf.ConnectionInfo:
        if time.monotonic() - self._loaded > CREDENTIALS_SECONDS:
            self._info = self._load()
            self._loaded = time.monotonic()
        return self._info


@contextlib.asynccontextmanager
async def _deadline(seconds: float, where: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as late:
        raise ApiUnreachableError(f"{where}: no answer in {seconds:g} s") from late


def _refusal(status: int, text: bytes) -> ApiError:
    try:
        answer = json.loads(text)
        return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(status, "", text[:200].decode(errors="replace"))


def _resource(where: str) -> str:
    """Return the plural in a path, for a metric's label."""
    parts = where.strip("/").split("/")
    skip = 2 if parts[0] == "api" else 3
    rest = parts[skip:]
    if len(rest) > 2 and rest[0] == "namespaces":
        rest = rest[2:]
    return rest[0] if rest else "discovery"


def _socket_with_keepalive(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that notices within seconds that the other end has vanished."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    made.setblocking(False)
    return made
