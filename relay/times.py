"""Wire times to integer ns since 1970 UTC, without loss: all fraction digits up to nine survive.

ISO text has a date and time of 19 characters whose value repeats for a whole second: it is cached. Times before 1970
stand for "no time" at the providers (`0001-01-01T00:00:00Z`, `9999-12-31T23:59:59Z`) and give None, as do those that
64 bits cannot hold (from the year 2262 on).
"""

import re
from datetime import UTC, datetime
from typing import Any

NS_MAX = 2**63 - 1
"""The last time that fits into 64 bits: 2262-04-11T23:47:16Z."""
_CACHE_MAX = 4096  # distinct seconds kept; a feed needs a handful, a replay of old data refills it cheaply
_seconds: dict[str, int] = {}
_dotted: dict[str, int] = {}  # the same with a point behind the seconds, none before 1970
_REST = re.compile(r"(?:[.,]([0-9]{1,30}))?\s*(Z|z|UTC|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2})?")
_SCALE: list[int] = [10 ** (9 - digits) for digits in range(10)]
_MILLIS = {f"{ms:03d}{zeros}Z": ms * 1_000_000 for ms in range(1000) for zeros in ("", "000", "0000", "000000")}
"""Fractions of whole milliseconds as most venues stamp them: half the price of reading the digits (0.2 us)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _second(text: str) -> int:
    """Ns of `YYYY-MM-DDTHH:MM:SS` (or a blank for the T), taken as UTC; cached."""
    ns = _seconds.get(text)
    if ns is None:
        # the colons too: fromisoformat also takes `2026-03-01T10:00+01`, whose zone would be lost
        if len(text) != 19 or text[10] not in "Tt " or text[13] != ":" or text[16] != ":":
            raise ValueError(f"not an ISO 8601 time: {text[:40]!r}")
        moment = datetime.fromisoformat(text.upper()).replace(tzinfo=UTC)
        delta = moment - _EPOCH
        ns = (delta.days * 86_400 + delta.seconds) * 1_000_000_000
        if len(_seconds) >= _CACHE_MAX:
            _seconds.clear()
        _seconds[text] = ns
    return ns


def iso_ns(text: str) -> int | None:
    """Give ns of an ISO 8601 text: `Z`, an offset or no zone (UTC); any count of fraction digits (cut after nine).

    None for a time before 1970 or beyond NS_MAX (the providers' "no time"). Raises: ValueError for any other text.
    """
    base = _dotted.get(text[:20])
    rest = text[20:]
    if base is not None:
        ns = _MILLIS.get(rest)
        if ns is not None:
            return base + ns
        digits = rest[:-1]
        if digits.isdecimal() and len(digits) < 10 and rest[-1] == "Z" and rest.isascii():
            return base + int(digits) * _SCALE[len(digits)]
    second = _second(text[:19])
    if 0 <= second < NS_MAX - 1_000_000_000 and text[19:20] == ".":
        if len(_dotted) >= _CACHE_MAX:
            _dotted.clear()
        _dotted[text[:20]] = second
    ns = second + _tail_ns(text[19:])
    return ns if 0 <= ns <= NS_MAX else None


def _tail_ns(rest: str) -> int:
    """Ns of what stands behind the seconds: any fraction, any zone."""
    match = _REST.fullmatch(rest)
    if not match:
        raise ValueError(f"not an ISO 8601 time: it ends with {rest[:40]!r}")
    fraction, zone = match.groups()
    ns = int(fraction[:9].ljust(9, "0")) if fraction else 0
    if zone and zone[0] in "+-":
        hours, over = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
        if hours > 23 or over > 59:
            raise ValueError(f"not an ISO 8601 time: no such zone: {zone!r}")
        minutes = hours * 60 + over
        ns -= (minutes if zone[0] == "+" else -minutes) * 60_000_000_000
    return ns


def epoch_ns(value: int) -> int:
    """Give ns of an epoch number whose unit is told by its size: below 1e11 seconds, 1e14 ms, 1e17 us, else ns."""
    if value < 100_000_000_000:
        return value * 1_000_000_000
    if value < 100_000_000_000_000:
        return value * 1_000_000
    if value < 100_000_000_000_000_000:
        return value * 1_000
    return value


def decimal_seconds_ns(text: str) -> int:
    """Give ns of epoch seconds written as plain decimal text (`1618677817.020616`). Raises: ValueError."""
    whole, _, fraction = text.partition(".")
    if not (whole + fraction).isdecimal() or not text.isascii() or not 0 < len(whole) <= 10:
        raise ValueError(f"not seconds since 1970: {text[:40]!r}")
    ns = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    if ns > NS_MAX:
        raise ValueError(f"not seconds since 1970: {text[:40]!r}")
    return ns


def _held(ns: int) -> int | None:
    return ns if ns <= NS_MAX else None


def any_ns(value: Any) -> int | None:
    """Give ns of ISO text, an epoch number or a text of digits; None where it is none of them or before 1970."""
    try:
        if isinstance(value, bool):
            return None
        if isinstance(value, int):
            return _held(epoch_ns(value)) if 0 <= value <= NS_MAX else None
        if isinstance(value, str):
            text = value.strip()
            if text.isascii() and text.isdecimal():
                return _held(epoch_ns(int(text))) if len(text) <= 19 else None
            return iso_ns(text)
    except ValueError:
        pass
    return None


def interval_ns(interval: str) -> int:
    """Give the length of `1s`, `5m`, `1h`, `1d`, `1w` in ns. Raises: ValueError where the length is not fixed."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}.get(interval[-1:])
    if unit is None or not interval[:-1].isdecimal() or not interval.isascii() or interval[0] == "0":
        raise ValueError(f"not an interval such as 1s, 5m, 1h, 1d: {interval[:20]!r}")
    return int(interval[:-1]) * unit * 1_000_000_000


def iso(ns: int) -> str:
    """Write ns as ISO 8601 UTC with as many digits as it needs (none, 3, 6 or 9)."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    head = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    if not fraction:
        return head + "Z"
    digits = f"{fraction:09d}"
    for cut in (3, 6):
        if not digits[cut:].strip("0"):
            return f"{head}.{digits[:cut]}Z"
    return f"{head}.{digits}Z"
