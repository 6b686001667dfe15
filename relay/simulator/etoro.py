"""eToro's own side: login by operation or by headers, acks by id, NUL keep-alives, snapshots, sparse updates, REST.

A connection with an `x-api-key` header speaks the flat dialects, any other one the in-band dialect.

Knobs: `auth_refusals` (codes that answer the first logins, in order), `subscribe_refusals` (likewise for subscribes),
`acks_lost` (operations left without an answer), `topics_max` (4999), `frame_bytes_max` (25600), `heartbeats` (share of
updates with a date and an id only, 0.3), `orders_every` (data messages between two order events, 20), `flags_every`
(between two market flags, 200), `keepalive_secs` (5), `quiet` (no data messages: the market sleeps), `market_open`
(true); REST: `requests_per_minute` (60), `bad_ids` (each fails its whole batch with 500), `rest_status` (answer all
calls with it).
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.times import iso

SECOND_NS = 1_000_000_000
BATCH_MAX = 100
"""Most ids in one call for rates."""

INSTRUMENTS: Mapping[int, tuple[str, str, int, int, int, int]] = {
    1: ("EURUSD", "EUR/USD", 1, 1, 5, 108_420),
    18: ("GOLD", "Gold", 2, 2, 2, 265_000),
    28: ("NSDQ100", "NASDAQ 100", 3, 4, 2, 2_140_000),
    1001: ("AAPL", "Apple", 4, 5, 2, 18_425),
    1004: ("MSFT", "Microsoft", 4, 5, 2, 41_260),
    1111: ("TSLA", "Tesla", 4, 5, 2, 25_140),
    100000: ("BTC", "Bitcoin", 8, 10, 2, 7_055_280),
    100001: ("ETH", "Ethereum", 8, 10, 2, 371_240),
}
"""Id to symbol, name, exchange, class, decimals, first price in ticks. Other ids below 900,000 are made-up shares."""
EXCHANGES = {1: "FX", 2: "Commodity", 3: "CFD", 4: "Nasdaq", 8: "Digital Currency"}
CLASSES = {1: "Currencies", 2: "Commodities", 4: "Indices", 5: "Stocks", 10: "Crypto Currencies"}
_UNKNOWN_FROM = 900_000


def _instrument(ident: int) -> tuple[str, str, int, int, int, int] | None:
    if 0 < ident < _UNKNOWN_FROM:
        return INSTRUMENTS.get(ident, (f"SIM{ident}", f"Simulated {ident}", 4, 5, 2, 10_000 + ident % 1000))
    return None


def _ident(symbol: str) -> int | None:
    """Id of an instrument's symbol, in any case."""
    word = symbol.upper()
    for ident, row in INSTRUMENTS.items():
        if row[0] == word:
            return ident
    digits = word.removeprefix("SIM")
    return int(digits) if word.startswith("SIM") and digits.isdecimal() and _instrument(int(digits)) else None


class Market:
    """The prices of all instruments, common to connections and REST."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.prices: dict[int, dict[str, Any]] = {}
        self.rates = 133_989_539_000

    @classmethod
    def of(cls, world: World) -> "Market":
        market = world.state.get("market")
        if market is None:
            market = world.state["market"] = cls(world)
        return market

    def price(self, ident: int, now_ns: int) -> dict[str, Any]:
        """The price as it stands; made on first sight."""
        return self.prices.get(ident) or self.move(ident, now_ns, "both")

    def move(self, ident: int, now_ns: int, what: str) -> dict[str, Any]:
        """Step the price: `both`, `bid`, `ask` or `last` of it."""
        row = _instrument(ident)
        assert row is not None
        decimals, start = row[4], row[5]
        mid = self.world.walk(str(ident), start)
        half = max(1, start // 20_000)
        price = self.prices.setdefault(ident, {})
        if what in ("both", "bid") or "bid" not in price:
            price["bid"] = _text(mid - half, decimals)
        if what in ("both", "ask") or "ask" not in price:
            price["ask"] = _text(mid + half, decimals)
        if what != "ask":
            price["last"] = price["bid"]
        price["date"] = _date(now_ns)
        price["rate"] = self.next_rate()
        return price

    def next_rate(self) -> str:
        self.rates += self.world.random.randint(1, 9)
        return str(self.rates)


class EtoroSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        self.market = Market.of(world)
        self.flat = "x-api-key" in headers
        self.key = headers.get("x-api-key", "")
        self.authenticated = False
        self.topics: dict[str, None] = {}
        self.beat_ns = 0
        self.turn = 0
        self.order: dict[str, Any] | None = None

    def _knob(self, name: str, default: Any) -> Any:
        return self.world.knobs.get(name, default)

    def _once(self, name: str) -> Any:
        """The next of a list of one-time faults; None when they are used up."""
        planned = self._knob(name, ())
        used = self.world.state.get(name, 0)
        if isinstance(planned, int):
            planned = [True] * planned
        if used >= len(planned):
            return None
        self.world.state[name] = used + 1
        return planned[used]

    # -- life --

    def upgrade(self) -> Refuse | None:
        if self.flat:
            if not self.world.accepts(self.key):
                body = json.dumps({"errorCode": "Unauthorized", "errorMessage": "the key is not known"})
                return Refuse(401, {"content-type": "application/json"}, body.encode())
            self.authenticated = True
        return None

    def opened(self, now_ns: int) -> list[Step]:
        self.beat_ns = now_ns
        return [] if self.flat else [b"\x00"]

    def tick(self, now_ns: int) -> list[Step]:
        if now_ns - self.beat_ns < self._knob("keepalive_secs", 5) * SECOND_NS:
            return []
        self.beat_ns = now_ns
        return [json.dumps({"type": "heartbeat"})] if self.flat else [b"\x00"]

    def jump(self) -> None:
        """Nothing is numbered here: a lost update cannot be seen. The next full price heals it."""

    # -- the client's messages --

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        if isinstance(data, bytes):
            return [json.dumps({"success": False, "errorCode": "BinaryMessagesNotSupported"})]
        if len(data.encode()) > self._knob("frame_bytes_max", 25_600):
            return [Close(1011, "")]  # the live service drops the socket without a close frame
        try:
            message = json.loads(data)
            if self.flat:
                return self._flat_request(message, now_ns)
            operation, ident = message["operation"], message["id"]
            body = message["data"]
            if operation == "Authenticate":
                return self._login(ident, body)
            topics = list(body["topics"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return [json.dumps({"success": False, "errorCode": "DataRequired", "errorMessage": "not understood"})]
        if self._once("acks_lost"):
            return []
        if not self.authenticated:
            return [_answer(ident, operation, "Unauthorized", "authenticate first")]
        if operation == "Unsubscribe":
            for topic in topics:
                self.topics.pop(topic, None)
            return [_answer(ident, operation)]
        return self._subscribe(ident, topics, bool(body.get("snapshot")), now_ns)

    def _login(self, ident: Any, body: dict[str, Any]) -> list[Step]:
        code = self._once("auth_refusals")
        if not code and not body.get("apiKey"):
            code = "ApiKeyRequired"
        if not code and not body.get("userKey"):
            code = "UserKeyRequired"
        if not code and not self.world.accepts(body["apiKey"]):
            code = "Unauthorized"
        if not code and self.authenticated:
            code = "SessionAlreadyAuthenticated"
        if code:
            return [_answer(ident, "Authenticate", str(code), "refused by the simulator")]
        self.authenticated = True
        return [b"\x00", _answer(ident, "Authenticate")]

    def _subscribe(self, ident: Any, topics: list[str], snapshot: bool, now_ns: int) -> list[Step]:
        code = self._once("subscribe_refusals")
        if code:
            return [_answer(ident, "Subscribe", str(code), "refused by the simulator")]
        if len({*self.topics, *topics}) > self._knob("topics_max", 4999):
            return [_answer(ident, "Subscribe", "SubscribeFailed", "Too many subscriptions for session")]
        out: list[Step] = [_answer(ident, "Subscribe")]
        for topic in topics:
            word, _, rest = topic.partition(":")
            if topic != "private" and not (word == "instrument" and rest.isdecimal() and _instrument(int(rest))):
                continue  # the live service takes any topic and sends nothing for it
            self.topics[topic] = None
            if snapshot and topic != "private":
                out.append(self._snapshot(int(rest), now_ns))
        return out

    def _flat_request(self, message: dict[str, Any], now_ns: int) -> list[Step]:
        verb = message.get("type") or message["action"]
        if "instruments" in message:
            channels = [f"{word}.{name}" for word in message["channels"] for name in message["instruments"]]
        else:
            channels = list(message["channels"])
        code = self._once("subscribe_refusals")
        if code:
            return [json.dumps({"type": "error", "code": code, "message": "refused by the simulator"})]
        for channel in channels:
            if verb == "unsubscribe":
                self.topics.pop(channel, None)
            else:
                self.topics[channel] = None
        return [json.dumps({"type": f"{verb}d", "channels": channels})]

    # -- data --

    def _snapshot(self, ident: int, now_ns: int) -> str:
        price = self.market.price(ident, now_ns)
        content = {
            "InstrumentID": str(ident),
            **_rate(price, ("ask", "bid", "last")),
            "ConversionRateAsk": "1",
            "ConversionRateBid": "1",
            "NewUnitMargin": price["bid"],
            "OfficialClosingPrice": price["bid"],
            "MaxPositionUnits": "10000",
            "IsOfficialClosingPrice": "false",
            **self._flags(),
        }
        return _envelope(f"instrument:{ident}", content, "Snapshot")

    def _flags(self) -> dict[str, str]:
        is_open = "true" if self._knob("market_open", True) else "false"
        return {
            "IsInstrumentActive": "true",
            "IsMarketOpen": is_open,
            "IsExchangeOpen": is_open,
            "AllowBuy": is_open,
            "AllowSell": is_open,
        }

    def step(self, now_ns: int) -> list[Step]:
        if not self.authenticated or not self.topics or self._knob("quiet", False):
            return []
        self.turn += 1
        if self.flat:
            return self._flat_step(now_ns)
        if "private" in self.topics and (self.turn % self._knob("orders_every", 20) == 0 or len(self.topics) == 1):
            return [self._order(now_ns)]
        rates = [topic for topic in self.topics if topic != "private"]
        topic = rates[self.turn % len(rates)]
        ident = int(topic.partition(":")[2])
        if self.turn % self._knob("flags_every", 200) == 0:
            return [_envelope(topic, {**self._flags(), "Date": _date(now_ns)}, "Trading.Instrument.Rate")]
        random = self.world.random
        if random.random() < self._knob("heartbeats", 0.3):
            content = {"Date": _date(now_ns), "PriceRateID": self.market.next_rate()}
            return [_envelope(topic, content, "Trading.Instrument.Rate")]
        what = random.choices(("both", "bid", "ask", "last"), (40, 28, 28, 4))[0]
        price = self.market.move(ident, now_ns, what)
        names = {"both": ("ask", "bid", "last"), "bid": ("bid", "last"), "ask": ("ask",), "last": ("last",)}[what]
        return [_envelope(topic, _rate(price, names), "Trading.Instrument.Rate")]

    def _flat_step(self, now_ns: int) -> list[Step]:
        channels = list(self.topics)
        word, _, name = channels[self.turn % len(channels)].partition(".")
        ident = int(name) if name.isdecimal() else _ident(name)
        if ident is None or _instrument(ident) is None:
            return []
        random = self.world.random
        price = self.market.move(ident, now_ns, random.choice(("both", "bid", "ask")))
        bid, ask = float(price["bid"]), float(price["ask"])
        who: dict[str, Any] = {"instrumentId": ident} if name.isdecimal() else {"instrument": name}
        ts = now_ns // 1_000_000
        if word == "trades":
            self.world.state["trades"] = number = self.world.state.get("trades", 0) + 1
            buy = random.random() < 0.5
            trade = {"price": ask if buy else bid, "size": random.randint(1, 900) / 100}
            return [
                json.dumps({"type": "trade", **who, **trade, "side": "BUY" if buy else "SELL", "ts": ts, "id": number})
            ]
        if word == "candles":
            start = now_ns // (60 * SECOND_NS) * 60 * SECOND_NS
            bar = {
                "interval": "1m",
                "open": bid,
                "high": ask,
                "low": bid,
                "close": bid,
                "volume": random.randint(1, 99),
            }
            return [json.dumps({"type": "candle", **who, **bar, "fromDate": iso(start)})]
        if word == "orderbook":
            sides = {"bids": [[bid, random.randint(1, 50)]], "asks": [[ask, random.randint(1, 50)]]}
            return [json.dumps({"type": "orderbook", **who, **sides, "ts": ts})]
        return [json.dumps({"type": "quote", **who, "bid": bid, "ask": ask, "ts": ts})]

    def _order(self, now_ns: int) -> str:
        """The next state of an order: pending, filled in part, filled; then another one begins."""
        order = self.order
        if order is None or order["StatusID"] == 3:
            state = self.world.state
            state["orders"] = number = state.get("orders", 981_200_000) + 1
            order = self.order = {
                "OrderID": number,
                "OrderType": 1,
                "CID": 32_000_001,
                "StatusID": 1,
                "InstrumentID": 1001,
                "RequestedUnits": 8.0,
                "ExecutedUnits": 0.0,
                "EndRate": 0.0,
                "ErrorCode": 0,
                "CloseReason": 0,
                "IsBuy": self.world.random.random() < 0.5,
                "RequestOccurred": _date(now_ns),
            }
        elif order["ExecutedUnits"] == 0.0:
            order.update(StatusID=2, ExecutedUnits=3.0, EndRate=float(self.market.price(1001, now_ns)["ask"]))
        else:
            order.update(StatusID=3, ExecutedUnits=8.0)
        return _envelope("private", order, "Trading.OrderForOpen.Update")


def _text(ticks: int, decimals: int) -> str:
    whole, part = divmod(ticks, 10**decimals)
    return f"{whole}.{part:0{decimals}d}"


def _date(now_ns: int) -> str:
    """eToro's dates have seven fraction digits, always."""
    return f"{iso(now_ns // SECOND_NS * SECOND_NS)[:-1]}.{now_ns % SECOND_NS // 100:07d}Z"


def _rate(price: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    words = {"ask": "Ask", "bid": "Bid", "last": "LastExecution"}
    return {**{words[name]: price[name] for name in names}, "Date": price["date"], "PriceRateID": price["rate"]}


def _envelope(topic: str, content: Mapping[str, Any], kind: str) -> str:
    return json.dumps({"messages": [{"topic": topic, "content": json.dumps(content), "id": "sim", "type": kind}]})


def _answer(ident: Any, operation: str, code: str = "", text: str = "") -> str:
    answer: dict[str, Any] = {"id": ident, "success": not code, "operation": operation}
    if code:
        answer |= {"errorCode": code, "errorMessage": text}
    return json.dumps(answer)


# -- REST ------------------------------------------------------------------------------------------------------------


def rest(world: World, method: str, target: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    """Answer one call below /api/v1/market-data."""
    if "rest_status" in world.knobs:
        return _refuse(int(world.knobs["rest_status"]), "UnhandledException", "refused by the simulator")
    if not world.accepts(headers.get("x-api-key", "")):
        return _refuse(401, "Unauthorized", "the key is not known")
    calls = [at for at in world.state.get("calls", []) if now_ns - at < 60 * SECOND_NS]
    if len(calls) >= world.knobs.get("requests_per_minute", 60):
        wait = str(1 + (calls[0] + 60 * SECOND_NS - now_ns) // SECOND_NS)
        return Answer(429, b'{"errorCode":"TooManyRequests"}', {"retry-after": wait})
    world.state["calls"] = [*calls, now_ns]
    parts = urlsplit(target)
    if method != "GET" or not parts.path.startswith("/api/v1/market-data/"):
        return _refuse(404, "", "no such path")
    if "%2c" in parts.query.lower():
        return _refuse(500, "UnhandledException", "an encoded comma")
    path = parts.path.removeprefix("/api/v1/market-data/")
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    market = Market.of(world)
    if path == "exchanges":
        rows = [{"exchangeID": ident, "exchangeDescription": text} for ident, text in EXCHANGES.items()]
        return _ok({"exchangeInfo": rows})
    if path == "instrument-types":
        rows = [{"instrumentTypeID": ident, "instrumentTypeDescription": text} for ident, text in CLASSES.items()]
        return _ok({"instrumentTypes": rows})
    if path == "search":
        found = _ident(unquote(query.get("internalSymbolFull", "")))
        row = _instrument(found) if found else None
        items = [{"instrumentId": found, "internalSymbolFull": row[0]}] if row else []
        return _ok({"page": 1, "pageSize": 20, "totalItems": len(items), "items": items})
    idents = list(INSTRUMENTS)
    if "instrumentIds" in query:
        try:
            idents = [int(text) for text in query["instrumentIds"].split(",")]
        except ValueError:
            return _refuse(400, "BadRequest", "instrumentIds are integers")
        if set(idents) & set(world.knobs.get("bad_ids", ())):
            return _refuse(500, "UnhandledException", "one of the ids")
    known = [(ident, row) for ident in idents if (row := _instrument(ident)) is not None]
    if path == "instruments":
        return _ok({"instrumentDisplayDatas": [_described(ident, row) for ident, row in known]})
    if path == "instruments/rates":
        if "instrumentIds" not in query or len(idents) > BATCH_MAX:
            return _refuse(400, "BadRequest", f"1 to {BATCH_MAX} instrumentIds")
        return _ok({"rates": [_rest_rate(market, ident, now_ns) for ident, _ in known]})
    if path == "instruments/history/closing-price":
        return _ok([_closing(market, ident, now_ns) for ident in INSTRUMENTS])
    return _refuse(404, "", "no such path")


def _described(ident: int, row: tuple[str, str, int, int, int, int]) -> dict[str, Any]:
    return {
        "instrumentID": ident,
        "instrumentDisplayName": row[1],
        "instrumentTypeID": row[3],
        "exchangeID": row[2],
        "symbolFull": row[0],
        "hasExpirationDate": False,
        "isInternalInstrument": False,
        "images": [],
    }


def _rest_rate(market: Market, ident: int, now_ns: int) -> dict[str, Any]:
    price = market.price(ident, now_ns)
    numbers = {name: float(price[name]) for name in ("bid", "ask")}
    return {
        "instrumentID": ident,
        **numbers,
        "lastExecution": float(price["last"]),
        "conversionRateAsk": 1.0,
        "conversionRateBid": 1.0,
        "date": price["date"],
        "priceRateID": int(price["rate"]),
    }


def _closing(market: Market, ident: int, now_ns: int) -> dict[str, Any]:
    close = float(market.price(ident, now_ns)["bid"])
    daily = {"price": close, "date": iso(now_ns // (86_400 * SECOND_NS) * 86_400 * SECOND_NS).replace("T", " ")}
    return {
        "instrumentId": ident,
        "officialClosingPrice": close,
        "isMarketOpen": False,
        "closingPrices": {"daily": daily, "monthly": {"price": -1, "date": "0001-01-01 00:00:00Z"}},
    }


def _ok(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode())


def _refuse(status: int, code: str, text: str) -> Answer:
    return Answer(status, json.dumps({"errorCode": code, "errorMessage": text}).encode())


SIDE = SideSpec(EtoroSide, rest=rest)
"""eToro, as SIDES holds it."""
