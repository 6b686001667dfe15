"""All lanes to a cluster: which topic belongs to which, what must be verified first, what a node that is away holds up.

A topic whose node has been away for a while is blocked with that reason, as if Redis refused it: then it waits within
its own bounds (in the spool, where there is one) and the others have the outbox for themselves.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio.abc

from relay.errors import SinkError
from relay.model import Status
from relay.outbox import Outbox, Topic
from relay.sink.claim import Claim
from relay.sink.lane import LATER_SECS, Lane
from relay.sink.pace import SinkStats
from relay.sink.reactions import Unsupported
from relay.sink.router import Router
from relay.sink.slots import slot_of

HOLD_SECS = 2.0
"""A failover may take this long before the topics of a node that is away stop counting as those that all wait for."""
MOVES_SECS = 1.0
"""Moves of slots are told together."""
FULL_HOLD_SECS = 0.25
"""The same where the outbox is full: the others are waiting."""


class Lanes:
    """The lanes by address, and the state of topics that they share.

    `later`: topics that a node has put off: when to ask again, and how long the wait was. `held`: topics blocked
    because their node is away, or because their slot has been in the middle of a move for long.
    """

    def __init__(
        self,
        *,
        router: Router,
        claim: Claim,
        outbox: Outbox,
        options: tuple[int, int, int],
        stats: SinkStats,
        run_ms: int,
        client_name: str,
        takeover: bool,
        is_sibling: Callable[[str], bool],
        raise_floor: Callable[[int], None],
        event: Callable[[str, dict[str, Any]], None],
        hole: Callable[[Topic, Status], None],
        empty: Callable[[], None],
        room: Callable[[], None],
        answered: Callable[[], Callable[[list[tuple[Topic, int]], int], None] | None],
        look_soon: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.router, self.claim, self.outbox, self.options, self.stats = router, claim, outbox, options, stats
        self.run_ms, self.client_name, self.takeover, self.raise_floor = run_ms, client_name, takeover, raise_floor
        self.is_sibling = is_sibling
        self.event, self.hole, self.empty, self.room, self.answered = event, hole, empty, room, answered
        self.look_soon, self._failed = look_soon, failed
        self.later: dict[Topic, tuple[float, float]] = {}
        self.held: dict[Topic, None] = {}
        self.failure: SinkError | None = None
        self._lanes: dict[str, Lane] = {}
        self._home: dict[Topic, Lane | None] = {}
        self._slot: dict[Topic, int] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._slots = router.slots
        self._spread_at = self._told_at = 0.0

    def renumber(self, run: int) -> None:
        """A run begins now."""
        self.run_ms = run
        for lane in self:
            lane.renumber(run)

    def __iter__(self) -> Any:
        return iter(self._lanes.values())

    def open(self, tasks: anyio.abc.TaskGroup) -> None:
        """The name is ours: begin to write."""
        self._tasks = tasks
        self._slots = self.router.slots
        self.spread()

    async def stop(self) -> None:
        """End all lanes, each after its call in flight."""
        self._tasks = None
        async with anyio.create_task_group() as group:
            for lane in self._lanes.values():
                group.start_soon(lane.stop)

    # who writes what

    def home(self, topic: Topic) -> Lane | None:
        """Give the lane of a topic; None: no node serves its slot."""
        try:
            return self._home[topic]
        except KeyError:
            slot = self._slot.get(topic)
            if slot is None:
                slot = self._slot[topic] = slot_of(topic.name)
            lane = self._home[topic] = self._lanes.get(self.router.slots.owners[slot])
            return lane

    def of(self, lane: Lane | None) -> list[Topic]:
        """Give the topics of a lane."""
        home = self.home
        return [topic for topic in self.outbox.topics.values() if home(topic) is lane]

    def address_of(self, name: str) -> str:
        """Give the address of the node that serves a stream."""
        return self.router.slots.of(name)

    def spread(self) -> None:
        """The map has changed: begin and end lanes, and verify each topic that has another home now."""
        tasks, slots = self._tasks, self.router.slots
        if tasks is None:
            return
        before, self._home = self._home, {}
        gone = [self._lanes.pop(address) for address in self._lanes.keys() - slots.nodes]
        for address in slots.nodes - self._lanes.keys():
            lane = self._lanes[address] = Lane(self, address)
            tasks.start_soon(lane.run)
        self.doubt(topic for topic, lane in before.items() if self.home(topic) is not lane)
        for lane in gone:
            lane.retire()
        self._spread_at = time.monotonic()

    def doubt(self, topics: Iterable[Topic]) -> None:
        """Verify topics before anything is written to them, and soon, whether anything waits or not."""
        home = self.home
        lanes: set[Lane] = set()
        for topic in topics:
            lane = home(topic)
            if lane is not None and topic.blocked != "foreign":
                lane.doubts[topic] = None
                lanes.add(lane)
        for lane in lanes:
            lane.wake()

    def notify(self) -> None:
        """Entries were added: wake the lanes that have something to do."""
        idle = sum(lane.idle for lane in self._lanes.values())
        if not idle:
            return
        for topic in self.outbox.waiting:
            lane = self.home(topic)
            if lane is not None and lane.idle:
                lane.idle = False
                lane.wake()
                idle -= 1
                if not idle:
                    return

    # nodes that are away

    @property
    def state(self) -> str:
        """flowing: all lanes write; degraded: some do; else that of most."""
        states = [lane.state for lane in self._lanes.values()]
        away = [state for state in states if state in ("holding", "lost")]
        if not away:
            return "flowing" if states and "" not in self.router.slots.owners else "degraded"
        if len(away) < len(states):
            return "degraded"
        return max(away, key=away.count)

    @property
    def away(self) -> list[str]:
        """Addresses of nodes that take nothing at this moment."""
        return sorted(lane.address for lane in self._lanes.values() if lane.since)

    @property
    def healing(self) -> bool:
        """Whether a node is sent again what it has lost."""
        return any(lane.healing for lane in self._lanes.values())

    def tick(self, now: float) -> None:
        """Several times a second: tell what lasts, hold the topics of nodes that are away."""
        most = FULL_HOLD_SECS if self.outbox.full else HOLD_SECS
        for lane in self._lanes.values():
            lane.tell_stall(now)
            # a call that is slow because there is much to do is no reason
            if (lane.since and now - lane.since >= most) or (lane.calling and now - lane.calling >= HOLD_SECS):
                self._hold(self.of(lane), f"{lane.address} is away")
        if "" in self.router.slots.owners and now - self._spread_at >= most:
            self._hold(self.of(None), "no node of the cluster serves its slot")
        stuck = [topic for topic, (_, wait) in self.later.items() if wait >= LATER_SECS]
        if stuck:
            self._hold(stuck, "its slot is being moved to another node")
        if self._slots is not self.router.slots and now - self._told_at >= MOVES_SECS:
            self._tell_moves(now)

    def _tell_moves(self, now: float) -> None:
        before, slots = self._slots, self.router.slots
        self._slots, self._told_at = slots, now
        moved = slots.changes(before)
        if moved:
            nodes = {"new": sorted(slots.nodes - before.nodes), "gone": sorted(before.nodes - slots.nodes)}
            self.event("cluster_changed", {"slots": moved, **{how: some for how, some in nodes.items() if some}})

    def _hold(self, topics: Iterable[Topic], why: str) -> None:
        outbox, held = self.outbox, self.held
        was_full = outbox.full
        doubted: list[Topic] = []
        for topic in topics:
            if topic in held or not topic.blocked:
                if topic not in held or topic.ids:  # again: what was in flight can leave memory now
                    outbox.block(topic, why)
                held[topic] = None
                doubted.append(topic)
        self.doubt(doubted)
        if was_full and not outbox.full:
            self.room()

    def release(self, topic: Topic) -> None:
        """The node of a topic has answered."""
        if topic in self.held:
            del self.held[topic]
            self.outbox.unblock(topic)

    # what ends the process

    def fail(self, error: SinkError) -> None:
        """A lane has met what waiting does not mend."""
        self.failure = self.failure or error
        self._failed()

    def unsupported(self, address: str, text: str, reply: str) -> Unsupported:
        """Make the error that ends this relay."""
        return Unsupported(f"{address}: {text} ({reply})")
