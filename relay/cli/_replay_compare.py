"""`relay replay --diff`: what comes is compared with what was published, as streams or lines of a file hold it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Protocol

import click
import msgspec

from relay.cli._replay_redis import entries, listed
from relay.codec import decode_line
from relay.difference import Difference, Entry
from relay.errors import RelayError
from relay.model import ACCOUNT_CHANNELS, ACCOUNT_MESSAGES
from relay.outbox import order
from relay.player import Message
from relay.replay import ReplayTopic

if TYPE_CHECKING:
    import sqlite3

CHUNK = 500
"""Made messages of a topic that are compared at once."""
WAITING_MAX = 50_000
"""Made messages of all topics that wait to be compared."""


_ACCOUNT_TYPES = frozenset(str(cls.__struct_config__.tag) for cls in ACCOUNT_MESSAGES)


class _Kind(msgspec.Struct):
    type: str = ""
    channel: str | None = None
    run: int = 0


_decode = msgspec.json.Decoder(_Kind).decode


class Published(Protocol):
    """What was published at the time."""

    wants: Callable[[str, bytes], bool]
    """Which of it counts, by topic and bytes."""

    def names(self) -> Iterable[str]:
        """Its topics."""

    def entries(self, name: str, start_ms: int, end_ms: int) -> Iterable[Entry]:
        """Give the entries of one topic from one millisecond to another, both included, in order."""

    def first_kept(self, name: str) -> tuple[int, int] | None:
        """The oldest entry of a topic whose older ones are gone; None where it has all."""

    def close(self) -> None:
        """Nothing more is asked."""


class Streams:
    """Published: what the streams of these relays hold."""

    def __init__(self, client: Any, prefix: str, relays: set[str]) -> None:
        self.wants: Callable[[str, bytes], bool] = lambda name, body: True
        self._client = client
        self._known = [n for n, fields in listed(client, prefix).items() if fields.get("relay") in relays]

    def names(self) -> Iterable[str]:
        return self._known

    def entries(self, name: str, start_ms: int, end_ms: int) -> Iterable[Entry]:
        found = entries(self._client, name, str(start_ms), str(end_ms))
        return (entry for entry in found if self.wants(name, entry[1]))

    def first_kept(self, name: str) -> tuple[int, int] | None:
        import redis

        try:
            info = self._client.xinfo_stream(name)
        except redis.exceptions.ResponseError:
            return None  # there is no such stream
        length, added = _field(info, "length"), _field(info, "entries-added")
        if not length or added is None or added <= length:
            return None
        ((entry_id, _),) = self._client.xrange(name, count=1)
        return order(entry_id.decode())

    def close(self) -> None:
        return


class Lines:
    """Published: what a file of lines (`relay.codec.Line`) holds, in any order; a line that stands twice counts once.

    Kept in a database on disk that goes with the process: the file may be larger than memory, or a pipe.

    Raises:
        RelayError: at the first use, where a line is none.
    """

    def __init__(self, path: str) -> None:
        """`path`: of a file; `-` for standard input."""
        self.wants: Callable[[str, bytes], bool] = lambda name, body: True
        self._name = path
        self._topics: dict[str, None] = {}
        self._database: sqlite3.Connection | None = None

    def names(self) -> Iterable[str]:
        self._loaded()
        return self._topics

    def entries(self, name: str, start_ms: int, end_ms: int) -> Iterable[Entry]:
        query = "SELECT ms, seq, body FROM entry WHERE topic = ? AND ms BETWEEN ? AND ? ORDER BY ms, seq"
        return ((f"{ms}-{seq}", body) for ms, seq, body in self._loaded().execute(query, (name, start_ms, end_ms)))

    def first_kept(self, name: str) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _loaded(self) -> "sqlite3.Connection":
        if self._database is None:
            import sqlite3

            self._database = database = sqlite3.connect("")
            database.execute(
                "CREATE TABLE entry (topic TEXT, ms INTEGER, seq INTEGER, body BLOB, PRIMARY KEY (topic, ms, seq)) "
                "WITHOUT ROWID"
            )
            try:
                with database, click.open_file(self._name, "rb") as file:
                    database.executemany("INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?)", self._rows(file))
            except sqlite3.Error as error:  # the disk of temporary files is full
                raise RelayError(f"{self._name}: its lines could not be kept while comparing: {error}") from None
        return self._database

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[str, int, int, bytes]]:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = decode_line(text)
                ms, seq = order(line.id)
            except (msgspec.MsgspecError, ValueError):
                raise RelayError(
                    f"{self._name}:{number}: not a line of `relay replay --stdout --topics` or of "
                    "`relay tail --json --topics` ({topic, id, message})"
                ) from None
            body = bytes(line.message)
            if self.wants(line.topic, body):
                self._topics[line.topic] = None
                yield line.topic, ms, seq, body


class DiffTarget:
    """Compares what comes with what was published, chunk by chunk, so that memory stays small.

    Only entries of the replayed runs count, and none whose number was set aside.
    """

    def __init__(self, published: Published, runs: Mapping[int, bool]) -> None:
        """`runs`: the replayed ones, and whether accounts were recorded; where not, they are not compared."""
        self.difference = Difference()
        self.left_out = False
        """Something of accounts was not compared."""
        self.wants: Callable[[str, bytes], bool] = lambda name, body: True
        self._published = published
        published.wants = self._counts
        self._marks = {b'"run":%d' % run: accounts for run, accounts in runs.items()}
        self._made: dict[str, list[Entry]] = defaultdict(list)
        self._waiting = 0  # of what was made
        self._from_ms: dict[str, int] = {}
        self._aside: dict[str, set[tuple[int, int]]] = defaultdict(set)
        self.start_ms, self.end_ms = 0, 1 << 62

    def _counts(self, name: str, body: bytes) -> bool:
        """Tell whether a message is compared."""
        head = body[:400]
        accounts = next((accounts for mark, accounts in self._marks.items() if mark in head), None)
        if accounts is None or not self.wants(name, body):
            return False
        if not accounts and _is_of_accounts(body):
            self.left_out = True
            return False
        return True

    def set_aside(self, run: int, topic: ReplayTopic, first: int, last: int) -> None:
        """Take note of numbers of a run whose statuses had a cause that no replay knows."""
        self._aside[topic.name].update((run, number) for number in range(first, last + 1))

    def take(self, messages: list[Message]) -> None:
        for topic, entry_id, body in messages:
            if (topic.kind in ACCOUNT_CHANNELS or topic.kind == "status") and not self._counts(topic.name, body):
                continue
            made = self._made[topic.name]
            if len(made) >= CHUNK and (ms := order(entry_id)[0]) != order(made[-1][0])[0]:
                self._compare(topic.name, ms - 1)
                made = self._made[topic.name]
            made.append((entry_id, body))
            self._waiting += 1
        if self._waiting > WAITING_MAX:
            self._compare_all(order(messages[-1][1])[0] - 1)

    def flush(self) -> None:
        return

    async def room(self) -> None:
        return

    async def finish(self) -> None:
        self._compare_all(self.end_ms, whole=True)
        self._published.close()

    def _compare_all(self, end_ms: int, *, whole: bool = False) -> None:
        for name in dict.fromkeys([*self._made, *self._published.names()]):
            self._compare(name, end_ms, whole=whole)

    def _compare(self, name: str, end_ms: int, *, whole: bool = False) -> None:
        """Compare one topic until a millisecond; `whole`: with all that was made of it."""
        made, later = self._made[name], []
        while made and not whole and order(made[-1][0])[0] > end_ms:
            later.append(made.pop())
        self._made[name] = later[::-1]
        self._waiting -= len(made)
        start_ms = self._from_ms.get(name, self.start_ms)
        self._from_ms[name] = end_ms + 1
        first = self._published.first_kept(name)
        aside = self._aside.get(name, ())
        published = [
            (entry_id, body)
            for entry_id, body in self._published.entries(name, start_ms, end_ms)
            if not aside or (_kind(body).run, order(entry_id)[1]) not in aside
        ]
        if first:
            kept = [entry for entry in made if order(entry[0]) >= first]
            self.difference.topics[name].unknown += len(made) - len(kept)
            made = kept
        if made or published:
            self.difference.compare(name, made, published)


def _kind(body: bytes) -> _Kind:
    try:
        return _decode(body)
    except msgspec.MsgspecError:  # written by somebody else
        return _Kind()


def _is_of_accounts(body: bytes) -> bool:
    kind = _kind(body)
    return kind.type in _ACCOUNT_TYPES or kind.channel in ACCOUNT_CHANNELS


def _field(info: Any, name: str) -> Any:
    return info.get(name, info.get(name.encode()))
