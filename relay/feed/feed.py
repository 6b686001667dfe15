"""The loop around sessions: connect, live, decide by `retry.Backoff`, wait, again."""

import random as random_module
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import anyio

from relay.errors import SessionError
from relay.feed.connection import Wire, open_wire
from relay.feed.handler import FeedStats, Handler
from relay.feed.limits import SharedLimits
from relay.feed.session import Session
from relay.providers.base import Connect, Provider, ProviderSpec, Subscription
from relay.retry import Backoff, Decision

RENEW_SHARE = (0.90, 0.05)
"""A connection that the provider cuts at an age is renewed at 90 to 95 % of it; spread, so that not all go at once."""


class Feed:
    """One planned connection of a provider, kept alive until `stop`.

    `live` is true from the upgrade to the end of a session. `provider` is the session's object, None between sessions.
    `decision` is the last one of `retry`; `fatal` means that `run` has returned and nothing more comes.
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
        self.name, self.label, self.spec = name, label, spec
        self.stats = FeedStats()
        self.live = False
        self.provider: Provider | None = None
        self.decision: Decision | None = None
        self.waits: Callable[[], bool] = lambda: True
        """Tells whether it stops reading while the handler is full; what may be conflated need not."""
        self._make, self._clock, self._handler, self._limits, self._random = make, clock, handler, limits, random
        self._backoff = Backoff(spec.policy)
        self._session: Session | None = None
        self._pending: list[tuple[bool, Sequence[Subscription]]] = []
        self._stopping = False
        self._waits: anyio.CancelScope | None = None  # around every wait that is not a session's
        self._done = anyio.Event()
        self._running = False

    async def run(self) -> None:
        """Keep the connection until `stop`, or until a fatal refusal. Once.

        Lets out what the handler raises, and never what a session meets.
        """
        self._running = True
        try:
            while not self._stopping:
                end = await self._one()
                if end is None:
                    return
                now = self._clock()
                error = end.error
                if self._stopping:
                    self.decision = None
                else:
                    self.decision = self._backoff.next(
                        error, jitter=self._random(), now_secs=anyio.current_time(), now_ns=now
                    )
                code = "stopped" if end.code is None else f"close_{end.code}"
                self.stats.count_end(code if error is None else error.code or "error")
                self._handler.session_closed(self, error, end.code, end.reason, self.decision, now)
                if self.decision is None or self.decision.kind == "fatal":
                    return
                if self.decision.delay_secs > 0:
                    with self._interruptible():
                        await anyio.sleep(self.decision.delay_secs)
        finally:
            self._running = False
            self._done.set()

    async def stop(self) -> None:
        """End it cleanly and wait until `run` has returned: a few seconds at most. Waiting frames are not read."""
        self._stopping = True
        if self._waits is not None:
            self._waits.cancel()
        if self._session is not None:
            self._session.stop()
        if self._running:
            await self._done.wait()

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """Subscribe at run time. Between sessions nothing is done: `make` gives the next one what is wanted then."""
        self._change(True, subscriptions)

    def unsubscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """End subscriptions at run time; see `subscribe`."""
        self._change(False, subscriptions)

    def _change(self, wanted: bool, subscriptions: Sequence[Subscription]) -> None:
        if self._session is not None:
            self._session.change(wanted, subscriptions)
        elif self.provider is not None:
            self._pending.append((wanted, subscriptions))  # the connection is just being opened

    def _interruptible(self) -> anyio.CancelScope:
        self._waits = scope = anyio.CancelScope()
        if self._stopping:
            scope.cancel()
        return scope

    async def _one(self) -> "_End | None":
        """Try one connection and live its session. None: stopped before there was one."""
        async with AsyncExitStack() as held:
            opened: tuple[Connect, Wire] | None = None
            try:
                with self._interruptible():
                    await held.enter_async_context(self._limits.connection())
                    if self._limits.connects is not None:
                        await self._limits.connects.take()
                    opened = await self._open()
                if opened is None:
                    return None
                return await self._live(*opened)
            except SessionError as error:
                return _End(error, None, "")
            finally:
                self.live = False
                self.provider = self._session = None

    async def _open(self) -> tuple[Connect, Wire]:
        self.stats.connects += 1
        self._pending = []
        try:
            self.provider = self._make()
            spec = self.provider.connect()
        except SessionError:
            raise
        except Exception as error:
            text = f"a fault in the code of {self.spec.name}: {type(error).__name__}: {error}"
            raise SessionError(text, code="internal") from error
        return spec, await open_wire(spec, self._clock)

    async def _live(self, spec: Connect, wire: Wire) -> "_End":
        provider = self.provider
        assert provider is not None
        least, spread = RENEW_SHARE
        self._session = session = Session(
            self,
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
        self.live = True
        self.stats.opened += 1
        await session.run(self._pending)
        return _End(session.error, session.code, session.reason)


class _End(NamedTuple):
    """Why a try or a session ended."""

    error: SessionError | None
    code: int | None
    reason: str
