"""An outbox whose entries are in the spool too: what memory has no room for is read back from there. Pure.

Each topic's memory holds its oldest waiting entries; once more is `spilled`, everything new goes to the spool alone
until all of it has been read back. So memory is bounded whatever Redis does, and order is kept.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Protocol

from relay.holes import follows, gap, unbroken
from relay.model import GapReason, Status
from relay.outbox import ENTRY_COST, NOTHING, Outbox, Past, Position, Topic, never, order

LOW_BYTES = 64 * 1024
"""A topic with less than this in memory is read back from the spool, up to four times as much."""


class Store(Protocol):
    """What the outbox needs of the spool."""

    ok: bool
    full: bool
    damaged: int

    @property
    def resting(self) -> bool: ...

    def write(self, topics: Sequence[Topic], counts: list[int], ids: list[str], bodies: list[bytes]) -> bool: ...
    def make_room(self) -> bool: ...
    def end(self) -> Position: ...
    def find(self, name: str, after: str, is_beyond: Callable[[str], bool] | None = None) -> Position | None: ...
    def clear(self) -> None: ...
    def count(self, name: str, position: Position) -> int: ...
    def read(self, position: Position, names: Collection[str]) -> tuple[list[Past], Position, bool]: ...


class SpooledOutbox(Outbox):
    """An Outbox with a spool behind it. `hole(topic, status)`: called with each gap event that it had to put in.

    What the spool does not have yet: the newest `Topic.fresh` entries in memory, and `late`: what came for topics that
    are spilled. A batch is written topic by topic: order counts within a topic alone.
    """

    __slots__ = ("_stirred", "hole", "late", "run", "spilled", "spool")

    def __init__(self, bytes_max: int, topic_bytes_max: int, spool: Store, run: int) -> None:
        super().__init__(bytes_max, topic_bytes_max)
        self.spool, self.run = spool, run
        self.spilled: dict[Topic, None] = {}
        self.late: list[tuple[Topic, str, bytes]] = []
        self._stirred: list[Topic] = []  # those with fresh entries
        self.hole: Callable[[Topic, Status], None] = lambda topic, status: None

    def recover(self, topic: Topic, last: str, acked: str, before: bytes | None) -> None:
        """An earlier run has left entries of this topic, up to `last`; `acked`: the newest that Redis had confirmed."""
        topic.last_id, topic.before = last, before
        topic.acked = acked
        topic.spilled = True
        self.spilled[topic] = None
        self.waiting[topic] = None

    def forget(self, topic: Topic) -> None:
        """See Outbox."""
        super().forget(topic)
        self.spilled.pop(topic, None)
        self._pop_late(topic)
        if topic.fresh:
            self._stirred.remove(topic)
            topic.fresh = 0

    def void(self) -> int:
        """See Outbox."""
        topics = {topic.name: topic for topic in self.spilled if not topic.seq}
        position, ended, left = self.place(topics.values()), False, 0
        while position is not None and not ended:
            found, position, ended = self.spool.read(position, topics)
            left += sum(len(past.above(topics[past.name].acked or NOTHING)[0]) for past in found)
        for topic in topics.values():
            topic.spilled, topic.cursor, topic.behind, topic.acked = False, None, 0, topic.last
            topic.last_id = topic.before = None
            del self.spilled[topic]
            self._pop_late(topic)
            self.waiting.pop(topic, None)
        self.spool.clear()
        return left

    def add(self, topic: Topic, entry_id: str, body: bytes) -> None:
        """See Outbox: to the spool as well, or alone."""
        if topic.spilled:
            self.late.append((topic, entry_id, body))
            topic.behind += 1
            if self._stuck():
                self.full = True  # neither the disk nor memory takes more
            return
        ids = topic.ids
        if not ids and not topic.away:
            self.waiting[topic] = None
        if not topic.fresh:
            self._stirred.append(topic)
        topic.fresh += 1
        ids.append(entry_id)
        topic.data.append(body)
        cost = len(body) + ENTRY_COST
        topic.size = size = topic.size + cost
        self.size = total = self.size + cost
        if size > topic.limit or total > self.limit:
            self._bound(topic, cost)

    def _stuck(self) -> bool:
        return not self.spool.ok and len(self.late) * ENTRY_COST * 4 > self.bytes_max

    def _bound(self, topic: Topic, cost: int) -> None:
        if not self.spool.ok:
            super()._bound(topic, cost)
            return
        if topic.blocked:
            self._hold(cost)
        if not topic.spilled and topic.ids and (topic.size > self.topic_bytes_max or self.size > self.limit):
            self._spill(topic, topic.ids[-1])

    def _spill(self, topic: Topic, after: str) -> None:
        """From here on new entries of a topic go to the spool alone."""
        topic.spilled = True
        topic.behind = 0
        topic.after, topic.tail = after, None
        topic.cursor = None  # found when it is needed
        self.spilled[topic] = None

    def unload(self, topic: Topic) -> bool:
        """Let the spool alone keep what waits of a topic; nothing of it may be in flight."""
        if not topic.last or not topic.ids or topic in self.busy or not self._write():
            return False
        behind = topic.behind + len(topic.ids)
        before = topic.acked
        self.replace(topic, [], [])
        self._spill(topic, before)
        topic.behind = behind
        return True

    def block(self, topic: Topic, reason: str) -> None:
        """See Outbox: in the spool it costs no memory."""
        super().block(topic, reason)
        if self.spool.ok and self.unload(topic):
            self._judge(topic)
            self._relax()

    def _judge(self, topic: Topic) -> None:
        topic.full = not self.spool.ok and (topic.size >= self.topic_bytes_max or self.held >= self.bytes_max // 4)

    def _relax(self) -> None:
        super()._relax()
        if self.spool.full and not self.spool.make_room():
            self.full = True
        if self._stuck():
            self.full = True

    def flush(self) -> None:
        """Write what was added; what Redis has meanwhile need not wait for a disk that takes nothing."""
        if (self._stirred or self.late) and not self._write():
            self.late = [late for late in self.late if not late[0].acked or order(late[1]) > order(late[0].acked)]
        if self.spool.full or self.full:
            self._relax()

    def _write(self) -> bool:
        """Write what the spool does not have; False: the disk does not take it, and it stays as it was. HOT."""
        if self.spool.resting:
            return False
        topics = self._stirred
        counts: list[int] = []
        ids: list[str] = []
        bodies: list[bytes] = []
        for topic in topics:
            if topic.fresh < len(topic.ids):
                counts.append(topic.fresh)
                ids += topic.ids[-topic.fresh :]
                bodies += topic.data[-topic.fresh :]
            else:
                counts.append(len(topic.ids))
                ids += topic.ids
                bodies += topic.data
        if self.late or 0 in counts:
            topics, counts, ids, bodies = self._with_late(topics, counts, ids, bodies)
        if topics and not self.spool.write(topics, counts, ids, bodies):
            return False
        for topic in self._stirred:
            topic.fresh = 0
        self._stirred.clear()
        self.late.clear()
        return True

    def _with_late(
        self, topics: list[Topic], counts: list[int], ids: list[str], bodies: list[bytes]
    ) -> tuple[list[Topic], list[int], list[str], list[bytes]]:
        """Put what came for spilled topics behind what they have in memory; leave out who has nothing."""
        names = [topic for topic, count in zip(topics, counts, strict=True) for _ in range(count)]
        joined: dict[Topic, list[tuple[str, bytes]]] = {}
        for topic, entry_id, body in [*zip(names, ids, bodies, strict=True), *self.late]:
            joined.setdefault(topic, []).append((entry_id, body))
        entries = list(chain.from_iterable(joined.values()))
        counts = [len(group) for group in joined.values()]
        return list(joined), counts, [entry_id for entry_id, _ in entries], [body for _, body in entries]

    def begin(self, topic: Topic) -> None:
        """See Outbox."""
        if topic.spilled and topic.cursor is None and not topic.ids:
            topic.after = topic.acked
            position = self.spool.find(topic.name, topic.after)
            if position is not None:
                late = sum(1 for one, _, _ in self.late if one is topic)
                topic.behind = max(topic.behind, self.spool.count(topic.name, position) + late)
                topic.cursor = position

    def refill(self) -> bool:
        """See Outbox: one piece of the spool, for all topics that it can serve."""
        if self.tight and self.size > self.limit:  # memory has become short, and nothing is in flight here
            for topic in [topic for topic in self.waiting if topic.size > LOW_BYTES]:
                self.unload(topic)
        spilled = self.spilled
        if not spilled:
            return False
        needy = [t for t in spilled if t.last and not t.away and t.size < LOW_BYTES]
        if not needy:
            return False
        self.flush()
        for topic in needy:
            if topic.cursor is None:
                topic.cursor = self.spool.find(topic.name, topic.after)
                if topic.cursor is None:
                    self._caught_up(topic)
        needy = [t for t in needy if t.spilled]
        if not needy:
            return bool(spilled)
        start = min(t.cursor for t in needy if t.cursor is not None)
        served = {
            t.name: t
            for t in spilled
            if t.cursor is not None and t.cursor >= start and t.last and not t.away and t.size < 4 * LOW_BYTES
        }
        found, position, ended = self.spool.read(start, served)
        for past in found:
            topic = served.get(past.name)  # type: ignore[assignment]
            if topic is None or (topic.cursor is not None and topic.cursor >= past.after):
                continue
            if topic.size >= 4 * LOW_BYTES:
                del served[past.name]  # it goes on where it stands
                continue
            topic.cursor = past.after
            topic.behind = max(0, topic.behind - len(past.ids))
            ids, bodies = past.above(topic.after)
            if ids and follows(topic.after, ids[0]) and unbroken(ids):
                self._append(topic, ids, bodies)
                topic.after, topic.tail = ids[-1], bodies[-1]
            else:
                for entry_id, body in zip(ids, bodies, strict=True):
                    self._take(topic, entry_id, body)
        for topic in served.values():
            if topic.cursor is not None and topic.cursor < position:
                topic.cursor = position
            if ended:
                self._caught_up(topic)
        return True

    def advance(self, topic: Topic, last: str) -> bool:
        """See Outbox."""
        if not topic.spilled:
            return False
        for entry_id, body in self._of_this_run(topic, topic.acked or NOTHING, last):
            if entry_id == last:
                topic.after, topic.tail, topic.cursor = last, body, None
                return True
        return False

    def _take(self, topic: Topic, entry_id: str, body: bytes) -> None:
        """Put an entry that was read back behind those in memory, and before it what is known to be missing."""
        if not follows(topic.after, entry_id):
            reason = "overflow" if topic.blocked else self.reason
            made_id, made, status = gap(topic, topic.after, topic.tail, entry_id, body, reason, self.run)
            if order(made_id) > order(topic.after):
                self._append(topic, [made_id], [made])
                self.hole(topic, status)
        self._append(topic, [entry_id], [body])
        topic.after, topic.tail = entry_id, body

    def _append(self, topic: Topic, ids: list[str], bodies: list[bytes]) -> None:
        topic.ids += ids
        topic.data += bodies
        cost = sum(map(len, bodies)) + len(bodies) * ENTRY_COST
        topic.size += cost
        self.size += cost

    def _caught_up(self, topic: Topic) -> None:
        """All of a topic is in memory again, but for what a full disk did not take."""
        before = len(topic.ids)
        for entry_id, body in self._pop_late(topic):
            if order(entry_id) > order(topic.after):
                self._take(topic, entry_id, body)
        if len(topic.ids) > before:
            if not topic.fresh:
                self._stirred.append(topic)
            topic.fresh += len(topic.ids) - before
        topic.spilled = False
        topic.behind = 0
        topic.cursor, topic.tail = None, None
        self.spilled.pop(topic, None)
        if not topic.ids:
            self.waiting.pop(topic, None)
        elif not topic.away:
            self.waiting[topic] = None

    def _pop_late(self, topic: Topic) -> list[tuple[str, bytes]]:
        """Take out what came for a spilled topic and is not in the spool."""
        late = [(entry_id, body) for one, entry_id, body in self.late if one is topic]
        if late:
            self.late = [one for one in self.late if one[0] is not topic]
        return late

    # healing

    def place(self, topics: Iterable[Topic], is_beyond: Callable[[Topic, str], bool] = never) -> Position | None:
        """See Outbox."""
        self.flush()
        places = [
            self.spool.find(
                topic.name,
                topic.last or topic.acked or NOTHING,
                partial(is_beyond, topic) if topic.last == NOTHING else None,
            )
            for topic in topics
        ]
        return min((place for place in places if place is not None), default=None)

    def history(self, position: Position, names: Collection[str]) -> tuple[list[Past], Position, bool]:
        """See Outbox."""
        return self.spool.read(position, names)

    @property
    def reason(self) -> GapReason:
        """See Outbox."""
        return "spool_corrupt" if self.spool.damaged else "beyond_retention"

    # an earlier run was ahead of the clock

    def first(self, topic: Topic) -> str | None:
        """See Outbox."""
        if topic.ids or not topic.spilled or not topic.seq:
            return topic.ids[0] if topic.ids else None
        found = self._of_this_run(topic, topic.last_id or NOTHING)
        return found[0][0] if found else None

    def restamp(self, topic: Topic, change: Callable[[str, bytes], tuple[str, bytes]]) -> int:
        """See Outbox: with their new ids they go into the spool once more; the old ones lie below what Redis has."""
        self.flush()
        if topic.ids:
            entries = list(zip(topic.ids, topic.data, strict=True))
            after = topic.ids[-1] if topic.spilled else None
        else:
            entries, after = [], topic.last_id or NOTHING
        if topic.spilled and after is not None:
            entries += self._of_this_run(topic, after)
        entries += self._pop_late(topic)
        self.replace(topic, [], [])
        if topic.fresh:
            self._stirred.remove(topic)
            topic.fresh = 0
        topic.spilled, topic.cursor, topic.behind = False, None, 0
        self.spilled.pop(topic, None)
        for entry_id, body in entries:
            self.add(topic, *change(entry_id, body))
        self.flush()
        return len(entries)

    def _of_this_run(self, topic: Topic, after: str, until: str = "") -> list[tuple[str, bytes]]:
        """All entries of a topic above an id (and about up to another), from the spool."""
        self.flush()
        entries: list[tuple[str, bytes]] = []
        position = self.spool.find(topic.name, after)
        ended = position is None
        while not ended and position is not None:
            found, position, ended = self.spool.read(position, (topic.name,))
            for past in found:
                entries += zip(*past.above(after), strict=True)
            if until and entries and order(entries[-1][0]) >= order(until):
                break
        return entries
