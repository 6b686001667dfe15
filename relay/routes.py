"""What the intake knows of its providers: a source each, a route for each thing that a source speaks of. Pure.

A route is what one provider says of one thing (its raw symbol, in one channel, at one interval): the unit of identity,
gap and staleness. Several routes may share a topic only where the config says `merge: true`.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from relay import model
from relay.model import ACCOUNT_CHANNELS, Header
from relay.providers.base import ProviderSpec, Shared, Subscription
from relay.seam import Tail
from relay.topics import Topics


class TopicLike(Protocol):
    """What the intake needs of an outbox topic."""

    name: str
    seq: int
    full: bool
    last_id: str | None
    before: bytes | None
    contiguous: bool


class Counts:
    """Plain counters of one provider; the conservation law is stated over them."""

    __slots__ = (
        "conflated", "gaps", "held", "made", "missing", "outside", "overflow", "published", "reasons", "rejects",
        "repeats",
    )  # fmt: skip

    def __init__(self) -> None:
        self.made = self.published = self.repeats = self.outside = self.conflated = self.overflow = 0
        self.held = 0  # kept back, to be conflated or published
        self.rejects = self.gaps = self.missing = 0
        self.reasons: dict[str, int] = {}  # of the rejects


class Route:
    """What is known of one (channel, raw symbol, interval) of a provider."""

    __slots__ = (
        "back_at", "back_count", "back_first", "back_last", "back_ns", "broken_ns", "channel", "conflates",
        "connection", "due_ns", "held", "last_ns", "latest", "lost", "lost_from", "mode", "next", "overflowing",
        "param", "plain_mode", "raw_symbol", "scope", "stale", "stale_ns", "symbol", "tail", "thin_ns", "topic",
        "venue",
    )  # fmt: skip

    def __init__(self, channel: str, topic: TopicLike, mode: int, scope: str) -> None:
        self.channel, self.topic = channel, topic
        self.mode = self.plain_mode = mode
        self.scope = scope
        self.next = -1  # the number expected next; -1: none seen yet
        self.back_at = self.back_first = self.back_last = -1  # numbers below it that came in a row: relay.identity
        self.back_count = self.back_ns = 0
        self.connection = ""
        self.raw_symbol: str | None = None
        self.symbol: str | None = None
        self.venue: str | None = None
        self.param = ""
        self.last_ns = 0
        self.broken_ns: int | None = None  # last good message before a break that is still to be said
        self.lost: str | None = None  # reason of that break
        self.lost_from: int | None = None
        self.stale = False
        self.stale_ns = 0  # 0: never stale
        self.overflowing = 0  # messages refused because the topic has no room
        self.thin_ns = 0  # at most one message in so long; 0: all
        self.latest = False  # keep only the newest while there is no room
        self.conflates = False  # either of both
        self.held: Header | None = None  # the newest message, not numbered yet
        self.due_ns = 0  # not before this
        self.tail: Tail | None = None  # of another relay: what of the ring Redis has


class Source:
    """One configured provider as the intake sees it."""

    def __init__(
        self,
        name: str,
        spec: ProviderSpec,
        shared: Shared,
        subscriptions: Iterable[Subscription] | None,
        *,
        names: Topics,
        origin: model.Origin | None = None,
    ) -> None:
        """`subscriptions` None: everything counts as subscribed (`relay normalize`)."""
        self.name, self.spec, self.shared, self.origin, self.names = name, spec, shared, origin, names
        self.subscriptions: dict[str, list[Subscription]] | None = None
        self._named: dict[tuple[str, str], list[Subscription]] = {}  # by channel and raw symbol
        if subscriptions is not None:
            self._subscribe(subscriptions)
        self.routes: dict[object, Route | None] = {}
        self.topics: set[str] = set()
        self.counts = Counts()
        self.closed_markets: set[str] = set()  # raw symbols; empty text: all of the source's
        self.reopened_ns: dict[str, int] = {}
        self.told_full = False
        self.sessions: dict[str, str] = {}  # label of a connection -> key of the session that speaks for it
        self.rollovers: dict[str, Any] = {}  # label of a connection -> its Rollover, while it has two sessions

    def market(self, raw: str, is_open: bool, now_ns: int) -> None:
        """Take note of a market (empty text: all of the source's) that is open or closed."""
        if not is_open:
            self.closed_markets.add(raw)
        elif raw in self.closed_markets:
            self.closed_markets.discard(raw)
            self.reopened_ns[raw] = now_ns

    def quiet_ns(self, route: Route, now_ns: int) -> int:
        """How long a route has been quiet that should not be: 0 while its market is closed, then from its opening."""
        raw = route.raw_symbol or ""
        if raw in self.closed_markets or "" in self.closed_markets:
            return 0
        reopened = self.reopened_ns
        return now_ns - max(route.last_ns, reopened.get(raw, 0), reopened.get("", 0))

    def wants(self, channel: str, raw: str, param: str) -> bool:
        """Tell whether something subscribed to takes this."""
        if self.subscriptions is None or channel in ACCOUNT_CHANNELS:
            return True
        wants = self.shared.wants
        # by name first: 10,000 symbols, each compared with 10,000 others, would hold up the loop for minutes
        if any(wants(sub, raw, param) for sub in self._named.get((channel, raw), ())):
            return True
        return any(wants(sub, raw, param) for sub in self.subscriptions.get(channel, ()))

    def _subscribe(self, subscriptions: Iterable[Subscription]) -> None:
        self.subscriptions = {}
        self._named = {}
        for sub in subscriptions:
            self.subscriptions.setdefault(sub.channel, []).append(sub)
            self._named.setdefault((sub.channel, sub.raw), []).append(sub)

    def standing(self) -> tuple[int, int]:
        """Count what is stale, and give the time of the newest message, 0 for none."""
        stale, last_ns = set(), 0
        for route in self.routes.values():
            if route is not None:
                if route.stale:
                    stale.add(id(route))  # it may stand under two keys
                if route.last_ns > last_ns:
                    last_ns = route.last_ns
        return len(stale), last_ns

    def resubscribed(self, subscriptions: Iterable[Subscription]) -> None:
        """Take a new list of subscriptions; what was outside may be inside now."""
        self._subscribe(subscriptions)
        for key, route in list(self.routes.items()):
            if route is None or not self.wants(route.channel, route.raw_symbol or "", route.param):
                del self.routes[key]
