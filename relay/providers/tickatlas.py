"""TickAtlas: completed one-minute candles with the bid and ask of that moment, one push a symbol and minute.

Facts: ../shared/providers/tickatlas.md (read 2026-11-21), from tickatlas.com/lp/websocket-streaming, the API reference
and the package `tickatlas` 0.1.0. Channels: quotes, bars (1m). No trades, sizes or depth exist on this feed.

Quirks: the login's field name is documented two ways; `spread` has no sure unit and is not used; `volume` counts ticks;
the daily quota pauses pushes on an open connection until midnight UTC, when nothing must be sent or reconnected.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from relay import numbers, symbols, times
from relay.errors import HandshakeRefused, SessionError, SessionStale
from relay.model import Bar, Quote, Status
from relay.providers.base import (
    BaseProvider,
    ChannelSpec,
    Connect,
    Frame,
    Limits,
    Options,
    Output,
    ProviderSpec,
    Send,
    Shared,
    Subscription,
    SymbolTable,
    reject,
)
from relay.retry import Policy
from relay.secrecy import Secret

URL = "wss://tickatlas.com/ws/v1/quotes"
AUTH_SECS = 10  # the server closes a connection that has not logged in by then
LIMIT_FIRST_SECS = 120.0  # a stale connection's slot is freed after some minutes
LIMIT_NEXT_SECS = 300.0
RESUME_SECS = 300  # after midnight: this long until one subscribe, and as long again until a reconnect
MINUTE_NS = 60_000_000_000
DAY_NS = 86_400_000_000_000
SECOND_NS = 1_000_000_000

_CODES = {
    "quota_exceeded": "quota_exceeded",
    "invalid_api_key": "invalid_key",
    "missing_api_key": "invalid_key",
    "api_key_disabled": "invalid_key",
    "api_key_expired": "invalid_key",
    "plan_upgrade_required": "forbidden",
    "permission_denied": "forbidden",
    "account_suspended": "forbidden",
    "account_inactive": "forbidden",
    "account_expired": "forbidden",
    "ip_not_allowed": "forbidden",
}
"""REST spellings of the stream's codes (section 6)."""

# ISO 4217 codes of what brokers quote, metals, and the crypto assets whose three letters are beyond doubt
_CODES_3 = frozenset(
    "AED ARS AUD BGN BRL CAD CHF CLP CNH CNY COP CZK DKK EUR GBP HKD HUF IDR ILS INR ISK JPY KRW MXN MYR NOK NZD PEN "
    "PHP PLN RON RUB SAR SEK SGD THB TRY TWD USD ZAR XAU XAG XPT XPD BTC ETH LTC XRP BCH ADA SOL DOT BNB".split()
)


class TickAtlasOptions(Options, frozen=True, kw_only=True):
    """What a TickAtlas section of relay.yaml may say."""

    api_key: Secret = ""
    auth_field: Annotated[
        Literal["key", "api_key", "both"], Meta(description="Name of the key in the login message (documented twice).")
    ] = "key"
    bar_time_is: Annotated[
        Literal["open", "close"], Meta(description="Whether a candle's time is its first or its last moment.")
    ] = "open"


class TickAtlasShared(Shared):
    """What outlives sessions: the one try with both login names, refusals by the connection limit, the quota."""

    def __init__(self, options: Options, account: str = "main") -> None:
        super().__init__(options, account)
        self.try_both = False
        self.both_tried = False
        self.limit_hits = 0
        self.paused_until: int | None = None
        self.quota: int | None = None
        """Credits left today as of the login; None: unlimited or not said."""
        self.credits_per_push: int | None = None


class _Wire(msgspec.Struct, gc=False):
    """Any message of the server; which members matter follows from `type`."""

    type: Any = None
    data: Any = None
    symbol: Any = None
    symbols: Any = None
    bid: Any = None
    ask: Any = None
    timestamp: Any = None
    time: Any = None
    code: Any = None
    message: Any = None
    error: Any = None
    plan: Any = None
    max_symbols: Any = None
    credits_per_push: Any = None
    daily_quota_remaining: Any = None


_decode = msgspec.json.Decoder(_Wire, float_hook=str).decode


def to_symbol(raw: str) -> tuple[str, str | None]:
    """`EURUSD` to `EUR-USD` where both halves are known codes; anything else keeps its name (`US30.CASH`)."""
    if len(raw) == 6 and raw[:3] in _CODES_3 and raw[3:] in _CODES_3:
        return symbols.pair(raw[:3], raw[3:]), None
    return symbols.escape(raw), None


def to_raw(symbol: str) -> str:
    """Undo `to_symbol`."""
    base, _, quote = symbol.partition("-")
    if base in _CODES_3 and quote in _CODES_3:
        return base + quote
    return symbols.unescape(symbol)


def _lenient(value: Any) -> str | None:
    """A number, or None for null, blanks, booleans and other text (section 11)."""
    try:
        return numbers.optional(value)
    except ValueError:
        return None


def _count(value: Any) -> int | None:
    """A count of at least one, from `412`, `"389"` or `33.0`."""
    text = _lenient(value)
    if text is None:
        return None
    whole, _, fraction = text.partition(".")
    return int(whole) if not fraction.strip("0") and int(whole) > 0 else None


def next_midnight(now_ns: int) -> int:
    """First 00:00:00 UTC strictly behind `now_ns`."""
    return (now_ns // DAY_NS + 1) * DAY_NS


class TickAtlas(BaseProvider):
    """One session: login, one subscribe with everything, pushes."""

    shared: TickAtlasShared

    def __init__(self, options: Any, subscriptions: Sequence[Subscription], shared: Any) -> None:
        super().__init__(options, subscriptions, shared)
        self.symbols = SymbolTable(to_symbol, options.symbols)
        self.authenticated = False
        self.opened_ns = 0
        self.max_symbols: int | None = None
        self.active: list[str] = []
        self.gone: set[str] = set()  # unsubscribed at run time: late pushes are dropped
        self.nudged = False

    def connect(self) -> Connect:
        return Connect(
            self.options.url or URL,
            ping_secs=30.0,
            pong_secs=10.0,
            silence_secs=90.0,
            frame_bytes_max=1024 * 1024,
            refused_upgrade={
                403: ("slow", "no key was sent yet: a proxy, or the provider's gate, refuses this machine")
            },
            closes={},  # no close code is documented: what counts is the error sent before
        )

    def opened(self, now_ns: int) -> Sequence[Output]:
        self.opened_ns = now_ns
        fields = ("key", "api_key") if self.shared.try_both else _FIELDS[self.options.auth_field]
        login = {"action": "auth"} | dict.fromkeys(fields, self.options.api_key)
        self._out.append(Send(msgspec.json.encode(login).decode()))
        return ()

    def receive(self, frame: Frame) -> Sequence[Output]:
        data = frame.data.removeprefix(b"\xef\xbb\xbf").strip()
        if not data:
            self.useless += 1
            return ()
        try:
            wire = _decode(data)
        except msgspec.ValidationError:
            return (reject("not_object", "not a JSON object", data),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if b"\n" in data:  # two objects in one frame are undocumented; each line stands for itself
                out: list[Output] = []
                for line in data.split(b"\n"):
                    out += self.receive(Frame(frame.received_ns, line, frame.binary))
                return out
            return (reject("not_json", str(error), data),)
        kind = wire.type
        if kind == "quote":
            return self._push(wire, data)
        if kind in ("heartbeat", "pong"):
            self.useless += 1
            return ()
        if not isinstance(kind, str):
            return (reject("missing_field", "no type", data),)
        if kind == "authenticated":
            return self._login(wire)
        if kind in ("subscribed", "unsubscribed"):
            return self._confirmed(kind, wire)
        if kind == "error":
            return self._error(wire, frame.received_ns)
        return (reject("unknown_type", f"type {kind[:40]!r}", data),)

    # -- one method a kind of message ----------------------------------------------------------------------------

    def _push(self, wire: _Wire, data: bytes) -> Sequence[Output]:
        body = wire.data
        if isinstance(body, dict):
            get = body.get
            symbol, when = get("symbol"), get("time")
            bid, ask = _lenient(get("bid")), _lenient(get("ask"))
        else:
            get = None
            symbol, when = wire.symbol, wire.timestamp if wire.timestamp is not None else wire.time
            bid, ask = _lenient(wire.bid), _lenient(wire.ask)
        raw = symbol.strip().upper() if isinstance(symbol, str) else ""
        if not raw or len(raw) > 64:
            return (reject("bad_symbol", "no usable symbol", data),)
        self.shared.paused_until = None
        self.nudged = False
        if raw in self.gone:
            self.useless += 1
            return ()
        canonical, _ = self.symbols[raw]
        ts = times.any_ns(when)
        out: list[Output] = []
        if bid is not None or ask is not None:
            out.append(Quote(symbol=canonical, raw_symbol=raw, ts_event=ts, bid=bid, ask=ask))
        if get is not None and ts is not None:
            o, h, low, c = (_lenient(get(name)) for name in ("open", "high", "low", "close"))
            if o is not None and h is not None and low is not None and c is not None:
                start = ts if self.options.bar_time_is == "open" else ts - MINUTE_NS
                out.append(
                    Bar(
                        symbol=canonical,
                        raw_symbol=raw,
                        ts_event=ts,
                        interval="1m",
                        start=start,
                        end=start + MINUTE_NS,
                        open=o,
                        high=h,
                        low=low,
                        close=c,
                        ticks=_count(get("volume")),
                        closed=True,
                    )  # fmt: skip
                )
        return out or (reject("missing_field", "neither a quote nor a candle", data, raw_symbol=raw),)

    def _login(self, wire: _Wire) -> Sequence[Output]:
        self.authenticated = True
        shared = self.shared
        shared.limit_hits = 0
        shared.quota = wire.daily_quota_remaining if isinstance(wire.daily_quota_remaining, int) else None
        shared.credits_per_push = wire.credits_per_push if isinstance(wire.credits_per_push, int) else None
        self.max_symbols = wire.max_symbols if isinstance(wire.max_symbols, int) else None
        out: list[Output] = []
        sent, left_out = self._wanted()
        if sent:
            self._subscribe(sent)
        out.append(Status(event="authenticated", text=self._forecast(wire.plan, len(sent))))
        for raw in left_out:
            text = f"{raw} is not subscribed: the plan allows {self.max_symbols} symbols"
            out.append(self._refused(raw, "max_symbols", text))
        return out

    def _forecast(self, plan: Any, count: int) -> str:
        """What an operator wants to know of the quota: `98760 credits left, 2469 minutes of 10 symbols`."""
        shared = self.shared
        text = f"plan {str(plan)[:40]}" if isinstance(plan, str) else "plan not named"
        if shared.quota is not None:
            text += f", {shared.quota} credits left today"
            if shared.credits_per_push and count:
                minutes = shared.quota // (shared.credits_per_push * count)
                text += f", {minutes} minutes of {count} symbols"
        return text

    def _refused(self, raw: str, code: str, text: str) -> Status:
        return Status(event="refused", symbol=self.symbols[raw][0], raw_symbol=raw, code=code, text=text)

    def _confirmed(self, kind: str, wire: _Wire) -> Sequence[Output]:
        listed = (
            [s.strip().upper() for s in wire.symbols if isinstance(s, str)] if isinstance(wire.symbols, list) else []
        )
        if kind == "unsubscribed":
            self.active = listed or self.active
            return (Status(event="unsubscribed", text=f"still active: {' '.join(self.active)[:500]}"),)
        self.active = listed
        sent, _ = self._wanted()
        out: list[Output] = [Status(event="subscribed", text=f"{len(listed)} symbols: {' '.join(listed)[:500]}")]
        out += [
            self._refused(raw, "not_confirmed", f"{raw} was asked for and is not in the confirmed list")
            for raw in sent
            if raw not in listed
        ]
        return out

    def _error(self, wire: _Wire, now_ns: int) -> Sequence[Output]:
        code, message = wire.code, wire.message
        if code is None and isinstance(wire.error, dict):
            code, message = wire.error.get("code"), wire.error.get("message", message)
        text = message[:500] if isinstance(message, str) else "no text"
        shown = code.strip() if isinstance(code, str) else ""
        code = _CODES.get(shown.lower(), shown.lower())
        shared = self.shared
        if code == "quota_exceeded":
            until = next_midnight(now_ns)
            shared.paused_until = until
            self.nudged = False
            return (
                Status(
                    event="quota",
                    code=code,
                    text=text,
                    until=until,
                    action="stay connected, pushes go on after midnight",
                ),
            )
        if code == "auth_timeout":
            self._try_both_once(now_ns - self.opened_ns < 2 * SECOND_NS)
            raise HandshakeRefused(f"login not answered in time: {text}", code=code)
        if code == "invalid_key":
            if self._try_both_once(True):
                raise HandshakeRefused(f"key refused, once more with both field names: {text}", code=code)
            raise HandshakeRefused(f"the API key is unknown or revoked: {text}", code=code, action="fatal")
        if code == "forbidden":
            raise HandshakeRefused(f"the plan has no streaming: {text}", code=code, action="fatal")
        if code == "connection_limit":
            shared.limit_hits += 1
            wait = LIMIT_FIRST_SECS if shared.limit_hits == 1 else LIMIT_NEXT_SECS
            alarm = f", refused {shared.limit_hits} times in a row" if shared.limit_hits >= 3 else ""
            raise HandshakeRefused(
                f"both connections of this key are taken{alarm}: {text}", code=code, action="slow", wait_secs=wait
            )
        return (Status(event="degraded", code=shown or None, text=text, action="session goes on"),)

    def _try_both_once(self, sent_early: bool) -> bool:
        """Whether the next connection tries both field names; at most once in this relay's life (U1)."""
        shared = self.shared
        if self.authenticated or shared.both_tried or not sent_early or self.options.auth_field == "both":
            return False
        shared.both_tried = shared.try_both = True
        return True

    # -- subscriptions -------------------------------------------------------------------------------------------

    def _wanted(self) -> tuple[list[str], list[str]]:
        """Raw symbols in configured order: those within the plan's limit, and the rest."""
        wanted = list(dict.fromkeys(s.raw for s in self.subscriptions if not s.raw.endswith("*")))
        limit = self.max_symbols if self.max_symbols is not None and self.max_symbols >= 0 else len(wanted)
        return wanted[:limit], wanted[limit:]

    def _subscribe(self, raws: list[str]) -> None:
        # always the complete list: right whether the server adds or replaces (U7)
        self._out.append(Send(msgspec.json.encode({"action": "subscribe", "symbols": raws}).decode(), subscribes=1))

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        self.subscriptions += [s for s in subscriptions if s not in self.subscriptions]
        self.gone -= {s.raw for s in subscriptions}
        if not self.authenticated:
            return ()
        sent, left_out = self._wanted()
        if sent:
            self._subscribe(sent)
        text = f"the plan allows {self.max_symbols} symbols"
        asked = {s.raw for s in subscriptions}
        return [
            self._refused(raw, "max_symbols", f"{raw} is not subscribed: {text}") for raw in left_out if raw in asked
        ]

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        dropped = set(subscriptions)
        self.subscriptions = [s for s in self.subscriptions if s not in dropped]
        kept = {s.raw for s in self.subscriptions}
        gone = [raw for raw in dict.fromkeys(s.raw for s in subscriptions) if raw not in kept]
        self.gone |= set(gone)
        if gone and self.authenticated:
            text = msgspec.json.encode({"action": "unsubscribe", "symbols": gone}).decode()
            self._out.append(Send(text, subscribes=1))
        return ()

    def overheard(self, data: bytes) -> None:
        """Take note of what another client subscribed to on a recording, for `relay normalize`."""
        try:
            wire = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if isinstance(wire, dict) and wire.get("action") == "subscribe" and isinstance(wire.get("symbols"), list):
            named = [Subscription("quotes", raw) for raw in wire["symbols"] if isinstance(raw, str)]
            self.subscriptions += [one for one in named if one not in self.subscriptions]

    # -- time ----------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> Sequence[Output]:
        if not self.authenticated and now_ns - self.opened_ns > AUTH_SECS * SECOND_NS:
            raise HandshakeRefused(f"no answer to the login within {AUTH_SECS} s", code="auth_timeout")
        until = self.shared.paused_until
        if until is not None and self.authenticated:
            late = now_ns - until
            if late > 2 * RESUME_SECS * SECOND_NS:
                self.shared.paused_until = None
                raise SessionStale("no push within ten minutes after the quota's midnight", code="quota_resume")
            if late > RESUME_SECS * SECOND_NS and not self.nudged:
                self.nudged = True
                self._subscribe(self._wanted()[0])
        return ()

    def closed(self, now_ns: int) -> Sequence[Output]:
        until = self.shared.paused_until
        if until is not None and now_ns < until:
            raise SessionError(
                "closed while the daily quota is used up: stays closed until midnight UTC",
                code="quota_exceeded",
                action="until",
                until_ns=until,
            )
        return ()


_FIELDS = {"key": ("key",), "api_key": ("api_key",), "both": ("key", "api_key")}

SPEC = ProviderSpec(
    name="tickatlas",
    title="TickAtlas",
    options=TickAtlasOptions,
    session=TickAtlas,
    channels={
        "quotes": ChannelSpec(cadence_secs=180.0),
        "bars": ChannelSpec(cadence_secs=180.0, params="interval", allowed=("1m",)),
    },
    rule=to_symbol,
    examples=("EURUSD", "XAUUSD"),
    shared=TickAtlasShared,
    policy=Policy(first_secs=1.0, cap_secs=60.0, slow_secs=LIMIT_FIRST_SECS),
    limits=Limits(connections_max=2),
    key_url="https://tickatlas.com/dashboard",
    to_raw=to_raw,
)
"""TickAtlas, as PROVIDERS holds it."""
