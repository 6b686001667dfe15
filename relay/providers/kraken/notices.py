"""What Kraken says of its markets and of itself: instruments, and planned maintenance."""

from typing import Any

from relay import numbers, times
from relay.model import Instrument, Status
from relay.providers.base import Output, reject
from relay.providers.kraken.wire import PairData

TOLD_MAX = 1000
"""Notices remembered; the venue plans a handful at a time."""
_TRADABLE = frozenset({"online", "limit_only", "post_only", "reduce_only"})


def instrument(row: PairData, part: bytes, header: dict[str, Any], was: bool) -> tuple[list[Output], bool | None]:
    """Map one market; `was`: whether it could be traded until now. Gives the outputs, and whether it can be now."""
    step: str | None = None
    rejects: list[Output] = []
    try:
        step = numbers.positive(row.price_increment)
    except ValueError as error:
        rejects.append(reject("bad_number", f"price_increment: {error}", part, **header))
    status = row.status if isinstance(row.status, str) else None
    active = None if status is None else status in _TRADABLE
    base, quote = (value if isinstance(value, str) and value else None for value in (row.base, row.quote))
    out: list[Output] = [
        Instrument(
            base=base, quote=quote, price_precision=_count(row.price_precision),
            size_precision=_count(row.qty_precision), tick_size=step, active=active, **header,
        ),
        *rejects,
    ]  # fmt: skip
    if active is not None and active != was:
        out.append(Status(event="market", code=status, open=active, text=f"{row.symbol} is {status}", **header))
    return out, active


def maintenance(one: dict[str, Any], told: set[str]) -> list[Output]:
    """A planned maintenance, said once for each of its phases and times."""
    begin, end, title, phase = (
        str(one.get(name) or "") for name in ("expected_start_utc", "expected_end_utc", "title", "phase")
    )
    mark = f"{one.get('event_id')} {phase} {begin} {end}"[:200]
    if mark in told:
        return []
    if len(told) >= TOLD_MAX:
        told.clear()
    told.add(mark)
    text = " ".join(filter(None, ("maintenance:", title, phase, begin and f"from {begin}", end and f"to {end}")))
    return [Status(event="notice", code="upcoming_maintenance", text=text[:1000], until=times.any_ns(end or None))]


def _count(value: Any) -> int | None:
    return value if value.__class__ is int and 0 <= value <= 100 else None
