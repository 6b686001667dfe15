"""Gap events for entries that Redis has lost and the spool does not have any more. Pure."""

from typing import Any

import msgspec

from relay import codec
from relay.model import CHANNEL_OF, GapReason, Status
from relay.outbox import NOTHING, Topic, order


class _Numbered(msgspec.Struct):
    """What matters in any message."""

    run: int = 0
    seq: int = 0
    provider: str = ""
    symbol: str | None = None
    raw_symbol: str | None = None
    venue: str | None = None
    origin: Any = None
    ts_recv: int = 0
    src_seq: int | None = None
    last_missing: int | None = None
    first_missing: int | None = None


_CHANNELS = frozenset(CHANNEL_OF.values())
_decode = msgspec.json.Decoder(_Numbered).decode


def follows(before: str, entry_id: str) -> bool:
    """Tell whether an entry is the next one of its topic: the next number, or the first of a new run."""
    seq = int(entry_id.rpartition("-")[2])
    return seq == 1 or seq == int(before.rpartition("-")[2]) + 1


def unbroken(ids: list[str]) -> bool:
    """Tell whether entries of a topic, all of one write, follow one another."""
    return int(ids[-1].rpartition("-")[2]) - int(ids[0].rpartition("-")[2]) == len(ids) - 1


def gap(
    topic: Topic,
    before: str,
    tail: bytes | None,
    entry_id: str,
    body: bytes | None,
    reason: GapReason,
    run: int,
    then: bytes | None = None,
) -> tuple[str, bytes, Status]:
    """Make the entry that stands for those between two: it takes the number of the last of them.

    `before`: id of the entry below the hole, `tail`: its body where known. `body` None: `entry_id` is the last that is
    missing and nothing follows, or `then`, the first entry of another run; else it is the entry above the hole.
    """
    ms, seq = order(entry_id)
    low = _read(tail)
    high = _read(then or body)
    if body is not None:
        seq -= 1
        run = high.run or run
    elif then is not None:
        # the other run may have been another relay's: its numbers are not those of the run below the hole
        run, seq = (low.run, max(seq, low.seq + 1)) if low.run else (ms, seq)
    known = high if body is not None else low
    status = Status(
        event="gap",
        reason=reason,
        channel=topic.kind if topic.kind in _CHANNELS else None,
        topic=topic.name,
        symbol=known.symbol,
        raw_symbol=known.raw_symbol,
        venue=known.venue,
        from_ns=(low.ts_recv or order(before)[0] * 1_000_000) if before != NOTHING else None,
        to_ns=high.ts_recv or ms * 1_000_000,
    )
    first = low.src_seq if low.src_seq is not None else low.last_missing
    last = high.src_seq if high.src_seq is not None else high.first_missing
    if topic.contiguous and first is not None and last is not None and last > first + 1:
        status.first_missing, status.last_missing, status.missing = first + 1, last - 1, last - first - 1
    status.provider = known.provider or topic.provider
    status.origin = known.origin
    status.ts_recv, status.run, status.seq = ms * 1_000_000, run, seq
    return f"{ms}-{seq}", codec.encode(status), status


def number_after(body: bytes | None) -> tuple[str, str | None, int] | None:
    """Give provider, raw symbol and the next number behind a message that carries one."""
    found = _read(body)
    number = found.src_seq if found.src_seq is not None else found.last_missing
    return None if number is None else (found.provider, found.raw_symbol, number + 1)


def _read(body: bytes | None) -> _Numbered:
    try:
        return _decode(body) if body is not None else _Numbered()
    except msgspec.MsgspecError:
        return _Numbered()
