"""One node of a cluster: the topics whose slots it serves, written over a connection of its own.

What `Sink` is to a server, a lane is to a node: one call in flight, and after anything unclear the topics are asked for
their last ids first. A call to a topic that is being moved to another node is answered before it runs: nothing was
written, the topic goes on where it is. No lane waits for another one.
"""

import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from relay.errors import SinkError
from relay.outbox import Topic
from relay.sink.answers import Answers
from relay.sink.claim import FENCE_MAX, Note, note_of
from relay.sink.functions import load
from relay.sink.heal import Healer
from relay.sink.ledger import PROBE_SECS, Ledger
from relay.sink.link import Link, LinkLost, ReplyError
from relay.sink.pace import Pace
from relay.sink.reactions import Again, reaction
from relay.sink.sink import RIGHTS_SECS, STOP_SECS
from relay.sink.slots import host_of, redirect
from relay.sink.suspects import may_mean_a_topic
from relay.sink.trim import trim_oldest

if TYPE_CHECKING:
    from relay.sink.lanes import Lanes

SOON_SECS = 0.01
"""A topic that was sent elsewhere, or of which half has gone ahead, is asked for again this soon, each time later:"""
LATER_SECS = 0.25
TOLD_SECS = 0.5
"""A stall that is over sooner is not worth a line."""


class Lane:
    """The writer to one node. `run` it in a task until `retire`.

    `state`: as of a Sink: starting, flowing, holding, lost. `since`: when it began to be away, 0: it is not.
    `calling`: when the call in flight began, 0: none is.
    """

    def __init__(self, lanes: "Lanes", address: str) -> None:
        self.address = address
        self._lanes = lanes
        self.outbox = lanes.outbox
        self._claim = lanes.claim
        self._link = Link(lanes.router.server_at(address), lanes.client_name)
        self._pace = Pace(lanes.stats)
        self._healer = Healer(self._link, lanes.outbox, lanes.run_ms, lanes.hole, lanes.options[0])
        self._ledger = Ledger(
            outbox=lanes.outbox,
            claim=lanes.claim,
            healer=self._healer,
            pace=self._pace,
            takeover=lanes.takeover,
            is_sibling=lanes.is_sibling,
            raise_floor=lanes.raise_floor,
            on_event=self._tell,
            empty=lanes.empty,
            room=lanes.room,
            ask=self._fence,
        )
        self._answers = Answers(self._ledger, self._judge)
        self._suspects = self._answers.suspects
        self.doubts: dict[Topic, None] = {}
        """Topics of which the node must be asked for the last id before anything is written to them."""
        self.state = "starting"
        self.since = self.calling = 0.0
        self._why: dict[str, Any] = {}
        self._told: tuple[str, Any] = ("", None)
        self._problem: Again | None = None
        self._identity: tuple[str, str] | None = None
        self.idle = False
        self._ended = False
        self._wake = anyio.Event()
        self._scope = anyio.CancelScope()
        self.over = anyio.Event()

    def __repr__(self) -> str:
        return f"<Lane {self.address}: {self.state}>"

    @property
    def healing(self) -> bool:
        """Whether the node is sent again what it has lost."""
        return bool(self._healer.topics)

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        self._lanes.event(kind, {**fields, "node": self.address})

    # life

    def renumber(self, run: int) -> None:
        """A run begins now."""
        self._healer.run = run

    async def run(self) -> None:
        """Write until `retire` or `stop`."""
        try:
            with self._scope:
                while not self._ended:
                    await self._live()
        finally:
            for topic in list(self._healer.topics):
                self._healer.leave(topic)
            with anyio.CancelScope(shield=True):
                await self._link.close()
            self.over.set()

    def retire(self) -> None:
        """End: the node serves no slots any more, and may not even answer."""
        self._ended = True
        if self._told[0]:
            self._tell("node_replaced", {})
        self._scope.cancel()

    async def stop(self) -> None:
        """End after the call in flight."""
        self._ended = True
        self._wake.set()
        with anyio.move_on_after(STOP_SECS):
            await self.over.wait()
        self._scope.cancel()

    def wake(self) -> None:
        """There is something to write, or to look at."""
        self._wake.set()

    async def _live(self) -> None:
        """Connect when needed and write until something goes wrong; then react once and return."""
        lanes = self._lanes
        try:
            if not self._link.up:
                await self._link.open()
                lanes.stats.connects += 1
                await load(self._link)
                lanes.doubt(lanes.of(self))
            await self._write()
        except LinkLost as error:
            await self._link.close()
            if not self._ended:
                self._pace.failed("lost")
                self._stall("lost", {"error": str(error)})
                await self._pause()
        except SinkError as error:
            self._ended = True
            lanes.fail(error)
        except (ReplyError, Again) as error:
            try:
                await self._react(error if isinstance(error, Again) else self._judge(str(error)))
            except SinkError as end:
                self._ended = True
                lanes.fail(end)

    def _judge(self, reply: str) -> Again:
        what, text = reaction(reply, cluster=True)
        self._pace.failed(what)
        if what == "unsupported":
            raise self._lanes.unsupported(self.address, text, reply)
        return Again(what, text, reply)

    async def _react(self, error: Again) -> None:
        if error.what in ("fence", "load"):
            # nothing was written; a node that lost keys or functions may have lost more, so all is asked again
            self._lanes.doubt(self._lanes.of(self))
            try:
                await load(self._link)
                await self._pause()
                return
            except ReplyError as refused:
                error = self._judge(str(refused))
            except LinkLost:
                return
        self._stall("holding", {"reaction": error.what, "text": error.text, "reply": error.reply})
        if error.what == "trim":
            await self._trim()
        elif error.what in ("reconnect", "rights"):
            await self._link.close()
        await self._pause(RIGHTS_SECS if error.what == "rights" else 0.0)

    def _stall(self, state: str, fields: dict[str, Any]) -> None:
        """The node takes nothing: note why; it is told when it lasts (`Lanes.tick`)."""
        self.state = state
        self._why = fields
        if not self.since:
            self.since = time.monotonic()
        self._lanes.look_soon()

    def tell_stall(self, now: float) -> None:
        """Say once that the node is away, or takes nothing."""
        said = (self.state, self._why.get("reaction"))
        if self.since and now - self.since >= TOLD_SECS and said != self._told:
            self._told = said
            waiting = sum(len(topic.ids) + topic.behind for topic in self._lanes.of(self))
            self._tell(f"node_{self.state}", {**self._why, "waiting": waiting})

    def _flow(self) -> None:
        """A write went well, or there is nothing to write: all is well again."""
        self._pace.tries = 0
        if self.state != "flowing":
            self.state, self.since = "flowing", 0.0
            if self._told[0]:
                self._told = ("", None)
                self._tell("node_recovered", {})

    async def _pause(self, least_secs: float = 0.0) -> None:
        secs = least_secs + self._pace.pause_secs()
        if secs and not self._ended:
            self._wake = anyio.Event()
            self.idle = False  # what the feeds add is no reason to try earlier
            with anyio.move_on_after(secs):
                await self._wake.wait()

    async def _trim(self) -> None:
        """The node is at maxmemory: make room from our own oldest entries there."""
        lanes = self._lanes
        with contextlib.suppress(LinkLost, ReplyError):  # the next try meets it again
            ours = {topic.name for topic in lanes.of(self) if topic.last and topic.blocked != "foreign"}
            with contextlib.suppress(ReplyError):  # those of earlier runs are listed on another node
                ours.update(name for name in await self._claim.ours() if lanes.address_of(name) == self.address)
            trimmed = await trim_oldest(self._link, [*ours])
            lanes.stats.trimmed += trimmed
            self._tell("oom_trimmed", {"entries": trimmed})

    # writing

    async def _write(self) -> None:
        outbox, lanes, healer = self.outbox, self._lanes, self._healer
        while not self._ended:
            if self._wake.is_set():
                self._wake = anyio.Event()
            now = time.monotonic()
            self._look_after(now)
            doubted = self._doubted(now)
            if doubted:
                await self._ledger.fence(doubted)
                self._raise_problem()
                continue
            if healer.topics:
                await self._heal()
            outbox.flush()
            more = outbox.refill()
            batch = outbox.take(self._pace.entries_max, self._pace.bytes_max, self._mine())
            if batch:
                await self._append(self._suspects.chosen(batch))
                continue
            if healer.topics or (more and self._mine()):
                await anyio.lowlevel.checkpoint()
                continue
            self._flow()
            if not outbox.waiting:
                lanes.empty()
            self.idle = True
            with anyio.move_on_after(self._next_secs(now)):
                await self._wake.wait()
            self.idle = False

    def _look_after(self, now: float) -> None:
        """Doubt what may not be as it was: blocked topics now and then, all where the node is not the one it was."""
        lanes = self._lanes
        if now >= self._ledger.probe_at:
            self._ledger.probe_at = now + PROBE_SECS
            lanes.doubt(topic for topic in lanes.of(self) if topic.blocked)
        identity = lanes.router.identities.get(self.address)
        if identity != self._identity:
            if self._identity is not None:
                lanes.doubt(lanes.of(self))
            self._identity = identity

    def _next_secs(self, now: float) -> float:
        """How long an idle lane may sleep: until a topic that was put off is due."""
        later = self._lanes.later
        dues = [later[topic][0] for topic in self.doubts if topic in later]
        return max(0.001, min([*dues, self._ledger.probe_at]) - now)

    def _mine(self) -> list[Topic]:
        """Topics that wait and may be written by this lane now; new ones are doubted first."""
        lanes = self._lanes
        doubts, busy, home = self.doubts, self.outbox.busy, lanes.home
        mine = []
        for topic in self.outbox.waiting:
            if home(topic) is self and topic not in doubts and topic not in busy:
                if topic.last:
                    mine.append(topic)
                else:
                    doubts[topic] = None
                    self._wake.set()
        return mine

    def _doubted(self, now: float) -> list[Topic]:
        """Topics to be fenced now."""
        lanes, later, topics = self._lanes, self._lanes.later, self.outbox.topics
        found: list[Topic] = []
        for topic in list(self.doubts):
            # it has another home by now, or was given to another relay
            if lanes.home(topic) is not self or topics.get(topic.name) is not topic or topic.blocked == "foreign":
                del self.doubts[topic]
            elif topic not in self.outbox.busy and not (later and later.get(topic, (0.0, 0.0))[0] > now):
                found.append(topic)
                if len(found) == FENCE_MAX:
                    break
        return found

    async def _append(self, batch: list[tuple[Topic, int]]) -> None:
        claim = self._claim
        head = (claim.relay, claim.epoch, *self._lanes.options)
        commands: list[tuple[Any, ...]] = []
        entries = 0
        for topic, count in batch:
            name = topic.name
            entries += count
            keys = ("FCALL", claim.append_name, 2, name, claim.writer(name))
            commands.append((*keys, *head, topic.last, count, *topic.ids[:count], *topic.data[:count]))
        before = time.monotonic()
        try:
            replies = await self._send([topic for topic, _ in batch], commands)
        except LinkLost:
            if self._suspects.cut() and len(batch) == 1:
                topic = batch[0][0]
                if self._suspects.proven(topic, self._lanes.stats.entries):
                    self._ledger.block(topic, "CUT", "each call that writes it breaks the connection")
                self.outbox.defer(topic)
            raise
        taken = [(one, notes) for one, notes in zip(batch, replies, strict=True) if notes is not None]
        if taken:
            self._pace.answered(time.monotonic() - before, entries, claim.trip_secs)
            answered = self._lanes.answered()
            if answered is not None:
                answered([one for one, _ in taken], sum(count for (_, count), _ in taken))
        for one, notes in taken:
            self._problem = self._answers.appended([one], notes) or self._problem
        self._ledger.tell()
        self._raise_problem()
        if taken:
            self._flow()

    async def _heal(self) -> None:
        """Send one piece of what the node has lost."""
        healer, claim = self._healer, self._claim
        for topic in list(healer.topics):
            if self._lanes.home(topic) is not self or topic in self.doubts:
                healer.leave(topic)  # who fences it goes on
        batch = await healer.step()
        if batch:
            head = (claim.relay, claim.epoch, *self._lanes.options[:2], 0)
            commands = [
                ("FCALL", claim.append_name, 2, topic.name, claim.writer(topic.name), *head)
                + (topic.last, len(ids), *ids, *data)
                for topic, ids, data in batch
            ]
            replies = await self._send([topic for topic, _, _ in batch], commands)
            for one, notes in zip(batch, replies, strict=True):
                if notes is None:
                    healer.leave(one[0])
                    self._lanes.doubt([one[0]])
                else:
                    self._problem = self._answers.healed([one], notes) or self._problem
            self._ledger.tell()
            self._raise_problem()
        healer.settle()
        if not healer.topics and healer.healed:
            self._tell("healed", {"topics": healer.healed, "entries": healer.resent})
            healer.healed = healer.resent = 0

    async def _fence(self, names: list[str], *may: str) -> list[Note]:
        """Fence topics, each by a call of its own (`Ledger.ask`)."""
        claim, lanes = self._claim, self._lanes
        topics = [self.outbox.topics[name] for name in names]
        for topic in topics:
            self.doubts.pop(topic, None)  # who doubts it from here on, doubts it again
        commands = [
            ("FCALL", claim.fence_name, 2, name, claim.writer(name), claim.relay, claim.epoch, *may) for name in names
        ]
        replies = await self._send(topics, commands)
        notes: list[Note] = []
        for topic, reply in zip(topics, replies, strict=True):
            if reply is None:
                lanes.doubt([topic])
                notes.append(Note("LATER", ""))
                continue
            note = note_of(reply[0])
            lanes.release(topic)
            notes.append(note)
        return notes

    # one call a topic, sent together

    async def _send(self, topics: list[Topic], commands: list[tuple[Any, ...]]) -> list[list[bytes] | None]:
        """Send a call a topic. Give the notes of each; None: it was not made, and the topic is seen to.

        What is wrong with the node as a whole stands in `_problem` then.
        """
        busy, lanes = self.outbox.busy, self._lanes
        busy.update(topics)
        slots = lanes.router.slots
        self.calling = time.monotonic()
        try:
            try:
                replies = await self._link.calls(commands)
            except ReplyError as error:  # of a single one
                replies = [error]
            ahead: dict[str, list[int]] = {}
            for number, (topic, reply) in enumerate(zip(topics, replies, strict=True)):
                if isinstance(reply, ReplyError):
                    replies[number] = None
                    address = self._refused(topic, str(reply), host_of(self.address))
                    if address:
                        ahead.setdefault(address, []).append(number)
                elif lanes.later:
                    lanes.later.pop(topic, None)
            for address, numbers in ahead.items():
                await self._send_ahead(address, topics, commands, numbers, replies)
        except BaseException:
            lanes.doubt(topics)
            raise
        finally:
            self.calling = 0.0
            busy.difference_update(topics)
            if slots is not lanes.router.slots:  # their new homes have waited for this call
                lanes.doubt(topic for topic in topics if lanes.home(topic) is not self)
        return replies

    async def _send_ahead(
        self,
        address: str,
        topics: list[Topic],
        commands: list[tuple[Any, ...]],
        numbers: list[int],
        replies: list[Any],
    ) -> None:
        """Send the calls of topics that have gone ahead to the node that their slots are being moved to."""
        router = self._lanes.router
        try:
            found = await router.asking(address, [commands[number] for number in numbers])
        except (LinkLost, ReplyError):
            for number in numbers:
                self._put_off(topics[number])
            return
        for number, reply in zip(numbers, found, strict=True):
            topic = topics[number]
            if not isinstance(reply, ReplyError):
                replies[number] = reply
                self._lanes.later.pop(topic, None)
                continue
            if reaction(str(reply), cluster=True)[0] == "load":
                with contextlib.suppress(ReplyError):
                    await router.load(address)
            self._put_off(topic)

    def _refused(self, topic: Topic, reply: str, host: str) -> str:
        """Act on an error in the place of one topic's answer. Give the address that it is to be asked at, if any."""
        what, _ = reaction(reply, cluster=True)
        if what == "ask":
            return redirect(reply, host)[1]
        if what == "moved":
            self._put_off(topic)
            self._lanes.router.moved(*redirect(reply, host))
            self._lanes.look_soon()
        elif what == "later":
            self._put_off(topic)
        elif what == "block":
            self._ledger.block(topic, reply)
        elif may_mean_a_topic(reply):
            self._problem = self._answers.refused(topic, reply) or self._problem
        else:
            self._lanes.doubt([topic])
            self._problem = self._problem or self._judge(reply)
        return ""

    def _put_off(self, topic: Topic) -> None:
        """Nothing was written of a topic: ask what its node has of it, soon."""
        later = self._lanes.later
        _, wait = later.get(topic, (0.0, SOON_SECS / 2))
        wait = min(LATER_SECS, wait * 2)
        later[topic] = (time.monotonic() + wait, wait)
        self._lanes.doubt([topic])

    def _raise_problem(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
