"""The simulator's contract: a provider's own side of one WebSocket connection, sans-IO.

A side is pure: time and randomness are handed in (`World.random`), what it wants sent it returns. The server
(`relay/simulator/server.py`) does the IO, keeps the rate and plays the faults. REST calls that a provider's client
makes are answered by the side's module too (`SideSpec.rest`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, Protocol


class Close(NamedTuple):
    """Close the connection with this code."""

    code: int
    reason: str = ""


Step = str | bytes | Close
"""One thing the server does: send a text message, send a binary message, close."""


class Refuse(NamedTuple):
    """Refuse the upgrade with this HTTP answer."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Answer(NamedTuple):
    """An HTTP answer to a REST call."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {"content-type": "application/json"}


@dataclass
class World:
    """What all connections to one simulated provider share: the walk of each symbol's price, keys, knobs.

    `knobs` are a side's own switches for tests (`{"quota_after": 10}`); the side's docstring lists them.
    `keys`: accepted API keys; empty: any non-empty key is right.
    """

    random: Random
    keys: frozenset[str] = frozenset()
    knobs: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    """A side's own state that outlives connections (trade ids, order state)."""
    _mids: dict[str, int] = field(default_factory=dict)

    def accepts(self, key: str) -> bool:
        """Tell whether a key is right."""
        return key in self.keys if self.keys else bool(key)

    def walk(self, symbol: str, start: int = 1_000_000) -> int:
        """Step this symbol's mid price, an integer of ticks, and give it; never below 100."""
        mid = self._mids.get(symbol)
        mid = start if mid is None else max(100, mid + self.random.choice((-3, -2, -1, -1, 0, 0, 1, 1, 2, 3)))
        self._mids[symbol] = mid
        return mid


class Side(Protocol):
    """The provider's end of one connection."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        """`path`: the request path with its query, without the provider's first segment. Header names in lower case."""

    def upgrade(self) -> Refuse | None:
        """Refuse the upgrade, or None to accept it."""

    def opened(self, now_ns: int) -> list[Step]: ...
    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        """Answer one message of the client."""

    def step(self, now_ns: int) -> list[Step]:
        """Give one more data message (or the few of one market event) of what is subscribed; [] when nothing is."""

    def tick(self, now_ns: int) -> list[Step]:
        """Called some four times a second: heartbeats, deadlines, what is due."""

    def jump(self) -> None:
        """Lose what would come next: the numbers of the following messages jump (a gap)."""


@dataclass(frozen=True)
class SideSpec:
    """One entry of SIDES: a provider's side of the wire."""

    side: Callable[[World, str, Mapping[str, str]], Side]
    subprotocols: tuple[str, ...] = ()
    rest: Callable[[World, str, str, Mapping[str, str], bytes, int], Answer] | None = None
    """`rest(world, method, path_with_query, headers, body, now_ns)` answers a REST call."""
