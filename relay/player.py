"""Plays steps (records of journals, frames of files, entries of streams) at a speed, into a target.

A step is `(time in ns, function, argument)`; the function is called with the argument and the time and puts messages
through `Player.put`. Steps before `from_ns` are played as fast as they can be, and what they give is dropped: they only
bring the providers' state to where it was.
"""

import fnmatch
import heapq
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import anyio
from anyio.lowlevel import checkpoint

from relay import records
from relay.codec import line_of
from relay.config import RedisConfig
from relay.journal import Run, read_records
from relay.outbox import Outbox
from relay.outbox import Topic as OutboxTopic
from relay.records import Header
from relay.replay import Replay, ReplayTopic
from relay.sink import Sink, sink_to

Step = tuple[int, Callable[[Any, int], None], Any]
Message = tuple[ReplayTopic, str, bytes]
"""Topic, entry id, bytes."""

TURN_STEPS = 128
"""Steps played without giving the writer a turn."""
SLEEP_SECS_MIN = 0.0005
"""Steps that are due sooner are played at once: the loop's timer is no finer."""
DRAIN_SECS = 600.0
OUTBOX_BYTES = 32 * 1024 * 1024


class Target(Protocol):
    """Where messages go."""

    def take(self, messages: list[Message]) -> None: ...
    def flush(self) -> None: ...
    async def room(self) -> None:
        """Return when there is room; at once where there is."""

    async def finish(self) -> None:
        """Return when everything has arrived."""


class Player:
    """One replay. `speed` is a factor of recorded time, 0: as fast as it goes; it may be set while it plays.

    `only`: globs of topics; `provider`: our name of one. `shown`, where it is set, is awaited with each step and what
    it gave, before that goes out (`--step`).
    """

    def __init__(
        self,
        target: Target,
        *,
        speed: float = 0.0,
        from_ns: int = 0,
        to_ns: int | None = None,
        only: Sequence[str] = (),
        provider: str = "",
    ) -> None:
        self.shown: Callable[[Any, int, list[Message]], Awaitable[None]] | None = None
        self.target, self.from_ns, self.to_ns = target, from_ns, to_ns
        self.prefixes: set[str] = set()
        self.position_ns = 0
        self.steps = self.messages = 0
        self.ended = False
        self._speed, self._only = speed, tuple(only)
        self._mark = b'"provider":"%b"' % provider.encode() if provider else b""
        self._out: list[Message] = []
        self._paused = False
        self._stopped = False
        self._wake = anyio.Event()
        self._anchor: tuple[float, int] | None = None

    # -- controls

    @property
    def speed(self) -> float:
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = speed
        self._nudge()

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._nudge()

    def stop(self) -> None:
        """End it behind the current step."""
        self._stopped = True
        self._nudge()

    def _nudge(self) -> None:
        self._anchor = None
        self._wake.set()

    # -- playing

    def put(self, topic: ReplayTopic, entry_id: str, body: bytes) -> None:
        """Take one message of the current step."""
        wanted = topic.wanted
        if wanted is None:
            wanted = topic.wanted = self._named(topic.name)
        if wanted and (not self._mark or self._mark in body[:300]):
            self._out.append((topic, entry_id, body))

    def wants(self, name: str, body: bytes) -> bool:
        """Tell whether a message of a topic passes `only` and `provider`."""
        return self._named(name) and (not self._mark or self._mark in body[:300])

    def _named(self, name: str) -> bool:
        names = [name, *(name[len(p) :] for p in self.prefixes if p and name.startswith(p))]
        return not self._only or any(fnmatch.fnmatchcase(n, glob) for n in names for glob in self._only)

    async def run(self, steps: Iterable[Step]) -> None:
        """Play all steps; returns when everything has arrived at the target, or after `stop`."""
        out, target = self._out, self.target
        from_ns, to_ns, shown = self.from_ns, self.to_ns, self.shown
        count = 0
        for now_ns, function, argument in steps:
            if to_ns is not None and now_ns >= to_ns:
                break
            if now_ns >= from_ns:
                if self._speed or self._paused:
                    await self._due(now_ns)
                if self._stopped:
                    break
                function(argument, now_ns)
                self.position_ns = now_ns
                if shown is not None:
                    await shown(argument, now_ns, out)
                if out:
                    self.messages += len(out)
                    target.take(out)
                    out.clear()
            else:
                function(argument, now_ns)
                self.position_ns = now_ns
                out.clear()
            self.steps += 1
            count += 1
            if count >= TURN_STEPS:
                count = 0
                target.flush()
                await target.room()
                await checkpoint()
                if self._stopped:
                    break
        target.flush()
        await target.finish()
        self.ended = True

    async def _due(self, now_ns: int) -> None:
        """Wait until a step is due."""
        while not self._stopped:
            if self._paused:
                self.target.flush()
                await self._nap(None)
                continue
            if not self._speed:
                return
            now = time.monotonic()
            if self._anchor is None:
                self._anchor = now, now_ns
                return
            began, began_ns = self._anchor
            left = began + (now_ns - began_ns) / 1e9 / self._speed - now
            if left < SLEEP_SECS_MIN:
                return
            self.target.flush()
            await self._nap(left)

    async def _nap(self, secs: float | None) -> None:
        self._wake = anyio.Event()
        with anyio.move_on_after(secs):
            await self._wake.wait()


# -- where steps come from -----------------------------------------------------------------------------------------


def journal_steps(
    runs: Sequence[Run],
    make: Callable[[Header], Replay],
    tell: Callable[[Path, str], None],
    passed: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Steps of several runs, of several relays too, in one time order. Raises: JournalError."""
    relays: dict[str, list[Run]] = {}
    for run in runs:
        relays.setdefault(run.relay, []).append(run)
    # a relay's runs follow one another; different relays' lie side by side
    return merged([_relay_steps(one, make, tell, passed) for one in relays.values()])


def _relay_steps(
    runs: Sequence[Run],
    make: Callable[[Header], Replay],
    tell: Callable[[Path, str], None],
    passed: Callable[[int], None] | None,
) -> Iterator[Step]:
    for run in runs:
        replay: Replay | None = None
        for file in run.files:
            for record in read_records(file.path, tell, passed=passed):
                if record.do == "header":
                    header = records.data_of(record, Header)
                    if replay is None:
                        replay = make(header)
                        apply = replay.apply
                    else:
                        replay.next_file(header)
                elif replay is not None:
                    yield record.t, apply, record


def merged(sources: Sequence[Iterator[Step]]) -> Iterator[Step]:
    """Several sources, each in time order, in one."""
    if len(sources) == 1:
        return sources[0]
    return heapq.merge(*sources, key=lambda step: step[0])


# -- targets -------------------------------------------------------------------------------------------------------


class LinesTarget:
    """JSON lines: the bare messages, or with topic and id (`topics`)."""

    def __init__(self, stream: BinaryIO, *, topics: bool = False) -> None:
        self._stream, self._topics = stream, topics

    def take(self, messages: list[Message]) -> None:
        if self._topics:
            self._stream.write(b"".join([line_of(topic.name, entry_id, body) for topic, entry_id, body in messages]))
        else:
            self._stream.write(b"".join([body + b"\n" for _, _, body in messages]))

    def flush(self) -> None:
        self._stream.flush()

    async def room(self) -> None:
        return

    async def finish(self) -> None:
        self._stream.flush()


class RedisTarget:
    """Streams and channels under a prefix of each recorded relay, written by the relay's own sink.

    `places`: by relay the prefix that stands before its live topic names, and the prefix of the sink's own keys.
    `already` counts messages that a stream had.
    """

    def __init__(
        self,
        url: str,
        settings: RedisConfig,
        places: dict[str, tuple[str, str]],
        *,
        run: int,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.already = 0
        self.places = places
        self._outboxes: dict[str, Outbox] = {}
        self._sinks: dict[str, Sink] = {}
        for relay, (_, own) in places.items():
            outbox = self._outboxes[relay] = Outbox(OUTBOX_BYTES, OUTBOX_BYTES // 2)
            self._sinks[relay] = sink_to(
                url=url,
                settings=settings,
                outbox=outbox,
                relay=relay,
                prefix=own,
                run=run,
                raise_floor=lambda ms: None,
                on_event=on_event,
            )

    async def run(self, play: Callable[[], Awaitable[None]]) -> None:
        """Write while `play` runs. Raises: SinkError, in a group."""
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            for sink in self._sinks.values():
                tasks.start_soon(sink.run)
            for sink in self._sinks.values():
                await sink.ready.wait()
            await play()
            for sink in self._sinks.values():
                await sink.stop()
            tasks.cancel_scope.cancel()

    def take(self, messages: list[Message]) -> None:
        for topic, entry_id, body in messages:
            target = topic.target
            if target is None:
                target = topic.target = self._open(topic)
            outbox, out, floor = target
            if floor is not None:
                if _order(entry_id) <= floor:
                    self.already += 1
                    continue
                topic.target = (outbox, out, None)
            outbox.add(out, entry_id, body)

    def _open(self, topic: ReplayTopic) -> tuple[Outbox, OutboxTopic, tuple[int, int] | None]:
        outbox = self._outboxes[topic.relay]
        name = self.places[topic.relay][0] + topic.name
        last = outbox.earlier.get(name)
        return outbox, outbox.topic(name, topic.kind, topic.provider), _order(last) if last else None

    def flush(self) -> None:
        for sink in self._sinks.values():
            sink.notify()

    async def room(self) -> None:
        for sink in self._sinks.values():
            if sink.outbox.full:
                await sink.room()

    async def finish(self) -> None:
        for sink in self._sinks.values():
            await sink.drain(DRAIN_SECS)

    @property
    def left(self) -> int:
        """Messages that Redis has not taken."""
        return sum(outbox.entries() for outbox in self._outboxes.values())


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)
