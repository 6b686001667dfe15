"""Standing by: hears what the feeds give, keeps the last seconds of it, and goes on from there when it is our turn.

It stands between the feeds and the bridge. While another relay of the name writes, nothing reaches the intake; at the
takeover the ring goes through it first, with the times of receipt, and drops what Redis has. Whether we may write is
the sink's affair (the lease) and that of Redis (the epoch).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import anyio.lowlevel

from relay import lifecycle, notes
from relay.clock import Clock
from relay.config import StandbyConfig
from relay.errors import SessionError
from relay.feed import Feed, Handler, Lane
from relay.model import CHANNEL_OF, Status
from relay.outbox import order
from relay.provider_state import ProviderState, Running
from relay.providers.base import Frame, Output, Provider, Reply, Request, Send
from relay.retry import Decision
from relay.ring import Ring, cost
from relay.rollover import label_of
from relay.routes import Source
from relay.seam import Seam
from relay.sink import Standing

REPLAYED = 1000
"""Events of the ring that are taken without giving the others a turn: some ms."""
QUIET_SECS = 5.0
"""A session that was opened and said nothing for so long is taken for one that hears: markets are closed at times."""
SECOND = 1_000_000_000


class Bridge(Running, Handler, Protocol):
    """What stands behind: all of a relay that a standby touches."""

    start_feed: Callable[[Feed], None]
    writes: bool

    @property
    def clock(self) -> Clock: ...
    def renumber(self, run: int) -> None: ...
    def sink_event(self, name: str, fields: Mapping[str, Any]) -> None: ...


class Standby:
    """The handler of the feeds of a relay with `standby.enabled`; becomes a mere passage once this node writes."""

    def __init__(self, bridge: Bridge, settings: StandbyConfig) -> None:
        self._bridge, self.settings = bridge, settings
        self.live = False
        """This node writes: everything goes on to the bridge at once."""
        self.role_since_ns = now = bridge.clock()
        self.ring = Ring(int(settings.ring_secs * SECOND), settings.ring_bytes_max, now, self._fell)
        self.standing = Standing(bridge.clock, self.why_not, bridge.keeping.epoch)
        standing = self.standing
        standing.changed, standing.voided = self._said_active, self._voided
        standing.lift, standing.taking = self._lift, self._taking
        standing.waits, standing.patience = self._waits, self._patience
        self._opened: dict[tuple[str, str], int] = {}  # connections: provider and label
        self._hears: dict[tuple[str, str], int] = {}  # since when one gives data, or says that it is subscribed
        self._sessions: dict[tuple[Source, str], None] = {}  # those that were open when the ring begins
        self._why = "starting"
        self._patient_until = 0

    # -- roles ---------------------------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """What this node is: active, standby or cold standby (no connection is open until it takes over)."""
        if self.live:
            return "active"
        warm = any(not self.is_cold(state) for state in self._bridge.providers.values())
        return "standby" if warm else "cold standby"

    def is_cold(self, state: ProviderState) -> bool:
        """Tell whether only the writer may connect to a provider: two nodes need more connections than it gives."""
        most = state.config.spec.limits.connections_max
        return state.config.name in self.settings.cold or (most is not None and 2 * len(state.plans) > most)

    def _warm_feeds(self) -> list[tuple[ProviderState, Feed]]:
        return [
            (state, feed)
            for state in self._bridge.providers.values()
            if not self.is_cold(state)
            for feed in state.feeds
            if feed.label not in state.stopped
        ]

    def why_not(self) -> str:
        """Say why this node must not take over yet; empty: it may."""
        now, need = self._bridge.clock(), int(self.settings.cover_secs * SECOND)
        why = ""
        if now - self.ring.since_ns < need:
            why = "its ring covers less than a lease"
            if self.ring.narrow:
                why += ": standby.ring_bytes_max is too small for what comes"
        for _, feed in self._warm_feeds():
            since = self._hears_since(feed, now)
            if not since:
                why = f"{feed.name} {feed.label} is not connected"
                break
            if now - since < need:
                why = f"{feed.name} {feed.label} was connected less than a lease ago"
        if why != self._why:
            self._why = why
            if why:
                self._bridge.event("info", "standing by, not ready to take over", why=why)
            else:
                self._bridge.event("info", "standing by, ready to take over", ring_secs=round(self.ring_secs, 1))
        return why

    def _hears_since(self, feed: Lane, now_ns: int) -> int:
        which = feed.name, feed.label
        opened = self._opened.get(which, 0)
        quiet = opened if opened and now_ns - opened > QUIET_SECS * SECOND else 0
        return self._hears.get(which, 0) or quiet

    @property
    def ring_secs(self) -> float:
        """How far back the ring reaches."""
        return 0.0 if self.live else max(0.0, (self._bridge.clock() - self.ring.since_ns) / SECOND)

    def ready(self) -> tuple[bool, str]:
        """Tell whether it stands by as it should, and if not, what is missing."""
        state = self._bridge.sink.state
        if self._bridge.sink.ready.is_set():
            return False, "taking over"
        if state != "standby":
            return False, f"Redis: {state}"
        why = self.why_not()
        return (False, f"standing by, not ready to take over: {why}") if why else (True, "standby")

    def document(self) -> dict[str, Any]:
        """Say for the overview what this node is, and who writes."""
        active = self.standing.active
        cold = [name for name, state in self._bridge.providers.items() if self.is_cold(state)]
        return {
            "role": self.role,
            "since": self.role_since_ns,
            "active": active.holder or None,
            "active_since": active.since_ns or None,
            "epoch": active.epoch or None,
            "ready": self.live or not self.why_not(),
            "why": "" if self.live else self.why_not(),
            "ring_secs": self.ring_secs,
            "ring_bytes": self.ring.bytes,
            "ring_messages": self.ring.messages,
            "cold": cold,
        }

    def _lift(self, ms: int) -> None:
        """The writer's clock is ahead of ours: go with it, and begin the ring anew."""
        clock = self._bridge.clock
        before = clock()
        clock.raise_floor(ms)
        now = clock()
        self.ring.restart(now)
        self._opened = dict.fromkeys(self._opened, now)
        self._hears = dict.fromkeys(self._hears, now)
        ahead_secs = round((now - before) / SECOND, 1)
        self._bridge.event("warning", "standing by: the clock follows that of the node that writes", secs=ahead_secs)

    def _voided(self, entries: int) -> None:
        if entries:
            self._bridge.sink_event("spool_void", {"entries_at_most": entries})

    def _taking(self, whether: bool) -> None:
        self.ring.still = whether

    def _waits(self, topics: list[str]) -> None:
        self._patient_until = self._bridge.clock() + self.ring.span_ns
        text = "taking over: waits for a node of the cluster that is away, to know how its topics end"
        fields = {"topics": len(topics), "names": topics[:10], "at_most_secs": self.settings.ring_secs}
        self._bridge.event("warning", text, **fields)

    def _patience(self) -> bool:
        """Wait as long as the ring reaches back behind the writer's last entries, and not longer than it may."""
        return self._bridge.clock() < self._patient_until and self.ring.since_ns <= self.standing.held_ns - SECOND

    def _said_active(self) -> None:
        active = self.standing.active
        if active.holder:
            self._bridge.event("info", "standing by: another node writes", active=active.holder, epoch=active.epoch)
        else:
            self._bridge.event("warning", "standing by: no node writes")

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, start: Callable[[Feed], None]) -> None:
        """Start the feeds that may run beside the writer's, wait for our turn, take over; then start the others."""
        bridge = self._bridge

        def start_warm(feed: Feed) -> None:
            if not self.is_cold(bridge.providers[feed.name]):
                start(feed)

        bridge.start_feed = start_warm
        for name, state in bridge.providers.items():
            if self.is_cold(state):
                text = "standing by without a connection: only the node that writes may have it"
                bridge.event("info", text, provider=name, allowed=state.config.spec.limits.connections_max)
            for feed in state.feeds:
                start_warm(feed)
        await bridge.sink.ready.wait()
        await self._take_over()
        bridge.start_feed = start
        for state in bridge.providers.values():
            if self.is_cold(state):
                for feed in state.feeds:
                    start(feed)

    async def _take_over(self) -> None:
        bridge, found, ring = self._bridge, self.standing.found, self.ring
        now = bridge.clock()
        span_ns, messages = now - ring.since_ns, ring.messages
        heard_ns = self.standing.held_ns
        covered = [
            (feed.name, feed.label)
            for _, feed in self._warm_feeds()
            if 0 < self._hears_since(feed, now) <= heard_ns and ring.since_ns <= heard_ns
        ]
        bridge.renumber(now // 1_000_000)
        intake = bridge.intake
        intake.seam = seam = Seam(frozenset(covered), found.skew_ns, now + ring.span_ns, found.tails)
        told, intake.told = intake.told, None  # the log has it already
        floor_ns = max(found.floor_ms, order(intake.status_topic.last_id or "0-0")[0] + 1) * 1_000_000
        before = found.before.holder
        text = f"this node writes from here on, at epoch {self.standing.active.epoch}" + (
            f", after {before}" if before else ""
        )
        intake.status(None, Status(event="handover", code="takeover", text=text), max(ring.since_ns, floor_ns))
        for source, key in self._sessions:
            lifecycle.opened(intake, source, key, max(ring.since_ns, floor_ns))
        while ring:
            for _ in range(min(len(ring), REPLAYED)):
                seam.at_ns, event = ring.pop()
                self._replay(event, max(seam.at_ns, floor_ns))
            bridge.outbox.flush()
            bridge.sink.notify()
            if ring:
                await anyio.lowlevel.checkpoint()  # feeds have their turn; what comes meanwhile goes into the ring
        seam.at_ns, intake.told = None, told
        self.live = bridge.writes = True
        self.role_since_ns = now = bridge.clock()
        for state in bridge.providers.values():
            for feed in state.feeds:
                if feed.live and feed.provider is not None:
                    key = state.source.sessions.get(feed.label, feed.label)
                    intake.take(state.source, key, _whole_books(feed.provider, now), now)
        bridge.outbox.flush()
        bridge.sink.notify()
        bridge.event(
            "warning" if before else "info",
            "taken over: this node writes from here on",
            epoch=self.standing.active.epoch,
            **({"after": before} if before else {}),
            ring_secs=round(span_ns / SECOND, 1),
            messages=messages,
            repeats=sum(source.counts.repeats for source in intake.sources),
        )

    def _replay(self, event: tuple[Any, ...], now_ns: int) -> None:
        intake = self._bridge.intake
        match event:
            case ("outputs", source, key, outputs):
                intake.take(source, key, outputs, now_ns)
            case ("opened", source, key):
                lifecycle.opened(intake, source, key, now_ns)
            case ("closed", source, key, was_open, error, code, reason, decision):
                lifecycle.closed(intake, source, key, was_open, error, code, reason, decision, now_ns)
            case ("status", status):
                intake.status(None, status, now_ns)

    def _fell(self, event: tuple[Any, ...]) -> None:
        """Keep in mind which sessions were open when the ring begins."""
        if event[0] == "opened":
            self._sessions[event[1], event[2]] = None
        elif event[0] == "closed":
            self._sessions.pop((event[1], event[2]), None)

    def status(self, status: Status, now_ns: int) -> None:
        """Keep a status of the relay itself until it is our turn."""
        self.ring.add(("status", status), now_ns)

    # -- the feeds' handler --------------------------------------------------------------------------------------

    @property
    def frame(self) -> Callable[[Lane], Callable[[Frame], object]] | None:
        """The journal's hook."""
        return self._bridge.frame

    @property
    def asked(self) -> Callable[[Lane, str, int, tuple[Any, ...]], None] | None:
        """The journal's hook."""
        return self._bridge.asked

    @property
    def full(self) -> bool:
        """Whether feeds must wait: never for the ring, its oldest events fall out."""
        return self.live and self._bridge.full

    async def room(self) -> None:
        """Wait until the outbox has room."""
        await self._bridge.room()

    def outputs(self, feed: Lane, outputs: Sequence[Any], now_ns: int) -> None:
        """Take what a provider gave. HOT."""
        if self.live:
            self._bridge.outputs(feed, outputs, now_ns)
            return
        source = self._bridge.providers[feed.name].source
        self.ring.add(("outputs", source, feed.key, outputs), now_ns, cost(outputs), len(outputs))
        if (feed.name, feed.label) not in self._hears or outputs[0].__class__ is Status:
            self._listen(feed, outputs, now_ns)

    def _listen(self, feed: Lane, outputs: Sequence[Any], now_ns: int) -> None:
        """Note what must be known now: that a session hears, whether markets are open, what the provider says."""
        source = self._bridge.providers[feed.name].source
        for message in outputs:
            if message.__class__ is not Status:
                if type(message) in CHANNEL_OF:
                    self._hears.setdefault((feed.name, feed.label), now_ns)
                continue
            if message.event == "subscribed":
                self._hears.setdefault((feed.name, feed.label), now_ns)
            elif message.event == "market":
                source.market(message.raw_symbol or "", message.open is not False, now_ns)
            message.text = self._bridge.redactor.text(message.text) if message.text else message.text
            if self._bridge.intake.told is not None:
                self._bridge.intake.told(source.name, feed.label, message, now_ns)

    def batch_end(self, feed: Lane) -> None:
        """Nothing more waits in the socket."""
        if self.live:
            self._bridge.batch_end(feed)
        elif self._bridge.recorder is not None:
            self._bridge.recorder.turn(feed)

    async def turn(self) -> None:
        """Let the others go on."""
        await self._bridge.turn()

    def sent(self, feed: Lane, send: Send | Request) -> None:
        """Something goes out."""
        self._bridge.sent(feed, send)

    def replied(self, feed: Lane, reply: Reply, now_ns: int) -> None:
        """A REST call was answered."""

    def settled(self, feed: Lane) -> None:
        """A provider has taken an answer."""
        self._bridge.settled(feed)

    def session_opened(self, feed: Lane, provider: Provider, now_ns: int) -> None:
        """A WebSocket is open; the login has not begun."""
        if self.live:
            self._bridge.session_opened(feed, provider, now_ns)
            return
        self._opened.setdefault((feed.name, feed.label), now_ns)
        notes.opened(self._bridge, feed, now_ns)
        self.ring.add(("opened", self._bridge.providers[feed.name].source, feed.key), now_ns)

    def session_closed(
        self,
        feed: Lane,
        error: SessionError | None,
        code: int | None,
        reason: str,
        decision: Decision | None,
        now_ns: int,
    ) -> None:
        """A session ended, or could not begin."""
        if self.live:
            self._bridge.session_closed(feed, error, code, reason, decision, now_ns)
            return
        state = self._bridge.providers[feed.name]
        was_open = notes.closed(self._bridge, feed, error, code, reason, decision, now_ns)
        goes_on = any(label_of(key) == feed.label for key in state.live)
        if not goes_on:
            self._opened.pop((feed.name, feed.label), None)
            self._hears.pop((feed.name, feed.label), None)
        self.ring.add(("closed", state.source, feed.key, was_open, error, code, reason, decision), now_ns)
        told = lifecycle.in_words(error, code, reason, decision, goes_on)
        notes.told(self._bridge, feed, told, decision, now_ns)

    def joined(self, feed: Lane) -> bool:
        """Whether the second one of two sessions has all of the first one: the ring keeps both."""
        return not self.live or self._bridge.joined(feed)


def _whole_books(provider: Provider, now_ns: int) -> Sequence[Output]:
    """Give the books of a session, each whole."""
    try:
        return provider.whole(now_ns)
    except Exception as error:  # as in a session: a fault of the provider's code is told and ends nothing
        return (lifecycle.fault(provider, error, None),)
