"""Aries' own side: three endpoints, one login shape, NDJSON frames, sparse quotes, account events, OAuth2 refresh.

Knobs: `session_ms` (2,700,000; accounts 3,900,000), `refresh_auth_ms` (ms before the end of a session at which
refreshAuth is sent: 300,000), `refuse_logins` (that many logins first, over all connections), `refuse_symbols` (list),
`refuse_topics` (list), `acks` (answer subscriptions: False), `refuse_ping` (the `type` shape: False), `mute`
(answer no ping: False), `burst` (most messages in a frame: 3), `token_secs` (3,600), `rotate` (a new refresh token at
each refresh: True), `token_status` (HTTP status of the token call: 200), `retry_after` (header beside such a status),
`only_issued` (accept access tokens of the token call alone: False), `error_every` (steps between errors without id).
"""

import json
from collections.abc import Mapping
from typing import Any

from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.times import iso

MS = 1_000_000
SECOND_NS = 1_000_000_000
ACCOUNTS_AUTH_NS = 5 * SECOND_NS
NEW_YORK_NS = 4 * 3600 * SECOND_NS
ISSUED_MAX = 1_000
VENUES = ("NSDQ", "ARCX", "EDGX", "BATS", "IEXG")
INDICES = frozenset({"SPX", "NDX", "DJI", "VIX", "RUT", "COMP", "NYA", "OEX", "MID", "SML"})


class AriesSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        self.path = path.partition("?")[0]
        self.endpoint = self.path.removeprefix("/v1/").removesuffix("/ws")
        self.opened_ns = 0
        self.ends_ns: int | None = None
        self.warned = False
        self.items: dict[str, dict[str, Any]] = {}
        self.topics: list[dict[str, Any]] = []
        self.sent: dict[str, dict[str, Any]] = {}
        self.steps = self.orders = 0

    def upgrade(self) -> Refuse | None:
        return None if self.endpoint in ("market", "charts", "accounts") else Refuse(404)

    def opened(self, now_ns: int) -> list[Step]:
        self.opened_ns = now_ns
        return []

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        try:
            message = json.loads(data)
            kind, request_id = message.get("type"), message.get("id")
        except (ValueError, AttributeError):
            return [_error("malformed message", None, now_ns)]
        if kind == "ping" or message.get("action") == "ping":
            return self._ping(kind, request_id, now_ns)
        if kind == "request":
            return self._login(message, request_id, now_ns)
        if kind not in ("subscribe", "unsubscribe"):
            return [_error("unknown message type", request_id, now_ns)]
        items = message.get("payload")
        if self.ends_ns is None:
            return [_error("authentication required", request_id, now_ns)]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return [_error("payload must be an array of objects", request_id, now_ns)]
        if kind == "unsubscribe":
            return self._unsubscribe(items)
        return self._subscribe(items, request_id, now_ns)

    def _knob(self, name: str, default: Any) -> Any:
        return self.world.knobs.get(name, default)

    # -- login and keep-alive ------------------------------------------------------------------------------------

    def _ping(self, kind: Any, request_id: Any, now_ns: int) -> list[Step]:
        if self._knob("mute", False):
            return []
        if kind != "ping":
            return [json.dumps({"action": "ping", "message": "pong"})]
        if self._knob("refuse_ping", False):
            return [_error("unknown message type", request_id, now_ns)]
        return [json.dumps({"type": "pong"} | ({"id": request_id} if request_id else {}))]

    def _login(self, message: dict[str, Any], request_id: Any, now_ns: int) -> list[Step]:
        payload = message.get("payload")
        if not isinstance(payload, dict) or payload.get("path") != "/auth":
            return [_error("unknown path", request_id, now_ns)]
        body = payload.get("body")
        token = body.get("token") if isinstance(body, dict) else None
        if not isinstance(token, str) or not token:
            return [_error("token is required", request_id, now_ns)]
        state = self.world.state
        state["logins"] = state.get("logins", 0) + 1
        if state["logins"] <= self._knob("refuse_logins", 0) or not _accepts(self.world, token, now_ns):
            return [_error("authentication failed", request_id, now_ns)]
        life = self._knob("session_ms", 3_900_000 if self.endpoint == "accounts" else 2_700_000)
        self.ends_ns, self.warned = now_ns + life * MS, False
        payload = {"action": "authSuccess", "id": request_id, "data": {"expiresIn": life}, "timestamp": now_ns // MS}
        out: list[Step] = [json.dumps({"type": "event", "payload": payload})]
        if self.endpoint == "market":
            out.append(_update("marketStatus", None, _market_status(now_ns), now_ns))
        return out

    def tick(self, now_ns: int) -> list[Step]:
        if self.ends_ns is None:
            if self.endpoint == "accounts" and now_ns - self.opened_ns >= ACCOUNTS_AUTH_NS:
                return [_session("authRequired", now_ns), Close(1008, "no authentication within 5 s")]
            return []
        left = self.ends_ns - now_ns
        if left <= 0:
            self.ends_ns = None
            self.opened_ns = now_ns
            expired: list[Step] = [_session("authExpired", now_ns)]
            return [*expired, Close(1008, "session expired")] if self.endpoint == "accounts" else expired
        if not self.warned and left <= self._knob("refresh_auth_ms", 300_000) * MS:
            self.warned = True
            return [_session("refreshAuth", now_ns, {"expiresIn": left // MS})]
        return []

    # -- subscriptions -------------------------------------------------------------------------------------------

    def _subscribe(self, items: list[dict[str, Any]], request_id: Any, now_ns: int) -> list[Step]:
        out: list[Step] = []
        for item in items:
            if self.endpoint == "accounts":
                topic = item.get("topic")
                if topic not in ("account", "pnl", "watchlist", "news") or topic in self._knob("refuse_topics", ()):
                    return [_error(f"unknown topic {topic}", request_id, now_ns)]
                if topic in ("account", "pnl") and not (item.get("accountId") or item.get("tradingAccountId")):
                    return [_error("account id is required", request_id, now_ns)]
                if item not in self.topics:
                    self.topics.append(item)
                if topic == "account":
                    out.append(self._account_snapshot(now_ns))
                continue
            symbol = item.get("symbol")
            if not isinstance(symbol, str) or not symbol or symbol in self._knob("refuse_symbols", ()):
                return [*out, _error("symbol not found", request_id, now_ns)]
            self.items[symbol] = self.items.get(symbol, {}) | item
            self.sent.pop(symbol, None)
            lines = self._lines(symbol, now_ns)
            if lines:
                out.append("\n".join(lines))
        if self._knob("acks", False):
            out.insert(0, json.dumps({"type": "response", "id": request_id, "payload": {"status": "ok"}}))
        return out

    def _unsubscribe(self, items: list[dict[str, Any]]) -> list[Step]:
        for item in items:
            if self.endpoint == "accounts":
                self.topics = [topic for topic in self.topics if topic != item]
                continue
            known = self.items.get(item.get("symbol", ""))
            if known is not None:
                left = {name: value for name, value in known.items() if name not in item or name == "symbol"}
                if left.keys() - {"symbol", "symbolType"}:
                    self.items[item["symbol"]] = left
                else:
                    del self.items[item["symbol"]]
        return []

    # -- data ----------------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> list[Step]:
        if self.ends_ns is None:
            return []
        self.steps += 1
        every = self._knob("error_every", 0)
        if every and self.steps % every == 0:
            return [_error("internal error", None, now_ns)]
        if self.endpoint == "accounts":
            return self._account_step(now_ns)
        if not self.items:
            return []
        symbols = list(self.items)
        lines: list[str] = []
        for extra in range(self.world.random.randint(1, self._knob("burst", 3))):
            lines += self._lines(symbols[(self.steps + extra) % len(symbols)], now_ns, one=True)
        return ["\n".join(lines) + "\n"] if lines else []

    def _lines(self, symbol: str, now_ns: int, one: bool = False) -> list[str]:
        """The messages of one symbol: everything subscribed to, or one of it."""
        item = self.items[symbol]
        if self.endpoint == "charts":
            return [self._chart(symbol, now_ns)]
        quoted, traded = "quoteFields" in item, "tradeFields" in item
        if not quoted and not traded:
            quoted, traded = symbol not in INDICES, True
        makers = []
        if quoted and symbol not in INDICES:
            makers += [self._quote, self._quote]  # quotes come more often than trades
        if traded or "timeAndSalesFields" in item:
            makers.append(self._trade)
        if item.get("level2"):
            makers.append(self._level2)
        if "greeksFields" in item:
            makers.append(self._greeks)
        if one:
            makers = [self.world.random.choice(makers)]
        return [line for maker in dict.fromkeys(makers) for line in maker(symbol, item, now_ns)]

    def _quote(self, symbol: str, item: dict[str, Any], now_ns: int) -> list[str]:
        random, mid = self.world.random, self.world.walk(symbol, 41_012)
        full = {
            "bidPrice": (mid - 1) / 100,
            "askPrice": (mid + 2) / 100,
            "bidSize": random.randint(1, 9) * 100,
            "askSize": random.randint(1, 9) * 100,
            "bidExchange": random.choice(VENUES),
            "askExchange": random.choice(VENUES),
        }
        before = self.sent.get(symbol, {})
        # only what changed is sent, as the provider's word "update" suggests
        changed = {name: value for name, value in full.items() if before.get(name) != value}
        self.sent[symbol] = full
        data = _chosen(changed | {"quoteTimestamp": _new_york(now_ns)}, item.get("quoteFields", "*"))
        return [_update("quote", symbol, data, now_ns)] if data.keys() - {"quoteTimestamp"} else []

    def _trade(self, symbol: str, item: dict[str, Any], now_ns: int) -> list[str]:
        if symbol in INDICES:
            level = self.world.walk(symbol, 560_122) / 100
            data = {"lastPrice": level, "openPrice": 5580.1, "highPrice": 5610.0, "lowPrice": 5571.4}
            return [_update("trade", symbol, data, now_ns)]
        random, state = self.world.random, self.world.state
        state["trade_seq"] = state.get("trade_seq", 0) + 1
        price = self.world.walk(symbol, 41_012) / 100
        state["volume"] = state.get("volume", 1_000_000) + 1
        fields: dict[str, Any] = {
            "size": random.randint(1, 500),
            "tradeExchange": random.choice(VENUES),
            "tradeTimestamp": _new_york(now_ns),
            "tradeSeq": state["trade_seq"],
        }
        out = []
        if "tradeFields" in item or "timeAndSalesFields" not in item:
            data = _chosen(
                {"lastPrice": price} | fields | {"totalVolume": state["volume"]}, item.get("tradeFields", "*")
            )
            out.append(_update("trade", symbol, data, now_ns))
        if "timeAndSalesFields" in item:
            out.append(_update("timeAndSales", symbol, {"price": price} | fields, now_ns))
        return out

    def _level2(self, symbol: str, item: dict[str, Any], now_ns: int) -> list[str]:
        random, mid = self.world.random, self.world.walk(symbol, 41_012)
        bids = [f"0:{(mid - 1 - level) / 100:.2f}:{random.randint(1, 20) * 100}" for level in range(5)]
        asks = [f"{random.randint(1, 20) * 100}:{(mid + 2 + level) / 100:.2f}:0" for level in range(5)]
        venue = f"{random.choice(VENUES)}:{(mid + 2) / 100:.2f}:100:{(mid - 1) / 100:.2f}:300"
        return [_update("level2", symbol, {"orderBook": bids + asks, "quotes": [venue]}, now_ns)]

    def _greeks(self, symbol: str, item: dict[str, Any], now_ns: int) -> list[str]:
        delta = self.world.random.randint(250, 400) / 1000
        data = {"delta": delta, "gamma": 0.008, "theta": -0.12, "vega": 0.55, "rho": 0.2, "impliedVolatility": 0.27}
        return [_update("greeks", symbol, data, now_ns)]

    def _chart(self, symbol: str, now_ns: int) -> str:
        """A charting event: the day's bar with bid and ask, or a quote and a trade part."""
        mid = self.world.walk(symbol, 41_012)
        envelope: dict[str, Any] = {"type": "event", "timestamp": iso(now_ns // MS * MS)}
        payload: dict[str, Any] = {"action": "update", "symbol": symbol}
        if self.world.random.random() < 0.5:
            payload["data"] = {
                "bid": (mid - 1) / 100,
                "ask": (mid + 2) / 100,
                "lp": mid / 100,
                "open_price": 408.0,
                "high_price": max(411.5, mid / 100),
                "low_price": min(407.2, mid / 100),
                "volume": 1_203_344,
                "ch": 2.3,
                "chp": 0.56,
            }
        else:
            trade = {"price": mid / 100, "size": self.world.random.randint(1, 500), "time": now_ns // MS}
            payload["data"] = {"quote": {"bid": (mid - 1) / 100, "ask": (mid + 2) / 100}, "trade": trade}
        return json.dumps(envelope | {"payload": payload})

    # -- the account ---------------------------------------------------------------------------------------------

    def _account_snapshot(self, now_ns: int) -> str:
        data = {
            "orders": [self._order("NEW", "0", now_ns)],
            "positions": [self._position("25")],
            "balance": self._balance(),
        }
        payload = {"action": "snapshot", "type": "account", "accountId": self._account_id(), "data": data}
        return json.dumps({"type": "event", "payload": payload | {"timestamp": now_ns // MS}})

    def _account_id(self) -> str:
        for topic in self.topics:
            found = topic.get("accountId") or topic.get("tradingAccountId")
            if found:
                return str(found)
        return ""

    def _account_step(self, now_ns: int) -> list[Step]:
        """One market event: an order goes on its way, with the position and balance that follow from a fill."""
        topics = {topic["topic"] for topic in self.topics}
        choices = []
        if "account" in topics:
            choices += [self._order_event] * 3
        if "pnl" in topics:
            choices.append(self._pnl_event)
        if "watchlist" in topics:
            choices.append(self._watchlist_event)
        if "news" in topics:
            choices.append(self._news_event)
        return ["\n".join(self.world.random.choice(choices)(now_ns)) + "\n"] if choices else []

    def _order_event(self, now_ns: int) -> list[str]:
        state, filled = (("PARTIALLY_FILLED", "4"), ("FILLED", "10"), ("NEW", "0"))[self.orders % 3]
        if state == "NEW":
            self.world.state["orders"] = self.world.state.get("orders", 100) + 1
        self.orders += 1
        out = [self._account_update("account.order", self._order(state, filled, now_ns), now_ns)]
        if state == "FILLED":
            out.append(self._account_update("account.position", self._position("35"), now_ns))
            out.append(self._account_update("account.balance", self._balance(), now_ns))
        return out

    def _pnl_event(self, now_ns: int) -> list[str]:
        interval = next(topic.get("interval", "1m") for topic in self.topics if topic["topic"] == "pnl")
        data = {"interval": interval, "open": "12.00", "high": "55.10", "low": "11.00", "close": "51.30"}
        return [self._account_update("pnl.candle", data | {"timestamp": now_ns // SECOND_NS // 60 * 60}, now_ns)]

    def _watchlist_event(self, now_ns: int) -> list[str]:
        return [_update("watchlist.update", None, {"id": 41, "name": "Core", "symbols": ["MSFT", "AAPL"]}, now_ns)]

    def _news_event(self, now_ns: int) -> list[str]:
        return [_update("news.update", None, {"headline": "A made-up headline", "symbols": ["MSFT"]}, now_ns)]

    def _account_update(self, kind: str, data: dict[str, Any], now_ns: int) -> str:
        payload = {"action": "update", "type": kind, "accountId": self._account_id(), "data": data}
        return json.dumps({"type": "event", "payload": payload | {"timestamp": now_ns // MS}})

    def _order(self, state: str, filled: str, now_ns: int) -> dict[str, Any]:
        number = self.world.state.get("orders", 100)
        return {
            "clOrdId": f"c-{number}",
            "ordId": f"o-{number}",
            "accountId": self._account_id(),
            "symbol": "MSFT",
            "securityType": "CS",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "DAY",
            "qty": "10",
            "price": "405.00",
            "stopPrice": "",
            "ordStatus": state,
            "cumQty": filled,
            "leavesQty": str(10 - int(filled)),
            "avgPrice": "404.98" if filled != "0" else "0",
            "ordRejReason": "",
            "text": "",
            "category": "SINGLE_LEG",
            "legs": [],
            "updatedAt": iso(now_ns // MS * MS),
        }

    def _position(self, quantity: str) -> dict[str, Any]:
        return {
            "accountId": self._account_id(),
            "symbol": "MSFT",
            "securityType": "CS",
            "quantity": quantity,
            "averagePrice": "404.99",
            "todayRealizedPnL": "0",
            "unrealizedPl": "51.30",
            "dailyPl": "51.30",
        }

    def _balance(self) -> dict[str, Any]:
        equity = self.world.walk("equity", 2_525_000) / 100
        return {
            "accountId": self._account_id(),
            "totalEquity": f"{equity:.2f}",
            "netBuyingPower": "50100.00",
            "settledFunds": "20000.00",
            "pendingOrdersCount": 1,
        }

    def jump(self) -> None:
        """The exchanges' numbers of prints jump; nothing on this feed is contiguous."""
        self.world.state["trade_seq"] = self.world.state.get("trade_seq", 0) + 3


def _accepts(world: World, token: str, now_ns: int) -> bool:
    issued: dict[str, int] = world.state.get("tokens", {})
    if token in issued:
        return issued[token] > now_ns and not any(key.startswith("\0") for key in world.keys)
    return world.accepts(token) and not world.knobs.get("only_issued", False)


def _chosen(data: dict[str, Any], fields: Any) -> dict[str, Any]:
    """Selective fields: a list of names or one name; `*` takes all."""
    names = [fields] if isinstance(fields, str) else fields
    return data if "*" in names else {name: value for name, value in data.items() if name in names}


def _new_york(now_ns: int) -> str:
    return iso((now_ns - NEW_YORK_NS) // MS * MS).removesuffix("Z") + "-04:00"


def _update(kind: str, symbol: str | None, data: Any, now_ns: int) -> str:
    payload: dict[str, Any] = {"action": "update", "type": kind}
    if symbol is not None:
        payload["symbol"] = symbol
    return json.dumps({"type": "event", "payload": payload | {"data": data, "timestamp": now_ns // MS}})


def _session(action: str, now_ns: int, data: dict[str, Any] | None = None) -> str:
    payload = {"action": action} | ({"data": data} if data else {}) | {"timestamp": now_ns // MS}
    return json.dumps({"type": "event", "payload": payload})


def _error(text: str, request_id: Any, now_ns: int) -> str:
    payload = {"action": "error", "error": text} | ({"id": request_id} if request_id else {})
    return json.dumps({"type": "event", "payload": payload | {"timestamp": now_ns // MS}})


def _market_status(now_ns: int) -> dict[str, Any]:
    return {
        "market": "open",
        "earlyHours": False,
        "afterHours": False,
        "exchanges": {"nasdaq": "open", "nyse": "open", "otc": "open"},
        "currencies": {"fx": "open", "crypto": "open"},
        "indicesGroups": {"dow_jones": "open", "nasdaq": "open", "s_and_p": "open"},
        "serverTime": iso(now_ns // MS * MS),
    }


def rest(world: World, method: str, path: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    """The token call; any refresh token is right until one was given out, from then on the newest alone."""
    if method != "POST" or path.partition("?")[0] != "/v1/oauth2/token":
        return Answer(404, b'{"error":"not_found"}')
    status = world.knobs.get("token_status", 200)
    if status != 200:
        extra = {"retry-after": str(world.knobs["retry_after"])} if "retry_after" in world.knobs else {}
        return Answer(status, b'{"error":"temporarily_unavailable"}', {"content-type": "application/json"} | extra)
    try:
        asked = json.loads(body)
        grant, refresh = asked["grant_type"], asked["refresh_token"]
    except (ValueError, KeyError, TypeError):
        return Answer(400, b'{"error":"invalid_request"}')
    state = world.state
    known = state.get("refresh_token")
    if grant != "refresh_token" or not asked.get("client_id") or not refresh or (known and refresh != known):
        return Answer(400, b'{"error":"invalid_grant","error_description":"refresh token unknown or used"}')
    number = state["refreshes"] = state.get("refreshes", 0) + 1
    life = world.knobs.get("token_secs", 3600)
    issued: dict[str, int] = state.setdefault("tokens", {})
    token = f"SIMULATED.ACCESS.{number}"
    issued[token] = now_ns + life * SECOND_NS
    while len(issued) > ISSUED_MAX:
        del issued[next(iter(issued))]
    answer: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "expires_in": life}
    if world.knobs.get("rotate", True):
        answer["refresh_token"] = state["refresh_token"] = f"SIMULATED.REFRESH.{number}"
        answer["refresh_token_expires_in"] = 2_592_000
    return Answer(200, json.dumps(answer).encode())


SIDE = SideSpec(AriesSide, rest=rest)
"""Aries, as SIDES holds it."""
