"""The sidecar's own answers, in the shapes that clients of each endpoint know."""

import json

import openai
import pytest
from engine_fakes import answer, engine
from stack import stack

from equipoise_sidecar.errors import error_body, error_event, error_headers
from equipoise_sidecar.facts import EndpointKind, Rejection


def test_openai_and_anthropic_shapes():
    assert json.loads(error_body(EndpointKind.CHAT, 429, "full")) == {
        "error": {"message": "full", "type": "RateLimitError", "param": None, "code": 429}
    }
    assert json.loads(error_body(EndpointKind.MESSAGES, 429, "full")) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "full"},
    }
    assert json.loads(error_body(EndpointKind.CHAT, 507, "x"))["error"]["type"] == "InternalServerError"


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.01, b"1"), (1.2, b"2"), (119.5, b"120"), (4000.0, b"120")]
)
def test_retry_after_is_whole_seconds_that_clients_obey(seconds, header):
    rejection = Rejection(429, "queue-full", "", seconds)
    assert (b"retry-after", header) in error_headers(rejection)


def test_a_hard_quota_says_not_to_try_again():
    headers = dict(error_headers(Rejection(429, "rate-limited", "", None, False)))
    assert headers[b"x-should-retry"] == b"false"
    assert headers[b"x-equipoise-reason"] == b"rate-limited"
    assert b"retry-after" not in headers


@pytest.mark.parametrize("kind", list(EndpointKind))
def test_an_error_event_is_one_event(kind):
    event = error_event(kind, 502, 'line one\nline "two"')
    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    data = event.split(b"data: ", 1)[1]
    assert "line one" in json.dumps(json.loads(data))


async def test_the_openai_client_raises_its_own_error_for_each_refusal():
    async def script(connection) -> None:
        await connection.request()
        connection.send(answer(b"{}"))

    limits = [{"id": "team/blue", "headerValues": ["blue"], "limits": {"maxTokensPerRequest": 10}}]
    trusted = {"name": "x-tenant", "peers": ["127.0.0.1/32"]}
    async with (
        engine(script) as it,
        stack(it.url, tenants=limits, trustedHeader=trusted, defaultTenant={"mode": "Reject"}) as way,
    ):
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{way.port}/v1", api_key="nobody's", max_retries=0
        )
        ask = client.chat.completions.create
        messages = [{"role": "user", "content": "hi"}]
        with pytest.raises(openai.AuthenticationError, match="API key"):
            await ask(model="m", messages=messages)
        with pytest.raises(openai.BadRequestError, match="10 tokens"):
            await ask(model="m", messages=messages, max_tokens=50, extra_headers={"x-tenant": "blue"})
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(prompt="x")
        await client.close()


async def test_the_openai_client_raises_for_a_stream_that_breaks_off():
    async def script(connection) -> None:
        await connection.request()
        connection.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        event = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
        connection.send(b"%x\r\n%s\r\n" % (len(event), event))
        await connection.writer.drain()

    async with engine(script) as it, stack(it.url) as way:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{way.port}/v1", api_key="k", max_retries=0)
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError, match="engine closed"):
            assert [chunk async for chunk in stream] == []
        await client.close()
