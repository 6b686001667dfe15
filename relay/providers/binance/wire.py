"""Binance's messages as they stand on the wire: one struct a kind, wrapped (`stream`, `data`) and bare decoders."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

SRC_SEQ_MAX = 2**63 - 1
RAW_CHARS_MAX = 64
"""Longest symbol that is read; real ones have some ten characters."""
MILLIS_MAX = 10**14
"""Times below are milliseconds, from here on microseconds (`timeUnit=MICROSECOND`)."""

Seq = Annotated[int, Meta(ge=0, le=SRC_SEQ_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=RAW_CHARS_MAX)]
Rows = list[tuple[Any, Any]]
"""[[price, size], ...] as it came; a third member was sent years ago."""


class Trade(Struct, tag_field="e", tag="trade", gc=False):
    s: Name
    t: Seq
    p: Any
    q: Any
    T: Any = None
    m: bool | None = None
    """The buyer was the maker: the aggressor sold."""


class AggTrade(Struct, tag_field="e", tag="aggTrade", rename={"t": "a"}, gc=False):
    s: Name
    t: Seq
    p: Any
    q: Any
    T: Any = None
    m: bool | None = None


class BookTicker(Struct, gc=False):
    """No type and no time, alone of all."""

    u: Seq
    s: Name
    b: Any = None
    B: Any = None
    a: Any = None
    A: Any = None


class Candle(Struct, gc=False):
    t: Seq
    T: Seq
    """Inclusive."""
    i: str
    o: Any
    h: Any
    l: Any  # noqa: E741 -- named as on the wire
    c: Any
    x: bool
    v: Any = None
    n: Annotated[int, Meta(ge=0)] | None = None


class Kline(Struct, tag_field="e", tag="kline"):
    s: Name
    k: Candle
    E: Any = None


class Partial(Struct):
    """The best levels; also what REST answers about a whole book. Names no symbol."""

    lastUpdateId: Seq
    bids: Rows
    asks: Rows


class Diff(Struct, tag_field="e", tag="depthUpdate"):
    s: Name
    U: Seq
    u: Seq
    b: Rows
    a: Rows
    E: Any = None


Kind = Literal["trade", "aggTrade", "bookTicker", "kline", "partial", "diff"]
Data = Trade | AggTrade | BookTicker | Kline | Partial | Diff


class Decoders(NamedTuple):
    """How one kind is read: inside `{"stream": ..., "data": ...}`, and bare."""

    wrapped: Callable[[bytes], Any]
    bare: Callable[[bytes | Raw], Any]


def _decoders(kind: Any) -> Decoders:
    wrapper = msgspec.defstruct(f"Combined{kind.__name__}", [("data", kind)], gc=False)
    return Decoders(
        msgspec.json.Decoder(wrapper, float_hook=str).decode, msgspec.json.Decoder(kind, float_hook=str).decode
    )


DECODERS: dict[Kind, Decoders] = {
    "trade": _decoders(Trade),
    "aggTrade": _decoders(AggTrade),
    "bookTicker": _decoders(BookTicker),
    "kline": _decoders(Kline),
    "partial": _decoders(Partial),
    "diff": _decoders(Diff),
}
BY_EVENT: dict[str, Kind] = {"trade": "trade", "aggTrade": "aggTrade", "kline": "kline", "depthUpdate": "diff"}
"""The `e` of a bare event to its kind."""
USELESS = frozenset({
    "24hrMiniTicker", "24hrTicker", "1hTicker", "4hTicker", "1dTicker", "avgPrice", "referencePrice", "blockTrade",
})  # fmt: skip
"""Known events that nobody can subscribe to here."""


class Fault(Struct):
    code: Any = None
    msg: Any = None


class Probe(Struct):
    """A frame whose stream is not known: what it may be."""

    stream: str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    result: Any = UNSET
    error: Fault | None | UnsetType = UNSET
    code: Any = UNSET
    msg: Any = None
    id: Any = None
    e: Any = UNSET
    s: Any = None
    u: Any = UNSET
    b: Any = UNSET
    a: Any = UNSET
    lastUpdateId: Any = UNSET


probe = msgspec.json.Decoder(Probe, float_hook=str).decode


class Listed(Struct):
    """One symbol of `exchangeInfo`."""

    symbol: Name
    baseAsset: Name
    quoteAsset: Name
    status: str = ""


class ExchangeInfo(Struct):
    symbols: list[Listed]


exchange_info = msgspec.json.Decoder(ExchangeInfo, float_hook=str).decode
depth_reply = msgspec.json.Decoder(Partial, float_hook=str).decode
fault = msgspec.json.Decoder(Fault, float_hook=str).decode


def ns(value: Any) -> int | None:
    """Give ns of milliseconds or microseconds since 1970; None where there is no such time."""
    if value.__class__ is int and 0 < value <= SRC_SEQ_MAX // 1000:
        nanos: int = value * 1_000_000 if value < MILLIS_MAX else value * 1_000
        return nanos
    return None
