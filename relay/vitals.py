"""How a running relay feels: latencies, the lag of its loop, reloads, the last value of each topic.

Nothing here runs once a message: latency is taken from one message of each call to Redis, which stands for the whole
call, and the lag of the loop from a sleep that should have been shorter.
"""

import time
from collections.abc import Callable, Sequence

import anyio
import msgspec

from relay.histogram import Histogram
from relay.outbox import Topic

PULSE_SECS = 0.25
NEWEST_BYTES_MAX = 4096
"""A topic's newest body is kept for who looks, where it is not larger: 10,000 topics must not keep 10,000 books."""
RATE_SECS, RATE_STALE_SECS = 0.9, 5.0
"""A rate is taken over at least the first; counts that were taken longer ago than the second give none."""


class _Times(msgspec.Struct):
    provider: str = ""
    ts_event: int | None = None
    ts_recv: int = 0


_times = msgspec.json.Decoder(_Times).decode


class Vitals:
    """One relay's; written by the bridge, read by metrics and overview."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.started = time.monotonic()
        self.lag = Histogram()
        self.lag_max = 0.0
        self.to_receipt: dict[str, Histogram] = {}
        """By provider: from the provider's own time to receipt; its clock is part of it. Below zero counts as zero."""
        self.to_stored = Histogram()
        """From receipt to the answer of Redis."""
        self.newest: dict[str, bytes | None] = {}
        """By topic: the newest body handed to Redis; None: too large to be kept."""
        self.keep_newest = False
        self.reloads = {"applied": 0, "unchanged": 0, "refused": 0}
        self.loaded_ns = clock()
        self._calls = 0

    async def pulse(self) -> None:
        """Measure for ever how much later than wished the loop comes back."""
        while True:
            before = time.monotonic()
            await anyio.sleep(PULSE_SECS)
            late = max(0.0, time.monotonic() - before - PULSE_SECS)
            self.lag.add(late)
            if late > self.lag_max:
                self.lag_max = late

    def answered(self, batch: Sequence[tuple[Topic, int]], entries: int) -> None:
        """Redis has answered a call of so many entries, which still stand in the outbox."""
        self._calls += 1
        topic, count = batch[self._calls % len(batch)]  # in turn, so that no topic speaks for all
        message = _times(topic.data[count // 2])
        now = self._clock()
        self.to_stored.add((now - message.ts_recv) / 1e9, entries)
        if message.ts_event is not None:
            histogram = self.to_receipt.get(message.provider)
            if histogram is None:
                histogram = self.to_receipt[message.provider] = Histogram()
            histogram.add(max(0, message.ts_recv - message.ts_event) / 1e9, count)
        if self.keep_newest:
            newest = self.newest
            for topic, count in batch:
                body = topic.data[count - 1]
                newest[topic.name] = body if len(body) <= NEWEST_BYTES_MAX else None


class Rates:
    """Rates of many counters from the last two times somebody asked, however many ask."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._base: tuple[float, dict[str, int]] = (-RATE_STALE_SECS, {})
        self._head = self._base

    def of(self, counts: dict[str, int]) -> Callable[[str], float | None]:
        """Take the counts of this moment; give the rate a second by name, None where it is not known yet."""
        now = self._monotonic()
        if now - self._head[0] >= RATE_SECS:
            self._base, self._head = self._head, (now, counts)
        then, before = self._base
        secs = now - then
        if not before or secs > RATE_STALE_SECS:
            return lambda name: None
        return lambda name: (counts.get(name, 0) - before.get(name, 0)) / secs
