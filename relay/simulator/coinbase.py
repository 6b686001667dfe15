"""Coinbase Exchange's own side: subscriptions, tickers, matches, last_match, books, heartbeats; no key.

One market is shared by all connections of a world: two connections see the same trades, and numbers go on over
reconnects (`last_match` and heartbeats show what was missed). Channels: `ticker`, `ticker_batch`, `matches`,
`level2_batch`, `heartbeat`; what needs a key is refused, other channels are unknown here.

Knobs: `unknown` (products that do not exist), `delisted` (products that are), `partial` (`keep`: beside a wrong product
the others are subscribed; `none`: nothing of that message is), `missed` (trades of a product just before a connection
joins it), `levels` (of a book, a side), `mute` (True: no answers to subscribe), `quiet` (True: no heartbeats).
"""

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.times import iso

SECOND_NS = 1_000_000_000
SUBSCRIBE_NS = 5 * SECOND_NS
"""A connection that has subscribed to nothing by then is closed."""
TRADES_KEPT = 1000
"""Trades kept for connections that have yet to send them."""

LEVELS = 50
"""Levels a side of a made-up book; real ones have thousands (knob `levels`)."""

CHANNELS = ("heartbeat", "level2_batch", "matches", "ticker", "ticker_batch")
KEYED = frozenset({"full", "user", "level2", "level3", "rfq_matches"})
LISTED_AS = {"ticker_batch": "ticker_1000"}
"""Channels whose answer has another name."""
QUOTES = frozenset({"USD", "USDC", "USDT", "EUR", "GBP", "BTC", "ETH"})
LISTED = ("BTC-USD", "ETH-USD", "BTC-EUR", "ETH-EUR", "SOL-USD", "DOGE-USD", "ETH-BTC")
"""What the list names; more exist on request."""
_PRODUCT = re.compile(r"[A-Z0-9]{2,12}-([A-Z]{3,4})")


class Product:
    """The market of one product: its numbers go on over all connections."""

    def __init__(self, world: World, name: str, now_ns: int) -> None:
        self.world, self.name = world, name
        self.sequence = world.random.randrange(10**9, 10**11)
        self.trade_id = world.random.randrange(10**5, 10**9)
        self.trades: deque[dict[str, Any]] = deque(maxlen=TRADES_KEPT)
        self.book: tuple[dict[int, int], dict[int, int]] = ({}, {})  # bids and asks: ticks to units of 1e-8
        self.trade(now_ns)

    def trade(self, now_ns: int) -> dict[str, Any]:
        """One more execution, with the book around it."""
        random = self.world.random
        mid = self.world.walk(self.name, 6_125_058)
        bid, ask = mid - random.randint(1, 4), mid + random.randint(1, 4)
        self.sequence += random.randint(1, 30)
        self.trade_id += 1
        taker = random.choice(("buy", "sell"))
        one = {
            "taker": taker,
            "price": _price(ask if taker == "buy" else bid),
            "size": f"{random.randint(1, 200_000_000) / 100_000_000:.8f}",
            "bid": _price(bid),
            "ask": _price(ask),
            "sequence": self.sequence,
            "trade_id": self.trade_id,
            "time": _time(now_ns),
        }
        self.trades.append(one)
        self._around(bid, ask)
        return one

    def _around(self, bid: int, ask: int) -> None:
        """Move the book with the market: its best levels are those of the last trade."""
        random = self.world.random
        for side, best, sign in ((self.book[0], bid, -1), (self.book[1], ask, 1)):
            for price in [price for price in side if (price - best) * sign < 0]:
                del side[price]
            side[best] = random.randint(1, 500_000_000)
            wanted = self.world.knobs.get("levels", LEVELS)
            while len(side) < wanted:
                side[best + sign * random.randint(1, 4 * wanted)] = random.randint(1, 500_000_000)
            for _ in range(2):
                price = best + sign * random.randint(1, 20)
                if side.pop(price, None) is None or random.random() < 0.5:
                    side[price] = random.randint(1, 500_000_000)

    def after(self, trade_id: int) -> dict[str, Any] | None:
        """The first trade above this one that is still kept."""
        return next((one for one in self.trades if one["trade_id"] > trade_id), None)


class CoinbaseSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        self.opened_ns = self.now_ns = 0
        self.asked = False
        self.subscribed: dict[str, list[str]] = {}  # channel -> products, both in the order of asking
        self.sent: dict[str, int] = {}  # product -> trade id that went out last
        self.views: dict[str, tuple[dict[int, int], dict[int, int]]] = {}  # product -> book as it went out
        self.beats: dict[str, int] = {}  # product -> when its heartbeat went out last
        self.turn = 0

    def upgrade(self) -> Refuse | None:
        return None

    def opened(self, now_ns: int) -> list[Step]:
        self.opened_ns = self.now_ns = now_ns
        return []

    # -- subscriptions -------------------------------------------------------------------------------------------

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        try:
            message = json.loads(data)
            kind, asked = message["type"], message.get("channels") or []
            pairs = [pair for one in asked for pair in _pairs(one, message.get("product_ids") or [])]
        except (ValueError, KeyError, TypeError, AttributeError):
            return [_error("Malformed JSON")]
        if kind == "subscribe":
            return self._subscribe(pairs, now_ns)
        if kind == "unsubscribe":
            return self._unsubscribe(pairs)
        return [_error("Type has to be either subscribe or unsubscribe")]

    def _knob(self, name: str, default: Any) -> Any:
        return self.world.knobs.get(name, default)

    def _subscribe(self, pairs: list[tuple[str, str | None]], now_ns: int) -> list[Step]:
        wrong: list[str] = []
        good: list[tuple[str, str]] = []
        for channel, product in pairs:
            reason = self._refusal(channel, product)
            if reason:
                wrong.append(reason)
            elif product is not None:
                good.append((channel, product))
        if self._knob("mute", False):
            return []
        out: list[Step] = [_error("Failed to subscribe", reason) for reason in dict.fromkeys(wrong)]
        if wrong and self._knob("partial", "keep") == "none":
            return [*out, self._list()]
        self.asked = self.asked or bool(good)
        first: list[Step] = []
        for channel, name in good:
            names = self.subscribed.setdefault(channel, [])
            if name not in names:
                first += self._join(channel, name, now_ns)
                names.append(name)
        # the answer comes in the middle of the first data, as on the real feed
        return [*out, *first[:1], self._list(), *first[1:]]

    def _refusal(self, channel: str, product: str | None) -> str:
        if channel in KEYED:
            return "level2, level3, and full channels now require authentication."
        if channel not in CHANNELS:
            return f"{channel} is not a valid channel"
        if product is None:
            return f"{channel} needs product_ids"
        if product in self._knob("delisted", ()):
            return f"{product} is delisted"
        match = _PRODUCT.fullmatch(product)
        if not match or match[1] not in QUOTES or product in self._knob("unknown", ()):
            return f"{product} is not a valid product"
        return ""

    def _join(self, channel: str, name: str, now_ns: int) -> list[Step]:
        """Begin to listen to one channel of one product; give what comes first."""
        product = self._product(name)
        if not any(name in names for names in self.subscribed.values()):
            for _ in range(self._knob("missed", 0)):
                product.trade(now_ns)
            self.sent[name] = product.trade_id
        last = product.trades[-1]
        if channel == "matches":
            return [_match("last_match", name, last)]
        if channel in ("ticker", "ticker_batch"):
            return [_ticker(name, last)]
        if channel == "level2_batch":
            bids, asks = self.views[name] = (dict(product.book[0]), dict(product.book[1]))
            return [_snapshot(name, bids, asks, now_ns)]
        self.beats[name] = now_ns
        return []

    def _unsubscribe(self, pairs: list[tuple[str, str | None]]) -> list[Step]:
        for channel, product in pairs:
            names = self.subscribed.get(channel, [])
            self.subscribed[channel] = [] if product is None else [name for name in names if name != product]
        self.subscribed = {channel: names for channel, names in self.subscribed.items() if names}
        return [self._list()]

    def _list(self) -> str:
        channels = [
            {"name": LISTED_AS.get(channel, channel), "product_ids": names, "account_ids": None}
            for channel, names in self.subscribed.items()
        ]
        return json.dumps({"type": "subscriptions", "channels": channels})

    def _product(self, name: str) -> Product:
        products: dict[str, Product] = self.world.state.setdefault("products", {})
        if name not in products:
            products[name] = Product(self.world, name, self.now_ns)
        return products[name]

    # -- data ----------------------------------------------------------------------------------------------------

    def _traded(self) -> list[str]:
        """Products whose trades show on this connection."""
        names = [name for channel, names in self.subscribed.items() if channel != "heartbeat" for name in names]
        return list(dict.fromkeys(names))

    def step(self, now_ns: int) -> list[Step]:
        self.now_ns = now_ns
        names = self._traded()
        if not names:
            return []
        self.turn += 1
        name = names[self.turn % len(names)]
        product = self._product(name)
        one = product.after(self.sent[name]) or product.trade(now_ns)
        self.sent[name] = one["trade_id"]
        out: list[Step] = []
        if name in self.subscribed.get("matches", ()):
            out.append(_match("match", name, one))
        if name in self.subscribed.get("ticker", ()) or name in self.subscribed.get("ticker_batch", ()):
            # either may come first
            out.insert(self.world.random.randint(0, len(out)), _ticker(name, one))
        if name in self.subscribed.get("level2_batch", ()):
            update = self._update(name, now_ns)
            if update:
                out.append(update)
        return out

    def _update(self, name: str, now_ns: int) -> str:
        """What changed in a book since it went out last; empty where nothing did."""
        changes: list[list[str]] = []
        book = self._product(name).book
        for side, old, new in zip(("buy", "sell"), self.views[name], book, strict=True):
            gone = [price for price in old if price not in new]
            # zero is spelled in several ways
            changes += [[side, _price(price), self.world.random.choice(("0", "0.0", "0.00000000"))] for price in gone]
            changes += [[side, _price(price), _size(size)] for price, size in new.items() if old.get(price) != size]
        self.views[name] = (dict(book[0]), dict(book[1]))
        if not changes:
            return ""
        return json.dumps({"type": "l2update", "product_id": name, "changes": changes, "time": _time(now_ns)})

    def tick(self, now_ns: int) -> list[Step]:
        if not self.asked:
            return [Close(1000, "no subscription")] if now_ns - self.opened_ns >= SUBSCRIBE_NS else []
        out: list[Step] = []
        if self._knob("quiet", False):
            return out
        for name in self.subscribed.get("heartbeat", ()):
            if now_ns - self.beats.get(name, 0) >= SECOND_NS:
                self.beats[name] = now_ns
                # what this connection has sent or lost, not what waits to be sent
                product, last = self._product(name), self.sent[name]
                beat = {
                    "type": "heartbeat",
                    "last_trade_id": last,
                    "product_id": name,
                    "sequence": product.sequence,
                    "time": _time(now_ns),
                }
                out.append(json.dumps(beat))
        return out

    def jump(self) -> None:
        """The next three trades of each product never reach this connection; a heartbeat or the next match tells."""
        for name in self._traded():
            product = self._product(name)
            for _ in range(3):
                one = product.after(self.sent[name])
                if one is None:
                    one = product.trade(self.now_ns)
                self.sent[name] = one["trade_id"]
            if name in self.views:
                # nothing in the channel tells of it
                self.views[name] = (dict(product.book[0]), dict(product.book[1]))


def _pairs(asked: Any, products: list[Any]) -> list[tuple[str, str | None]]:
    """One asked channel, a name or an object, to (channel, product) pairs; product None where none is named."""
    name = asked if isinstance(asked, str) else str(asked["name"])
    own = [] if isinstance(asked, str) else asked.get("product_ids") or []
    named: list[str | None] = [str(product) for product in (*products, *own)]
    return [(name, product) for product in named or [None]]


def _match(kind: str, name: str, one: Mapping[str, Any]) -> str:
    number = one["trade_id"]
    return json.dumps(
        {
            "type": kind,
            "trade_id": number,
            "maker_order_id": f"00000000-0000-4000-8000-{number:012d}",
            "taker_order_id": f"00000000-0000-4000-9000-{number:012d}",
            "side": "sell" if one["taker"] == "buy" else "buy",
            "size": one["size"],
            "price": one["price"],
            "product_id": name,
            "sequence": one["sequence"],
            "time": one["time"],
        }
    )


def _ticker(name: str, one: Mapping[str, Any]) -> str:
    return json.dumps(
        {
            "type": "ticker",
            "sequence": one["sequence"],
            "product_id": name,
            "price": one["price"],
            "open_24h": one["price"],
            "volume_24h": "1836.96781750",
            "low_24h": one["bid"],
            "high_24h": one["ask"],
            "volume_30d": "175984.53012145",
            "best_bid": one["bid"],
            "best_bid_size": one["size"],
            "best_ask": one["ask"],
            "best_ask_size": one["size"],
            "side": one["taker"],
            "time": one["time"],
            "trade_id": one["trade_id"],
            "last_size": one["size"],
        }
    )


def _snapshot(name: str, bids: Mapping[int, int], asks: Mapping[int, int], now_ns: int) -> str:
    return json.dumps(
        {
            "type": "snapshot",
            "product_id": name,
            "asks": [[_price(price), _size(asks[price])] for price in sorted(asks)],
            "bids": [[_price(price), _size(bids[price])] for price in sorted(bids, reverse=True)],
            "time": _time(now_ns),
        }
    )


def _size(units: int) -> str:
    return f"{units // 100_000_000}.{units % 100_000_000:08d}"


def _price(ticks: int) -> str:
    return f"{ticks // 100}.{ticks % 100:02d}"


def _time(ns: int) -> str:
    """Six fraction digits, as the feed writes nearly always."""
    seconds, fraction = divmod(ns, SECOND_NS)
    return f"{iso(seconds * SECOND_NS)[:-1]}.{fraction // 1000:06d}Z"


def _error(message: str, reason: str | None = None) -> str:
    error = {"type": "error", "message": message}
    return json.dumps(error if reason is None else {**error, "reason": reason})


def rest(world: World, method: str, path: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    """The list of products."""
    if method != "GET" or path.partition("?")[0] != "/products":
        return Answer(404, b'{"message":"NotFound"}')
    delisted = world.knobs.get("delisted", ())
    products = [
        {
            "id": name,
            "base_currency": name.split("-")[0],
            "quote_currency": name.split("-")[1],
            "display_name": name,
            "status": "delisted" if name in delisted else "online",
            "trading_disabled": name in delisted,
        }
        for name in LISTED
    ]
    return Answer(200, json.dumps(products).encode())


SIDE = SideSpec(CoinbaseSide, rest=rest)
"""Coinbase, as SIDES holds it."""
