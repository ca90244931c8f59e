"""What passes between the request's way (`app.py`) and the dispatcher: plain records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from equipoise_scheduling.features import Features


@dataclass(frozen=True, slots=True)
class PromptBytes:
    """A request's prompts as bytes in the order in which the engine computes them."""

    root: bytes
    """What must be equal for anything to be shared."""
    prompts: tuple[bytes, ...]
    """As far as they are looked at."""
    sizes: tuple[int, ...]
    """Bytes of each, all of it."""
    goes_on: bool = False
    """Whether one answer comes of it that a next turn would bring back as `prompt_bytes` lays it out."""


class EndpointKind(StrEnum):
    """What an engine endpoint does, as far as scheduling, progress and error bodies differ."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    AUDIO = "audio"
    """Transcription and translation: a form, not JSON."""
    POOLING = "pooling"
    """Embeddings, scores, ranks, classes: a prompt and no generated tokens."""

    @property
    def generates(self) -> bool:
        """Whether output tokens come of it."""
        return self is not EndpointKind.POOLING


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a request's headers and body say, without tokenising anything."""

    path: str
    kind: EndpointKind
    request_id: str = ""
    """For logs and debug tables: the client's X-Request-Id, or one made up."""
    model: str = ""
    body_bytes: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of prompt text over all prompts; 0 where the prompt came as token ids alone."""
    prompt_ids: int | None = None
    """Prompt tokens that came as ids, over all prompts; None without such."""
    images: int = 0
    max_tokens: int | None = None
    """The client's limit of one sequence's output; None where it set none."""
    sequences: int = 1
    """Prompts x n x beams: slots that it takes in the engine."""
    prompts: int = 1
    stream: bool = False
    system_bytes: int = 0
    """Those of `text_bytes` that are the system prompt's."""
    user: str = ""
    """The tenant's end user."""
    application: str = ""
    interaction: str = ""
    call_index: int | None = None
    """1-based; None where the client does not say."""
    call_count: int | None = None
    ttft_milliseconds: int | None = None
    """SLO as declared; what was promised bounds it."""
    tpot_milliseconds: int | None = None
    e2e_milliseconds: int | None = None
    slo_vouched: bool = False
    """The SLO was declared by a trusted peer."""
    features: Features | None = None
    """For a predictor that looks at requests; None for one that does not."""
    prompt_bytes: PromptBytes | None = None
    """For the prefix index, which takes it away; None where nobody asks or nothing can be shared."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that is turned away: what to answer. The error body's shape is the endpoint's."""

    status: int
    """HTTP status: 429 where others contend, 503 where there is nothing to serve with, 400, 401, 408, 413."""
    reason: str
    """Machine-readable: response header and metric label."""
    message: str
    retry_after_seconds: float | None = None
    """At most 120; None sends no Retry-After."""
    should_retry: bool | None = None
    """`x-should-retry` of the OpenAI clients; None leaves it to the status."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the probe on connecting learnt of the engine; a restart of the engine renews it."""

    system_fingerprint: str | None = None
    """As the engine sends it in a stream's last chunk; None where it sends none, or nothing is known."""
    forces_usage: bool = False
    """Usage comes whether asked for or not (`--enable-force-include-usage`)."""
    reports_cached_tokens: bool | None = None
    """Usage has prompt_tokens_details; None while unknown."""
    max_model_len: int | None = None
    models: tuple[str, ...] = ()
    """Served names."""
    priorities: bool = False
    """Whether X-Vllm-Priority may be other than 0: some versions answer 400 where they are not in priority mode."""
