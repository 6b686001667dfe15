"""Kraken spot, WebSocket v2 (`wss://ws.kraken.com/v2`), without a key: quotes, trades, bars, books, instruments.

Docs: https://docs.kraken.com/api/docs/websocket-v2/ (book, ticker, trade, ohlc, instrument, status) and its guide to
the book's checksum, read 2026-03-01; what is unwritten there was seen in recordings.

- Every symbol is acknowledged for itself; a refusal leaves the connection open and its heartbeats running.
- There are no sequence numbers: books have a CRC32 over the wire's own digits, trades a `trade_id` without holes.
- The client cuts its book to the subscribed depth after each update.
- `ohlc` never says that a bar is final: a later one, or the time, does.
"""

from relay.providers.base import ChannelSpec, Identity, Limits, Listing, ProviderSpec
from relay.providers.kraken import listing
from relay.providers.kraken.options import DEPTHS, MINUTES, KrakenOptions, KrakenShared, to_raw, to_symbol
from relay.providers.kraken.session import Session
from relay.retry import Policy

QUIET_SECS = 3600.0
"""Quotes, trades and bars come when somebody trades; heartbeats watch the connection."""

SPEC = ProviderSpec(
    name="kraken",
    title="Kraken",
    options=KrakenOptions,
    session=Session,
    channels={
        "quotes": ChannelSpec(cadence_secs=QUIET_SECS),
        "trades": ChannelSpec(identity=Identity("global", "contiguous"), cadence_secs=QUIET_SECS),
        "bars": ChannelSpec(cadence_secs=QUIET_SECS, params="interval", allowed=tuple(MINUTES)),
        "books": ChannelSpec(cadence_secs=600.0, params="depth", allowed=DEPTHS),
        "instruments": ChannelSpec(cadence_secs=0.0),
    },
    rule=to_symbol,
    examples=("BTC/USD", "ETH/USD"),
    shared=KrakenShared,
    policy=Policy(first_secs=1.0, cap_secs=60.0, slow_secs=600.0),
    limits=Limits(connects=(150, 600.0)),
    listing=Listing(listing.request, listing.read),
    to_raw=to_raw,
)

__all__ = ["SPEC", "to_raw", "to_symbol"]
