"""Responses and messages as vLLM 0.32 writes them: named events, usage in the last one (messages: the prompt's in the first too).

Neither obeys `stream_options`, and neither ends with `[DONE]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from equipoise_simulator.standin.shapes import dumps

if TYPE_CHECKING:
    from equipoise_simulator.standin.answer import Answer, Choice


class ResponsesShape:
    """`/v1/responses`."""

    def __init__(self, answer: Answer, *, model: str) -> None:
        self.answer = answer
        self.model = model
        self.item_id = f"msg_{answer.request_id}"
        self._sequence_number = 0
        self._texts: list[str] = []

    def opening(self) -> str:
        """Return the events before the first token."""
        running = self._response("in_progress", [], usage=None)
        part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return (
            self._event("response.created", {"response": running})
            + self._event("response.in_progress", {"response": running})
            + self._event(
                "response.output_item.added", {"item": self._item("in_progress", []), "output_index": 0}
            )
            + self._event("response.content_part.added", {**self._place(), "output_index": 0, "part": part})
        )

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:  # noqa: ARG002 - one signature for all endpoints
        """Return a delta; an end token has none."""
        if not text:
            return ""
        self._texts.append(text)
        delta = {
            "content_index": 0,
            "delta": text,
            "item_id": self.item_id,
            "logprobs": [],
            "output_index": 0,
        }
        return self._event("response.output_text.delta", delta)

    def closing(self) -> str:
        """Return the events after the last token."""
        text = "".join(self._texts)
        part = self._part(text)
        item = self._item("completed", [part])
        done: dict[str, Any] = {**self._place(), "logprobs": [], "output_index": 0}
        return (
            self._event("response.output_text.done", done, {"text": text})
            + self._event("response.content_part.done", {**self._place(), "output_index": 0, "part": part})
            + self._event("response.output_item.done", {"item": item, "output_index": 0})
            + self._event("response.completed", {"response": self._ended(item)})
        )

    def whole(self) -> str:
        """Return a `response`."""
        text = "".join(self.answer.choices[0].whole_pieces())
        return dumps(self._ended(self._item("completed", [self._part(text)])))

    def _event(self, name: str, data: dict[str, Any], after: dict[str, Any] | None = None) -> str:
        number = self._sequence_number
        self._sequence_number += 1
        return f"event: {name}\ndata: {dumps({**data, 'sequence_number': number, **(after or {}), 'type': name})}\n\n"

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self.item_id}

    def _part(self, text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.item_id, "content": content, "role": "assistant", "status": status}
        return {**head, "type": "message", "phase": None}

    def _ended(self, item: dict[str, Any]) -> dict[str, Any]:
        prompt, generated = self.answer.prompt_tokens, self.answer.generated_tokens
        cached = {
            "cached_tokens": self.answer.cached_tokens,
            "cache_write_tokens": 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        }
        turns: dict[str, list[int]] = {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": cached,
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, **turns},
            "total_tokens": prompt + generated,
        }
        cut = self.answer.choices[0].finish_reason == "length"
        return self._response("incomplete" if cut else "completed", [item], usage=usage)

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self.answer.request_id}",
            "created_at": self.answer.created,
            "incomplete_details": incomplete,
            "instructions": None,
            "metadata": None,
            "model": self.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 0.0,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": self.answer.generation.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


class MessagesShape:
    """`/v1/messages`."""

    def __init__(self, answer: Answer, *, model: str) -> None:
        self.answer = answer
        self.model = model
        self._open = False

    def opening(self) -> str:
        """Return the message's start, with the prompt's tokens."""
        usage = {"input_tokens": self.answer.prompt_tokens, "output_tokens": 0}
        message = {**self._head([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _named("message_start", {"message": message})

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:  # noqa: ARG002 - one signature for all endpoints
        """Return a delta; an end token has none."""
        if not text:
            return ""
        start = ""
        if not self._open:
            self._open = True
            start = _named("content_block_start", {"content_block": {"type": "text", "text": ""}, "index": 0})
        return start + _named(
            "content_block_delta", {"delta": {"type": "text_delta", "text": text}, "index": 0}
        )

    def closing(self) -> str:
        """Return the end, with all tokens."""
        stop = _named("content_block_stop", {"index": 0}) if self._open else ""
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        return (
            stop
            + _named("message_delta", {"delta": delta, "usage": self._usage()})
            + _named("message_stop", {})
        )

    def whole(self) -> str:
        """Return a `message`."""
        text = "".join(self.answer.choices[0].whole_pieces())
        content = [{"type": "text", "text": text}] if text else []
        return dumps({**self._head(content), "stop_reason": self._stop_reason(), "usage": self._usage()})

    def _head(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{self.answer.request_id}", "type": "message", "role": "assistant"}
        return {**head, "content": content, "model": self.model}

    def _usage(self) -> dict[str, int]:
        return {"input_tokens": self.answer.prompt_tokens, "output_tokens": self.answer.generated_tokens}

    def _stop_reason(self) -> str:
        return "max_tokens" if self.answer.choices[0].finish_reason == "length" else "end_turn"


def _named(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {dumps({'type': name, **data})}\n\n"
