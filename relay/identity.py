"""What a provider's number says of a message: it is late or repeated, or the provider has begun its count anew. Pure.

A number below the one expected is never published, for what it stands for has been published or said to be missing.
But a count that begins anew lies below too, and must not be taken for repeats until it has caught up with the old one.
"""

from typing import Protocol

REPEAT_WINDOW = 10_000
"""A number further below the last one than this is none that was late or repeated."""
RESENT_MAX = 100
"""Providers send again what came before a subscribe (Kraken: 50 trades). A 0 or 1 above this begins a count."""
BEHIND_MAX, BEHIND_NS = 2_000, 60_000_000_000
"""A connection that is behind another one (a rollover) catches up within so many messages and so much time."""
BEHIND_MIN = 10
BURST_MAX, RATE_MAX = 1_000_000, 100_000
"""No provider gives one symbol more messages at once, or each second: a jump beyond both is a count begun anew."""


class Numbered(Protocol):
    """What is known of a route's numbers. `next`: expected. The others: of those below it that came in a row."""

    next: int
    back_at: int
    back_first: int
    back_last: int
    back_count: int
    back_ns: int


def begins_anew(route: Numbered, number: int, now_ns: int) -> bool:
    """Tell whether a number below the expected one belongs to a new count; else it is late or repeated."""
    expected = route.next
    if expected - number > REPEAT_WINDOW or (number <= 1 and expected > RESENT_MAX):
        route.back_count = 0
        return True
    if route.back_at != expected or number <= route.back_last:  # the count has gone on since, or they do not rise
        route.back_at, route.back_first, route.back_count, route.back_ns = expected, number, 0, now_ns
    route.back_last = number
    route.back_count += 1
    return route.back_count > BEHIND_MAX or (route.back_count > BEHIND_MIN and now_ns - route.back_ns > BEHIND_NS)


def taken_for_repeats(route: Numbered, number: int) -> tuple[int, int] | None:
    """Give the first and last number of the new count that were dropped before `number` proved it to be new."""
    return (route.back_first, number - 1) if route.back_count else None


def too_far(missing: int, passed_ns: int) -> bool:
    """Tell whether so many messages cannot have been missed in this time."""
    return missing > BURST_MAX and missing > RATE_MAX * (passed_ns // 1_000_000_000)
