"""The one writer: leases the relay's name, fences its topics, appends what waits; an error is never a delivery.

One task, one connection, one call in flight; all state changes happen between two calls. After anything unclear (a cut,
a time-out, half a reply) it connects again and asks Redis for the last id of every topic: that alone decides what has
arrived. Must never drop an entry, send one twice or stop for a topic that alone is refused.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable
from random import random
from typing import Any

import anyio
import msgspec

from relay import codec
from relay.outbox import ENTRY_COST, Outbox, Topic
from relay.sink.functions import library
from relay.sink.link import Link, LinkLost, ReplyError, Server
from relay.sink.reactions import Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.trim import retain, trim_oldest, trim_to_size

ENTRIES_MAX = 1_000
BYTES_MAX = 256 * 1024
"""One call: about 2 ms of the server's time, so that nobody else waits for it [measured]."""
SLOW_CALL_SECS = 0.05
"""A call that takes longer makes the next ones smaller, down to these:"""
ENTRIES_MIN = 10
BYTES_MIN = 8 * 1024
LEASE_MS = 1_500
RENEW_SECS = LEASE_MS / 3000
LEASE_PATIENCE_SECS = 2.0
"""A killed relay's lease lapses in LEASE_MS; one that is still held after this is held by a living relay."""
BACKOFF_FIRST_SECS, BACKOFF_CAP_SECS = 0.05, 2.0
RIGHTS_SECS = 5.0
"""Least pause after a refused login: somebody has to change something first."""
PROBE_SECS = 5.0
"""Blocked topics are tried again this often: the operator may have mended the cause."""
KEEP_SECS = 10.0
"""Retention and the bound over all streams are looked after this often."""
FENCE_MAX = 500
"""Topics in one fence call."""


class SinkStats:
    """Plain counters since the start; `call_secs` the time spent waiting for append calls."""

    __slots__ = (
        "batch_max", "bytes", "call_secs", "call_secs_max", "calls", "confirmed", "connects", "entries", "errors",
        "gone", "lost", "refences", "restamped", "trimmed", "unpublished",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls = self.entries = self.bytes = self.connects = 0
        self.batch_max = 0
        self.call_secs = self.call_secs_max = 0.0
        self.confirmed = 0  # entries whose reply was lost and which Redis turned out to have
        self.lost = 0  # topics for which Redis came back without acknowledged entries
        self.gone = 0  # streams deleted by somebody
        self.trimmed = 0  # entries trimmed by us outside XADD's MAXLEN
        self.restamped = self.refences = self.unpublished = 0
        self.errors: dict[str, int] = {}  # by reaction, and "lost"


class _Again(Exception):
    """The call cannot be made now; carries the reaction and the reply."""

    def __init__(self, what: str, text: str, reply: str) -> None:
        super().__init__(f"{text}: {reply}")
        self.what, self.text, self.reply = what, text, reply


class Sink:
    """Write an outbox to Redis. `run` in one task; the other methods from any task of the same loop.

    `relay`: the name that owns topics. `prefix`: before the relay's own keys (`relay:epoch` ...), the same that the
    topics carry. `run`: ms of this start. `raise_floor`: called with a ms below which no new entry may be stamped.
    `on_event(kind, fields)`: connected, lost, holding, flowing, fenced, lease_refused, topic_blocked, topic_unblocked,
    foreign_entries, confirmed, redis_lost, stream_gone, restamped, oom_trimmed, streams_trimmed, unpublished, stopped.
    """

    def __init__(
        self,
        *,
        connect: Server,
        outbox: Outbox,
        relay: str,
        prefix: str,
        run: int,
        raise_floor: Callable[[int], None],
        on_event: Callable[[str, dict[str, Any]], None],
        takeover: bool = False,
        stream_length_max: int = 10_000,
        retention_secs: int = 0,
        streams_bytes_max: int = 0,
        pubsub: bool = True,
    ) -> None:
        self.server, self.outbox, self.relay, self.prefix = connect, outbox, relay, prefix
        self.run_ms = run
        self._raise_floor, self._event = raise_floor, on_event
        self._takeover = takeover
        self._options = (stream_length_max, retention_secs * 1000, 1 if pubsub else 0)
        self._retention_ms, self._streams_bytes_max = retention_secs * 1000, streams_bytes_max
        self.ready = anyio.Event()
        self.stats = SinkStats()
        self.epoch = 0
        self.state = "starting"
        """starting, flowing, holding (Redis is up and takes nothing), lost, stopped."""
        self._link = Link(connect, f"relay:{relay}")
        self._library = library()
        self._append_name, self._fence_name, self._lease_name = self._library.names
        self._lease_key = f"{prefix}relay:lease:{relay}"
        self._lease_value = f"{secrets.token_hex(8)} {socket.gethostname()} pid {os.getpid()}"
        self._epoch_key, self._topics_key = f"{prefix}relay:epoch", f"{prefix}relay:topics"
        self._writers: dict[str, str] = {}
        self._entries_max, self._bytes_max = ENTRIES_MAX, BYTES_MAX
        self._said: tuple[str, Any] = ("", None)
        self._lost: list[str] = []  # what there is to tell once all topics have been looked at
        self._confirmed = 0
        self._lease_until = self._renew_at = self._probe_at = self._keep_at = 0.0
        self._resumed = False
        self._tries = 0
        self._stopping = False
        self._idle = False
        self._wake = anyio.Event()
        self._room = anyio.Event()
        self._progress = anyio.Event()
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
                await self._progress.wait()
        return self.outbox.entries()

    async def stop(self) -> None:
        """End `run` after the call in flight and give the lease back."""
        self._stopping = True
        self._wake.set()
        if self._scope is None:
            return
        with anyio.move_on_after(2.0):
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
                await self._release()
            await self._link.close()
            self.state = "stopped"
            self._ended.set()
            self._turn("_progress")
            self._event("stopped", {"waiting": self.outbox.entries()})

    # the life of a connection

    async def _live(self) -> None:
        """Connect when needed and write until something goes wrong; then react once and return."""
        try:
            if not self._link.up:
                self._resumed = False
                await self._link.open()
                self.stats.connects += 1
                self._event("connected", {"server": self.server.where})
            if not self._resumed:
                await self._resume()
            await self._write()
        except LinkLost as error:
            await self._link.close()
            if self._stopping:
                return
            self._count("lost")
            self._enter("lost", {"error": str(error), "waiting": self.outbox.entries(), "server": self.server.where})
            await self._pause()
        except (ReplyError, _Again) as error:
            await self._react(error if isinstance(error, _Again) else self._judge(str(error)))

    def _judge(self, reply: str) -> _Again:
        what, text = reaction(reply)
        self._count(what)
        if what == "unsupported":
            raise Unsupported(f"{self.server.where}: {text} ({reply})")
        return _Again(what, text, reply)

    async def _react(self, error: _Again) -> None:
        if error.what == "fence":
            self._resumed = False
            return
        if error.what == "load":
            # nothing was written; a server that lost its functions may have lost more, so all is asked again
            self._resumed = False
            try:
                await self._load()
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
        """Wait before the next try: at once the first time, then full jitter. `stop` ends it."""
        self._tries += 1
        secs = least_secs
        if self._tries > 1:
            secs += random() * min(BACKOFF_CAP_SECS, BACKOFF_FIRST_SECS * 2 ** min(self._tries, 20))
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
        self._tries = 0
        if self.state != "flowing":
            self._enter("flowing", {"waiting": self.outbox.entries()})

    def _tell(self) -> None:
        """Say together what was found topic by topic."""
        if self._lost:
            self._event("redis_lost", {"topics": len(self._lost), "names": self._lost[:10]})
            self._lost = []
        if self._confirmed:
            self._event("confirmed", {"entries": self._confirmed})
            self._confirmed = 0

    def _count(self, what: str) -> None:
        self.stats.errors[what] = self.stats.errors.get(what, 0) + 1

    def _turn(self, name: str) -> None:
        """Wake all who wait for an event and put a new one in its place."""
        event: anyio.Event = getattr(self, name)
        setattr(self, name, anyio.Event())
        event.set()

    # lease, epoch, fence

    async def _resume(self) -> None:
        """Make sure of lease and topics: at the first contact, after each connect, and when Redis has lost keys."""
        if not self.epoch:
            await self._first_contact()
        else:
            await self._renew()
            self.stats.refences += 1
        await self._fence([topic for topic in self.outbox.topics.values() if topic.blocked != "foreign"])
        self._resumed = True
        self.ready.set()

    async def _first_contact(self) -> None:
        await self._load()
        await self._acquire()
        epoch = int(await self._link.call("INCR", self._epoch_key))
        ours = list(dict.fromkeys([*await self._ours(), *self.outbox.topics]))
        while True:
            try:
                self.epoch = epoch
                await self._fence_earlier(ours)
                return
            except Fenced as error:
                # the epoch counter was lost (restored or flushed), the topics' epochs were not: go above them
                self.epoch = 0
                epoch = max(epoch, error.args[1]) + 1
            except BaseException:
                self.epoch = 0
                raise

    async def _load(self) -> None:
        """Load the function library unless this server has it; never replaces anybody's."""
        listed = await self._link.call("FUNCTION", "LIST", "LIBRARYNAME", self._library.name)
        if not listed:
            try:
                await self._link.call("FUNCTION", "LOAD", self._library.text)
            except ReplyError as error:
                if "already exists" not in str(error):  # another relay of this version was faster
                    raise

    async def _acquire(self) -> None:
        """Take the lease on the relay's name. Raises: LeaseHeld after LEASE_PATIENCE_SECS."""
        deadline = time.monotonic() + LEASE_PATIENCE_SECS
        while True:
            before = time.monotonic()
            only_new = () if self._takeover else ("NX",)
            taken = await self._link.call("SET", self._lease_key, self._lease_value, "PX", LEASE_MS, *only_new)
            if taken is None:
                holder = await self._link.call("GET", self._lease_key) or b""
                if holder.decode() != self._lease_value:
                    if before >= deadline:
                        who = holder.decode(errors="replace").partition(" ")[2] or "unknown"
                        self._event("lease_refused", {"holder": who})
                        raise LeaseHeld(
                            f"a relay named {self.relay!r} already runs ({who}) and writes to {self.server.where}: "
                            "stop it, give this one another `name`, or start it with --takeover"
                        )
                    if self._stopping:
                        raise LinkLost("stopped")
                    self._wake = anyio.Event()
                    with anyio.move_on_after(0.1):
                        await self._wake.wait()
                    continue
            self._leased(before)
            return

    def _leased(self, before: float) -> None:
        self._lease_until = before + LEASE_MS / 1000
        self._renew_at = before + RENEW_SECS

    @property
    def leased(self) -> bool:
        """Whether the name is surely ours at this moment. Safety does not rest on it but on the epoch."""
        return time.monotonic() < self._lease_until

    async def _renew(self) -> None:
        before = time.monotonic()
        reply = await self._link.call("FCALL", self._lease_name, 1, self._lease_key, self._lease_value, LEASE_MS)
        if isinstance(reply, bytes):
            self._fenced(f"the lease is held by {reply.decode(errors='replace').partition(' ')[2]}", self.epoch)
        self._leased(before)

    async def _release(self) -> None:
        if self._lease_until and self._link.up:
            try:
                await self._link.call("FCALL", self._lease_name, 1, self._lease_key, self._lease_value, 0)
            except (LinkLost, ReplyError):
                pass  # it lapses by itself in LEASE_MS

    def _fenced(self, why: str, epoch: int) -> None:
        self._event("fenced", {"why": why, "waiting": self.outbox.entries()})
        raise Fenced(
            f"another relay named {self.relay!r} has taken over ({why}): this one stops writing to {self.server.where}",
            epoch,
        )

    async def _ours(self) -> list[str]:
        """Names of the topics that this relay wrote in earlier runs."""
        listed = await self._link.call("HGETALL", self._topics_key)
        ours = []
        for name, text in zip(listed[::2], listed[1::2], strict=True):
            try:
                if msgspec.json.decode(text).get("relay") == self.relay:
                    ours.append(name.decode())
            except (msgspec.DecodeError, AttributeError, UnicodeDecodeError):
                continue  # not written by us
        return ours

    async def _fence_earlier(self, names: list[str]) -> None:
        """Fence topics of earlier runs: a relay of the past cannot write any more, the clock starts above their ids."""
        floor = -1
        for note in await self._fence_call(names):
            kind, _, rest = note.partition(" ")
            if kind == "OK":
                floor = max(floor, *(order(entry_id)[0] for entry_id in rest.split(" ")))
            elif kind == "FENCED":
                raise Fenced(note, int(rest))
        if floor >= 0:
            self._raise_floor(floor + 1)

    async def _fence(self, topics: list[Topic]) -> None:
        """Fence topics and square what waits in them with what Redis says it has."""
        if not topics:
            return
        fresh = [topic for topic in topics if not topic.last]
        notes = await self._fence_call([topic.name for topic in topics])
        refused: dict[str, list[Topic]] = {}
        for topic, note in zip(topics, notes, strict=True):
            kind, _, rest = note.partition(" ")
            if kind == "OK":
                if topic.blocked and topic.blocked != "foreign":
                    self.outbox.unblock(topic)
                    self._event("topic_unblocked", {"topic": topic.name, "waiting": len(topic.ids)})
                last, _, top = rest.partition(" ")
                if topic.last:
                    self._settle(topic, last)
                else:
                    self._begin(topic, last, top)
            elif kind == "FENCED":
                if topic.last:
                    self._fenced(f"epoch {rest} is newer than ours, {self.epoch}", int(rest))
                # never ours in this run, the name is: keys of earlier runs survived a loss of the epoch; go above
                await self._renew()
                self.epoch = int(rest) + 1
                raise _Again("fence", "a topic has a newer epoch", note)
            elif kind == "OWNED":
                refused.setdefault(rest, []).append(topic)
            else:
                self._block(topic, rest)
        for owner, owned in refused.items():
            await self._owned(owner, owned)
        await self._register(fresh if self._resumed else topics)
        self._tell()

    async def _fence_call(self, names: list[str], *may: str) -> list[str]:
        notes: list[str] = []
        for start in range(0, len(names), FENCE_MAX):
            part = names[start : start + FENCE_MAX]
            keys = [key for name in part for key in (name, self._writer(name))]
            try:
                reply = await self._link.call(
                    "FCALL", self._fence_name, 1 + len(keys), self._epoch_key, *keys, self.relay, self.epoch, *may
                )
            except ReplyError as error:
                if reaction(str(error))[0] != "isolate":
                    raise
                if len(part) == 1:
                    notes.append(f"ERROR {error}")
                else:
                    notes += [note for name in part for note in await self._fence_call([name], *may)]
                continue
            notes += [note.decode(errors="replace") for note in reply]
        return notes

    async def _owned(self, owner: str, topics: list[Topic]) -> None:
        """Topics of another relay: refused, unless that one is gone and --takeover was given."""
        lives = bool(await self._link.call("EXISTS", f"{self.prefix}relay:lease:{owner}"))
        if self._takeover and not lives:
            notes = await self._fence_call([topic.name for topic in topics], owner)
            for topic, note in zip(topics, notes, strict=True):
                kind, _, rest = note.partition(" ")
                if kind == "OK":
                    last, _, top = rest.partition(" ")
                    if topic.blocked:
                        self.outbox.unblock(topic)
                    self._event("topic_taken", {"topic": topic.name, "owner": owner})
                    self._begin(topic, last, top)
                else:
                    self._block(topic, f"OWNED {owner}")
            return
        for topic in topics:
            cure = (
                "stop it first, or give one of the two another prefix or template"
                if lives
                else "it does not run; start this one with --takeover to take its topics over"
            )
            self._block(topic, f"OWNED {owner}", f"the topic belongs to the relay {owner!r}: {cure}")

    async def _register(self, topics: list[Topic]) -> None:
        """Note topics in relay:topics, so that readers need not SCAN."""
        if not topics:
            return
        known = await self._link.call("HMGET", self._topics_key, *[topic.name for topic in topics])
        fields: list[str | bytes] = []
        for topic, text in zip(topics, known, strict=True):
            if topic.blocked or not topic.last:
                continue
            entry = {"kind": topic.kind, "provider": topic.provider, "relay": self.relay}
            first = self.run_ms
            if text:
                try:
                    old = msgspec.json.decode(text)
                    first = int(old.get("first_seen", first))
                    if {name: old.get(name) for name in entry} == entry:
                        continue
                except (msgspec.DecodeError, AttributeError, ValueError, TypeError):
                    pass
            fields += [topic.name, msgspec.json.encode({**entry, "first_seen": first})]
        if fields:
            await self._link.call("HSET", self._topics_key, *fields)

    def _writer(self, name: str) -> str:
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = f"{self.prefix}relay:writer:{{{name}}}"
        return writer

    # what Redis has

    def _begin(self, topic: Topic, last: str, top: str) -> None:
        """A topic's first fence: what waits must lie behind what the stream holds."""
        if order(top) > order(last):
            self._event("foreign_entries", {"topic": topic.name, "last": last, "top": top})
            last = top
        topic.last = last
        ms = order(last)[0]
        if topic.ids and order(topic.ids[0]) <= order(last):
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
            self._count("foreign" if what == "foreign" else "block")
            self._probe_at = time.monotonic() + PROBE_SECS
            self._event("topic_blocked", {"topic": topic.name, "reason": reply, "text": text or told})
            self._turn("_progress")
            if not self.outbox.full:
                self._turn("_room")

    # writing

    async def _write(self) -> None:
        outbox = self.outbox
        while not self._stopping:
            now = time.monotonic()
            if now >= self._renew_at:
                await self._renew()
                await self._look_after(now)
            batch = outbox.take(self._entries_max, self._bytes_max)
            if not batch:
                self._flow()
                self._wake = anyio.Event()
                self._idle = True
                with anyio.move_on_after(self._renew_at - now):
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
        args: list[Any] = ["FCALL", self._append_name, 2 * len(batch)]
        for topic, _ in batch:
            args += (topic.name, self._writer(topic.name))
        args += (self.relay, self.epoch, *self._options)
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
        self._paced(time.monotonic() - before, entries)
        stopped, problem = self._read_notes(batch, notes) if notes else ({}, None)
        for number, (topic, count) in enumerate(batch):
            if number not in stopped:
                self._done(topic, count, topic.ids[count - 1])
        self._turn("_progress")
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
                self._fenced(f"epoch {rest} is newer than ours, {self.epoch}", int(rest))
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
        if was_full and not outbox.full:
            self._turn("_room")

    def _paced(self, secs: float, entries: int) -> None:
        """Count a call, and send less at once while Redis is slow."""
        stats = self.stats
        stats.calls += 1
        stats.call_secs += secs
        if secs > stats.call_secs_max:
            stats.call_secs_max = secs
        if entries > stats.batch_max:
            stats.batch_max = entries
        if secs > SLOW_CALL_SECS:
            self._entries_max = max(ENTRIES_MIN, self._entries_max // 2)
            self._bytes_max = max(BYTES_MIN, self._bytes_max // 2)
        elif self._entries_max < ENTRIES_MAX or self._bytes_max < BYTES_MAX:
            self._entries_max = min(ENTRIES_MAX, self._entries_max + self._entries_max // 8 + 1)
            self._bytes_max = min(BYTES_MAX, self._bytes_max + self._bytes_max // 8)

    # looking after what is in Redis

    async def _look_after(self, now: float) -> None:
        """Between two calls: try blocked topics again, keep retention and the bound over all streams."""
        if now >= self._probe_at:
            self._probe_at = now + PROBE_SECS
            await self._fence([topic for topic in self.outbox.blocked() if topic.blocked != "foreign"])
        if now < self._keep_at:
            return
        self._keep_at = now + KEEP_SECS
        names = [topic.name for topic in self.outbox.topics.values() if topic.last and not topic.blocked]
        if self._retention_ms:
            newest = max((order(topic.last)[0] for topic in self.outbox.topics.values() if topic.last), default=0)
            if newest > self._retention_ms:
                self.stats.trimmed += await retain(self._link, names, newest - self._retention_ms)
        if self._streams_bytes_max:
            trimmed, size = await trim_to_size(self._link, names, self._streams_bytes_max)
            if trimmed:
                self.stats.trimmed += trimmed
                self._event("streams_trimmed", {"entries": trimmed, "bytes": size})

    async def _trim(self) -> None:
        """Redis is at maxmemory: make room from our own oldest entries."""
        try:
            ours = {topic.name for topic in self.outbox.topics.values() if topic.last and not topic.blocked}
            trimmed = await trim_oldest(self._link, [*ours.union(await self._ours())])
        except ReplyError:
            return  # it takes not even that; the pause and the next try follow
        except LinkLost:
            return  # the next try sees it too
        self.stats.trimmed += trimmed
        self._event("oom_trimmed", {"entries": trimmed})


def order(entry_id: str) -> tuple[int, int]:
    """Give an entry id as two numbers, to compare."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)
