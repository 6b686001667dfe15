"""One simulated connection: reads the client, sends answers and data at the set rate, plays the connection's faults.

Writes go to the library's buffer in the moment a step is made, so answers and data keep their order though two tasks
make them; both wait when the client does not read.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from relay.simulator.base import Close, Side, Step
from relay.simulator.faults import END_NOTICE_SECS, LATE_BY, Faults, garbage_binary, garbage_text
from relay.simulator.playback import SETTLE_SECS, Playing, Recording, passes

if TYPE_CHECKING:
    from relay.simulator.server import Simulator

TICK_SECS = 0.25
BATCH_SECS = 0.004
"""Least time between two batches: at 20,000/s this is 80 messages a write, and a quarter of a ms of jitter at 1,000."""
BATCH_MAX = 256
"""Most messages that go out between two looks at the client and the faults."""
BEHIND_SECS_MAX = 1.0
"""What a slow client missed is caught up to this much; the rest was never due."""


class Source(Protocol):
    """Where a connection's data come from. Times are seconds of the loop's clock."""

    def due(self, now: float) -> int: ...
    def next_at(self, now: float) -> float | None: ...
    def take(self, now_ns: int) -> list[Step]: ...
    def jump(self) -> None: ...


class Walk:
    """The side's own made-up data, at a rate."""

    def __init__(self, side: Side, rate: float, now: float) -> None:
        self._side, self.rate = side, rate
        self._begun, self._sent = now, 0

    def due(self, now: float) -> int:
        if not self.rate:
            return BATCH_MAX
        # the first is due at once: at one a minute nobody wants to wait for it
        due = int((now - self._begun) * self.rate) + 1 - self._sent
        most = max(1, int(self.rate * BEHIND_SECS_MAX))
        if due > most:
            self._begun += (due - most) / self.rate
            due = most
        return due

    def next_at(self, now: float) -> float | None:
        return self._begun + self._sent / self.rate if self.rate else now

    def take(self, now_ns: int) -> list[Step]:
        steps = self._side.step(now_ns)
        self._sent += len(steps)
        return steps

    def begin(self, now: float) -> None:
        """Count from now on: nothing was subscribed so far."""
        self._begun, self._sent = now, 0

    def jump(self) -> None:
        self._side.jump()


class Session:
    """The provider's end of one accepted connection, and its IO."""

    side: Side

    def __init__(self, simulator: "Simulator", provider: str, connection: ServerConnection) -> None:
        self.simulator, self.provider, self.connection = simulator, provider, connection
        self.fault_set: object = None
        self.faulty = False
        self.sent = 0
        """Data messages on this connection since its faults were set."""
        self._stats = simulator.stats[provider]
        self._recording: Recording | None = simulator.recordings.get(provider)
        self._playing: Playing | None = None
        self._wake = asyncio.Event()
        self._heard_at: float | None = None
        """When the client last did something: opened the connection, sent a message."""
        self._silent = False
        self._rounds: dict[str, int] = {}
        self._once: set[str] = set()
        self._late: list[tuple[int, Step]] = []
        """Messages that are sent late: when so many have been sent."""

    def faults_set(self, faults: object, faulty: bool) -> None:
        """Other faults hold from now on: count anew."""
        self.fault_set, self.faulty = faults, faulty
        self.sent, self._silent = 0, False
        self._rounds.clear()
        self._once.clear()

    async def run(self) -> None:
        """Serve the connection until it ends. Raises: whatever the side raises; ConnectionClosed."""
        self._heard_at = asyncio.get_running_loop().time()
        faults = self._faults()
        if faults.accept_and_close:
            self._count("accept_and_close")
            await self.connection.close(faults.accept_and_close, "simulated close")
            return
        await self._send(self._own(self.side.opened(self.simulator.clock())))
        pump = asyncio.create_task(self._pump(), name=f"simulator {self.provider}")
        listen = asyncio.create_task(self._listen(), name=f"simulator {self.provider} reader")
        try:
            await asyncio.wait([pump, listen], return_when=asyncio.FIRST_COMPLETED)
        finally:
            pump.cancel()
            listen.cancel()
            results = await asyncio.gather(pump, listen, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
                raise result

    def wake(self) -> None:
        """Look again at what is due."""
        self._wake.set()

    # -- what the client says ------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        clock, stats = self.simulator.clock, self._stats
        async for message in self.connection:
            stats.received += 1
            stats.heard.append(message)
            self._heard_at = asyncio.get_running_loop().time()
            await self._send(self._own(self.side.receive(message, clock())))
            self._wake.set()

    # -- what goes out by itself ---------------------------------------------------------------------------------

    async def _pump(self) -> None:
        now_of = asyncio.get_running_loop().time
        opened_at = now = now_of()
        tick_at, ends_at = now + TICK_SECS, 0.0
        walk = Walk(self.side, self.simulator.rate_of(self.provider), now)
        while True:
            now = now_of()
            faults = self._faults()
            wake_at = tick_at
            if faults.drop_every_secs:
                if now - opened_at >= faults.drop_every_secs:
                    return await self._drop("drop_every_secs")
                wake_at = min(wake_at, opened_at + faults.drop_every_secs)
            if faults.end_secs:
                age = now - opened_at
                if age >= faults.end_secs and not ends_at:
                    ends_at = now + END_NOTICE_SECS
                    self._count("end_secs")
                    ending = getattr(self.side, "ending", None)
                    if ending is not None:
                        await self._send(ending(self.simulator.clock(), END_NOTICE_SECS))
                if ends_at and now >= ends_at:
                    return await self._flush([Close(1001, "simulated end")])
                wake_at = min(wake_at, ends_at or opened_at + faults.end_secs)
            if now >= tick_at:
                tick_at = now + TICK_SECS
                await self._send(self._own(self.side.tick(self.simulator.clock())))
            rate = self.simulator.rate_of(self.provider)
            if rate != walk.rate:
                walk.rate = rate
                walk.begin(now)
            if self._quiet(faults):
                walk.begin(now)
            else:
                source: Source | None = walk if self._recording is None else self._play(now)
                if source is not None:
                    next_at = await self._data(source, now, faults)
                    if next_at is None and source is walk:
                        walk.begin(now)
                    if next_at is not None:
                        wake_at = min(wake_at, max(next_at, now + BATCH_SECS) if next_at > now else now)
                elif self._heard_at is not None:
                    wake_at = min(wake_at, max(self._heard_at + SETTLE_SECS, now + BATCH_SECS))
            await self._sleep_until(wake_at)

    def _play(self, now: float) -> Playing | None:
        """The place in the recording; it begins when the client has subscribed and has settled.

        The side's own data is looked at only to learn that something is subscribed, and thrown away.
        """
        if self._playing is None and self._heard_at is not None and now - self._heard_at >= SETTLE_SECS:
            assert self._recording is not None
            if self.side.step(self.simulator.clock()):
                self._playing = Playing(self._recording, now)
            else:
                self._heard_at = None
        return self._playing

    def _quiet(self, faults: Faults) -> bool:
        """Tell whether a fault holds all data back."""
        if faults.mute:
            self._count_once("mute")
        if faults.silence:
            self._count_once("silence")
        return faults.mute or faults.silence or self._silent

    async def _data(self, source: Source, now: float, faults: Faults) -> float | None:
        """Send what is due; give when more is, None when there is nothing to wait for."""
        clock = self.simulator.clock
        left = min(source.due(now), BATCH_MAX)
        batch: list[Step] = []
        while left > 0:
            if faults.jump_every and self._round("jump_every", faults.jump_every):
                source.jump()
            steps = source.take(clock())
            if not steps:
                await self._flush(batch)
                return None
            left -= len(steps)
            if not faults.touches_data:
                batch += self._overdue(faults)
                batch += steps
                self._sent(len(steps))
                continue
            for step in steps:
                if faults.stall_after is not None and self.sent >= faults.stall_after:
                    await self._flush(batch)
                    self._silent = True
                    self._count("stall_after")
                    return None
                if faults.late_every and not isinstance(step, Close) and self._round("late_every", faults.late_every):
                    self._sent(1)
                    self._late.append((self.sent + LATE_BY, step))
                    continue
                batch += self._overdue(faults)
                batch.append(step)
                if isinstance(step, Close):
                    continue
                self._sent(1)
                if faults.repeat_every and self._round("repeat_every", faults.repeat_every):
                    batch.append(step)
                if faults.garbage_every and self._round("garbage_every", faults.garbage_every):
                    batch.append(_Text(garbage_text(self.simulator.garbage)))
                if faults.binary_garbage_every and self._round("binary_garbage_every", faults.binary_garbage_every):
                    batch.append(garbage_binary(self.simulator.garbage))
                if faults.slow_secs:
                    await self._flush(batch)
                if faults.drop_after and self.sent >= faults.drop_after:
                    await self._flush(batch)
                    await self._drop("drop_after")
                    return None
                if faults.closing is not None and faults.close_after and self.sent >= faults.close_after[0]:
                    self._count("close_after")
                    await self._flush([*batch, faults.closing])
                    return None
        await self._flush(batch)
        return source.next_at(now)

    def _overdue(self, faults: Faults) -> list[Step]:
        """Give the late messages whose time has come; all of them once the fault is over."""
        due = sum(not faults.late_every or at <= self.sent for at, _ in self._late)
        steps, self._late = [step for _, step in self._late[:due]], self._late[due:]
        return steps

    async def _drop(self, name: str) -> None:
        """Abort TCP. What was sent before has left our buffer, as far as the client reads."""
        self._count(name)
        transport = self.connection.transport
        transport.set_write_buffer_limits(high=0)
        await self.connection.drain()
        transport.abort()
        await self.connection.wait_closed()

    # -- writing -------------------------------------------------------------------------------------------------

    def _own(self, steps: Sequence[Step]) -> Sequence[Step]:
        """What of the side's own answers and heartbeats goes out: in a playback its data does not."""
        if self._recording is not None and steps:
            if self._playing is not None:
                steps = [step for step in steps if self._playing.passes(step)]
            else:
                steps = [step for step in steps if passes(self._recording.controls, step, keepalive=True)]
        return steps

    async def _send(self, steps: Sequence[Step]) -> None:
        """Send answers and heartbeats, unless a fault keeps the connection silent."""
        if steps and not self._silent and not self._faults().silence:
            self._stats.answers += sum(not isinstance(step, Close) for step in steps)
            await self._flush(list(steps))

    async def _flush(self, batch: list[Step]) -> None:
        """Write and forget a batch; waits while the client does not read. Raises: ConnectionClosed."""
        if not batch:
            return
        slow = self._faults().slow_secs
        if slow:
            self._count_once("slow_secs")
            steps, batch[:] = list(batch), []
            for step in steps:
                await asyncio.sleep(slow)
                await self._write([step])
            return
        await self._write(batch)
        batch.clear()

    async def _write(self, steps: Sequence[Step]) -> None:
        connection = self.connection
        protocol = connection.protocol
        close: Close | None = None
        async with connection.send_context():
            for step in steps:
                if isinstance(step, str):
                    protocol.send_text(step.encode("utf-8", "surrogatepass"))
                elif isinstance(step, _Text):
                    protocol.send_text(step)
                elif isinstance(step, Close):
                    close = step
                    break
                else:
                    protocol.send_binary(step)
        if close is not None:
            await connection.close(close.code, close.reason)

    # -- small things --------------------------------------------------------------------------------------------

    def _faults(self) -> Faults:
        return self.simulator.current_faults(self)

    def _sent(self, count: int) -> None:
        self.sent += count
        self._stats.sent += count

    def _round(self, name: str, every: int) -> bool:
        """Tell once for each `every` data messages of this connection that a round is full."""
        rounds = self.sent // every
        if rounds <= self._rounds.get(name, 0):
            return False
        self._rounds[name] = rounds
        self._count(name)
        return True

    def _count(self, name: str) -> None:
        self._stats.faults[name] += 1

    def _count_once(self, name: str) -> None:
        """Count a fault that lasts, once for each time it is set on this connection."""
        if name not in self._once:
            self._once.add(name)
            self._count(name)

    async def _sleep_until(self, at: float) -> None:
        """Sleep, or less when something is to be looked at; always give way to the reader."""
        loop = asyncio.get_running_loop()
        if at <= loop.time():
            await asyncio.sleep(0)
            return
        handle = loop.call_at(at, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            handle.cancel()
        self._wake.clear()


class _Text(bytes):
    """The payload of a text frame that need not be UTF-8."""
