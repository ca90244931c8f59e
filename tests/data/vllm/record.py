"""Record what a real vLLM answers: the bytes that the sidecar's and the stand-in's unit tests run on.

`.venv/bin/python tests/data/vllm/record.py` starts one vLLM on the CPU (a minute) and writes every file of this
folder anew: `recordings.json` and one body a recording, and the metrics. See README.md.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from equipoise_cluster.vllm import Vllm

HERE = Path(__file__).parent
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Hello, how are you?"}]
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}


def chat(**more: object) -> dict[str, object]:
    return {"model": "m", "messages": HELLO, "max_tokens": 5, "temperature": 1, "seed": 1, **more}


def completion(**more: object) -> dict[str, object]:
    return {"model": "m", "prompt": "The quick", "max_tokens": 5, "temperature": 1, "seed": 1, **more}


TOOLS = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "max_tokens": 60}
TWO_PROMPTS = {"prompt": ["The quick", "brown fox jumps over"]}
RESPONSE = {"model": "m", "input": "Hello", "max_output_tokens": 4, "temperature": 0}
MESSAGE = {"model": "m", "messages": HELLO, "max_tokens": 4, "temperature": 0}

# Every streaming shape in three variants: as a client asks, with the usage chunk, with usage in every chunk.
SHAPES = {
    "chat": (CHAT, chat()),
    "chat-n2": (CHAT, chat(n=2)),
    "chat-logprobs": (CHAT, chat(logprobs=True, top_logprobs=2, max_tokens=3)),
    "chat-tools": (CHAT, chat(**TOOLS)),
    "chat-return-token-ids": (CHAT, chat(return_token_ids=True)),
    "completions": (COMPLETIONS, completion()),
    "completions-n2": (COMPLETIONS, completion(n=2)),
    "completions-two-prompts": (COMPLETIONS, completion(**TWO_PROMPTS)),
    "completions-two-prompts-n2": (COMPLETIONS, completion(n=2, max_tokens=3, **TWO_PROMPTS)),
    "completions-echo": (COMPLETIONS, completion(echo=True)),
    "completions-logprobs": (COMPLETIONS, completion(logprobs=2, max_tokens=3)),
    "completions-echo-logprobs": (COMPLETIONS, completion(echo=True, logprobs=1, max_tokens=3)),
}
OTHERS = {
    "chat-usage-key-in-text": (
        CHAT,
        chat(
            stream=True,
            stream_options=CONTINUOUS,
            max_tokens=40,
            structured_outputs={"choice": ['x","usage":{"a":1},"y":"{\\\\']},
        ),
    ),
    "responses.stream": (RESPONSES, {**RESPONSE, "stream": True}),
    "responses.json": (RESPONSES, RESPONSE),
    "messages.stream": (MESSAGES, {**MESSAGE, "stream": True}),
    "messages.json": (MESSAGES, MESSAGE),
    "error-unknown-model": (CHAT, chat(model="other")),
    "error-unknown-model-stream": (CHAT, chat(model="other", stream=True)),
    "error-too-many-tokens": (CHAT, chat(max_tokens=100_000)),
    "error-prompt-too-long": (COMPLETIONS, completion(prompt=[5] * 3000)),
    "error-stream-options-without-stream": (CHAT, chat(stream_options=USAGE)),
    "error-bad-field": (CHAT, chat(temperature="hot")),
    "error-not-json": (CHAT, b"{not json"),
    "error-unknown-path": ("/v1/nothing", {}),
}


def cases() -> dict[str, tuple[str, object]]:
    streams = {"": {}, "-usage": {"stream_options": USAGE}, "-continuous": {"stream_options": CONTINUOUS}}
    return {
        **{f"{name}.json": (path, body) for name, (path, body) in SHAPES.items()},
        **{
            f"{name}.stream{suffix}": (path, {**body, "stream": True, **more})
            for name, (path, body) in SHAPES.items()
            for suffix, more in streams.items()
        },
        **OTHERS,
    }


def record(engine: Vllm) -> list[dict[str, object]]:
    index = []
    for name, (path, body) in cases().items():
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = engine.connection(timeout=60)
        connection.request("POST", path, body=sent, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        (HERE / f"{name}.body").write_bytes(answer.read())
        connection.close()
        index.append(
            {
                "name": name,
                "path": path,
                "request": sent.decode(),
                "status": answer.status,
                "headers": {
                    key.lower(): value
                    for key, value in answer.getheaders()
                    if key.lower() not in {"date", "server"}
                },
            }
        )
    return index


def get(engine: Vllm, path: str) -> bytes:
    connection = engine.connection()
    connection.request("GET", path)
    return connection.getresponse().read()


def main() -> None:
    for old in HERE.glob("*.body"):
        old.unlink()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        with Vllm.start(log=place / "vllm.log", uds=place / "vllm.sock") as engine:
            (HERE / "metrics-idle.txt").write_bytes(get(engine, "/metrics"))
            index = record(engine)
            (HERE / "metrics.txt").write_bytes(get(engine, "/metrics"))
            models = json.loads(get(engine, "/v1/models"))
            models["data"][0]["root"] = "MODEL_DIR"
            (HERE / "models.json").write_text(json.dumps(models, indent=1) + "\n")
    (HERE / "recordings.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
