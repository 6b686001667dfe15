"""The `header` family of eToro's messages: trade, candle and order book as flat objects (rules R16 and R19).

Only tutorials show them and none of their payloads was ever published: every field is read in the spellings that were
seen for it anywhere.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from relay import numbers, times
from relay.model import Bar, BookSnapshot, Header, Level, RejectReason, Trade
from relay.providers.etoro import wire
from relay.providers.etoro.wire import Object

BOOK_TYPES = frozenset({"orderbook", "book", "depth"})
_INTERVALS = {
    "oneminute": "1m", "fiveminutes": "5m", "tenminutes": "10m", "fifteenminutes": "15m", "thirtyminutes": "30m",
    "onehour": "1h", "fourhours": "4h", "oneday": "1d", "oneweek": "1w",
}  # fmt: skip


class Unusable(ValueError):
    """A message that lacks what its kind needs; `reason` is the reject's."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RejectReason = reason


def trade(row: Object, symbol: str, raw: str) -> Trade:
    """Make a trade; price and size are needed. Raises: Unusable."""
    price = _price(row, "price")
    size = None
    for name in ("size", "quantity", "units", "amount"):
        size = wire.amount(row.get(name))
        if size is not None:
            break
    if size is None or size[0] == "-" or numbers.is_zero(size):
        raise Unusable("missing_field", "a trade without a size")
    side = wire.text_of(row.get("side")).lower()
    found = next((row[name] for name in ("id", "tradeId") if row.get(name) not in (None, "")), None)
    return Trade(
        symbol=symbol,
        raw_symbol=raw,
        ts_event=_time(row),
        price=price,
        size=size,
        side="buy" if side == "buy" else "sell" if side == "sell" else None,
        id=None if found is None else str(found)[:256],
    )


def bar(row: Object, symbol: str, raw: str) -> Bar:
    """Make a bar: four prices, a start and a readable interval are needed. Raises: Unusable.

    Nothing says when a bar is final, so it is never marked closed.
    """
    prices = [_price(row, name) for name in ("open", "high", "low", "close")]
    start = _time(row)
    if start is None:
        raise Unusable("missing_field", "a candle without a time")
    word = wire.text_of(row.get("interval")).replace(" ", "")
    interval = _INTERVALS.get(word.lower(), word)
    try:
        length = times.interval_ns(interval)
        if length <= 0:
            raise ValueError("an interval of nothing")
    except ValueError as error:
        raise Unusable("bad_field", f"a candle's interval: {error}") from None
    return Bar(
        symbol=symbol,
        raw_symbol=raw,
        ts_event=start,
        interval=interval,
        start=start,
        end=start + length,
        open=prices[0],
        high=prices[1],
        low=prices[2],
        close=prices[3],
        volume=wire.amount(row.get("volume")),
        closed=False,
    )


def book(row: Object, symbol: str, raw: str) -> BookSnapshot:
    """Make a book snapshot: both arrays are needed, levels that cannot be read are left out. Raises: Unusable."""
    sides = [row.get("bids"), row.get("asks")]
    if not all(isinstance(side, list) for side in sides):
        raise Unusable("missing_field", "a book without bids and asks")
    bids, asks = (_levels(side, highest) for side, highest in zip(sides, (True, False), strict=True))
    return BookSnapshot(symbol=symbol, raw_symbol=raw, ts_event=_time(row), bids=bids, asks=asks)


MAKERS: dict[str, tuple[str, Callable[[Object, str, str], Header]]] = {
    "trade": ("trades", trade),
    "candle": ("bars", bar),
    **dict.fromkeys(BOOK_TYPES, ("books", book)),
}
"""Type of a flat message to its channel and what makes the message of it."""


def _price(row: Object, name: str) -> str:
    try:
        price = wire.price(row.get(name))
    except ValueError as error:
        raise Unusable("bad_number", f"{name}: {error}") from None
    if price is None:
        raise Unusable("missing_field", f"no {name}")
    return price


def _time(row: Object) -> int | None:
    for name in ("ts", "time", "fromDate", "date"):
        found = wire.time_ns(row.get(name))
        if found is not None:
            return found
    return None


def _levels(side: Any, highest_first: bool) -> tuple[Level, ...]:
    found: list[Level] = []
    for level in side:
        if isinstance(level, dict):
            folded = {str(key).lower(): item for key, item in level.items()}
            pair = [folded.get("price"), folded.get("size")]
        else:
            pair = level[:2] if isinstance(level, list) else []
        try:
            price, size = wire.price(pair[0]), numbers.optional(pair[1])
        except (ValueError, IndexError):
            continue
        if price is not None and size is not None and size[0] != "-" and not numbers.is_zero(size):
            found.append((price, size))
    return tuple(sorted(found, key=lambda level: Decimal(level[0]), reverse=highest_first))
