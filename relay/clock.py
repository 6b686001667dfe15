"""The relay's one clock: wall time at start plus monotonic time since.

Receive stamps, entry ids and `now_ns` all come from it, so it never falls, whatever is done to the wall clock. It may
be lifted (above the newest id already in Redis or in the spool, or after the machine slept); then it goes on from
there at its usual pace and never stands still, because providers measure their deadlines with it.
"""

import time
from collections.abc import Callable

MS = 1_000_000
SECOND = 1_000_000_000
CATCH_UP_NS = SECOND
"""Wall time ahead by less than this is left alone: the slow drift between two clocks is no reason for a jump."""


class Clock:
    """Call it for the time in ns since 1970 UTC; it never falls."""

    __slots__ = ("_monotonic", "_offset", "_wall")

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall, self._monotonic = wall_ns, monotonic_ns
        self._offset = wall_ns() - monotonic_ns()

    def __call__(self) -> int:
        return self._monotonic() + self._offset

    def raise_floor(self, ms: int) -> None:
        """Never again give a time at or below this millisecond: ids made from now on are above it."""
        missing = (ms + 1) * MS - self()
        if missing > 0:
            self._offset += missing

    def catch_up(self) -> int:
        """Lift the clock to wall time where that is ahead (the machine slept, or was set); give by how many ns.

        Call it now and then. Wall time that is behind is never followed.
        """
        ahead = self._wall() - self()
        if ahead < CATCH_UP_NS:
            return 0
        self._offset += ahead
        return ahead
