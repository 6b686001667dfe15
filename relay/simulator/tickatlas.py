"""TickAtlas's own side: in-band login, complete subscribe lists, one-minute candles, heartbeats, credits.

Knobs: `plan` (pro), `max_symbols` (25), `credits_per_push` (4), `quota` (credits at login, None: unlimited),
`quota_after` (pushes until quota_exceeded), `forbidden`, `connection_limit` (refuse that many logins first).
"""

import json
from collections.abc import Mapping
from typing import Any

from relay.simulator.base import Close, Refuse, SideSpec, Step, World
from relay.times import iso

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
AUTH_NS = 10 * SECOND_NS
HEARTBEAT_NS = 30 * SECOND_NS
SYMBOLS_MAX_CHARS = 20


class TickAtlasSide:
    """The server's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world = world
        self.authenticated = False
        self.opened_ns = self.beat_ns = 0
        self.active: list[str] = []
        self.turn = 0
        self.pushes = 0
        self.paused = False

    def upgrade(self) -> Refuse | None:
        return None

    def opened(self, now_ns: int) -> list[Step]:
        self.opened_ns = self.beat_ns = now_ns
        return []

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        try:
            message = json.loads(data)
            action = message["action"]
        except (ValueError, KeyError, TypeError):
            return [_error("bad_request", "not understood")]
        if action == "auth":
            return self._login(message)
        if not self.authenticated:
            return [_error("invalid_key", "log in first"), Close(1008, "not authenticated")]
        if action == "subscribe":
            limit = self._knob("max_symbols", 25)
            for symbol in message.get("symbols", []):
                if isinstance(symbol, str) and 0 < len(symbol) <= SYMBOLS_MAX_CHARS and symbol not in self.active:
                    self.active.append(symbol)
            self.active = self.active[:limit]
            return [self._list("subscribed")]
        if action == "unsubscribe":
            self.active = [s for s in self.active if s not in message.get("symbols", [])]
            return [self._list("unsubscribed")]
        if action == "ping":
            return [json.dumps({"type": "pong"})]
        return [_error("bad_request", f"unknown action {action}")]

    def _knob(self, name: str, default: Any) -> Any:
        return self.world.knobs.get(name, default)

    def _list(self, kind: str) -> str:
        return json.dumps({"type": kind, "symbols": self.active, "total_subscribed": len(self.active)})

    def _login(self, message: dict[str, Any]) -> list[Step]:
        if self._knob("forbidden", False):
            return [_error("forbidden", "plan has no streaming"), Close(1008)]
        if self.world.state.get("limited", 0) < self._knob("connection_limit", 0):
            self.world.state["limited"] = self.world.state.get("limited", 0) + 1
            return [_error("connection_limit", "two connections already open"), Close(1008)]
        key = message.get("key", message.get("api_key", ""))
        if not isinstance(key, str) or not self.world.accepts(key):
            return [_error("invalid_key", "key unknown"), Close(1008)]
        self.authenticated = True
        answer = {
            "type": "authenticated",
            "plan": self._knob("plan", "pro"),
            "max_symbols": self._knob("max_symbols", 25),
            "credits_per_push": self._knob("credits_per_push", 4),
            "daily_quota_remaining": self._knob("quota", 98_760),
        }
        return [json.dumps(answer)]

    def step(self, now_ns: int) -> list[Step]:
        if not self.active or self.paused:
            return []
        if self.pushes >= self._knob("quota_after", 1 << 62):
            self.paused = True
            return [_error("quota_exceeded", "daily credits used up, resuming at midnight UTC")]
        self.pushes += 1
        self.turn += 1
        symbol = self.active[self.turn % len(self.active)]
        walk = [self.world.walk(symbol, 108_500) for _ in range(4)]
        first, last = walk[0], walk[-1]
        bid, ask = last - 4, last + 4
        data = {
            "symbol": symbol,
            "time": iso(now_ns // MINUTE_NS * MINUTE_NS - MINUTE_NS),
            "open": _price(first),
            "high": _price(max(walk)),
            "low": _price(min(walk)),
            "close": _price(last),
            "bid": _price(bid),
            "ask": _price(ask),
            "spread": 0.8,
            "volume": self.world.random.randint(50, 900),
        }
        return [json.dumps({"type": "quote", "data": data})]

    def tick(self, now_ns: int) -> list[Step]:
        if not self.authenticated and now_ns - self.opened_ns > AUTH_NS:
            return [_error("auth_timeout", "no auth message received in time"), Close(1008)]
        if now_ns - self.beat_ns >= HEARTBEAT_NS:
            self.beat_ns = now_ns
            return [json.dumps({"type": "heartbeat"})]
        return []

    def jump(self) -> None:
        """Nothing is numbered on this feed: a lost push cannot be seen."""


def _price(ticks: int) -> float:
    return ticks / 100_000


def _error(code: str, message: str) -> str:
    return json.dumps({"type": "error", "code": code, "message": message})


SIDE = SideSpec(TickAtlasSide)
"""TickAtlas, as SIDES holds it."""
