"""The one writer: leases the relay's name, fences its topics, appends what waits; an error is never a delivery.

One task, one connection, one call in flight; all state changes happen between two calls. After anything unclear (a cut,
a time-out, half a reply) it connects again and asks Redis for the last id of every topic: that alone decides what has
arrived. Must never drop an entry, send one twice or stop for a topic that alone is refused.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import anyio

from relay import codec
from relay.config.structs import RedisConfig
from relay.outbox import ENTRY_COST, Outbox, Topic
from relay.sink.claim import Claim, Note, order
from relay.sink.link import CALL_SECS, Link, LinkLost, ReplyError, Server
from relay.sink.pace import Pace, SinkStats
from relay.sink.reactions import Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.trim import Keeper

RIGHTS_SECS = 5.0
"""Least pause after a refused login: somebody has to change something first."""
STOP_SECS = 2.0
"""A stop waits this long for the call in flight."""
PROBE_SECS = 5.0
"""Blocked topics are tried again this often: the operator may have mended the cause."""


class _Again(Exception):
    """The call cannot be made now; carries the reaction and the reply."""

    def __init__(self, what: str, text: str, reply: str) -> None:
        super().__init__(f"{text}: {reply}")
        self.what, self.text, self.reply = what, text, reply


class Sink:
    """Write an outbox to Redis. `run` in one task; the other methods from any task of the same loop.

    `relay`: the name that owns topics. `prefix`: before the relay's own keys (`relay:epoch` ...), the same that the
    topics carry. `run`: ms of this start. `raise_floor`: called with a ms below which no new entry may be stamped.
    `on_event(kind, fields)`: connected, lost, holding (Redis is up and takes nothing), recovered, lease_refused,
    fenced, stopped; of topics owned, topic_blocked, topic_unblocked, topics_taken, foreign_entries, restamped,
    stream_gone, unpublished; of entries confirmed (the reply was lost), redis_lost, oom_trimmed, streams_trimmed.
    """

    def __init__(
        self,
        *,
        url: str,
        settings: RedisConfig,
        outbox: Outbox,
        relay: str,
        prefix: str,
        run: int,
        raise_floor: Callable[[int], None],
        on_event: Callable[[str, dict[str, Any]], None],
        takeover: bool = False,
        call_secs: float = CALL_SECS,
    ) -> None:
        self.outbox = outbox
        self.server = Server(
            url,
            settings.username,
            settings.password,
            settings.ca_file,
            settings.cert_file,
            settings.key_file,
            call_secs,
        )
        self._raise_floor, self._event = raise_floor, on_event
        self._takeover = takeover
        retention_ms = int(settings.retention_secs * 1000)
        self._options = (settings.stream_length_max, retention_ms, int(settings.pubsub))
        self.ready = anyio.Event()
        self.answered: Callable[[list[tuple[Topic, int]]], None] | None = None  # told of each call's batch
        self.stats = SinkStats()
        self.state = "starting"
        """starting, flowing, holding (Redis is up and takes nothing), lost, stopped."""
        self._link = Link(self.server, f"relay:{relay}")
        self._claim = Claim(self._link, relay, prefix, run)
        self._keeper = Keeper(self._link, self._claim, outbox, retention_ms, settings.streams_bytes_max)
        self._pace = Pace(self.stats)
        self._said: tuple[str, Any] = ("", None)
        self._lost: list[str] = []  # what there is to tell once all topics have been looked at
        self._confirmed = 0
        self._probe_at = 0.0
        self._resumed = False
        self._greeted = self._stopping = self._idle = False
        self._wake = anyio.Event()
        self._room = anyio.Event()
        self._empty = anyio.Event()
        self._ended = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    # what the bridge calls

    def notify(self) -> None:
        """Say that entries were added; cheap, once a read batch."""
        if self._idle:
            self._wake.set()

    async def room(self) -> None:
        """Wait until the outbox is below its bounds."""
        while self.outbox.full:
            await self._room.wait()

    async def drain(self, timeout_secs: float) -> int:
        """Wait until all that waits is stored, blocked topics aside. Give the number left, those included."""
        with anyio.move_on_after(timeout_secs):
            while self.outbox.waiting and not self._ended.is_set():
                await self._empty.wait()
        return self.outbox.entries()

    async def stop(self) -> None:
        """End `run` after the call in flight and give the lease back."""
        self._stopping = True
        self._wake.set()
        if self._scope is None:
            return
        with anyio.move_on_after(STOP_SECS):
            await self._ended.wait()
        if not self._ended.is_set():
            self._scope.cancel()
            await self._ended.wait()

    async def run(self) -> None:
        """Write until `stop`. Redis may come and go. Raises: LeaseHeld, Fenced, Unsupported."""
        try:
            with anyio.CancelScope() as self._scope:
                while not self._stopping:
                    await self._live()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                if self._link.up:
                    with contextlib.suppress(LinkLost, ReplyError):  # it lapses by itself soon
                        await self._claim.release()
            await self._link.close()
            self.state = "stopped"
            self._ended.set()
            self._turn("_empty")
            self._event("stopped", {"waiting": self.outbox.entries()})

    # the life of a connection

    async def _live(self) -> None:
        """Connect when needed and write until something goes wrong; then react once and return."""
        try:
            if not self._link.up:
                self._resumed = False
                await self._link.open()
                self.stats.connects += 1
                if not self._greeted:  # a connection that comes and goes is said when it has been of use
                    self._greeted = True
                    self._event("connected", {"server": self.server.where})
            if not self._resumed:
                await self._resume()
            await self._write()
        except LinkLost as error:
            await self._link.close()
            if self._stopping:
                return
            self._pace.failed("lost")
            self._enter("lost", {"error": str(error), "waiting": self.outbox.entries(), "server": self.server.where})
            await self._pause()
        except LeaseHeld as error:
            self._event("lease_refused", {"why": str(error)})
            raise
        except Fenced as error:
            self._event("fenced", {"why": str(error), "waiting": self.outbox.entries()})
            raise
        except (ReplyError, _Again) as error:
            await self._react(error if isinstance(error, _Again) else self._judge(str(error)))

    def _judge(self, reply: str) -> _Again:
        what, text = reaction(reply)
        self._pace.failed(what)
        if what == "unsupported":
            raise Unsupported(f"{self.server.where}: {text} ({reply})")
        return _Again(what, text, reply)

    async def _react(self, error: _Again) -> None:
        if error.what in ("fence", "load"):
            # nothing was written; a server that lost keys or functions may have lost more, so all is asked again
            self._resumed = False
            try:
                await self._claim.load()
                await self._pause()
                return
            except ReplyError as refused:
                error = self._judge(str(refused))
            except LinkLost:
                return
        self._enter("holding", {"reaction": error.what, "text": error.text, "reply": error.reply})
        if error.what == "trim":
            await self._trim()
        elif error.what in ("reconnect", "rights"):
            await self._link.close()
        await self._pause(RIGHTS_SECS if error.what in ("rights", "cluster") else 0.0)

    async def _pause(self, least_secs: float = 0.0) -> None:
        """Wait before the next try; `stop` ends it."""
        secs = least_secs + self._pace.pause_secs()
        if secs and not self._stopping:
            self._wake = anyio.Event()
            self._idle = False  # what the feeds add is no reason to try earlier
            with anyio.move_on_after(secs):
                await self._wake.wait()

    def _enter(self, state: str, fields: dict[str, Any]) -> None:
        """Note the state of the whole sink; a change is said once, not at every try."""
        self.state = state
        said = (state, fields.get("reaction"))
        if said != self._said:
            self._said = said
            self._event(state, fields)

    def _flow(self) -> None:
        """A write went well, or there is nothing to write: all is well again."""
        self._pace.tries = 0
        if self.state != "flowing":
            self._greeted = False
            was, self.state = self.state, "flowing"
            self._said = ("", None)
            if was != "starting":
                self._event("recovered", {"waiting": self.outbox.entries()})

    def _tell(self) -> None:
        """Say together what was found topic by topic."""
        lost, self._lost = self._lost, []
        confirmed, self._confirmed = self._confirmed, 0
        if lost:
            self._event("redis_lost", {"topics": len(lost), "names": lost[:10]})
        if confirmed:
            self._event("confirmed", {"entries": confirmed})

    def _turn(self, name: str) -> None:
        """Wake all who wait for an event and put a new one in its place."""
        event: anyio.Event = getattr(self, name)
        setattr(self, name, anyio.Event())
        event.set()

    # which topics are ours

    async def _resume(self) -> None:
        """Make sure of lease and topics: at the first contact, after each connect, and when Redis has lost keys."""
        claim, outbox = self._claim, self.outbox
        if not claim.epoch:
            await claim.load()
            if not await claim.acquire(takeover=self._takeover, stopping=lambda: self._stopping):
                return
            outbox.earlier = await claim.begin(list(outbox.topics))
            newest = max((order(last)[0] for last in outbox.earlier.values()), default=0)
            if newest:
                self._raise_floor(newest + 1)
            for topic in outbox.topics.values():
                topic.last_id = outbox.earlier.get(topic.name)
        else:
            await claim.renew()
            self.stats.refences += 1
        await self._fence([topic for topic in outbox.topics.values() if topic.blocked != "foreign"])
        self._resumed = True
        self.ready.set()

    async def _fence(self, topics: list[Topic], *may: str) -> None:
        """Fence topics and square what waits in them with what Redis says it has."""
        if not topics:
            return
        owned: dict[str, list[Topic]] = {}
        for topic, note in zip(topics, await self._claim.fence([topic.name for topic in topics], *may), strict=True):
            if note.kind == "OK":
                self._welcome(topic, note)
            elif note.kind == "OWNED":
                owned.setdefault(note.last, []).append(topic)
            elif note.kind == "FENCED" and topic.last:
                raise self._claim.fenced(f"epoch {note.last} is newer than ours, {self._claim.epoch}")
            elif note.kind == "FENCED":
                # not ours in this run, but the name is: keys of an earlier run survived a loss of the epoch; go above
                await self._claim.renew()
                self._claim.epoch = int(note.last) + 1
                raise _Again("fence", "a topic has a newer epoch", note.last)
            else:
                self._block(topic, note.last)
        for owner, theirs in owned.items():
            lives = await self._claim.lives(owner)
            if self._takeover and not lives and owner not in may:
                names = [topic.name for topic in theirs[:10]]
                self._event("topics_taken", {"owner": owner, "topics": len(theirs), "names": names})
                await self._fence(theirs, owner)
                continue
            cure = (
                "it runs; stop it, or give one of the two another prefix or template"
                if lives
                else "it does not run; start this one with --takeover to take its topics over"
            )
            for topic in theirs:
                self._block(topic, f"OWNED {owner}", f"the topic belongs to the relay {owner!r}: {cure}")
        await self._claim.register([topic for topic in topics if topic.last and not topic.blocked])
        self._tell()

    def _welcome(self, topic: Topic, note: Note) -> None:
        """A topic is ours: go on behind what Redis has of it."""
        if topic.blocked and topic.blocked != "foreign":
            self.outbox.unblock(topic)
            self._event("topic_unblocked", {"topic": topic.name, "waiting": len(topic.ids)})
        if topic.last:
            self._settle(topic, note.last)
        else:
            self._begin(topic, note.last, note.top)

    # what Redis has

    def _begin(self, topic: Topic, last: str, top: str) -> None:
        """A topic's first fence: what waits must lie behind what the stream holds."""
        if order(top) > order(last):
            self._event("foreign_entries", {"topic": topic.name, "last": last, "top": top})
        topic.last = last
        newest = max(order(top), order(last))
        ms = newest[0]
        if topic.ids and order(topic.ids[0]) <= newest:
            self._restamp(topic, ms + 1)
        elif ms:
            self._raise_floor(ms + 1)

    def _restamp(self, topic: Topic, floor: int) -> None:
        """The clock went back since the last run: give what waits a later time, in the id and in the message."""
        self._raise_floor(floor)
        ids, data = [], []
        for entry_id, body in zip(topic.ids, topic.data, strict=True):
            ms, seq = order(entry_id)
            if ms < floor:
                message = codec.decode(body)
                message.ts_recv = floor * 1_000_000
                entry_id, body = f"{floor}-{seq}", codec.encode(message)
            ids.append(entry_id)
            data.append(body)
        self.outbox.replace(topic, ids, data)
        self.stats.restamped += len(ids)
        self._event("restamped", {"topic": topic.name, "entries": len(ids), "floor": floor})

    def _settle(self, topic: Topic, last: str) -> None:
        """Redis names a topic's last entry: drop what arrived, go on from there."""
        if last == topic.last:
            return
        if topic.ids and order(last) >= order(topic.ids[0]):
            if last in topic.ids:
                count = topic.ids.index(last) + 1
                self._done(topic, count, last)
                self.stats.confirmed += count
                self._confirmed += count
                return
        elif order(last) < order(topic.last):
            self.stats.lost += 1
            self._lost.append(topic.name)
            topic.last = last
            return
        self._block(topic, "foreign", f"somebody else moved its last entry to {last}")

    def _block(self, topic: Topic, reply: str, text: str = "") -> None:
        """Stop one topic, loudly; the others go on."""
        if not topic.blocked:
            what, told = ("foreign", text) if reply == "foreign" else reaction(reply)
            self.outbox.block(topic, "foreign" if what == "foreign" else reply)
            self._pace.failed("foreign" if what == "foreign" else "block")
            self._probe_at = time.monotonic() + PROBE_SECS
            kind = "owned" if reply.startswith("OWNED ") else "topic_blocked"
            self._event(kind, {"topic": topic.name, "reason": reply, "text": text or told})
            self._turn("_empty")
            if not self.outbox.full:
                self._turn("_room")

    # writing

    async def _write(self) -> None:
        outbox = self.outbox
        while not self._stopping:
            now = time.monotonic()
            if now >= self._claim.renew_at:
                await self._claim.renew()
                await self._look_after(now)
            batch = outbox.take(self._pace.entries_max, self._pace.bytes_max)
            if not batch:
                self._flow()
                self._wake = anyio.Event()
                self._idle = True
                with anyio.move_on_after(self._claim.renew_at - now):
                    await self._wake.wait()
                self._idle = False
                continue
            for topic, _ in batch:
                if not topic.last:
                    await self._fence([topic for topic in outbox.waiting if not topic.last])
                    break
            else:
                await self._append(batch)

    async def _append(self, batch: list[tuple[Topic, int]]) -> None:
        claim = self._claim
        writer = claim.writer
        args: list[Any] = ["FCALL", claim.append_name, 2 * len(batch)]
        for topic, _ in batch:
            args += (topic.name, writer(topic.name))
        args += (claim.relay, claim.epoch, *self._options)
        entries = 0
        for topic, count in batch:
            args += (topic.last, count)
            args += topic.ids[:count]
            args += topic.data[:count]
            entries += count
        before = time.monotonic()
        try:
            notes = await self._link.call(*args)
        except ReplyError as error:
            if reaction(str(error))[0] != "isolate":
                raise
            if len(batch) == 1:
                self._block(batch[0][0], str(error))
                return
            for one in batch:  # one of the topics is not ours to write: only it may stop
                await self._append([one])
            return
        self._pace.answered(time.monotonic() - before, entries, claim.trip_secs)
        if self.answered is not None:
            self.answered(batch)
        stopped, problem = self._read_notes(batch, notes) if notes else ({}, None)
        for number, (topic, count) in enumerate(batch):
            if number not in stopped:
                self._done(topic, count, topic.ids[count - 1])
        self._tell()
        if problem is not None:
            raise problem
        self._flow()

    def _read_notes(self, batch: list[tuple[Topic, int]], notes: list[bytes]) -> tuple[dict[int, str], _Again | None]:
        """Act on what the function says about topics. Give those that it stopped, and what is wrong with the server."""
        stopped: dict[int, str] = {}
        problem: _Again | None = None
        for note in notes:
            number_text, kind, rest = [*note.decode(errors="replace").split(" ", 2), ""][:3]
            number = int(number_text)
            topic, count = batch[number]
            if kind == "GONE":
                self.stats.gone += 1
                self._event("stream_gone", {"topic": topic.name, "last": topic.last})
                continue
            if kind == "UNPUBLISHED":
                self.stats.unpublished += 1
                if self.stats.unpublished == 1:
                    self._event("unpublished", {"topic": topic.name, "error": rest})
                continue
            stopped[number] = kind
            if kind == "FENCED":
                raise self._claim.fenced(f"epoch {rest} is newer than ours, {self._claim.epoch}")
            elif kind == "OWNED":
                self._block(topic, f"OWNED {rest}", f"the relay {rest!r} has taken this topic over")
            elif kind == "MISMATCH":
                self._settle(topic, rest)
            elif kind == "UNFENCED":
                problem = _Again("fence", "Redis has lost keys of the relay", "UNFENCED")
            else:
                last, _, error = rest.partition(" ")
                if last != topic.last:
                    self._done(topic, topic.ids.index(last) + 1, last)
                what, _ = reaction(error)
                if what in ("block", "foreign", "isolate"):
                    self._block(topic, error)
                else:
                    problem = self._judge(error)
        return stopped, problem

    def _done(self, topic: Topic, count: int, last: str) -> None:
        """Redis has the oldest `count` entries of a topic."""
        outbox, stats = self.outbox, self.stats
        was_full = outbox.full
        stats.entries += count
        stats.bytes += outbox.done(topic, count) - count * ENTRY_COST
        topic.last = last
        if not outbox.waiting:
            self._turn("_empty")
        if was_full and not outbox.full:
            self._turn("_room")

    # between two calls

    async def _look_after(self, now: float) -> None:
        """Try blocked topics again, keep retention and the bound over all streams."""
        if now >= self._probe_at:
            self._probe_at = now + PROBE_SECS
            await self._fence([topic for topic in self.outbox.blocked() if topic.blocked != "foreign"])
        trimmed, size = await self._keeper.keep(now)
        self.stats.trimmed += trimmed
        if size:
            self._event("streams_trimmed", {"entries": trimmed, "bytes": size})

    async def _trim(self) -> None:
        """Redis is at maxmemory: make room from our own oldest entries."""
        with contextlib.suppress(LinkLost, ReplyError):  # the next try meets it again
            trimmed = await self._keeper.make_room()
            self.stats.trimmed += trimmed
            self._event("oom_trimmed", {"entries": trimmed})
