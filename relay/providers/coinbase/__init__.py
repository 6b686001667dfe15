"""Coinbase Exchange (`wss://ws-feed.exchange.coinbase.com`), without a key: quotes, trades and books.

Docs: https://docs.cdp.coinbase.com/exchange/websocket-feed/overview and its pages on channels, errors and rate limits
(read 2026-03-01; what is unwritten there was seen in recordings). Not the Advanced Trade feed, which speaks otherwise.

Channels: `ticker` gives quotes, `matches` trades; `heartbeat` is subscribed along for every product.
- A `match` names the maker's side: the aggressor is the other one (a `ticker` names the taker's).
- A `ticker` comes with a trade, not with each change of the book, and its `time` is that trade's: quotes have none.
- `trade_id` grows by one per product; `last_match` (once after subscribing) and heartbeats prove lost trades.
- `sequence` counts all messages of a product's full stream: jumps are normal, a step back is late or repeated.
- Every answer to (un)subscribe lists all subscriptions, under names that may differ (`ticker_batch`: `ticker_1000`).
- `level2_batch` gives whole books and their changes, without number or checksum: a lost update cannot be seen before
  it makes the book crossed. What can be seen (crossed, unreadable) puts the book in doubt and asks for it again.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from relay import numbers, symbols, times
from relay.books import Rules
from relay.errors import HandshakeRefused, SessionError
from relay.model import Quote, RejectReason, Side, Status, StatusEvent, Trade
from relay.providers.base import (
    BaseProvider,
    BookOptions,
    ChannelSpec,
    Connect,
    Frame,
    Identity,
    Limits,
    Listing,
    Output,
    Planned,
    ProviderSpec,
    Request,
    Seen,
    Send,
    Shared,
    Subscription,
    SymbolTable,
    order_books,
    reject,
)
from relay.providers.coinbase import listing
from relay.providers.coinbase.asking import Asking, family
from relay.providers.coinbase.levels import changes, sides
from relay.providers.coinbase.wire import (
    MAPPED,
    USELESS,
    ErrorNotice,
    Heartbeat,
    L2Update,
    LastMatch,
    Match,
    Snapshot,
    Subscriptions,
    Ticker,
    Wire,
    decode,
    kind,
)
from relay.retry import Policy

URL = "wss://ws-feed.exchange.coinbase.com"
PRODUCTS_MAX = 20
"""Products a connection: the docs' advice of 10 to 20, so that one slow socket does not hold up all."""
SILENCE_SECS = 10.0
"""Heartbeats come every second per product: no frame at all for this long is a dead connection."""
QUIET_SECS = 3600.0
"""Quotes and trades come with trades only, and quiet products trade once an hour; heartbeats watch the connection."""
FRAME_BYTES_MAX = 32 * 1024 * 1024
"""The snapshot of a large book has several MB."""
BOOK_QUIET_SECS = 600.0
"""Somebody changes an order in any book within minutes."""
ERROR_TEXT_MAX = 500
_AGGRESSOR: dict[str, Side] = {"buy": "sell", "sell": "buy"}
"""The maker's side to the aggressor's."""
_WRONG_PRODUCT = re.compile(r"['\"]?([^\s'\"]{1,64})['\"]? is (not a valid product|delisted)", re.IGNORECASE)
_WRONG_CHANNEL = re.compile(r"['\"]?([^\s'\"]{1,64})['\"]? is not a valid channel", re.IGNORECASE)
_KEYED = "require authentication"
"""What level2 without a key is told; its batched form needs none, so far."""
_TOO_SLOW = re.compile(r"ErrSlowConsume|ErrSlowRead|Message too big", re.IGNORECASE)


class CoinbaseOptions(BookOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coinbase's section of relay.yaml. Symbols are product ids: `BTC-USD`."""

    books_refresh_secs: Annotated[
        float, Meta(ge=0, description="A book is asked for again after this long: lost updates are unseen; 0: never.")
    ] = 3600.0

    rest_url: Annotated[str, Meta(description="Another REST base than https://api.exchange.coinbase.com.")] = ""

    def __post_init__(self) -> None:
        """Raises: ValueError naming what Coinbase does not have."""
        super().__post_init__()
        for depth in self.books:
            if depth != "full":
                raise ValueError(f"books: depth {depth!r} is unknown; Coinbase has `full` alone")


class Session(BaseProvider):
    """One connection: asks for its products and maps what comes, early data included."""

    def __init__(self, options: CoinbaseOptions, subscriptions: Sequence[Subscription], shared: Shared) -> None:
        super().__init__(options, subscriptions, shared)
        self._symbols = SymbolTable(to_symbol, options.symbols)
        self._asking = Asking(self._symbols)
        self._books = order_books(options, shared, self._symbols, Rules(), options.books_refresh_secs)
        self._everything = any(sub.raw == "*" for sub in subscriptions)  # frames without a configuration
        self._traded: dict[str, int] = {}  # product -> highest trade id that came or was told as lost; 0: none yet
        self._claims: dict[str, int] = {}  # product -> a heartbeat's trade id that has not come yet

    def connect(self) -> Connect:
        return Connect(url=self.options.url or URL, silence_secs=SILENCE_SECS, frame_bytes_max=FRAME_BYTES_MAX)

    def opened(self, now_ns: int) -> Sequence[Output]:
        """Ask at once: the server closes a connection that subscribes to nothing for 5 s."""
        return self.subscribe(self.subscriptions, now_ns)

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        for sub in subscriptions:
            if sub.channel == "books" and sub.raw != "*" and sub.raw not in self._books:
                self._books.want(sub.raw, now_ns)
        self._asking.add(subscriptions, now_ns)
        return ()

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        self._asking.remove(subscriptions)
        for sub in subscriptions:
            if sub.channel == "trades":
                self._traded.pop(sub.raw, None)
                self._claims.pop(sub.raw, None)
            elif sub.channel == "books":
                self._books.forget(sub.raw)
        return ()

    def to_send(self) -> list[Send | Request]:
        out: list[Send | Request] = list(self._asking.out)
        self._asking.out.clear()
        return out

    def tick(self, now_ns: int) -> Sequence[Output]:
        out: list[Output] = list(self._asking.tick(now_ns))
        self._drop_refused()
        out += self._books.tick(now_ns)
        if self._books.pending:
            self._asking.again(self._books.resync(now_ns))
        return out

    def _drop_refused(self) -> None:
        if not self._everything:
            for raw in [raw for raw in self._books if ("level2", raw) not in self._asking.wanted]:
                self._books.forget(raw)

    def whole(self, now_ns: int) -> Sequence[Output]:
        return self._books.whole(now_ns)

    def closed(self, now_ns: int) -> Sequence[Output]:
        """What heartbeats named and never came will not come any more, and no book is good."""
        out: list[Output] = [
            Seen("trades", raw, number, delivered=False)
            for raw, number in self._claims.items()
            if number > self._traded[raw]
        ]
        self._claims.clear()
        return [*out, *self._books.closed(now_ns)]

    # -- data ----------------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Sequence[Output]:
        if frame.binary:
            return (reject("not_text", "binary message; this feed sends text", frame.data),)
        try:
            message: Wire = decode(frame.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._broken(frame, error)
        out: Sequence[Output]
        match message:
            case Match():
                return self._trade(message, frame)
            case Ticker():
                out = self._quote(message, frame)
            case L2Update():
                out = self._update(message, frame)
            case Snapshot():
                out = self._snapshot(message, frame)
            case Heartbeat():
                out = self._heartbeat(message)
            case LastMatch():
                raw = message.product_id
                if message.trade_id > self._traded.get(raw, -1):
                    self._traded[raw] = message.trade_id
                out = (Seen("trades", raw, message.trade_id, delivered=False),)
            case Subscriptions():
                out = self._asking.answered(message, frame.received_ns)
                for channel, raw in self._asking.wanted:
                    if channel == "matches" and self._asking.is_listed((channel, raw)):
                        self._traded.setdefault(raw, 0)
            case ErrorNotice():
                return self._error(message, frame.received_ns)
        if not out or out[0].__class__ is Seen:
            self.useless += 1
        return out

    def _trade(self, message: Match, frame: Frame) -> Sequence[Output]:
        raw, number = message.product_id, message.trade_id
        if number > self._traded.get(raw, -1):
            self._traded[raw] = number
        side = _AGGRESSOR.get(message.side) if message.side.__class__ is str else None
        try:
            price, size = numbers.positive(message.price), numbers.positive(message.size)
            ts_event = times.iso_ns(message.time)
        except (ValueError, TypeError):
            return self._odd_trade(message, side, frame)
        if price is None or size is None or side is None:
            return self._odd_trade(message, side, frame)
        symbol, venue = self._symbols[raw]
        return (
            Trade(
                symbol=symbol,
                raw_symbol=raw,
                venue=venue,
                ts_event=ts_event,
                src_seq=number,
                price=price,
                size=size,
                side=side,
                id=str(number),
            ),
        )

    def _odd_trade(self, message: Match, side: Side | None, frame: Frame) -> Sequence[Output]:
        """A trade with something wrong or absent: without a price and a size it is lost, else the rest is kept."""
        raw, number = message.product_id, message.trade_id
        symbol, venue = self._symbols[raw]
        rejects: list[Output] = []

        def wrong(reason: RejectReason, detail: str) -> None:
            rejects.append(reject(reason, detail, frame.data, symbol=symbol, raw_symbol=raw, venue=venue))

        prices: dict[str, str] = {}
        for name in ("price", "size"):
            value = getattr(message, name)
            try:
                text = numbers.positive(value)
            except ValueError as error:
                wrong("bad_number", f"{name}: {error}")
                continue
            if text is not None:
                prices[name] = text
            elif value is None or value == "":
                wrong("missing_field", name)
            else:
                wrong("bad_number", f"{name} of a trade is not above zero")
        if len(prices) < 2:
            # say that this one is missing, so that the next one shows no jump
            gap = Status(event="gap", reason="decode_error", channel="trades", symbol=symbol, raw_symbol=raw)
            gap.venue, gap.first_missing, gap.last_missing, gap.missing = venue, number, number, 1
            return (*rejects, gap, Seen("trades", raw, number))
        if side is None and message.side not in (None, ""):
            wrong("bad_field", "side is neither buy nor sell")
        ts_event: int | None = None
        if message.time not in (None, ""):
            try:
                ts_event = times.iso_ns(message.time)
            except (ValueError, TypeError) as error:
                wrong("bad_time", str(error))
        trade = Trade(
            symbol=symbol,
            raw_symbol=raw,
            venue=venue,
            ts_event=ts_event,
            src_seq=number,
            price=prices["price"],
            size=prices["size"],
            side=side,
            id=str(number),
        )
        return (trade, *rejects)

    def _quote(self, message: Ticker, frame: Frame) -> Sequence[Output]:
        raw = message.product_id
        symbol, venue = self._symbols[raw]
        rejects: list[Output] = []
        positive = numbers.positive
        try:
            bid, ask, last = positive(message.best_bid), positive(message.best_ask), positive(message.price)
            bid_size, ask_size = positive(message.best_bid_size), positive(message.best_ask_size)
        except ValueError:
            # one field is broken: keep its good siblings
            fields: list[str | None] = []
            for name in ("best_bid", "best_ask", "price", "best_bid_size", "best_ask_size"):
                value: str | None = None
                try:
                    value = positive(getattr(message, name))
                except ValueError as error:
                    where = {"symbol": symbol, "raw_symbol": raw, "venue": venue}
                    rejects.append(reject("bad_number", f"{name}: {error}", frame.data, **where))
                fields.append(value)
            bid, ask, last, bid_size, ask_size = fields
        if bid is None and ask is None:
            return rejects
        quote = Quote(
            symbol=symbol,
            raw_symbol=raw,
            venue=venue,
            src_seq=message.sequence,
            bid=bid,
            ask=ask,
            bid_size=None if bid is None else bid_size,
            ask_size=None if ask is None else ask_size,
            last=last,
        )
        return (quote, *rejects) if rejects else (quote,)

    def _heartbeat(self, message: Heartbeat) -> Sequence[Output]:
        """Tell lost trades: what a heartbeat names must have come when the next one comes.

        Not at once: tickers and matches of one trade come in either order (recording of 2021), so a heartbeat may
        overtake its trade, which would then count as told and be dropped as a repeat.
        """
        raw = message.product_id
        traded = self._traded.get(raw)
        if traded is None:  # no matches of it here, or not yet
            return ()
        out: Sequence[Output] = ()
        claim = self._claims.pop(raw, 0)
        if claim > traded:
            out = (Seen("trades", raw, claim, delivered=False),)
            self._traded[raw] = traded = claim
        if message.last_trade_id > traded:
            self._claims[raw] = message.last_trade_id
        return out

    # -- books ---------------------------------------------------------------------------------------------------

    def _snapshot(self, message: Snapshot, frame: Frame) -> Sequence[Output]:
        raw, now_ns, books = message.product_id, frame.received_ns, self._books
        if raw not in books:
            if not self._everything or len(list(books)) >= self.options.topics_max:
                return ()
            books.want(raw, now_ns)
        bids, asks, wrong, strange = sides(message.bids, message.asks)
        out: list[Output] = self._wrong(wrong, raw, frame)
        at = self._book_time(message.time, raw, frame, out)
        out += books.snapshot(raw, bids, asks, now_ns, ts_event=at, unread=strange)
        if books.pending:
            self._asking.again(books.resync(now_ns))
        return out

    def _update(self, message: L2Update, frame: Frame) -> Sequence[Output]:
        raw, now_ns, books = message.product_id, frame.received_ns, self._books
        if raw not in books:
            return ()
        bids, asks, wrong = changes(message.changes)
        out: list[Output] = []
        at = self._book_time(message.time, raw, frame, out)
        if wrong:
            # what that level is now nobody knows
            out += [*self._wrong(wrong, raw, frame), *books.doubt(raw, "bad_level", wrong[0][:200], now_ns)]
        else:
            delta = books.delta(raw, bids, asks, now_ns, ts_event=at)
            if not out and not books.pending:
                return delta
            out += delta
        if books.pending:
            self._asking.again(books.resync(now_ns))
        return out

    def _wrong(self, wrong: Sequence[str], raw: str, frame: Frame) -> list[Output]:
        """One reject for the unreadable levels of a frame."""
        if not wrong:
            return []
        symbol, venue = self._symbols[raw]
        detail = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        return [reject("bad_number", f"level {detail}", frame.data, symbol=symbol, raw_symbol=raw, venue=venue)]

    def _book_time(self, value: Any, raw: str, frame: Frame, out: list[Output]) -> int | None:
        """The time of a book frame; absent, of the year 1 (seen) or broken (told): none."""
        if value is None or value == "":
            return None
        try:
            return times.iso_ns(value)
        except (ValueError, TypeError) as error:
            symbol, venue = self._symbols[raw]
            out.append(reject("bad_time", str(error), frame.data, symbol=symbol, raw_symbol=raw, venue=venue))
            return None

    def _doubted(self, frame: Frame) -> list[Output]:
        """A book frame that cannot be read may have been an update of any book."""
        out: list[Output] = []
        for raw in list(self._books):
            out += self._books.doubt(raw, "broken_frame", "a book frame that cannot be read", frame.received_ns)
        if self._books.pending:
            self._asking.again(self._books.resync(frame.received_ns))
        return out

    # -- errors --------------------------------------------------------------------------------------------------

    def _error(self, message: ErrorNotice, now_ns: int) -> Sequence[Output]:
        """Section by section what the provider's errors ask for; what is unknown ends the session, to try again."""
        reason = str(message.reason or "")[:ERROR_TEXT_MAX]
        text = str(message.message or "error without a text")[:ERROR_TEXT_MAX] + (f": {reason}" if reason else "")
        if "authentication failed" in text.lower():
            raise HandshakeRefused(text, code="authentication_failed", action="fatal")
        slow = _TOO_SLOW.search(text)
        if slow:
            raise SessionError(text, code=slow[0])
        if not text.lower().startswith("failed to "):
            raise SessionError(text, code="provider_error")
        asking = self._asking
        asking.complained(text, now_ns)
        out: list[Output] = []
        for name, what in _WRONG_PRODUCT.findall(reason):
            code = "delisted" if what.lower() == "delisted" else "invalid_product"
            keys = [key for key in asking.wanted if key[1].upper() == name.upper()]
            symbol, venue = self._symbols[name]
            out += asking.refuse(keys, code, text) or [
                Status(event="refused", raw_symbol=name, symbol=symbol, venue=venue, code=code, text=text)
            ]
        if _KEYED in reason.lower():
            out += asking.refuse([key for key in asking.wanted if key[0] == "level2"], "authentication_required", text)
        for name in _WRONG_CHANNEL.findall(reason):
            keys = [key for key in asking.wanted if key[0] == family(name)]
            out += asking.refuse(keys, "invalid_channel", text)
        self._drop_refused()
        event: StatusEvent = "refused" if "failed to subscribe" in text.lower() else "notice"
        return out or [Status(event=event, code="provider_error", text=text)]

    def _broken(self, frame: Frame, error: Exception) -> Sequence[Output]:
        """A frame that is none of the wire structs: known and useless, or a reject."""
        data = frame.data
        try:
            name = kind(data).type
        except RecursionError:
            return (reject("too_deep", "nested too deeply", data),)
        except msgspec.ValidationError as problem:
            return (reject("not_object", str(problem), data),)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            trace = b'"l2update' in data or b'"changes"' in data or b'"snapshot' in data
            return (reject("not_json", str(problem), data), *(self._doubted(frame) if trace else ()))
        if name is None:
            return (reject("missing_field", "no `type`", data),)
        if name.__class__ is str and name in USELESS:
            self.useless += 1
            return ()
        if name.__class__ is not str or name not in MAPPED:
            return (reject("unknown_type", str(name)[:100], data),)
        missing = "missing required" in str(error)
        broken = reject("missing_field" if missing else "bad_field", f"{name}: {error}", data)
        return (broken, *(self._doubted(frame) if name in ("snapshot", "l2update") else ()))


# -- symbols, connections, the entry -----------------------------------------------------------------------------


def to_symbol(raw: str) -> tuple[str, str | None]:
    """`BTC-USD` stays `BTC-USD`: product ids are spelled like our pairs. All is one venue, which no frame names."""
    return symbols.escape(raw), None


def plan(options: CoinbaseOptions, subscribed: Sequence[Subscription]) -> list[Planned]:
    """Deal the products over connections, all channels of one product together (its heartbeat serves them)."""
    products: dict[str, list[Subscription]] = {}
    for sub in subscribed:
        products.setdefault(sub.raw, []).append(sub)
    groups = list(products.values())
    return [
        Planned(
            str(start // PRODUCTS_MAX + 1),
            tuple(sub for group in groups[start : start + PRODUCTS_MAX] for sub in group),
        )
        for start in range(0, len(groups), PRODUCTS_MAX)
    ]


SPEC = ProviderSpec(
    name="coinbase",
    title="Coinbase Exchange",
    options=CoinbaseOptions,
    session=Session,
    channels={
        # a first ticker after reconnecting repeats the last trade's, so its number goes on over sessions
        "quotes": ChannelSpec(identity=Identity("global", "rising"), cadence_secs=QUIET_SECS),
        "trades": ChannelSpec(identity=Identity("global", "contiguous"), cadence_secs=QUIET_SECS),
        "books": ChannelSpec(cadence_secs=BOOK_QUIET_SECS, params="depth", allowed=("full",)),
    },
    rule=to_symbol,
    examples=("BTC-USD", "ETH-USD"),
    plan=plan,
    policy=Policy(first_secs=1.0, cap_secs=60.0),
    limits=Limits(connects=(8, 1.0), subscribes=(100, 1.0)),
    listing=Listing(listing.request, listing.read),
    to_raw=listing.to_raw,
)
