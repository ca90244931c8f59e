"""A cheap SSE engine: vLLM's chat chunks at a set pace, or as fast as the reader takes them.

One asyncio protocol on httptools' parser, so that what is measured is the proxy in front. `max_tokens` in the body
says how many chunks; `stream_options.continuous_usage_stats` adds usage to each, as vLLM does; `PUT /pace` with
`{"interval_ms": 50}` sets the pace, 0 means unpaced. `/health`, `/metrics` and `/v1/models` answer as vLLM's.

    python -m benchmarks.datapath.engine PORT
"""

import asyncio
import json
import sys
from functools import partial
from typing import cast

import httptools
import uvloop
from typing_extensions import override

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
BASE = b'data: {"id":"chatcmpl-90928723c1f7df4e","object":"chat.completion.chunk","created":1795334635,"model":"m",'
ROLE = (
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
)
ROLE_END = b',"prompt_token_ids":null,"prompt_text":null}\n\n'
# Two texts in turn: LiteLLM takes a hundred equal chunks for a model that has gone astray, and ends the stream.
TEXTS = [
    b'"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null,"token_ids":null}]'
    % word
    for word in (b" standard", b" ordinary")
]
LAST = (
    b'"choices":[{"index":0,"delta":{"content":" end"},"logprobs":null,"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":null}]'
)
USAGE = (
    b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}'
)
FINGERPRINT = b',"system_fingerprint":"vllm-0.32.0-66d08b6b"}\n\n'
PROMPT = 23
METRICS = b"""\
vllm:num_requests_running{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0
vllm:num_preemptions_total{engine="0",model_name="m"} 0.0
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="1000000",num_gpu_blocks="62500"} 1.0
"""
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm","max_model_len":8192}]}'
HIGH_WATER = 64 * 1024


class Pace:
    """Seconds between the chunks of a stream; 0 is unpaced."""

    interval = 0.0


class Connection(asyncio.Protocol):
    """One client's connection; one request at a time."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from neither
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._parser = httptools.HttpRequestParser(self)
        self._paused = False
        self._next: partial[None] | None = None
        self._timer: asyncio.Handle | None = None

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timer:
            self._timer.cancel()

    @override
    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    @override
    def pause_writing(self) -> None:
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused = False
        if self._next:
            step, self._next = self._next, None
            step()

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._body = b""

    def on_url(self, url: bytes) -> None:
        """Take its path."""
        self._path = url

    def on_body(self, body: bytes) -> None:
        """Collect its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer."""
        if self._path == b"/pace":
            self._pace.interval = json.loads(self._body)["interval_ms"] / 1000
            self._answer(b"{}")
        elif self._path == b"/metrics":
            self._answer(METRICS, b"text/plain; version=0.0.4; charset=utf-8")
        elif self._path == b"/v1/models":
            self._answer(MODELS)
        elif not self._body:
            self._answer(b"")
        else:
            request = json.loads(self._body)
            options = request.get("stream_options") or {}
            if request.get("stream"):
                self._transport.write(HEAD)
                self._chunk(0, request["max_tokens"], options)
            else:
                self._whole(request.get("max_tokens", 1))

    def _answer(self, body: bytes, kind: bytes = b"application/json") -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
        self._transport.write(head + body)

    def _whole(self, tokens: int) -> None:
        usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT + tokens, "completion_tokens": tokens}
        message = {"role": "assistant", "content": " standard" * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self._answer(json.dumps(answer).encode())

    def _chunk(self, sent: int, total: int, options: dict[str, bool]) -> None:
        if self._transport.is_closing():
            return
        if self._paused:
            self._next = partial(self._chunk, sent, total, options)
            return
        usage = USAGE % (PROMPT, PROMPT + sent, sent) if options.get("continuous_usage_stats") else b""
        if sent == 0:
            event = BASE + ROLE + usage + ROLE_END
        elif sent < total:
            event = BASE + TEXTS[sent & 1] + usage + b"}\n\n"
        else:
            self._end(usage, total, options)
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        step = partial(self._chunk, sent + 1, total, options)
        interval = self._pace.interval
        # The role comes with the first token.
        self._timer = (
            self._loop.call_later(interval, step) if interval and sent else self._loop.call_soon(step)
        )

    def _end(self, usage: bytes, total: int, options: dict[str, bool]) -> None:
        if options.get("include_usage"):
            last = BASE + LAST + usage + b"}\n\n"
            last += BASE + b'"choices":[]' + USAGE % (PROMPT, PROMPT + total, total) + FINGERPRINT
        else:
            last = BASE + LAST + usage + FINGERPRINT
        last += b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))


async def serve(port: int) -> None:
    """Listen on loopback until the process is ended."""
    pace = Pace()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pace), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
