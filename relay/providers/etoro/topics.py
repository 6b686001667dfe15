"""What one connection is subscribed to, and eToro's words for it in each dialect.

Names become ids by the instrument map; a name without an id waits outside the wire form until REST has found it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from relay import model
from relay.providers.base import Subscription
from relay.providers.etoro.options import Dialect
from relay.providers.etoro.reference import EtoroShared

PRIVATE = "private"
EVERYTHING = "*"
"""A subscription of `relay normalize`: take what comes, ask for nothing."""

_FLAT: dict[Dialect, dict[model.Channel, str]] = {
    "inband": {"quotes": "instrument", "orders": PRIVATE},
    "header": {"quotes": "quotes", "trades": "trades"},
    "action": {"quotes": "quotes", "trades": "trades", "bars": "candles", "books": "orderbook"},
}
_encode = msgspec.json.Encoder().encode


def served(dialect: Dialect, channel: model.Channel) -> bool:
    """Tell whether a dialect has a channel; instruments come over REST in all of them."""
    return channel == "instruments" or channel in _FLAT[dialect]


class Desk:
    """The subscriptions of one connection and the set of instruments whose data is taken, by channel."""

    def __init__(self, shared: EtoroShared, dialect: Dialect, subscriptions: Iterable[Subscription]) -> None:
        self.shared, self.dialect = shared, dialect
        self.subscriptions: dict[Subscription, None] = {}
        self.live: dict[str, set[str]] = {}
        self.everything: set[str] = set()
        self.dropped: set[str] = set()
        """Ids that another client unsubscribed from, where everything is taken."""
        self.sent: dict[str, list[Subscription]] = {}
        """Wire topic to what asked for it, from the moment when it is queued."""
        self.refused: set[str] = set()
        """Wire topics that the provider refused; not asked for again unless somebody subscribes anew."""
        self.add(subscriptions)

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        for sub in subscriptions:
            if sub.raw == EVERYTHING:
                self.everything.add(sub.channel)
            else:
                self.subscriptions[sub] = None
                topic = self._topic_of(sub)
                if topic is not None:
                    self.refused.discard(topic)
        self.refresh()

    def remove(self, subscriptions: Iterable[Subscription]) -> list[str]:
        """Drop subscriptions; give the wire topics that nothing asks for any more."""
        for sub in subscriptions:
            self.subscriptions.pop(sub, None)
        self.refresh()
        freed = []
        for topic, askers in list(self.sent.items()):
            left = [sub for sub in askers if sub in self.subscriptions]
            self.sent[topic] = left
            if not left:
                del self.sent[topic]
                freed.append(topic)
        return freed

    def refresh(self) -> None:
        """Work out again which instruments are taken; names may have got their ids."""
        live: dict[str, set[str]] = {channel: set() for channel in ("quotes", "trades", "bars", "books", "instruments")}
        for sub in self.subscriptions:
            if sub.channel in live:
                self.shared.spell(sub.raw)
                ident = self.shared.id_of(sub.raw)
                live[sub.channel].add(ident or sub.raw.upper())
        self.live = live

    def takes(self, channel: str, raw: str) -> bool:
        """Tell whether data of an instrument belongs to a subscription of this connection."""
        if channel in self.everything:
            return raw not in self.dropped
        live = self.live.get(channel, ())
        return raw in live or raw.upper() in live

    def names_without_id(self) -> list[str]:
        """List names whose id is unknown, as configured."""
        found = dict.fromkeys(sub.raw for sub in self.subscriptions if sub.channel not in model.ACCOUNT_CHANNELS)
        return [raw for raw in found if self.shared.id_of(raw) is None]

    def idents(self, channel: str) -> list[str]:
        """List the ids of a channel's instruments, in configured order."""
        found = dict.fromkeys(self.shared.id_of(sub.raw) for sub in self.subscriptions if sub.channel == channel)
        return [ident for ident in found if ident is not None]

    def of_name(self, name: str) -> list[Subscription]:
        return [sub for sub in self.subscriptions if sub.raw.upper() == name.upper()]

    def unsent(self) -> list[str]:
        """Give the wire topics that can be asked for now and were not yet; they count as sent from here on."""
        fresh: dict[str, list[Subscription]] = {}
        for sub in self.subscriptions:
            topic = self._topic_of(sub)
            if topic is None or topic in self.refused:
                continue
            if topic in self.sent:
                if sub not in self.sent[topic]:
                    self.sent[topic].append(sub)
                continue
            fresh.setdefault(topic, []).append(sub)
        self.sent.update(fresh)
        return list(fresh)

    def overheard(self, topics: Iterable[str], wanted: bool) -> None:
        """Take note of wire topics that another client subscribed to, or unsubscribed from."""
        for topic in topics:
            ident = topic.partition(":")[2]
            if wanted:
                self.dropped.discard(ident)
                self.sent.setdefault(topic, [Subscription("quotes", ident) if ident else Subscription("orders", "")])
            elif ident:
                self.dropped.add(ident)
                self.sent.pop(topic, None)

    def refuse(self, topic: str) -> list[Subscription]:
        """Note that a wire topic was refused; give what asked for it."""
        self.refused.add(topic)
        return self.sent.pop(topic, [])

    def _topic_of(self, sub: Subscription) -> str | None:
        """Give the wire topic of a subscription; None where it has none, or its id is not known yet."""
        word, raw = _FLAT[self.dialect].get(sub.channel), sub.raw
        if word is None:
            return None
        if word == PRIVATE:
            return PRIVATE
        if self.dialect == "action":
            return f"{word}.{self.shared.symbol_of(raw) or raw}"
        ident = self.shared.id_of(raw)
        if ident is None:
            return None
        return f"{word}:{ident}" if self.dialect == "inband" else f"{word}.{ident}"


def chunks(topics: Sequence[str], bytes_max: int) -> list[list[str]]:
    """Split wire topics so that the message of each part stays within a number of bytes; `private` goes alone."""
    room = bytes_max - 200  # the message around them: operation, request id, snapshot flag
    out: list[list[str]] = [[topic] for topic in topics if topic == PRIVATE]
    part: list[str] = []
    size = 0
    for topic in topics:
        if topic == PRIVATE:
            continue
        cost = len(_encode(topic)) + 1
        if part and size + cost > room:
            out.append(part)
            part, size = [], 0
        part.append(topic)
        size += cost
    return [*out, part] if part else out


def flat_messages(dialect: Dialect, verb: str, topics: Sequence[str]) -> list[str]:
    """Write a subscribe or unsubscribe of the dialects whose keys ride on the upgrade."""
    if dialect == "header":
        return [_encode({"type": verb, "channels": list(topics)}).decode()]
    by_word: dict[str, list[str]] = {}
    for topic in topics:
        word, _, name = topic.partition(".")
        by_word.setdefault(word, []).append(name)
    return [
        _encode({"action": verb, "channels": [word], "instruments": names}).decode() for word, names in by_word.items()
    ]


def operation_message(request_id: str, verb: str, topics: Sequence[str]) -> str:
    """Write an in-band operation; prices come with a snapshot, order events without."""
    data: dict[str, object] = {"topics": list(topics)}
    if verb == "Subscribe":
        data["snapshot"] = PRIVATE not in topics
    return _encode({"id": request_id, "operation": verb, "data": data}).decode()
