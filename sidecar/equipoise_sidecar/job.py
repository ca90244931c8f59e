"""A scheduled request whose body is read: what it says, what goes to the engine of it, and who reads the answer."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise_sidecar.body import Body, BodyError, read_bool
from equipoise_sidecar.declared import DeclarationError, Declared, declare
from equipoise_sidecar.facts import EndpointKind, EngineProfile, Facts
from equipoise_sidecar.paths import Endpoint
from equipoise_sidecar.progress import ChunkReader, EventReader, Reader, WholeReader
from equipoise_sidecar.reading import read_facts
from equipoise_sidecar.sse import fingerprint_member


@dataclass(slots=True)
class Job:
    """One request."""

    endpoint: Endpoint
    facts: Facts
    raw: bytes
    body: Body | None
    """None for a form, and for what is passed through unread."""

    def forget(self) -> None:
        """Let the body go: an answer has begun, and nothing is sent twice from here."""
        self.raw = b""
        self.body = None


def read_job(
    endpoint: Endpoint,
    kind: EndpointKind,
    raw: bytes,
    declared: Declared,
    *,
    strict: bool,
    features: bool,
    prefixes: bool,
) -> Job:
    """Read what a body says. Raises BodyError and DeclarationError if `strict`; else what cannot be read goes on unread."""
    body: Body | None = None
    try:
        if kind is EndpointKind.AUDIO:
            facts = Facts(path=endpoint.path, kind=kind, body_bytes=len(raw), images=1)
            declare(facts, declared, None)
        else:
            body = Body.parse(raw)
            facts = read_facts(endpoint.path, kind, body, declared, features=features, prefixes=prefixes)
    except (BodyError, DeclarationError):
        if strict:
            raise
        return Job(endpoint, Facts(path=endpoint.path, kind=kind, body_bytes=len(raw)), raw, None)
    background = strict and kind is EndpointKind.RESPONSES and body is not None and body.value("background")
    if read_bool(background):
        raise BodyError("background: a response that outlives its connection cannot be scheduled; stream it")
    return Job(endpoint, facts, raw, body)


def prepare(job: Job, profile: EngineProfile, *, edit: bool) -> tuple[bytes, Reader]:
    """Return the body to send, and the reader of the stream that it may bring."""
    facts, body = job.facts, job.body
    if facts.kind in (EndpointKind.RESPONSES, EndpointKind.MESSAGES):
        return job.raw, EventReader()
    if body is not None and edit and not job.endpoint.heeds_priority_header:
        return body.without("priority"), WholeReader()
    as_it_is = ChunkReader(sequences=facts.sequences, prompts=facts.prompts)
    if body is None or not edit or not facts.stream or not job.endpoint.runs_usage or profile.forces_usage:
        return job.raw, as_it_is
    options = body.value("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        return job.raw, as_it_is  # the engine answers 400
    included = read_bool(options.get("include_usage"))
    continuous = read_bool(options.get("continuous_usage_stats"))
    if included is None or continuous is None or (included and continuous):
        return job.raw, as_it_is
    fingerprint = b"" if included else fingerprint_member(profile.system_fingerprint)
    reader = ChunkReader(
        sequences=facts.sequences,
        prompts=facts.prompts,
        cut=True,
        drop_last=not included,
        fingerprint=fingerprint,
    )
    return body.with_running_usage(), reader
