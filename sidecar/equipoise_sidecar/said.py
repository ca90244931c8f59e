"""What an answer says, as the next turn of its conversation will bring it back: text, without what the model thought.

A chat template leaves a model's thoughts out of the turns before the last, so an answer with thoughts is taken for one that
says nothing. Calls of tools are not looked at: how a client writes them down again is not known.
"""

from __future__ import annotations

import msgspec

_NOTHING = msgspec.Raw()
_NO_TEXT = (b"null", b'""')
_decode = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class Said(msgspec.Struct, gc=False):
    """A whole message, or what a chunk adds to one; its members as they stand."""

    content: msgspec.Raw = _NOTHING
    reasoning: msgspec.Raw = _NOTHING
    reasoning_content: msgspec.Raw = _NOTHING

    def text(self) -> bytes | None:
        """Return its text as `msgspec` writes it within a JSON string; None where the model thinks."""
        for thought in (self.reasoning, self.reasoning_content):
            if thought and bytes(thought) not in _NO_TEXT:
                return None
        text = bytes(self.content)
        if not text.startswith(b'"'):
            return b""
        if b"\\" in text:  # one character has several escapes
            try:
                text = _encode(_decode(text))
            except msgspec.MsgspecError:
                return b""
        return text[1:-1]
