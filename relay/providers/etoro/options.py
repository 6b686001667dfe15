"""What relay.yaml may say about eToro, the limits that are known of it, and how subscriptions are dealt to connections.

Addresses and limits: eToro's API portal and published measurements, read 2026-08 (docs: https://api-portal.etoro.com).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from relay import model, symbols
from relay.providers import base
from relay.providers.base import Planned, Subscription
from relay.secrecy import Secret

WS_URL = "wss://ws.etoro.com/ws"
REST_URL = "https://public-api.etoro.com"
ALTERNATE_REST_END = "/api/public"
"""The alternate base https://www.etoro.com/api/public has its paths under /v1, not /api/v1."""

CHUNK_BYTES_MAX = 20 * 1024
"""Most bytes of one client message: 25,529 were accepted, 25,719 cost the connection without a word [measured]."""
CHUNK_BYTES_MIN = 1024
"""A chunk is not halved below this: some fifty topics."""
REQUESTS = (50, 60.0)
"""REST calls in a window of seconds: 60 a minute are published for a key, the rest is for its owner."""

Dialect = Literal["inband", "header", "action"]
# fiat codes of eToro's currency pairs: a name made of two of them is a pair, whatever else has six letters is not
_CURRENCIES = frozenset(
    "AED AUD BRL CAD CHF CLP CNH CNY CZK DKK EUR GBP HKD HUF ILS INR JPY KRW MXN NOK NZD PLN QAR RON RUB SAR SEK SGD "
    "THB TRY TWD USD XAG XAU ZAR".split()
)


class EtoroOptions(base.Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The eToro section. Symbols are instrument ids (`1001`) or eToro's symbols (`AAPL`, any case)."""

    api_key: Annotated[Secret, Meta(description="The public API key of the application (x-api-key).")] = ""
    user_key: Annotated[Secret, Meta(description="The user key of the account (x-user-key).")] = ""
    dialect: Annotated[
        Dialect,
        Meta(
            description="How the stream is spoken: `inband` is what the live service is known to speak; `header` and "
            "`action` stand in tutorials only."
        ),
    ] = "inband"
    rest_url: Annotated[str, Meta(description="Another REST base than https://public-api.etoro.com.")] = ""
    query: Annotated[
        dict[str, str],
        Meta(extra={"secret": True}, description="More query parameters of the WebSocket address; taken as secrets."),
    ] = {}
    subprotocols: Annotated[tuple[str, ...], Meta(description="WebSocket subprotocols to offer.")] = ()
    account: Annotated[str, Meta(description="Our label of the account in topic names.")] = "main"
    orders: Annotated[bool, Meta(description="Order events of the account, topic orders.<account>.")] = False
    order_states: Annotated[
        dict[str, model.OrderState],
        Meta(description="StatusID to state, where yours differ: {7: open}. Errors and executed units still decide."),
    ] = {}
    metadata: Annotated[
        bool, Meta(description="Load names, exchanges and classes over REST; publishes instruments.<symbol>.")
    ] = True
    fallback_secs: Annotated[
        float, Meta(ge=0, description="No price on the stream for this long: publish the REST mid. 0: never.")
    ] = 60.0
    silence_secs: Annotated[
        float, Meta(ge=0, description="No frame at all for this long: the connection is dead. 0: never.")
    ] = 300.0
    connection_topics_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Topics of one connection; more open further ones.")
    ] = 4_900
    """4,999 are accepted [measured on a demo key]; the rest is room for the account and run-time additions."""
    precisions: Annotated[
        dict[str, int], Meta(description="Decimals of a price, where you know them: {EURUSD: 5}.")
    ] = {}

    def __post_init__(self) -> None:
        if self.api_key and not self.user_key and self.dialect == "inband" and not self.simulate:
            raise ValueError("user_key: is needed beside api_key; eToro gives both when a key is made")

    def keys(self) -> tuple[str, str]:
        """Give API key and user key; a simulator takes any that are not empty."""
        stand_in = "simulated" if self.simulate else ""
        return self.api_key or stand_in, self.user_key or stand_in


def subscribed(options: EtoroOptions) -> list[Subscription]:
    """List what an options struct subscribes to: with `metadata`, the instrument of every symbol is one of them."""
    found = base.subscriptions(options, ("orders",) if options.orders else ())
    if options.metadata:
        found += [Subscription("instruments", sub.raw) for sub in found if sub.channel == "quotes"]
    return list(dict.fromkeys(found))


def plan(options: EtoroOptions, subscriptions: Sequence[Subscription]) -> list[Planned]:
    """Deal subscriptions to connections of at most `connection_topics_max` topics; one symbol stays on one of them."""
    counts: dict[str, int] = {}
    for sub in subscriptions:
        counts[sub.raw] = counts.get(sub.raw, 0) + (sub.channel != "instruments")
    home: dict[str, int] = {}
    number = used = 0
    for raw, topics in counts.items():
        if used and used + topics > options.connection_topics_max:
            number, used = number + 1, 0
        home[raw] = number
        used += topics
    dealt: dict[int, list[Subscription]] = {}
    for sub in subscriptions:
        dealt.setdefault(home[sub.raw], []).append(sub)
    return [Planned(str(number + 1), tuple(subs)) for number, subs in sorted(dealt.items())]


def to_pair(raw: str) -> tuple[str, str] | None:
    """`EURUSD` to (`EUR`, `USD`); None for what is not made of two currency codes."""
    name = raw.upper()
    if len(name) == 6 and name[:3] in _CURRENCIES and name[3:] in _CURRENCIES and name[:3] != name[3:]:
        return name[:3], name[3:]
    return None


def to_symbol(raw: str) -> tuple[str, str | None]:
    """Give the canonical symbol of an instrument id or an eToro symbol; eToro's symbols know no case.

    An id stays an id: topics are named by what the configuration says, not by what REST answers today.
    """
    halves = to_pair(raw)
    return (symbols.pair(*halves) if halves else symbols.escape(raw.upper())), None
