"""Where a run goes on behind the entries of another relay of its name, and which messages those already are. Pure.

Channels whose provider numbers messages for all its sessions are aligned by number (`relay.intake`). Here are the
others: a message is one that Redis has by its id, by what it says, or by having come before the last entry.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from relay import codec
from relay.holes import number_after
from relay.model import ACCOUNT_CHANNELS, CHANNEL_OF, BookDelta, Header, Trade
from relay.outbox import order

ALIKE_NS = 2_000_000_000
"""A message this much behind the last entry may still be the one that Redis has: two sessions do not hear as one."""


def sameness(message: Header) -> bytes:
    """Give what two copies of one message have in common, however they came here."""
    if message.__class__ is Trade and message.id:
        return b"id " + message.id.encode()
    kept = message.provider, message.ts_recv, message.run, message.seq, message.origin
    message.provider, message.ts_recv, message.run, message.seq, message.origin = "", 0, 0, 0, None
    try:
        return codec.encode(message)
    finally:
        message.provider, message.ts_recv, message.run, message.seq, message.origin = kept


class Tail:
    """The newest entries of one topic, times by the clock of who wrote them."""

    def __init__(self, last_id: str = "0-0", bodies: Iterable[bytes] = (), whole: bool = False) -> None:
        """`bodies`: newest first. `whole`: there is nothing older."""
        self.last_ns = (order(last_id)[0] + 1) * 1_000_000 - 1
        self.oldest_ns = 0 if whole else self.last_ns
        self._known: Counter[bytes] = Counter()
        for body in bodies:
            try:
                message = codec.decode(body)
            except msgspec.MsgspecError:
                continue
            if type(message) in CHANNEL_OF:
                if not whole:
                    self.oldest_ns = message.ts_recv
                self._known[sameness(message)] += 1

    def has(self, message: Header, then_ns: int, account: bool) -> bool:
        """Tell whether Redis has a message that came at `then_ns`. Of accounts none may be lost: rather twice."""
        if self._known and then_ns <= self.last_ns + ALIKE_NS:
            key = sameness(message)
            if self._known[key] > 0:
                self._known[key] -= 1
                return True
        return then_ns < self.oldest_ns if account else then_ns <= self.last_ns


@dataclass
class Seam:
    """What a new writer knows of the one before it.

    `covered`: connections (provider, label) that were heard without a break since before its end. `skew_ns`: what its
    clock showed more than ours. `until_ns`: by then also a slow connection has come past its last entry.
    """

    covered: frozenset[tuple[str, str]] = frozenset()
    skew_ns: int = 0
    until_ns: int = 0
    tails: Mapping[str, Tail] = field(default_factory=dict)
    at_ns: int | None = None
    """Time of receipt of what is taken now, out of the ring; None: it is live."""


class RouteLike(Protocol):
    """What is known of a thing that a provider speaks of; see Route."""

    channel: str
    connection: str
    raw_symbol: str | None
    scope: str
    plain_mode: int
    next: int
    lost: str | None
    broken_ns: int | None
    tail: Tail | None


class TopicLike(Protocol):
    """A topic, and what an earlier run has left there."""

    name: str
    last_id: str | None
    before: bytes | None


def behind(seam: Seam | None, provider: str, simulated: bool, route: RouteLike, topic: TopicLike) -> None:
    """Begin a topic to which an earlier run wrote: note on its route what came in between, and by what to align."""
    account = route.channel in ACCOUNT_CHANNELS
    if not account:
        covered = seam is not None and (provider, route.connection) in seam.covered
        route.lost = "handover" if covered else "relay_down"
        route.broken_ns = order(topic.last_id or "0-0")[0] * 1_000_000
        # the built-in simulator counts anew with us: numbers behind the last run's would drop all as repeats
        goes_on = route.scope == "global" and route.plain_mode and not simulated
        known = number_after(topic.before) if goes_on else None
        if known is not None and known[:2] == (provider, route.raw_symbol):
            route.next = known[2]  # so a gap says which numbers
            return
    if seam is not None and seam.at_ns is not None:
        route.tail = seam.tails.get(topic.name) or Tail(topic.last_id or "0-0")


def had(seam: Seam | None, route: RouteLike, message: Header) -> bool:
    """Tell whether a message out of the ring is one that Redis has, or stands in the whole book that will come."""
    if seam is None or seam.at_ns is None or route.tail is None:
        route.tail = None  # it is live from here on
        return False
    if message.__class__ is BookDelta:
        return True
    return route.tail.has(message, seam.at_ns + seam.skew_ns, route.channel in ACCOUNT_CHANNELS)
