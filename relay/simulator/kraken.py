"""Kraken's own side, v2: acknowledgements one a symbol, tickers, trades, books with their CRC32, bars, instruments.

One market is shared by all connections of a world; a connection is sent what changed of its view of the market, so
books are cut as the real one cuts them (a level pushed out of the depth gets no removal), and what `jump` loses shows
in the next checksum.

Knobs: `unknown` (symbols that do not exist), `mute` (True: no answers), `quiet` (True: no heartbeats), `system` (state
in the first frame), `wrong_checksum_every` (each n-th book update carries a wrong one), `no_checksum` (True: none).
"""

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from relay.simulator.base import Answer, Refuse, SideSpec, Step, World
from relay.times import iso

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
LEVELS = 40
"""Levels a side that a market keeps, about: thinner than the larger depths, as many real ones are."""
TRADES_KEPT = 50
"""Trades of a snapshot, as the docs have it."""
DEPTHS = (10, 25, 100, 500, 1000)
INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
CHANNELS = ("ticker", "trade", "book", "ohlc")
LISTED = ("BTC/USD", "ETH/USD", "XRP/USD", "BTC/EUR", "ETH/EUR", "SOL/USD", "DOGE/USD", "AAPLx/USD")
"""What the lists name; more exist on request."""
_SYMBOL = re.compile(r"(?!XBT/|XDG/)[A-Z0-9]{2,12}x?/[A-Z]{3,5}")

View = tuple[dict[int, int], dict[int, int]]
"""Bids and asks of one connection's book: price in ticks to size in units of 1e-8."""


class Market:
    """One symbol: its book, its trades, its running bars."""

    def __init__(self, world: World, name: str, now_ns: int) -> None:
        self.world, self.name = world, name
        self.mid = world.walk(name, 630_000)
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.trade_id = world.random.randrange(10**6, 10**8)
        self.trades: deque[dict[str, Any]] = deque(maxlen=TRADES_KEPT)
        self.bars: dict[int, dict[str, Any]] = {}
        self._fill()
        for _ in range(3):
            self.event(now_ns)

    def _size(self) -> int:
        return self.world.random.choice((5_100, 1_602_600, 100_000_000, self.world.random.randint(1, 500_000_000)))

    def _fill(self) -> None:
        """Keep the two sides apart and about LEVELS deep."""
        random = self.world.random
        for side, sign in ((self.bids, -1), (self.asks, 1)):
            for price in [price for price in side if (price - self.mid) * sign <= 0]:
                del side[price]
            edge = self.mid + sign
            if not side:
                side[edge + sign * random.randint(0, 2)] = self._size()
            while len(side) < LEVELS:
                side[edge + sign * random.randint(0, 3 * LEVELS)] = self._size()
            for price in sorted(side, key=lambda one: abs(one - self.mid))[LEVELS + 20 :]:
                del side[price]

    def event(self, now_ns: int) -> None:
        """One thing happens: the price moves and trades, or levels near it change."""
        random = self.world.random
        before = self.mid
        self.mid = self.world.walk(self.name)
        if random.random() < 0.4:
            buys = self.mid >= before
            price = min(self.asks) if buys else max(self.bids)
            self._trade("buy" if buys else "sell", price, now_ns)
        for _ in range(random.randint(1, 3)):
            side, sign = random.choice(((self.bids, -1), (self.asks, 1)))
            price = self.mid + sign * random.randint(1, 15)
            if price in side and random.random() < 0.4:
                del side[price]
            else:
                side[price] = self._size()
        self._fill()

    def _trade(self, taker: str, price: int, now_ns: int) -> None:
        self.trade_id += 1
        size = self.world.random.randint(1, 200_000_000)
        self.trades.append({"id": self.trade_id, "side": taker, "price": price, "size": size, "time": _time(now_ns, 6)})
        for minutes, bar in self.bars.items():
            start = now_ns - now_ns % (minutes * MINUTE_NS)
            if bar["start"] != start:
                bar.update(start=start, open=price, high=price, low=price, volume=0, trades=0)
            bar["high"], bar["low"] = max(bar["high"], price), min(bar["low"], price)
            bar["close"], bar["volume"], bar["trades"] = price, bar["volume"] + size, bar["trades"] + 1

    def bar(self, minutes: int, now_ns: int) -> dict[str, Any]:
        """The running bar of an interval, begun with the last trade's price."""
        if minutes not in self.bars:
            start, price = now_ns - now_ns % (minutes * MINUTE_NS), self.mid
            self.bars[minutes] = {
                "start": start, "open": price, "high": price, "low": price, "close": price, "volume": 1, "trades": 1,
            }  # fmt: skip
        return self.bars[minutes]

    def view(self, depth: int) -> View:
        bids = {price: self.bids[price] for price in sorted(self.bids, reverse=True)[:depth]}
        return bids, {price: self.asks[price] for price in sorted(self.asks)[:depth]}


class _Subscribed:
    """One channel and symbol of one connection, and what it was sent of it."""

    def __init__(self, param: int) -> None:
        self.param = param  # depth or minutes
        self.view: View = ({}, {})
        self.trade_id = 0
        self.top: object = None
        self.bar: object = None


class KrakenSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        self.now_ns = 0
        self.subscribed: dict[tuple[str, str, int], _Subscribed] = {}
        self.instruments = False
        self.beat_ns = 0
        self.updates = 0
        self.turn = 0

    def upgrade(self) -> Refuse | None:
        return None

    def _knob(self, name: str, default: Any) -> Any:
        return self.world.knobs.get(name, default)

    def _market(self, name: str) -> Market:
        markets: dict[str, Market] = self.world.state.setdefault("markets", {})
        if name not in markets:
            markets[name] = Market(self.world, name, self.now_ns)
        return markets[name]

    def opened(self, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        row = {
            "version": "2.0.10", "system": self._knob("system", "online"), "api_version": "v2",
            "connection_id": 2**63 + self.world.random.randrange(2**62), "upcoming_maintenance": [],
        }  # fmt: skip
        return [json.dumps({"channel": "status", "type": "update", "data": [row]})]

    # -- subscriptions -------------------------------------------------------------------------------------------

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        try:
            message = json.loads(data)
            method, number = message["method"], message.get("req_id")
            params = message.get("params") or {}
            channel, symbols = params.get("channel"), params.get("symbol") or []
        except (ValueError, KeyError, TypeError, AttributeError):
            return [json.dumps({"error": "Malformed request", **self._times()})]
        if method == "ping":
            return [self._reply("pong", number, {})]
        if self._knob("mute", False):
            return []
        if method not in ("subscribe", "unsubscribe") or channel not in (*CHANNELS, "instrument"):
            return [self._refuse(str(method), number, "Malformed request")]
        if channel == "instrument":
            self.instruments = method == "subscribe"
            ack = self._reply(method, number, {"success": True, "result": {"channel": channel, "snapshot": True}})
            return [ack, self._pairs()] if self.instruments else [ack]
        param = 0
        if channel == "book":
            param = params.get("depth", 10)
            if param not in DEPTHS:
                return [self._refuse(method, number, "Subscription depth not supported")]
        elif channel == "ohlc":
            param = params.get("interval", 1)
            if param not in INTERVALS:
                return [self._refuse(method, number, "Subscription ohlc interval not supported")]
        if not isinstance(symbols, list) or not symbols:
            return [self._refuse(method, number, "Malformed request")]
        out: list[Step] = []
        later: list[Step] = []
        for name in map(str, symbols):
            out += self._one(
                method, number, channel, name, param, bool(params.get("snapshot", channel != "trade")), later
            )
        # acknowledgements first, data behind them
        return out + later

    def _one(
        self, method: str, number: Any, channel: str, name: str, param: int, snapshot: bool, later: list[Step]
    ) -> list[Step]:  # fmt: skip
        key = (channel, name, param)
        result: dict[str, Any] = {"channel": channel}
        if channel == "book":
            result["depth"] = param
        elif channel == "ohlc":
            result["interval"] = param
        elif channel == "ticker":
            result["event_trigger"] = "bbo"
        if method == "unsubscribe":
            if self.subscribed.pop(key, None) is None:
                return [self._refuse(method, number, "Subscription Not Found", name)]
            return [self._reply(method, number, {"success": True, "result": {**result, "symbol": name}})]
        if not _SYMBOL.fullmatch(name) or name in self._knob("unknown", ()):
            return [self._refuse(method, number, f"Currency pair not supported {name}", name)]
        if key in self.subscribed:
            return [self._refuse(method, number, "Already subscribed", name)]
        one = self.subscribed[key] = _Subscribed(param)
        later += self._first(channel, name, one, snapshot)
        if channel == "ohlc":
            result["warnings"] = ["timestamp is deprecated, use interval_begin"]
        return [
            self._reply(method, number, {"success": True, "result": {**result, "snapshot": snapshot, "symbol": name}})
        ]

    def _times(self) -> dict[str, str]:
        return {"time_in": _time(self.now_ns, 6), "time_out": _time(self.now_ns + 40_000, 6)}

    def _reply(self, method: str, number: Any, fields: Mapping[str, Any]) -> str:
        echoed = {} if number is None else {"req_id": number}
        return json.dumps({"method": method, **fields, **self._times(), **echoed})

    def _refuse(self, method: str, number: Any, error: str, symbol: str | None = None) -> str:
        named = {} if symbol is None else {"symbol": symbol}
        return self._reply(method, number, {"error": error, "success": False, **named})

    # -- data ----------------------------------------------------------------------------------------------------

    def _first(self, channel: str, name: str, one: _Subscribed, snapshot: bool) -> list[Step]:
        """What comes right behind the acknowledgement."""
        market = self._market(name)
        one.trade_id = market.trade_id
        if channel == "book":
            one.view = market.view(one.param)
            return [self._book("snapshot", name, one.view, one.view)]
        if channel == "ticker":
            return [self._ticker("snapshot", name, one)]
        if channel == "ohlc":
            bar = market.bar(one.param, self.now_ns)
            one.bar = dict(bar)
            # intervals without trades are missing: the one before is
            past = {**bar, "start": bar["start"] - 2 * one.param * MINUTE_NS}
            return [self._bars("snapshot", name, one.param, [past, bar])] if snapshot else []
        return [_trades("snapshot", name, list(market.trades))] if snapshot and market.trades else []

    def step(self, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        names = list(dict.fromkeys(name for _, name, _ in self.subscribed))
        if not names:
            return []
        self.turn += 1
        name = names[self.turn % len(names)]
        for _ in range(20):
            # an event may change nothing that this connection sees
            self._market(name).event(now_ns)
            out = self._news(name)
            if out:
                return out
        return []

    def _news(self, name: str) -> list[Step]:
        """What this connection has not been told yet of one market."""
        market = self._market(name)
        out: list[Step] = []
        for (channel, symbol, _), one in self.subscribed.items():
            if symbol != name:
                continue
            if channel == "trade":
                new = [trade for trade in market.trades if trade["id"] > one.trade_id]
                one.trade_id = market.trade_id
                if new:
                    out.append(_trades("update", name, new))
            elif channel == "book":
                view = market.view(one.param)
                changes = tuple(_changes(old, new, full) for old, new, full in zip(
                    one.view, view, (market.bids, market.asks), strict=True))  # fmt: skip
                one.view = view
                if any(changes):
                    out.append(self._book("update", name, (changes[0], changes[1]), view))
            elif channel == "ticker":
                if one.top != _top(market):
                    out.append(self._ticker("update", name, one))
            elif one.bar != market.bar(one.param, self.now_ns):
                one.bar = dict(market.bar(one.param, self.now_ns))
                out.append(self._bars("update", name, one.param, [market.bar(one.param, self.now_ns)]))
        return out

    def _book(self, kind: str, name: str, rows: View, view: View) -> str:
        checksum = ""
        if not self._knob("no_checksum", False):
            number = checksum_of(view)
            if kind == "update":
                self.updates += 1
                every = self._knob("wrong_checksum_every", 0)
                if every and self.updates % every == 0:
                    number ^= 1
            checksum = f',"checksum":{number}'
        bids, asks = (
            ",".join(f'{{"price":{_price(price)},"qty":{_qty(size)}}}' for price, size in side.items()) for side in rows
        )
        return (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{name}","bids":[{bids}],"asks":[{asks}]{checksum}'
            f',"timestamp":"{_time(self.now_ns, 6)}"}}]}}'
        )

    def _ticker(self, kind: str, name: str, one: _Subscribed) -> str:
        market = self._market(name)
        one.top = _top(market)
        bid, ask = max(market.bids), min(market.asks)
        last = market.trades[-1]["price"] if market.trades else market.mid
        return (
            f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{name}","bid":{_price(bid)},'
            f'"bid_qty":{_qty(market.bids[bid])},"ask":{_price(ask)},"ask_qty":{_qty(market.asks[ask])},'
            f'"last":{_price(last)},"volume":9095630.20903971,"vwap":{_price(last)},"low":{_price(last - 9)},'
            f'"high":{_price(last + 9)},"change":0.5,"change_pct":0.01,"trades":4606,'
            f'"timestamp":"{_time(self.now_ns, 6)}"}}]}}'
        )

    def _bars(self, kind: str, name: str, minutes: int, bars: list[dict[str, Any]]) -> str:
        rows = ",".join(
            f'{{"symbol":"{name}","open":{_price(bar["open"])},"high":{_price(bar["high"])},'
            f'"low":{_price(bar["low"])},"close":{_price(bar["close"])},"trades":{bar["trades"]},'
            f'"volume":{_qty(bar["volume"])},"vwap":{_price(bar["close"])},"interval":{minutes},'
            f'"interval_begin":"{_time(bar["start"], 9)}",'
            f'"timestamp":"{_time(bar["start"] + minutes * MINUTE_NS, 6)}"}}'
            for bar in bars
        )
        return f'{{"channel":"ohlc","type":"{kind}","timestamp":"{_time(self.now_ns, 9)}","data":[{rows}]}}'

    def _pairs(self) -> str:
        names = list(dict.fromkeys((*LISTED, *self.world.state.get("markets", ()))))
        pairs = ",".join(
            f'{{"symbol":"{name}","base":"{name.split("/")[0]}","quote":"{name.split("/")[1]}","status":"online",'
            f'"qty_precision":8,"qty_increment":1e-08,"price_precision":1,"price_increment":0.1,"marginable":true}}'
            for name in names
        )
        return f'{{"channel":"instrument","type":"snapshot","data":{{"assets":[],"pairs":[{pairs}]}}}}'

    def tick(self, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        if (not self.subscribed and not self.instruments) or self._knob("quiet", False):
            return []
        if now_ns - self.beat_ns < SECOND_NS:
            return []
        self.beat_ns = now_ns
        return ['{"channel":"heartbeat"}']

    def jump(self) -> None:
        """What happens next in each market never reaches this connection: the next checksum, or trade id, tells."""
        for (channel, name, _), one in self.subscribed.items():
            market = self._market(name)
            if channel == "book":
                best = max(market.bids)
                market.bids[best] += 100
                one.view = market.view(one.param)
            elif channel == "trade":
                for _ in range(3):
                    market._trade("buy", min(market.asks), self.now_ns)
                one.trade_id = market.trade_id


def checksum_of(view: View) -> int:
    """The CRC32 of the best ten levels a side, asks first."""
    text = ""
    for side, reverse in ((view[1], False), (view[0], True)):
        for price in sorted(side, reverse=reverse)[:10]:
            text += _price(price).replace(".", "").lstrip("0") + _qty(side[price]).replace(".", "").lstrip("0")
    return crc32(text.encode())


def _changes(old: Mapping[int, int], new: Mapping[int, int], full: Mapping[int, int]) -> dict[int, int]:
    """What to send so that a client that cuts to the depth gets from one view to the next."""
    gone = {price: 0 for price in old if price not in full}
    return {**gone, **{price: size for price, size in new.items() if old.get(price) != size}}


def _top(market: Market) -> object:
    bid, ask = max(market.bids), min(market.asks)
    return bid, market.bids[bid], ask, market.asks[ask]


def _trades(kind: str, name: str, trades: list[dict[str, Any]]) -> str:
    rows = ",".join(
        f'{{"symbol":"{name}","side":"{one["side"]}","price":{_price(one["price"])},"qty":{_qty(one["size"])},'
        f'"ord_type":"limit","trade_id":{one["id"]},"timestamp":"{one["time"]}"}}'
        for one in trades
    )
    return f'{{"channel":"trade","type":"{kind}","data":[{rows}]}}'


def _price(ticks: int) -> str:
    return f"{ticks // 10}.{ticks % 10}"


def _qty(units: int) -> str:
    return f"{units // 10**8}.{units % 10**8:08d}"


def _time(ns: int, digits: int) -> str:
    seconds, fraction = divmod(ns, SECOND_NS)
    return f"{iso(seconds * SECOND_NS)[:-1]}.{f'{fraction:09d}'[:digits]}Z"


def rest(world: World, method: str, path: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    """The list of markets; Kraken answers 200 to everything."""
    if method != "GET" or path.partition("?")[0] != "/0/public/AssetPairs":
        return Answer(200, b'{"error":["EGeneral:Unknown method"]}')
    old = {"BTC": "XBT", "DOGE": "XDG"}
    pairs = {}
    for name in LISTED:
        base, _, quote = name.partition("/")
        # `wsname` is the v1 feed's; the keys are v2 names only where the client asks for that
        wsname = f"{old.get(base, base)}/{quote}"
        key = name if "assetVersion=1" in path else wsname.replace("/", "")
        pairs[key] = {"altname": wsname.replace("/", ""), "wsname": wsname, "status": "online"}
    return Answer(200, json.dumps({"error": [], "result": pairs}).encode())


SIDE = SideSpec(KrakenSide, rest=rest)
"""Kraken, as SIDES holds it."""
