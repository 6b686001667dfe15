"""What Kraken was asked for and what it says of it, over the life of one session.

Each symbol of a request is acknowledged or refused for itself, and nothing else tells a refusal: the connection stays
open and its heartbeats go on. Answers name a request by `req_id`; a refusal may lack the symbol, and both.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from relay.errors import SessionError, SubscribeRefused
from relay.model import Channel, Status
from relay.providers.base import FROM_BOOK, Output, Send, Shared, Subscription, SymbolTable
from relay.providers.kraken.options import MINUTES
from relay.providers.kraken.wire import RAW_CHARS_MAX, Envelope

ACK_NS = 10_000_000_000
"""How long a request may stay unanswered; answers come within milliseconds."""
SYMBOLS_MAX = 100
"""Symbols a request: keeps requests small and an answer without its symbol attributable."""
REQUESTS_KEPT = 1000
"""Requests whose answers can still be told apart."""
WIRE: dict[Channel, str] = {
    "quotes": "ticker", "trades": "trade", "bars": "ohlc", "books": "book", "instruments": "instrument",
}  # fmt: skip


class Key(NamedTuple):
    """What one subscribes to on the wire: channel, symbol, depth or interval."""

    channel: str
    raw: str
    param: str = ""


class Asking:
    """The subscriptions of one session. Sends are added to `out`; statuses are returned."""

    def __init__(self, shared: Shared, symbols: SymbolTable) -> None:
        self.out: list[Send] = []
        self.wanted: dict[Key, Subscription] = {}
        self._shared, self._symbols = shared, symbols
        self._pending: dict[Key, int] = {}  # asked for and not acknowledged: since when
        self._leaving: dict[Key, Subscription] = {}
        self._requests: dict[int, tuple[Key, ...]] = {}
        self._answered = False
        self._why = ""
        self._end: SessionError | None = None

    def add(self, subscriptions: Sequence[Subscription], now_ns: int) -> None:
        """Want more, and ask for it. Quotes that come from books need nothing of their own."""
        new: list[Key] = []
        for sub in subscriptions:
            # quotes that come of a book need nothing; for everything (frames without a configuration) one cannot ask
            if sub.raw == "*" or (sub.channel == "quotes" and sub.param == FROM_BOOK):
                continue
            key = Key(WIRE[sub.channel], sub.raw, sub.param)
            self._leaving.pop(key, None)
            if key not in self.wanted:
                self.wanted[key] = sub
                new.append(key)
        self._pending.update(dict.fromkeys(new, now_ns))
        self._ask("subscribe", new)

    def remove(self, subscriptions: Iterable[Subscription]) -> list[Output]:
        """Want less, and say so. Instruments have one subscription for all symbols."""
        gone: list[Key] = []
        out: list[Output] = []
        for sub in subscriptions:
            if sub.channel == "quotes" and sub.param == FROM_BOOK:
                continue
            key = Key(WIRE[sub.channel], sub.raw, sub.param)
            held = self.wanted.pop(key, None)
            self._pending.pop(key, None)
            if held is None:
                continue
            if key.channel == "instrument" and any(one.channel == "instrument" for one in self.wanted):
                out.append(self._status("unsubscribed", held))
                continue
            self._leaving[key] = held
            gone.append(key)
        self._ask("unsubscribe", gone)
        return out

    def again(self, keys: Sequence[Key]) -> None:
        """Ask for new snapshots: unsubscribe and subscribe."""
        self._ask("unsubscribe", keys)
        self._ask("subscribe", keys)

    def answered(self, answer: Envelope) -> tuple[list[Output], list[Key]]:
        """Take an answer to (un)subscribe; gives statuses, and what was refused.

        Raises: SessionError where the provider asks for a pause.
        """
        result = answer.result if isinstance(answer.result, dict) else {}
        asked = self._requests.get(answer.req_id, ()) if answer.req_id.__class__ is int else ()
        raw = result.get("symbol", answer.symbol)
        text = str(answer.error or "no reason given")[:500]
        if answer.success is True or (answer.error and "already subscribed" in text.lower()):
            self._answered = True
            channel = result.get("channel")
            keys = [key for key in (asked or (*self._pending, *self._leaving)) if _is(key, raw, channel, result)]
            out = self._done(keys, answer.method == "unsubscribe")
            warnings = result.get("warnings")
            if isinstance(warnings, list) and warnings:
                told = "; ".join(map(str, warnings))[:500]
                if told not in self._shared.told:  # type: ignore[attr-defined]
                    self._shared.told.add(told)  # type: ignore[attr-defined]
                    out.append(Status(event="notice", code="warning", text=f"{channel}: {told}"))
            return out, []
        problem = pause(text)
        if problem is not None:
            raise problem
        self._why = text
        if answer.method == "unsubscribe":
            # what is not subscribed cannot be left: as good as done
            keys = [key for key in (asked or self._leaving) if _is(key, raw, None, {})]
            return self._done(keys, True), []
        keys = [key for key in (asked or self._pending) if key in self.wanted and _is(key, raw, None, {})]
        if not asked and not isinstance(raw, str):
            # neither request nor symbol: the text alone may say what it is about
            what = {"depth": "book", "interval": "ohlc"}
            named = [channel for word, channel in what.items() if word in text.lower()]
            keys = [key for key in keys if key.channel in named]
        self._answered = self._answered or bool(keys)
        if not keys:
            named_raw = raw if isinstance(raw, str) and len(raw) <= RAW_CHARS_MAX else None
            symbol, venue = self._symbols[named_raw] if named_raw else (None, None)
            return [
                Status(event="refused", raw_symbol=named_raw, symbol=symbol, venue=venue, code="refused", text=text)
            ], []
        return self._refuse(keys, text), keys

    def tick(self, now_ns: int) -> tuple[list[Output], list[Key]]:
        """Look at the deadlines. Raises: SubscribeRefused when nothing is left, SessionError without any answer."""
        if self._end is not None and not self.wanted:
            raise self._end
        late = [key for key, since in self._pending.items() if now_ns - since >= ACK_NS]
        if not late:
            return [], []
        if not self._answered:
            names = ", ".join(" ".join(filter(None, key)) for key in late[:5])
            raise SessionError(f"no answer to subscribe within {ACK_NS // 10**9} s: {names}", code="ack_timeout")
        return self._refuse(late, self._why or "not acknowledged", code="not_acknowledged"), late

    def _done(self, keys: Iterable[Key], left: bool) -> list[Output]:
        out: list[Output] = []
        before = len(self._pending)
        for key in list(keys):
            if left:
                sub = self._leaving.pop(key, None)
                if sub is not None:
                    out.append(self._status("unsubscribed", sub))
            else:
                self._pending.pop(key, None)
        if before and not self._pending:
            out.append(Status(event="subscribed"))
        return out

    def _refuse(self, keys: Sequence[Key], text: str, code: str = "refused") -> list[Output]:
        out: list[Output] = []
        before = len(self._pending)
        for key in keys:
            self._pending.pop(key, None)
            sub = self.wanted.pop(key, None)
            if sub is not None:
                out.append(self._status("refused", sub, code=code, text=text))
        if not self.wanted:
            # raised by the next tick, so that these statuses go out before
            self._end = SubscribeRefused(f"nothing is left to subscribe to: {text}", code=code, action="slow")
        elif before and not self._pending:
            out.append(Status(event="subscribed"))
        return out

    def _ask(self, method: str, keys: Sequence[Key]) -> None:
        """One request for the symbols of a channel that have the same depth or interval."""
        alike: dict[tuple[str, str], list[Key]] = {}
        for key in keys:
            alike.setdefault((key.channel, key.param), []).append(key)
        for (channel, param), group in alike.items():
            size = len(group) if channel == "instrument" else SYMBOLS_MAX
            for start in range(0, len(group), size):
                part = tuple(group[start : start + size])
                params: dict[str, Any] = {"channel": channel}
                if channel != "instrument":
                    params["symbol"] = [key.raw for key in part]
                if channel == "book":
                    params["depth"] = int(param)
                elif channel == "ohlc":
                    params["interval"] = MINUTES[param]
                elif channel == "ticker":
                    params["event_trigger"] = "bbo"
                if method == "subscribe":
                    params["snapshot"] = True
                number = self._shared.next_id()
                self._requests[number] = part
                if len(self._requests) > REQUESTS_KEPT:
                    del self._requests[next(iter(self._requests))]
                message = {"method": method, "params": params, "req_id": number}
                self.out.append(Send(msgspec.json.encode(message).decode(), subscribes=1))

    def _status(self, event: Any, sub: Subscription, **fields: Any) -> Status:
        symbol, venue = self._symbols[sub.raw]
        fields.setdefault("text", f"{sub.param} {sub.raw}" if sub.param else sub.raw)
        return Status(event=event, channel=sub.channel, raw_symbol=sub.raw, symbol=symbol, venue=venue, **fields)


def _is(key: Key, raw: Any, channel: Any, result: dict[str, Any]) -> bool:
    """Tell whether an answer speaks of this; what it does not name, it does not deny."""
    if isinstance(channel, str) and channel != key.channel:
        return False
    if key.channel == "instrument":
        return channel == "instrument" or raw is None
    if isinstance(raw, str) and raw != key.raw:
        return False
    named = result.get("depth") if key.channel == "book" else result.get("interval") if key.channel == "ohlc" else None
    return named is None or str(named) == (key.param if key.channel == "book" else str(MINUTES[key.param]))


_PAUSES: tuple[tuple[str, float], ...] = (
    ("too many requests", 60.0), ("rate limit", 60.0), ("throttled", 60.0), ("eservice:unavailable", 5.0),
)  # fmt: skip


def pause(text: str) -> SessionError | None:
    """Give the end of the session that an error asks for: a pause of so many seconds; None: it asks for none."""
    low = text.lower()
    for sign, secs in _PAUSES:
        if sign in low:
            return SessionError(text, code=sign.replace(" ", "_"), action="slow", wait_secs=secs)
    return None
