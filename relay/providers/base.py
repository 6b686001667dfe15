"""The provider contract (sans-IO): what a provider file must give, and the few things all of them share.

A provider is pure: no clock, no randomness, no environment, no files, no logging, no `async`. One object a session,
dropped with it. Bytes and time go in, messages come out, what must be sent is drained by `to_send` after each call.
The relay stamps `provider`, `ts_recv`, `run`, `seq` and `origin`; a provider never sets them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from msgspec import Meta, Struct

from relay import model
from relay.books import Books, Rules
from relay.errors import Action, SessionError
from relay.model import Header
from relay.retry import Policy
from relay.secrecy import Redacted

FRAME_TEXT_MAX = 1000
"""How much of a rejected frame is kept as text in its reject."""


# -- what goes in ------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """One WebSocket message as received."""

    received_ns: int
    """When it was read, ns since 1970 UTC."""
    data: bytes
    """The payload; UTF-8 text where `binary` is false."""
    binary: bool = False


@dataclass(frozen=True)
class Reply:
    """The answer to a `Request`. `status` 0: it was not answered, `error` says why."""

    tag: str
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    error: str = ""


# -- what comes out ----------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A provider number that a useless frame carried: no message, but the identity check must know it.

    `delivered` true: the frame with this number was here and is useless (a marker), so the number itself is not
    missing. False: the provider says that this number exists (a heartbeat's last trade id, a base line); if it was not
    delivered before, it is missing.
    """

    channel: model.Channel
    raw_symbol: str
    src_seq: int
    delivered: bool = True


Output = Header | Seen
"""A message (rejects and statuses included), or a number seen. A frame may give several, good ones beside rejects."""


@dataclass(frozen=True)
class Send:
    """One WebSocket message to send. `bytes` go out as a binary message."""

    data: str | bytes
    subscribes: int = 0
    """How many units of the provider's subscribe limit this message costs; the feed keeps the rate (see Limits)."""


@dataclass(frozen=True)
class Request:
    """A REST call that the provider needs; the feed performs it and hands the answer to `replied`."""

    tag: str
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    timeout_secs: float = 15.0
    body_bytes_max: int = 32 * 1024 * 1024


# -- what a connection needs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect:
    """How to open the WebSocket of a session, and when it counts as dead."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Secrets may stand here; never sent to another origin."""
    subprotocols: Sequence[str] = ()
    open_secs: float = 10.0
    """Deadline for TCP, TLS and the upgrade together."""
    ping_secs: float | None = 20.0
    """Protocol pings by us; None: none."""
    pong_secs: float | None = 10.0
    """How long a protocol ping may stay unanswered."""
    silence_secs: float | None = None
    """No frame of any kind, heartbeats included, for this long: the connection is dead."""
    frame_bytes_max: int = 4 * 1024 * 1024
    compression: bool = True
    """Offer permessage-deflate."""
    renew_secs: float | None = None
    """The provider cuts connections of this age: renew before."""
    refused_upgrade: Mapping[int, tuple[Action, str]] = field(default_factory=dict)
    """By HTTP status: what a refused upgrade asks for, where it is not the usual (401 and 403: fatal, other 3xx and
    4xx: slow, the rest: retry), and words for people that are added to its text."""
    closes: Mapping[int, Action] = field(default_factory=lambda: {1008: "slow"})
    """By close code: what it asks for, where that is not `retry`."""


@dataclass(frozen=True)
class Limits:
    """What the provider allows, enforced over all sessions of one provider by the feed. `(count, seconds)` windows."""

    connects: tuple[int, float] | None = None
    subscribes: tuple[int, float] | None = None
    requests: tuple[int, float] | None = None
    connections_max: int | None = None
    """Connections at one time a key; more is a config error, and make-before-break needs a second one."""

    def divided(self, parts: int) -> "Limits":
        """Give what one of so many processes may use, which cannot count together: all of them stay within these."""

        def part(window: tuple[int, float] | None) -> tuple[int, float] | None:
            if window is None or parts == 1:
                return window
            count, secs = window
            return (count // parts, secs) if count >= parts else (1, secs * parts / count)

        most = self.connections_max
        return Limits(
            part(self.connects),
            part(self.subscribes),
            part(self.requests),
            None if most is None else max(1, most // parts),
        )


@dataclass(frozen=True)
class Identity:
    """How `src_seq` identifies the messages of a channel, per raw symbol (and interval of bars).

    scope: `session` starts anew with each connection, `global` goes on over reconnects. step: `contiguous` grows by
    one (a jump is a gap), `rising` only grows (a step back is late or repeated).
    """

    scope: Literal["session", "global"]
    step: Literal["contiguous", "rising"]


@dataclass(frozen=True)
class ChannelSpec:
    """What a provider declares of one of its channels; generic code uses it."""

    identity: Identity | None = None
    """None: no numbers, or the provider checks them itself (books)."""
    cadence_secs: float = 60.0
    """A topic without a message for longer than this is stale (config: `stale_secs`)."""
    params: Literal["", "interval", "depth"] = ""
    """How the channel is configured: a list, or a mapping by interval (`1m`) or depth (`20`, `full`)."""
    allowed: tuple[str, ...] = ()
    """The intervals or depths that the provider has; empty: any."""
    account: bool = False


class Subscription(NamedTuple):
    """One thing subscribed to: our channel, the raw symbol (or a pattern that ends with `*`), interval or depth."""

    channel: model.Channel
    raw: str
    param: str = ""

    def __str__(self) -> str:
        return f"{self.channel}{f' {self.param}' if self.param else ''} {self.raw}".strip()


# -- the configuration of one provider ---------------------------------------------------------------------------


class Options(Redacted, Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every provider section of relay.yaml may say; a provider's own options are a subclass.

    Symbols are raw ones, the provider's spelling.
    """

    type: Annotated[str, Meta(description="The provider's type, where our name for it differs.")] = ""
    simulate: Annotated[bool, Meta(description="Made-up prices from the built-in simulator.")] = False
    url: Annotated[str, Meta(description="Another WebSocket address than the provider's own.")] = ""
    quotes: tuple[str, ...] = ()
    trades: tuple[str, ...] = ()
    bars: Annotated[dict[str, tuple[str, ...]], Meta(description="By interval: {1m: [EURUSD]}.")] = {}
    books: Annotated[dict[str, tuple[str, ...]], Meta(description="By depth: {20: [EURUSD]}, `full` for all.")] = {}
    rates: tuple[str, ...] = ()
    greeks: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    symbols: Annotated[dict[str, str], Meta(description="Raw to canonical symbol, only where the rule is wrong.")] = {}
    stale_secs: Annotated[
        dict[str, float], Meta(description="By channel: a topic silent for longer is stale; 0: never.")
    ] = {}
    interval_ms: Annotated[
        dict[str, int], Meta(description="{quotes: 250}: of each symbol's quotes the newest in this time, at most.")
    ] = {}
    when_full: Annotated[
        dict[str, Literal["block", "latest"]],
        Meta(description="When the spool is full: `block`: stop reading; {quotes: latest}: keep each symbol's newest."),
    ] = {}
    topics_max: Annotated[int, Meta(ge=1, description="Most topics this provider may make.")] = 10_000


class BookOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a provider whose books the relay keeps itself (relay.books)."""

    book_depth_max: Annotated[
        int, Meta(ge=1, description="Levels a side of a book that are published, the best ones.")
    ] = 1000
    book_snapshot_secs: Annotated[
        float, Meta(ge=0, description="A changed book is published whole again after this long; 0: never by time.")
    ] = 60.0
    quotes_from_books: Annotated[
        tuple[str, ...], Meta(description="Symbols under `books` whose best bid and ask are published as quotes.")
    ] = ()

    def __post_init__(self) -> None:
        """Raises: ValueError naming what contradicts itself."""
        books: dict[str, str] = {}
        for depth, raws in self.books.items():
            for raw in raws:
                if books.setdefault(raw, depth) != depth:
                    raise ValueError(f"books: {raw!r} is listed under {books[raw]} and {depth}; one depth a symbol")
        for raw in self.quotes_from_books:
            if raw not in books:
                raise ValueError(f"quotes_from_books: {raw!r} is not listed under books")
            if raw in self.quotes:
                raise ValueError(
                    f"quotes_from_books: {raw!r} is listed under quotes too; one source of quotes is enough"
                )


FROM_BOOK = "book"
"""The parameter of a subscription to quotes that are derived from a book."""


def subscriptions(options: Options, account: Sequence[model.Channel] = ()) -> list[Subscription]:
    """List what an options struct subscribes to, in configured order; `account` adds account channels."""
    out: list[Subscription] = []
    listed: tuple[model.Channel, ...] = ("quotes", "trades", "rates", "greeks", "instruments")
    for channel in listed:
        out += [Subscription(channel, raw) for raw in getattr(options, channel)]
    out += [Subscription("quotes", raw, FROM_BOOK) for raw in getattr(options, "quotes_from_books", ())]
    mapped: tuple[model.Channel, ...] = ("bars", "books")
    for channel in mapped:
        for param, raws in getattr(options, channel).items():
            out += [Subscription(channel, raw, param) for raw in raws]
    out += [Subscription(channel, "") for channel in account]
    return list(dict.fromkeys(out))


def matches(pattern: str, raw: str) -> bool:
    """Tell whether a subscribed raw symbol or pattern (`KRAKEN_SPOT_*`) takes a raw symbol. A bare name is exact."""
    return raw.startswith(pattern[:-1]) if pattern.endswith("*") else raw == pattern


# -- what outlives sessions --------------------------------------------------------------------------------------


class Shared:
    """A provider's own state that outlives sessions and is common to its connections; subclass to add to it.

    `next_id` gives ids that a provider must invent (request ids), from a counter, so that a replay gives them again.
    `account` is the label of the account, where there is one.
    """

    def __init__(self, options: Options, account: str = "main") -> None:
        self.options: Any = options
        self.account = account
        self._counter = 0
        self.book_snapshot_every = 5000
        """Messages of a book's topic after which it is published whole again; the bridge sets half a stream."""

    def next_id(self) -> int:
        self._counter += 1
        return self._counter

    def wants(self, subscription: Subscription, raw_symbol: str, param: str) -> bool:
        """Tell whether a message of this raw symbol (interval in `param` for bars) belongs to a subscription."""
        if subscription.param and param and subscription.param != param:
            return False
        return matches(subscription.raw, raw_symbol)


SymbolRule = Callable[[str], "tuple[str, str | None]"]
"""A raw symbol to (canonical symbol, venue or None); never raises: what cannot be read is escaped whole."""

SYMBOLS_CACHED_MAX = 100_000


class SymbolTable(dict[str, "tuple[str, str | None]"]):
    """Raw symbol to (canonical symbol, venue): the config's own map first, then the provider's rule; cached."""

    def __init__(self, rule: SymbolRule, own: Mapping[str, str]) -> None:
        super().__init__()
        self._rule, self._own = rule, own

    def __missing__(self, raw: str) -> tuple[str, str | None]:
        symbol, venue = self._rule(raw)
        found = (self._own.get(raw, symbol), venue)
        if len(self) < SYMBOLS_CACHED_MAX:
            self[raw] = found
        return found


# -- the contract ------------------------------------------------------------------------------------------------


class Provider(Protocol):
    """One session of a provider. Every method but `connect` and `to_send` may raise a SessionError to end it.

    `closed` raises one to say what should follow where the connection is gone by itself (a wait until a time). `ended`
    is asked last, with the peer's close code (None: there was none) and whether data had come: an error that it gives
    replaces the usual reaction to that code. `whole`: each book that is kept by deltas, for a standby that takes over.

    `subscriptions` are those dealt to this connection (see ProviderSpec.plan). `useless` counts known frames that gave
    nothing (heartbeats, acks); the relay reads it for the conservation law. `renew`: this session wishes to be
    replaced by a new one (the provider said that it will close it). `settled`: everything that was asked for is
    answered; None: that cannot be told, and data are the proof.
    """

    useless: int
    renew: bool
    settled: bool | None

    def __init__(self, options: Any, subscriptions: Sequence[Subscription], shared: Any) -> None: ...
    def connect(self) -> Connect: ...
    def opened(self, now_ns: int) -> Sequence[Output]: ...
    def receive(self, frame: Frame) -> Sequence[Output]: ...
    def tick(self, now_ns: int) -> Sequence[Output]: ...
    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]: ...
    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]: ...
    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]: ...
    def whole(self, now_ns: int) -> Sequence[Output]: ...
    def closed(self, now_ns: int) -> Sequence[Output]: ...
    def ended(self, code: int | None, reason: str, carried: bool) -> SessionError | None: ...
    def to_send(self) -> list[Send | Request]: ...


class BaseProvider:
    """Defaults of the contract for what most providers do not need. Override what you do; state is yours."""

    def __init__(self, options: Any, subscriptions: Sequence[Subscription], shared: Any) -> None:
        self.options, self.shared = options, shared
        self.subscriptions = list(subscriptions)
        self.useless = 0
        self.renew = False
        self.settled: bool | None = None
        self._out: list[Send | Request] = []

    def opened(self, now_ns: int) -> Sequence[Output]:
        return ()

    def tick(self, now_ns: int) -> Sequence[Output]:
        return ()

    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]:
        return ()

    def whole(self, now_ns: int) -> Sequence[Output]:
        return ()

    def closed(self, now_ns: int) -> Sequence[Output]:
        return ()

    def ended(self, code: int | None, reason: str, carried: bool) -> SessionError | None:
        return None

    def to_send(self) -> list[Send | Request]:
        """Drain what must go out, in order."""
        out = self._out
        if out:
            self._out = []
        return out


@dataclass(frozen=True)
class Planned:
    """One connection of a provider: a short label (`market`, `1`) and what it carries."""

    label: str
    subscriptions: tuple[Subscription, ...]


def one_connection(options: Options, subscribed: Sequence[Subscription]) -> list[Planned]:
    """The plan of most providers: one connection carries all."""
    return [Planned("1", tuple(subscribed))] if subscribed else []


class Listed(NamedTuple):
    """One symbol that a provider offers."""

    raw: str
    symbol: str
    """Canonical."""
    name: str = ""
    """Full name, or what kind of thing it is."""
    active: bool = True
    """It can be traded now."""


@dataclass(frozen=True)
class Listing:
    """How to ask a provider, over REST, for the symbols that it offers."""

    request: Callable[[Any], Request]
    """Options to the call for all of them. Raises: ValueError where they lack what it needs."""
    read: Callable[[Any, bytes], list[Listed]]
    """Options and the body of the answer to the symbols, in the provider's order. Raises: ValueError."""
    narrowed: Callable[[Any, str], Request] | None = None
    """Options and the beginning of the wanted raw symbols to the call, where all would be too many."""


@dataclass(frozen=True)
class ProviderSpec:
    """One entry of PROVIDERS: everything generic code knows of a provider."""

    name: str
    title: str
    """How its makers write it."""
    options: type[Options]
    session: Callable[[Any, Sequence[Subscription], Any], Provider]
    channels: Mapping[model.Channel, ChannelSpec]
    rule: SymbolRule
    """Raw symbol to (canonical symbol, venue): for checking a config before anything runs."""
    source: Literal["provider", "venue"] = "provider"
    """What numbers and orders its messages: the provider itself, or each venue that its symbols name."""
    shared: Callable[..., Shared] = Shared
    """Called as `shared(options, account_label)`."""
    plan: Callable[[Any, Sequence[Subscription]], list[Planned]] = one_connection
    subscribed: Callable[[Any], list[Subscription]] = subscriptions
    """Lists what an options struct subscribes to; a provider with account streams has its own."""
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    patterns: bool = False
    """Subscriptions may end with `*`."""
    together: Callable[[Any], str] = lambda options: ""
    """Why one process must hold all sessions of a section, whatever the limits allow; empty: several may share it."""
    key_url: str = ""
    """Where a person gets a key; empty: no key needed."""
    examples: tuple[str, ...] = ()
    """Raw symbols that everybody knows, to begin with."""
    listing: Listing | None = None
    """How to ask for all symbols; None: the provider lists none."""
    to_raw: Callable[[str], str] | None = None
    """Canonical symbol to raw symbol. Raises: ValueError naming what it cannot be."""
    to_raw_at: Callable[[str, str], str | None] | None = None
    """The same where symbols name a venue: canonical symbol and venue; None where it has no raw symbol."""

    account_channels: ClassVar[frozenset[str]] = model.ACCOUNT_CHANNELS


def order_books(
    options: BookOptions,
    shared: Shared,
    names: Mapping[str, tuple[str, str | None]],
    rules: Rules,
    refresh_secs: float = 0.0,
) -> Books:
    """Make the books of one session, as its options want them; for `refresh_secs` see Books."""
    return Books(
        names,
        rules,
        depth_max=options.book_depth_max,
        snapshot_every=shared.book_snapshot_every,
        snapshot_secs=options.book_snapshot_secs,
        quotes=options.quotes_from_books,
        refresh_secs=refresh_secs,
    )


# -- small helpers for provider files ----------------------------------------------------------------------------


def reject(reason: model.RejectReason, detail: str, frame: bytes | str | None = None, **header: Any) -> model.Reject:
    """Build a reject; the frame is cut to FRAME_TEXT_MAX bytes and made printable text."""
    text: str | None = None
    if frame is not None:
        raw = frame.encode("utf-8", "replace") if isinstance(frame, str) else bytes(frame[:FRAME_TEXT_MAX])
        text = raw[:FRAME_TEXT_MAX].decode("utf-8", "replace")
    return model.Reject(reason=reason, detail=detail[:500], frame=text, **header)
