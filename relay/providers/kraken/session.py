"""One session of Kraken: maps what comes, early data included; books are kept and checked, bars closed by time."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from relay import numbers, times
from relay.books import Checksum, Rules, level
from relay.model import Bar, Quote, RejectReason, Side, Status, Trade
from relay.providers.base import (
    BaseProvider,
    Connect,
    Frame,
    Output,
    Request,
    Seen,
    Send,
    Subscription,
    SymbolTable,
    order_books,
    reject,
)
from relay.providers.kraken.asking import Asking, Key, pause
from relay.providers.kraken.bars import Bars
from relay.providers.kraken.checksum import CHECKED_LEVELS, crc32
from relay.providers.kraken.notices import instrument, maintenance
from relay.providers.kraken.options import DEPTHS, KrakenOptions, KrakenShared, to_symbol
from relay.providers.kraken.wire import (
    ONE,
    BarData,
    BookData,
    Envelope,
    PairData,
    TickerData,
    TradeData,
    bars_of,
    books_of,
    envelope,
    instruments_of,
    named_of,
    pair_of,
    rows_of,
    systems_of,
    tickers_of,
    trades_of,
)

URL = "wss://ws.kraken.com/v2"
SILENCE_SECS = 10.0
"""Heartbeats come once a second, also while data flow: no frame for this long is a dead connection."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""The snapshot of all instruments has about a megabyte."""
RULES = Rules(check=Checksum(CHECKED_LEVELS, crc32))
_SIDES: dict[Any, Side] = {"buy": "buy", "sell": "sell"}
_CHANNELS = frozenset({"ticker", "trade", "book", "ohlc", "instrument"})


class Session(BaseProvider):
    """One connection: everything subscribed to, on one socket."""

    shared: KrakenShared

    def __init__(self, options: KrakenOptions, subscriptions: Sequence[Subscription], shared: KrakenShared) -> None:
        super().__init__(options, subscriptions, shared)
        self._symbols = SymbolTable(to_symbol, options.symbols)
        self._asking = Asking(shared, self._symbols)
        self._books = order_books(options, shared, self._symbols, RULES)
        self._depths: dict[str, str] = {}  # symbol -> depth, as asked for
        self._everything = any(sub.raw == "*" for sub in subscriptions)  # frames without a configuration
        self._bars = Bars(self._symbols, shared.closed)
        self._active: dict[str, bool] = {}
        self._system = "online"

    def connect(self) -> Connect:
        return Connect(
            url=self.options.url or URL,
            silence_secs=SILENCE_SECS,
            frame_bytes_max=FRAME_BYTES_MAX,
            refused_upgrade={
                403: ("slow", "Kraken's front refuses this address for a while"),
                429: ("slow", "too many connections from this address"),
            },
        )

    def opened(self, now_ns: int) -> Sequence[Output]:
        self._want(self.subscriptions, now_ns)
        return ()

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        self._want(subscriptions, now_ns)
        return ()

    def _want(self, subscriptions: Sequence[Subscription], now_ns: int) -> None:
        for sub in subscriptions:
            if sub.channel == "books" and sub.raw != "*" and sub.raw not in self._books:
                self._depths[sub.raw] = sub.param
                self._books.want(sub.raw, now_ns, depth=int(sub.param))
        self._asking.add(subscriptions, now_ns)

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        out = self._asking.remove(subscriptions)
        for sub in subscriptions:
            if sub.channel == "books":
                self._books.forget(sub.raw)
            elif sub.channel == "bars":
                self._bars.forget(sub.raw, sub.param)
            elif sub.channel == "trades":
                # what comes until it is subscribed again is not missing
                self.shared.traded.pop(sub.raw, None)
        return out

    def to_send(self) -> list[Send | Request]:
        asking = self._asking
        if not asking.out:
            return []
        out: list[Send | Request] = list(asking.out)
        asking.out.clear()
        return out

    def tick(self, now_ns: int) -> Sequence[Output]:
        out, late = self._asking.tick(now_ns)
        self._refused(late)
        out += self._bars.tick(now_ns)
        out += self._books.tick(now_ns)
        if self._books.pending:
            self._resync(now_ns)
        return out

    def whole(self, now_ns: int) -> Sequence[Output]:
        return self._books.whole(now_ns)

    def closed(self, now_ns: int) -> Sequence[Output]:
        return self._books.closed(now_ns)

    def _resync(self, now_ns: int) -> None:
        names = self._books.resync(now_ns)
        if names:
            self._asking.again([Key("book", raw, self._depths[raw]) for raw in names])

    def _refused(self, keys: Sequence[Key]) -> None:
        for key in keys:
            if key.channel == "book":
                self._books.forget(key.raw)

    # -- frames --------------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Sequence[Output]:
        data = frame.data
        if frame.binary:
            return (reject("not_text", "binary message; this feed sends text", data),)
        try:
            wire: Envelope = envelope(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._broken(frame, error)
        channel = wire.channel
        out: Sequence[Output]
        if channel == "book":
            out = self._book(wire, frame)
            if self._books.pending:
                self._resync(frame.received_ns)
        elif channel.__class__ is str:
            handler = _HANDLERS.get(channel)
            if handler is None:
                return (reject("unknown_type", channel[:100], data),)
            out = handler(self, wire, frame)
        elif wire.method is not None or wire.error is not None:
            out = self._answer(wire, data)
        else:
            return (reject("missing_field", "neither channel nor method", data),)
        if not out or out[0].__class__ is Seen:
            self.useless += 1
        return out

    def _nothing(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        return ()

    def _answer(self, wire: Envelope, data: bytes) -> Sequence[Output]:
        method = wire.method
        if method in ("subscribe", "unsubscribe"):
            if wire.success.__class__ is not bool:
                return (reject("bad_field", "`success` is neither true nor false", data),)
            out, refused = self._asking.answered(wire)
            self._refused(refused)
            if self._everything and isinstance(wire.result, dict) and wire.result.get("channel") == "book":
                self._depths[str(wire.result.get("symbol"))] = str(wire.result.get("depth"))
            return out
        if method == "pong":
            return ()
        if wire.error is not None:
            text = str(wire.error)[:500]
            problem = pause(text)
            if problem is not None:
                raise problem
            return (Status(event="notice", code="provider_error", text=text),)
        return (reject("unknown_type", f"method {str(method)[:100]}", data),)

    def _broken(self, frame: Frame, error: Exception) -> Sequence[Output]:
        """No JSON object. What has traces of a book may have been an update: all books are in doubt then."""
        data = frame.data
        reason: RejectReason
        if isinstance(error, RecursionError):
            reason = "too_deep"
        else:
            reason = "not_object" if isinstance(error, msgspec.ValidationError) else "not_json"
        out: list[Output] = [reject(reason, str(error), data)]
        if b'"book' in data or b'"checksum' in data or b'"bids' in data or b'"asks' in data:
            for raw in list(self._books):
                out += self._books.doubt(raw, "broken_frame", "a frame that cannot be read", frame.received_ns)
            self._resync(frame.received_ns)
        return out

    def _rows(self, wire: Envelope, frame: Frame, decode: Callable[[Any], list[Any]], out: list[Output]) -> list[Any]:
        """The rows of a frame; broken ones become rejects beside the good ones."""
        try:
            return decode(wire.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            whole = error
        try:
            parts = rows_of(wire.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            missing = not bytes(wire.data)
            out.append(
                reject("missing_field" if missing else "bad_field", f"{wire.channel}: data: {whole}", frame.data)
            )
            if wire.channel == "book":
                self._doubt_all(frame, out)
            return []
        good = []
        for part in parts:
            try:
                good.append(ONE[wire.channel](part))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                symbol, name = "", None
                try:
                    name = named_of(part).symbol
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    pass
                if name.__class__ is str and 0 < len(name) <= 64:
                    symbol = name
                missing = "missing required" in str(error)
                header = self._header(symbol) if symbol else {}
                out.append(
                    reject(
                        "missing_field" if missing else "bad_field", f"{wire.channel}: {error}", frame.data, **header
                    )
                )
                if wire.channel == "book":
                    if symbol in self._books:
                        out += self._books.doubt(symbol, "broken_frame", str(error)[:200], frame.received_ns)
                    else:
                        self._doubt_all(frame, out)
        return good

    def _doubt_all(self, frame: Frame, out: list[Output]) -> None:
        for raw in list(self._books):
            out += self._books.doubt(raw, "broken_frame", "a book frame that cannot be read", frame.received_ns)

    def _header(self, raw: str) -> dict[str, Any]:
        symbol, venue = self._symbols[raw]
        return {"symbol": symbol, "raw_symbol": raw, "venue": venue}

    def _time(self, value: Any, raw: str, frame: Frame, out: list[Output]) -> int | None:
        """A time, or none where it is absent, 1970 or broken (which is told)."""
        if value is None:
            return None
        try:
            return times.iso_ns(value) or None
        except (ValueError, TypeError) as error:
            out.append(reject("bad_time", str(error), frame.data, **self._header(raw)))
            return None

    # -- books ---------------------------------------------------------------------------------------------------

    def _book(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        now_ns, books = frame.received_ns, self._books
        out: list[Output] = []
        whole = wire.type == "snapshot"
        rows: list[BookData]
        try:
            rows = books_of(wire.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            rows = self._rows(wire, frame, books_of, out)
        if not whole and wire.type != "update":
            out.append(reject("unknown_type", f"book {str(wire.type)[:100]}", frame.data))
            for row in rows:
                out += books.doubt(row.symbol, "broken_frame", "neither snapshot nor update", now_ns)
            return out
        for row in rows:
            raw = row.symbol
            try:
                bids = [level(one.price, one.qty) for one in row.bids]
                asks = [level(one.price, one.qty) for one in row.asks]
            except ValueError as error:
                out.append(reject("bad_number", f"book: {error}", frame.data, **self._header(raw)))
                out += books.doubt(raw, "bad_level", str(error)[:200], now_ns)
                continue
            at = self._time(row.timestamp, raw, frame, out)
            if whole:
                if self._everything:
                    self._any(row, now_ns)
                out += books.snapshot(raw, bids, asks, now_ns, checksum=row.checksum, ts_event=at)
            else:
                out += books.delta(raw, bids, asks, now_ns, checksum=row.checksum, ts_event=at)
        return out

    def _any(self, row: BookData, now_ns: int) -> None:
        """Keep a book that nobody listed, at the depth of its answer; without one, at the least that holds it."""
        if len(self._depths) > self.options.topics_max:
            return
        rows = max(len(row.bids), len(row.asks))
        depth = self._depths.get(row.symbol, "")
        if depth not in DEPTHS:
            depth = next((one for one in DEPTHS if int(one) >= rows), DEPTHS[-1])
        self._depths[row.symbol] = depth
        self._books.want(row.symbol, now_ns, depth=int(depth))

    # -- quotes and trades ---------------------------------------------------------------------------------------

    def _ticker(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        out: list[Output] = []
        row: TickerData
        for row in self._rows(wire, frame, tickers_of, out):
            raw = row.symbol
            fields: dict[str, str | None] = {}
            for name in ("bid", "ask", "bid_qty", "ask_qty", "last"):
                try:
                    fields[name] = numbers.positive(getattr(row, name))
                except ValueError as error:
                    out.append(reject("bad_number", f"{name}: {error}", frame.data, **self._header(raw)))
                    fields[name] = None
            bid, ask = fields["bid"], fields["ask"]
            if bid is None and ask is None:
                continue  # a market without quotes says zeros
            symbol, venue = self._symbols[raw]
            quote = Quote(
                symbol=symbol, raw_symbol=raw, venue=venue, ts_event=self._time(row.timestamp, raw, frame, out),
                bid=bid, ask=ask, bid_size=None if bid is None else fields["bid_qty"],
                ask_size=None if ask is None else fields["ask_qty"], last=fields["last"],
            )  # fmt: skip
            out.append(quote)
        return out

    def _trade(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        """A snapshot repeats the latest trades: those behind the last one met fill the hole of a reconnect."""
        out: list[Output] = []
        rows: list[TradeData] = self._rows(wire, frame, trades_of, out)
        traded = self.shared.traded
        if wire.type == "snapshot":
            rows.sort(key=lambda one: one.trade_id)
            newest: dict[str, int] = {row.symbol: row.trade_id for row in rows}
            rows = [row for row in rows if row.trade_id > traded.get(row.symbol, SRC_SEQ_NONE)]
            for raw, number in newest.items():
                if raw not in traded:
                    # nothing to fill: history before our first subscription, and the base line of what follows
                    traded[raw] = number
                    out.append(Seen("trades", raw, number, delivered=False))
        for row in rows:
            raw, number = row.symbol, row.trade_id
            if number > traded.get(raw, -1):
                traded[raw] = number
            out += self._one_trade(row, frame)
        return out

    def _one_trade(self, row: TradeData, frame: Frame) -> Sequence[Output]:
        raw, number = row.symbol, row.trade_id
        symbol, venue = self._symbols[raw]
        side = _SIDES.get(row.side) if row.side.__class__ is str else None
        rejects: list[Output] = []
        prices: dict[str, str] = {}
        for name, value in (("price", row.price), ("qty", row.qty)):
            try:
                text = numbers.positive(value)
            except ValueError as error:
                rejects.append(reject("bad_number", f"{name}: {error}", frame.data, **self._header(raw)))
                continue
            if text is None:
                reason: RejectReason = "missing_field" if value is None or value == "" else "bad_number"
                rejects.append(reject(reason, f"{name} of a trade", frame.data, **self._header(raw)))
            else:
                prices[name] = text
        if len(prices) < 2:
            # say that this one is missing, so that the next one shows no jump
            gap = Status(event="gap", reason="decode_error", channel="trades", symbol=symbol, raw_symbol=raw)
            gap.venue, gap.first_missing, gap.last_missing, gap.missing = venue, number, number, 1
            return (*rejects, gap, Seen("trades", raw, number))
        if side is None and row.side is not None:
            rejects.append(reject("bad_field", "side is neither buy nor sell", frame.data, **self._header(raw)))
        at = self._time(row.timestamp, raw, frame, rejects)
        trade = Trade(
            symbol=symbol, raw_symbol=raw, venue=venue, ts_event=at, src_seq=number, price=prices["price"],
            size=prices["qty"], side=side, id=str(number),
        )  # fmt: skip
        return (trade, *rejects) if rejects else (trade,)

    # -- bars, instruments, state --------------------------------------------------------------------------------

    def _ohlc(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        out: list[Output] = []
        rows: list[BarData] = self._rows(wire, frame, bars_of, out)
        good: list[Bar] = []
        for row in rows:
            try:
                good.append(self._bars.read(row))
            except ValueError as error:
                what = str(error)
                reason: RejectReason = "bad_time" if "time" in what else "bad_number" if "num" in what else "bad_field"
                out.append(reject(reason, f"ohlc: {what}", frame.data, **self._header(row.symbol)))
        return [*out, *(self._bars.snapshot(good) if wire.type == "snapshot" else self._bars.update(good))]

    def _instrument(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        """All markets come, whatever is asked for; those listed in the config are mapped."""
        out: list[Output] = []
        try:
            parts = instruments_of(wire.data).pairs
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return (reject("bad_field", f"instrument: {error}", frame.data),)
        wanted = {key.raw for key in self._asking.wanted if key.channel == "instrument"}
        everything = self._everything
        for part in parts:
            try:
                row: PairData = pair_of(part)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                out.append(reject("bad_field", f"instrument: {error}", bytes(part)))
                continue
            if everything or row.symbol in wanted:
                out += self._pair(row, bytes(part))
        return out

    def _pair(self, row: PairData, part: bytes) -> list[Output]:
        out, active = instrument(row, part, self._header(row.symbol), self._active.get(row.symbol, True))
        if active is not None:
            self._active[row.symbol] = active
        return out

    def _status(self, wire: Envelope, frame: Frame) -> Sequence[Output]:
        """State of the whole venue: said when it changes, and planned maintenance once."""
        out: list[Output] = []
        try:
            rows = systems_of(wire.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return (reject("bad_field", f"status: {error}", frame.data),)
        for row in rows:
            system = row.system
            if isinstance(system, str) and system != self._system:
                self._system = system[:100]
                open_ = system == "online"
                out.append(Status(event="market", code=self._system, open=open_, text=f"Kraken is {self._system}"))
            planned = row.upcoming_maintenance if isinstance(row.upcoming_maintenance, list) else []
            for one in planned[:20]:
                if isinstance(one, dict):
                    out += maintenance(one, self.shared.told)
        return out


SRC_SEQ_NONE = 2**63
"""Above every trade id: of a symbol without a base line nothing in a snapshot is new."""


_HANDLERS: dict[str, Callable[[Session, Envelope, Frame], Sequence[Output]]] = {
    "ticker": Session._ticker,
    "trade": Session._trade,
    "ohlc": Session._ohlc,
    "instrument": Session._instrument,
    "status": Session._status,
    "heartbeat": Session._nothing,
}
