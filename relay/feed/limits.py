"""What a provider allows, kept over all its sessions: windows of connects, subscribes and requests; connections."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from relay.providers.base import Limits


class Window:
    """At most `count` units in any `secs` seconds; whoever comes first is served first."""

    def __init__(self, count: int, secs: float) -> None:
        self.count, self.secs = count, secs
        self._taken: deque[float] = deque()  # when each unit was taken, oldest first
        self._lock = anyio.Lock()  # anyio's locks are fair

    async def take(self, units: int = 1) -> None:
        """Wait until so many units are free, and take them. More than the window holds: the whole window."""
        units = min(units, self.count)
        async with self._lock:
            while True:
                now = anyio.current_time()
                while self._taken and self._taken[0] <= now - self.secs:
                    self._taken.popleft()
                short = len(self._taken) + units - self.count
                if short <= 0:
                    self._taken.extend([now] * units)
                    return
                await anyio.sleep(self._taken[short - 1] + self.secs - now)


class SharedLimits:
    """One object for each provider (or key), handed to all its feeds."""

    def __init__(self, limits: Limits) -> None:
        self.connects = Window(*limits.connects) if limits.connects else None
        self.subscribes = Window(*limits.subscribes) if limits.subscribes else None
        self.requests = Window(*limits.requests) if limits.requests else None
        self._connections = anyio.Semaphore(limits.connections_max) if limits.connections_max else None

    def spare(self) -> bool:
        """Tell whether one more connection is allowed right now."""
        return self._connections is None or self._connections.value > 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """Hold the place of one connection; waits while the provider's number of them is reached."""
        if self._connections is None:
            yield
            return
        async with self._connections:
            yield
