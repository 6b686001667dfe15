"""Messages to bytes and back: absent stays absent, and what is not a message is refused."""

import json

import msgspec
import pytest

from relay import codec
from relay.model import CHANNEL_OF, MESSAGES, BookDelta, Header, Quote, Reject, Status, Trade


def test_absent_is_left_out() -> None:
    assert codec.encode(Quote(bid="1.10")) == b'{"type":"quote","bid":"1.10"}'


def test_the_type_comes_first_and_fields_in_the_order_of_the_model() -> None:
    message = Trade(provider="demo", symbol="A", ts_recv=5, run=4, seq=3, price="1", size="2")
    assert list(json.loads(codec.encode(message))) == [
        "type",
        "provider",
        "symbol",
        "ts_recv",
        "run",
        "seq",
        "price",
        "size",
    ]


def test_levels_come_back_as_tuples() -> None:
    message = BookDelta(bids=(("1.0", "0"),), asks=())
    assert codec.decode(codec.encode(message)) == message
    assert codec.encode(message) == b'{"type":"book_delta","bids":[["1.0","0"]],"asks":[]}'


def test_text_of_any_language_and_control_characters_come_back() -> None:
    message = Reject(reason="not_json", detail='é "\\ \x00 \U0001f600', frame="\ufffd\n")
    assert codec.decode(codec.encode(message)) == message


def test_unknown_fields_are_ignored() -> None:
    assert codec.decode(b'{"later":1,"type":"quote","bid":"1"}') == Quote(bid="1")
    assert codec.decode('{"type":"quote","bid":"1"}') == Quote(bid="1")


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b'{"type":"tock"}', b'{"type":"trade"}', b'{"type":"trade","price":1.5}',
     b'{"type":"trade","price":"1e5"}', b'{"type":"trade","price":"NaN"}', b'{"type":"quote","bid":"1"',
     b'{"type":"quote","bid":"' + b"1" * 101 + b'"}', b'{"type":"quote","seq":"1"}',
     b'{"type":"trade","price":"1","side":"hold"}', b'{"type":"book_delta","bids":[["1"]],"asks":[]}'],
)  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        codec.decode(data)


def test_every_message_has_a_tag_and_a_channel_of_its_own() -> None:
    tags = [cls.__struct_config__.tag for cls in MESSAGES]
    assert len(set(tags)) == len(tags) == len(Header.__subclasses__())
    assert set(MESSAGES) - set(CHANNEL_OF) == {Status, Reject}
