"""What a relay.yaml may say of Aries, its spelling of symbols, and how subscriptions are dealt to the three endpoints.

Everything that the provider's pages leave open (marked [A] in our notes) stands here or in `wire.py` as one constant
or one option, so that a correction is one line.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Literal

from msgspec import Meta

from relay import symbols
from relay.model import ACCOUNT_CHANNELS, Channel
from relay.providers.base import Options, Planned, Subscription, subscriptions
from relay.secrecy import Secret

URL = "wss://api.aries.com"
REST_URL = "https://api.aries.com"
PATHS: Mapping[str, str] = {"market": "/v1/market/ws", "charts": "/v1/charts/ws", "accounts": "/v1/accounts/ws"}
TOKEN_PATH = "/v1/oauth2/token"

INDICES = frozenset("SPX NDX DJI VIX RUT COMP NYA OEX MID SML".split())
"""The index symbols that the provider lists: no bid, no ask, a level instead of trades."""

Endpoint = Literal["market", "charts", "accounts"]
PnlInterval = Literal["15s", "1m", "5m", "15m", "1h", "1d", "1mo"]
_OSI = re.compile(r"([A-Z0-9./-]{1,6})([0-9]{2})(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([CP])([0-9]{8})")
_CHARTED = frozenset({"quotes", "trades"})


class AriesOptions(Options, frozen=True, kw_only=True):
    """The provider section of Aries. Symbols are tickers (`MSFT`), index names (`SPX`) or OSI options
    (`MSFT260619C00450000`); the padded form and a leading `O:` are understood too."""

    token: Annotated[Secret, Meta(description="An access token that somebody else keeps fresh.")] = ""
    token_file: Annotated[
        str, Meta(description="File with the access token (text, or JSON), read again at each login.")
    ] = ""
    client_id: Annotated[str, Meta(description="OAuth2 client id, for refreshing the access token.")] = ""
    client_secret: Annotated[Secret, Meta(description="OAuth2 client secret; server apps need it.")] = ""
    refresh_token: Annotated[Secret, Meta(description="OAuth2 refresh token; the relay stores the rotated one.")] = ""
    rest_url: Annotated[str, Meta(description="Another REST address than the provider's own.")] = ""
    time_and_sales: Annotated[
        tuple[str, ...], Meta(description="Symbols whose trades are every single print (time & sales).")
    ] = ()
    charts: Annotated[
        tuple[str, ...], Meta(description="Symbols whose quotes and trades come from the charting endpoint.")
    ] = ()
    account: Annotated[str, Meta(description="Our label of the account in topic names.")] = "main"
    account_id: Annotated[
        str, Meta(description="Trading account: orders, positions, balance and account info follow from it.")
    ] = ""
    account_member: Annotated[
        Literal["accountId", "tradingAccountId"], Meta(description="Name of the account id on the wire.")
    ] = "accountId"
    pnl: Annotated[tuple[PnlInterval, ...], Meta(description="Intervals of profit-and-loss candles.")] = ()
    watchlist: Annotated[bool, Meta(description="Changes of the watchlists.")] = False
    news: Annotated[bool, Meta(description="News, as account messages.")] = False
    quote_fields: Annotated[tuple[str, ...], Meta(min_length=1, description="Fields asked of quotes; `*`: all.")] = (
        "bidPrice",
        "askPrice",
        "bidSize",
        "askSize",
        "quoteTimestamp",
    )
    trade_fields: Annotated[tuple[str, ...], Meta(min_length=1, description="Fields asked of trades; `*`: all.")] = (
        "price",
        "lastPrice",
        "size",
        "tradeExchange",
        "tradeTimestamp",
        "tradeSeq",
    )
    greeks_fields: Annotated[tuple[str, ...], Meta(min_length=1, description="Fields asked of greeks; `*`: all.")] = (
        "*",
    )
    max_symbols_per_message: Annotated[int, Meta(ge=1, le=10_000, description="Symbols in one subscribe message.")] = (
        100
    )

    def __post_init__(self) -> None:
        if bool(self.client_id) != bool(self.refresh_token):
            raise ValueError("client_id: belongs together with refresh_token")
        if self.client_secret and not self.client_id:
            raise ValueError("client_secret: needs client_id and refresh_token")
        if self.token_file and (self.client_id or self.token):
            raise ValueError("token_file: give either it, or token, or client_id; one of them keeps the token fresh")
        if self.pnl and not self.account_id:
            raise ValueError("pnl: needs account_id")
        credentials = self.token or self.token_file or self.client_id
        if not self.simulate and not credentials and subscribed(self):
            raise ValueError("needs token, token_file, or client_id with refresh_token; or `simulate: true`")


def normal(raw: str) -> str:
    """Give the spelling that is compared and published: upper case; options compact, without `O:` and padding."""
    text = raw.strip().upper()
    compact = "".join(text.removeprefix("O:").split())
    return compact if _OSI.fullmatch(compact) else text


def is_option(raw: str) -> bool:
    """Tell whether a normal raw symbol is an option in OSI form."""
    return _OSI.fullmatch(raw) is not None


def to_symbol(raw: str) -> tuple[str, str | None]:
    """Map a raw symbol: `MSFT`, `SPX-IDX`, `MSFT-20260619-450-C`. No venue: the feed is consolidated."""
    raw = normal(raw)
    if raw in INDICES:
        return symbols.index(raw), None
    match = _OSI.fullmatch(raw)
    if match:
        root, year, month, day, right, strike = match.groups()
        whole, fraction = str(int(strike[:5])), strike[5:].rstrip("0")
        return symbols.option(root, f"20{year}{month}{day}", whole + ("." + fraction if fraction else ""), right), None
    return symbols.escape(raw), None


def subscribed(options: AriesOptions) -> list[Subscription]:
    """List what the options subscribe to, raw symbols in normal spelling.

    An index has neither quotes nor trades: wherever it is listed, it gives `rates`.
    """
    account: list[Channel] = ["orders", "positions", "balances", "account"] if options.account_id else []
    if not account and (options.watchlist or options.news):
        account = ["account"]
    found = subscriptions(options, account)
    found += [Subscription("trades", raw) for raw in options.time_and_sales]
    found += [Subscription(channel, raw) for raw in options.charts for channel in ("quotes", "trades")]
    out: list[Subscription] = []
    for channel, raw, param in found:
        name = normal(raw)
        out.append(Subscription("rates" if name in INDICES and channel in _CHARTED else channel, name, param))
    return list(dict.fromkeys(out))


def endpoint_of(charted: Set[str], subscription: Subscription) -> Endpoint:
    """Tell which endpoint carries a subscription: one only, so that nothing comes twice."""
    if subscription.channel in ACCOUNT_CHANNELS:
        return "accounts"
    return "charts" if subscription.channel in _CHARTED and subscription.raw in charted else "market"


def charted(options: AriesOptions) -> frozenset[str]:
    """The symbols whose quotes and trades come from the charting endpoint, in normal spelling."""
    return frozenset(map(normal, options.charts))


def plan(options: AriesOptions, wanted: Sequence[Subscription]) -> list[Planned]:
    """Deal subscriptions to one connection an endpoint, labelled by its name."""
    by_charts = charted(options)
    dealt: dict[str, list[Subscription]] = {label: [] for label in PATHS}
    for subscription in wanted:
        dealt[endpoint_of(by_charts, subscription)].append(subscription)
    return [Planned(label, tuple(part)) for label, part in dealt.items() if part]
