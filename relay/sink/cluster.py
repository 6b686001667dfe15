"""The writer to a cluster: one name, one epoch, and a lane to each primary (relay.sink.lane).

The lease, the epoch and the list of topics lie on some node each and are looked after here, beside the lanes: that such
a node is away stops no lane. Whether a write is still ours is asked in each call, by the epoch at the topic itself.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from relay.errors import SinkError
from relay.outbox import Topic
from relay.sink.claim import FENCE_MAX, Claim, Note, fields, newest_of, note_of
from relay.sink.lanes import Lanes
from relay.sink.link import Link, LinkLost, ReplyError
from relay.sink.reactions import Again
from relay.sink.router import Router
from relay.sink.sink import IDENTITY_SECS, Sink
from relay.targets import target_of

LOOK_SECS = 1.0
"""The nodes are asked this often for the map, whatever happens."""
HURRY_SECS = 0.1
"""The same while a node is away or a slot was found elsewhere: a failover is to be seen at once."""
TICK_SECS = 0.25
SPUBLISH = 2
"""The append function's `publish` in a cluster: the channel lies in the topic's slot."""


class ClusterClaim(Claim):
    """A Claim whose keys lie on many nodes: a fence call a topic, the epoch key in one of its own."""

    link: Router

    def __init__(self, router: Router, relay: str, prefix: str, run: int, lease_secs: float) -> None:
        super().__init__(router, relay, prefix, run, lease_secs)
        self._unheard: set[str] = set()
        self._unlisted: dict[Topic, None] = {}
        self._listed: tuple[str, ...] = ()  # the first and the last topic that we have listed
        self.registered: Callable[[], None] = lambda: None
        """Called when there is something to `enlist`."""
        self._guard_at = 0.0

    async def load(self) -> None:
        """See Claim: on every primary."""
        await self.link.load_all()

    async def renew(self) -> bool:
        """See Claim. Beside it the epoch key is kept: its node may have come back without."""
        lapsed = await super().renew()
        if self.epoch and time.monotonic() >= self._guard_at:
            self._guard_at = time.monotonic() + IDENTITY_SECS
            lapsed = await self._guard() or lapsed
        return lapsed

    async def _guard(self) -> bool:
        """Keep what lies beside the topics. True: the list of topics was lost."""
        await self.link.call("FCALL", self.fence_name, 1, self.epoch_key, self.relay, self.epoch)
        if self._since_ns and not await self.link.call("HGET", self.active_key, "epoch"):
            await self.announce(self._since_ns)
        # a node that came back empty lacks the first of them, one that had lagged the last
        if not self._listed or all(await self.link.call("HMGET", self.topics_key, *self._listed)):
            return False
        self._listed = ()
        return True

    async def _above(self, names: Sequence[str], epoch: int) -> int:
        """See Claim: the counter's node may have come back without."""
        for start in range(0, len(names), FENCE_MAX):
            part = names[start : start + FENCE_MAX]
            for reply in await self.link.calls([("HMGET", self.writer(name), "owner", "epoch") for name in part]):
                if not isinstance(reply, ReplyError) and reply[0] == self.relay.encode():
                    epoch = max(epoch, int(reply[1] or 0) + 1)
        return epoch

    async def begin(self, names: Sequence[str], *may: str) -> dict[str, str]:
        """See Claim. A topic whose node is away has entries, as far as we know, since it was first seen."""
        newest = await super().begin(names, *may)
        if self._unheard:
            unheard = self.unheard()
            for name, text in zip(unheard, await self.link.call("HMGET", self.topics_key, *unheard), strict=True):
                first = fields(text).get("first_seen")
                if isinstance(first, int):
                    newest[name] = f"{first}-0"
        return newest

    def unheard(self) -> list[str]:
        """See Claim."""
        return sorted(self._unheard)

    async def hear(self, *may: str) -> dict[str, str]:
        """See Claim."""
        await self.link.look()  # another node may serve them by now
        names = self.unheard()
        notes = await self.fence(names, *may)
        for note in notes:
            if note.kind == "FENCED":  # begin anew, above it
                raise Again("fence", "a topic has a newer epoch", note.last)
        return newest_of(names, notes)

    async def fence(self, names: Sequence[str], *may: str, epoch: int = 0) -> list[Note]:
        """See Claim: LATER where a topic's node has no word yet."""
        notes: list[Note] = []
        for name, reply in zip(names, await self._each(names, self.relay, epoch or self.epoch, *may), strict=True):
            heard = not isinstance(reply, ReplyError)
            notes.append(note_of(reply[0]) if heard else Note("LATER", str(reply)))
            (self._unheard.discard if heard else self._unheard.add)(name)
        return notes

    async def give(self, names: Sequence[str], to: str) -> None:
        """See Claim. Raises: ReplyError where one could not be given."""
        for reply in await self._each(names, to, 0, self.relay):
            if isinstance(reply, ReplyError):
                raise reply

    async def _each(self, names: Sequence[str], *tail: str | int) -> list[Any]:
        """Call relay_fence for each topic."""
        replies: list[Any] = []
        for start in range(0, len(names), FENCE_MAX):
            part = names[start : start + FENCE_MAX]
            replies += await self.link.calls(
                [("FCALL", self.fence_name, 2, name, self.writer(name), *tail) for name in part]
            )
        return replies

    async def lives(self, relay: str) -> bool:
        """See Claim: as long as nobody can tell, it does."""
        try:
            return await super().lives(relay)
        except ReplyError:
            return True

    async def register(self, topics: Sequence[Topic]) -> None:
        """See Claim: done by `enlist`, as a lane waits for no other node."""
        if topics:
            self._unlisted |= dict.fromkeys(topics)
            self.registered()

    async def enlist(self) -> None:
        """Note in relay:topics what was registered."""
        while topics := list(self._unlisted)[:FENCE_MAX]:
            await super().register(topics)
            for topic in topics:
                del self._unlisted[topic]
            self._listed = (*self._listed[:1], topics[-1].name)


class ClusterSink(Sink):
    """A Sink whose address is a cluster. `state` is `degraded` while some nodes are away and others are written to.

    Events beside a Sink's: node_lost, node_holding, node_recovered, node_replaced (each with its `node`) and
    cluster_changed.
    """

    _claim: ClusterClaim
    _link: Router

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        length_max, retention_ms, publish = self._options
        layout = self._layout
        self._look_now = anyio.Event()
        self._tasks: Any = None
        self.lanes = Lanes(
            router=self._link,
            claim=self._claim,
            outbox=self.outbox,
            options=(length_max, retention_ms, SPUBLISH if publish else 0),
            stats=self.stats,
            run_ms=kwargs["run"],
            client_name=f"relay:{kwargs['relay']}",
            takeover=self._takeover,
            is_sibling=layout.is_sibling if layout is not None else lambda owner: False,
            raise_floor=self._raise_floor,
            event=self._event,
            hole=self._hole,
            empty=lambda: self._turn("_empty"),
            room=lambda: self._turn("_room"),
            answered=lambda: self.answered,
            look_soon=lambda: self._look_now.set(),
            failed=lambda: self._wake.set(),
        )
        self._link.changed = self.lanes.spread
        self._claim.registered = lambda: self._wake.set()

    def _reach(self, relay: str, prefix: str, run: int) -> tuple[Link, Claim]:
        target = target_of(self.server.url)
        assert target is not None
        router = Router(self.server, target, f"relay:{relay}")
        return router, ClusterClaim(router, relay, prefix, run, self._lease_secs)

    # what the bridge calls

    @property
    def away(self) -> list[str]:
        """See Sink."""
        return self.lanes.away

    def renumber(self, run: int) -> None:
        """See Sink."""
        super().renumber(run)
        self.lanes.renumber(run)

    def notify(self) -> None:
        """See Sink."""
        self.lanes.notify()

    async def drain(self, timeout_secs: float) -> int:
        """See Sink. What a node that is away holds up is waited for too."""
        with anyio.move_on_after(timeout_secs):
            while not self._ended.is_set() and (
                self.outbox.waiting or self.lanes.healing or any(t.ids or t.spilled for t in self.lanes.held)
            ):
                with anyio.move_on_after(TICK_SECS):
                    await self._empty.wait()
        return self.outbox.entries()

    async def run(self) -> None:
        """See Sink."""
        failed: SinkError | None = None
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._look)
            self._tasks.start_soon(self._tick)
            try:
                await super().run()
            except SinkError as error:  # as it is, not in a group
                failed = error
            self._tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed

    # beside the lanes

    def _expected(self) -> list[str]:
        """See Sink: the list of topics may be lost where the topics are not."""
        home = (lambda name: None) if self._layout is None else self._layout.home
        return [name for name in self._planned() if home(name) in (None, self._claim.relay)]

    async def _verify(self, topics: list[Topic]) -> None:
        self.lanes.doubt(topics)
        self.lanes.open(self._tasks)

    async def _write(self) -> None:
        """Keep the name, the list of topics and the bounds until `stop`."""
        self._flow()
        claim = self._claim
        while not self._stopping:
            if self.lanes.failure is not None:
                raise self.lanes.failure
            now = time.monotonic()
            try:
                if now >= claim.renew_at:
                    if await claim.renew():
                        self.lanes.doubt(self.outbox.topics.values())  # keys may be lost
                    if self._standing is not None:
                        await claim.show_clock(self._now_ns())
                await claim.enlist()
                await self._keep(now)
            except (LinkLost, ReplyError):
                claim.renew_at = now + claim.renew_secs  # its lane tells of a node that is away
            if self._wake.is_set():
                self._wake = anyio.Event()
            with anyio.move_on_after(max(0.01, min(TICK_SECS, claim.renew_at - now))):
                await self._wake.wait()
        await self.lanes.stop()
        with contextlib.suppress(LinkLost, ReplyError):  # the next start asks their nodes again
            await claim.enlist()

    async def _look(self) -> None:
        """Keep the map for ever."""
        while True:
            hurry = bool(self.lanes.away)
            self._tasks.start_soon(self._link.look)  # a node that hangs delays no news from the others
            with anyio.move_on_after(HURRY_SECS if hurry else LOOK_SECS):
                await self._look_now.wait()
            self._look_now = anyio.Event()

    async def _tick(self) -> None:
        while not self._ended.is_set():
            if self._resumed:
                self.lanes.tick(time.monotonic())
                self.state = self.lanes.state
            await anyio.sleep(TICK_SECS)
