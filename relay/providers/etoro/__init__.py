"""eToro's public API: sparse quote deltas, market flags, order events, reference data and a last price over REST.

Facts from `../shared/providers/etoro.md` (sources read 2026-08; nothing was checked against the live service). Two
dialects of the stream: `inband` (operations with ids, envelopes with JSON in a string; the one the live service is
known to speak) and `header` (keys on the upgrade, flat messages; tutorials only), with its variant `action`.

`options` (configuration), `wire` (reading JSON), `merge` (the standing price), `reference` (shared state, instrument
map), `topics` and `control` (subscriptions, login, refusals), `rest` (calls), `orders`, `flat` (messages), `session`.
"""

from relay.providers.base import ChannelSpec, Limits, ProviderSpec
from relay.providers.etoro.options import REQUESTS, EtoroOptions, plan, subscribed, to_symbol
from relay.providers.etoro.reference import EtoroShared
from relay.providers.etoro.session import EtoroSession
from relay.retry import Policy

SPEC = ProviderSpec(
    name="etoro",
    title="eToro",
    options=EtoroOptions,
    session=EtoroSession,
    channels={
        # many instruments tick far less than once a second; a topic is quiet for a minute before that means anything
        "quotes": ChannelSpec(cadence_secs=60.0),
        "trades": ChannelSpec(cadence_secs=300.0),
        "bars": ChannelSpec(cadence_secs=300.0, params="interval"),
        "books": ChannelSpec(cadence_secs=60.0, params="depth"),
        "instruments": ChannelSpec(cadence_secs=0.0),
        "orders": ChannelSpec(cadence_secs=0.0, account=True),
    },
    rule=to_symbol,
    examples=("TSLA", "GOLD"),
    shared=EtoroShared,
    plan=plan,
    subscribed=subscribed,
    policy=Policy(first_secs=1.0, cap_secs=30.0),
    limits=Limits(requests=REQUESTS),
    key_url="https://www.etoro.com/settings/trade",
)

__all__ = ["SPEC", "EtoroOptions", "EtoroSession", "EtoroShared", "to_symbol"]
