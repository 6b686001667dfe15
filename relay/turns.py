"""Whose turn it is on the loop that feeds and sink share: a feed that is ahead of Redis lets the sink catch up.

A feed that always has frames would read as fast as it can: what waits for Redis would grow by megabytes, be cold in the
processor's cache when it goes out, and be a second old when it is stored. It waits a moment at most, so that no
provider's real rate is slowed by it, however slow Redis is: what comes faster than Redis takes it is for the outbox and
the spool.
"""

from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel

from relay.outbox import Outbox, Topic

AHEAD_BYTES = 1536 * 1024
"""The feeds are ahead of Redis while more than this waits, blocked topics aside: about four of the largest calls."""
ANSWER_SECS = 0.001
"""A feed that is ahead waits this long for an answer of Redis before each 128 frames: a connection can bring 100,000
frames a second even where none comes."""

Told = Callable[[Sequence[tuple[Topic, int]], int], None]


class Turns:
    """One relay's. `told`: hears of each answered call, as `answered` does."""

    def __init__(self, outbox: Outbox, told: Told) -> None:
        self._outbox, self._told = outbox, told
        self._answer = anyio.Event()

    def answered(self, batch: Sequence[tuple[Topic, int]], entries: int) -> None:
        """Redis has answered a call of so many entries."""
        self._told(batch, entries)
        self._answer.set()
        self._answer = anyio.Event()

    async def turn(self) -> None:
        """Let the others go on: what a feed does between two batches of frames when more wait."""
        if self._outbox.size - self._outbox.held < AHEAD_BYTES:
            await anyio.lowlevel.checkpoint()
            return
        with anyio.move_on_after(ANSWER_SECS):
            await self._answer.wait()
