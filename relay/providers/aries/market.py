"""Market and charting data to messages: sparse quotes are merged, prints told apart, depth rows split.

One `Market` lives as long as a session: what it merges dies with it.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from relay import times
from relay.model import BookSnapshot, Greeks, Level, Quote, Rate, Status, Trade
from relay.numbers import is_zero, number, positive
from relay.providers.aries.options import INDICES
from relay.providers.aries.tokens import AriesShared
from relay.providers.aries.wire import Envelope, Kind, Payload
from relay.providers.base import Output, Subscription, reject

_SIDES = {
    "bidPrice": 0,
    "bid": 0,
    "bidSize": 1,
    "bid_size": 1,
    "askPrice": 2,
    "ask": 2,
    "askSize": 3,
    "ask_size": 3,
}
_QUOTED = ("bidPrice", "askPrice", "bid", "ask")
_GREEKS = {
    "delta": "delta",
    "gamma": "gamma",
    "theta": "theta",
    "vega": "vega",
    "rho": "rho",
    "impliedVolatility": "iv",
    "iv": "iv",
}
VENUE_CHARS_MAX = 64
RAW_CHARS_MAX = 256
SRC_SEQ_MAX = 1 << 63
SECONDS_MAX = 4096
EPOCH_MS = 1_000_000_000_000
"""September 2001 in ms."""


class Market:
    """Maps market data of one session. Each mapping appends to `out`; what is broken becomes a reject beside it."""

    def __init__(self, shared: AriesShared, subscriptions: Sequence[Subscription]) -> None:
        self._shared = shared
        self._names = shared.names
        self._quotes: dict[str, list[str | None]] = {}
        self._merged: set[str] = set()
        self._all = False
        self._indices: set[str] = set()
        self._depths: dict[str, int | None] = {}
        self.wants(subscriptions)

    def wants(self, subscriptions: Sequence[Subscription]) -> None:
        """Take what is subscribed now; what is merged for anything else is forgotten."""
        by: dict[str, set[str]] = {"quotes": set(), "trades": set(), "rates": set()}
        self._depths = {}
        for channel, raw, param in subscriptions:
            if channel in by:
                by[channel].add(raw)
            elif channel == "books":
                self._depths[raw] = int(param) if param.isascii() and param.isdecimal() and int(param) else None
        self._merged = by["quotes"]
        self._all = "*" in self._merged
        self._indices = by["rates"] - by["trades"]
        if not self._all:
            self._quotes = {raw: state for raw, state in self._quotes.items() if raw in self._merged}

    def map(self, kind: Kind, payload: Payload, envelope: Envelope, line: bytes, out: list[Output]) -> None:
        """Map one update of one symbol."""
        data = payload.data
        wire = payload.symbol
        if wire is None and data.__class__ is dict:
            wire = data.get("symbol")
        if wire.__class__ is not str or not wire or len(wire) > RAW_CHARS_MAX or wire.isspace():
            out.append(
                reject("bad_symbol" if wire else "missing_field", f"a {kind} message without a usable symbol", line)
            )
            return
        raw, symbol = self._names[wire]
        if data.__class__ is not dict:
            if kind == "prints" and data.__class__ is list:
                for part in data:
                    if part.__class__ is dict:
                        self._trade(part, raw, symbol, payload, envelope, line, out)
                    else:
                        out.append(reject("bad_field", "a print that is not an object", line, raw_symbol=raw))
                return
            out.append(reject("bad_field", f"a {kind} message whose data is not an object", line, raw_symbol=raw))
            return
        if kind == "quote" or kind == "trade" or kind == "prints":
            # a charting event may hold both parts as objects; else one flat object may hold both
            quote = data.get("quote")
            trade = data.get("trade")
            if quote.__class__ is not dict and trade.__class__ is not dict:
                quote = trade = data
            if quote.__class__ is dict and not quote.keys().isdisjoint(_SIDES):
                self._quote(quote, raw, symbol, payload, envelope, line, out)
            if trade.__class__ is dict:
                self._trade(trade, raw, symbol, payload, envelope, line, out)
        elif kind == "level2":
            self._book(data, raw, symbol, payload, envelope, line, out)
        else:
            self._greeks(data, raw, symbol, payload, envelope, line, out)

    def _quote(
        self,
        data: dict[str, Any],
        raw: str,
        symbol: str,
        payload: Payload,
        envelope: Envelope,
        line: bytes,
        out: list[Output],
    ) -> None:
        """Rule A-MERGE: a missing member leaves the old value, null clears it, the whole quote is published."""
        state = self._quotes.get(raw)
        if state is None or payload.action == "snapshot":
            if raw not in self._merged and not self._all:
                return  # never asked for: it must not take room here
            state = self._quotes[raw] = [None, None, None, None]
        for name, value in data.items():
            at = _SIDES.get(name)
            if at is not None:
                try:
                    state[at] = None if value is None or value == "" else number(value)
                except ValueError as error:
                    state[at] = None
                    out.append(reject("bad_number", f"{name}: {error}", line, symbol=symbol, raw_symbol=raw))
        bid, bid_size, ask, ask_size = state
        # a price of 0 with no size behind it stands for "no such side"
        if bid is not None and bid[0] in "-0" and is_zero(bid) and (bid_size is None or is_zero(bid_size)):
            bid = state[0] = state[1] = None
        if ask is not None and ask[0] in "-0" and is_zero(ask) and (ask_size is None or is_zero(ask_size)):
            ask = state[2] = state[3] = None
        if bid is None and ask is None:
            return
        out.append(
            Quote(
                symbol=symbol,
                raw_symbol=raw,
                ts_event=event_ns(data.get("quoteTimestamp"), payload, envelope),
                bid=bid,
                ask=ask,
                bid_size=None if bid is None else bid_size,
                ask_size=None if ask is None else ask_size,
            )
        )

    def _trade(
        self,
        data: dict[str, Any],
        raw: str,
        symbol: str,
        payload: Payload,
        envelope: Envelope,
        line: bytes,
        out: list[Output],
    ) -> None:
        value = data.get("price")
        if value is None or value == "":
            value = data.get("lastPrice")
        size = data.get("size")
        if value is None or value == "":
            # an update of statistics alone has neither; a size alone is a print whose price is missing
            if size is not None and size != "" and "lp" not in data:
                out.append(reject("missing_field", "a trade without a price", line, symbol=symbol, raw_symbol=raw))
            return
        stamp = data.get("tradeTimestamp")
        if stamp is None:
            stamp = data.get("timestamp")
            if stamp is None:
                stamp = data.get("time")
        ts = event_ns(stamp, payload, envelope)
        try:
            price = number(value)
            if raw in INDICES or raw in self._indices:
                out.append(Rate(symbol=symbol, raw_symbol=raw, ts_event=ts, kind="index", value=price))
                return
            amount = positive(size)
        except ValueError as error:
            out.append(reject("bad_number", f"trade: {error}", line, symbol=symbol, raw_symbol=raw))
            return
        venue = data.get("tradeExchange") or data.get("exchange")
        if venue.__class__ is not str or not venue or len(venue) > VENUE_CHARS_MAX:
            venue = None
        sequence = data.get("tradeSeq")
        if sequence.__class__ is str and sequence.isascii() and sequence.isdecimal() and len(sequence) < 19:
            sequence = int(sequence)
        if sequence.__class__ is not int or not 0 <= sequence < SRC_SEQ_MAX:
            sequence = None
        if sequence is not None and venue is not None and self._shared.prints.repeated(raw, venue, sequence, ts):
            return
        out.append(
            Trade(symbol=symbol, raw_symbol=raw, venue=venue, ts_event=ts, src_seq=sequence, price=price, size=amount)
        )

    def _book(
        self,
        data: dict[str, Any],
        raw: str,
        symbol: str,
        payload: Payload,
        envelope: Envelope,
        line: bytes,
        out: list[Output],
    ) -> None:
        """Each message is a whole book (assumption U5). The rows of single venues (`quotes`) have no place here."""
        rows = data.get("orderBook")
        if rows is None:
            return
        if rows.__class__ is not list:
            out.append(reject("bad_field", "orderBook is not a list", line, symbol=symbol, raw_symbol=raw))
            return
        bids: dict[str, str] = {}
        asks: dict[str, str] = {}
        bad = 0
        example: Any = None
        for row in rows:
            try:
                ask_size, price, bid_size = row.split(":") if row.__class__ is str else row
                price = number(price)
                if price[0] == "-":
                    raise ValueError("negative price")
                asked, bidden = _depth(ask_size), _depth(bid_size)
            except (ValueError, TypeError):
                bad += 1
                example = row if example is None else example
                continue
            if asked is not None:
                asks[price] = asked
            if bidden is not None:
                bids[price] = bidden
        if bad:
            out.append(
                reject("bad_field", f"{bad} bad depth rows, the first {example!r}", line, symbol=symbol, raw_symbol=raw)
            )
            if bad == len(rows):
                return
        depth = self._depths.get(raw)
        out.append(
            BookSnapshot(
                symbol=symbol,
                raw_symbol=raw,
                ts_event=event_ns(None, payload, envelope),
                bids=_sorted(bids, True)[:depth],
                asks=_sorted(asks, False)[:depth],
                depth=depth,
            )
        )

    def _greeks(
        self,
        data: dict[str, Any],
        raw: str,
        symbol: str,
        payload: Payload,
        envelope: Envelope,
        line: bytes,
        out: list[Output],
    ) -> None:
        values: dict[str, str] = {}
        for name, field in _GREEKS.items():
            value = data.get(name)
            if value is None or value == "":
                continue
            try:
                values.setdefault(field, number(value))
            except ValueError as error:
                out.append(reject("bad_number", f"{name}: {error}", line, symbol=symbol, raw_symbol=raw))
        if values:
            ts = event_ns(data.get("timestamp"), payload, envelope)
            found = values.get
            out.append(
                Greeks(
                    symbol=symbol,
                    raw_symbol=raw,
                    ts_event=ts,
                    delta=found("delta"),
                    gamma=found("gamma"),
                    theta=found("theta"),
                    vega=found("vega"),
                    rho=found("rho"),
                    iv=found("iv"),
                )
            )


def market_status(data: dict[str, Any], payload: Payload, envelope: Envelope, out: list[Output]) -> bool | None:
    """Map the market's phase; gives whether trading is open, None where the word for it is unknown.

    `code` is the phase: `pre`, `post`, or the provider's word; `text` holds the states of venues and groups.
    """
    word = data.get("market")
    phase = "pre" if data.get("earlyHours") is True else "post" if data.get("afterHours") is True else word
    groups = [
        f"{name} {state}"
        for group in ("exchanges", "currencies", "indicesGroups")
        if isinstance(data.get(group), dict)
        for name, state in data[group].items()
        if isinstance(state, str)
    ]
    market_open = {"open": True, "closed": False}.get(word) if isinstance(word, str) else None
    out.append(
        Status(
            event="market",
            ts_event=event_ns(data.get("serverTime"), payload, envelope),
            code=phase[:100] if isinstance(phase, str) else None,
            text=", ".join([f"market {word}", *groups])[:2000],
            open=market_open,
        )
    )
    return market_open


def event_ns(value: Any, payload: Payload, envelope: Envelope) -> int | None:
    """Give the record's own time, else the payload's, else the envelope's; None where none can be read."""
    if value is not None:
        ns = _stamp_ns(value)
        if ns is not None:
            return ns
    stamp = payload.timestamp
    if stamp is not None:
        # milliseconds in our century, as documented
        ns = stamp * 1_000_000 if stamp.__class__ is int and EPOCH_MS < stamp < 10 * EPOCH_MS else times.any_ns(stamp)
        if ns is not None:
            return ns
    return None if envelope.timestamp is None else times.any_ns(envelope.timestamp)


def _stamp_ns(value: Any) -> int | None:
    """As `times.any_ns`; `2026-03-12T09:41:00.327-04:00`, the form of quotes and trades, by a cached second."""
    if (
        value.__class__ is not str
        or len(value) != 29
        or value[19] != "."
        or not (value.isascii() and value[20:23].isdecimal())
    ):
        return times.any_ns(value)
    second = value[:19] + value[23:]
    ns = _seconds.get(second)
    if ns is None:
        ns = times.any_ns(second)
        if ns is None:
            return times.any_ns(value)
        if len(_seconds) >= SECONDS_MAX:
            _seconds.clear()
        _seconds[second] = ns
    return ns + int(value[20:23]) * 1_000_000


_seconds: dict[str, int] = {}


def _depth(value: Any) -> str | None:
    """A size in a depth row: empty or 0 means no such side. Raises: ValueError, also for a negative one."""
    if value is None or value == "":
        return None
    text = number(value)
    if text[0] == "-":
        raise ValueError("negative size")
    return None if is_zero(text) else text


def _sorted(side: dict[str, str], descending: bool) -> tuple[Level, ...]:
    return tuple(sorted(side.items(), key=lambda level: Decimal(level[0]), reverse=descending))
