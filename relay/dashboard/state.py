"""What the dashboard knows: the last values of every symbol, and why a value may not be taken for live. Pure.

Messages and the time are handed in; `sweep` turns them into marks. A price is `live` only while nothing speaks against
it: the last known values stand for ever, marked, until fresh ones come.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from relay.dashboard.health import Health, RelayState
from relay.dashboard.rows import Line, Mark, Row, RowKey, TopicInfo
from relay.dashboard.views import gap_text, item, notice
from relay.model import (
    ACCOUNT_CHANNELS,
    Account,
    Balance,
    Bar,
    Header,
    Instrument,
    Message,
    Order,
    Position,
    Quote,
    Rate,
    Status,
    Trade,
)

KINDS = frozenset({"quotes", "trades", "bars", "rates", "instruments", "status"})
"""Kinds of topics that are read; account topics only where they were asked for."""
GAP_SHOWN_NS = 60_000_000_000
"""How long a gap stays visible in the table."""
GRACE_NS = 2_000_000_000
"""The relay says `stale` itself about a second after the limit; only when it does not, age alone decides."""
NOTICES_MAX = 200
ROWS_MAX = 20_000
"""Symbols that are shown; beyond this a table is no help, and a hostile bus must not fill the memory."""
ACCOUNT_ITEMS_MAX = 2_000


class Limits:
    """Age limits by provider and channel, in seconds; 0: none."""

    def __init__(
        self, known: Mapping[tuple[str, str], float] | None = None, *, default: float = 300.0, all: float | None = None
    ) -> None:
        """`all`: one limit for everything, whatever the config says."""
        self._known, self._default, self._all = known or {}, default, all

    def ns(self, provider: str, channel: str) -> int:
        """Give the limit in ns; 0: none."""
        secs = self._all if self._all is not None else self._known.get((provider, channel), self._default)
        return int(secs * 1e9)


class Board:
    """All rows, all providers, all relays."""

    def __init__(self, limits: Limits, *, accounts: bool = False) -> None:
        self.limits, self.accounts = limits, accounts
        self.rows: dict[int, Row] = {}
        self._ids: dict[RowKey, int] = {}
        self._made = 0
        self.health: dict[tuple[str, str, str], Health] = {}
        self.relays: dict[tuple[str, str], RelayState] = {}
        self.account_items: dict[tuple[str, ...], dict[str, Any]] = {}
        self.notices: deque[dict[str, Any]] = deque(maxlen=NOTICES_MAX)
        self.notice_count = 0
        self.redis_why = "not connected yet"
        """Why Redis cannot be read; empty: it can."""
        self.messages = self.unreadable = self.refused_rows = 0
        self.dirty: set[int] = set()
        self.removed: set[int] = set()
        self.health_dirty = self.accounts_dirty = True
        self.watched: frozenset[int] = frozenset()
        self.news: list[tuple[int, list[Any]]] = []
        """What came for rows that somebody looks at."""
        self._names: dict[tuple[str, str], str] = {}

    # -- messages ------------------------------------------------------------------------------------------------

    def wants(self, info: TopicInfo) -> bool:
        """Tell whether a topic is read at all."""
        return info.kind in KINDS or (self.accounts and info.kind in ACCOUNT_CHANNELS)

    def apply(self, info: TopicInfo, message: Message) -> None:
        """Take one message of a topic; messages of a topic come in its order."""
        self.messages += 1
        relay = self.relay(info)
        if message.run > relay.run:
            relay.run = message.run
        if message.ts_recv > relay.last_ns:
            relay.last_ns = message.ts_recv
        if isinstance(message, Status):
            if info.kind == "status":
                self._status(info, message)
            else:
                self._in_band(info, message)
            return
        if isinstance(message, (Order, Position, Balance, Account)):
            if self.accounts:
                self._account(info, message)
            return
        if not isinstance(message, (Quote, Trade, Bar, Rate, Instrument)):
            return
        row = self._row(info, message)
        if row is None:
            return
        if isinstance(message, Instrument):
            self._instrument(row, message)
            return
        channel, param = info.kind, message.interval if isinstance(message, Bar) else ""
        line = row.line(channel, param, info.name)
        line.last_ns, line.run, line.origin = message.ts_recv, message.run, message.origin
        if message.origin not in ("rest", "backfill"):
            line.stale = False
            if message.ts_recv > row.health.last_ns:
                row.health.last_ns = message.ts_recv
        self._values(row, line, message)
        row.cache = None
        self.dirty.add(row.id)
        if row.id in self.watched:
            self.news.append((row.id, item(message)))

    def _row(self, info: TopicInfo, message: Header) -> Row | None:
        provider = message.provider or info.provider
        key = (info.space, info.relay, provider, message.raw_symbol or message.symbol or info.name)
        id = self._ids.get(key)
        if id is not None:
            return self.rows[id]
        if len(self.rows) >= ROWS_MAX:
            self.refused_rows += 1
            return None
        self._made += 1  # ids are never used again
        id = self._ids[key] = self._made
        row = self.rows[id] = Row(id, key, info._replace(provider=provider), message, self.provider(info, provider))
        row.name = self._names.get((info.relay, row.symbol), "")
        row.health.rows += 1
        self.dirty.add(id)
        self.health_dirty = True
        return row

    def _find(self, info: TopicInfo, provider: str, raw: str | None) -> Row | None:
        id = self._ids.get((info.space, info.relay, provider, raw or ""))
        return None if id is None else self.rows[id]

    def _values(self, row: Row, line: Line, message: Quote | Trade | Bar | Rate) -> None:
        if isinstance(message, Quote):
            row.bid, row.ask = message.bid, message.ask
            row.bid_size, row.ask_size = message.bid_size, message.ask_size
            if message.mid is not None:
                row.last, row.last_what = message.mid, "mid"
            elif message.last is not None:
                row.last, row.last_what = message.last, "last"
            elif row.last_what == "mid" or row.last_what.startswith(
                "bar"
            ):  # a fallback that is over, a bar from before
                row.last, row.last_what = None, ""
            shown: tuple[str | None, ...] = (row.bid, row.ask, row.last)
        elif isinstance(message, Trade):
            row.last, row.last_what = message.price, "trade"
            shown = (message.price,)
        elif isinstance(message, Rate):
            row.last, row.last_what = message.value, message.kind
            shown = (message.value,)
        else:
            if row.main() is not line:
                return
            row.last, row.last_what = message.close, f"bar {message.interval}"
            shown = (message.close,)
        for text in shown:
            if text is not None:
                decimals = len(text.partition(".")[2])
                if decimals > row.decimals:
                    row.decimals = decimals

    def _instrument(self, row: Row, message: Instrument) -> None:
        name = message.name or ""
        row.line("instruments", "", row.info.name).run = message.run
        if name and name != row.name:
            self._names[row.info.relay, row.symbol] = name
            for other in self.rows.values():  # its quotes may stand under another spelling of the provider
                if (
                    other.symbol == row.symbol
                    and other.info.relay == row.info.relay
                    and (other is row or not other.name)
                ):
                    other.name = name
                    other.version += 1
                    self.dirty.add(other.id)

    def _in_band(self, info: TopicInfo, status: Status) -> None:
        """A status on a data topic: of its lines with that raw symbol."""
        row = self._find(info, status.provider, status.raw_symbol or status.symbol)
        if row is None:
            return
        for (channel, _), line in row.lines.items():
            if channel == info.kind and line.topic == info.name:
                if status.event == "stale":
                    line.stale, line.stale_text = True, status.text or "silent for too long"
                elif status.event == "fresh":
                    line.stale = False
                elif status.event == "gap":
                    line.gap_ns, line.gap_text = status.ts_recv, gap_text(status)
        self.dirty.add(row.id)
        row.cache = None
        if row.id in self.watched:
            self.news.append((row.id, item(status)))

    def _status(self, info: TopicInfo, status: Status) -> None:
        """A status on the relay's own topic: health, markets, notices."""
        if not self.accounts and (status.channel or "") in ACCOUNT_CHANNELS:
            return
        if status.provider == info.relay:
            self.relay(info).take(status)
        else:
            self.provider(info, status.provider).take(status)
            if status.event == "market":
                self._market(info, status)
            elif status.event == "gap":
                row = self._find(info, status.provider, status.raw_symbol or status.symbol)
                if row is not None:
                    row.gaps += 1
                    row.cache = None
                    self.dirty.add(row.id)
        self.health_dirty = True
        self.notice_count += 1
        self.notices.append(notice(status, self.notice_count))

    def _market(self, info: TopicInfo, status: Status) -> None:
        market = "halted" if status.halted else "closed" if status.open is False else ""
        health = self.provider(info, status.provider)
        if status.raw_symbol is None:
            health.market, health.market_text = market, status.text or ""
            return
        health.markets[status.raw_symbol] = (market, status.text or "")
        while len(health.markets) > ROWS_MAX:
            del health.markets[next(iter(health.markets))]

    def _account(self, info: TopicInfo, message: Order | Position | Balance | Account) -> None:
        parts: tuple[str, ...]
        match message:
            case Order():
                parts = ("order", message.order_id)
            case Position():
                parts = ("position", message.symbol or message.raw_symbol or "")
            case Balance():
                parts = ("balance", message.currency)
            case _:
                parts = ("account", message.kind)
        key = (info.space, info.relay, message.provider, message.account, *parts)
        self.account_items.pop(key, None)
        fields = msgspec.to_builtins(message)
        if isinstance(message, Account):
            fields["data"] = msgspec.json.encode(message.data)[:2000].decode(errors="replace")
        for name in ("run", "seq", "src_seq"):
            fields.pop(name, None)
        self.account_items[key] = {name: value if name == "type" else _text(value) for name, value in fields.items()}
        self.account_items[key]["ms"] = message.ts_recv // 1_000_000
        while len(self.account_items) > ACCOUNT_ITEMS_MAX:
            del self.account_items[next(iter(self.account_items))]
        self.accounts_dirty = True

    # -- the rest of the world -----------------------------------------------------------------------------------

    def provider(self, info: TopicInfo, provider: str) -> Health:
        """Give what is known of a provider, made where it is new."""
        key = (info.space, info.relay, provider)
        found = self.health.get(key)
        if found is None:
            found = self.health[key] = Health(provider, info.relay, info.space)
            self.health_dirty = True
        return found

    def relay(self, info: TopicInfo) -> RelayState:
        """Give what is known of a relay, made where it is new."""
        key = (info.space, info.relay)
        found = self.relays.get(key)
        if found is None:
            found = self.relays[key] = RelayState(info.relay, info.space)
            self.health_dirty = True
        return found

    def lease(self, space: str, relay: str, held: bool, now_ns: int) -> None:
        """Take note of whether a relay holds its lease, which is whether it lives."""
        state = self.relays.get((space, relay))
        if state is not None and state.alive is not held:
            state.alive = held
            if not held:
                state.down_ns = now_ns
            self.health_dirty = True

    def redis(self, why: str) -> None:
        """Take note of why Redis cannot be read; empty: it can."""
        if why != self.redis_why:
            self.redis_why = why
            self.health_dirty = True

    def forget(self, topic: str) -> None:
        """Let a topic go that is listed no more, and the rows that had nothing else."""
        for row in list(self.rows.values()):
            for key, line in list(row.lines.items()):
                if line.topic == topic:
                    del row.lines[key]
                    row.version += 1
            if not row.lines:
                del self.rows[row.id]
                del self._ids[row.key]
                row.health.rows -= 1
                self.removed.add(row.id)
                self.dirty.discard(row.id)
                self.health_dirty = True

    # -- time ----------------------------------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> None:
        """Mark every row by what is known now; call it a few times a second."""
        for health in self.health.values():
            health.stale = 0
            if health.quota and health.quota_until and now_ns > health.quota_until:
                health.quota, self.health_dirty = False, True
        for row in self.rows.values():
            mark, why = self.judge(row, now_ns)
            gap = any(0 < line.gap_ns > now_ns - GAP_SHOWN_NS for line in row.lines.values())
            if mark not in ("live", "closed", "halted"):
                row.health.stale += 1
            if mark != row.mark or why != row.why or gap is not row.recent_gap:
                row.mark, row.why, row.recent_gap, row.cache = mark, why, gap, None
                self.dirty.add(row.id)
        for health in self.health.values():
            if health.stale != health.stale_told:
                health.stale_told, self.health_dirty = health.stale, True

    def judge(self, row: Row, now_ns: int) -> tuple[Mark, str]:
        """Say whether the price of a row is live, and if not, why not."""
        line, health = row.main(), row.health
        if self.redis_why:
            return "no redis", f"Redis: {self.redis_why}"
        if line is None:
            return "waiting", "no price yet"
        if line.origin == "replay":
            return "live", ""
        relay = self.relays[row.info.space, row.info.relay]
        if relay.alive is False:
            return "no relay", "the relay does not run"
        if line.run < relay.run or line.last_ns <= relay.down_ns:
            return "waiting", "from before the relay's restart"
        if 0 < health.down_ns >= line.last_ns:
            return "offline", "the provider is connected again, nothing came yet" if health.up else health.why()
        market, text = health.markets.get(row.raw) or ("", "")
        market = market or health.market
        if market:
            return ("halted" if market == "halted" else "closed"), text or health.market_text or f"market {market}"
        if line.origin in ("rest", "backfill"):
            return "fallback", f"{'a middle price over REST' if line.origin == 'rest' else 'a past price'}, not live"
        if line.stale:
            return "stale", line.stale_text
        limit = self.limits.ns(row.info.provider, line.channel)
        if limit and now_ns - line.last_ns > limit + GRACE_NS:
            return "old", f"older than {limit / 1e9:g} s"
        return "live", ""

    def overview(self, now_ns: int) -> dict[str, Any]:
        """What the head of the page shows."""
        return {
            "redis": self.redis_why,
            "relays": [relay.view(now_ns) for relay in self.relays.values()],
            "providers": [
                health.view(self.relays[health.space, health.relay])
                for health in sorted(self.health.values(), key=lambda h: (h.space, h.relay, h.name))
                if (health.space, health.relay) in self.relays
            ],
            "unreadable": self.unreadable,
            "refused": self.refused_rows,
        }


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
