"""CoinAPI's section of relay.yaml, and the messages that ask for what it lists."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from msgspec import Meta

from relay.providers.base import Options, Shared, Subscription
from relay.providers.coinapi.names import Names, to_symbol
from relay.providers.coinapi.wire import DEPTH_OF, UNIT_OF
from relay.secrecy import Secret

KEY_URL = "https://www.coinapi.io/"
BOOK_DEPTHS = {"5": "book5", "20": "book20", "50": "book50", "full": "book"}
_DATA_TYPES: dict[str, str] = {"quotes": "quote", "trades": "trade", "instruments": "symbol"}
_UNITS = {short: long for long, short in UNIT_OF.items()}


class CoinApiOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CoinAPI's section of relay.yaml. Symbols are symbol ids (`COINBASE_SPOT_BTC_USD`); `COINBASE_SPOT_*` is a
    pattern. Rates are pairs (`BTC/USD`) or assets (`BTC`)."""

    api_key: Secret = ""
    rest_url: Annotated[str, Meta(description="Another REST base than https://rest.coinapi.io (symbol lists).")] = ""
    heartbeat: Annotated[bool, Meta(description="Ask for a heartbeat each second: a dead link is seen in 10 s.")] = True
    quotes_update_ms: Annotated[int, Meta(ge=0, description="Least time between two quotes of a symbol; 0: all.")] = 0
    books_update_ms: Annotated[
        int, Meta(ge=0, description="Least time between two books (5, 20, 50) of a symbol; 0: all.")
    ] = 0
    rates_update_ms: Annotated[int, Meta(ge=0, description="Least time between two rates of a pair; 0: all.")] = 0

    def __post_init__(self) -> None:
        """Raises: ValueError naming what CoinAPI could not carry."""
        for interval in self.bars:
            if period_id(interval) is None:
                raise ValueError(f"bars: {interval!r} is no interval of CoinAPI; 1s, 1m, 5m, 1h, 1d are")
        for depth in self.books:
            if depth not in BOOK_DEPTHS:
                raise ValueError(f"books: depth {depth!r} is unknown; {', '.join(BOOK_DEPTHS)} are")
        listed = [*self.quotes, *self.trades, *self.instruments, *self.rates]
        listed += [raw for by in (self.bars, self.books) for raws in by.values() for raw in raws]
        for raw in listed:
            if not raw.strip("*") or "*" in raw[:-1]:
                raise ValueError(f"{raw!r} is no symbol; a pattern is a prefix and one star: COINBASE_SPOT_*")
            if raw.endswith("$"):
                raise ValueError(f"{raw!r}: a bare name is exact already, leave the $ out")
        for raw in self.rates:
            if raw.endswith("*"):
                raise ValueError(f"rates: {raw!r}: rates know no patterns; name a pair (BTC/USD) or an asset (BTC)")


class CoinApiShared(Shared):
    """The names of all symbols met so far."""

    def __init__(self, options: Options, account: str = "main") -> None:
        super().__init__(options, account)
        self.names = Names(to_symbol, options.symbols)

    def wants(self, subscription: Subscription, raw_symbol: str, param: str) -> bool:
        """As the base; a rate also belongs to a subscription of one of its two assets."""
        if subscription.channel == "rates" and subscription.raw in raw_symbol.split("/"):
            return True
        return super().wants(subscription, raw_symbol, param)


def period_id(interval: str) -> str | None:
    """`1m` to `1MIN`; None where CoinAPI has no such period."""
    unit = _UNITS.get(interval[-1:])
    if unit is None or not re.fullmatch(r"[1-9][0-9]{0,3}", interval[:-1]):
        return None
    return interval[:-1] + unit


def covers(pattern: Subscription, one: Subscription) -> bool:
    same = pattern.channel == one.channel and pattern.param == one.param
    return same and (pattern.raw == one.raw or (pattern.raw.endswith("*") and one.raw.startswith(pattern.raw[:-1])))


def _filter(raw: str) -> str:
    return raw[:-1] if raw.endswith("*") else raw + "$"


def requests(options: CoinApiOptions, verb: str, wanted: Iterable[Subscription]) -> list[dict[str, Any]]:
    """Give the messages that ask for these subscriptions: one for each set of filters, so that the types of one set
    never spread over the symbols of another."""
    by_type: dict[str, dict[str, None]] = {}
    periods: dict[str, dict[str, None]] = {}
    for one in wanted:
        if one.channel == "bars":
            periods.setdefault(period_id(one.param) or one.param, {})[_filter(one.raw)] = None
            continue
        kind = (
            "exrate" if one.channel == "rates" else _DATA_TYPES.get(one.channel) or BOOK_DEPTHS.get(one.param, "book")
        )
        by_type.setdefault(kind, {})[one.raw if kind == "exrate" else _filter(one.raw)] = None
    messages: list[dict[str, Any]] = []
    assets = by_type.pop("exrate", {})
    for filters, kinds in _by_filters(by_type):
        message = _message(options, verb, kinds)
        message["subscribe_filter_symbol_id"] = filters
        if "quote" in kinds and options.quotes_update_ms:
            message["subscribe_update_limit_ms_quote"] = options.quotes_update_ms
        if options.books_update_ms and any(kind in DEPTH_OF for kind in kinds):
            message["subscribe_update_limit_ms_book_snapshot"] = options.books_update_ms
        messages.append(message)
    for filters, ids in _by_filters(periods):
        message = _message(options, verb, ["ohlcv"])
        message["subscribe_filter_symbol_id"] = filters
        message["subscribe_filter_period_id"] = ids
        messages.append(message)
    if assets:
        message = _message(options, verb, ["exrate"])
        message["subscribe_filter_asset_id"] = list(assets)
        if options.rates_update_ms:
            message["subscribe_update_limit_ms_exrate"] = options.rates_update_ms
        messages.append(message)
    return messages


def _message(options: CoinApiOptions, verb: str, kinds: list[str]) -> dict[str, Any]:
    return {"type": verb, "heartbeat": options.heartbeat, "subscribe_data_type": kinds}


def _by_filters(named: dict[str, dict[str, None]]) -> list[tuple[list[str], list[str]]]:
    """Group names that share one set of filters: `[(filters, names)]`, in the order of their coming."""
    groups: dict[frozenset[str], tuple[list[str], list[str]]] = {}
    for name, filters in named.items():
        groups.setdefault(frozenset(filters), (list(filters), []))[1].append(name)
    return list(groups.values())
