"""Kraken's section of relay.yaml, its symbols, and what outlives its sessions."""

from typing import Annotated

from msgspec import Meta

from relay import symbols
from relay.providers.base import BookOptions, Options, Shared

DEPTHS = ("10", "25", "100", "500", "1000")
MINUTES = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "4h": 240, "1d": 1440, "1w": 10080, "15d": 21600}
"""Our intervals to Kraken's minutes; nothing else is taken."""
INTERVALS = {minutes: interval for interval, minutes in MINUTES.items()}

_MODERN = {"XBT": "BTC", "XDG": "DOGE"}
"""What REST and the v1 feed still say; the v2 feed has the modern codes and refuses these."""


class KrakenOptions(BookOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kraken's section of relay.yaml. Symbols are v2 names: `BTC/USD`, upper case but for tokenized stocks."""

    rest_url: Annotated[str, Meta(description="Another REST base than https://api.kraken.com.")] = ""

    def __post_init__(self) -> None:
        """Raises: ValueError naming what Kraken would refuse."""
        super().__post_init__()
        for interval in self.bars:
            if interval not in MINUTES:
                raise ValueError(f"bars: {interval!r} is no interval of Kraken; {', '.join(MINUTES)} are")
        for depth in self.books:
            if depth not in DEPTHS:
                raise ValueError(f"books: depth {depth!r} is unknown; {', '.join(DEPTHS)} are")
        for raw in {*self.quotes, *self.trades, *self.instruments, *(r for by in (self.bars, self.books)
                    for raws in by.values() for r in raws)}:  # fmt: skip
            base, slash, quote = raw.partition("/")
            if not (base and slash and quote) or "/" in quote:
                raise ValueError(f"{raw!r} is no symbol of Kraken: base, slash, quote, as in BTC/USD")
            for code in (base, quote):
                if code in _MODERN:
                    raise ValueError(f"{raw!r}: the v2 feed says {_MODERN[code]} for {code}")


class KrakenShared(Shared):
    """What is known of trades and bars over all sessions."""

    def __init__(self, options: Options, account: str = "main") -> None:
        super().__init__(options, account)
        self.traded: dict[str, int] = {}
        """Symbol to the highest trade id met."""
        self.closed: dict[tuple[str, str], int] = {}
        """Symbol and interval to the start of the last bar that was published as final."""
        self.told: set[str] = set()
        """Notices of maintenance that were passed on."""


def to_symbol(raw: str) -> tuple[str, str | None]:
    """`BTC/USD` to `BTC-USD`, old codes in modern spelling. Kraken is one venue, which no frame names."""
    base, slash, quote = raw.partition("/")
    if not base or not slash or not quote or "/" in quote:
        return symbols.escape(raw), None
    return symbols.pair(_MODERN.get(base, base), _MODERN.get(quote, quote)), None


def to_raw(symbol: str) -> str:
    """`BTC-USD` to `BTC/USD`. Raises: ValueError where it is no pair."""
    base, dash, quote = symbols.unescape(symbol).partition("-")
    if not (base and dash and quote) or "-" in quote or "/" in base + quote:
        raise ValueError(f"{symbol!r} is no pair of two assets, such as BTC-USD")
    return f"{base}/{quote}"
