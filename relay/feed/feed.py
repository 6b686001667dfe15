"""The loop around sessions: connect, live, decide by `retry.Backoff`, wait, again."""

import random as random_module
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Literal, NamedTuple

import anyio
from anyio.abc import TaskGroup

from relay.errors import SessionError
from relay.feed.connection import Wire, open_wire
from relay.feed.handler import FeedStats, Handler, Lane
from relay.feed.limits import SharedLimits
from relay.feed.session import Session
from relay.providers.base import Connect, Provider, ProviderSpec, Subscription
from relay.retry import Backoff, Decision
from relay.rollover import SECOND

OVERLAP_SECS = 1.0
"""How long both sessions of a rollover run at least once the new one has all it asked for: slower routes catch up."""
OVERLAP_SECS_MAX = 30.0
"""A new session that has all it asked for takes over after this long, though some topics were quiet all the time."""
RENEW_SHARE = (0.90, 0.05)
"""A connection that the provider cuts at an age is renewed at 90 to 95 % of it; spread, so that not all go at once."""


class _Life:
    """One try of a connection, and the session that it leads to."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.provider: Provider | None = None
        self.session: Session | None = None
        self.pending: list[tuple[bool, Sequence[Subscription]]] = []
        self.opening = anyio.CancelScope()  # around every wait that is not a session's
        self.joined = False  # it ends because the one that takes over has all that it has
        self.proven_at: float | None = None  # since when it has all it asked for
        self.end: _End | None = None
        self.done = anyio.Event()

    @property
    def open(self) -> bool:
        return self.session is not None and not self.session.gone


class Feed(Lane):
    """One planned connection of a provider, kept alive until `stop`.

    `live` is true from the upgrade to the end of a session. `decision` is the last one of `retry`; `fatal` means that
    `run` has returned and nothing more comes. `making` is the key of the session that `make` is called for.

    A session that is to be renewed goes on while a second one is opened, where the provider allows two; that takes
    over when it brings all that the first one brings, or when that ends.
    """

    def __init__(
        self,
        *,
        name: str,
        label: str,
        spec: ProviderSpec,
        make: Callable[[], Provider],
        clock: Callable[[], int],
        handler: Handler,
        limits: SharedLimits,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        super().__init__(name, label, label, spec, FeedStats())
        self.second = Lane(name, label, label + SECOND, spec, self.stats)
        self.making = label
        self.decision: Decision | None = None
        self.waits: Callable[[], bool] = lambda: True
        """Tells whether it stops reading while the handler is full; what may be conflated need not."""
        self._make, self._clock, self._handler, self._limits, self._random = make, clock, handler, limits, random
        self._backoff = Backoff(spec.policy)
        self._life: _Life | None = None
        self._heir: _Life | None = None  # the one that is to take over
        self._renewing = False
        self._tasks: TaskGroup | None = None
        self._stopping = False
        self._pause = anyio.CancelScope()
        self._done = anyio.Event()
        self._running = False

    @property
    def live(self) -> bool:
        """Whether a session is open."""
        return any(life is not None and life.session is not None for life in (self._life, self._heir))

    @property
    def provider(self) -> Provider | None:
        """The object of the session that speaks, None between sessions."""
        return self._life.provider if self._life is not None else None

    async def run(self) -> None:
        """Keep the connection until `stop`, or until a fatal refusal. Once.

        Lets out what the handler raises, and never what a session meets.
        """
        self._running = True
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                await self._keep()
        finally:
            self._running = False
            self._done.set()

    async def _keep(self) -> None:
        while not self._stopping:
            self._life = life = _Life(self)
            await self._try(life)
            while True:
                heir = self._heir
                if self._life is life and heir is not None and heir.session is not None and life.end is not None:
                    self._hand_over(life, life.end, heir)
                if self._life is life:
                    break
                life = self._life
                await life.done.wait()
            if heir is not None:
                heir.opening.cancel()
            if life.end is None:
                return
            self.decision = self._told(life, self._backoff)
            if self.decision is None or self.decision.kind == "fatal":
                return
            await self._sleep(self.decision.delay_secs)

    def _told(self, life: _Life, backoff: Backoff) -> Decision | None:
        """Decide what follows from an end, count it and say so."""
        end, now = life.end, self._clock()
        assert end is not None
        decision = None
        if not self._stopping:
            decision = backoff.next(end.error, jitter=self._random(), now_secs=anyio.current_time(), now_ns=now)
        self._count(end.error, end.code)
        self._handler.session_closed(life.lane, end.error, end.code, end.reason, decision, now)
        return decision

    def _count(self, error: SessionError | None, code: int | None) -> None:
        plain = "stopped" if code is None else f"close_{code}"
        self.stats.count_end(plain if error is None else error.code or "error")

    async def stop(self) -> None:
        """End it cleanly and wait until `run` has returned: a few seconds at most. Waiting frames are not read."""
        self._stopping = True
        self._pause.cancel()
        for life in (self._heir, self._life):
            if life is not None:
                life.opening.cancel()
                if life.session is not None:
                    life.session.stop()
        if self._running:
            await self._done.wait()

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """Subscribe at run time. Between sessions nothing is done: `make` gives the next one what is wanted then."""
        self._change(True, subscriptions)

    def unsubscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """End subscriptions at run time; see `subscribe`."""
        self._change(False, subscriptions)

    def _change(self, wanted: bool, subscriptions: Sequence[Subscription]) -> None:
        for life in (self._life, self._heir):
            if life is None or life.end is not None:
                continue
            life.proven_at = None
            if life.session is not None:
                life.session.change(wanted, subscriptions)
            elif life.provider is not None:
                life.pending.append((wanted, subscriptions))  # the connection is just being opened

    async def _sleep(self, secs: float) -> None:
        if secs > 0 and not self._stopping:
            with anyio.CancelScope() as self._pause:
                await anyio.sleep(secs)

    # -- one connection ------------------------------------------------------------------------------------------

    async def _try(self, life: _Life) -> None:
        """Try one connection and live its session; its end stays None where it was stopped before there was one."""
        async with AsyncExitStack() as held:
            opened: tuple[Connect, Wire] | None = None
            try:
                if self._stopping:
                    life.opening.cancel()
                with life.opening:
                    await held.enter_async_context(self._limits.connection())
                    if self._limits.connects is not None:
                        await self._limits.connects.take()
                    opened = await self._open(life)
                if opened is not None:
                    life.end = await self._live(life, *opened)
            except SessionError as error:
                life.end = _End(error, None, "")
            finally:
                life.provider = life.session = None
                life.done.set()

    async def _open(self, life: _Life) -> tuple[Connect, Wire]:
        self.stats.connects += 1
        try:
            self.making = life.lane.key
            life.provider = self._make()
            spec = life.provider.connect()
        except SessionError:
            raise
        except Exception as error:
            text = f"a fault in the code of {self.spec.name}: {type(error).__name__}: {error}"
            raise SessionError(text, code="internal") from error
        return spec, await open_wire(spec, self._clock)

    async def _live(self, life: _Life, spec: Connect, wire: Wire) -> "_End":
        provider = life.provider
        assert provider is not None
        least, spread = RENEW_SHARE
        life.session = session = Session(
            self,
            life.lane,
            provider,
            spec,
            wire,
            handler=self._handler,
            clock=self._clock,
            limits=self._limits,
            stats=self.stats,
            healthy=self._backoff.healthy,
            renew_after=spec.renew_secs * (least + spread * self._random()) if spec.renew_secs is not None else None,
        )
        if self._stopping:
            session.stop()
        self.stats.opened += 1
        await session.run(life.pending)
        return _End(session.error, session.code, session.reason)

    # -- rollover ------------------------------------------------------------------------------------------------

    def renewal(self, session: Session) -> Literal["waits", "joined", "alone"]:
        """Tell a session that is to be renewed what to do now: go on, end because the new one has all, or end alone."""
        life, heir = self._life, self._heir
        if life is None or life.session is not session or self._tasks is None:
            return "waits"  # it is the new one of two, and old itself
        if not self._renewing:
            if not self._limits.spare():
                return "alone"
            self._renewing = True
            self._tasks.start_soon(self._succeed, life)
            return "waits"
        life.joined = heir is not None and self._is_proven(heir)
        return "joined" if life.joined else "waits"

    def _is_proven(self, heir: _Life) -> bool:
        session, now = heir.session, anyio.current_time()
        settled = getattr(session.provider, "settled", None) if session is not None else None
        if session is None or session.gone or not (session.carried if settled is None else settled):
            heir.proven_at = None
            return False
        if heir.proven_at is None:
            heir.proven_at = now
        together = now - heir.proven_at
        if together >= OVERLAP_SECS_MAX:
            return True
        return together >= OVERLAP_SECS and session.carried and self._handler.joined(heir.lane)

    async def _succeed(self, old: _Life) -> None:
        """Open a second connection, again where that fails, as long as the first one lives."""
        backoff = Backoff(self.spec.policy)
        while self._life is old and old.open and not self._stopping:
            self._heir = heir = _Life(self.second if old.lane is self else self)
            await self._try(heir)
            if self._heir is not heir:
                return  # it took over, and its end is `_keep`'s
            self._heir = None
            if heir.end is None:
                return
            decision = self._told(heir, backoff)
            if decision is None or decision.kind == "fatal":
                return  # `_renewing` stays: the old one lives to its end
            await self._sleep(decision.delay_secs)

    def leaving(self, session: Session) -> None:
        """A session says nothing more: another one that is there speaks from now on, not only after the goodbye."""
        life, heir = self._life, self._heir
        if life is not None and life.session is session and heir is not None and heir.open and not self._stopping:
            self._hand_over(life, _End(session.error, session.code, session.reason), heir)

    def _hand_over(self, life: _Life, end: "_End", heir: _Life) -> None:
        self._life, self._heir, self._renewing = heir, None, False
        decision = None if self._stopping else Decision("joined" if life.joined else "replaced", 0.0, 0)
        self._count(end.error, end.code)
        self._handler.session_closed(life.lane, end.error, end.code, end.reason, decision, self._clock())


class _End(NamedTuple):
    """Why a try or a session ended."""

    error: SessionError | None
    code: int | None
    reason: str
