"""The one writer: leases the relay's name, fences its topics, appends what waits; an error is never a delivery.

One task, one connection, one call in flight; all state changes happen between two calls. After anything unclear (a cut,
a time-out, half a reply) it connects again and asks Redis for the last id of every topic: that alone decides what has
arrived. Must never drop an entry, send one twice or stop for a topic that alone is refused.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.lowlevel

from relay.config.structs import RedisConfig
from relay.model import Status
from relay.outbox import Outbox, Topic, order
from relay.sink.answers import Answers
from relay.sink.claim import LEASE_SECS, Claim
from relay.sink.heal import Healer, Piece
from relay.sink.ledger import PROBE_SECS, Ledger
from relay.sink.link import CALL_SECS, Link, LinkLost, ReplyError, Server
from relay.sink.moves import LayoutLike, Moves
from relay.sink.pace import Pace, SinkStats
from relay.sink.reactions import Again, Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.sentinel import link_to
from relay.sink.standing import Standing
from relay.sink.suspects import may_mean_a_topic
from relay.sink.trim import Keeper

RIGHTS_SECS = 5.0
"""Least pause after a refused login: somebody has to change something first."""
ROOM_SECS = 0.25
"""Feeds that wait look again this often, beside being told."""
STOP_SECS = 2.0
"""A stop waits this long for the call in flight."""
IDENTITY_SECS = 2.0
"""The server is asked this often whether it is still the one that it was."""


class Sink:
    """Write an outbox to Redis. `run` in one task; the other methods from any task of the same loop.

    `relay`: the name that owns topics. `prefix`: before the relay's own keys (`relay:epoch` ...), the same that the
    topics carry. `run`: ms of this start. `raise_floor`: called with a ms below which no new entry may be stamped.
    `layout`: of a shard: how topics are dealt, so that they can change hands between shards.
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
        layout: LayoutLike | None = None,
        call_secs: float = CALL_SECS,
        lease_secs: float = LEASE_SECS,
        standing: Standing | None = None,
        planned: Callable[[], Iterable[str]] = tuple,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`standing`: wait for the lease as a standby does. `planned`: topics that the config names.

        `now_ns`: the relay's clock, for others to read.
        """
        self.outbox = outbox
        self.server = Server(
            url,
            settings.username,
            settings.password,
            settings.ca_file,
            settings.cert_file,
            settings.key_file,
            call_secs,
            settings.sentinel_username,
            settings.sentinel_password,
        )
        self._raise_floor, self._event = raise_floor, on_event
        self._takeover = takeover
        retention_ms = int(settings.retention_secs * 1000)
        self._options = (settings.stream_length_max, retention_ms, int(settings.pubsub))
        self.ready = anyio.Event()
        self.answered: Callable[[list[tuple[Topic, int]], int], None] | None = None  # told of each call: batch, entries
        self.stats = SinkStats()
        self.state = "starting"
        """starting, standby, flowing, holding (Redis is up and takes nothing), lost, stopped."""
        self.claimed: Callable[[int], None] = lambda epoch: None  # told of a new epoch before anything is written
        self._standing, self._now_ns, self._lease_secs = standing, now_ns, lease_secs
        self._planned, self._layout = planned, layout
        self._link, self._claim = self._reach(relay, prefix, run)
        self._keeper = Keeper(self._link, self._claim, outbox, retention_ms, settings.streams_bytes_max)
        self._pace = Pace(self.stats)
        self._said: tuple[str, Any] = ("", None)
        self._healer = Healer(self._link, outbox, run, self._hole, settings.stream_length_max)
        self._moves = Moves(self._claim, outbox, layout) if layout is not None else None
        self._ledger = Ledger(
            outbox=outbox,
            claim=self._claim,
            healer=self._healer,
            pace=self._pace,
            takeover=takeover,
            is_sibling=layout.is_sibling if layout is not None else lambda owner: False,
            raise_floor=raise_floor,
            on_event=on_event,
            empty=lambda: self._turn("_empty"),
            room=lambda: self._turn("_room"),
        )
        self._answers = Answers(self._ledger, self._judge)
        self._suspects = self._answers.suspects
        self._identity: tuple[str, str] | None = None
        self._identity_at = 0.0
        self._resumed = False
        self._greeted = self._stopping = self._idle = False
        self._wake = anyio.Event()
        self._room = anyio.Event()
        self._empty = anyio.Event()
        self._ended = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    @property
    def away(self) -> list[str]:
        """Nodes of a cluster that take nothing at this moment."""
        return []

    def _reach(self, relay: str, prefix: str, run: int) -> tuple[Link, Claim]:
        """Make the link to what the address names, and the claim that is laid over it."""
        link = link_to(self.server, f"relay:{relay}")
        return link, Claim(link, relay, prefix, run, self._lease_secs)

    # what the bridge calls

    def notify(self) -> None:
        """Say that entries were added; cheap, once a read batch."""
        if self._idle:
            self._wake.set()

    def renumber(self, run: int) -> None:
        """A run begins now."""
        self._claim.run = self._healer.run = run

    async def room(self) -> None:
        """Wait until the outbox is below its bounds."""
        while self.outbox.full:
            with anyio.move_on_after(ROOM_SECS):
                await self._room.wait()
            self.outbox.flush()  # the spool gets room when old files go, not when memory does

    async def drain(self, timeout_secs: float) -> int:
        """Wait until all that waits is stored, blocked topics aside. Give the number left, those included."""
        with anyio.move_on_after(timeout_secs):
            while (self.outbox.waiting or self._healer.topics) and not self._ended.is_set():
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
                async with self._link.watched():
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
                    self._event("connected", {"server": self._link.where})
            if not self._resumed:
                await self._resume()
            await self._write()
        except LinkLost as error:
            await self._lost(error)
        except LeaseHeld as error:
            self._event("lease_refused", {"why": str(error)})
            raise
        except Fenced as error:
            self._event("fenced", {"why": str(error), "waiting": self.outbox.entries()})
            raise
        except (ReplyError, Again) as error:
            await self._react(error if isinstance(error, Again) else self._judge(str(error)))

    async def _lost(self, error: LinkLost) -> None:
        await self._link.close()
        if self._stopping:
            return
        self._pace.failed("lost")
        self._enter("lost", {"error": str(error), "waiting": self.outbox.entries(), "server": self._link.where})
        await self._pause()

    def _judge(self, reply: str) -> Again:
        what, text = reaction(reply)
        self._pace.failed(what)
        if what == "unsupported":
            raise Unsupported(f"{self._link.where}: {text} ({reply})")
        return Again(what, text, reply)

    async def _react(self, error: Again) -> None:
        if error.what in ("fence", "load"):
            # nothing was written; a server that lost keys or functions may have lost more, so all is asked again
            self._resumed = False
            try:
                await self._claim.load()
                await self._pause()
                return
            except ReplyError as refused:
                error = self._judge(str(refused))
            except LinkLost as lost:
                await self._lost(lost)
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

    def _flow(self, state: str = "flowing") -> None:
        """A write went well, or there is nothing to write: all is well again."""
        self._pace.tries = 0
        if self.state != state:
            self._greeted = False
            was, self.state = self.state, state
            self._said = ("", None)
            if was not in ("starting", "standby"):
                self._event("recovered", {"waiting": self.outbox.entries()})

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
            if not await self._acquire():
                return
            newest = max((order(last)[0] for last in outbox.earlier.values()), default=0)
            if newest:
                self._raise_floor(newest + 1)
            self.claimed(claim.epoch)
        else:
            await claim.renew()
            self.stats.refences += 1
        await self._verify([topic for topic in outbox.topics.values() if topic.blocked != "foreign"])
        if self._moves is not None and self._moves.leaving:
            outbox.refill()  # finds out of what nothing waits
            await self._moves.hand_over()
        self._resumed = True
        self.ready.set()

    async def _verify(self, topics: list[Topic]) -> None:
        """Ask for the last id of topics."""
        await self._ledger.fence(topics)

    async def _acquire(self) -> bool:
        """Take the lease, an epoch and the topics of earlier runs; False where `stop` came first."""
        claim, outbox, standing = self._claim, self.outbox, self._standing
        takeover, self._takeover = self._takeover, self._takeover and standing is None
        if standing is None:
            if not await claim.acquire(takeover=takeover, stopping=lambda: self._stopping):
                return False
            names, may = await self._moves.prepare() if self._moves is not None else ([], [])
            outbox.know(await claim.begin([*outbox.topics, *names, *self._expected()], *may))
            if self._moves is not None:
                await self._moves.learn()
            with contextlib.suppress(ReplyError):  # for others to read
                await claim.announce(self._now_ns())
            return True
        self._flow("standby")
        if not await standing.acquire(claim, outbox, takeover=takeover, stopping=lambda: self._stopping):
            return False
        names, may = await self._moves.prepare() if self._moves is not None else ([], [])
        await standing.begin(claim, outbox, [*names, *self._expected()], may)
        if self._moves is not None:
            await self._moves.learn()
        return True

    def _expected(self) -> list[str]:
        """Give the topics that may have entries though nobody has listed them."""
        return []

    # writing

    async def _write(self) -> None:
        outbox = self.outbox
        while not self._stopping:
            now = time.monotonic()
            if now >= self._claim.renew_at:
                lapsed = await self._claim.renew()
                if self._standing is not None:
                    await self._claim.show_clock(self._now_ns())
                if lapsed or await self._changed(now):
                    self._resumed = False  # keys may be lost: all topics are asked again
                    return
                await self._look_after(now)
            if self._healer.topics:
                await self._heal()
            outbox.flush()
            more = outbox.refill()
            batch = outbox.take(self._pace.entries_max, self._pace.bytes_max)
            if not batch:
                if more or self._healer.topics:
                    await anyio.lowlevel.checkpoint()
                    continue
                self._flow()
                if not outbox.waiting:
                    self._turn("_empty")
                self._wake = anyio.Event()
                self._idle = True
                with anyio.move_on_after(self._claim.renew_at - now):
                    await self._wake.wait()
                self._idle = False
                continue
            for topic, _ in batch:
                if not topic.last:
                    await self._ledger.fence([topic for topic in outbox.waiting if not topic.last])
                    break
            else:
                await self._append(self._suspects.chosen(batch))

    async def _append(self, batch: list[tuple[Topic, int]]) -> None:
        args = self._call([topic for topic, _ in batch], *self._options)
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
            if not may_mean_a_topic(str(error)):
                raise
            if len(batch) == 1:
                again = self._answers.refused(batch[0][0], str(error))
                if again is not None:
                    raise again from None
                return
            for one in batch:  # one of the topics is not ours to write: only it may stop
                await self._append([one])
            return
        except LinkLost:
            if self._suspects.cut() and len(batch) == 1:
                topic = batch[0][0]
                if self._suspects.proven(topic, self.stats.entries):
                    self._ledger.block(topic, "CUT", "each call that writes it breaks the connection")
                self.outbox.defer(topic)
            raise
        self._pace.answered(time.monotonic() - before, entries, self._claim.trip_secs)
        if self.answered is not None:
            self.answered(batch, entries)
        problem = self._answers.appended(batch, notes)
        self._ledger.tell()
        if problem is not None:
            raise problem
        self._flow()

    def _call(self, topics: list[Topic], length_max: int, retention_ms: int, publish: int) -> list[Any]:
        claim = self._claim
        args: list[Any] = ["FCALL", claim.append_name, 2 * len(topics)]
        for topic in topics:
            args += (topic.name, claim.writer(topic.name))
        args += (claim.relay, claim.epoch, length_max, retention_ms, publish)
        return args

    async def _heal(self) -> None:
        """Send one piece of what Redis has lost."""
        healer = self._healer
        batch = await healer.step()
        if batch:
            await self._resend(batch)
        healer.settle()
        if not healer.topics:
            self._event("healed", {"topics": healer.healed, "entries": healer.resent})
            healer.healed = healer.resent = 0

    async def _resend(self, batch: list[Piece]) -> None:
        args = self._call([topic for topic, _, _ in batch], *self._options[:2], 0)
        for topic, ids, data in batch:
            args += (topic.last, len(ids), *ids, *data)
        try:
            notes = await self._link.call(*args)
        except ReplyError as error:
            if may_mean_a_topic(str(error)) and len(batch) > 1:
                left = list(batch)
                try:
                    while left:
                        await self._resend([left.pop(0)])
                finally:
                    self._healer.again(left)
                return
            self._healer.again(batch)  # what was read was not written: it is read again
            if not may_mean_a_topic(str(error)):
                raise
            again = self._answers.refused(batch[0][0], str(error))
            if again is not None:
                raise again from None
            return
        problem = self._answers.healed(batch, notes)
        self._ledger.tell()
        if problem is not None:
            raise problem

    def _hole(self, topic: Topic, status: Status) -> None:
        """A gap event had to be put in: say it, with the event for a copy."""
        self._event("hole", {"topic": topic.name, "status": status})

    # between two calls

    async def _changed(self, now: float) -> bool:
        """Tell whether this is another server, or another history, than before: it may lack what was confirmed."""
        if now < self._identity_at:
            return False
        self._identity_at = now + IDENTITY_SECS
        before, self._identity = self._identity, await self._claim.identity()
        return before is not None and before != self._identity

    async def _look_after(self, now: float) -> None:
        """Try blocked topics again, keep retention and the bound over all streams."""
        if now >= self._ledger.probe_at:
            self._ledger.probe_at = now + PROBE_SECS
            await self._ledger.fence([topic for topic in self.outbox.blocked() if topic.blocked != "foreign"])
        await self._keep(now)

    async def _keep(self, now: float) -> None:
        if self._moves is not None and self._moves.leaving:
            await self._moves.hand_over()
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
