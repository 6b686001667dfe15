"""The messages: what the relay publishes, one struct a kind (design.md section 4).

A provider fills what it knows and leaves the rest absent (`None` is never written). `provider`, `ts_recv`, `run`,
`seq` and `origin` are stamped by the relay when the message is numbered; providers never set them. After that a
message is not changed any more. Every number that is a price or a size is plain decimal text, exactly the
provider's digits.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

NUMBER_CHARS_MAX = 100
"""The longest decimal text that is published: 1E-60 written out and 30 digits before the point fit."""

Number = Annotated[
    str,
    Meta(
        pattern=r"^-?[0-9]+(\.[0-9]+)?$",
        max_length=NUMBER_CHARS_MAX,
        description="Plain decimal text: the provider's digits, no exponent, trailing zeros kept.",
    ),
]
Price = Annotated[
    str,
    Meta(
        pattern=r"^-?[0-9]+(\.[0-9]+)?$",
        max_length=NUMBER_CHARS_MAX,
        description="Price in units of the quote asset, plain decimal text.",
    ),
]
Size = Annotated[
    str,
    Meta(
        pattern=r"^-?[0-9]+(\.[0-9]+)?$",
        max_length=NUMBER_CHARS_MAX,
        description="Amount in units of the base asset (shares, contracts, coins), plain decimal text.",
    ),
]
Nanos = Annotated[int, Meta(description="Nanoseconds since 1970-01-01 00:00 UTC.")]
Count = Annotated[int, Meta(ge=0, description="A count.")]
Text = Annotated[str, Meta(max_length=4096)]

Level = tuple[Price, Size]
Levels = Annotated[tuple[Level, ...], Meta(description="[[price, size], ...], best first; size 0 removes a level.")]

Side = Literal["buy", "sell"]
Origin = Literal["simulated", "rest", "backfill", "replay"]
OrderState = Literal["pending", "open", "partially_filled", "filled", "cancelled", "rejected", "unknown"]
RateKind = Literal["exchange", "mark", "index", "funding"]
StatusEvent = Literal[
    "opened", "authenticated", "subscribed", "unsubscribed", "refused", "closed", "gap", "stale", "fresh", "quota",
    "market", "resync", "renewed", "handover", "notice", "degraded", "recovered", "stopped",
]  # fmt: skip
GapReason = Literal[
    "disconnect", "sequence_jump", "sequence_reset", "overflow", "decode_error", "provider_notice", "relay_down",
    "handover_uncertain", "spool_corrupt", "beyond_retention", "resync",
]  # fmt: skip
RejectReason = Literal[
    "not_json", "not_object", "not_text", "unknown_type", "missing_field", "bad_field", "bad_number", "bad_time",
    "bad_symbol", "too_deep", "too_large", "internal",
]  # fmt: skip

Channel = Literal[
    "quotes", "trades", "bars", "books", "rates", "greeks", "instruments", "orders", "positions", "balances", "account"
]
"""What one subscribes to, by our kind; also the first part of the topic's name."""

ACCOUNT_CHANNELS: frozenset[str] = frozenset({"orders", "positions", "balances", "account"})


class Header(Struct, tag_field="type", kw_only=True, omit_defaults=True, gc=False):
    """The fields that every message has. `ts_recv`, `run` and `seq` are always there once it is published."""

    provider: Annotated[
        str, Meta(description="The provider's name in relay.yaml; in statuses of the relay itself, the relay's name.")
    ] = ""
    symbol: Annotated[str, Meta(description="Canonical symbol, such as EUR-USD.", max_length=64)] | None = None
    raw_symbol: Annotated[str, Meta(description="The provider's own spelling.", max_length=256)] | None = None
    venue: Annotated[str, Meta(description="Where it happened, when the provider says so.", max_length=64)] | None = (
        None
    )
    ts_event: (
        Annotated[int, Meta(description="The provider's time, ns since 1970 UTC; absent where it gives none.")] | None
    ) = None
    ts_recv: Annotated[int, Meta(description="When the relay read the frame, ns since 1970 UTC.")] = 0
    run: Annotated[int, Meta(description="Ms since 1970 of this relay's start; a change restarts `seq`.")] = 0
    seq: Annotated[int, Meta(description="Number within run and topic, from 1, without holes.")] = 0
    src_seq: Annotated[int, Meta(description="The provider's own number, where it numbers messages.")] | None = None
    origin: Annotated[Origin, Meta(description="Absent means live.")] | None = None


class Quote(Header, tag="quote", kw_only=True):
    """Best bid and ask. At least one of bid, ask and mid is there; `mid` comes only from REST fallbacks."""

    bid: Annotated[Price, Meta(description="Best bid; absent: none or unknown.")] | None = None
    ask: Annotated[Price, Meta(description="Best ask; absent: none or unknown.")] | None = None
    bid_size: Annotated[Size, Meta(description="Size at the best bid.")] | None = None
    ask_size: Annotated[Size, Meta(description="Size at the best ask.")] | None = None
    last: Annotated[Price, Meta(description="Price of the last trade, where the quote carries it.")] | None = None
    mid: Annotated[Price, Meta(description="Middle price, only from a REST fallback.")] | None = None


class Trade(Header, tag="trade", kw_only=True):
    """One execution."""

    price: Annotated[Price, Meta(description="Price of the execution.")]
    size: Annotated[Size, Meta(description="Size of the execution.")] | None = None
    side: Annotated[Side, Meta(description="The aggressor's side.")] | None = None
    side_estimated: Annotated[bool, Meta(description="The provider inferred the side.")] = False
    id: Annotated[str, Meta(description="The provider's trade id.", max_length=256)] | None = None


class Bar(Header, tag="bar", kw_only=True):
    """Open, high, low, close of one interval; the same bar may come again until `closed` is true."""

    interval: Annotated[
        str, Meta(description="Length of the bar: 1s, 1m, 1h, 1d ...", pattern=r"^[1-9][0-9]*[a-zA-Z]+$")
    ]
    start: Annotated[int, Meta(description="First ns of the interval, since 1970 UTC.")]
    end: Annotated[int, Meta(description="First ns behind the interval, since 1970 UTC.")]
    open: Annotated[Price, Meta(description="First price.")]
    high: Annotated[Price, Meta(description="Highest price.")]
    low: Annotated[Price, Meta(description="Lowest price.")]
    close: Annotated[Price, Meta(description="Last price so far.")]
    volume: Annotated[Size, Meta(description="Traded volume.")] | None = None
    ticks: Annotated[int, Meta(description="Number of price changes, where the volume is a count.")] | None = None
    trades: Annotated[int, Meta(description="Number of trades.")] | None = None
    vwap: Annotated[Price, Meta(description="Volume-weighted average price.")] | None = None
    closed: Annotated[bool, Meta(description="True: final. False: the interval still runs, or may be corrected.")]


class BookSnapshot(Header, tag="book_snapshot", kw_only=True):
    """Replaces the whole book of its topic."""

    bids: Annotated[Levels, Meta(description="Bids, highest price first.")]
    asks: Annotated[Levels, Meta(description="Asks, lowest price first.")]
    depth: Annotated[int, Meta(description="Levels a side the book is cut to; absent: the whole book.")] | None = None
    prev_seq: Annotated[int, Meta(description="The provider's number of the book before this one.")] | None = None
    checksum: Annotated[int, Meta(description="The provider's checksum of the book.")] | None = None


class BookDelta(Header, tag="book_delta", kw_only=True):
    """Changes the book of its topic: the absolute new size of each level; 0 removes it."""

    bids: Annotated[Levels, Meta(description="Bids, highest price first.")]
    asks: Annotated[Levels, Meta(description="Asks, lowest price first.")]
    depth: Annotated[int, Meta(description="Levels a side the book is cut to; absent: the whole book.")] | None = None
    prev_seq: Annotated[int, Meta(description="The provider's number of the update before this one.")] | None = None
    checksum: Annotated[int, Meta(description="The provider's checksum of the book after this update.")] | None = None


class Rate(Header, tag="rate", kw_only=True):
    """A reference value that nobody can trade at."""

    kind: Annotated[RateKind, Meta(description="Exchange rate, mark price, index level or funding rate.")]
    value: Annotated[Number, Meta(description="The value: units of the quote asset, or a fraction for funding.")]


class Greeks(Header, tag="greeks", kw_only=True):
    """Sensitivities of an option."""

    delta: Annotated[Number, Meta(description="Change of the price per unit of the underlying.")] | None = None
    gamma: Annotated[Number, Meta(description="Change of delta per unit of the underlying.")] | None = None
    theta: Annotated[Number, Meta(description="Change of the price by time, provider scale.")] | None = None
    vega: Annotated[Number, Meta(description="Change of the price by volatility, provider scale.")] | None = None
    rho: Annotated[Number, Meta(description="Change of the price by interest, provider scale.")] | None = None
    iv: Annotated[Number, Meta(description="Implied volatility, as the provider scales it.")] | None = None


class Instrument(Header, tag="instrument", kw_only=True):
    """What is known of a symbol. Precisions are numbers of decimals."""

    base: Annotated[str, Meta(description="Base asset.")] | None = None
    quote: Annotated[str, Meta(description="Quote asset.")] | None = None
    name: Annotated[Text, Meta(description="Full name.")] | None = None
    asset_class: Annotated[str, Meta(description="Class as the provider names it.")] | None = None
    price_precision: Annotated[int, Meta(description="Decimals of a price.")] | None = None
    size_precision: Annotated[int, Meta(description="Decimals of a size.")] | None = None
    tick_size: Annotated[Price, Meta(description="Least step of a price.")] | None = None
    active: Annotated[bool, Meta(description="Whether it can be traded now.")] | None = None


class Order(Header, tag="order", kw_only=True):
    """State of one order of an account."""

    account: Annotated[str, Meta(description="The account's label in relay.yaml.")]
    order_id: Annotated[str, Meta(description="The provider's id of the order.")]
    state: Annotated[OrderState, Meta(description="State in our words.")]
    state_raw: Annotated[str, Meta(description="The provider's own state.")] | None = None
    side: Annotated[Side, Meta(description="Side of the order.")] | None = None
    kind: Annotated[str, Meta(description="Kind of order as the provider names it: limit, market ...")] | None = None
    price: Annotated[Price, Meta(description="Limit price.")] | None = None
    size: Annotated[Size, Meta(description="Ordered size.")] | None = None
    filled: Annotated[Size, Meta(description="Executed so far.")] | None = None
    average_price: Annotated[Price, Meta(description="Average price of what was executed.")] | None = None
    reason: Annotated[Text, Meta(description="Why it was refused or cancelled, in the provider's words.")] | None = None


class Position(Header, tag="position", kw_only=True):
    """Size held of one symbol; negative is short."""

    account: Annotated[str, Meta(description="The account's label in relay.yaml.")]
    size: Annotated[Size, Meta(description="Size held; negative is short.")]
    average_price: Annotated[Price, Meta(description="Average price of entry.")] | None = None
    unrealized: Annotated[Number, Meta(description="Unrealized profit, in the account's currency.")] | None = None


class Balance(Header, tag="balance", kw_only=True):
    """Money of an account in one currency."""

    account: Annotated[str, Meta(description="The account's label in relay.yaml.")]
    currency: Annotated[str, Meta(description="Code of the currency.")]
    total: Annotated[Number, Meta(description="All of it, in that currency.")] | None = None
    available: Annotated[Number, Meta(description="What is free to use, in that currency.")] | None = None


class Account(Header, tag="account", kw_only=True):
    """What an account stream says and has no struct yet, whole."""

    account: Annotated[str, Meta(description="The account's label in relay.yaml.")]
    kind: Annotated[str, Meta(description="pnl, watchlist, news, ...")]
    data: Annotated[object, Meta(description="The provider's JSON, whole.")]


class Status(Header, tag="status", kw_only=True):
    """An in-band notice. Fields as they apply to `event`."""

    event: Annotated[StatusEvent, Meta(description="What happened; the other fields apply as it needs them.")]
    channel: Annotated[str, Meta(description="The channel it concerns.")] | None = None
    topic: Annotated[str, Meta(description="The topic it concerns.")] | None = None
    code: Annotated[str, Meta(description="The provider's code, or ours.")] | None = None
    text: Annotated[Text, Meta(description="The provider's words, or ours, on one line.")] | None = None
    action: Annotated[str, Meta(description="What the relay does about it.")] | None = None
    until: Annotated[int, Meta(description="When it ends, ns since 1970 UTC.")] | None = None
    open: Annotated[bool, Meta(description="market: trading is open.")] | None = None
    halted: Annotated[bool, Meta(description="market: trading is halted.")] | None = None
    reason: Annotated[GapReason, Meta(description="gap: why messages are missing.")] | None = None
    first_missing: Annotated[int, Meta(description="gap: first missing provider number.")] | None = None
    last_missing: Annotated[int, Meta(description="gap: last missing provider number.")] | None = None
    missing: Annotated[int, Meta(description="gap: how many are missing; absent where unknown.")] | None = None
    from_ns: Annotated[int, Meta(description="gap: last good message, ns since 1970 UTC.")] | None = None
    to_ns: Annotated[int, Meta(description="gap: first message behind the hole, ns since 1970 UTC.")] | None = None


class Reject(Header, tag="reject", kw_only=True):
    """A frame, or a part of one, that could not be used; kept in the dead-letter topic."""

    reason: Annotated[RejectReason, Meta(description="What is wrong, from a closed list.")]
    detail: Annotated[Text, Meta(description="What is wrong, in words.")] | None = None
    frame: Annotated[str, Meta(description="First 1,000 bytes of the frame as text, secrets redacted.")] | None = None
    account: Annotated[str, Meta(description="Set when it came from an account endpoint.")] | None = None


Message = (
    Quote
    | Trade
    | Bar
    | BookSnapshot
    | BookDelta
    | Rate
    | Greeks
    | Instrument
    | Order
    | Position
    | Balance
    | Account
    | Status
    | Reject
)
MESSAGES: tuple[type[Header], ...] = (
    Quote, Trade, Bar, BookSnapshot, BookDelta, Rate, Greeks, Instrument, Order, Position, Balance, Account, Status,
    Reject,
)  # fmt: skip

CHANNEL_OF: dict[type[Header], Channel] = {
    Quote: "quotes",
    Trade: "trades",
    Bar: "bars",
    BookSnapshot: "books",
    BookDelta: "books",
    Rate: "rates",
    Greeks: "greeks",
    Instrument: "instruments",
    Order: "orders",
    Position: "positions",
    Balance: "balances",
    Account: "account",
}
"""The channel, and so the kind of topic, of each message but `status` and `reject`."""

ACCOUNT_MESSAGES: tuple[type[Header], ...] = tuple(
    cls for cls, channel in CHANNEL_OF.items() if channel in ACCOUNT_CHANNELS
)
"""The messages that tell of an account."""
