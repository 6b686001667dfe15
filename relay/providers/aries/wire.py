"""The wire: envelope structs, decoder, line splitting, stream names, requests. Nothing here knows a session."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from relay.providers.aries.options import INDICES, AriesOptions, is_option
from relay.providers.base import Subscription

Kind = Literal[
    "quote", "trade", "prints", "level2", "greeks", "market_status", "account", "order", "position", "balance", "info",
    "pnl", "watchlist", "news",
]  # fmt: skip
MARKET_KINDS: frozenset[str] = frozenset({"quote", "trade", "prints", "level2", "greeks"})

CARRY_BYTES_MAX = 1024 * 1024
"""Most of an unfinished last line that is kept for the next frame."""
BLANKS = b" \t\r"
BOM = b"\xef\xbb\xbf"
STREAM_NAMES_MAX = 1_000


class Payload(Struct, gc=False):
    """`payload` of a message from the server."""

    action: str | None = None
    type: str | None = None
    symbol: str | None = None
    data: Any = None
    id: Any = None
    error: Any = None
    timestamp: Any = None


class Envelope(Struct, gc=False):
    """One message from the server. `data` and `message` belong to the older protocol."""

    type: str | None = None
    action: str | None = None
    id: Any = None
    timestamp: Any = None
    payload: Payload | None = None
    data: Any = None
    message: Any = None
    error: Any = None


decode = msgspec.json.Decoder(Envelope, float_hook=str).decode
decode_any = msgspec.json.Decoder(float_hook=str).decode
"""For what `decode` refuses: to tell why."""

_SYNONYMS: Mapping[Kind, str] = {
    "quote": "quote quotes equitycomposite optioncomposite",
    "trade": "trade trades lastsale",
    "level2": "level2 l2 orderbook book depth",
    "prints": "timeandsales tns timesales tape",
    "greeks": "greeks optiongreeks",
    "market_status": "marketstatus",
    "account": "account accountupdate accountupdates accupdate accupdates",
    "order": "order orders",
    "position": "position positions",
    "balance": "balance balances",
    "info": "info accountinfo",
    "pnl": "pnl pnlcandle",
    "watchlist": "watchlist watchlistupdate watchlistupdates",
    "news": "news newsupdate newsupdates",
}
_KINDS: Mapping[str, Kind] = {name: kind for kind, names in _SYNONYMS.items() for name in names.split()}
_known: dict[str, Kind | None] = {}


def kind_of(name: str) -> Kind | None:
    """Tell the kind of stream by its name: in any case, by its whole, last or first dotted part."""
    if name in _known:
        return _known[name]
    parts = [part.translate(_IGNORED).casefold() for part in name.split(".")]
    kind = next((_KINDS[part] for part in ("".join(parts), parts[-1], parts[0]) if part in _KINDS), None)
    if len(_known) < STREAM_NAMES_MAX:
        _known[name] = kind
    return kind


_IGNORED = {ord(char): None for char in "-_ "}


def kind_by_members(data: Any) -> Kind | None:
    """Tell the kind of a message without a known stream name by the members of its data."""
    if not isinstance(data, dict):
        return None
    if "orderBook" in data or isinstance(data.get("quotes"), list):
        return "level2"
    if "delta" in data:
        return "greeks"
    if isinstance(data.get("quote"), dict) or not data.keys().isdisjoint(("bidPrice", "askPrice", "bid", "ask")):
        return "quote"
    if isinstance(data.get("trade"), dict) or "price" in data or "lastPrice" in data:
        return "trade"
    if not data.keys().isdisjoint(("orders", "positions", "balance", "balances")):
        return "account"
    return None


def encode(message: Mapping[str, Any]) -> str:
    """One outgoing message: one frame, no LF."""
    return msgspec.json.encode(message).decode()


def auth_request(request_id: str, token: str) -> str:
    """The login; `token` stands directly in `body`, one level deeper it is refused."""
    body = {"action": "auth", "token": token}
    return encode({"type": "request", "id": request_id, "payload": {"method": "post", "path": "/auth", "body": body}})


def ping(request_id: str, old: bool) -> str:
    """The application's ping, in the documented envelope or in the older protocol's shape."""
    return encode({"action": "ping"}) if old else encode({"type": "ping", "id": request_id})


def market_items(
    options: AriesOptions, wanted: Iterable[Subscription], prints: frozenset[str]
) -> list[tuple[dict[str, Any], list[Subscription]]]:
    """Give the payload items of market subscriptions, one a symbol, each with what it stands for.

    `prints`: symbols whose trades are wanted as time & sales.
    """
    by_symbol: dict[str, list[Subscription]] = {}
    for subscription in wanted:
        by_symbol.setdefault(subscription.raw, []).append(subscription)
    out = []
    for raw, parts in by_symbol.items():
        item: dict[str, Any] = {"symbol": raw}
        if is_option(raw):
            item["symbolType"] = "option"
        channels = {part.channel for part in parts}
        if "quotes" in channels and raw not in INDICES:
            item["quoteFields"] = options.quote_fields
        if "rates" in channels or ("trades" in channels and (raw not in prints or raw in options.trades)):
            item["tradeFields"] = options.trade_fields
        if "trades" in channels and raw in prints:
            item["timeAndSalesFields"] = ("*",)
        if "greeks" in channels:
            item["greeksFields"] = options.greeks_fields
        if "books" in channels:
            item["level2"] = True
        out.append((item, parts))
    return out


def account_items(options: AriesOptions) -> list[dict[str, Any]]:
    """Give the payload items of everything that the account endpoint is asked for."""
    out: list[dict[str, Any]] = []
    if options.account_id:
        out.append({"topic": "account", options.account_member: options.account_id})
        out += [
            {"topic": "pnl", options.account_member: options.account_id, "interval": interval}
            for interval in options.pnl
        ]
    out += [{"topic": topic} for topic in ("watchlist", "news") if getattr(options, topic)]
    return out


def chunks(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Cut a list into parts of at most `size`."""
    for at in range(0, len(items), size):
        yield items[at : at + size]
