"""Message to bytes and back: one JSON document a message, coders built once."""

import msgspec

from relay.model import Message

encode = msgspec.json.Encoder().encode
"""The bytes that go to the stream (field `data`) and to pub/sub."""

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def decode(data: bytes | str) -> Message:
    """Read one published message back.

    Raises: msgspec.ValidationError or msgspec.DecodeError where it is not one.
    """
    return _decoder.decode(data)


class Line(msgspec.Struct):
    """A published message on a line of its own: its topic, its entry id, its bytes as they are."""

    topic: str
    id: str
    message: msgspec.Raw


decode_line = msgspec.json.Decoder(Line).decode


def line_of(topic: str, entry_id: str, body: bytes) -> bytes:
    """The line, with its end. A body that is no JSON document makes no line: give only what was published."""
    return encode(Line(topic, entry_id, msgspec.Raw(body))) + b"\n"
