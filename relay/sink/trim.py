"""Room in Redis: trimming our own streams from their oldest end, never a key of anybody else. All by plain commands,
which a server at maxmemory still takes.
"""

from collections.abc import Sequence

from relay.outbox import Outbox, order
from relay.sink.claim import Claim
from relay.sink.link import Link

KEEP_SECS = 10.0
"""Retention and the bound over all streams are looked after this often."""
CHUNK = 200
"""Commands sent together: short enough that a lease or an append does not wait."""
KEEP_MIN = 100
"""Entries of each topic that are never trimmed for room: below that it is not us who fill the server."""


class Keeper:
    """Keeps what is in Redis within bounds: age and memory over all streams, room when the server is full."""

    def __init__(self, link: Link, claim: Claim, outbox: Outbox, retention_ms: int, bytes_max: int) -> None:
        self._link, self._claim, self._outbox = link, claim, outbox
        self._retention_ms, self._bytes_max = retention_ms, bytes_max
        self._next = 0.0

    async def keep(self, now: float) -> tuple[int, int]:
        """Look after age and memory when it is time. Give entries removed, and the memory found if it was too much."""
        if now < self._next:
            return 0, 0
        self._next = now + KEEP_SECS
        topics = [topic for topic in self._outbox.topics.values() if topic.last and not topic.blocked]
        names = [topic.name for topic in topics]
        removed = 0
        if self._retention_ms:
            newest = max((order(topic.last)[0] for topic in topics), default=0)
            if newest > self._retention_ms:
                removed += await retain(self._link, names, newest - self._retention_ms)
        if self._bytes_max:
            trimmed, size = await trim_to_size(self._link, names, self._bytes_max)
            if trimmed:
                return removed + trimmed, size
        return removed, 0

    async def make_room(self) -> int:
        """Trim a quarter of all our streams, those of earlier runs too. Give the number of entries removed."""
        ours = {topic.name for topic in self._outbox.topics.values() if topic.last and not topic.blocked}
        return await trim_oldest(self._link, [*ours.union(await self._claim.ours())])


async def trim_oldest(link: Link, names: Sequence[str]) -> int:
    """Trim a quarter of each stream, whole nodes first. Give the number of entries removed."""
    lengths = await _lengths(link, names)
    keep = {name: max(KEEP_MIN, length * 3 // 4) for name, length in lengths.items() if length > KEEP_MIN}
    # whole nodes are cheap to free; where no node is whole enough, cut exactly
    return await _trim(link, keep, "~") or await _trim(link, keep, "=")


async def trim_to_size(link: Link, names: Sequence[str], bytes_max: int) -> tuple[int, int]:
    """Trim all streams by the same share when together they hold more. Give entries removed and bytes found."""
    sizes: list[int] = []
    for part in _parts(names):
        replies = await link.calls([("MEMORY", "USAGE", name, "SAMPLES", 5) for name in part])
        sizes += [reply if isinstance(reply, int) else 0 for reply in replies]
    total = sum(sizes)
    if total <= bytes_max:
        return 0, total
    share = bytes_max * 0.9 / total  # a little lower, or every look would trim
    lengths = await _lengths(link, names)
    return await _trim(link, {name: max(1, int(length * share)) for name, length in lengths.items()}, "="), total


async def retain(link: Link, names: Sequence[str], oldest_ms: int) -> int:
    """Trim what is older than a time, also of topics that are quiet. Give the number of entries removed."""
    removed = 0
    for part in _parts(names):
        replies = await link.calls([("XTRIM", name, "MINID", "~", oldest_ms) for name in part])
        removed += sum(reply for reply in replies if isinstance(reply, int))
    return removed


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]


async def _lengths(link: Link, names: Sequence[str]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for part in _parts(names):
        replies = await link.calls([("XLEN", name) for name in part])
        lengths |= {name: reply for name, reply in zip(part, replies, strict=True) if isinstance(reply, int)}
    return lengths


async def _trim(link: Link, keep: dict[str, int], how: str) -> int:
    removed = 0
    for part in _parts(list(keep)):
        replies = await link.calls([("XTRIM", name, "MAXLEN", how, keep[name]) for name in part])
        removed += sum(reply for reply in replies if isinstance(reply, int))
    return removed
