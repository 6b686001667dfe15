"""What Redis has of each topic: fences them, drops what arrived, starts what must be healed, stops what is not ours."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from relay import codec
from relay.outbox import ENTRY_COST, Outbox, Topic, order
from relay.sink.claim import Claim, Note
from relay.sink.heal import Healer
from relay.sink.pace import Pace
from relay.sink.reactions import Again, reaction

PROBE_SECS = 5.0
"""Blocked topics are tried again this often: the operator may have mended the cause."""


class Ledger:
    """Squares the topics with what Redis says of them. `empty` and `room`: called when those change."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        claim: Claim,
        healer: Healer,
        pace: Pace,
        takeover: bool,
        is_sibling: Callable[[str], bool],
        raise_floor: Callable[[int], None],
        on_event: Callable[[str, dict[str, Any]], None],
        empty: Callable[[], None],
        room: Callable[[], None],
        ask: Callable[..., Awaitable[list[Note]]] | None = None,
    ) -> None:
        """`ask(names, *may)`: fences, `Claim.fence` by default; LATER where there is no word of a topic yet."""
        self.outbox, self.claim, self.healer, self._pace, self.stats = outbox, claim, healer, pace, pace.stats
        self._takeover, self._raise_floor, self.event = takeover, raise_floor, on_event
        self._is_sibling = is_sibling
        self._empty, self._room = empty, room
        self._ask = ask or claim.fence
        self._lost: list[str] = []  # what there is to tell once all topics have been looked at
        self._confirmed = 0
        self.probe_at = 0.0

    async def fence(self, topics: list[Topic], *may: str) -> None:
        """Fence topics and square what waits in them with what Redis says it has."""
        if not topics:
            return
        owned: dict[str, list[Topic]] = {}
        for topic, note in zip(topics, await self._ask([topic.name for topic in topics], *may), strict=True):
            if note.kind == "OK":
                self._welcome(topic, note)
            elif note.kind == "OWNED":
                owned.setdefault(note.last, []).append(topic)
            elif note.kind == "FENCED" and topic.last:
                raise self.claim.fenced(f"epoch {note.last} is newer than ours, {self.claim.epoch}")
            elif note.kind == "FENCED":
                # not ours in this run, but the name is: keys of an earlier run survived a loss of the epoch; go above
                await self.claim.renew()
                self.claim.epoch = int(note.last) + 1
                raise Again("fence", "a topic has a newer epoch", note.last)
            elif note.kind != "LATER":
                self.block(topic, note.last)
        for owner, theirs in owned.items():
            lives = await self.claim.lives(owner)
            if (self._takeover or self._is_sibling(owner)) and not lives and owner not in may:
                names = [topic.name for topic in theirs[:10]]
                self.event("topics_taken", {"owner": owner, "topics": len(theirs), "names": names})
                await self.fence(theirs, owner)
                continue
            cure = (
                "it runs; stop it, or give one of the two another prefix or template"
                if lives
                else "it does not run; start this one with --takeover to take its topics over"
            )
            for topic in theirs:
                self.block(topic, f"OWNED {owner}", f"the topic belongs to the relay {owner!r}: {cure}")
        await self.claim.register([topic for topic in topics if topic.last and not topic.blocked])
        self.tell()

    def _welcome(self, topic: Topic, note: Note) -> None:
        """A topic is ours: go on behind what Redis has of it."""
        if topic.blocked and topic.blocked != "foreign":
            self.outbox.unblock(topic)
            self.event("topic_unblocked", {"topic": topic.name, "waiting": len(topic.ids)})
        if topic.last:
            self.settle(topic, note.last)
        else:
            self._begin(topic, note.last, note.top)

    # what Redis has

    def _begin(self, topic: Topic, last: str, top: str) -> None:
        """A topic's first fence: what waits must lie behind what the stream holds."""
        if order(top) > order(last):
            self.event("foreign_entries", {"topic": topic.name, "last": last, "top": top})
        topic.last = last
        newest = max(order(top), order(last))
        if topic.acked and order(topic.acked) > order(last):
            self._rewind(topic, last)
        else:
            topic.acked = last
        first = self.outbox.first(topic)
        if first is not None and order(first) <= newest:
            self._restamp(topic, newest[0] + 1)
        elif newest[0]:
            self._raise_floor(newest[0] + 1)
        self.outbox.begin(topic)

    def _restamp(self, topic: Topic, floor: int) -> None:
        """The clock went back since the last run: give what waits a later time, in the id and in the message."""
        self._raise_floor(floor)

        def change(entry_id: str, body: bytes) -> tuple[str, bytes]:
            ms, seq = order(entry_id)
            if ms >= floor:
                return entry_id, body
            message = codec.decode(body)
            message.ts_recv = floor * 1_000_000
            return f"{floor}-{seq}", codec.encode(message)

        count = self.outbox.restamp(topic, change)
        self.stats.restamped += count
        self.event("restamped", {"topic": topic.name, "entries": count, "floor": floor})

    def settle(self, topic: Topic, last: str) -> None:
        """Redis names a topic's last entry: drop what arrived, send again what was lost, go on from there."""
        if last == topic.acked:
            topic.last = last
            if topic.parked:
                self.healer.finish(topic)
        elif order(last) < order(topic.acked):
            self._rewind(topic, last)
        elif topic.parked:  # one more failover, to a server that lacks nothing of what was being sent again
            self.healer.finish(topic)
            self.settle(topic, last)
        elif last in topic.ids:
            count = topic.ids.index(last) + 1
            self.done(topic, count, last)
            self.stats.confirmed += count
            self._confirmed += count
        elif not topic.ids and self.outbox.advance(topic, last):
            topic.last = topic.acked = last  # it arrived, and had left memory meanwhile
        else:
            self.block(topic, "foreign", f"somebody else moved its last entry to {last}")

    def _rewind(self, topic: Topic, last: str) -> None:
        """Redis has less of a topic than it had confirmed."""
        if not topic.parked:
            self.stats.lost += 1
            self._lost.append(topic.name)
        self.healer.start(topic, last)

    def block(self, topic: Topic, reply: str, text: str = "") -> None:
        """Stop one topic, loudly; the others go on."""
        if topic.parked:
            self.healer.drop(topic)
        if not topic.blocked:
            what, told = ("foreign", text) if reply == "foreign" else reaction(reply)
            self.outbox.block(topic, "foreign" if what == "foreign" else reply)
            self._pace.failed("foreign" if what == "foreign" else "block")
            self.probe_at = time.monotonic() + PROBE_SECS
            kind = "owned" if reply.startswith("OWNED ") else "topic_blocked"
            self.event(kind, {"topic": topic.name, "reason": reply, "text": text or told})
            self._empty()
            if not self.outbox.full:
                self._room()

    def done(self, topic: Topic, count: int, last: str) -> None:
        """Redis has the oldest `count` entries of a topic."""
        outbox, stats = self.outbox, self.stats
        was_full = outbox.full
        stats.entries += count
        stats.bytes += outbox.done(topic, count) - count * ENTRY_COST
        topic.last = topic.acked = last
        if not outbox.waiting:
            self._empty()
        if was_full and not outbox.full:
            self._room()

    def tell(self) -> None:
        """Say together what was found topic by topic."""
        lost, self._lost = self._lost, []
        confirmed, self._confirmed = self._confirmed, 0
        if lost:
            self.event("redis_lost", {"topics": len(lost), "names": lost[:10]})
        if confirmed:
            self.event("confirmed", {"entries": confirmed})
