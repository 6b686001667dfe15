"""How much goes into one call, how long to wait after a failed one, and what was counted."""

from random import random

from relay.histogram import ENTRIES, Histogram

ENTRIES_MAX = 1_000
BYTES_MAX = 256 * 1024
"""One call: about 2 ms of the server's time, so that nobody else waits for it [measured]. Bytes of bodies: counted with
what an entry costs in memory a call held 590 trades, too few where relay and server share processors, so that ever more
waited."""
SLOW_CALL_SECS = 0.05
"""A call that takes so much longer than twice the way there and back makes the next ones smaller, down to ENTRIES_MIN.
What the way takes holds what this process is late by (a slow disk): smaller calls would not help that."""
ENTRIES_MIN = 10
BYTES_MIN = 8 * 1024
BACKOFF_FIRST_SECS, BACKOFF_CAP_SECS = 0.05, 1.0
"""The cap is below the lease: a relay that waits for room in Redis keeps its name."""


class SinkStats:
    """Plain counters since the start."""

    __slots__ = (
        "batch_max", "batches", "bytes", "call_secs", "call_secs_max", "calls", "confirmed", "connects", "durations",
        "entries", "errors", "gone", "lost", "refences", "restamped", "trimmed", "unpublished",
    )  # fmt: skip

    def __init__(self) -> None:
        self.calls = 0  # append calls answered
        self.call_secs = self.call_secs_max = 0.0  # time spent waiting for those
        self.batch_max = 0  # most entries in a call
        self.durations, self.batches = Histogram(), Histogram(ENTRIES)  # of those calls
        self.entries = self.bytes = 0  # that Redis has confirmed
        self.confirmed = 0  # of those, the ones whose reply was lost
        self.connects = self.refences = 0
        self.lost = 0  # times a topic came back without acknowledged entries
        self.gone = 0  # streams deleted by somebody
        self.trimmed = 0  # entries trimmed by us outside XADD's MAXLEN
        self.restamped = self.unpublished = 0
        self.errors: dict[str, int] = {}  # by reaction, and `lost` for connections


class Pace:
    """Size of the next call and pause before the next try."""

    __slots__ = ("bytes_max", "entries_max", "stats", "tries")

    def __init__(self, stats: SinkStats) -> None:
        self.stats = stats
        self.entries_max, self.bytes_max = ENTRIES_MAX, BYTES_MAX
        self.tries = 0

    def answered(self, secs: float, entries: int, trip_secs: float) -> None:
        """Count a call, and send less at once while it costs Redis much. A long way (`trip_secs`) is no such cost."""
        stats = self.stats
        stats.calls += 1
        stats.call_secs += secs
        stats.durations.add(secs)
        stats.batches.add(entries)
        if secs > stats.call_secs_max:
            stats.call_secs_max = secs
        if entries > stats.batch_max:
            stats.batch_max = entries
        if secs - 2 * trip_secs > SLOW_CALL_SECS:
            self.entries_max = max(ENTRIES_MIN, self.entries_max // 2)
            self.bytes_max = max(BYTES_MIN, self.bytes_max // 2)
        elif self.entries_max < ENTRIES_MAX or self.bytes_max < BYTES_MAX:
            self.entries_max = min(ENTRIES_MAX, self.entries_max + self.entries_max // 8 + 1)
            self.bytes_max = min(BYTES_MAX, self.bytes_max + self.bytes_max // 8)

    def failed(self, reaction: str) -> None:
        """Count what went wrong."""
        self.stats.errors[reaction] = self.stats.errors.get(reaction, 0) + 1

    def pause_secs(self) -> float:
        """Give the wait before the next try: none the first time, then full jitter up to the cap."""
        self.tries += 1
        if self.tries == 1:
            return 0.0
        return random() * min(BACKOFF_CAP_SECS, BACKOFF_FIRST_SECS * 2.0 ** min(self.tries, 20))
