"""One session of CoinAPI: everything subscribed to, on one socket. Books and bars check their own numbers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from relay.errors import HandshakeRefused, SequenceGap, SessionError
from relay.model import Bar, BookDelta, BookSnapshot, Instrument, Quote, Rate, Reject, Status, Trade
from relay.numbers import is_zero, number, optional
from relay.providers.base import (
    BaseProvider,
    Connect,
    Frame,
    Output,
    Seen,
    Send,
    Subscription,
    matches,
    reject,
)
from relay.providers.coinapi.asking import KEY_URL, CoinApiOptions, CoinApiShared, covers, requests
from relay.providers.coinapi.wire import (
    DEPTH_OF,
    UnknownType,
    Wire,
    above_zero,
    broken,
    decode,
    explain,
    interval_of,
    levels_of,
    refusal,
    sequence_of,
)
from relay.times import any_ns, iso_ns

URL = "wss://ws.coinapi.io/v1/"

SILENCE_SECS = 10.0
"""A heartbeat comes after each second of silence; CoinAPI's own C# client gives up after ten."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""Whole books of 5 MB are expected."""
REPEAT_WINDOW = 10_000
"""A number this much below the last one is late or repeated; further below, the numbering began anew."""
PROOF_NS = 2_000_000_000
"""An error frame for a message sent at run time would have come within this time."""
BAR_GRACE_NS = 10_000_000_000
"""Updates of an open bar come every 5 s: a bar whose end is twice that long ago is final."""
RESYNC_PAUSE_NS = 2_000_000_000
"""Books that break within this time of a request share the next one: 10 messages in 10 s are allowed."""
SNAPSHOT_WAIT_NS = 30_000_000_000
"""Deltas that come for this long without a snapshot: it is asked for again."""
SNAPSHOT_TRIES = 3
CLOSE_GRACE_NS = 1_000_000_000
"""How long behind the announced time the server may take to close by itself."""
_SIDES: dict[str | None, Literal["buy", "sell"]] = {"BUY": "buy", "SELL": "sell"}
_ESTIMATED: dict[str | None, Literal["buy", "sell"]] = {"BUY_ESTIMATED": "buy", "SELL_ESTIMATED": "sell"}


_USELESS = frozenset({"book_l3", "asset", "exchange", "volume", "ticker", "hearbeat", "heartbeat"})
"""Known, and nothing comes of them: orders one by one, lists that are no instruments, legacy, heartbeats (the first
spelling is that of the wire)."""


class _Book:
    """What is known of one whole book: its last number, and since when a snapshot is waited for."""

    __slots__ = ("asked_ns", "last", "tries", "valid")

    def __init__(self, asked_ns: int) -> None:
        self.last: int | None = None
        self.valid = False
        self.asked_ns, self.tries = asked_ns, 0


class CoinApi(BaseProvider):
    """One session: everything subscribed to, on one socket."""

    def __init__(self, options: CoinApiOptions, subscriptions: Sequence[Subscription], shared: CoinApiShared) -> None:
        super().__init__(options, subscriptions, shared)
        self._names = shared.names
        # the simulator, too, wants a key; any will do
        self._key: str = options.api_key or ("simulated" if options.simulate else "")
        self._thin = options.quotes_update_ms > 0
        self._greeted = False
        self._proven = False
        self._asked: list[tuple[int, Subscription]] = []
        self._books: dict[str, _Book] = {}
        self._depths: dict[tuple[str, str], int] = {}
        self._bars: dict[tuple[str, str], Bar] = {}
        self._bar_numbers: dict[str, int] = {}
        self._broken_books: dict[str, None] = {}
        self._resync_ns = 0
        self._close_ns: int | None = None

    # -- the connection ------------------------------------------------------------------------------------------

    def connect(self) -> Connect:
        options = self.options
        return Connect(
            url=options.url or URL,
            headers={"X-CoinAPI-Key": self._key} if self._key else {},
            silence_secs=SILENCE_SECS if options.heartbeat else None,
            frame_bytes_max=FRAME_BYTES_MAX,
        )

    def opened(self, now_ns: int) -> Sequence[Output]:
        options = self.options
        if not self._key and not options.url:
            raise HandshakeRefused(f"no api_key: get one at {KEY_URL}", code="no_key", action="fatal")
        self._ask("subscribe", self.subscriptions)
        return ()

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        """Add to the scope. CoinAPI does not acknowledge: `tick` says `subscribed` once no error came of it."""
        held = set(self.subscriptions)
        new = [one for one in dict.fromkeys(subscriptions) if one not in held]
        self.subscriptions += new
        self._ask("subscribe", new)
        self._asked += [(now_ns, one) for one in new]
        return ()

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        """Take out of the scope what nothing else holds, and put back what a removed pattern took along."""
        held = set(self.subscriptions)
        gone = [one for one in dict.fromkeys(subscriptions) if one in held]
        kept = [one for one in self.subscriptions if one not in set(gone)]
        self.subscriptions = kept
        self._asked = [one for one in self._asked if one[1] not in set(gone)]
        self._ask("unsubscribe", [one for one in gone if not any(covers(other, one) for other in kept)])
        self._ask("subscribe", [one for one in kept if any(covers(other, one) for other in gone)])
        for raw in list(self._books):
            if not any(one.channel == "books" and one.param == "full" and matches(one.raw, raw) for one in kept):
                del self._books[raw]
                self._broken_books.pop(raw, None)
        for raw, interval in list(self._bars):
            if not any(one.channel == "bars" and one.param == interval and matches(one.raw, raw) for one in kept):
                del self._bars[raw, interval]
        return [self._said("unsubscribed", one) for one in gone]

    def tick(self, now_ns: int) -> Sequence[Output]:
        if self._close_ns is not None and now_ns >= self._close_ns:
            raise SessionError("the announced time to reconnect has come", code="reconnect", action="retry")
        out: list[Output] = []
        if self._broken_books:
            self._resync(now_ns)
        while self._asked and now_ns - self._asked[0][0] >= PROOF_NS:
            out.append(self._said("subscribed", self._asked.pop(0)[1]))
        due = [bar for bar in self._bars.values() if not bar.closed and now_ns >= bar.end + BAR_GRACE_NS]
        return [*out, *map(self._closed_bar, due)]

    def _said(self, event: Literal["subscribed", "unsubscribed"], one: Subscription) -> Status:
        name = None if one.raw.endswith("*") else self._names[one.raw]
        text = f"{one.param} {one.raw}" if one.param else one.raw
        return Status(
            event=event, channel=one.channel, raw_symbol=one.raw, symbol=name[0] if name else None,
            venue=name[1] if name else None, text=text,
        )  # fmt: skip

    def _ask(self, verb: str, wanted: Iterable[Subscription]) -> None:
        """Send one message for each set of filters; the first of a session is the hello with the key."""
        for message in requests(self.options, verb, wanted):
            if not self._greeted:
                self._greeted = True
                message["type"] = "hello"
                if self._key:
                    message["apikey"] = self._key
            self._out.append(Send(msgspec.json.encode(message).decode(), subscribes=1))

    # -- frames --------------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Sequence[Output]:
        received_ns, data, binary = frame
        if binary:
            return (reject("not_text", "CoinAPI sends text", data),)
        try:
            wire = decode(data)
        except (ValueError, RecursionError) as error:
            return (broken(data, error),)
        kind = wire.type
        if kind != "trade":
            try:
                out = _HANDLERS.get(kind, CoinApi._unknown)(self, wire, received_ns)
            except ValueError as error:
                return (explain(wire, data, error),)
            return out if self._proven else self._first(kind, out)
        try:
            raw = wire.symbol_id
            symbol, venue = self._names[raw]  # type: ignore[index]
            price, size, sequence, at = number(wire.price), number(wire.size), wire.sequence, wire.time_exchange
            if sequence.__class__ is str:
                sequence = sequence_of(sequence)
            if size[-1] == "0" == size[0] and is_zero(size):
                self.useless += 1
                if sequence is None:
                    return () if self._proven else self._first(kind, ())
                seen = (Seen("trades", raw, sequence, True),)  # type: ignore[arg-type]
                return seen if self._proven else self._first(kind, seen)
            if price < "0" or size < "0":  # of what a number starts with only the minus sorts below 0
                raise ValueError("a negative price or size")
            side, estimated = _SIDES.get(wire.taker_side), False
            if side is None:
                side = _ESTIMATED.get(wire.taker_side)
                estimated = side is not None
            trade = Trade(
                symbol=symbol,
                raw_symbol=raw,
                venue=venue,
                ts_event=None if at is None else iso_ns(at),
                src_seq=sequence,  # type: ignore[arg-type]
                price=price,
                size=size,
                side=side,
                side_estimated=estimated,
                id=wire.uuid,
            )
        except (ValueError, TypeError) as error:
            return (explain(wire, data, error),)
        return (trade,) if self._proven else self._first(kind, (trade,))

    def _first(self, kind: str, out: Sequence[Output]) -> Sequence[Output]:
        """The first heartbeat or data frame is the only proof that key and filters were taken."""
        if kind == "reconnect" or any(isinstance(one, Reject) for one in out):
            return out
        self._proven = True
        return [Status(event="authenticated"), Status(event="subscribed"), *out]

    def _nothing(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        self.useless += 1
        return ()

    def _unknown(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        raise UnknownType("unknown type")

    def _quote(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        symbol, venue, raw = self._name(wire)
        bid, ask = above_zero(wire.bid_price), above_zero(wire.ask_price)
        sequence, at = sequence_of(wire.sequence), wire.time_exchange
        if bid is None and ask is None:
            self.useless += 1
            return () if sequence is None or self._thin else (Seen("quotes", raw, sequence, True),)
        return (
            Quote(
                symbol=symbol,
                raw_symbol=raw,
                venue=venue,
                ts_event=None if at is None else iso_ns(at),
                # a thinned stream jumps by design: its numbers would look like losses
                src_seq=None if self._thin else sequence,
                bid=bid,
                ask=ask,
                bid_size=None if bid is None else above_zero(wire.bid_size),
                ask_size=None if ask is None else above_zero(wire.ask_size),
            ),
        )

    def _rate(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        if not wire.asset_id_base or not wire.asset_id_quote:
            raise ValueError("a rate without its assets")
        raw = f"{wire.asset_id_base}/{wire.asset_id_quote}"
        symbol, venue = self._names[raw]
        at = None if wire.time is None else iso_ns(wire.time)
        value = number(wire.rate)
        return (Rate(symbol=symbol, raw_symbol=raw, venue=venue, ts_event=at, kind="exchange", value=value),)

    def _instrument(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        """CoinAPI's precisions are steps seen in data, not promises: they stay out."""
        symbol, venue, raw = self._name(wire)
        base, quote = wire.asset_id_base or None, wire.asset_id_quote or None
        return (Instrument(symbol=symbol, raw_symbol=raw, venue=venue, base=base, quote=quote),)

    def _reconnect(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        """The server closes at a time. Plans allow one connection, so reading goes on until then."""
        until = any_ns(wire.before_time)
        within = wire.within_seconds
        if until is not None:
            self._close_ns = until + CLOSE_GRACE_NS
        elif within.__class__ is int and 0 <= within <= 86_400:
            self._close_ns = received_ns + within * 1_000_000_000 + CLOSE_GRACE_NS
        text = "the server is about to close the connection"
        return (Status(event="notice", code="reconnect", text=text, until=until),)

    def _error(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        text = wire.message if isinstance(wire.message, str) else ""
        if len(self._key) >= 8:  # no shorter text is a key, and replacing it would spoil words
            text = text.replace(self._key, "***")
        raise refusal(text)

    # -- books ---------------------------------------------------------------------------------------------------

    def _top(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        """`book5`, `book20`, `book50`: each replaces the one before, so a hole heals by itself."""
        symbol, venue, raw = self._name(wire)
        bids, asks = levels_of(wire.bids), levels_of(wire.asks)
        at = None if wire.time_exchange is None else iso_ns(wire.time_exchange)
        sequence, key = sequence_of(wire.sequence), (wire.type, raw)
        if sequence is not None:
            last = self._depths.get(key, -1)
            if last - REPEAT_WINDOW < sequence <= last:
                self.useless += 1
                return ()
            if key in self._depths or self._room(self._depths):
                self._depths[key] = sequence
        depth = DEPTH_OF[wire.type]
        return (
            BookSnapshot(
                symbol=symbol, raw_symbol=raw, venue=venue, ts_event=at, src_seq=sequence, bids=bids, asks=asks,
                depth=depth,
            ),
        )  # fmt: skip

    def _book(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        symbol, venue, raw = self._name(wire)
        if wire.is_snapshot.__class__ is not bool:
            raise ValueError("is_snapshot is neither true nor false")
        bids, asks = levels_of(wire.bids), levels_of(wire.asks)
        at = None if wire.time_exchange is None else iso_ns(wire.time_exchange)
        sequence = sequence_of(wire.sequence)
        book = self._books.get(raw)
        if book is None:
            book = _Book(received_ns)
            if self._room(self._books):
                self._books[raw] = book
        last = book.last
        back = sequence is not None and last is not None and sequence <= last
        if book.valid and back and last - sequence < REPEAT_WINDOW:  # type: ignore[operator]
            self.useless += 1
            return ()
        if wire.is_snapshot:
            book.last, book.valid, book.tries = sequence, True, 0
            self._broken_books.pop(raw, None)
            return (
                BookSnapshot(
                    symbol=symbol, raw_symbol=raw, venue=venue, ts_event=at, src_seq=sequence, bids=bids, asks=asks
                ),
            )
        if not book.valid:
            self.useless += 1
            self._overdue(book, raw, received_ns)
            return ()
        if sequence is None:
            raise ValueError("a delta without its number")
        if last is not None and sequence != last + 1:
            book.valid = False
            self._ask_again(book, raw, received_ns)
            gap = Status(event="gap", channel="books", symbol=symbol, raw_symbol=raw, venue=venue)
            if back:
                gap.reason = "sequence_reset"
            else:
                gap.reason, gap.first_missing, gap.last_missing = "sequence_jump", last + 1, sequence - 1
                gap.missing = sequence - last - 1
            return (gap,)
        book.last = sequence
        return (
            BookDelta(symbol=symbol, raw_symbol=raw, venue=venue, ts_event=at, src_seq=sequence, bids=bids, asks=asks),
        )

    def _overdue(self, book: _Book, raw: str, now_ns: int) -> None:
        """A snapshot comes with the next change; deltas without one mean that the request was lost."""
        if now_ns - book.asked_ns < SNAPSHOT_WAIT_NS:
            return
        book.tries += 1
        if book.tries > SNAPSHOT_TRIES:
            raise SequenceGap(f"books {raw}: no snapshot after {SNAPSHOT_TRIES} requests", code="no_snapshot")
        self._ask_again(book, raw, now_ns)

    def _ask_again(self, book: _Book, raw: str, now_ns: int) -> None:
        book.asked_ns = now_ns
        self._broken_books[raw] = None
        self._resync(now_ns)

    def _resync(self, now_ns: int) -> None:
        """Ask for new snapshots of all broken books in one message, or leave it to a later tick."""
        if 0 <= now_ns - self._resync_ns < RESYNC_PAUSE_NS:
            return
        self._resync_ns = now_ns
        again = [Subscription("books", raw, "full") for raw in self._broken_books]
        self._broken_books.clear()
        self._ask("unsubscribe", again)
        self._ask("subscribe", again)

    # -- bars ----------------------------------------------------------------------------------------------------

    def _bar(self, wire: Wire, received_ns: int) -> Sequence[Output]:
        """Publish each update, and once more what a later start shows to be final."""
        symbol, venue, raw = self._name(wire)
        start = None if wire.time_period_start is None else iso_ns(wire.time_period_start)
        end = None if wire.time_period_end is None else iso_ns(wire.time_period_end)
        if start is None or end is None or end <= start:
            raise ValueError("a bar without its times")
        interval = interval_of(wire.period_id, end - start)
        prices = [optional(one) for one in (wire.price_open, wire.price_high, wire.price_low, wire.price_close)]
        volume, count = optional(wire.volume_traded), wire.trades_count
        if any(one is not None and one[0] == "-" for one in (*prices, volume)):
            raise ValueError("a negative price or volume")
        sequence = sequence_of(wire.sequence)
        out: list[Output] = []
        if sequence is not None and self._bar_jumps(raw, symbol, venue, sequence, out):
            self.useless += 1
            return out
        opening, high, low, close = prices
        if opening is None or high is None or low is None or close is None:
            self.useless += 1  # an interval without trades
            return out
        bar = Bar(
            symbol=symbol, raw_symbol=raw, venue=venue, src_seq=sequence, interval=interval, start=start, end=end,
            open=opening, high=high, low=low, close=close, volume=volume,
            trades=count if count.__class__ is int and count >= 0 else None, closed=False,
        )  # fmt: skip
        held = self._bars.get((raw, interval))
        if held is None:
            if not self._room(self._bars):
                return [*out, bar]
        elif start > held.start:
            if not held.closed:
                out.append(self._closed_bar(held))
        elif start < held.start or held.closed:
            # a correction of what is final: by a later start, or by the time
            bar.closed = True
            if start < held.start:
                return [*out, bar]
        self._bars[raw, interval] = bar
        out.append(bar)
        return out

    def _closed_bar(self, bar: Bar) -> Bar:
        """Give the last state of a bar once more, as final: a new message, without the number of its last update."""
        final = Bar(
            symbol=bar.symbol, raw_symbol=bar.raw_symbol, venue=bar.venue, interval=bar.interval, start=bar.start,
            end=bar.end, open=bar.open, high=bar.high, low=bar.low, close=bar.close, volume=bar.volume,
            trades=bar.trades, closed=True,
        )  # fmt: skip
        self._bars[bar.raw_symbol or "", bar.interval] = final
        return final

    def _bar_jumps(self, raw: str, symbol: str, venue: str | None, sequence: int, out: list[Output]) -> bool:
        """Check the number of a bar: all intervals of a symbol share one count. True: late or repeated."""
        last = self._bar_numbers.get(raw)
        if last is not None and last - REPEAT_WINDOW < sequence <= last:
            return True
        if last is not None and sequence != last + 1:
            gap = Status(event="gap", channel="bars", symbol=symbol, raw_symbol=raw, venue=venue)
            if sequence < last:
                gap.reason = "sequence_reset"
            else:
                gap.reason, gap.first_missing, gap.last_missing = "sequence_jump", last + 1, sequence - 1
                gap.missing = sequence - last - 1
            out.append(gap)
        if last is not None or self._room(self._bar_numbers):
            self._bar_numbers[raw] = sequence
        return False

    # -- shared by the kinds -------------------------------------------------------------------------------------

    def _name(self, wire: Wire) -> tuple[str, str | None, str]:
        raw = wire.symbol_id
        if raw is None:
            raise ValueError("no symbol_id")
        symbol, venue = self._names[raw]
        return symbol, venue, raw

    def _room(self, held: dict[Any, Any]) -> bool:
        """Symbols outside every subscription must not fill memory: their messages go nowhere anyway."""
        return len(held) < 2 * int(self.options.topics_max) + 1000


_HANDLERS: dict[str, Callable[[CoinApi, Wire, int], Sequence[Output]]] = {
    "quote": CoinApi._quote,
    "book": CoinApi._book,
    "book5": CoinApi._top,
    "book20": CoinApi._top,
    "book50": CoinApi._top,
    "ohlcv": CoinApi._bar,
    "exrate": CoinApi._rate,
    "symbol": CoinApi._instrument,
    "reconnect": CoinApi._reconnect,
    "error": CoinApi._error,
    **dict.fromkeys(_USELESS, CoinApi._nothing),
}
