"""What the status topics tell of providers and relays. Pure."""

from typing import Any

from relay.model import Status

CONNECTIONS_MAX = 1_000
"""Labels remembered of one provider; they come from our own relay, so this is never reached but by a hostile bus."""

MISSED_NS = 12 * 3600 * 1_000_000_000
"""A relay that has written nothing for longer was taken away for good: its rows say so, the page raises no alarm."""
ENDED_BY = {"recovered": ("lost", "holding"), "topic_unblocked": ("topic_blocked",)}
"""Which `degraded` a `recovered` ends, where their codes differ."""
ENDLESS = frozenset({"redis_lost", "foreign_entries"})
"""Things that happened once: notices, no state that could end."""


class Health:
    """One provider as one relay speaks of it."""

    def __init__(self, name: str, relay: str, space: str) -> None:
        self.name, self.relay, self.space = name, relay, space
        self.run = self.last_ns = self.since_ns = self.down_ns = 0
        self.connections: dict[str, bool] = {}
        self.event = self.text = self.action = ""
        self.given_up = False
        self.quota_until: int | None = None
        self.quota = False
        self.gaps = self.missing = self.rows = self.stale = 0
        self.stale_told = -1
        self.market = self.market_text = ""
        self.markets: dict[str, tuple[str, str]] = {}
        """What was said last of each raw symbol's market: `closed`, `halted` or empty, and in words."""

    @property
    def up(self) -> bool:
        """Whether a connection is open, or none was ever spoken of."""
        return not self.connections or any(self.connections.values())

    def why(self) -> str:
        """Say in words what keeps it from being connected."""
        return " - ".join(filter(None, (self.text or "not connected", self.action)))

    def take(self, status: Status) -> None:
        """Take one status of this provider."""
        if status.run > self.run:
            self.run = status.run
            self.connections.clear()
            self.given_up = self.quota = False
        text = status.text or ""
        match status.event:
            case "opened":
                if len(self.connections) < CONNECTIONS_MAX:
                    self.connections[status.code or ""] = True
                self.given_up = False
            case "closed":
                self._closed(status, text)
            case "refused":
                if status.action and status.channel is None and status.raw_symbol is None and status.topic is None:
                    self._closed(status, text)
                    self.given_up = status.action == "not tried again"
                return
            case "quota":
                self.quota, self.quota_until = True, status.until
            case "gap":
                self.gaps += 1
                self.missing += status.missing or 0
                return
            case "authenticated" | "subscribed" | "handover" | "renewed" | "recovered":
                self.quota = False
            case _:
                return
        self.event, self.text, self.action = status.event, text, status.action or ""
        self.since_ns = status.ts_recv

    def _closed(self, status: Status, text: str) -> None:
        label = text.partition(": ")[0]
        known = label if label in self.connections else status.code or ""
        if known in self.connections or not self.connections:
            self.connections[known if known in self.connections else label] = False
        self.given_up = status.action == "not tried again"
        self.event, self.text, self.action, self.since_ns = "closed", text, status.action or "", status.ts_recv
        if not self.up:
            self.down_ns = status.ts_recv

    def state(self, relay: "RelayState") -> str:
        """Give one word: how this provider is."""
        if relay.alive is False:
            return "no relay"
        if self.given_up and not any(self.connections.values()):
            return "given up"
        if not self.up:
            return "closed"
        if self.quota:
            return "quota"
        if self.connections and not all(self.connections.values()):
            return "partly"
        return "open" if self.connections else "unknown"

    def view(self, relay: "RelayState") -> dict[str, Any]:
        """What the page shows of it."""
        return {
            "name": self.name,
            "relay": self.relay,
            "space": self.space,
            "state": self.state(relay),
            "connections": len(self.connections),
            "open": sum(self.connections.values()),
            "event": self.event,
            "text": " - ".join(filter(None, (self.text, self.action))),
            "since": self.since_ns // 1_000_000,
            "until": (self.quota_until or 0) // 1_000_000 if self.quota else 0,
            "gaps": self.gaps,
            "missing": self.missing,
            "rows": self.rows,
            "stale": self.stale,
            "market": self.market,
        }


class RelayState:
    """One relay: whether it lives, which run, and what it says of itself."""

    def __init__(self, name: str, space: str) -> None:
        self.name, self.space = name, space
        self.run = self.down_ns = self.last_ns = 0
        self.alive: bool | None = None
        """Whether it holds its lease; None: not asked yet."""
        self.degraded: dict[tuple[str, str], str] = {}
        self._degraded_run = 0

    def take(self, status: Status) -> None:
        """Take one status of the relay itself."""
        if status.run != self._degraded_run:
            self._degraded_run = status.run
            self.degraded.clear()
        code, topic = status.code or "", status.topic or ""
        if status.event == "degraded" and code not in ENDLESS and len(self.degraded) < CONNECTIONS_MAX:
            self.degraded[code, topic] = status.text or "degraded"
        elif status.event == "recovered":
            for ended in ENDED_BY.get(code, (code,)):
                self.degraded.pop((ended, topic), None)
        elif status.event == "stopped":
            self.degraded.clear()

    def view(self, now_ns: int) -> dict[str, Any]:
        """What the page shows of it. `missed`: it is away and was here lately, so somebody is to know."""
        return {
            "name": self.name,
            "space": self.space,
            "alive": self.alive is not False,
            "missed": self.alive is False and now_ns - self.last_ns < MISSED_NS,
            "run": self.run,
            "degraded": list(self.degraded.values())[:5],
        }
