"""The logic of `read`: follow topics by their streams, or by pub/sub with the streams to mend it; see every hole.

Each topic has a place: the last entry handed out, as (ms, seq) and the `run` it belongs to. Within a run the numbers
have no holes, so that what is missing is counted exactly. A new run begins at 1; whether the end of the old one was
trimmed away unread is asked of the stream: nothing behind an entry is ever trimmed while the entry itself is there.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import msgspec

from relay import codec
from relay.client.cursor import Cursor
from relay.client.items import Gap, Item, Refused
from relay.client.steps import (
    BLOCK_SECS,
    Call,
    Calls,
    Connect,
    Emit,
    Lost,
    Pause,
    Receive,
    Step,
    Steps,
    Subscribe,
    Topics,
    backoff,
    entries_of,
    order,
    rows_of,
)  # fmt: skip
from relay.model import Header, Message, Status

CHANNEL_FROM = 200
"""With more topics than this, `auto` listens to channels: an XREAD over 10,000 streams costs the server 4 to 6 ms."""
SWEEP_SECS = 2.0
"""While it listens to channels, a reader asks the streams this often for what was never published."""
ENTRIES_MAX = 5_000
"""Entries asked for at once, over all topics together."""
HEALTHY_SECS = 5.0
"""A connection that broke sooner did not do well: the next try waits longer."""
CHUNK = 500
"""Topics in one XREAD of a sweep, or commands sent together: short enough that the server serves others between."""


class Place:
    """Where a reader is in one topic. `open`: the first entry is taken as it comes, whatever its number."""

    __slots__ = ("ms", "open", "run", "seq")

    def __init__(self, id: str = "0-0", run: int = 0, open: bool = False) -> None:
        (self.ms, self.seq), self.run, self.open = order(id), run, open

    @property
    def id(self) -> str:
        """The last entry handed out."""
        return f"{self.ms}-{self.seq}"


def in_hand(topic: str, id: str, data: bytes) -> Item | Gap:
    """Read one entry: an item, the relay's own notice of a gap, or a gap where it cannot be read."""
    try:
        message = codec.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Gap(topic, "unreadable", id, missing=1, data=data)
    return _noticed(topic, id, message)


def _noticed(topic: str, id: str, message: Message) -> Item | Gap:
    # on a status topic it is the copy of a notice that stands elsewhere
    if message.__class__ is Status and message.event == "gap" and message.topic == topic:
        after = None if message.from_ns is None else f"{message.from_ns // 1_000_000}-0"
        return Gap(topic, message.reason or "gap", id, after, message.missing, message)
    return Item(topic, id, message)


class Reading:
    """One `read`. `since`: an entry id to start behind for topics without a cursor, None: what is new from now on.

    `sharded`: channels belong to slots, so that no pattern can be subscribed to.
    """

    def __init__(
        self, topics: Topics, cursor: Cursor, since: str | None, via: str, follow: bool, sharded: bool = False
    ) -> None:
        self._topics, self._cursor, self._since, self._follow = topics, cursor, since, follow
        self._via, self._sharded = via, sharded
        self._places: dict[str, Place] = {}
        self._begun_ms = 0
        self._out: list[tuple[Item | Gap, str, str, int]] = []  # taken and not yet handed out; the places are behind it

    def steps(self) -> Steps:
        """Everything, for ever (without `follow`: to the end of the streams)."""
        tries = 0
        while True:
            opened = time.monotonic()
            try:
                yield Connect()
                yield from self._find(opened)
                self._begun_ms = self._begun_ms or time.time_ns() // 1_000_000
                if not self._follow:
                    while (yield from self._sweep()):
                        pass
                    return
                if not self._by_channel():
                    yield from self._streams()
                yield from self._channels()
            except Lost as lost:
                yield from self._hand_out()  # the places are behind it already
                self._topics.forget()
                if time.monotonic() - opened > HEALTHY_SECS:
                    tries = 0
                yield Pause(backoff(tries), str(lost))
                tries += 1

    def _by_channel(self) -> bool:
        return self._via == "channel" or (self._via == "auto" and len(self._places) > CHANNEL_FROM)

    # which topics, and from where

    def _find(self, now: float) -> Generator[Step, Any, list[str]]:
        """Look for topics; give those that are new, with their places set."""
        found = yield from self._topics.find(now)
        names = [name for name in found if name not in self._places]
        places: dict[str, Place] = {}
        asked: list[str] = []
        for name in names:
            if name in self._cursor:
                places[name] = Place(self._cursor[name], self._cursor.run(name))
                if places[name].run == 0:
                    asked.append(name)  # the entry itself tells its run
            elif self._begun_ms:
                places[name] = Place()  # it has come while we read: from its beginning
            elif self._since is not None:
                places[name] = Place(self._since, open=True)
            else:
                asked.append(name)
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            replies = yield Calls(
                [
                    ("XRANGE", name, places[name].id, places[name].id)
                    if name in places
                    else ("XREVRANGE", name, "+", "-", "COUNT", 1)
                    for name in part
                ]
            )
            for name, reply in zip(part, replies, strict=True):
                if isinstance(reply, Lost) and self._begun_ms:
                    self._topics.forget()  # its node is away: it is found again
                    continue
                if isinstance(reply, Exception):
                    raise reply
                for id, data in rows_of(reply):
                    places[name] = Place(id, _run(data))
                if name not in places:
                    places[name] = Place(open=True)  # nothing there yet
        self._places.update(places)
        return [*places]

    # by stream

    def _streams(self) -> Steps:
        while not self._by_channel():
            yield from self._find(time.monotonic())
            if not self._places:
                yield Pause(BLOCK_SECS / 4, "")
                continue
            block = BLOCK_SECS / 2 if self._topics.globs else BLOCK_SECS
            yield from self._read([*self._places], block)

    def _read(self, names: list[str], block: float) -> Generator[Step, Any, bool]:
        """Read what is behind the places, waiting for up to `block`; False: nothing came."""
        count = max(10, ENTRIES_MAX // len(names))
        waiting = ("BLOCK", int(block * 1000)) if block else ()
        ids = [self._places[name].id for name in names]
        reply = yield Call(("XREAD", "COUNT", count, *waiting, "STREAMS", *names, *ids), block)
        for topic, rows in entries_of(reply):
            yield from self._take(topic, rows)
            yield from self._hand_out()
        return bool(reply)

    def _hand_out(self) -> Steps:
        out, self._out = self._out, []
        if out:
            yield Emit(out)

    def _sweep(self) -> Generator[Step, Any, bool]:
        """Read everything that is there now, once around; True: there may be more."""
        more, names = False, [*self._places]
        for start in range(0, len(names), CHUNK):
            more |= yield from self._read(names[start : start + CHUNK], 0)
        return more

    def _take(self, topic: str, rows: list[tuple[str, bytes | None]]) -> Steps:
        """Take entries that follow a topic's place in its stream."""
        place = self._places[topic]
        for id, data in rows:
            ms, seq = order(id)
            thing = in_hand(topic, id, data or b"")
            message: Header | None = thing.message
            run = place.run if message is None else message.run
            if seq != place.seq + 1 or run != place.run:
                missed = yield from self._missed(topic, place, id, run)
                if missed is not None:
                    # the place just before this entry: who goes on from here is not told again
                    self._out.append((missed, topic, f"{ms}-{max(seq - 1, 0)}", run))
            place.ms, place.seq, place.run, place.open = ms, seq, run, False
            self._out.append((thing, topic, id, run))

    def _missed(self, topic: str, place: Place, id: str, run: int) -> Generator[Step, Any, Gap | None]:
        """Find out what is missing between a place and the entry behind it."""
        ms, seq = order(id)
        before = place.seq
        if place.open:
            return None
        if not place.ms:  # a new topic begins at 1; what a run wrote before we came is not missing
            return None if seq == 1 or run < self._begun_ms else Gap(topic, "hole", id, None, seq - 1)
        if place.run == run or (place.run == 0 and run <= place.ms):
            # the same run, or a run that had begun when the entry at the place was written
            if seq <= before + 1:
                return None
            there = yield from self._there(topic, place)
            return Gap(topic, "hole" if there else "trimmed", id, place.id, seq - before - 1)
        if (yield from self._there(topic, place)):  # so nothing behind it was trimmed
            return None if seq == 1 else Gap(topic, "hole", id, place.id, seq - 1)
        return Gap(topic, "trimmed", id, place.id)

    def _there(self, topic: str, place: Place) -> Generator[Step, Any, bool]:
        return bool((yield Call(("XRANGE", topic, place.id, place.id))))

    # by channel

    def _channels(self) -> Steps:
        topics = self._topics
        by_name = self._sharded or not topics.globs
        if not by_name:
            try:
                yield Subscribe(topics.names, topics.redis_globs)
            except Refused as refused:
                if "NOPERM" not in str(refused):
                    raise
                by_name = True  # an ACL allows PSUBSCRIBE only with the very patterns it names
        if by_name:
            yield Subscribe(tuple(self._places), ())
        sweep_at = 0.0
        while True:
            now = time.monotonic()
            if now >= sweep_at:
                fresh = yield from self._find(now)
                if by_name and fresh:
                    yield Subscribe(tuple(fresh), ())
                more = yield from self._sweep()
                sweep_at = 0.0 if more else now + SWEEP_SECS
                continue
            for topic, data in (yield Receive(sweep_at - now)):
                place = self._places.get(topic)
                if place is None:
                    if not topics.match(topic):
                        continue
                    place = self._places[topic] = Place()
                yield from self._pushed(topic, place, data)
            yield from self._hand_out()

    def _pushed(self, topic: str, place: Place, data: bytes) -> Steps:
        """Take one published message; what is missing before it comes from the stream."""
        try:
            message = codec.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = None
        if message is not None:
            ms, seq, run = message.ts_recv // 1_000_000, message.seq, message.run
            if (ms, seq) <= (place.ms, place.seq):
                return  # had by stream
            if (run == place.run and seq == place.seq + 1) or place.open:
                id = f"{ms}-{seq}"
                place.ms, place.seq, place.run, place.open = ms, seq, run, False
                self._out.append((_noticed(topic, id, message), topic, id, run))
                return
        while True:
            reply = yield Call(("XRANGE", topic, f"({place.id}", "+", "COUNT", ENTRIES_MAX))
            rows = rows_of(reply)
            yield from self._take(topic, rows)
            yield from self._hand_out()
            if len(rows) < ENTRIES_MAX:
                break
        if message is not None and (ms, seq) > (place.ms, place.seq):
            # published, and no longer in the stream
            yield from self._take(topic, [(f"{ms}-{seq}", data)])


def _run(data: bytes | None) -> int:
    """The `run` of an entry; 0 where it cannot be read."""
    try:
        return codec.decode(data or b"").run
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
