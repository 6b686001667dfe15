"""Coinbase's messages as they stand on the wire: one struct a type that is mapped, and one decoder."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

SRC_SEQ_MAX = 2**63 - 1
RAW_CHARS_MAX = 64
"""Longest product id that is read; real ones have some ten characters."""

Seq = Annotated[int, Meta(ge=0, le=SRC_SEQ_MAX)]
Product = Annotated[str, Meta(min_length=1, max_length=RAW_CHARS_MAX)]


class Ticker(Struct, tag_field="type", tag="ticker", gc=False):
    product_id: Product
    sequence: Seq | None = None
    price: Any = None
    best_bid: Any = None
    best_ask: Any = None
    best_bid_size: Any = None
    best_ask_size: Any = None


class Match(Struct, tag_field="type", tag="match", gc=False):
    product_id: Product
    trade_id: Seq
    price: Any = None
    size: Any = None
    side: Any = None
    """The maker's."""
    time: Any = None


class LastMatch(Struct, tag_field="type", tag="last_match", gc=False):
    product_id: Product
    trade_id: Seq


class Heartbeat(Struct, tag_field="type", tag="heartbeat", gc=False):
    product_id: Product
    last_trade_id: Seq = 0


class Snapshot(Struct, tag_field="type", tag="snapshot", gc=False):
    """A whole book: [price, size] a level. Rows are read one by one: a broken one must not take the others along."""

    product_id: Product
    bids: list[Any]
    asks: list[Any]
    time: Any = None


class L2Update(Struct, tag_field="type", tag="l2update", gc=False):
    """Changes of a book: [side, price, size] each, in order."""

    product_id: Product
    changes: list[Any]
    time: Any = None


class Subscribed(Struct):
    name: str
    product_ids: list[str] | None = None


class Subscriptions(Struct, tag_field="type", tag="subscriptions"):
    channels: list[Subscribed] | None = None


class ErrorNotice(Struct, tag_field="type", tag="error"):
    message: Any = None
    reason: Any = None


class Kind(Struct):
    type: Any = None


Wire = Match | Ticker | L2Update | Snapshot | Heartbeat | LastMatch | Subscriptions | ErrorNotice
# not strict: integers come as JSON numbers, and as text of digits they are taken too
decode = msgspec.json.Decoder(Wire, strict=False, float_hook=str).decode
kind = msgspec.json.Decoder(Kind).decode

MAPPED = frozenset({"ticker", "match", "last_match", "heartbeat", "snapshot", "l2update", "subscriptions", "error"})
USELESS = frozenset({"status", "received", "open", "done", "change", "activate", "auction", "rfq_match"})
