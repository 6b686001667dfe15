"""Sends again, with their old ids and without PUBLISH, what Redis had confirmed and has lost.

While a topic is healed it is parked: what is new waits. One reading of the spool serves all topics. What the spool does
not hold any more becomes a gap event in its place, so that a stream never has a silent hole.
"""

from collections.abc import Callable
from typing import Any

from relay.holes import follows, gap, unbroken
from relay.model import Status
from relay.outbox import NOTHING, Outbox, Past, Position, Topic, order
from relay.sink.link import Link

TAILS = 200
"""Newest entries asked for together."""
Piece = tuple[Topic, list[str], list[bytes]]
"""A topic with ids and bodies to append."""


class Healer:
    """`start` topics, then `step` and `sent` until `topics` is empty. All state but this is in the topics.

    `length_max`: of a stream that is empty no more than these newest entries are sent: the rest would be trimmed.
    """

    def __init__(
        self, link: Link, outbox: Outbox, run: int, hole: Callable[[Topic, Status], None], length_max: int
    ) -> None:
        self._length_max = length_max
        self._link, self._outbox, self.run, self._hole = link, outbox, run, hole
        self.topics: dict[Topic, str] = {}
        """Topics that are healed, with the id up to which they were read."""
        self._tails: dict[Topic, bytes | None] = {}
        self._position: Position | None = None
        self._whole: set[Topic] = set()
        self._holes: list[tuple[Topic, Status]] = []
        self.resent = self.healed = 0

    def start(self, topic: Topic, last: str) -> None:
        """Redis has a topic up to `last`, below what it had confirmed."""
        topic.last = last
        self._outbox.park(topic)
        self.topics[topic] = last
        self._tails.pop(topic, None)
        self._whole.discard(topic)
        self._position = None

    def again(self, pieces: list[Piece]) -> None:
        """Redis has taken nothing of these: read them again."""
        for topic, _, _ in pieces:
            self.start(topic, topic.last)

    def finish(self, topic: Topic) -> None:
        """Redis has all of a topic again."""
        topic.last = topic.acked
        if self.topics.pop(topic, None) is not None:
            self.healed += 1
        self._tails.pop(topic, None)
        self._whole.discard(topic)
        self._outbox.unpark(topic)

    def drop(self, topic: Topic) -> None:
        """Heal a topic no further: Redis refuses it. It is started again when Redis takes it."""
        self.topics.pop(topic, None)
        self._outbox.unpark(topic)

    def leave(self, topic: Topic) -> None:
        """Somebody else goes on with a topic, which stays parked."""
        self.topics.pop(topic, None)
        self._tails.pop(topic, None)
        self._whole.discard(topic)

    async def step(self) -> list[Piece]:
        """Read the next piece: topics with the ids and bodies to append, none twice. It may be empty."""
        await self._ask_tails()
        outbox = self._outbox
        if self._position is None:
            self._position = outbox.place(self.topics, self._is_beyond)
        names = {topic.name: topic for topic in self.topics if topic not in self._whole}
        batch: dict[Topic, tuple[list[str], list[bytes]]] = {topic: ([], []) for topic in names.values()}
        ended = True
        self._holes = []
        if self._position is not None:
            found, self._position, ended = outbox.history(self._position, names)
            for past in found:
                topic = names[past.name]
                if topic not in self._whole and order(past.ids[-1]) > order(self.topics[topic]):
                    self._read(topic, past, *batch[topic])
        if ended:
            for topic in names.values():
                if topic not in self._whole:
                    self._end(topic, *batch[topic])
        return [(topic, ids, data) for topic, (ids, data) in batch.items() if ids]

    def _read(self, topic: Topic, past: Past, ids: list[str], data: list[bytes]) -> None:
        """Choose of what one write has put into the spool what a topic lacks: at once where all of it goes one way."""
        acked = order(topic.acked)
        found, bodies = past.above(self.topics[topic])
        begun = topic.last != NOTHING or bool(ids)
        since = past.since if found and found[0] == past.ids[0] else ""
        if begun:
            together = self._is_next(topic, found[0], since) and unbroken(found) and order(found[-1]) <= acked
        else:
            together = self._is_beyond(topic, found[-1])
        size = len(found) if together else 1
        for at in range(0, len(found), size):
            self._choose(topic, found[at : at + size], bodies[at : at + size], ids, data, "" if at else since)
            if topic in self._whole:
                return

    def _choose(
        self, topic: Topic, some: list[str], bodies: list[bytes], ids: list[str], data: list[bytes], since: str
    ) -> None:
        """Take entries that go one way: left out, or sent, behind a gap where something is missing before them."""
        acked = order(topic.acked)
        if topic.last != NOTHING or ids or not self._is_beyond(topic, some[-1]):
            if not self._is_next(topic, some[0], since):
                self._gap(topic, ids, data, some[0], bodies[0], since)
            if order(some[-1]) >= acked:
                self._whole.add(topic)
            if order(some[-1]) > acked:
                return
            ids += some
            data += bodies
        self.topics[topic], self._tails[topic] = some[-1], bodies[-1]

    def sent(self, topic: Topic, ids: list[str], data: list[bytes]) -> int:
        """Redis has a piece. Give its bytes."""
        topic.last = ids[-1]
        self.resent += len(ids)
        for one, status in self._holes:
            if one is topic:
                self._hole(topic, status)
        return sum(map(len, data))

    def settle(self) -> None:
        """Finish the topics whose last piece Redis has."""
        for topic in list(self._whole):
            if topic.last == topic.acked:
                self.finish(topic)

    def _is_next(self, topic: Topic, entry_id: str, since: str) -> bool:
        """Tell whether an entry follows what was read before: behind what an earlier run had written, too, which may
        have been another node's, or another shard's, and so was never in our spool."""
        before = self.topics[topic]
        if any(order(before) < order(one) < order(entry_id) for one in (topic.last_id, since) if one):
            return False
        return follows(before, entry_id)

    def _gap(
        self, topic: Topic, ids: list[str], data: list[bytes], entry_id: str, body: bytes | None, since: str = ""
    ) -> None:
        before, tail = self.topics[topic], self._tails.get(topic)
        then: bytes | None = None
        since = since or topic.last_id or ""
        if body is not None and since and order(since) < order(entry_id) and order(entry_id)[1] == 1:
            # our run lacks nothing: the gap is the last of the other's
            entry_id, body, then = since, None, body
        made_id, made, status = gap(topic, before, tail, entry_id, body, self._outbox.reason, self.run, then)
        if order(made_id) <= order(before):
            return
        ids.append(made_id)
        data.append(made)
        self.topics[topic] = made_id
        self._tails[topic] = made
        self._holes.append((topic, status))
        if order(made_id) > order(topic.acked):
            topic.acked = made_id

    def _end(self, topic: Topic, ids: list[str], data: list[bytes]) -> None:
        """The spool has nothing more of a topic, and Redis had confirmed more."""
        if order(self.topics[topic]) < order(topic.acked):
            if topic.ids and order(topic.ids[0])[1] > 1:
                self._gap(topic, ids, data, topic.ids[0], topic.data[0])
            else:
                self._gap(topic, ids, data, topic.acked, None)
        topic.acked = self.topics[topic]
        self._whole.add(topic)
        if not ids:
            topic.last = topic.acked

    def _is_beyond(self, topic: Topic, entry_id: str) -> bool:
        """Tell whether an entry is further from the newest than a stream is long: numbers begin anew in each run, so
        that too few are left out where the newest run is shorter than that, and none once one has been sent."""
        return order(entry_id)[1] <= order(topic.acked)[1] - self._length_max

    async def _ask_tails(self) -> None:
        """Read the newest entry of topics: its number begins the gap, if there is one."""
        topics = [topic for topic in self.topics if topic not in self._tails]
        for begin in range(0, len(topics), TAILS):
            part = topics[begin : begin + TAILS]
            replies = await self._link.calls([("XREVRANGE", topic.name, "+", "-", "COUNT", 1) for topic in part])
            for topic, reply in zip(part, replies, strict=True):
                self._tails[topic] = tail(reply, topic.last)


def tail(reply: Any, last: str) -> bytes | None:
    """Read the body of the newest entry of a stream; None where it is not the one that is meant."""
    if not isinstance(reply, list) or not reply or last == NOTHING:
        return None
    entry_id, fields = reply[0]
    return fields[1] if entry_id.decode() == last and fields[0] == b"data" else None
