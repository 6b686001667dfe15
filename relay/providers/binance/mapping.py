"""What Binance's streams are called and what their messages become: everything that needs no session."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from relay.books import level
from relay.model import Bar, Level, Quote, Reject, RejectReason, Trade
from relay.numbers import number, optional, positive
from relay.providers.base import Output, Subscription, reject
from relay.providers.binance.options import INTERVALS, BinanceOptions
from relay.providers.binance.wire import DECODERS, MILLIS_MAX, RAW_CHARS_MAX, USELESS, BookTicker, Kind, Kline, ns

TIME_MAX = 9 * 10**15
"""Microseconds that still fit into 64 bits of ns."""
USELESS_STREAMS = USELESS | {"miniTicker", "ticker", "kline", "bookTicker", "referencePrice"}


class Odd(ValueError):
    """What is well formed and cannot be used all the same, with the reason of its reject."""

    def __init__(self, reason: RejectReason, text: str) -> None:
        super().__init__(text)
        self.reason: RejectReason = reason


class Route(NamedTuple):
    """What one stream carries, found by its name."""

    wrapped: Callable[[bytes], Any]
    bare: Callable[[bytes | Raw], Any]
    kind: Kind
    raw: str
    symbol: str
    venue: str | None
    param: str


def stream_of(sub: Subscription, options: BinanceOptions) -> str:
    """Name the stream that carries a subscription."""
    name = sub.raw.lower()
    match sub.channel:
        case "quotes":
            return f"{name}@bookTicker"
        case "trades":
            return f"{name}@{options.trades_from}"
        case "bars":
            return f"{name}@kline_{sub.param}"
        case _:
            speed = "@100ms" if options.book_update_ms == 100 else ""
            return f"{name}@depth{'' if sub.param == 'full' else sub.param}{speed}"


def route_of(stream: str, names: Mapping[str, tuple[str, str | None]]) -> Route | None:
    """Read a stream's name; None where it is none that is mapped."""
    name, _, what = stream.partition("@")
    kind: Kind
    param = ""
    if what in ("trade", "aggTrade", "bookTicker"):
        kind = cast("Kind", what)
    elif what.startswith("kline_") and what[6:] in INTERVALS:
        kind, param = "kline", what[6:]
    elif what in ("depth", "depth@100ms"):
        kind = "diff"
    elif what.removesuffix("@100ms") in ("depth5", "depth10", "depth20"):
        kind, param = "partial", what.removesuffix("@100ms")[5:]
    else:
        return None
    if not 0 < len(name) <= RAW_CHARS_MAX:
        return None
    raw = name.upper()
    return Route(*DECODERS[kind], kind, raw, *names[raw], param)


def explain(route: Route, error: Exception, data: bytes) -> Reject:
    """Say what is wrong with a frame of a known stream."""
    text = f"{route.kind} {route.raw}: {error}"
    reason: RejectReason
    if isinstance(error, RecursionError):
        reason, text = "too_deep", "nested too deeply"
    elif isinstance(error, Odd):
        reason = error.reason
    elif isinstance(error, msgspec.ValidationError):
        reason = "missing_field" if "missing required" in str(error) else "bad_field"
    elif isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
        reason = "not_json"
    else:
        reason = "bad_number"
    return reject(reason, text, data, symbol=route.symbol, raw_symbol=route.raw, venue=route.venue)


def check_above_zero(price: str, size: str) -> None:
    """Raises: ValueError where a price or size is zero or below."""
    for name, text in (("price", price), ("size", size)):
        if text[0] == "-" or not text.strip("0."):
            raise ValueError(f"a {name} that is not above zero: {text}")


def levels(rows: Sequence[tuple[Any, Any]]) -> list[Level]:
    return [level(price, size) for price, size in rows]


def quote(route: Route, one: BookTicker) -> Sequence[Output]:
    bid, ask = positive(one.b), positive(one.a)
    if bid is None and ask is None:
        return ()
    return (
        Quote(
            symbol=route.symbol,
            raw_symbol=route.raw,
            venue=route.venue,
            src_seq=one.u,
            bid=bid,
            ask=ask,
            bid_size=None if bid is None else positive(one.B),
            ask_size=None if ask is None else positive(one.A),
        ),
    )


def bar(route: Route, one: Kline) -> Sequence[Output]:
    bar = one.k
    if bar.i not in INTERVALS or (route.param and bar.i != route.param):
        raise Odd("bad_field", f"interval {bar.i!r}")
    start, last = ns(bar.t), ns(bar.T)
    if start is None or last is None or last <= start:
        raise Odd("bad_time", f"no times of a bar: {bar.t} to {bar.T}")
    return (
        Bar(
            symbol=route.symbol,
            raw_symbol=route.raw,
            venue=route.venue,
            ts_event=ns(one.E),
            interval=bar.i,
            start=start,
            end=last + (1_000_000 if bar.T < MILLIS_MAX else 1_000),
            open=number(bar.o),
            high=number(bar.h),
            low=number(bar.l),
            close=number(bar.c),
            volume=optional(bar.v),
            trades=bar.n,
            closed=bar.x,
        ),
    )


def trade(route: Route, one: Any) -> Sequence[Output]:
    """A bare trade; those of streams that are subscribed to take the fast way in `Session.receive`."""
    price, size = number(one.p), number(one.q)
    check_above_zero(price, size)
    return (
        Trade(
            symbol=route.symbol,
            raw_symbol=route.raw,
            venue=route.venue,
            ts_event=ns(one.T),
            src_seq=one.t,
            price=price,
            size=size,
            side=None if one.m is None else "sell" if one.m else "buy",
            id=str(one.t),
        ),
    )
