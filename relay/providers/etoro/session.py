"""One session of eToro: dispatch of frames, sparse merge, market flags.

Both message families are understood on any connection, whatever the configured dialect (rule R3 of the sheet).
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from relay.errors import SessionError
from relay.model import Header, Quote, Status
from relay.providers.base import BaseProvider, Connect, Frame, Output, Reply, Subscription
from relay.providers.etoro import flat, orders, wire
from relay.providers.etoro.control import Control, failed
from relay.providers.etoro.lookup import Lookup
from relay.providers.etoro.merge import Standing
from relay.providers.etoro.options import WS_URL, EtoroOptions
from relay.providers.etoro.reference import EtoroShared
from relay.providers.etoro.topics import PRIVATE, Desk, served
from relay.providers.etoro.wire import Object

BLANKS = b"\x00 \t\r\n"
ROUND_NS = 3_000_000_000
"""A look for quiet instruments this often, and at most one batch of rates: 20 calls a minute of the budget of 50."""
REFERENCE_NS = 15_000_000_000
"""A look for metadata of more than a day this often: some ms of work with 5,000 instruments."""
POLICY_CLOSES_MAX = 5
TOPICS_CACHED_MAX = 100_000
"""Spellings of topics remembered; a hostile peer cannot make more."""

FLAGS = ("IsMarketOpen", "IsExchangeOpen", "IsInstrumentActive", "AllowBuy", "AllowSell")
_FLAG_WORDS = {
    "IsExchangeOpen": "exchange_open",
    "IsInstrumentActive": "active",
    "AllowBuy": "allow_buy",
    "AllowSell": "allow_sell",
}
_FLAG_SET = frozenset(FLAGS)
_PRICES = ("Bid", "Ask", "LastExecution")


class EtoroSession(BaseProvider):
    """One connection to eToro."""

    options: EtoroOptions
    shared: EtoroShared

    def __init__(self, options: EtoroOptions, subscriptions: Sequence[Subscription], shared: EtoroShared) -> None:
        super().__init__(options, subscriptions, shared)
        self._desk = Desk(shared, options.dialect, subscriptions)
        self._control = Control(shared, self._desk, self._out)
        self._standing: dict[str, Standing] = {}
        self._lookup = Lookup(options, shared, self._desk, self._control, self._standing)
        self._open: dict[str, bool] = {}
        self._topics: dict[str, str] = {}
        self._next_round_ns = 0
        self._next_reference_ns = 0

    def connect(self) -> Connect:
        options = self.options
        url = options.url or WS_URL
        if options.query:
            url += ("&" if "?" in url else "?") + urlencode(options.query)
        headers: dict[str, str] = {}
        if options.dialect != "inband":
            api_key, user_key = options.keys()
            headers = {"x-api-key": api_key, "x-user-key": user_key, "x-request-id": self.shared.request_id()}
        return Connect(
            url,
            headers=headers,
            subprotocols=options.subprotocols,
            refused_upgrade={} if headers else {403: ("retry", "no key was sent yet: a proxy or Cloudflare refuses")},
            ping_secs=30.0,
            pong_secs=10.0,
            silence_secs=options.silence_secs or None,
        )

    def to_send(self) -> list[Any]:
        out = list(self._out)
        self._out.clear()  # the list itself is the control side's too
        return out

    # -- the session's life --

    def opened(self, now_ns: int) -> Sequence[Output]:
        self.shared.now_ns = now_ns
        self._standing.clear()
        out = self._control.opened(now_ns)
        out += self._unserved(self._desk.subscriptions)
        out += self._lookup.reference(now_ns)
        self._pump(now_ns)
        return out

    def _unserved(self, subscriptions: Any) -> list[Output]:
        """Say which subscriptions this dialect has no words for."""
        dialect = self.options.dialect
        return [
            Status(
                event="refused",
                channel=sub.channel,
                raw_symbol=sub.raw or None,
                code="no_such_channel",
                text=f"eToro's dialect {dialect} has no {sub.channel}",
            )
            for sub in subscriptions
            if not served(dialect, sub.channel)
        ]

    def closed(self, now_ns: int) -> Sequence[Output]:
        self._control.closed()
        return ()

    def overheard(self, data: bytes) -> None:
        """Take note of an operation that another client sent on a recording, for `relay normalize`."""
        try:
            value = wire.decode(data)
        except wire.BROKEN:
            return
        if isinstance(value, dict):
            self._control.overheard(value)

    def ended(self, code: int | None, reason: str, carried: bool) -> SessionError | None:
        """Give up after POLICY_CLOSES_MAX closes by policy (1008, 4xxx) without one data frame between them."""
        if self._control.heard_data:
            self.shared.policy_closes = 0
        if code is None or not (code == 1008 or 4000 <= code < 5000):
            return None
        self.shared.policy_closes += 1
        text = f"closed by the provider with {code}{f': {reason}' if reason else ''}"
        if self.shared.policy_closes < POLICY_CLOSES_MAX:
            return SessionError(text, code=f"close_{code}")
        text += f", {POLICY_CLOSES_MAX} times without any data between"
        return SessionError(text, code=f"close_{code}", action="fatal")

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        self.shared.now_ns = now_ns
        self._desk.add(subscriptions)
        self._control.send_unsent(now_ns)
        out = self._unserved(subscriptions)
        out += self._lookup.reference(now_ns)
        self._pump(now_ns)
        return out

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        self.shared.now_ns = now_ns
        freed = self._desk.remove(subscriptions)
        if freed:
            self._control.unsubscribe(freed, now_ns)
        for raw in [raw for raw in self._standing if not self._desk.takes("quotes", raw)]:
            del self._standing[raw]
            self._open.pop(raw, None)
        self._lookup.forget()
        return ()

    def tick(self, now_ns: int) -> Sequence[Output]:
        self.shared.now_ns = now_ns
        out = self._control.tick(now_ns)
        if now_ns >= self._next_round_ns:
            self._next_round_ns = now_ns + ROUND_NS
            self._lookup.find_quiet(now_ns)
        if now_ns >= self._next_reference_ns:
            self._next_reference_ns = now_ns + REFERENCE_NS
            out += self._lookup.reference(now_ns)
        self._pump(now_ns)
        return out

    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]:
        self.shared.now_ns = now_ns
        out = self._lookup.replied(reply, now_ns)
        self._pump(now_ns)
        return out

    def _pump(self, now_ns: int) -> None:
        self._out.extend(self._lookup.rest.requests(now_ns))

    # -- frames --

    def receive(self, frame: Frame) -> Sequence[Output]:
        data = frame.data.strip(BLANKS)
        if not data:
            self.useless += 1
            return ()
        if frame.binary and data[0] not in b"{[":
            return (wire.rejected("not_text", "a binary frame that is not JSON", frame.data),)
        try:
            value = wire.decode(data)
        except wire.BROKEN as error:
            return (wire.rejected("not_json", str(error), frame.data),)
        out: list[Output] = []
        now_ns = frame.received_ns
        self.shared.now_ns = now_ns
        if isinstance(value, dict):
            self._object(value, frame, now_ns, out)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    self._object(item, frame, now_ns, out)
                else:
                    out.append(wire.rejected("not_object", f"{type(item).__name__} in a list", frame.data))
        else:
            out.append(wire.rejected("not_object", type(value).__name__, frame.data))
        if not out:
            self.useless += 1
        return out

    def _object(self, value: Object, frame: Frame, now_ns: int, out: list[Output]) -> None:
        """Dispatch one object (rule R3)."""
        top = wire.TOP.fold(value)
        messages = top.get("messages")
        if messages.__class__ is list:
            for message in messages:
                self._inner(message, frame, now_ns, out)
            return
        if messages.__class__ is dict:
            self._inner(messages, frame, now_ns, out)
            return
        verb = self._control.verb_of(top)
        if verb is not None:
            out += self._control.answered(verb, top, now_ns)
            return
        told = top.get("type")
        kind = told.lower() if isinstance(told, str) else ""
        if (kind.startswith("trading.") or kind == "snapshot") and ("content" in top or "data" in top):
            self._inner({"content": top.get("content", top.get("data")), **top}, frame, now_ns, out)
        elif kind == "quote":
            self._flat_quote(top, frame, now_ns, out)
        elif kind in flat.MAKERS:
            self._flat(kind, top, frame, out)
        elif kind == "heartbeat":
            pass
        elif kind in ("subscribed", "unsubscribed", "ack"):
            event = "unsubscribed" if kind == "unsubscribed" else "subscribed"
            channels = top.get("channels")
            said = ", ".join(map(str, channels[:20])) if isinstance(channels, list) else None
            out.append(Status(event="unsubscribed" if event == "unsubscribed" else "subscribed", text=said))
        elif kind == "error" or failed(top):
            code = wire.text_of(top.get("errorCode")) or wire.text_of(top.get("code"))
            text = wire.text_of(top.get("errorMessage")) or wire.text_of(top.get("message"))
            out += self._control.error(code, text, top.get("retryAfter"), now_ns, typed=kind == "error")
        else:
            detail = f"type {kind[:60]!r}" if kind else "an object of no known kind"
            out.append(wire.rejected("unknown_type", detail, frame.data))

    def _inner(self, message: Any, frame: Frame, now_ns: int, out: list[Output]) -> None:
        """Take one message of an envelope; a broken one is lost alone."""
        if message.__class__ is not dict:
            out.append(wire.rejected("bad_field", f"a message that is {type(message).__name__}", frame.data))
            return
        message = wire.INNER.fold(message)
        topic = message.get("topic")
        raw = ""
        if isinstance(topic, str):
            known = self._topics.get(topic) or self._topic(topic)
            if known is None:
                out.append(wire.rejected("unknown_type", f"topic {topic[:60]!r}", frame.data))
                return
            raw = known
        private = raw == PRIVATE
        account = self.shared.account if private else None
        try:
            content = wire.unwrap(message.get("content", message.get("data")))
        except wire.BROKEN as error:
            detail = f"content is not JSON: {error}"
            out.append(wire.rejected("not_json", detail, frame.data, account=account))
            return
        if content is None:
            out.append(wire.rejected("bad_field", "content is no object", frame.data, account=account))
            return
        if private or (not raw and any(key.lower() == "orderid" for key in content)):
            order = orders.order(content, self.shared)
            if order is None:
                out.append(wire.rejected("unknown_type", "no order id", frame.data, account=self.shared.account))
            else:
                self._control.heard_data = True
                out.append(order)
            return
        rate = wire.RATE.fold(content)
        if not raw:
            ident = wire.identifier(rate.get("InstrumentID"))
            if ident is None:
                out.append(wire.rejected("missing_field", "neither a topic nor an InstrumentID", frame.data))
                return
            raw = ident
        told = message.get("type")
        snapshot = isinstance(told, str) and told.lower() == "snapshot"
        self._control.heard_data = True
        if self._desk.takes("quotes", raw):
            self._rate(raw, rate, snapshot, frame, out)

    def _topic(self, topic: str) -> str | None:
        """Give the id of `instrument:<id>`, `private`, empty text where there is none; None for an unknown topic."""
        word, _, rest = topic.strip().partition(":")
        word = word.lower()
        if word == PRIVATE:
            found = PRIVATE
        elif word == "instrument":
            digits = rest.partition(":")[0]
            found = (wire.identifier(digits) if digits.isdecimal() else None) or ""
        else:
            return None if word else ""
        if found and len(self._topics) < TOPICS_CACHED_MAX:
            self._topics[topic] = found
        return found

    # -- prices --

    def _rate(self, raw: str, rate: Object, snapshot: bool, frame: Frame, out: list[Output]) -> None:
        """Take one in-band price message: merge, publish, then its market flags (rules R7 to R14)."""
        bad = ""
        values: list[str | None] = [None, None, None]
        for index, name in enumerate(_PRICES):
            value = rate.get(name)
            if value is None or value == "":
                continue
            try:
                values[index] = wire.last_price(value) if index == 2 else wire.price(value)
            except ValueError as error:
                bad = f"{name}: {error}"
        time = wire.time_ns(rate.get("Date"))
        bid, ask, last = values
        if bid is not None or ask is not None or last is not None:
            self._merge(raw, bid, ask, last, time, wire.rate_id(rate.get("PriceRateID")), snapshot, frame, out)
        if bad:
            out.append(wire.rejected("bad_number", bad, frame.data, symbol=self.shared.table[raw][0], raw_symbol=raw))
        if not _FLAG_SET.isdisjoint(rate):
            self._market(raw, rate, time, out)

    def _merge(
        self,
        raw: str,
        bid: str | None,
        ask: str | None,
        last: str | None,
        time: int | None,
        rate_id: str | None,
        snapshot: bool,
        frame: Frame,
        out: list[Output],
    ) -> None:
        standing = self._standing.get(raw)
        if standing is None:
            standing = self._standing[raw] = Standing()
        standing.heard_ns = frame.received_ns
        if not standing.apply(bid, ask, last, time, rate_id, snapshot):
            return
        out.append(
            Quote(
                symbol=self.shared.table[raw][0],
                raw_symbol=raw,
                ts_event=standing.time,
                bid=standing.bid,
                ask=standing.ask,
                last=standing.last,
            )
        )
        more = self.shared.saw_decimals
        if (bid is not None and more(raw, bid)) | (ask is not None and more(raw, ask)):
            self._lookup.publish(raw, out)

    def _market(self, raw: str, rate: Object, time: int | None, out: list[Output]) -> None:
        """Publish market flags; whether the market is open is merged, because flags may come alone."""
        told = {name: wire.flag(rate.get(name)) for name in FLAGS}
        is_open = told["IsMarketOpen"]
        if is_open is not None:
            self._open[raw] = is_open
        active = told["IsInstrumentActive"]
        out.append(
            Status(
                event="market",
                symbol=self.shared.table[raw][0],
                raw_symbol=raw,
                ts_event=time,
                open=self._open.get(raw),
                halted=None if active is None else not active,
                text=" ".join(
                    f"{word}={str(told[n]).lower()}" for n, word in _FLAG_WORDS.items() if told[n] is not None
                )
                or None,
            )
        )

    # -- the flat family --

    def _flat_instrument(self, top: Object) -> str | None:
        """Give the id of a flat message's instrument, else its symbol as sent (rule R19)."""
        ident = wire.identifier(top.get("instrumentId"))
        if ident is not None:
            return ident
        for name in ("instrument", "symbol"):
            value = top.get(name)
            if isinstance(value, str) and value.strip() and len(value) <= 256:
                return self.shared.id_of(value.strip()) or value.strip()
        return None

    def _flat_quote(self, top: Object, frame: Frame, now_ns: int, out: list[Output]) -> None:
        raw = self._flat_instrument(top)
        if raw is None:
            out.append(wire.rejected("missing_field", "a quote without an instrument", frame.data))
            return
        self._control.heard_data = True
        if not self._desk.takes("quotes", raw):
            return
        rate = {
            "Bid": top.get("bid"),
            "Ask": top.get("ask"),
            "LastExecution": top.get("last", top.get("lastExecution")),
            "Date": next((top[name] for name in ("ts", "time", "date") if top.get(name) is not None), None),
            "PriceRateID": top.get("priceRateID"),
        }
        self._rate(raw, rate, False, frame, out)

    def _flat(self, kind: str, top: Object, frame: Frame, out: list[Output]) -> None:
        channel, make = flat.MAKERS[kind]
        raw = self._flat_instrument(top)
        if raw is None:
            out.append(wire.rejected("missing_field", f"a {kind} without an instrument", frame.data))
            return
        self._control.heard_data = True
        if not self._desk.takes(channel, raw):
            return
        try:
            message: Header = make(top, self.shared.table[raw][0], raw)
        except flat.Unusable as error:
            out.append(wire.rejected(error.reason, str(error), frame.data, raw_symbol=raw))
            return
        out.append(message)
