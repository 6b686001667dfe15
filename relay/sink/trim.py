"""Room in Redis: trimming our own streams from their oldest end, never a key of anybody else. All by plain commands,
which a server at maxmemory still takes.
"""

from collections.abc import Sequence

from relay.sink.link import Link

CHUNK = 200
"""Commands sent together: short enough that a lease or an append does not wait."""
KEEP_MIN = 100
"""Entries of each topic that are never trimmed for room: below that it is not us who fill the server."""


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
