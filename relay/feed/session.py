"""One session: the life of one WebSocket connection and of its provider object.

`_read` is the hot loop: no `await`, no logging and no formatting between a frame and its outputs. Beside it, in one
task group: the sender (order of `to_send`, subscribe limits), the ticker (provider's tick, silence, pings, age) and the
REST calls. None of them lets an error out: each ends the session through `end`.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from websockets.exceptions import ConnectionClosed
from websockets.frames import BINARY

from relay.errors import SessionError, SessionStale
from relay.feed.connection import CLOSE_SECS, Wire, closing_error, host_of
from relay.feed.handler import FeedStats, Handler, Lane
from relay.feed.limits import SharedLimits
from relay.feed.rest import Rest, files_of
from relay.lifecycle import fault
from relay.model import CHANNEL_OF
from relay.providers.base import Connect, Frame, Output, Provider, Reply, Request, Seen, Send, Subscription
from relay.retry import HEALTHY_SECS

if TYPE_CHECKING:
    from relay.feed.feed import Feed

BATCH_FRAMES = 128
"""Most frames taken without giving the other tasks a turn (about 1 ms of work)."""
TICK_SECS = 0.25
OUTGOING_MAX = 100_000
"""Messages that may wait to be sent: far above any subscription list; a peer that takes none of them is gone."""
GONE_SECS = 0.1
LAST_REPLY_SECS = 5.0
"""How long a call that changes something (a refresh token that is rotated) may outlive its session; see `_finish`."""
QUIET_HEALTHY_SECS = 10 * HEALTHY_SECS
"""An account's stream may say nothing for hours: a session this old is healthy without data, and a retry polite."""
FAULTS_MAX = 20
"""Different faults of a provider's tick that are told in one session; the same one is told once."""

_log = logging.getLogger("relay.feed")


class Session:
    """Runs one open connection to its end. `error`, `code` and `reason` say why it ended."""

    def __init__(
        self,
        feed: "Feed",
        lane: Lane,
        provider: Provider,
        spec: Connect,
        wire: Wire,
        *,
        handler: Handler,
        clock: Callable[[], int],
        limits: SharedLimits,
        stats: FeedStats,
        healthy: Callable[[], None],
        renew_after: float | None,
    ) -> None:
        self.feed, self.lane, self.provider, self.spec, self.wire = feed, lane, provider, spec, wire
        self.error: SessionError | None = None
        self.code: int | None = None
        self.reason = ""
        self._handler, self._clock, self._limits, self._stats = handler, clock, limits, stats
        self._healthy = healthy
        self._renew_after = renew_after
        self._ending = False  # `error` is settled; nothing more is read
        self._planned = False  # ended by us on purpose
        self._blocked: anyio.CancelScope | None = None  # waiting for the handler's room: silence is our own doing
        self.carried = False  # data came
        self._told: set[str] = set()
        self._useless = 0  # of the provider's, as far as counted
        self._changing = 0  # calls under way that change something at the provider
        self._outgoing: deque[Send | Request] = deque()
        self._to_send = anyio.Event()
        self._all_sent = anyio.Event()
        self._replied = anyio.Event()
        self._rest = Rest(files_of(getattr(provider, "options", None)))
        self._group: TaskGroup | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, pending: Sequence[tuple[bool, Sequence[Subscription]]] = ()) -> None:
        """Live until the connection ends, a SessionError ends it, or `stop` is called. Never raises a SessionError.

        `pending`: subscriptions (True) and their ends (False) that were wished while the connection was opened.
        """
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                now = self._clock()
                self._handler.session_opened(self.lane, self.provider, now)
                self._ask(now, self.provider.opened, now, vital=True)
                for wanted, subscriptions in pending:
                    self.change(wanted, subscriptions)
                group.start_soon(self._send)
                group.start_soon(self._tick)
                await self._read()
                await self._finish()
                group.cancel_scope.cancel()
        finally:
            self._ending = True
            self.wire.transport.abort()
            with anyio.CancelScope(shield=True):
                await self._rest.close()

    @property
    def gone(self) -> bool:
        """Whether it is ending, or has ended."""
        return self._ending

    def stop(self) -> None:
        """End it on purpose: frames that wait are not read any more, the peer gets a close."""
        self._planned = True
        self.end(None)

    def end(self, error: SessionError | None) -> None:
        """End it; the first reason stands."""
        if not self._ending:
            self._ending = True
            self.error = error
            self.wire.wake()
            if self._blocked is not None:
                self._blocked.cancel()

    def change(self, wanted: bool, subscriptions: Sequence[Subscription]) -> None:
        """Subscribe (or end subscriptions) at run time."""
        if self._ending:
            return
        now = self._clock()
        change = self.provider.subscribe if wanted else self.provider.unsubscribe
        self._ask(now, change, subscriptions, now, vital=True)

    async def _finish(self) -> None:
        """Say goodbye: the provider's last outputs and messages, then a close.

        A call that changes something is waited for, the connection gone or not: its answer may hold the only copy of a
        rotated token.
        """
        self._ending = True
        with anyio.move_on_after(LAST_REPLY_SECS):
            while self._changing:
                self._replied = anyio.Event()
                await self._replied.wait()
        wire = self.wire
        now = self._clock()
        if self._handler.asked is not None:
            self._handler.asked(self.lane, "closed", now, (now,))
        wish: SessionError | None = None
        try:
            last = self.provider.closed(now)
        except SessionError as error:
            last, wish = (), error
        except Exception as error:
            last = self._fault(error, None)
        self._give(last, now)
        farewell = self._drain()
        if self._planned and not wire.lost:
            self._queue(farewell)
        self._handler.batch_end(self.lane)
        if wire.lost and self.error is None and not self._planned:
            self.error, self.code, self.reason = closing_error(wire, self.spec)
            try:
                wish = wish or self.provider.ended(self.code, self.reason, self.carried)
            except Exception as error:
                self._give(self._fault(error, None), now)
            self.error = wish or self.error
        elif isinstance(self.error, SessionStale):
            self.error = wish or self.error
        if self._planned and not wire.lost:
            self.code = 1000
        self.feed.leaving(self)
        if wire.lost:
            return
        if self._planned:
            if self._outgoing:
                self._all_sent = anyio.Event()
                with anyio.move_on_after(CLOSE_SECS):
                    await self._all_sent.wait()
        # a peer that has gone silent will not answer: the close goes out, nobody waits for it
        with anyio.move_on_after(GONE_SECS if isinstance(self.error, SessionStale) else CLOSE_SECS):
            await wire.hang_up()

    # -- in --------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        feed, lane, wire, handler = self.feed, self.lane, self.wire, self._handler
        clock, stats = self._clock, self._stats
        provider = self.provider
        waiting, popleft = wire.waiting, wire.waiting.popleft
        receive, to_send, outputs_to = provider.receive, provider.to_send, handler.outputs
        make = tuple.__new__
        while not self._ending:
            if not waiting:
                handler.batch_end(lane)
                if wire.lost:
                    return
                await wire.wait()
                continue
            if handler.full and feed.waits():
                handler.batch_end(lane)
                await self._room()
                continue
            record = handler.frame(lane) if handler.frame is not None else None
            count = min(len(waiting), BATCH_FRAMES)
            index = size = gave = 0
            for index in range(count):  # noqa: B007
                event = popleft()
                data = event.data
                if type(data) is not bytes:
                    data = bytes(data)
                size += len(data)
                now = clock()
                frame: Frame = make(Frame, (now, data, event.opcode is BINARY))
                if record is not None:
                    record(frame)
                try:
                    outputs = receive(frame)
                    sends = to_send()
                except SessionError as error:
                    stats.ending += 1
                    self.end(error)
                    self._queue(self._drain())
                    break
                except Exception as error:
                    outputs, sends = self._fault(error, data), self._drain()
                if outputs:
                    if outputs[0].__class__ is not Seen:  # a number alone: the frame counts as useless
                        gave += 1
                    outputs_to(lane, outputs, now)
                    if not self.carried:
                        self.carried = _has_data(outputs)
                if sends:
                    self._queue(sends)
            stats.frames += index + 1
            stats.gave += gave
            stats.bytes += size
            self._count_useless()
            if waiting:
                handler.batch_end(lane)
                await handler.turn()

    async def _room(self) -> None:
        """Wait for the handler's room, or for the session's end."""
        try:
            with anyio.CancelScope() as self._blocked:
                await self._handler.room()
        finally:
            self._blocked = None

    def _ask(self, now: int, question: Callable[..., Sequence[Output]], *given: Any, vital: bool = False) -> None:
        """Call the provider beside the hot loop, hand over what it gives, send what it wants.

        `vital`: without this the session is of no use, so a fault of the provider ends it.
        """
        if self._ending:
            return
        if self._handler.asked is not None:
            self._handler.asked(self.lane, question.__name__, now, given)
        try:
            outputs = question(*given)
        except SessionError as error:
            self.end(error)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if told not in self._told and len(self._told) < FAULTS_MAX:
                self._told.add(told)
                self._give(self._fault(error, None), now)
            if vital:
                self.end(SessionError(f"a fault in the code of {self.feed.spec.name}: {told}", code="internal"))
        else:
            self._give(outputs, now)
        self._queue(self._drain())

    def _give(self, outputs: Sequence[Output], now: int) -> None:
        if outputs:
            self._handler.outputs(self.lane, outputs, now)
            self.carried = self.carried or _has_data(outputs)
            self._handler.batch_end(self.lane)
        self._count_useless()

    def _count_useless(self) -> None:
        useless = self.provider.useless
        self._stats.useless += useless - self._useless
        self._useless = useless

    def _fault(self, error: Exception, data: bytes | None) -> Sequence[Output]:
        """Turn a fault of the provider's code into a reject; the session lives."""
        self._stats.internal += 1
        kind = type(error).__name__
        if kind not in self._told and len(self._told) < FAULTS_MAX:
            self._told.add(kind)
            _log.error("fault in provider code: provider=%s", self.feed.name, exc_info=error)
        return (fault(self.provider, error, data),)

    # -- out -------------------------------------------------------------------------------------------------------

    def _drain(self) -> list[Send | Request]:
        try:
            return self.provider.to_send()
        except SessionError as error:
            self.end(error)
        except Exception as error:
            text = f"a fault in the code of {self.feed.spec.name}: {type(error).__name__}: {error}"
            self.end(SessionError(text, code="internal"))
        return []

    def _queue(self, items: Sequence[Send | Request]) -> None:
        if not items:
            return
        self._outgoing.extend(items)
        self._to_send.set()
        if len(self._outgoing) > OUTGOING_MAX:
            text = f"{host_of(self.spec.url)}: it takes none of what is sent to it"
            self.end(SessionError(text, code="send_stuck"))

    async def _send(self) -> None:
        """Send what the provider wants sent, in order, as fast as its limits allow."""
        group = self._group
        assert group is not None
        outgoing = self._outgoing
        while True:
            if not outgoing:
                self._to_send = anyio.Event()
                self._all_sent.set()
                await self._to_send.wait()
                continue
            item = outgoing[0]
            if isinstance(item, Request):
                outgoing.popleft()
                group.start_soon(self._request, item)
                continue
            if item.subscribes and self._limits.subscribes is not None:
                await self._limits.subscribes.take(item.subscribes)
            self._handler.sent(self.lane, item)
            self._stats.sent += 1
            try:
                await self.wire.send(item.data)
            except ConnectionClosed:
                self._all_sent.set()
                return  # the reader meets the end too, after the frames that still wait
            outgoing.popleft()

    async def _request(self, request: Request) -> None:
        if self._limits.requests is not None:
            await self._limits.requests.take()
        self._stats.requests += 1
        changes = request.method not in ("GET", "HEAD")
        self._changing += changes
        try:
            reply = await self._rest.call(request, lambda: self._handler.sent(self.lane, request))
            now = self._clock()
            if not self._ending:
                self._handler.replied(self.lane, reply, now)
                carried = self.carried
                self._ask(now, self.provider.replied, reply, now)
                self.carried = carried  # an answer proves nothing of the stream
            elif changes:
                self._too_late(reply, now)
            self._handler.settled(self.lane)
        finally:
            self._changing -= changes
            self._replied.set()

    def _too_late(self, reply: Reply, now: int) -> None:
        """Let the provider learn from an answer that comes when the session is over; what it gives is of no use."""
        try:
            self.provider.replied(reply, now)
        except SessionError:
            pass
        except Exception as error:
            self._fault(error, None)

    # -- time ------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Call the provider's tick, watch for silence, ping, count the age.

        Time is counted in ticks that are never longer than two: after a stall of ours (a sleeping machine, a blocked
        loop) the answers are already in the socket's buffer, and nobody may be called dead before they were read.
        """
        spec, wire = self.spec, self.wire
        host = host_of(spec.url)
        seen, silent, age, since_ping, unanswered = wire.seen, 0.0, 0.0, 0.0, 0.0
        pong: Any = None
        before = anyio.current_time()
        while not self._ending:
            await anyio.sleep(TICK_SECS)
            if self._ending:
                return
            now = self._clock()
            self._ask(now, self.provider.tick, now)
            moment = anyio.current_time()
            step = moment - before
            before = moment
            age += step
            if age >= (HEALTHY_SECS if self.carried else QUIET_HEALTHY_SECS):
                self._healthy()
            aged = self._renew_after is not None and age >= self._renew_after
            if aged or getattr(self.provider, "renew", False):
                match self.feed.renewal(self):
                    case "joined":
                        self.stop()
                        return
                    case "alone":
                        self.end(SessionError(f"{host}: renewed before the provider cuts it", code="renewed"))
                        return
            step = min(step, 2 * TICK_SECS)
            behind = self._blocked is not None or bool(wire.waiting)  # what would break the silence is not read yet
            if wire.seen != seen or behind:
                seen, silent = wire.seen, 0.0
            else:
                silent += step
                if spec.silence_secs is not None and silent >= spec.silence_secs:
                    text = f"{host}: nothing came for {spec.silence_secs:g} s"
                    self.end(SessionStale(text, code="silence"))
                    return
            if pong is not None:
                unanswered = 0.0 if behind else unanswered + step
                if pong.done():
                    pong = None
                elif spec.pong_secs is not None and unanswered >= spec.pong_secs:
                    self.end(SessionStale(f"{host}: no pong within {spec.pong_secs:g} s", code="pong"))
                    return
            since_ping += step
            if spec.ping_secs is not None and pong is None and since_ping >= spec.ping_secs:
                since_ping = unanswered = 0.0
                # a peer that takes nothing at all must not hold up the ticks: then the ping counts as unanswered
                pong = self.wire.loop.create_future()
                with contextlib.suppress(ConnectionClosed), anyio.move_on_after(TICK_SECS):
                    pong = await wire.ping()


def _has_data(outputs: Sequence[Output]) -> bool:
    return any(type(output) in CHANNEL_OF for output in outputs)
