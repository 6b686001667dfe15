"""CoinAPI, WebSocket V1 and DS: quotes, trades, bars, books, rates and symbols of hundreds of venues on one socket.

Docs: https://docs.coinapi.io/market-data/websocket-v1 (General, Messages, Endpoints), read 2025; facts and their
evidence as gathered for this project. Quirks: nothing is acknowledged (the first heartbeat or data frame is the proof,
an error frame with a close the refusal); symbol filters are prefixes unless they end with `$`; `type` stands last in
live frames; the heartbeat is spelled `hearbeat`; a trade of size 0 is a marker; a quote size of 0 is unknown; bars
carry no closed flag. A raw symbol is CoinAPI's `symbol_id`, that of a rate the pair `BTC/USD` or an asset `BTC`.
"""

from relay.model import Channel
from relay.providers.base import ChannelSpec, Identity, Limits, ProviderSpec
from relay.providers.coinapi.asking import BOOK_DEPTHS, KEY_URL, CoinApiOptions, CoinApiShared
from relay.providers.coinapi.listing import LISTING
from relay.providers.coinapi.names import to_raw, to_symbol
from relay.providers.coinapi.session import CoinApi
from relay.retry import Policy

_CHANNELS: dict[Channel, ChannelSpec] = {
    "quotes": ChannelSpec(Identity("session", "contiguous")),
    "trades": ChannelSpec(Identity("session", "contiguous"), cadence_secs=300.0),
    # numbered per symbol over all intervals: the session checks them itself, as it does those of books
    "bars": ChannelSpec(cadence_secs=600.0, params="interval"),
    "books": ChannelSpec(params="depth", allowed=tuple(BOOK_DEPTHS)),
    "rates": ChannelSpec(cadence_secs=120.0),
    "instruments": ChannelSpec(cadence_secs=86_400.0),
}

SPEC = ProviderSpec(
    name="coinapi",
    title="CoinAPI",
    options=CoinApiOptions,
    session=CoinApi,
    channels=_CHANNELS,
    rule=to_symbol,
    examples=("COINBASE_SPOT_BTC_USD", "COINBASE_SPOT_ETH_USD"),
    source="venue",
    shared=CoinApiShared,
    policy=Policy(first_secs=1.0, cap_secs=60.0),
    limits=Limits(connects=(10, 10.0), subscribes=(10, 10.0), connections_max=1),
    patterns=True,
    key_url=KEY_URL,
    listing=LISTING,
    to_raw_at=to_raw,
)
