"""From a provider's outputs to numbered, encoded entries: subscription check, identity, gaps, topic, number, encode.

The same code serves the live relay, `relay normalize` and a replay, so that the same records give the same bytes.
Pure: the time is handed in. `take` is the hot path: no logging, no formatting but the entry's id.

What it knows of providers and of what they speak of stands in `relay.routes`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from relay import codec, identity, model
from relay.conflation import Conflation
from relay.model import ACCOUNT_CHANNELS, CHANNEL_OF, Header, Status
from relay.providers.base import Output, ProviderSpec, Seen, Shared, Subscription
from relay.redaction import Redactor
from relay.rollover import label_of
from relay.routes import Counts, Route, Source, TopicLike
from relay.seam import Seam, behind, had
from relay.topics import Topics

__all__ = ["Counts", "Intake", "OutboxLike", "Route", "Source", "TopicLike"]

NO_IDENTITY, CONTIGUOUS, RISING, SPECIAL = 0, 1, 2, 3
"""How a route checks numbers; SPECIAL: something must be said before the next message (gap, fresh)."""

HANDOVER_TEXT = "another node of this relay writes from here on; this channel has no numbers to align by"

_CLASS_OF: dict[str, type[Header]] = {
    "quotes": model.Quote,
    "trades": model.Trade,
    "bars": model.Bar,
    "books": model.BookSnapshot,
    "rates": model.Rate,
    "greeks": model.Greeks,
    "instruments": model.Instrument,
    "orders": model.Order,
    "positions": model.Position,
    "balances": model.Balance,
    "account": model.Account,
}
_BANDED = frozenset({"gap", "stale", "fresh"})
"""Statuses that go in band to the topics they concern, with a copy on the status topic."""


class OutboxLike(Protocol):
    """Where numbered entries go."""

    def topic(self, name: str, kind: str, provider: str) -> Any: ...
    def add(self, topic: Any, entry_id: str, body: bytes) -> None: ...


class Intake:
    """All sources of one relay, one numbering."""

    def __init__(
        self, topics: Topics, outbox: OutboxLike, run: int, *, merge: bool = False, redactor: Redactor | None = None
    ) -> None:
        """`redactor`: takes the secrets out of what providers say in statuses and rejects."""
        self._redact = (redactor or Redactor()).text
        self.told: Callable[[str, str, Status, int], None] | None = None  # hears what providers say, secrets gone
        self.names, self.outbox, self.run, self.merge = topics, outbox, run, merge
        self.sources: list[Source] = []
        self.owners: dict[str, tuple[str, str]] = {}  # topic -> the source (provider, venue) that feeds it
        self.dormant: dict[str, tuple[int, str, str | None, int]] = {}
        """Topics that nobody feeds any more: time of the last message, and whose number is expected next."""
        self._status = self.status_topic = outbox.topic(topics.status, "status", "")
        self._add = outbox.add
        self.conflation = Conflation(self._put)
        self.departed: list[Counts] = []  # of providers that were taken away: the sums go on
        self.seam: Seam | None = None
        """Where this run goes on behind another relay of its name."""
        self.beside = 0
        """Entries that stand for no message of a provider's: statuses and rejects."""

    def source(
        self,
        name: str,
        spec: ProviderSpec,
        shared: Shared,
        subscriptions: Iterable[Subscription] | None,
        *,
        origin: model.Origin | None = None,
        names: Topics | None = None,
    ) -> Source:
        """Add one configured provider; `names` where its topics have another prefix than the relay's (`sim.`)."""
        source = Source(name, spec, shared, subscriptions, names=names or self.names, origin=origin)
        self.sources.append(source)
        return source

    def resubscribed(self, source: Source, subscriptions: Iterable[Subscription]) -> None:
        """Let a source subscribe to something else from now on."""
        before = [route for route in source.routes.values() if route is not None]
        source.resubscribed(subscriptions)
        kept = {route.topic.name for route in source.routes.values() if route is not None}
        for route in before:
            name = route.topic.name
            if name not in kept:
                source.topics.discard(name)
                self.owners.pop(name, None)
                if route.last_ns:
                    expected = route.next if route.plain_mode and route.scope == "global" else -1
                    self.dormant[name] = (route.last_ns, source.name, route.raw_symbol, expected)
        source.told_full = False

    def leave(self, source: Source) -> None:
        """Take a configured provider away; its topics are free for another one."""
        self.resubscribed(source, ())
        self.sources.remove(source)
        self.departed.append(source.counts)

    # -- the hot path --------------------------------------------------------------------------------------------

    def take(self, source: Source, connection: str, outputs: Iterable[Any], now_ns: int) -> None:
        """Number and hand on what one call of a provider gave (each an Output); `now_ns` is the time of receipt.

        `connection` is the key of the session: its connection's label, with a mark where it is the second one.
        """
        if source.rollovers and (rollover := source.rollovers.get(label_of(connection))) is not None:
            outputs = rollover.admit(connection, outputs)
        routes, counts, run, name, origin = source.routes, source.counts, self.run, source.name, source.origin
        add, encode = self._add, codec.encode
        for message in outputs:
            cls = message.__class__
            key = (cls, message.raw_symbol) if cls is not model.Bar else (cls, message.raw_symbol, message.interval)
            route = routes.get(key)
            if route is None:
                route = self._route(source, connection, message, key, now_ns)
                if route is None:
                    continue
            counts.made += 1
            topic = route.topic
            if topic.full and not route.latest:
                self._overflow(source, route)
                continue
            mode = route.mode
            if mode and not self._passes(source, route, message, mode, now_ns):
                continue
            if message.origin is None or not route.last_ns:  # a fallback over REST is never live
                route.last_ns = now_ns
            if route.conflates and self.conflation.holds(source, route, message, now_ns):
                continue
            seq = topic.seq + 1
            topic.seq = seq
            message.provider = name
            message.ts_recv = now_ns
            message.run = run
            message.seq = seq
            if origin is not None:
                message.origin = origin
            counts.published += 1
            add(topic, f"{now_ns // 1_000_000}-{seq}", encode(message))

    def _passes(self, source: Source, route: Route, message: Header, mode: int, now_ns: int) -> bool:
        """Check identity and say what must be said before this message; False: it is late or a repeat."""
        number = message.src_seq
        if message.origin is not None:
            return True  # what must be said is said before the next live message
        if mode == CONTIGUOUS:
            if number == route.next:
                route.next = number + 1
                return True
        elif mode == RISING:
            if number is not None and number >= route.next:
                route.next = number + 1
                return True
        if route.tail is not None and had(self.seam, route, message):
            source.counts.repeats += 1
            return False
        return self._check(source, route, number, now_ns)

    def _check(self, source: Source, route: Route, number: int | None, now_ns: int) -> bool:
        mode, expected = route.plain_mode, route.next
        reason = route.lost
        gap: Status | None = None
        if mode and number is not None:
            if expected >= 0 and number < expected:
                # behind another relay's entries there is much that is late, and no count that began anew
                aligning = self.seam is not None and now_ns < self.seam.until_ns
                if aligning or not identity.begins_anew(route, number, now_ns):
                    source.counts.repeats += 1
                    if reason == "handover" and mode == RISING:
                        route.lost = None  # it reaches back to what Redis has: nothing is missing
                    return False
                gap = Status(event="gap", reason="sequence_reset")
                if mode == CONTIGUOUS and (missed := identity.taken_for_repeats(route, number)):
                    gap.first_missing, gap.last_missing = missed
                    gap.missing = number - missed[0]
            elif mode == CONTIGUOUS and expected >= 0 and number > expected:
                gap = _jump(route, number, now_ns)
            route.next = number + 1
        if reason is not None:
            proven = mode == CONTIGUOUS and number is not None and number == expected
            if gap is None and not proven and reason == "handover":
                gap = Status(event="handover", text=HANDOVER_TEXT)
            elif gap is None and not proven:
                gap = Status(event="gap", reason=_reason(reason), missing=route.overflowing or None)
        if gap is not None:
            gap.from_ns = (route.broken_ns if reason is not None else route.last_ns) or None
            gap.to_ns = now_ns
            self._in_band(source, route, gap, now_ns)
        route.lost = route.broken_ns = None
        route.overflowing = 0
        if route.stale:
            route.stale = False
            self._in_band(source, route, Status(event="fresh"), now_ns)
        route.mode = mode if route.tail is None else SPECIAL
        return True

    # -- what is rare --------------------------------------------------------------------------------------------

    def _route(self, source: Source, connection: str, message: Output, key: object, now_ns: int) -> Route | None:
        """Find or make the route of a message that has none under its key; None: it was dealt with, or is dropped."""
        connection = label_of(connection)
        if isinstance(message, Seen):
            self._seen(source, connection, message, now_ns)
            return None
        if isinstance(message, Status):
            self.status(source, message, now_ns, connection=connection)
            if self.told is not None:
                self.told(source.name, connection, message, now_ns)
            return None
        if isinstance(message, model.Reject):
            self._reject(source, message, now_ns)
            return None
        channel = CHANNEL_OF[type(message)]
        raw = message.raw_symbol or ""
        account = getattr(message, "account", None)
        param = message.interval if isinstance(message, model.Bar) else ""
        if key in source.routes or (not account and not source.wants(channel, raw, param)):
            if len(source.routes) < 2 * source.shared.options.topics_max:
                source.routes[key] = None  # remembered: the next one is dropped without asking again
            source.counts.made += 1
            source.counts.outside += 1
            return None
        shared_key = (_CLASS_OF[channel], account or raw, param)
        route = source.routes.get(shared_key)
        if route is None:
            route = self._make(source, connection, channel, message, param, account, now_ns)
            if route is None:
                source.counts.made += 1
                source.counts.outside += 1
                return None
            source.routes[shared_key] = route
        source.routes[key] = route
        return route

    def _make(
        self,
        source: Source,
        connection: str,
        channel: model.Channel,
        message: Header,
        param: str,
        account: str | None,
        now_ns: int,
    ) -> Route | None:
        venue = message.venue if source.spec.source == "venue" else None
        name = source.names.name(
            channel,
            provider=source.name,
            venue=venue,
            symbol=message.symbol,
            interval=param or None,
            account=account,
        )
        if name not in source.topics and len(source.topics) >= source.shared.options.topics_max:
            if not source.told_full:
                source.told_full = True
                text = f"topics_max of {source.shared.options.topics_max} reached; further symbols are dropped"
                self.status(source, Status(event="refused", channel=channel, text=text), now_ns)
            return None
        owner = (source.name, venue or "")
        if not self.merge and self.owners.setdefault(name, owner) != owner:
            other = " ".join(filter(None, self.owners[name]))
            text = (
                f"topic {name} is fed by {other} already; give the template of {channel} a {{provider}} or {{venue}}, "
                "or set merge: true"
            )
            self.status(
                source,
                Status(event="refused", channel=channel, topic=name, raw_symbol=message.raw_symbol, text=text),
                now_ns,
            )
            return None
        source.topics.add(name)
        topic = self.outbox.topic(name, channel, source.name)
        spec = source.spec.channels.get(channel)
        known = spec.identity if spec else None
        mode = NO_IDENTITY if known is None else CONTIGUOUS if known.step == "contiguous" else RISING
        route = Route(channel, topic, mode, known.scope if known else "session")
        route.connection, route.param = connection, param
        route.raw_symbol, route.symbol, route.venue = message.raw_symbol, message.symbol, message.venue
        limit = source.shared.options.stale_secs.get(channel)
        if limit is None:
            limit = spec.cadence_secs if spec and not spec.account else 0
        route.stale_ns = int(limit * 1e9)
        if channel == "quotes":
            route.thin_ns = int(source.shared.options.interval_ms.get(channel, 0)) * 1_000_000
            route.latest = source.shared.options.when_full.get(channel) == "latest"
            route.conflates = bool(route.thin_ns or route.latest)
        if mode == CONTIGUOUS and route.scope == "global":
            topic.contiguous = True
        if topic.seq == 0 and topic.last_id:
            # what came between the last entry of an earlier run and now was missed, or heard by another relay
            behind(self.seam, source.name, source.origin == "simulated", route, topic)
            if route.lost is not None or route.tail is not None:
                route.mode = SPECIAL
        left = self.dormant.pop(name, None)
        if left is not None and channel not in ACCOUNT_CHANNELS:
            # it was not subscribed for a while
            route.lost, route.broken_ns, route.mode = "disconnect", left[0], SPECIAL
            if left[1:3] == (source.name, message.raw_symbol) and route.scope == "global":
                route.next = left[3]
        return route

    def _in_band(self, source: Source, route: Route, status: Status, now_ns: int) -> None:
        """Publish a status on the topic it concerns, with a copy on the status topic."""
        if route.held is not None:
            self.conflation.let_go(source, route, now_ns)
        status.channel, status.topic = route.channel, route.topic.name
        status.symbol, status.raw_symbol, status.venue = route.symbol, route.raw_symbol, route.venue
        if status.event == "gap":
            source.counts.gaps += 1
            source.counts.missing += status.missing or 0
        self._put(source, route.topic, status, now_ns)
        self._put(source, self._status, status, now_ns)

    def _put(self, source: Source | None, topic: TopicLike, message: Header, now_ns: int) -> None:
        if message.__class__ is Status or message.__class__ is model.Reject:
            self.beside += 1
        topic.seq += 1
        message.provider = source.name if source else self.names.relay
        message.ts_recv, message.run, message.seq = now_ns, self.run, topic.seq
        if source and source.origin and message.origin is None:
            message.origin = source.origin
        self._add(topic, f"{now_ns // 1_000_000}-{topic.seq}", codec.encode(message))

    def status(self, source: Source | None, status: Status, now_ns: int, *, connection: str = "") -> None:
        """Publish a status: in band where it concerns topics, else on the status topic alone."""
        if status.text:
            status.text = self._redact(status.text)
        if status.code:
            status.code = self._redact(status.code)
        if source is not None and status.event in _BANDED:
            routes = self._concerned(source, status, connection)
            for route in routes:
                copy = codec.decode(codec.encode(status))
                assert isinstance(copy, Status)
                if status.event == "stale":
                    if route.stale:
                        continue
                    route.stale, route.mode = True, SPECIAL
                elif status.event == "fresh":
                    if not route.stale:
                        continue
                    route.stale = False
                if status.event == "gap":
                    copy.to_ns = copy.to_ns or now_ns
                    copy.from_ns = copy.from_ns or route.last_ns or None
                self._in_band(source, route, copy, now_ns)
            if routes:
                return
            if status.event == "gap":
                source.counts.gaps += 1
        if source is not None and status.event == "market":
            source.market(status.raw_symbol or "", status.open is not False, now_ns)
        self._put(source, self._status, status, now_ns)

    def _concerned(self, source: Source, status: Status, connection: str) -> list[Route]:
        found: dict[int, Route] = {}
        for route in source.routes.values():
            if (
                route is not None
                and (status.channel is None or route.channel == status.channel)
                and (status.raw_symbol is None or route.raw_symbol == status.raw_symbol)
                and (status.raw_symbol is not None or not connection or route.connection == connection)
            ):
                found[id(route)] = route
        return list(found.values())

    def _reject(self, source: Source, reject: model.Reject, now_ns: int) -> None:
        counts = source.counts
        counts.rejects += 1
        counts.reasons[reject.reason] = counts.reasons.get(reject.reason, 0) + 1
        if reject.frame:
            reject.frame = self._redact(reject.frame)
        if reject.detail:
            reject.detail = self._redact(reject.detail)
        name = source.names.deadletter(reject.account)
        self._put(source, self.outbox.topic(name, "deadletter", source.name), reject, now_ns)

    def _seen(self, source: Source, connection: str, seen: Seen, now_ns: int) -> None:
        """Take a number that a useless frame carried into account."""
        cls = _CLASS_OF[seen.channel]
        route = source.routes.get((cls, seen.raw_symbol)) or source.routes.get((cls, seen.raw_symbol, ""))
        if route is None:
            spec = source.spec.channels.get(seen.channel)
            if spec is None or spec.identity is None or not source.wants(seen.channel, seen.raw_symbol, ""):
                return
            symbol, venue = source.spec.rule(seen.raw_symbol)
            symbol = source.shared.options.symbols.get(seen.raw_symbol, symbol)
            stand_in = Header(symbol=symbol, raw_symbol=seen.raw_symbol, venue=venue)
            route = self._make(source, connection, seen.channel, stand_in, "", None, now_ns)
            if route is None:
                return
            source.routes[(cls, seen.raw_symbol, "")] = source.routes[(cls, seen.raw_symbol)] = route
        last = seen.src_seq if seen.delivered else seen.src_seq + 1
        if route.next < 0:
            if route.lost is not None:  # nobody knows how many came before this one
                gap = Status(event="gap", reason=_reason(route.lost), from_ns=route.broken_ns or None, to_ns=now_ns)
                self._in_band(source, route, gap, now_ns)
                route.lost = route.broken_ns = None
            route.next = seen.src_seq + 1
        elif route.plain_mode == CONTIGUOUS and last > route.next:
            gap = _jump(route, last, now_ns)
            gap.from_ns, gap.to_ns = (route.broken_ns if route.lost else route.last_ns) or None, now_ns
            self._in_band(source, route, gap, now_ns)
            route.lost = route.broken_ns = None
            route.next = seen.src_seq + 1
        elif seen.src_seq >= route.next:
            route.next = seen.src_seq + 1

    def _overflow(self, source: Source, route: Route) -> None:
        """The topic has no room (it is blocked in Redis): the message goes into a gap, declared when there is room."""
        source.counts.overflow += 1
        route.overflowing += 1
        if route.lost is None:
            route.lost, route.broken_ns = "overflow", route.last_ns
        route.mode = SPECIAL

    # -- sessions and time ---------------------------------------------------------------------------------------

    def opened(self, source: Source, connection: str) -> None:
        """A new session of a connection begins: numbers of session scope start anew."""
        for route in source.routes.values():
            if route is not None and route.connection == connection and route.scope == "session":
                route.next = -1

    def closed(self, source: Source, connection: str) -> None:
        """A session ended: what comes next on its routes stands behind a gap."""
        for route in source.routes.values():
            if route is not None and route.connection == connection:
                _break(route, "disconnect")

    def replaced(self, source: Source, connection: str, proven: bool, now_ns: int) -> None:
        """The old one of two sessions ended; `proven`: not before the new one brought what it had brought."""
        rollover = source.rollovers.pop(connection)
        self.take(source, rollover.new, rollover.finish(proven, _break), now_ns)

    def not_replaced(self, source: Source, connection: str) -> None:
        """The new one of two sessions ended first."""
        source.rollovers.pop(connection).fail(_break)

    def watch(self, now_ns: int) -> int:
        """Mark topics stale whose last message is older than the channel's limit, publish quotes whose time has come.

        Call it about once a second, every WATCH_THIN_SECS where quotes are thinned. Gives the number of messages made.
        """
        found = self.conflation.release(now_ns)
        for source in self.sources:
            for route in source.routes.values():
                if (
                    route is not None
                    and route.stale_ns
                    and not route.stale
                    and route.last_ns
                    and source.quiet_ns(route, now_ns) > route.stale_ns
                ):
                    found += 1
                    route.stale, route.mode = True, SPECIAL
                    age = (now_ns - route.last_ns) / 1e9
                    text = f"nothing for {age:.0f} s"
                    self._in_band(source, route, Status(event="stale", text=text, from_ns=route.last_ns), now_ns)
        return found


def _jump(route: Route, number: int, now_ns: int) -> Status:
    """Say what is missing before a number above the one expected."""
    missing = number - route.next
    since_ns = (route.broken_ns if route.lost is not None else route.last_ns) or 0
    if identity.too_far(missing, now_ns - since_ns):
        return Status(event="gap", reason="sequence_reset")
    return Status(
        event="gap",
        reason=_reason(route.lost or "sequence_jump"),
        first_missing=route.next,
        last_missing=number - 1,
        missing=missing,
    )


def _break(route: Route, reason: str) -> None:
    if route.lost is None:
        route.lost, route.broken_ns = reason, route.last_ns
    route.mode = SPECIAL


def _reason(text: str) -> model.GapReason:
    return "relay_down" if text == "handover" else text  # type: ignore[return-value]
