"""Binance spot's own side: streams combined and raw, subscriptions by id, book snapshots and symbol list over REST.

One market is shared by all connections of a world: two connections see the same trades and books, numbers go on over
reconnects, and a REST snapshot fits the diffs. Streams: `trade`, `aggTrade`, `bookTicker`, `kline_<interval>`,
`depth5|10|20`, `depth`; other kinds and symbols that are not listed are accepted and stay silent.

Knobs: `refuse` (streams whose SUBSCRIBE is refused whole), `wrapped` (True: errors inside `error`), `mute` (True: no
answers), `shutdown_secs` (age at which a connection announces the server's shutdown), `unlisted` (symbols that do not
exist), `retry_after` (REST answers 429 and names these seconds).
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.times import interval_ns

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
MESSAGES_A_SECOND = 5
STREAMS_MAX = 1024
CHANGES_KEPT = 5000
"""Changes of a book kept for connections that have yet to send them."""
DEPTH = 60
"""Levels a side that the simulated market quotes, about."""
BASES = ("BTC", "ETH", "BNB", "SOL", "XRP", "ADA", "DOGE", "LTC", "LINK", "NKN", "BLZ", "LRC", "RUNE")
QUOTES = ("USDT", "USDC", "BTC", "ETH", "EUR", "TRY")
PAIRS = {f"{base}{quote}": (base, quote) for base in BASES for quote in QUOTES if base != quote}
_INTERVALS = frozenset("1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M".split())


class Market:
    """One symbol: its book, its trades, its bars."""

    def __init__(self, world: World, symbol: str) -> None:
        self.world, self.symbol = world, symbol
        random = world.random
        self.update_id = random.randrange(10**8, 10**10)
        self.trade_id = random.randrange(10**6, 10**9)
        self.agg_id = self.trade_id // 2
        self.sides: dict[str, dict[int, int]] = {"b": {}, "a": {}}
        self.changes: deque[tuple[int, str, int, int]] = deque(maxlen=CHANGES_KEPT)
        self.trades: deque[dict[str, Any]] = deque(maxlen=CHANGES_KEPT)
        self.bars: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, dict[str, Any]] = {}  # interval -> the last bar that is over
        mid = world.walk(symbol, 6_125_058)
        for step in range(1, DEPTH + 1):
            self._set("b", mid - step, random.randint(1, 10**9))
            self._set("a", mid + step, random.randint(1, 10**9))

    def _set(self, side: str, price: int, size: int) -> None:
        levels = self.sides[side]
        if size:
            levels[price] = size
        elif levels.pop(price, None) is None:
            return
        self.update_id += 1
        self.changes.append((self.update_id, side, price, size))

    def move(self) -> None:
        """One event of the book: never crossed, DEPTH levels a side or so."""
        random, bids, asks = self.world.random, self.sides["b"], self.sides["a"]
        mid = self.world.walk(self.symbol)
        for price in [p for p in bids if p >= mid or p < mid - 2 * DEPTH]:
            self._set("b", price, 0)
        for price in [p for p in asks if p <= mid or p > mid + 2 * DEPTH]:
            self._set("a", price, 0)
        for _ in range(random.randint(1, 3)):
            self._set("b", mid - random.randint(1, DEPTH), random.randint(1, 10**9))
            self._set("a", mid + random.randint(1, DEPTH), random.randint(1, 10**9))
        if random.random() < 0.2:
            side = random.choice("ba")
            self._set(side, random.choice(list(self.sides[side])), 0)

    def best(self, side: str, count: int) -> list[tuple[int, int]]:
        return sorted(self.sides[side].items(), reverse=side == "b")[:count]

    def trade(self, now_ns: int) -> dict[str, Any]:
        """One more execution at the best price."""
        sold = self.world.random.random() < 0.5
        price, size = self.best("b" if sold else "a", 1)[0]
        size = self.world.random.randint(1, size)
        self.trade_id += 1
        self.agg_id += 1
        one = {"t": self.trade_id, "a": self.agg_id, "p": price, "q": size, "m": sold}
        self.trades.append(one)
        for interval in self.bars:
            self._bar(interval, one, now_ns)
        return one

    def _bar(self, interval: str, one: Mapping[str, Any] | None, now_ns: int) -> None:
        start, end = _span(interval, now_ns)
        bar = self.bars[interval]
        if bar.get("start") != start:
            price = one["p"] if one else self.best("b", 1)[0][0]
            if bar:
                self.ended[interval] = dict(bar)
            bar.clear()
            bar.update(start=start, end=end, o=price, h=price, l=price, c=price, v=0, n=0, f=-1, L=-1)
        if one is not None:
            price = one["p"]
            bar.update(h=max(bar["h"], price), l=min(bar["l"], price), c=price, v=bar["v"] + one["q"], n=bar["n"] + 1)
            bar.update(f=one["t"] if bar["f"] < 0 else bar["f"], L=one["t"])

    def bar(self, interval: str, now_ns: int) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The last bar that is over, if any, and the running one."""
        self.bars.setdefault(interval, {})
        self._bar(interval, None, now_ns)
        return self.ended.get(interval), self.bars[interval]


class BinanceSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        parts = urlsplit(path)
        query = {key.lower(): values[0] for key, values in parse_qs(parts.query).items()}
        self.combined = parts.path.startswith("/stream")
        self.micro = query.get("timeunit", "").upper() == "MICROSECOND"
        named = query.get("streams", "") if self.combined else parts.path.removeprefix("/ws").strip("/")
        self.streams: dict[str, None] = {}
        self.first = [name for name in named.split("/") if name]
        self.known = self.combined or parts.path.startswith("/ws")
        self.sent: dict[str, int] = {}  # symbol -> update id that its diffs have reached
        self.traded: dict[str, int] = {}  # symbol -> trade id that has gone out last
        self.running: dict[tuple[str, str], int] = {}  # (symbol, interval) -> start of the bar that went out last
        self.heard: deque[int] = deque(maxlen=MESSAGES_A_SECOND)
        self.turn = 0
        self.opened_ns = 0
        self.told = False

    def upgrade(self) -> Refuse | None:
        return None if self.known else Refuse(404)

    def opened(self, now_ns: int) -> list[Step]:
        self.opened_ns = now_ns
        self._join(self.first)
        return []

    def _knob(self, name: str, default: Any = None) -> Any:
        return self.world.knobs.get(name, default)

    # -- requests ------------------------------------------------------------------------------------------------

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        if len(self.heard) == MESSAGES_A_SECOND and now_ns - self.heard[0] < SECOND_NS:
            return [Close(1008, "Too many requests")]
        self.heard.append(now_ns)
        if self._knob("mute", False):
            return []
        try:
            message = json.loads(data)
            method, params, number = message["method"], message.get("params") or [], message.get("id")
        except (ValueError, TypeError, AttributeError):
            return [self._error(3, "Invalid JSON: expected value at line 1 column 1", None)]
        except KeyError:
            return [self._error(2, "Invalid request: missing field `method`", None)]
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            names = [name for name in params if isinstance(name, str)]
            if len(names) != len(params) or any(name in self._knob("refuse", ()) for name in names):
                return [self._error(2, "Invalid request: invalid stream", number)]
            if method == "UNSUBSCRIBE":
                for name in names:
                    self.streams.pop(name, None)
            elif len(self.streams) + len(names) > STREAMS_MAX:
                return [Close(1008, "Too many streams")]
            else:
                self._join(names)
            return [json.dumps({"result": None, "id": number})]
        if method == "LIST_SUBSCRIPTIONS":
            return [json.dumps({"result": list(self.streams), "id": number})]
        if method == "SET_PROPERTY" and len(params) == 2 and params[0] == "combined":
            self.combined = bool(params[1])
            return [json.dumps({"result": None, "id": number})]
        if method == "GET_PROPERTY" and params == ["combined"]:
            return [json.dumps({"result": self.combined, "id": number})]
        return [self._error(2, f"Invalid request: unknown variant `{method}`", number)]

    def _error(self, code: int, text: str, number: Any) -> str:
        error: dict[str, Any] = {"code": code, "msg": text}
        if self._knob("wrapped", False):
            error = {"error": error}
        return json.dumps(error if number is None else {**error, "id": number})

    def _join(self, names: list[str]) -> None:
        for name in names:
            if name not in self.streams:
                self.streams[name] = None
                symbol, _, what = name.partition("@")
                if what.startswith("depth") and _listed(self.world, symbol.upper()):
                    self.sent[symbol.upper()] = _market(self.world, symbol.upper()).update_id

    # -- data ----------------------------------------------------------------------------------------------------

    def _symbols(self) -> list[str]:
        """Listed symbols with a stream on this connection."""
        names = dict.fromkeys(name.partition("@")[0].upper() for name in self.streams)
        return [name for name in names if _listed(self.world, name)]

    def step(self, now_ns: int) -> list[Step]:
        names = self._symbols()
        if not names:
            return []
        self.turn += 1
        symbol = names[self.turn % len(names)]
        market = _market(self.world, symbol)
        market.move()
        first = market.trade(now_ns)["t"]
        # another connection may have made trades meanwhile: all see all
        since = self.traded.get(symbol, first - 1)
        new = [market.trades[-1]] if since == first - 1 else [one for one in market.trades if one["t"] > since]
        self.traded[symbol] = first
        out: list[Step] = []
        for stream in self.streams:
            name, _, what = stream.partition("@")
            if name.upper() == symbol:
                out += [self._wrap(stream, data) for data in self._data(market, what, new, now_ns)]
        return out

    def _data(self, market: Market, what: str, new: Sequence[Mapping[str, Any]], now_ns: int) -> list[dict[str, Any]]:
        symbol, at = market.symbol, self._time(now_ns)
        if what == "bookTicker":
            (bid, bid_size), (ask, ask_size) = market.best("b", 1)[0], market.best("a", 1)[0]
            return [{"u": market.update_id, "s": symbol, "b": _price(bid), "B": _size(bid_size),
                     "a": _price(ask), "A": _size(ask_size)}]  # fmt: skip
        if what in ("trade", "aggTrade"):
            key = "t" if what == "trade" else "a"
            events = []
            for one in new:
                event = {"e": what, "E": at, "s": symbol, key: one[key], "p": _price(one["p"]), "q": _size(one["q"])}
                if what == "aggTrade":
                    event |= {"f": one["t"], "l": one["t"]}
                events.append(event | {"T": at, "m": one["m"], "M": True})
            return events
        if what.startswith("kline_") and what[6:] in _INTERVALS:
            interval = what[6:]
            ended, running = market.bar(interval, now_ns)
            # a bar is closed for those who saw it open
            seen = self.running.get((symbol, interval), running["start"])
            self.running[symbol, interval] = running["start"]
            bars = [(ended, True)] if ended and ended["start"] == seen != running["start"] else []
            return [self._kline(symbol, interval, bar, closed, at) for bar, closed in (*bars, (running, False))]
        depth = what.removesuffix("@100ms")
        if depth == "depth":
            return self._diff(market, at)
        if depth in ("depth5", "depth10", "depth20"):
            return [_levels(market, int(depth[5:]))]
        return []

    def _diff(self, market: Market, at: int) -> list[dict[str, Any]]:
        last = self.sent.setdefault(market.symbol, market.update_id)
        changes = [change for change in market.changes if change[0] > last]
        if not changes:
            return []
        self.sent[market.symbol] = market.update_id
        levels: dict[tuple[str, int], int] = {(side, price): size for _, side, price, size in changes}
        rows = {side: [[_price(p), _size(size)] for (s, p), size in levels.items() if s == side] for side in "ba"}
        return [{"e": "depthUpdate", "E": at, "s": market.symbol, "U": last + 1, "u": market.update_id, **rows}]

    def _kline(self, symbol: str, interval: str, bar: Mapping[str, Any], closed: bool, at: int) -> dict[str, Any]:
        unit = 1_000 if self.micro else 1_000_000
        k = {"t": bar["start"] // unit, "T": bar["end"] // unit - 1, "s": symbol, "i": interval,
             "f": bar["f"], "L": bar["L"], **{name: _price(bar[name]) for name in "ochl"},
             "v": _size(bar["v"]), "n": bar["n"], "x": closed, "q": "0.00000000", "V": "0.00000000",
             "Q": "0.00000000", "B": "0"}  # fmt: skip
        return {"e": "kline", "E": at, "s": symbol, "k": k}

    def tick(self, now_ns: int) -> list[Step]:
        after = self._knob("shutdown_secs")
        if after is not None and not self.told and now_ns - self.opened_ns >= after * SECOND_NS:
            self.told = True
            return self.ending(now_ns, 0)
        return []

    def ending(self, now_ns: int, secs: float) -> list[Step]:
        return [self._wrap("!serverShutdown", {"e": "serverShutdown", "E": self._time(now_ns)})]

    def jump(self) -> None:
        """Lose a market event of each symbol: trade ids and diffs jump."""
        for symbol in self._symbols():
            market = _market(self.world, symbol)
            market.move()
            market.trade(self.opened_ns)
            self.sent[symbol] = market.update_id
            self.traded[symbol] = market.trade_id

    def _wrap(self, stream: str, data: Mapping[str, Any]) -> str:
        # without blanks, as on the wire
        return json.dumps({"stream": stream, "data": data} if self.combined else data, separators=(",", ":"))

    def _time(self, now_ns: int) -> int:
        return now_ns // (1_000 if self.micro else 1_000_000)


def _span(interval: str, now_ns: int) -> tuple[int, int]:
    """Start and end of the bar that a time lies in; weeks begin on Monday, months are the calendar's."""
    if interval == "1M":
        day = datetime.fromtimestamp(now_ns // SECOND_NS, UTC)
        start = datetime(day.year, day.month, 1, tzinfo=UTC)
        end = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
        return int(start.timestamp()) * SECOND_NS, int(end.timestamp()) * SECOND_NS
    length = interval_ns(interval)
    offset = 4 * DAY_NS if interval == "1w" else 0
    begin = (now_ns - offset) // length * length + offset
    return begin, begin + length


def _market(world: World, symbol: str) -> Market:
    markets: dict[str, Market] = world.state.setdefault("markets", {})
    if symbol not in markets:
        markets[symbol] = Market(world, symbol)
    return markets[symbol]


def _listed(world: World, symbol: str) -> bool:
    return symbol in PAIRS and symbol not in world.knobs.get("unlisted", ())


def _levels(market: Market, count: int) -> dict[str, Any]:
    bids, asks = ([[_price(p), _size(size)] for p, size in market.best(side, count)] for side in "ba")
    return {"lastUpdateId": market.update_id, "bids": bids, "asks": asks}


def _price(ticks: int) -> str:
    return f"{ticks // 100}.{ticks % 100:02d}000000"


def _size(units: int) -> str:
    return f"{units // 10**8}.{units % 10**8:08d}"


# -- REST ----------------------------------------------------------------------------------------------------------


def rest(world: World, method: str, target: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    """Answer `GET /api/v3/exchangeInfo` and `GET /api/v3/depth`."""
    wait = world.knobs.get("retry_after")
    if wait is not None:
        error = b'{"code":-1003,"msg":"Too many requests."}'
        return Answer(429, error, {"content-type": "application/json", "retry-after": str(wait)})
    parts = urlsplit(target)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    if method != "GET":
        return _refuse(405, 0, "Method not allowed")
    if parts.path == "/api/v3/exchangeInfo":
        return _ok({"timezone": "UTC", "serverTime": now_ns // 1_000_000, "rateLimits": [], "exchangeFilters": [],
                    "symbols": [_listing(raw) for raw in PAIRS if _listed(world, raw)]})  # fmt: skip
    if parts.path == "/api/v3/depth":
        symbol = query.get("symbol", "")
        if not _listed(world, symbol):
            return _refuse(400, -1121, "Invalid symbol.")
        limit = query.get("limit", "100")
        if not limit.isdecimal() or not 0 < int(limit) <= 5000:
            return _refuse(400, -1130, "Data sent for parameter 'limit' is not valid.")
        return _ok(_levels(_market(world, symbol), int(limit)))
    return _refuse(404, 0, "Not found")


def _listing(raw: str) -> dict[str, Any]:
    base, quote = PAIRS[raw]
    return {
        "symbol": raw,
        "status": "BREAK" if base == "RUNE" else "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "filters": [{"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "tickSize": "0.01000000"}],
    }


def _ok(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode())


def _refuse(status: int, code: int, text: str) -> Answer:
    return Answer(status, json.dumps({"code": code, "msg": text}).encode())


SIDE = SideSpec(BinanceSide, rest=rest)
"""Binance, as SIDES holds it."""
