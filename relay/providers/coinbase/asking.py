"""What Coinbase was asked for and what it says is subscribed, over the life of one session.

Every answer lists all subscriptions of the connection, in any order, under names that may differ, and errors may come
instead of or before it: so wanted and listed are compared by product and channel family, what is missing after an
error is asked for again (a bounded number of times), and what is never listed counts as refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from relay.errors import SessionError, SubscribeRefused
from relay.model import Channel, Status
from relay.providers.base import FROM_BOOK, Output, Send, Subscription, SymbolTable
from relay.providers.coinbase.wire import Subscriptions

ACK_NS = 10_000_000_000
"""How long the subscriptions may stay unanswered."""
RECHECK_NS = 2_000_000_000
"""How long after an error its `subscriptions` answer may stay out before what is missing is asked for again."""
ASKS_MAX = 3
"""Times in a row that something is asked for without getting any of it; then it counts as refused."""

HEARTBEAT = "heartbeat"
FAMILY: dict[Channel, str] = {"quotes": "ticker", "trades": "matches", "books": "level2"}
ASKED_AS = {"level2": "level2_batch"}
"""Families whose channel without a key has another name."""

Key = tuple[str, str]
"""What one subscribes to on the wire: (channel family, product)."""


def family(name: str) -> str:
    """Give the family of an acknowledged channel name: `ticker_1000` belongs to `ticker`."""
    return name.partition("_")[0]


class Asking:
    """The subscriptions of one session. Sends are added to `out`; statuses are returned."""

    def __init__(self, symbols: SymbolTable) -> None:
        self.out: list[Send] = []
        self.wanted: dict[Key, Subscription | None] = {}
        """None: a heartbeat, which goes along."""
        self._symbols = symbols
        self._leaving: dict[Key, Subscription | None] = {}
        self._listed: set[Key] = set()  # as of the last answer
        self._answers = 0  # still to come
        self._asks = 0  # in a row without progress
        self._missed = 0  # how many were missing at the last ask
        self._why = ""  # the last error about subscribing
        self._deadline_ns: int | None = None
        self._recheck_ns: int | None = None
        self._end: SessionError | None = None

    def add(self, subscriptions: Sequence[Subscription], now_ns: int) -> None:
        """Want more, and ask for it."""
        known = set(self.wanted)
        for sub in subscriptions:
            if sub.param == FROM_BOOK:  # quotes that come of a book need nothing of their own
                continue
            if sub.raw == "*":  # everything (frames without a configuration): nothing that one could ask for
                continue
            # heartbeats first: they show that the connection lives
            for key, value in (((HEARTBEAT, sub.raw), None), ((FAMILY[sub.channel], sub.raw), sub)):
                self.wanted.setdefault(key, value)
                self._leaving.pop(key, None)
        self._asks = 0
        self._ask([key for key in self.wanted if key not in known], now_ns)

    def remove(self, subscriptions: Iterable[Subscription]) -> None:
        """Want less, and say so; the answer confirms it."""
        gone: dict[Key, Subscription | None] = {}
        for sub in subscriptions:
            if sub.param == FROM_BOOK:
                continue
            key = (FAMILY[sub.channel], sub.raw)
            if key in self.wanted:
                gone[key] = self.wanted.pop(key)
        for raw in self._needless_heartbeats():
            gone[(HEARTBEAT, raw)] = self.wanted.pop((HEARTBEAT, raw))
        self._leaving.update(gone)
        self._send("unsubscribe", gone)

    def again(self, raws: Sequence[str]) -> None:
        """Ask for new snapshots of these books: unsubscribe and subscribe."""
        keys = [("level2", raw) for raw in raws if ("level2", raw) in self.wanted]
        if keys:
            self._send("unsubscribe", keys)
            self._send("subscribe", keys)

    def is_listed(self, key: Key) -> bool:
        """Tell whether the provider's last answer has it."""
        return key in self._listed

    def answered(self, answer: Subscriptions, now_ns: int) -> list[Output]:
        """Take an answer: it lists all that is subscribed now."""
        self._listed = {(family(one.name), raw) for one in answer.channels or () for raw in one.product_ids or ()}
        self._answers = max(0, self._answers - 1)
        out: list[Output] = []
        for key in [key for key in self._leaving if key not in self._listed]:
            sub = self._leaving.pop(key)
            if sub is not None:
                out.append(self._status("unsubscribed", sub))
        if not self._answers:
            self._recheck_ns = None
        if not self._answers or not self._missing():
            out += self._settle(now_ns)
        return out

    def complained(self, text: str, now_ns: int) -> None:
        """An error about subscribing came: look at the next answer, or ask again when none comes."""
        self._why = text
        self._recheck_ns = now_ns + RECHECK_NS

    def refuse(self, keys: Iterable[Key], code: str, text: str) -> list[Output]:
        """Give up some of what was wanted; the session ends with the next tick where nothing is left."""
        out: list[Output] = []
        heartbeats: list[str] = []
        for key in keys:
            sub = self.wanted.get(key)
            if sub is None:
                heartbeats.append(key[1])
            else:
                del self.wanted[key]
                out.append(self._status("refused", sub, code=code, text=text))
        for raw in self._needless_heartbeats():
            del self.wanted[(HEARTBEAT, raw)]
        for raw in heartbeats:
            if (HEARTBEAT, raw) in self.wanted:
                del self.wanted[(HEARTBEAT, raw)]
                out.append(Status(event="notice", code=code, raw_symbol=raw, text=f"no heartbeats: {text}"))
        if out and not self.wanted:
            # raised by the next tick, so that these statuses go out before
            self._end = SubscribeRefused(f"nothing is left to subscribe to: {text}", code=code, action="slow")
        return out

    def tick(self, now_ns: int) -> list[Output]:
        """Look at the deadlines. Raises: SubscribeRefused when nothing is left, SessionError without any answer."""
        if self._end is not None and not self.wanted:
            raise self._end
        out: list[Output] = []
        if self._recheck_ns is not None and now_ns >= self._recheck_ns:
            self._recheck_ns = None
            out = self._settle(now_ns)
        if self._deadline_ns is not None and now_ns >= self._deadline_ns:
            missing = ", ".join(f"{channel} {raw}" for channel, raw in self._missing()[:5])
            raise SessionError(
                f"no answer to subscribe within {ACK_NS // 1_000_000_000} s; missing: {missing}", code="ack_timeout"
            )
        return out

    def _missing(self) -> list[Key]:
        return [key for key in self.wanted if key not in self._listed]

    def _settle(self, now_ns: int) -> list[Output]:
        """Nothing more will come by itself: be done, ask again for what is missing, or give it up."""
        missing = self._missing()
        if not missing:
            done = self._deadline_ns is not None and bool(self.wanted)
            self._deadline_ns, self._asks, self._missed, self._why = None, 0, 0, ""
            return [Status(event="subscribed")] if done else []
        self._asks = self._asks + 1 if len(missing) >= self._missed else 1
        self._missed = len(missing)
        if self._asks < ASKS_MAX:
            self._answers = 0
            self._ask(missing, now_ns)
            return []
        self._asks = self._missed = 0
        out = self.refuse(missing, "not_acknowledged", self._why or "the provider's answers leave it out")
        return out + (self._settle(now_ns) if self.wanted else [])

    def _needless_heartbeats(self) -> list[str]:
        used = {raw for channel, raw in self.wanted if channel != HEARTBEAT}
        return [raw for channel, raw in self.wanted if channel == HEARTBEAT and raw not in used]

    def _ask(self, keys: Sequence[Key], now_ns: int) -> None:
        if keys:
            self._send("subscribe", keys)
            self._deadline_ns = now_ns + ACK_NS
            self._recheck_ns = None

    def _send(self, what: str, keys: Iterable[Key]) -> None:
        """One message for the channels that have the same products: the plainest form that the docs show."""
        products: dict[str, list[str]] = {}
        for channel, raw in keys:
            products.setdefault(ASKED_AS.get(channel, channel), []).append(raw)
        alike: dict[tuple[str, ...], list[str]] = {}
        for channel, raws in products.items():
            alike.setdefault(tuple(raws), []).append(channel)
        for same, channels in alike.items():
            message = {"type": what, "product_ids": same, "channels": channels}
            self.out.append(Send(msgspec.json.encode(message).decode(), subscribes=1))
            self._answers += 1

    def _status(self, event: Any, sub: Subscription, **fields: Any) -> Status:
        symbol, venue = self._symbols[sub.raw]
        return Status(event=event, channel=sub.channel, raw_symbol=sub.raw, symbol=symbol, venue=venue, **fields)
