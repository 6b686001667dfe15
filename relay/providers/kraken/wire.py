"""Kraken's v2 messages as they stand on the wire: an envelope, and the rows of each channel.

Numbers are bare JSON numbers whose text matters: `float_hook=str` keeps it, trailing zeros included.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

SRC_SEQ_MAX = 2**63 - 1
RAW_CHARS_MAX = 64
"""Longest symbol that is read; real ones have some ten characters."""

Pair = Annotated[str, Meta(min_length=1, max_length=RAW_CHARS_MAX)]


class Envelope(Struct, gc=False):
    """Data have `channel`, answers `method`; an `error` may stand alone."""

    channel: Any = None
    type: Any = None
    data: Raw = Raw()
    method: Any = None
    success: Any = None
    error: Any = None
    symbol: Any = None
    req_id: Any = None
    result: Any = None


class Row(Struct, gc=False):
    """One level of a book."""

    price: Any
    qty: Any


class BookData(Struct, gc=False):
    """A whole book, or its changes. Both sides are always there: an absent one is a lost one."""

    symbol: Pair
    bids: list[Row]
    asks: list[Row]
    checksum: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    timestamp: Any = None


class TickerData(Struct, gc=False):
    symbol: Pair
    bid: Any = None
    bid_qty: Any = None
    ask: Any = None
    ask_qty: Any = None
    last: Any = None
    timestamp: Any = None


class TradeData(Struct, gc=False):
    symbol: Pair
    trade_id: Annotated[int, Meta(ge=0, le=SRC_SEQ_MAX)]
    side: Any = None
    """The taker's."""
    price: Any = None
    qty: Any = None
    timestamp: Any = None


class BarData(Struct, gc=False):
    symbol: Pair
    interval: int
    """Minutes."""
    interval_begin: Any = None
    open: Any = None
    high: Any = None
    low: Any = None
    close: Any = None
    volume: Any = None
    vwap: Any = None
    trades: Any = None


class PairData(Struct, gc=False):
    """What is known of one market."""

    symbol: Pair
    base: Any = None
    quote: Any = None
    status: Any = None
    price_precision: Any = None
    qty_precision: Any = None
    price_increment: Any = None


class InstrumentData(Struct):
    """An object here, where the other channels have a list."""

    pairs: list[Raw] = []


class SystemData(Struct):
    """State of the whole venue."""

    system: Any = None
    upcoming_maintenance: Any = None


class Named(Struct):
    """Only the symbol of a row that is broken otherwise."""

    symbol: Any = None


def decoder(of: Any) -> Any:
    """A decoder that keeps the text of numbers."""
    return msgspec.json.Decoder(of, float_hook=str).decode


envelope = decoder(Envelope)
rows_of = decoder(list[Raw])
books_of = decoder(list[BookData])
tickers_of = decoder(list[TickerData])
trades_of = decoder(list[TradeData])
bars_of = decoder(list[BarData])
instruments_of = decoder(InstrumentData)
pair_of = decoder(PairData)
systems_of = decoder(list[SystemData])
named_of = decoder(Named)
ONE: dict[str, Any] = {
    "book": decoder(BookData),
    "ticker": decoder(TickerData),
    "trade": decoder(TradeData),
    "ohlc": decoder(BarData),
}
"""Decoders of single rows: good ones are kept beside a broken one."""
