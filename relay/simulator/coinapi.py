"""CoinAPI's own side: hello, subscribe, unsubscribe; no acknowledgement; heartbeats in silence; errors that close.

Symbol filters are prefixes, with `$` exact. A prefix finds the symbols of a small list of its own; what ends like
`KRAKEN_SPOT_` and finds none gets three pairs there. Numbers start anywhere and run per (type, symbol).

Knobs: `marker_every` (each n-th trade is a marker of size 0; default 50), `late_deltas` (deltas before a book's
snapshot; 0), `reconnect_after` (data messages until the notice; the close follows `reconnect_secs`, 10, later),
`error_after` and `error` (data messages until this error and the close).
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from relay.simulator.base import Close, Refuse, SideSpec, Step, World
from relay.times import iso

SECOND_NS = 1_000_000_000
HEARTBEAT_NS = SECOND_NS
BOOK_LEVELS = 25
JUMP = 3
"""How many numbers get lost by `jump`."""

_TYPES = frozenset({
    "trade", "quote", "book", "book5", "book20", "book50", "book_l3", "ohlcv", "exrate", "asset", "exchange", "symbol",
})  # fmt: skip
_BY_SYMBOL = ("trade", "quote", "book", "book5", "book20", "book50", "ohlcv", "symbol")
_NEEDS_FILTER = frozenset({"book", "book5", "book20", "book50"})
_PAIRS = ("BTC_USD", "ETH_USD", "SOL_USD")
_LISTED = tuple(
    [f"{venue}_SPOT_{pair}" for venue in ("COINBASE", "KRAKEN", "BITSTAMP") for pair in (*_PAIRS, "ETH_BTC")]
    + [f"BINANCE_SPOT_{pair}T" for pair in _PAIRS]
    + ["BINANCEFTS_PERP_BTC_USDT", "KRAKENFTS_PERP_BTC_USD", "DERIBIT_FTS_BTC_USD_270326", "DERIBIT_IDX_BTC_USD"]
)
_STARTS = {"BTC": 6_125_000, "ETH": 300_000, "SOL": 15_000}
"""Cents at which an asset's walk begins."""
_PERIODS = {"SEC": 1, "MIN": 60, "HRS": 3600, "DAY": 86_400}

Stream = tuple[str, str, str]
"""Data type, symbol id or pair, period (of bars, else empty)."""


class CoinApiSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        url = urlsplit(path)
        asked = parse_qs(url.query).get("apikey", [""])[0]
        named = url.path.rpartition("APIKEY-")[2] if "APIKEY-" in url.path else ""
        self.key = headers.get("x-coinapi-key") or asked or named or headers.get("authorization", "")
        self.greeted = self.beats = False
        self.scope: dict[Stream, None] = {}
        self.order: list[Stream] = []
        self.turn = 0
        self.sent_ns = 0
        self.count = self.trades = 0
        self.lost = False
        self.numbers: dict[tuple[str, str], int] = {}
        self.books: dict[str, dict[str, dict[int, int]]] = {}
        self.early: dict[str, int] = {}
        self.bars: dict[tuple[str, str], dict[str, Any]] = {}
        self.close_ns = 0

    def upgrade(self) -> Refuse | None:
        """The key is looked at when the first message comes."""
        return None

    def opened(self, now_ns: int) -> list[Step]:
        self.sent_ns = now_ns
        return []

    # -- the client's messages -----------------------------------------------------------------------------------

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        try:
            message = json.loads(data)
            kind = message["type"]
        except (ValueError, KeyError, TypeError):
            return _refused("Message is not a valid JSON object with a type field")
        if not self.greeted:
            key = message.get("apikey") or self.key
            if not isinstance(key, str) or not self.world.accepts(key):
                return _refused("Invalid API key")
            self.greeted = True
        if kind not in ("hello", "subscribe", "unsubscribe"):
            return _refused(f"Unknown value of field type: {kind}")
        self.beats = bool(message.get("heartbeat"))
        wanted = self._wanted(message)
        if isinstance(wanted, str):
            return _refused(wanted)
        if kind == "hello":
            self.scope.clear()
        for stream in wanted:
            if kind == "unsubscribe":
                self.scope.pop(stream, None)
            else:
                self.scope[stream] = None
            if stream[0] == "book":
                # a subscription brings a snapshot, also of what was in scope
                self.books.pop(stream[1], None)
                self.early.pop(stream[1], None)
        self.order = list(self.scope)
        return []

    def _wanted(self, message: dict[str, Any]) -> list[Stream] | str:
        """Give the streams a message names, or what is wrong with it."""
        kinds = message.get("subscribe_data_type")
        if not isinstance(kinds, list) or not kinds:
            return "Field subscribe_data_type is missing"
        filters = message.get("subscribe_filter_symbol_id") or []
        venues = message.get("subscribe_filter_exchange_id") or []
        assets = message.get("subscribe_filter_asset_id") or []
        periods = message.get("subscribe_filter_period_id") or ["1MIN"]
        if not all(isinstance(one, str) for one in (*kinds, *filters, *venues, *assets, *periods)):
            return "A filter is not a list of strings"
        for kind in kinds:
            if kind not in _TYPES:
                return f"Unknown value in subscribe_data_type: {kind}"
            if kind in _NEEDS_FILTER and not (filters or venues or assets):
                return f"Data type {kind} needs a filter"
            if kind == "exrate" and not assets:
                return "Data type exrate needs subscribe_filter_asset_id"
        for period in periods:
            if _period_ns(period) is None:
                return f"Unknown value in subscribe_filter_period_id: {period}"
        ids = [one for prefix in filters for one in _found(prefix)]
        ids += [one for venue in venues for one in _LISTED if one.startswith(venue + "_")]
        if assets and not filters and not venues:
            ids += [one for one in _LISTED if any(_concerns(asset, one) for asset in assets)]
        if not (filters or venues or assets):
            ids += _LISTED
        streams: list[Stream] = []
        for kind in kinds:
            if kind in _BY_SYMBOL:
                streams += [(kind, one, period) for one in ids for period in (periods if kind == "ohlcv" else ("",))]
            elif kind == "exrate":
                streams += [(kind, pair if "/" in pair else f"{pair}/USD", "") for pair in assets]
        return streams

    # -- the server's messages -----------------------------------------------------------------------------------

    def step(self, now_ns: int) -> list[Step]:
        if not self.order:
            return []
        knobs = self.world.knobs
        if self.count >= knobs.get("error_after", 1 << 62):
            return _refused(
                knobs.get("error", "Reached maximum allowed buffered messages for this connection."),
            )
        self.count += 1
        self.turn += 1
        kind, name, period = self.order[self.turn % len(self.order)]
        lost = self.lost and kind not in ("exrate", "symbol")  # those have no numbers
        self.lost = self.lost and not lost
        self.sent_ns = now_ns
        out: list[Step] = [self._message(kind, name, period, now_ns, lost)]
        if kind == "symbol":
            # sent once; real updates of reference data are rare
            self.scope.pop((kind, name, period), None)
            self.order = list(self.scope)
        if self.count == knobs.get("reconnect_after") and not self.close_ns:
            out += self.ending(now_ns, knobs.get("reconnect_secs", 10))
        return out

    def ending(self, now_ns: int, secs: float) -> list[Step]:
        self.close_ns = now_ns + int(secs * SECOND_NS)
        return [json.dumps({"type": "reconnect", "within_seconds": secs, "before_time": iso(self.close_ns)})]

    def tick(self, now_ns: int) -> list[Step]:
        if self.close_ns and now_ns >= self.close_ns:
            return [Close(1001, "restart")]
        if self.greeted and self.beats and now_ns - self.sent_ns >= HEARTBEAT_NS:
            self.sent_ns = now_ns
            return ['{"type":"hearbeat"}']
        return []

    def jump(self) -> None:
        """The next message's number jumps."""
        self.lost = True

    def _number(self, kind: str, name: str, lost: bool) -> int:
        number = self.numbers.get((kind, name))
        number = self.world.random.randint(1, 5_000_000) if number is None else number + 1
        self.numbers[kind, name] = number = number + (JUMP if lost else 0)
        return number

    def _message(self, kind: str, name: str, period: str, now_ns: int, lost: bool) -> str:
        if kind == "exrate":
            base, _, quote = name.partition("/")
            rate = _cents(self.world.walk(name, _STARTS.get(base, 10_000)))
            return (
                f'{{"time":"{_time(now_ns)}","asset_id_base":"{base}","asset_id_quote":"{quote}","rate":{rate}041,'
                f'"rate_type":"BASE_ALL_CROSSES_TO_REF","type":"exrate"}}'
            )
        parts = name.split("_")
        if kind == "symbol":
            document = {"symbol_id": name, "exchange_id": parts[0], "symbol_type": parts[1]}
            if len(parts) >= 4:
                document |= {"asset_id_base": parts[2], "asset_id_quote": parts[3]}
            return json.dumps({**document, "type": "symbol"})
        mid = self.world.walk(name, _STARTS.get(parts[2] if len(parts) > 2 else "", 10_000))
        head = f'"time_exchange":"{_time(now_ns - 4_000_000)}","time_coinapi":"{_time(now_ns)}"'
        if kind == "ohlcv":
            return self._bar(name, period, mid, now_ns, lost)
        tail = f'"symbol_id":"{name}","sequence":{self._number(kind, name, lost)},"type":"{kind}"'
        random = self.world.random
        if kind == "trade":
            self.trades += 1
            every = self.world.knobs.get("marker_every", 50)
            size = "0" if every and self.trades % every == 0 else f"0.{random.randint(1, 9999):04d}"
            side = random.choice(("BUY", "SELL", "BUY", "SELL", "BUY_ESTIMATED", "UNKNOWN"))
            uuid = f"{random.getrandbits(32):08x}-0000-4000-8000-{random.getrandbits(48):012x}"
            return f'{{{head},"uuid":"{uuid}","price":{_cents(mid)},"size":{size},"taker_side":"{side}",{tail}}}'
        if kind == "quote":
            return (
                f'{{{head},"ask_price":{_cents(mid + 1)},"ask_size":{random.randint(1, 50)},'
                f'"bid_price":{_cents(mid - 1)},"bid_size":{random.randint(1, 50)}.5,{tail}}}'
            )
        if kind == "book":
            return f"{{{head},{self._changes(name, mid)},{tail}}}"
        depth = int(kind[4:])
        asks = {mid + 1 + i: random.randint(1, 900) for i in range(depth)}
        bids = {mid - 1 - i: random.randint(1, 900) for i in range(depth)}
        return f'{{{head},"asks":{_levels(asks)},"bids":{_levels(bids)},{tail}}}'

    def _changes(self, name: str, mid: int) -> str:
        """A whole book the first time, what changed after that: the window around the mid moves along."""
        random = self.world.random
        early = self.early.get(name, 0)
        held = self.books.get(name)
        if held is None and early < self.world.knobs.get("late_deltas", 0):
            self.early[name] = early + 1
            return f'"is_snapshot":false,"asks":{_levels({mid + 1: 1})},"bids":[]'
        window = {"asks": range(mid + 1, mid + 1 + BOOK_LEVELS), "bids": range(mid - 1, mid - 1 - BOOK_LEVELS, -1)}
        if held is None:
            held = self.books[name] = {side: {p: random.randint(1, 900) for p in at} for side, at in window.items()}
            return f'"is_snapshot":true,"asks":{_levels(held["asks"])},"bids":{_levels(held["bids"])}'
        changed: dict[str, dict[int, int]] = {}
        for side, at in window.items():
            level = held[side]
            changes = {p: 0 for p in level if p not in at}
            changes |= {p: random.randint(1, 900) for p in at if p not in level}
            changes[random.choice(at)] = random.randint(1, 900)
            changed[side] = dict(sorted(changes.items(), reverse=side == "bids"))
            level.update(changes)
            for price in [p for p, size in level.items() if not size]:
                del level[price]
        return f'"is_snapshot":false,"asks":{_levels(changed["asks"])},"bids":{_levels(changed["bids"])}'

    def _bar(self, name: str, period: str, mid: int, now_ns: int, lost: bool) -> str:
        length = _period_ns(period) or 60 * SECOND_NS
        start = now_ns // length * length
        bar = self.bars.get((name, period))
        if bar is None or bar["start"] != start:
            bar = self.bars[name, period] = {
                "start": start, "open": mid, "high": mid, "low": mid, "trades": 0, "first": now_ns,
            }  # fmt: skip
        bar["high"], bar["low"] = max(bar["high"], mid), min(bar["low"], mid)
        bar["trades"] += 1
        prices = f'"price_open":{_cents(bar["open"])},"price_high":{_cents(bar["high"])}'
        return (
            f'{{"symbol_id":"{name}","sequence":{self._number("ohlcv", name, lost)},"period_id":"{period}",'
            f'"time_period_start":"{_time(start)}","time_period_end":"{_time(start + length)}",'
            f'"time_open":"{_time(bar["first"])}","time_close":"{_time(now_ns)}",{prices},'
            f'"price_low":{_cents(bar["low"])},"price_close":{_cents(mid)},"volume_traded":{bar["trades"]}.25,'
            f'"trades_count":{bar["trades"]},"type":"ohlcv"}}'
        )


def _refused(text: str) -> list[Step]:
    """Every error is final: the frame, then the close."""
    return [json.dumps({"type": "error", "message": text}), Close(1000)]


def _found(prefix: str) -> list[str]:
    if prefix.endswith("$"):
        return [prefix[:-1]]
    found = [one for one in _LISTED if one.startswith(prefix)]
    return found or ([prefix + pair for pair in _PAIRS] if prefix.endswith(("_SPOT_", "_PERP_")) else [])


def _concerns(asset: str, symbol_id: str) -> bool:
    base, slash, quote = asset.partition("/")
    parts = symbol_id.split("_")[2:4]
    return parts == [base, quote] if slash else asset in parts


def _period_ns(period: str) -> int | None:
    unit = _PERIODS.get(period[-3:])
    count = period[:-3]
    return int(count) * unit * SECOND_NS if unit and count.isdecimal() and 0 < int(count) < 1000 else None


def _cents(ticks: int) -> str:
    return f"{ticks // 100}.{ticks % 100:02d}"


def _levels(levels: dict[int, int]) -> str:
    return "[" + ",".join(f'{{"price":{_cents(p)},"size":{size}}}' for p, size in levels.items()) + "]"


def _time(ns: int) -> str:
    """CoinAPI's form: always seven digits."""
    seconds, rest = divmod(ns, SECOND_NS)
    return f"{iso(seconds * SECOND_NS)[:-1]}.{rest // 100:07d}Z"


SIDE = SideSpec(CoinApiSide)
"""CoinAPI, as SIDES holds it."""
