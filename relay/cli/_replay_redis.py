"""What `relay replay` asks of Redis before and beside the writing: is a prefix free, what was published."""

import fnmatch
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from relay.difference import Difference, Entry
from relay.player import Message, Step, merged
from relay.replay import ReplayTopic

CHUNK = 500
PREFIX_OF_REPLAYS = "replay."


def check_place(client: Any, prefix: str, replace: bool) -> str:
    """Say why a replay cannot go under a prefix, or give "" after making room for it."""
    match = f"{_escaped(prefix)}*"
    if next(client.scan_iter(f"{_escaped(prefix)}relay:lease:*", count=1000), None) is not None:
        return f"a relay or another replay is writing under {prefix!r} now"
    first = next(client.scan_iter(match, count=1000), None)
    if first is None:
        return ""
    if not replace:
        return f"{prefix!r} holds keys already (such as {first.decode(errors='replace')!r}); --replace deletes them"
    if not prefix.startswith(PREFIX_OF_REPLAYS):
        return f"--replace deletes only what begins with {PREFIX_OF_REPLAYS!r}, not {prefix!r}"
    batch: list[bytes] = []
    for key in client.scan_iter(match, count=1000):
        batch.append(key)
        if len(batch) >= CHUNK:
            client.unlink(*batch)
            batch.clear()
    if batch:
        client.unlink(*batch)
    return ""


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in text)


def listed(client: Any, prefix: str) -> dict[str, dict[str, Any]]:
    """All topics that relays have listed: name to kind, provider, relay."""
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(("relay:topics", "sim.relay:topics", f"{prefix}relay:topics")):
        for name, text in client.hgetall(key).items():
            try:
                fields = json.loads(text)
            except ValueError:
                continue
            found[name.decode(errors="replace")] = fields if isinstance(fields, dict) else {}
    return found


# -- playing streams -----------------------------------------------------------------------------------------------


def stream_steps(
    client: Any,
    prefix: str,
    globs: Sequence[str],
    relay: str,
    put: Callable[[ReplayTopic, str, bytes], None],
    from_ns: int,
    to_ns: int | None,
) -> tuple[Iterator[Step], int]:
    """Steps of the entries of streams, in one time order, and the number of streams."""
    known = listed(client, prefix)
    names = [n for n in known if any(fnmatch.fnmatchcase(n, g) for g in globs)]
    names += [g for g in globs if not set(g) & set("*?[") and g not in names and client.exists(g)]
    topics = [
        ReplayTopic(relay, name, str(known.get(name, {}).get("kind", "")), str(known.get(name, {}).get("provider", "")))
        for name in names
    ]
    start = f"{from_ns // 1_000_000}"
    end = "+" if to_ns is None else f"{to_ns // 1_000_000}"
    return merged([_stream(client, topic, put, start, end) for topic in topics] or [iter(())]), len(topics)


def _stream(
    client: Any, topic: ReplayTopic, put: Callable[[ReplayTopic, str, bytes], None], start: str, end: str
) -> Iterator[Step]:
    def apply(entry: tuple[str, bytes], now_ns: int) -> None:
        put(topic, *entry)

    for entry_id, body in _entries(client, topic.name, start, end):
        yield _received_ns(entry_id, body), apply, (entry_id, body)


def _received_ns(entry_id: str, body: bytes) -> int:
    at = body.find(b'"ts_recv":')
    if at >= 0:
        digits = body[at + 10 : at + 30]
        for index, char in enumerate(digits):
            if not 48 <= char <= 57:
                return int(digits[:index] or b"0")
    return int(entry_id.split("-")[0]) * 1_000_000


def _entries(client: Any, name: str, start: str, end: str) -> Iterator[Entry]:
    while True:
        chunk = client.xrange(name, start, end, count=CHUNK)
        for entry_id, fields in chunk:
            yield entry_id.decode(), fields.get(b"data", b"")
        if len(chunk) < CHUNK:
            return
        start = f"({chunk[-1][0].decode()}"


# -- comparing -----------------------------------------------------------------------------------------------------


class DiffTarget:
    """Compares what comes with what the streams hold, chunk by chunk, so that memory stays small.

    Only entries of the replayed `runs` count, and none whose number was set aside.
    """

    def __init__(self, client: Any, prefix: str, runs: set[int], relays: set[str]) -> None:
        self.difference = Difference()
        self.wants: Callable[[str, bytes], bool] = lambda name, body: True
        self._client = client
        self._marks = tuple(b'"run":%d' % run for run in runs)
        self._made: dict[str, list[Entry]] = defaultdict(list)
        self._from_ms: dict[str, int] = {}
        self._trimmed: dict[str, int] = {}
        self._aside: dict[str, set[int]] = defaultdict(set)
        self._known = [n for n, fields in listed(client, prefix).items() if fields.get("relay") in relays]
        self.start_ms: int | None = None
        self.end_ms: int | None = None

    def set_aside(self, topic: ReplayTopic, first: int, last: int) -> None:
        """Take note of numbers whose statuses had a cause that no replay knows."""
        self._aside[topic.name].update(range(first, last + 1))

    def take(self, messages: list[Message]) -> None:
        for topic, entry_id, body in messages:
            made = self._made[topic.name]
            ms = entry_id.split("-")[0]
            if len(made) >= CHUNK and made[-1][0].split("-")[0] != ms:
                self._compare(topic.name, int(ms) - 1)
                made = self._made[topic.name]
            made.append((entry_id, body))

    def flush(self) -> None:
        return

    async def room(self) -> None:
        return

    async def finish(self) -> None:
        for name in dict.fromkeys([*self._made, *self._known]):
            self._compare(name, self.end_ms)

    def _compare(self, name: str, end_ms: int | None) -> None:
        made = self._made[name]
        start_ms = self._from_ms.get(name, self.start_ms)
        if start_ms is None:
            start_ms = int(made[0][0].split("-")[0]) if made else 0
        if end_ms is None:
            end_ms = int(made[-1][0].split("-")[0]) if made else start_ms
        first = self._first_kept(name)
        aside = self._aside.get(name, ())
        published = [
            (entry_id, body)
            for entry_id, body in _entries(self._client, name, str(start_ms), str(end_ms))
            if any(mark in body[:400] for mark in self._marks)
            and int(entry_id.partition("-")[2]) not in aside
            and self.wants(name, body)
        ]
        if first:
            kept = [entry for entry in made if _order(entry[0]) >= first]
            self.difference.topics[name].unknown += len(made) - len(kept)
            made = kept
        if made or published:
            self.difference.compare(name, made, published)
        self._made[name] = []
        self._from_ms[name] = end_ms + 1

    def _first_kept(self, name: str) -> tuple[int, int] | None:
        """The oldest entry of a stream that was trimmed; None where it never was."""
        import redis

        try:
            info = self._client.xinfo_stream(name)
        except redis.exceptions.ResponseError:
            return None  # there is no such stream
        length, added = _field(info, "length"), _field(info, "entries-added")
        if not length or added is None or added <= length:
            return None
        ((entry_id, _),) = self._client.xrange(name, count=1)
        return _order(entry_id.decode())


def _field(info: Any, name: str) -> Any:
    return info.get(name, info.get(name.encode()))


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)
