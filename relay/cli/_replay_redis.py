"""What `relay replay` asks of Redis before and beside the writing: is a prefix free, what do streams hold."""

import fnmatch
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from relay.difference import Entry
from relay.player import Step, merged
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

    for entry_id, body in entries(client, topic.name, start, end):
        yield _received_ns(entry_id, body), apply, (entry_id, body)


def _received_ns(entry_id: str, body: bytes) -> int:
    at = body.find(b'"ts_recv":')
    if at >= 0:
        digits = body[at + 10 : at + 30]
        for index, char in enumerate(digits):
            if not 48 <= char <= 57:
                return int(digits[:index] or b"0")
    return int(entry_id.split("-")[0]) * 1_000_000


def entries(client: Any, name: str, start: str, end: str) -> Iterator[Entry]:
    """What one stream holds between two ids, both included."""
    while True:
        chunk = client.xrange(name, start, end, count=CHUNK)
        for entry_id, fields in chunk:
            yield entry_id.decode(), fields.get(b"data", b"")
        if len(chunk) < CHUNK:
            return
        start = f"({chunk[-1][0].decode()}"
