"""What is numbered and waits for Redis: a list of (entry id, bytes) a topic, counted in bytes. Pure.

The intake adds at the end, the sink takes from the head and removes only what Redis has confirmed. Nothing here drops
anything: at a bound `full` tells the feeds to wait, and a topic that Redis refuses (`blocked`) tells the intake by
`full` of its own that its newest messages must be refused, counted and declared as a gap (`overflow`).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from relay.model import GapReason

ENTRY_COST = 128
"""What an entry costs in memory beside its body: id text 69, header of the bytes 33, two list slots 16, rounding."""
BLOCKED_SHARE = 4
"""All blocked topics together may hold a quarter of `bytes_max` on top of it: memory stays bounded, others go on."""


TIGHT_SHARE = 8
"""Where memory is short this part of `bytes_max` is held."""
NOTHING = "0-0"
"""The id below all ids."""


class Position(NamedTuple):
    """A place in the spool: number of a segment, bytes into it. A batch begins there, or the segment ends."""

    segment: int
    offset: int


def order(entry_id: str) -> tuple[int, int]:
    """Give an entry id as two numbers, to compare."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


def never(topic: "Topic", entry_id: str) -> bool:
    """Of no entry."""
    return False


class Past(NamedTuple):
    """Entries of a topic read back from the spool: what one write has put there, oldest first, at least one."""

    name: str
    ids: list[str]
    bodies: list[bytes]
    after: Position
    """Where reading goes on behind them."""
    since: str = ""
    """Where they begin a run: the entry that it began behind, which may be another relay's; empty: none is known."""

    def above(self, entry_id: str) -> tuple[list[str], list[bytes]]:
        """Give those that stand above an id: their ids and bodies."""
        bound = order(entry_id)
        if order(self.ids[0]) > bound:
            return self.ids, self.bodies
        below = sum(order(one) <= bound for one in self.ids)
        return self.ids[below:], self.bodies[below:]


class Topic:
    """One stream and what waits for it. Compared and hashed by identity; `Outbox.topic` makes it once a name.

    `seq` and `contiguous` (its provider numbers messages without holes), written by the intake: the last number given.
    `ids` and `data`: waiting in memory, oldest first, what is in flight included.
    `last`, written by the sink: the newest entry id known to be in Redis (`0-0`: none), empty until the topic is
    fenced. `acked`: the newest that Redis ever confirmed: above `last` while Redis is being healed (`parked`).
    `blocked`: why Redis takes nothing for this topic, empty when it does. `full`: blocked and at its bound: the intake
    must refuse what comes for it. `last_id`: the newest entry of an earlier run, where there is one; `before`: the
    body of the newest of these that carries a provider's number.
    `spilled`: more waits in the spool, behind `ids`: `behind` entries, to be read from `cursor` on, above the id
    `after`; `tail`: the body of the entry `after`, where it is known. `fresh`: so many of the newest in memory are not
    in the spool yet (not more than there are).
    """

    __slots__ = (
        "acked", "after", "away", "before", "behind", "blocked", "contiguous", "cursor", "data", "fresh", "full", "ids",
        "kind", "last", "last_id", "limit", "name", "parked", "provider", "seq", "size", "spilled", "tail",
    )  # fmt: skip

    def __init__(self, name: str, kind: str, provider: str, limit: int) -> None:
        self.name, self.kind, self.provider = name, kind, provider
        self.seq = 0
        self.ids: list[str] = []
        self.data: list[bytes] = []
        self.size = 0
        self.last = ""
        self.acked = ""
        self.last_id: str | None = None
        self.before: bytes | None = None
        self.blocked = ""
        self.parked = self.away = False  # away: parked or blocked
        self.contiguous = False
        self.fresh = 0
        self.spilled = False
        self.behind = 0
        self.cursor: Position | None = None
        self.after = NOTHING
        self.tail: bytes | None = None
        self.full = False
        self.limit = limit

    def __repr__(self) -> str:
        state = f", blocked: {self.blocked}" if self.blocked else ""
        return f"<Topic {self.name}: {len(self.ids)} waiting, {self.size} bytes{state}>"


class Outbox:
    """All topics of one relay.

    `size`: bytes waiting in all, in flight included, ENTRY_COST an entry counted in. `full`: a bound is reached, feeds
    must wait (`Sink.room`). `held`: bytes of blocked topics, which do not make the others wait.
    """

    __slots__ = (
        "_over",
        "_wide",
        "before",
        "busy",
        "bytes_max",
        "earlier",
        "full",
        "given",
        "held",
        "limit",
        "size",
        "tight",
        "topic_bytes_max",
        "topics",
        "waiting",
    )

    def __init__(self, bytes_max: int, topic_bytes_max: int) -> None:
        self.bytes_max, self.topic_bytes_max = bytes_max, topic_bytes_max
        self._wide = bytes_max
        self.tight = False
        self.topics: dict[str, Topic] = {}
        self.waiting: dict[Topic, None] = {}
        """Topics with entries, blocked ones aside, in the order in which they are served."""
        self.earlier: dict[str, str] = {}
        """Newest entries of earlier runs by topic, known from the first contact with Redis on."""
        self.given: dict[str, str] = {}
        """Topics that another relay writes now: the newest entry of ours, which Redis has."""
        self.before: dict[str, bytes] = {}
        """Bodies of the newest of these that carry a provider's number, where Redis was asked for them."""
        self.size = 0
        self.held = 0
        self.limit = bytes_max
        self.full = False
        self.busy: set[Topic] = set()
        """Topics of which something is in flight, where more than one call can be: their entries stay in memory."""
        self._over: set[Topic] = set()

    def topic(self, name: str, kind: str, provider: str) -> Topic:
        """Get the topic of this name, made when it is new."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, kind, provider, self.topic_bytes_max)
            topic.last_id, topic.before = self.earlier.get(name), self.before.get(name)
        return topic

    def know(self, earlier: dict[str, str], before: dict[str, bytes] | None = None) -> None:
        """Take the newest entries of earlier runs, by topic, as Redis has them; `before`: see there."""
        self.earlier, self.before = earlier, before or {}
        for topic in self.topics.values():
            found = earlier.get(topic.name)
            if found is not None and (topic.last_id is None or order(found) > order(topic.last_id)):
                topic.last_id = found
                topic.before = self.before.get(topic.name)  # the spool does not reach as far

    def forget(self, topic: Topic) -> None:
        """Another relay writes this topic from now on, and Redis has all that we had of it."""
        self.given[topic.name] = topic.last or topic.last_id or NOTHING
        self.waiting.pop(topic, None)
        del self.topics[topic.name]

    def add(self, topic: Topic, entry_id: str, body: bytes) -> None:
        """Put one numbered message at the end of its topic. Never refuses: ask `full` and `topic.full` before."""
        ids = topic.ids
        if not ids and not topic.away:
            self.waiting[topic] = None
        ids.append(entry_id)
        topic.data.append(body)
        cost = len(body) + ENTRY_COST
        topic.size = size = topic.size + cost
        self.size = total = self.size + cost
        if size > topic.limit or total > self.limit:
            self._bound(topic, cost)

    def take(self, entries_max: int, bytes_max: int, among: Iterable[Topic] | None = None) -> list[tuple[Topic, int]]:
        """Choose the next call: topics with the number of entries from their heads, at least one entry if any waits.

        `bytes_max`: of bodies. `among`: those of `waiting` that it may be; all by default. Bounds hold but for a single
        entry that is larger alone. Nothing is removed: `done` does that.
        """
        batch: list[tuple[Topic, int]] = []
        entries, room = entries_max, bytes_max
        for topic in self.waiting if among is None else among:
            count = len(topic.ids)
            if not count:  # it waits in the spool
                continue
            size = topic.size - count * ENTRY_COST
            if count <= entries and size <= room:
                batch.append((topic, count))
                entries -= count
                room -= size
                if not entries:
                    break
                continue
            count = 0
            for body in topic.data[:entries]:
                room -= len(body)
                if room < 0 and (count or batch):
                    break
                count += 1
                if room < 0:
                    break
            if count:
                batch.append((topic, count))
            break
        return batch

    def done(self, topic: Topic, count: int) -> int:
        """Remove the oldest `count` entries: Redis has them. Give the bytes freed, ENTRY_COST included."""
        ids, data = topic.ids, topic.data
        if count == len(ids):
            freed = topic.size
            ids.clear()
            data.clear()
            if not topic.spilled:
                self.waiting.pop(topic, None)
        else:
            freed = sum(map(len, data[:count])) + count * ENTRY_COST
            del ids[:count]
            del data[:count]
            self.defer(topic)
        topic.size -= freed
        self.size -= freed
        if topic.blocked:
            self._hold(-freed)
            topic.full = False
        if self.full:
            self._relax()
        return freed

    def defer(self, topic: Topic) -> None:
        """Let the others come first."""
        if topic in self.waiting:
            del self.waiting[topic]
            self.waiting[topic] = None

    def replace(self, topic: Topic, ids: list[str], data: list[bytes]) -> None:
        """Put other entries in the place of all that wait for a topic."""
        cost = sum(map(len, data)) + len(data) * ENTRY_COST
        change = cost - topic.size
        topic.ids, topic.data, topic.size = ids, data, cost
        self.size += change
        if topic.blocked:
            self._hold(change)

    def block(self, topic: Topic, reason: str) -> None:
        """Redis takes nothing for this topic: keep what waits, up to its bound, and let the others go on."""
        if not topic.blocked:
            self.waiting.pop(topic, None)
            self._hold(topic.size)
            topic.limit = -1  # every further `add` comes by `_bound`
        topic.blocked = reason
        topic.away = True
        self._judge(topic)
        self._relax()

    def unblock(self, topic: Topic) -> None:
        """Redis takes entries of this topic again."""
        if topic.blocked:
            topic.blocked = ""
            topic.full = False
            topic.limit = self.topic_bytes_max
            self._hold(-topic.size)
            self._back(topic)

    def park(self, topic: Topic) -> None:
        """Keep what waits until older entries have been sent again."""
        topic.parked = topic.away = True
        self.waiting.pop(topic, None)

    def unpark(self, topic: Topic) -> None:
        """What waits may be sent."""
        if topic.parked:
            topic.parked = False
            self._back(topic)

    def _back(self, topic: Topic) -> None:
        topic.away = bool(topic.blocked or topic.parked)
        if not topic.away and (topic.ids or topic.spilled):
            self.waiting[topic] = None
            self._bound(topic, 0)

    def entries(self) -> int:
        """Count all that waits, blocked topics and the spool included."""
        return sum(len(topic.ids) + topic.behind for topic in self.topics.values())

    # what the spool does (relay.spooled); without one there is nothing to do

    def flush(self) -> None:
        """Make sure of what was added: only then may it go to Redis."""

    def refill(self) -> bool:
        """Read back from the spool what there is room for; True: there is more to read."""
        return False

    def void(self) -> int:
        """Forget what earlier runs have left: another relay has written since. Give the number not known to be sent."""
        return 0

    def begin(self, topic: Topic) -> None:
        """A topic's `last` and `acked` are known now: what waits in the spool begins behind `acked`."""

    def advance(self, topic: Topic, last: str) -> bool:
        """Skip what waits in the spool up to an id that Redis has; False: that is none of ours."""
        return False

    def tighten(self, tight: bool) -> None:
        """Hold as little in memory as can be, or as much as is configured again."""
        self.tight = tight
        self.bytes_max = self._wide // TIGHT_SHARE if tight else self._wide
        self.limit = self.bytes_max + self.held
        self._relax()

    def first(self, topic: Topic) -> str | None:
        """Give the id of the first entry of this run that waits, where it may lie below what Redis has."""
        return topic.ids[0] if topic.ids else None

    def restamp(self, topic: Topic, change: Callable[[str, bytes], tuple[str, bytes]]) -> int:
        """Give all that waits other ids and bodies. Give their number."""
        changed = [change(entry_id, body) for entry_id, body in zip(topic.ids, topic.data, strict=True)]
        self.replace(topic, [entry_id for entry_id, _ in changed], [body for _, body in changed])
        return len(changed)

    def place(self, topics: Iterable[Topic], is_beyond: Callable[[Topic, str], bool] = never) -> Position | None:
        """Give the place in the spool from which topics can be healed behind their `last`; None: nothing is left.

        `is_beyond`: tells of a topic that has nothing that an entry, and what stands before it, need not be sent.
        """
        return None

    def history(self, position: Position, names: Collection[str]) -> tuple[list[Past], Position, bool]:
        """Read some of what topics were sent: oldest first, where to go on, whether that is the end."""
        return [], position, True

    @property
    def reason(self) -> GapReason:
        """Why the spool has a hole."""
        return "beyond_retention"

    def blocked(self) -> Iterator[Topic]:
        """Give the blocked topics."""
        return (topic for topic in self.topics.values() if topic.blocked)

    def _hold(self, size: int) -> None:
        self.held += size
        self.limit = self.bytes_max + self.held

    def _judge(self, topic: Topic) -> None:
        topic.full = topic.size >= self.topic_bytes_max or self.held >= self.bytes_max // BLOCKED_SHARE

    def _bound(self, topic: Topic, cost: int) -> None:
        """An entry reached a bound, or came for a blocked topic."""
        if topic.blocked:
            self._hold(cost)
            self._judge(topic)
        elif topic.size > topic.limit:
            self._over.add(topic)
            self.full = True
        if self.size > self.limit:
            self.full = True

    def _relax(self) -> None:
        """Look again whether a bound is still reached."""
        if self._over:
            self._over = {topic for topic in self._over if not topic.blocked and topic.size > topic.limit}
        self.full = bool(self._over) or self.size > self.limit
