"""One connection of Binance: what is asked for and when, the frames, the books."""

from collections.abc import Iterable, Sequence
from typing import cast

import msgspec
from msgspec import UNSET

from relay.books import Rules
from relay.model import Status, Trade
from relay.numbers import number
from relay.providers.base import (
    FROM_BOOK,
    BaseProvider,
    Connect,
    Frame,
    Output,
    Reply,
    Request,
    Send,
    Subscription,
    order_books,
    reject,
)
from relay.providers.binance.asking import Asking
from relay.providers.binance.mapping import (
    TIME_MAX,
    USELESS_STREAMS,
    Odd,
    Route,
    bar,
    check_above_zero,
    explain,
    levels,
    quote,
    route_of,
    stream_of,
    trade,
)
from relay.providers.binance.names import RAW_STAR
from relay.providers.binance.options import LIST_NEW_NS, LIST_TRIES, URL, BinanceOptions, BinanceShared
from relay.providers.binance.rest import Rest
from relay.providers.binance.wire import (
    BY_EVENT,
    DECODERS,
    MILLIS_MAX,
    RAW_CHARS_MAX,
    USELESS,
    BookTicker,
    Data,
    Diff,
    Kind,
    Kline,
    Partial,
    Probe,
    ns,
    probe,
)

RENEW_SECS = 24 * 3600.0
"""A connection lives 24 hours at most."""
PONG_SECS = 30.0
QUIET_NS = 60_000_000_000
"""A stream of an unverified symbol that said nothing for this long is named: wrong symbols are accepted in silence."""
ROUTES_MAX = 4096
"""Streams remembered: four times what a connection can carry."""
ELSEWHERE = (
    "Binance does not serve this place: take url: wss://data-stream.binance.vision (its market data), "
    "wss://stream.binance.us:9443, or another provider"
)
BY_NUMBER = Rules(buffered=True)
"""Partial books, too, are told by their numbers which is the newer."""
_SKIP = len(b'{"stream":"')


class Session(BaseProvider):
    """One connection: holds back what cannot be named yet, asks for the rest, and maps what comes."""

    options: BinanceOptions
    shared: BinanceShared

    def __init__(self, options: BinanceOptions, subscriptions: Sequence[Subscription], shared: BinanceShared) -> None:
        super().__init__(options, subscriptions, shared)
        self._names = shared.names
        self._asking = Asking(shared.names, shared.next_id)
        self._routes: dict[bytes, Route] = {}
        self._traded = options.trades_from
        self._partial = order_books(options, shared, shared.names, BY_NUMBER)
        self._rest = Rest(options, shared, order_books(options, shared, shared.names, BY_NUMBER))
        self._books = self._rest.books
        self._waiting: dict[Subscription, None] = {}  # not asked for before the list names their symbols
        self._silent: dict[bytes, tuple[Subscription, int]] = {}  # stream -> what it is for, since when it is silent
        self._list_ns = shared.list_ns  # the list that this session has looked at

    # -- the connection ------------------------------------------------------------------------------------------

    def connect(self) -> Connect:
        # combined mode, also where the address is written as that of the raw one
        url = (self.options.url or URL).rstrip("/").removesuffix("/ws")
        if not url.endswith("/stream"):
            url += "/stream"
        return Connect(
            url=url + ("?timeUnit=MICROSECOND" if self.options.microseconds else ""),
            # quiet symbols are silent, and the server's own pings may be a minute apart
            pong_secs=PONG_SECS,
            renew_secs=RENEW_SECS,
            refused_upgrade={
                451: ("fatal", ELSEWHERE),
                403: ("slow", "its firewall's word; it passes"),
                418: ("slow", "this address is banned for a while"),
            },
        )

    def opened(self, now_ns: int) -> Sequence[Output]:
        return self._want(self.subscriptions, now_ns)

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        # what was refused may be asked for again
        new = [one for one in dict.fromkeys(subscriptions) if one not in self._asking.streams]
        self.subscriptions += [one for one in new if one not in set(self.subscriptions)]
        return self._want([one for one in new if one not in self._waiting], now_ns)

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        gone = set(subscriptions)
        self.subscriptions = [one for one in self.subscriptions if one not in gone]
        out: list[Output] = []
        for sub in subscriptions:
            if sub in self._waiting:
                del self._waiting[sub]
                out.append(self._asking.status("unsubscribed", sub))
        self._drop(subscriptions)
        self._asking.remove(subscriptions, now_ns)
        return out

    def to_send(self) -> list[Send | Request]:
        asking, rest = self._asking, self._rest
        if not asking.out and not rest.out:
            return []
        out: list[Send | Request] = [*asking.out, *rest.out]
        asking.out.clear()
        rest.out.clear()
        return out

    def tick(self, now_ns: int) -> Sequence[Output]:
        out: list[Output] = []
        if self.shared.list_ns != self._list_ns:
            out += self._listed(now_ns)  # another connection asked for it
        elif self._waiting and self.shared.list_failures >= LIST_TRIES:
            out += self._give_up_list(now_ns)
        self._asking.tick(now_ns)
        self.settled = not self._waiting and self._asking.answered
        self._asking.check_left(len(self._waiting))
        out += self._rest.tick(now_ns)
        if self._silent:
            out += self._quiet(now_ns)
        return out

    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]:
        out = self._rest.replied(reply, now_ns)
        for raw in self._rest.refused:
            sub = next((one for one in self._asking.streams if one[:2] == ("books", raw)), None)
            if sub is not None:
                code, text = self._rest.refused[raw]
                out.append(self._asking.status("refused", sub, code=code, text=text))
                self._drop([sub])
                self._asking.remove([sub], now_ns)
        self._rest.refused.clear()
        if self.shared.list_ns != self._list_ns:
            out += self._listed(now_ns)
        elif self._waiting and self.shared.list_failures >= LIST_TRIES:
            out += self._give_up_list(now_ns)
        return out

    def whole(self, now_ns: int) -> Sequence[Output]:
        return [*self._books.whole(now_ns), *self._partial.whole(now_ns)]

    def closed(self, now_ns: int) -> Sequence[Output]:
        return [*self._books.closed(now_ns), *self._partial.closed(now_ns)]

    # -- what is wanted ------------------------------------------------------------------------------------------

    def _want(self, subscriptions: Iterable[Subscription], now_ns: int) -> list[Output]:
        """Ask for what has a certain name; the rest waits for the venue's list."""
        shared, base = self.shared, self._rest.base
        young = bool(shared.list_ns) and 0 <= now_ns - shared.list_ns < LIST_NEW_NS
        out: list[Output] = []
        known: list[Subscription] = []
        for sub in subscriptions:
            if sub.raw == RAW_STAR or sub.param == FROM_BOOK:
                continue
            if not base or sub.raw in shared.pairs or (not shared.list_ns and shared.is_named(sub.raw)):
                known.append(sub)
            elif young:
                out.append(self._unlisted(sub))
            else:
                self._waiting[sub] = None
        if base:
            self._rest.want_list(now_ns, anew=bool(self._waiting))
        self._ask(known, now_ns)
        return out

    def _unlisted(self, sub: Subscription) -> Status:
        return self._asking.refuse(sub, "unknown_symbol", f"Binance lists no symbol {sub.raw}")

    def _ask(self, subscriptions: Iterable[Subscription], now_ns: int) -> None:
        asked = [(sub, stream_of(sub, self.options)) for sub in subscriptions]
        for _, stream in asked:
            self._route(stream.encode(), stream)
        self._asking.add(asked, now_ns)

    def _listed(self, now_ns: int) -> list[Output]:
        """The venue's list came: name what waited, refuse what it does not have."""
        self._list_ns = self.shared.list_ns
        pairs, out = self.shared.pairs, cast("list[Output]", [])
        waiting, self._waiting = list(self._waiting), {}
        lost = [sub for sub in [*waiting, *self._asking.streams] if sub.raw not in pairs]
        asked = [sub for sub in lost if sub in self._asking.streams]
        self._drop(asked)
        self._asking.remove(asked, now_ns)
        out += [self._unlisted(sub) for sub in lost]
        self._silent.clear()
        self._ask([sub for sub in waiting if sub.raw in pairs], now_ns)
        return out

    def _give_up_list(self, now_ns: int) -> list[Output]:
        """No list to be had: take the rest under their whole names, and say so."""
        waiting, self._waiting = list(self._waiting), {}
        raws = ", ".join(dict.fromkeys(sub.raw for sub in waiting))
        self._ask(waiting, now_ns)
        text = (
            f"no symbol list from {self._rest.base}: not parted into base and quote: {raws}; `symbols:` can name them"
        )
        return [Status(event="notice", code="no_symbol_list", text=text[:1000])]

    def _held(self, subscriptions: Iterable[Subscription], now_ns: int) -> None:
        """The server has taken these: books may be asked for, silence may be watched."""
        for sub in subscriptions:
            if sub.channel == "books" and sub.param == "full":
                self._rest.want_book(sub.raw)
            elif sub.channel == "books":
                if sub.raw not in self._partial:
                    self._partial.want(sub.raw, now_ns, depth=int(sub.param))
            if sub.raw not in self.shared.pairs:
                self._silent[self._asking.streams[sub].encode()] = (sub, now_ns)
        self._rest.work(now_ns)

    def _drop(self, subscriptions: Iterable[Subscription]) -> None:
        for sub in subscriptions:
            stream = self._asking.streams.get(sub)
            if stream is not None:
                self._silent.pop(stream.encode(), None)
                self._routes.pop(stream.encode(), None)
            if sub.channel == "books":
                self._rest.forget(sub.raw)
                self._partial.forget(sub.raw)

    def _quiet(self, now_ns: int) -> list[Output]:
        """Name unverified streams that have said nothing; Binance accepts wrong symbols and stays silent."""
        out: list[Output] = []
        for stream, (sub, since_ns) in list(self._silent.items()):
            if now_ns - since_ns >= QUIET_NS:
                del self._silent[stream]
                text = f"nothing on {stream.decode()} for {QUIET_NS // 1_000_000_000} s: is the symbol right?"
                out.append(self._asking.status("notice", sub, code="silent_stream", text=text))
        return out

    # -- frames --------------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Sequence[Output]:
        received_ns, data, binary = frame
        stream = data[_SKIP : data.find(b'"', _SKIP)]
        route = self._routes.get(stream)
        if route is None or binary:
            return self._other(frame)
        if self._silent:
            self._silent.pop(stream, None)
        wrapped, _, kind, raw, symbol, venue, _ = route
        try:
            one = wrapped(data).data
            if kind != self._traded:
                return self._map(route, one, data, received_ns)
            if one.s != raw:
                raise Odd("bad_symbol", f"the stream of {raw} names {one.s!r}")
            price, size, at, seq = number(one.p), number(one.q), one.T, one.t
            # a first digit of 1 to 9 is above zero; what begins with 0 or - is looked at ("-" sorts below "0")
            if price < "1" or size < "1":
                if price < "0" or size < "0" or not price.strip("0.") or not size.strip("0."):
                    check_above_zero(price, size)
            if at.__class__ is int and 0 < at < TIME_MAX:
                at *= 1_000_000 if at < MILLIS_MAX else 1_000
            else:
                at = None
            maker = one.m
            made = Trade(
                symbol=symbol,
                raw_symbol=raw,
                venue=venue,
                ts_event=at,
                src_seq=seq,
                price=price,
                size=size,
                side=None if maker is None else "sell" if maker else "buy",
                id=str(seq),
            )
        except (ValueError, RecursionError) as error:
            return self._broken(route, error, data, received_ns)
        return (made,)

    def _other(self, frame: Frame) -> Sequence[Output]:
        """A frame on no stream that is known yet: an answer, a bare event, a notice, or something broken."""
        received_ns, data, binary = frame
        if binary:
            return (reject("not_text", "binary message; Binance sends text", data),)
        try:
            found = probe(data)
        except RecursionError:
            return (reject("too_deep", "nested too deeply", data),)
        except msgspec.ValidationError as error:
            return (reject("not_object" if data.lstrip()[:1] != b"{" else "bad_field", str(error), data),)
        except ValueError as error:
            return (reject("not_json", str(error), data),)
        if found.stream is UNSET:
            return self._bare(found, data, received_ns)
        if found.data is UNSET:
            return (reject("missing_field", f"{found.stream[:100]}: no `data`", data),)
        body = bytes(found.data)
        if found.stream.startswith("!") or body[:1] == b"[":
            if found.stream == "!serverShutdown":
                return self._shutdown(received_ns)
            self.useless += 1  # all symbols in one: nobody subscribes to those
            return ()
        known = self._route(found.stream.encode(), found.stream)
        if known is None:
            return self._unknown(found.stream.partition("@")[2], data)
        return self._read(known, body, data, received_ns)

    def _bare(self, found: Probe, data: bytes, now_ns: int) -> Sequence[Output]:
        """A frame without `stream`: an answer, or an event of raw mode."""
        if found.error is not UNSET and found.error is not None:
            return self._asking.complained(found.error.code, found.error.msg, found.id, now_ns)
        if found.code is not UNSET:
            return self._asking.complained(found.code, found.msg, found.id, now_ns)
        if found.result is not UNSET:
            outputs, held = self._asking.accepted(found.id, now_ns)
            self._held(held, now_ns)
            if not outputs:
                self.useless += 1
            return outputs
        name = found.e
        if name == "serverShutdown":
            return self._shutdown(now_ns)
        if name is UNSET:
            if found.lastUpdateId is not UNSET:
                return (reject("bad_symbol", "a partial book that names no symbol: take the combined mode", data),)
            if UNSET in (found.u, found.b, found.a):
                return (reject("missing_field", "neither a stream nor an event", data),)
            kind: Kind | None = "bookTicker"
        else:
            kind = BY_EVENT.get(name) if name.__class__ is str else None
        if kind is None:
            return self._unknown(name if name.__class__ is str else "", data)
        raw = found.s
        if raw.__class__ is not str or not 0 < len(raw) <= RAW_CHARS_MAX:
            return (reject("bad_symbol", f"{kind}: no symbol", data),)
        symbol, venue = self._names[raw]
        route = Route(*DECODERS[kind], kind, raw, symbol, venue, "")
        return self._read(route, data, data, now_ns)

    def _unknown(self, name: str, data: bytes) -> Sequence[Output]:
        if name in USELESS or name.partition("_")[0] in USELESS_STREAMS:
            self.useless += 1
            return ()
        return (reject("unknown_type", name[:100], data),)

    def _shutdown(self, now_ns: int) -> Sequence[Output]:
        self.renew = True  # the time ahead is not promised
        return (Status(event="notice", code="server_shutdown", text="the server is about to shut down"),)

    def _route(self, key: bytes, stream: str) -> Route | None:
        """Read a stream's name, and remember what it says."""
        route = route_of(stream, self._names)
        if route is None:
            return None
        kind = route.kind
        if kind in ("trade", "aggTrade") and kind != self.options.trades_from:
            return route  # one of the two is published
        if len(self._routes) < ROUTES_MAX:
            self._routes[key] = route
        return route

    def _read(self, route: Route, body: bytes, data: bytes, now_ns: int) -> Sequence[Output]:
        try:
            one = route.bare(body)
        except (ValueError, RecursionError) as error:
            return self._broken(route, error, data, now_ns)
        return self._map(route, one, data, now_ns)

    # -- kinds ---------------------------------------------------------------------------------------------------

    def _map(self, route: Route, one: Data, data: bytes, now_ns: int) -> Sequence[Output]:
        out: Sequence[Output]
        try:
            if route.kind != "partial" and one.s != route.raw:  # type: ignore[union-attr]
                raise Odd("bad_symbol", f"the stream of {route.raw} names {one.s!r}")  # type: ignore[union-attr]
            match one:
                case BookTicker():
                    out = quote(route, one)
                case Kline():
                    out = bar(route, one)
                case Partial():
                    out = self._levels(route, one, now_ns)
                case Diff():
                    out = self._rest.changed(one, levels(one.b), levels(one.a), ns(one.E), now_ns)
                case _:
                    out = trade(route, one) if route.kind == self.options.trades_from else ()
        except ValueError as error:
            return self._broken(route, error, data, now_ns)
        if not out:
            self.useless += 1
        return out

    def _levels(self, route: Route, one: Partial, now_ns: int) -> Sequence[Output]:
        if route.raw not in self._partial:
            # before its acknowledgement, or without a configuration
            self._partial.want(route.raw, now_ns, depth=int(route.param))
        bids, asks = levels(one.bids), levels(one.asks)
        return self._partial.snapshot(route.raw, bids, asks, now_ns, number=one.lastUpdateId)

    def _broken(self, route: Route, error: Exception, data: bytes, now_ns: int) -> Sequence[Output]:
        """A frame of a known stream that cannot be used; a book that misses one is in doubt."""
        bad = explain(route, error, data)
        if route.kind != "diff":
            return (bad,)
        return [bad, *self._rest.unreadable(route.raw, bad.detail or "", now_ns)]
