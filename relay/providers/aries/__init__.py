"""Aries: US equities, options and indices, and the user's own account, over three WebSocket endpoints.

Pages (read through stored copies, March 2026): https://finance.dev/websockets/market-data, .../tradingview-chart,
.../account-updates, https://finance.dev/api-reference/marketdata/wss, .../oauth2/token; the twins at
https://ariesfinancialinc.mintlify.app. Channels: quotes, trades, books, rates (indices), greeks; orders, positions,
balances, account. Quirks: one login shape for all, to be sent at once (accounts: within 5 s); NDJSON split on LF only;
quotes are sparse; depth is a whole book a message; subscriptions are not acknowledged; errors are texts without codes
and are told apart by the id they echo; sessions expire (`expiresIn` in ms) and are renewed on the same connection.
"""

from relay.providers.aries.options import AriesOptions, plan, subscribed, to_symbol
from relay.providers.aries.session import Session
from relay.providers.aries.tokens import AriesShared
from relay.providers.base import ChannelSpec, Limits, ProviderSpec
from relay.retry import Policy

SPEC = ProviderSpec(
    name="aries",
    title="Aries",
    options=AriesOptions,
    session=Session,
    channels={
        # a print names its exchange and the exchange's number: the provider's own check finds repeats (tokens.Prints)
        "quotes": ChannelSpec(cadence_secs=60),
        "trades": ChannelSpec(cadence_secs=300),
        "books": ChannelSpec(cadence_secs=60, params="depth"),
        "rates": ChannelSpec(cadence_secs=60),
        "greeks": ChannelSpec(cadence_secs=300),
        "orders": ChannelSpec(account=True),
        "positions": ChannelSpec(account=True),
        "balances": ChannelSpec(account=True),
        "account": ChannelSpec(account=True),
    },
    rule=to_symbol,
    examples=("AAPL", "MSFT"),
    shared=AriesShared,
    plan=plan,
    subscribed=subscribed,
    together=lambda options: "its refresh token changes at each use" if options.client_id else "",
    policy=Policy(first_secs=1.0, cap_secs=30.0),
    limits=Limits(subscribes=(5, 1.0)),
    key_url="https://app.aries.com",
)

__all__ = ["SPEC", "AriesOptions", "AriesShared", "Session", "to_symbol"]
