"""What the table consists of: rows, and the lines that feed them. Pure.

A row is one thing of one source: a provider's raw symbol, as one relay publishes it. A line is what one channel says of
it (its quotes, its one-minute bars).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from relay.dashboard.health import Health
from relay.model import Header

Mark = Literal["live", "fallback", "old", "stale", "closed", "halted", "offline", "waiting", "no relay", "no redis"]
"""Why a price is not live, the weightiest reason; `old`: past the age limit without the relay having said so."""
PRICED = ("quotes", "trades", "rates", "bars")
"""Channels that give a row its price, the first that it has."""
BADGES: Mapping[str | None, str] = {
    None: "",
    "simulated": "sim",
    "rest": "REST",
    "backfill": "backfill",
    "replay": "replay",
}

RowKey = tuple[str, str, str, str]
"""Space, relay, provider, raw symbol."""


class TopicInfo(NamedTuple):
    """One entry of `relay:topics`. `space`: the prefix under which it is listed."""

    name: str
    kind: str
    provider: str
    relay: str
    space: str


class Line:
    """One channel of a row."""

    __slots__ = ("channel", "gap_ns", "gap_text", "last_ns", "origin", "param", "run", "stale", "stale_text", "topic")

    def __init__(self, channel: str, param: str, topic: str) -> None:
        self.channel, self.param, self.topic = channel, param, topic
        self.last_ns = self.run = self.gap_ns = 0
        self.origin: str | None = None
        self.stale = False
        self.stale_text = self.gap_text = ""


class Row:
    """One line of the table."""

    __slots__ = (
        "ask", "ask_size", "bid", "bid_size", "cache", "decimals", "gaps", "health", "id", "info", "key", "last",
        "last_what",
        "lines", "mark", "market", "market_text", "name", "raw", "recent_gap", "symbol", "venue", "version", "why",
    )  # fmt: skip

    def __init__(self, id: int, key: "RowKey", info: TopicInfo, message: Header, health: Health) -> None:
        self.id, self.key, self.info, self.health = id, key, info, health
        self.symbol = message.symbol or message.raw_symbol or info.name
        self.raw, self.venue = message.raw_symbol or "", message.venue or ""
        self.name = ""
        self.bid: str | None = None
        self.ask: str | None = None
        self.bid_size: str | None = None
        self.ask_size: str | None = None
        self.last: str | None = None
        self.last_what = ""
        self.decimals = 0
        self.lines: dict[tuple[str, str], Line] = {}
        self.market, self.market_text = "", ""
        self.gaps = 0
        self.mark: Mark = "live"
        self.why = ""
        self.recent_gap = False
        self.version = 0  # of what does not change with a price
        self.cache: bytes | None = None

    def line(self, channel: str, param: str, topic: str) -> Line:
        """Give the line of a channel, made where it is new."""
        found = self.lines.get((channel, param))
        if found is None:
            found = self.lines[channel, param] = Line(channel, param, topic)
            self.version += 1
        found.topic = topic
        return found

    def main(self) -> Line | None:
        """Give the line that the shown price comes from."""
        for wanted in PRICED:
            for (channel, _), line in self.lines.items():
                if channel == wanted and line.last_ns:
                    return line
        return None

    def values(self) -> list[Any]:
        """What changes with a price, as the page takes it: the order is `VALUES` in table.js."""
        line = self.main()
        badge = BADGES.get(line.origin if line else None, "")
        return [
            self.id, self.bid, self.ask, self.last, self.last_what, (line.last_ns if line else 0) // 1_000_000,
            self.mark, self.why, badge, int(self.recent_gap), self.bid_size, self.ask_size, self.gaps, self.decimals,
        ]  # fmt: skip

    def encoded(self) -> bytes:
        """`values` as JSON, made once a change."""
        if self.cache is None:
            self.cache = msgspec.json.encode(self.values())
        return self.cache

    def about(self) -> dict[str, Any]:
        """What does not change with a price."""
        return {
            "id": self.id,
            "symbol": self.symbol,
            "name": self.name,
            "provider": self.info.provider,
            "venue": self.venue,
            "raw": self.raw,
            "relay": self.info.relay,
            "space": self.info.space,
            "channels": sorted({f"{c} {p}".strip() for c, p in self.lines}),
        }
