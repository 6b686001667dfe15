"""Binance spot market data (`wss://stream.binance.com:9443`), without a key: quotes, trades, bars, books.

Docs: https://github.com/binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, CHANGELOG.md; read 2026-07;
what is unwritten there was seen in recordings). Also other venues with the same wire, by `url` and `rest_url`.

Channels: `bookTicker` gives quotes, `trade` or `aggTrade` (one of them, by option) trades, `kline_<interval>` bars,
`depth5|10|20` books of that depth, `depth` (diffs, begun by a REST snapshot) whole books. Combined mode, one SUBSCRIBE.
- Quotes and partial books carry no time; partial books no symbol either: the stream's name is the key.
- `m`: the buyer was the maker, so the aggressor sold. Trade ids grow by one per symbol, over connections too.
- A wrong stream name is accepted in silence: symbols are checked against the venue's own list.
- `BTCUSDT` has no separator: that list says where it parts (names.py).
- There is no heartbeat, and a connection lives 24 hours at most.

`options` (configuration, what outlives sessions), `names` (symbols), `wire` (JSON), `asking` (subscriptions), `rest`
(symbol list, whole books), `session` (one connection).
"""

from collections.abc import Sequence

from relay import symbols
from relay.model import Channel
from relay.providers.base import (
    FROM_BOOK,
    ChannelSpec,
    Identity,
    Limits,
    Listed,
    Listing,
    Planned,
    ProviderSpec,
    Request,
    Subscription,
)
from relay.providers.binance import rest
from relay.providers.binance.names import to_raw, to_symbol
from relay.providers.binance.options import DEPTHS, INTERVALS, BinanceOptions, BinanceShared
from relay.providers.binance.session import Session
from relay.providers.binance.wire import exchange_info
from relay.retry import Policy

STREAMS_MAX = 1000
"""Of 1,024 streams a connection; the rest is room for run-time additions."""
QUIET_SECS = 3600.0
"""Quiet symbols trade once an hour, and bars are pushed with trades only."""
BOOK_QUIET_SECS = 600.0
"""Orders come and go more often than trades."""

_CHANNELS: dict[Channel, ChannelSpec] = {
    "quotes": ChannelSpec(Identity("global", "rising"), cadence_secs=BOOK_QUIET_SECS),
    "trades": ChannelSpec(Identity("global", "contiguous"), cadence_secs=QUIET_SECS),
    "bars": ChannelSpec(cadence_secs=QUIET_SECS, params="interval", allowed=tuple(INTERVALS)),
    "books": ChannelSpec(cadence_secs=BOOK_QUIET_SECS, params="depth", allowed=DEPTHS),
}


def plan(options: BinanceOptions, subscribed: Sequence[Subscription]) -> list[Planned]:
    """Deal the streams over connections, all of one symbol together."""
    groups: dict[str, list[Subscription]] = {}
    for sub in subscribed:
        groups.setdefault(sub.raw, []).append(sub)
    parts: list[list[Subscription]] = []
    streams = STREAMS_MAX
    for group in groups.values():
        count = sum(sub.param != FROM_BOOK for sub in group)
        if streams + count > STREAMS_MAX:
            parts.append([])
            streams = 0
        parts[-1] += group
        streams += count
    return [Planned(str(number), tuple(part)) for number, part in enumerate(parts, 1)]


def _list_request(options: BinanceOptions) -> Request:
    if not options.rest:
        raise ValueError("the REST side of this url is not known: name it by `rest_url`")
    return rest.list_request(options.rest)


def _read_list(options: BinanceOptions, body: bytes) -> list[Listed]:
    return [
        Listed(
            one.symbol,
            options.symbols.get(one.symbol) or symbols.pair(one.baseAsset, one.quoteAsset),
            active=one.status in ("", "TRADING"),
        )
        for one in exchange_info(body).symbols
    ]


SPEC = ProviderSpec(
    name="binance",
    title="Binance",
    options=BinanceOptions,
    session=Session,
    channels=_CHANNELS,
    rule=to_symbol,
    examples=("BTCUSDT", "ETHUSDT"),
    shared=BinanceShared,
    plan=plan,
    policy=Policy(first_secs=1.0, cap_secs=60.0),
    # 300 attempts in 5 minutes an address, 5 messages a second a connection with pings and pongs; REST by weight
    limits=Limits(connects=(250, 300.0), subscribes=(4, 1.0), requests=(30, 10.0)),
    listing=Listing(_list_request, _read_list),
    to_raw=to_raw,
)
