"""Wires sessions -> intake -> outbox -> sink; start-up and shutdown order. The one place where the parts meet.

Every part has a deadline at the end and none takes the others down: feeds catch what they can retry, the sink keeps
what Redis could not take, and the order of shutdown is feeds, outbox, sink, servers.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from relay import brought, lifecycle, model, notes, stats
from relay.clock import Clock
from relay.config import SIMULATED_PREFIX, Config, ProviderConfig, names_of, secrets_of, topics_of
from relay.embedded import EmbeddedServer
from relay.errors import RelayError, SessionError, first_of
from relay.feed import Feed, Lane, SharedLimits
from relay.held import Held
from relay.intake import Intake
from relay.keeping import Keeping
from relay.model import Status
from relay.outbox import Outbox
from relay.overview import Overview, Summary
from relay.provider_state import ProviderState
from relay.providers.base import Frame, Provider, Reply, Request, Send, Shared, Subscription
from relay.redaction import Redactor
from relay.repeats import Repeats
from relay.retry import Decision
from relay.saying import Saying
from relay.shards import Layout, whole_of
from relay.sink import Sink, sink_to
from relay.standby import Standby
from relay.state_files import StateFiles
from relay.tidings import TIDINGS
from relay.topics import Topics
from relay.turns import Turns
from relay.vitals import Vitals

if TYPE_CHECKING:
    from relay.http import HttpServer
    from relay.recording import Recorder

DRAIN_SECS = 7.0
"""How long a planned stop waits for Redis; with the rest of the shutdown it stays under ten seconds."""
FEEDS_STOP_SECS = 2.0
"""How long a planned stop waits for the sessions to close."""
WATCH_SECS = 1.0
RELEASE_SECS = 0.05
"""Thinned quotes come at most this late."""

Event = Callable[..., None]
"""`event(level, text, **fields)`: one line per state change."""


class Bridge:
    """One relay: the handler of all its feeds, the owner of its intake, outbox and sink."""

    def __init__(
        self,
        config: Config,
        event: Event,
        *,
        takeover: bool = False,
        clock: Clock | None = None,
        redactor: Redactor | None = None,
        held: Held | None = None,
    ) -> None:
        """`redactor`: the log's own, which learns here of the secrets that come at run time.

        `held`: the servers that a supervisor holds for all its shards.
        """
        self.redactor = redactor or Redactor(secrets_of(config))
        self.config, self.takeover = config, takeover
        self.event = Repeats(event, time.monotonic)
        self.clock = clock or Clock()
        self.run = self.clock() // 1_000_000
        self.server: EmbeddedServer | None = None
        self.held = held
        self.simulator: Any = held
        self.redis_url = ""
        self.providers: dict[str, ProviderState] = {}
        self.all_simulated = config.all_simulated
        self._states = StateFiles(config.state_dir, event, whole_of(config))
        self._stop = anyio.Event()
        self.stopping = False
        self.outbox = Outbox(config.outbox.bytes_max, config.outbox.topic_bytes_max)
        self.recorder: Recorder | None = None
        # the journal's hooks; none while nothing records
        self.frame: Callable[[Lane], Callable[[Frame], object]] | None = None
        self.asked: Callable[[Lane, str, int, tuple[Any, ...]], None] | None = None
        self._private: Collection[Lane] = ()
        self.vitals = Vitals(self.clock)
        self._summary = Summary(self)
        self.http: HttpServer | None = None
        self.reloading = anyio.Lock()
        self.start_feed: Callable[[Feed], None] = lambda feed: None  # until the first contact none is started
        self.standby: Standby | None = None
        self.writes = not config.standby.enabled  # else when it is our turn
        self.sink: Sink
        self.intake: Intake

    # -- start and stop ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator["Bridge"]:
        """Hold the servers that this relay brings along (the bundled Redis, the simulator) while inside."""
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            if config.http.enabled:
                self._open_http(stack)
            if self.held is not None and self.held.redis_url:
                self.redis_url = self.held.redis_url
            else:
                self.server, self.redis_url = await brought.redis_of(stack, config)
            if self.held is None:
                self.simulator = await brought.simulator_of(stack, config)
            self._build()
            stack.callback(self.keeping.close)
            yield self

    def _open_http(self, stack: contextlib.AsyncExitStack) -> None:
        from relay.http import HttpServer, Pages
        from relay.metrics import registry_of

        self.http = HttpServer(self.config.http, Pages(registry_of(self), self.is_ready, Overview(self).document))
        stack.callback(self.http.close)
        self.vitals.keep_newest = True
        brought.leave(stack, self.config, "http_url", self.http.url)

    def feeds_live(self) -> tuple[int, int]:
        """Count the connections that are open, and all of them."""
        feeds = [feed for state in self.providers.values() for feed in state.feeds]
        return sum(feed.live for feed in feeds), len(feeds)

    def is_ready(self) -> tuple[bool, str]:
        """Tell whether Redis is up and a feed is live, and if not, what is missing."""
        if self.stopping:
            return False, "stopping"
        if self.standby is not None and not self.standby.live:
            return self.standby.ready()
        if self.sink.state != "flowing":
            away = ", ".join(self.sink.away)
            return False, f"Redis: {self.sink.state}" + (f", away: {away}" if away else "")
        live, feeds = self.feeds_live()
        if not live and (feeds or self.config.shard is None):  # a shard to which nothing was dealt is well
            return False, "no feed is live"
        return True, "ready"

    def _build(self) -> None:
        config = self.config
        names = names_of(config)
        prefix = names.prefix
        self.keeping = Keeping(config, self.clock, prefix, self.event, self.sink_event)
        self.run = self.clock() // 1_000_000
        self.outbox = self.keeping.outbox
        if config.standby.enabled:
            self.standby = Standby(self, config.standby)
        self.sink = sink_to(
            url=self.redis_url,
            settings=config.redis,
            outbox=self.outbox,
            relay=config.name,
            prefix=prefix,
            run=self.run,
            raise_floor=self.clock.raise_floor,
            on_event=self.sink_event,
            takeover=self.takeover,
            layout=Layout(config.shard) if config.shard is not None else None,
            lease_secs=config.standby.lease_secs,
            standing=self.standby.standing if self.standby is not None else None,
            planned=lambda: [topic.name for topic in topics_of(config) if "{" not in topic.name],
            now_ns=self.clock,
        )
        turns = Turns(self.outbox, self.vitals.answered)
        self.sink.answered, self.turn = turns.answered, turns.turn
        self.intake = Intake(names, self.outbox, self.run, merge=config.merge, redactor=self.redactor)
        self.intake.conflation.pressed = lambda: self.outbox.full
        self.intake.told = Saying(self.event)
        for section in config.providers.values():
            self.add_provider(section)

    def add_provider(self, section: ProviderConfig) -> ProviderState:
        """Take a configured provider in; its feeds are made, not started."""
        config, name = self.config, section.name
        options = self.options_of(section)
        simulated = options.simulate
        shared = section.spec.shared(options, getattr(options, "account", "") or "main")
        shared.book_snapshot_every = max(1, config.redis.stream_length_max // 2)
        self._states.load(name, shared)
        self._learn_secrets(shared)
        source = self.intake.source(
            name,
            section.spec,
            shared,
            section.subscriptions,
            origin="simulated" if simulated else None,
            # simulated beside live ones: never under a live topic's name
            names=Topics(config.name, config.topics, SIMULATED_PREFIX + self.intake.names.prefix)
            if simulated and not self.all_simulated
            else None,
        )
        state = ProviderState(section, options, source, shared, SharedLimits(section.limits))
        self.providers[name] = state
        for label in state.plans:
            self.add_feed(state, label)
        return state

    def add_feed(self, state: ProviderState, label: str) -> Feed:
        """Make the feed of one planned connection; it is not started."""
        spec, shared = state.config.spec, state.shared

        def make() -> Provider:
            subscriptions = state.plans[label].subscriptions  # those of now: a reload may have changed them
            if self.recorder is not None:
                self.recorder.made(state.config.name, feed.making, subscriptions, self.clock())
            return spec.session(state.options, subscriptions, shared)

        feed = Feed(
            name=state.config.name,
            label=label,
            spec=spec,
            make=make,
            clock=self.clock,
            handler=self.standby or self,
            limits=state.limits,
        )
        feed.waits = lambda: self.keeping.waits(state.plans[label].subscriptions, state.options)
        state.feeds.append(feed)
        return feed

    def options_of(self, section: ProviderConfig) -> Any:
        """Give the options of a provider's sessions: pointed at the simulator where it plays."""
        if not section.options.simulate:
            return section.options
        kind = section.spec.name
        changes = {"url": self.simulator.url(kind)}
        if "rest_url" in section.spec.options.__struct_fields__:
            changes["rest_url"] = self.simulator.rest_url(kind)
        return msgspec.structs.replace(section.options, **changes)

    async def serve(self) -> None:
        """Run until `stop`; leaves only when everything is closed. Raises: SinkError where the process must end."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.sink.run)
                if self.server is not None:
                    tasks.start_soon(self.server.run, self._server_event)
                tasks.start_soon(self._watch)
                tasks.start_soon(self._release)
                tasks.start_soon(self.keeping.run)
                tasks.start_soon(self.vitals.pulse)
                if self.http is not None:
                    tasks.start_soon(self.http.run)
                async with anyio.create_task_group() as feeds:
                    feeds.start_soon(self._feeds, feeds)
                    await self._stop.wait()
                    await self._close_feeds()
                    feeds.cancel_scope.cancel()
                if self.recorder is not None:
                    await self.recorder.close()
                left = await self.sink.drain(self.keeping.drain_secs(DRAIN_SECS) if self.writes else 0)
                await self.sink.stop()
                self.keeping.left(left)
                self._account()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            known = group.subgroup(RelayError)
            if known is None:
                raise
            raise first_of(known) from None

    def _account(self) -> None:
        """Say it when the laws of conservation do not hold: nobody may find that out by missing a message."""
        feeds = [feed.stats for state in self.providers.values() for feed in state.feeds]
        counts = [*(source.counts for source in self.intake.sources), *self.intake.departed]
        wrong = stats.differences(feeds, counts, self.outbox.topics.values(), self.intake.beside)
        if wrong:
            self.event("error", "messages are not accounted for: a fault of the relay's own", **wrong)

    async def _feeds(self, tasks: Any) -> None:
        """Feeds start when it is known which numbers and times are free: the spool knows, or Redis."""
        await self.keeping.contact(self.sink, wait=self.standby is None)
        if self.config.journal.dir:
            self._record(tasks)
        self.start_feed = lambda feed: tasks.start_soon(feed.run)
        if self.standby is not None:
            await self.standby.run(self.start_feed)
            return
        for state in self.providers.values():
            for feed in state.feeds:
                self.start_feed(feed)

    def _record(self, tasks: Any) -> None:
        """Begin to record: now, because from here on every record can be replayed."""
        from relay.recording import Recorder

        outbox = self.outbox
        self.recorder = recorder = Recorder(
            self.config,
            Path(self.config.journal.dir),
            self.run,
            self.intake,
            lambda: outbox.earlier,
            lambda: outbox.topics,
            self.providers,
            self._recording_event,
            self.redactor,
        )
        recorder.begin(self.clock())
        self.frame, self.asked, self._private = recorder.frame, recorder.asked, recorder.private
        tasks.start_soon(recorder.run_flush)

    async def _close_feeds(self) -> None:
        self.stopping = True
        with anyio.move_on_after(FEEDS_STOP_SECS):
            async with anyio.create_task_group() as closing:
                for state in self.providers.values():
                    for feed in state.feeds:
                        closing.start_soon(feed.stop)
        if self.writes and (self.sink.ready.is_set() or self.keeping.spool is not None):
            now = self.clock()
            if self.recorder is not None:
                self.recorder.stopped(now)
            lifecycle.stopped(self.intake, now)
            self.sink.notify()

    def renumber(self, run: int) -> None:
        """Begin a run: a standby's numbers begin when it takes over."""
        self.run = self.intake.run = run
        self.sink.renumber(run)
        self.keeping.renumber(run)

    def stop(self) -> None:
        """Begin a planned stop. Safe to call twice."""
        self._stop.set()

    async def _watch(self) -> None:
        """Once a second: staleness, provider state on disk."""
        while True:
            await anyio.sleep(WATCH_SECS)
            now = self.clock()
            self.keeping.watch()
            if self.writes and self.intake.watch(now) and self.recorder is not None:
                self.recorder.watch(now)
            self.sink.notify()
            self.event.flush()
            self._summary.tick()
            for name, state in self.providers.items():
                self._states.save(name, state.shared)

    async def _release(self) -> None:
        """Publish thinned and conflated quotes when their time comes."""
        while True:
            await anyio.sleep(RELEASE_SECS)
            if self.intake.conflation and self.writes:
                now = self.clock()
                if self.intake.watch(now) and self.recorder is not None:
                    self.recorder.watch(now)
                self.sink.notify()

    # -- the feeds' handler --------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether feeds must wait: the outbox is at its bound."""
        return self.outbox.full

    async def room(self) -> None:
        """Wait until the outbox has room."""
        await self.sink.room()

    def outputs(self, feed: Lane, outputs: Any, now_ns: int) -> None:
        """Take what a provider gave. HOT."""
        state = self.providers[feed.name]
        self.intake.take(state.source, feed.key, outputs, now_ns)
        if self._private and feed in self._private and self.recorder is not None:
            self.recorder.outputs(feed, outputs)

    def batch_end(self, feed: Lane) -> None:
        """Nothing more waits in the socket: what came is accepted once the spool has it; let the sink write."""
        self.outbox.flush()
        self.sink.notify()
        if self.recorder is not None:
            self.recorder.turn(feed)

    def sent(self, feed: Lane, send: Send | Request) -> None:
        """Something goes out."""
        if self.recorder is not None:
            self.recorder.sent(feed, send, self.clock())

    def replied(self, feed: Lane, reply: Reply, now_ns: int) -> None:
        """A REST call was answered; the journal hears of it by `asked`."""

    def settled(self, feed: Lane) -> None:
        """A provider has taken an answer: a rotated token is on disk before the token that came with it is used."""
        shared = self.providers[feed.name].shared
        self._learn_secrets(shared)
        self._states.save(feed.name, shared)

    def _learn_secrets(self, shared: Shared) -> None:
        """Hide what a provider has got by now (fresh tokens), besides what the configuration holds."""
        secrets = getattr(shared, "secrets", None)
        if secrets is not None and not shared.options.simulate:
            self.redactor.add(secrets())

    def session_opened(self, feed: Lane, provider: Provider, now_ns: int) -> None:
        """A WebSocket is open; the login has not begun."""
        notes.opened(self, feed, now_ns)
        lifecycle.opened(self.intake, self.providers[feed.name].source, feed.key, now_ns)
        self.sink.notify()

    def session_closed(
        self,
        feed: Lane,
        error: SessionError | None,
        code: int | None,
        reason: str,
        decision: Decision | None,
        now_ns: int,
    ) -> None:
        """A session ended, or could not begin; `decision` says what follows, None: nothing, we are stopping."""
        source = self.providers[feed.name].source
        was_open = notes.closed(self, feed, error, code, reason, decision, now_ns)
        told = lifecycle.closed(self.intake, source, feed.key, was_open, error, code, reason, decision, now_ns)
        self.sink.notify()
        notes.told(self, feed, told, decision, now_ns)

    def joined(self, feed: Lane) -> bool:
        """Whether the second one of two sessions has brought all that the first one brings."""
        return lifecycle.joined(self.providers[feed.name].source, feed.label)

    def publish(self, status: Status) -> None:
        """Publish a status of the relay itself; a replay cannot know its cause."""
        now = self.clock()
        if self.standby is not None and not self.standby.live:
            self.standby.status(status, now)
            return
        self.intake.status(None, status, now)
        if self.recorder is not None:
            self.recorder.aside(now)
        self.sink.notify()

    # -- what the sink and the server say ------------------------------------------------------------------------

    def sink_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "hole":
            self.publish(msgspec.structs.replace(fields["status"]))  # in band the sink has put it already
            return
        level, text, status = TIDINGS.get(name, ("warning", name.replace("_", " "), None))
        self.event(level, text, **{"why" if key == "text" else key: value for key, value in fields.items()})
        if status is not None and not self.stopping:
            extra = " ".join(f"{k}={v}" for k, v in fields.items())
            message = Status(event=status, code=name, text=f"{text} {extra}".strip()[:1000])
            if fields.get("topic"):
                message.topic = str(fields["topic"])
            self.publish(message)

    def _recording_event(self, name: str, text: str, fields: Mapping[str, Any]) -> None:
        degraded = name == "degraded"
        self.event("error" if degraded else "info", text, **fields)
        if not self.stopping:
            words = " ".join(f"{k}={v}" for k, v in fields.items())
            event: model.StatusEvent = "degraded" if degraded else "recovered"
            self.publish(Status(event=event, code="journal", text=f"{text} {words}"[:1000]))

    def _server_event(self, name: str, text: str) -> None:
        self.event("warning", f"bundled server {name}", why=text)


__all__ = ["Bridge", "ProviderState", "Subscription"]
