"""What a reader's logic asks its driver to do, one step at a time; the logic itself touches no socket.

`reading` and `sharing` are generators of these steps, so that the asyncio client and its sync twin share every
decision. A driver answers a step by sending its result, or throws `Lost` (the connection broke) or `Refused` (an error
reply).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from relay.client.items import Gap, Item

BLOCK_SECS = 2.0
"""Longest wait inside a command; below redis-py's default socket time-out of 5 s, which would break the connection."""
DISCOVER_SECS = 1.0
"""New topics are looked for this often (HLEN; the names are read only when their number has changed)."""
DISCOVER_ANYWAY_SECS = 30.0
"""The names are read this often even so: one topic may have come for another."""


class Connect(NamedTuple):
    """Open the connection for commands, in place of any that was open."""


class Call(NamedTuple):
    """One command; `wait`: how long the server may hold its answer."""

    args: tuple[Any, ...]
    wait: float = 0.0


class Calls(NamedTuple):
    """Commands sent together; the result has a reply each, a Refused in the place of a refused one.

    Of a cluster also a Lost, where one node is away and the others are not.
    """

    commands: list[tuple[Any, ...]]


class Subscribe(NamedTuple):
    """Add to what the second connection listens to (it is opened where it is not)."""

    channels: tuple[str, ...]
    patterns: tuple[str, ...]


class Receive(NamedTuple):
    """Wait for published messages; gives [(channel, data), ...], empty when none came in time."""

    secs: float


class Emit(NamedTuple):
    """Hand out: (what, topic, id, run) each; the cursor goes to (topic, id, run) just before. Gives the number that
    was surely handled: all, where the loop has asked for more."""

    out: list[tuple[Item | Gap, str, str, int]]


class Pause(NamedTuple):
    """Wait before the next try; `why`: the loss that it follows."""

    secs: float
    why: str


Step = Connect | Call | Calls | Subscribe | Receive | Emit | Pause
Steps = Generator[Step, Any, None]


class Lost(Exception):
    """The connection broke, or did not come about."""


class Ended(Exception):
    """Thrown by a driver whose loop was left: `handled` of the last Emit were surely worked on."""

    def __init__(self, handled: int) -> None:
        super().__init__(handled)
        self.handled = handled


def order(id: str) -> tuple[int, int]:
    """Give an entry id as two numbers, to compare."""
    ms, _, seq = id.partition("-")
    return int(ms), int(seq or 0)


def backoff(tries: int) -> float:
    """Give the pause before a try: at once first, then doubled up to 2 s. A relay's readers are few; no jitter."""
    return 0.0 if tries == 0 else min(0.05 * 2 ** min(tries, 10), 2.0)


class Topics:
    """Which topics are meant: names and globs, and what `relay:topics` lists."""

    def __init__(self, patterns: Iterable[str], prefix: str) -> None:
        wanted = [prefix + pattern for pattern in patterns]
        if not wanted:
            raise ValueError("name at least one topic, such as 'quotes.*'")
        self.names = tuple(dict.fromkeys(name for name in wanted if not set(name) & set("*?[")))
        self.globs = tuple(dict.fromkeys(name for name in wanted if set(name) & set("*?[")))
        self._matches = [re.compile(fnmatch.translate(glob)).match for glob in self.globs]
        # a relay whose providers are all simulated keeps its list under sim., beside that of live ones
        self._lists = (f"{prefix}relay:topics", f"sim.{prefix}relay:topics")
        self._sizes: list[Any] = []
        self._next = self._next_anyway = 0.0

    @property
    def redis_globs(self) -> tuple[str, ...]:
        """The globs as PSUBSCRIBE writes them."""
        return tuple(glob.replace("[!", "[^") for glob in self.globs)

    def match(self, name: str) -> bool:
        """Tell whether a name is meant."""
        return name in self.names or any(match(name) for match in self._matches)

    def find(self, now: float) -> Generator[Step, Any, list[str]]:
        """Give the names that are there now: all at the first time, later nothing where nothing has changed."""
        first = not self._next
        if not first and (not self.globs or now < self._next):
            return []
        self._next = now + DISCOVER_SECS
        listed: list[str] = [*self.names] if first else []
        if self.globs:
            replies = yield Calls([("HLEN", key) for key in self._lists])
            if isinstance(replies[0], Lost) and not first:
                return []  # the node of the list is away; the topics that are known go on
            sizes = [reply if isinstance(reply, int) else None for reply in replies]
            if sizes != self._sizes or now >= self._next_anyway:
                self._next_anyway = now + DISCOVER_ANYWAY_SECS
                replies = yield Calls([("HKEYS", key) for key in self._lists])
                if isinstance(replies[0], Lost) and not first:
                    self._sizes = []
                    return []
                if isinstance(
                    replies[0], Exception
                ):  # the other list is an offer: who may not read it has no use for it
                    raise replies[0]
                names = (name.decode() for reply in replies if isinstance(reply, list) for name in reply)
                listed += sorted({name for name in names if self.match(name)} - set(self.names))
                self._sizes = sizes
        return listed

    def forget(self) -> None:
        """Look for all of them again, after a reconnect."""
        self._next = self._next_anyway = 0.0
        self._sizes = []


def entries_of(reply: Any) -> list[tuple[str, list[tuple[str, bytes | None]]]]:
    """Turn the reply of XREAD or XREADGROUP into [(topic, [(id, data), ...])]; data None: the entry is gone."""
    return [(topic.decode(), rows_of(rows)) for topic, rows in reply or ()]


def rows_of(rows: Any) -> list[tuple[str, bytes | None]]:
    """Turn the reply of XRANGE into [(id, data)]; data is the field `data`, empty where there is none."""
    return [
        (id.decode(), None if fields is None else fields[1] if fields[:1] == [b"data"] else _data(fields))
        for id, fields in rows or ()
    ]


def _data(fields: list[bytes]) -> bytes:
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(b"data", b"")
