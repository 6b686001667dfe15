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
