"""CoinAPI's symbol ids to canonical symbols and back.

`COINBASE_SPOT_BTC_USD` names venue, kind and assets; a rate is the pair `BTC/USD`. The split by `_` is a guess where
ids clash and got one part more: such an id is escaped whole, so that two raw symbols of one venue never meet.
"""

import re

from relay import symbols
from relay.providers.base import SymbolTable

SYMBOL_CHARS_MAX = 256
_VENUE_CHARS_MAX = 64
_ASSET = re.compile(r"[A-Z0-9.]{1,40}")
_DATE = re.compile(r"[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
_STRIKE = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


def to_symbol(raw: str) -> tuple[str, str | None]:
    """Give the canonical symbol and the venue of a symbol id, or of a rate's pair; never raises.

    What does not have exactly the parts of its kind (clashing ids carry one more) is escaped whole, so that two raw
    symbols of one venue never meet.
    """
    base, slash, quote = raw.partition("/")
    if slash and _ASSET.fullmatch(base) and _ASSET.fullmatch(quote):
        return symbols.pair(base, quote), None
    parts = raw.split("_")
    venue = parts[0] if len(parts) > 2 and 0 < len(parts[0]) <= _VENUE_CHARS_MAX else None
    if venue is None:
        return _whole(raw), None
    kind, rest = parts[1], parts[2:]
    if not all(_ASSET.fullmatch(part) for part in rest):
        return _whole(raw), venue
    if kind == "SPOT" and len(rest) == 2 and rest[1] not in ("PERP", "IDX"):
        return symbols.pair(*rest), venue
    if kind == "PERP" and len(rest) == 2:
        return symbols.perpetual(*rest), venue
    if kind == "IDX":
        return symbols.index("-".join(rest)), venue
    if kind == "FTS" and len(rest) == 3 and _DATE.fullmatch(rest[2]):
        return symbols.future(f"{rest[0]}-{rest[1]}", "20" + rest[2]), venue
    if kind == "OPT" and len(rest) == 5 and _DATE.fullmatch(rest[2]) and _STRIKE.fullmatch(rest[3]):
        if rest[4] in ("C", "P"):
            return symbols.option(f"{rest[0]}-{rest[1]}", "20" + rest[2], rest[3], rest[4]), venue
    return _whole(raw), venue


def _whole(raw: str) -> str:
    """Escape all of it; a name that needs no escape is given one, so that it never looks like a pair of ours."""
    text = symbols.escape(raw)
    if "_" not in text:
        text = text.replace("-", "_2D")
    # too long for that: behind a filler the escape shortens it to a hash
    return text if len(text) <= symbols.SYMBOL_CHARS_MAX else symbols.escape(raw + "_" * symbols.SYMBOL_CHARS_MAX)


def to_raw(symbol: str, venue: str) -> str | None:
    """Undo `to_symbol` for what a venue named; None where the symbol was shortened."""
    try:
        if "_" in symbol:
            return symbols.unescape(symbol)
    except ValueError:
        return None
    parts = symbol.split("-")
    if parts[-1] == "IDX":
        return "_".join([venue, "IDX", *parts[:-1]])
    if parts[-1] == "PERP":
        return "_".join([venue, "PERP", *parts[:-1]])
    if len(parts) == 3:
        return "_".join([venue, "FTS", parts[0], parts[1], parts[2][2:]])
    if len(parts) == 5:
        return "_".join([venue, "OPT", parts[0], parts[1], parts[2][2:], *parts[3:]])
    return "_".join([venue, "SPOT", *parts])


class Names(SymbolTable):
    """Refuses what cannot be a symbol; everything else as its base."""

    def __missing__(self, raw: str) -> tuple[str, str | None]:
        if not raw or len(raw) > SYMBOL_CHARS_MAX:
            raise ValueError("an empty or overlong symbol")
        return super().__missing__(raw)
