"""A few of a trace's requests go through the OpenAI SDK, as a tenant's own program would send them, and their texts are checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI, OpenAIError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from equipoise_demo.outcome import Outcome
    from equipoise_simulator.traces import Row, Trace

REQUESTS = 6
MOST_TOKENS = 300
"""The SDK takes about 0.5 ms a chunk: longer answers are left to the replayer."""


def chosen(trace: Trace) -> list[int]:
    """Return the indices of rows to send with the SDK, spread over the trace and of different clients where possible."""
    short = [index for index, row in enumerate(trace.rows) if row.output_tokens <= MOST_TOKENS]
    picked: dict[str, int] = {}
    for index in short[:: max(1, len(short) // (REQUESTS * 4))]:
        picked.setdefault(trace.rows[index].client, index)
    return sorted(picked.values())[:REQUESTS]


@dataclass(slots=True)
class Sdk:
    """Sends requests with the SDK and compares what comes with what has to come."""

    endpoints: Sequence[tuple[str, int]]
    keys: Mapping[str, str]
    body: Callable[[Row, int], dict[str, Any]]
    headers: Callable[[int], dict[str, str]]
    expected: Callable[[str, int], str] | None
    """The text of an answer, by prompt and tokens; None when the engine's is not known beforehand."""
    timeout: float
    """Of a request, in real seconds."""
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    _clients: dict[tuple[str, int], AsyncOpenAI] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for host, port in self.endpoints:  # made beforehand: a client takes 20 ms
            self._clients[host, port] = AsyncOpenAI(
                base_url=f"http://{host}:{port}/v1",
                api_key="set for each request",
                max_retries=0,
                timeout=self.timeout,
            )

    async def send(
        self, row: Row, index: int, endpoint: tuple[str, int], outcome: Outcome, now: Callable[[], float]
    ) -> None:
        """Send one row and fill in its outcome."""
        body = self.body(row, index)
        extra = {"ignore_eos": body.pop("ignore_eos")}
        client = self._clients[endpoint].with_options(api_key=self.keys[row.client])
        texts: list[str] = []
        try:
            stream = await client.chat.completions.create(
                **body, extra_body=extra, extra_headers=self.headers(index)
            )
            async for chunk in stream:
                if chunk.usage is not None:
                    outcome.input_tokens = chunk.usage.prompt_tokens
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    texts.append(text)
                    outcome.tokens.append((now(), 1))
                    if outcome.first_token is None:
                        outcome.first_token = now()
        except OpenAIError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.end = now()
        self._check(row, body["messages"][0]["content"], "".join(texts), outcome)

    async def close(self) -> None:
        """Close the clients' connections."""
        for client in self._clients.values():
            await client.close()

    def _check(self, row: Row, prompt: str, text: str, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.wrong.append(f"{row.client}: {outcome.error}")
        elif self.expected is not None and text != self.expected(prompt, row.output_tokens):
            self.wrong.append(
                f"{row.client}: the text is not what the engine makes of the prompt: {text[:60]!r}"
            )
        elif not text:
            self.wrong.append(f"{row.client}: no text")
        else:
            self.right += 1
