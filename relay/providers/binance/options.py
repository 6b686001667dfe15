"""Binance's section of relay.yaml, and what outlives its sessions: the instrument list, the REST budget, pauses."""

from collections import deque
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from relay.providers.base import BookOptions, Shared, Subscription, SymbolTable
from relay.providers.binance import names, wire

URL = "wss://stream.binance.com:9443"
REST_OF = {
    "stream.binance.com": "https://api.binance.com",
    "data-stream.binance.vision": "https://data-api.binance.vision",
    "stream.binance.us": "https://api.binance.us",
}
"""The REST side of each WebSocket host; another host has none unless `rest_url` names it."""
INTERVALS = "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M".split()
DEPTHS = ("5", "10", "20", "full")
SNAPSHOT_LIMITS = ((100, 5), (500, 25), (1000, 50), (5000, 250))
"""Levels a side of a REST snapshot, and what it weighs."""
LIST_WEIGHT = 20
WEIGHT_MAX = 4500
"""Of 6,000 a minute and address: others on this host ask too."""
MINUTE_NS = 60 * 1_000_000_000
LIST_FRESH_NS = 24 * 60 * MINUTE_NS
LIST_WAIT_NS = 45 * 1_000_000_000
"""An unanswered request for the list counts as lost after this long."""
LIST_PAUSES_NS = (5_000_000_000, 15_000_000_000, 60_000_000_000, 600_000_000_000)
"""Waits after a failed request for the list; the last one repeats."""
LIST_TRIES = 3
"""Failures after which symbols that only the list could part are subscribed to as they are."""
LIST_NEW_NS = 10 * MINUTE_NS
"""A list this young is not asked for again because of a symbol that it does not have."""
STATE_VERSION = 1


class BinanceOptions(BookOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Binance's section of relay.yaml. Symbols as Binance writes them (`BTCUSDT`); lower case is taken too."""

    trades_from: Annotated[
        Literal["trade", "aggTrade"],
        Meta(description="`trade`: each execution; `aggTrade`: one for each taker order and price."),
    ] = "trade"
    book_update_ms: Annotated[Literal[100, 1000], Meta(description="How often books are pushed.")] = 100
    microseconds: Annotated[bool, Meta(description="Ask for times in microseconds; false: milliseconds.")] = True
    rest_url: Annotated[
        str, Meta(description="REST base for book snapshots and the symbol list; default: that of the url's host.")
    ] = ""

    def __post_init__(self) -> None:
        """Fold symbols to upper case, as Binance's messages have them. Raises: ValueError naming what is not there."""
        super().__post_init__()
        for interval in self.bars:
            if interval not in INTERVALS:
                raise ValueError(f"bars: {interval!r} is no interval of Binance; {', '.join(INTERVALS)} are")
        for depth in self.books:
            if depth not in DEPTHS:
                raise ValueError(f"books: depth {depth!r} is unknown; {', '.join(DEPTHS)} are")
        if "full" in self.books and self.book_depth_max > SNAPSHOT_LIMITS[-1][0] // 2:
            raise ValueError(
                f"book_depth_max: at most {SNAPSHOT_LIMITS[-1][0] // 2} for whole books: a snapshot of Binance's ends "
                f"at {SNAPSHOT_LIMITS[-1][0]} levels a side"
            )
        if "full" in self.books and not self.rest:
            raise ValueError("books: `full` needs the REST side of this url: name it by `rest_url`")
        put = msgspec.structs.force_setattr
        for option in ("quotes", "trades", "quotes_from_books"):
            put(self, option, _upper(getattr(self, option)))
        for option in ("bars", "books"):
            put(self, option, {param: _upper(raws) for param, raws in getattr(self, option).items()})
        put(self, "symbols", {raw.upper(): symbol for raw, symbol in self.symbols.items()})

    @property
    def rest(self) -> str:
        """The REST base; empty: there is none."""
        return (self.rest_url or REST_OF.get(urlsplit(self.url or URL).hostname or "", "")).rstrip("/")

    @property
    def snapshot_limit(self) -> tuple[int, int]:
        """Levels and weight of a book's snapshot: twice what is published, so that it seldom wears off."""
        return next((one for one in SNAPSHOT_LIMITS if one[0] >= 2 * self.book_depth_max), SNAPSHOT_LIMITS[-1])


def _upper(raws: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(raw.upper() for raw in raws)


class BinanceShared(Shared):
    """State common to Binance's connections."""

    def __init__(self, options: Any, account: str = "main") -> None:
        super().__init__(options, account)
        self.pairs: dict[str, tuple[str, str]] = {}
        """Symbol to base and quote asset, as the venue lists them."""
        self.list_ns = 0
        """When the list came; 0: there is none yet."""
        self.list_failures = 0
        self._state: dict[str, Any] | None = None
        self.names = SymbolTable(lambda raw: names.named(raw, self.pairs), options.symbols)
        """Symbols met keep their names for the life of the process."""
        self.paused_ns = 0
        """REST may not be asked before this time."""
        self._list_due_ns = 0
        self._weights: deque[tuple[int, int]] = deque()

    def wants(self, subscription: Subscription, raw_symbol: str, param: str) -> bool:
        return super().wants(subscription, raw_symbol.upper(), param)

    def is_named(self, raw: str) -> bool:
        """Tell whether a symbol's name is certain without the list."""
        return raw in self.options.symbols or raw in self.pairs or names.split(raw) is not None

    # -- the list ------------------------------------------------------------------------------------------------

    def list_is_fresh(self, now_ns: int) -> bool:
        return bool(self.list_ns) and 0 <= now_ns - self.list_ns < LIST_FRESH_NS

    def ask_list(self, now_ns: int, *, anew: bool = False) -> bool:
        """Tell whether the list must be asked for now; then it counts as asked. `anew`: though it is fresh."""
        if now_ns < self._list_due_ns or (self.list_is_fresh(now_ns) and not anew):
            return False
        if not self.spend(LIST_WEIGHT, now_ns):
            return False
        self._list_due_ns = now_ns + LIST_WAIT_NS
        return True

    def list_came(self, listed: list[wire.Listed], now_ns: int) -> None:
        pairs = {one.symbol.upper(): (one.baseAsset, one.quoteAsset) for one in listed}
        self._state = None
        self.pairs, self.list_ns, self.list_failures, self._list_due_ns = pairs, now_ns, 0, 0

    def list_failed(self, now_ns: int) -> None:
        wait = LIST_PAUSES_NS[min(self.list_failures, len(LIST_PAUSES_NS) - 1)]
        self.list_failures += 1
        self._list_due_ns = now_ns + wait

    # -- REST's limits -------------------------------------------------------------------------------------------

    def spend(self, weight: int, now_ns: int) -> bool:
        """Take so much of the minute's weight; false: not now."""
        if now_ns < self.paused_ns:
            return False
        weights = self._weights
        while weights and now_ns - weights[0][0] >= MINUTE_NS:
            weights.popleft()
        if weights and sum(one for _, one in weights) + weight > WEIGHT_MAX:
            return False
        weights.append((now_ns, weight))
        return True

    # -- kept on disk by the relay -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Give the symbol list as plain JSON data; the same object until the list changes, as it is asked for often."""
        if self._state is None:
            self._state = self._make_state()
        return self._state

    def _make_state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "simulated": self.options.simulate,
            "rest": "" if self.options.simulate else self.options.rest,
            "list_ns": self.list_ns,
            "pairs": {raw: list(halves) for raw, halves in self.pairs.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a kept list over; one of another venue, of the simulator or of another version is left out."""
        own = self.state()
        if not isinstance(state, dict) or any(state.get(key) != own[key] for key in ("version", "simulated", "rest")):
            return
        pairs, list_ns = state.get("pairs"), state.get("list_ns")
        if not isinstance(pairs, dict) or type(list_ns) is not int:
            return
        for raw, halves in pairs.items():
            if isinstance(raw, str) and isinstance(halves, list) and len(halves) == 2:
                base, quote = halves
                if isinstance(base, str) and isinstance(quote, str):
                    self.pairs[raw] = (base, quote)
        self.list_ns = list_ns
        self._state = None
