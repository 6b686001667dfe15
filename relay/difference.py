"""What a replay gives beside what was published at the time: same, changed, missing, new, by topic and field. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

EXAMPLES_MAX = 5
"""Shown of each kind and topic."""

Entry = tuple[str, bytes]
"""Entry id and bytes."""

_decode = msgspec.json.Decoder(float_hook=str).decode


class Example(NamedTuple):
    """One difference: the message's id, what was published and what is made now, by field (None: absent)."""

    kind: str
    id: str
    fields: Mapping[str, tuple[Any, Any]]


class TopicReport:
    """What was found in one topic."""

    def __init__(self) -> None:
        self.same = self.changed = self.renumbered = self.missing = self.new = 0
        self.unknown = 0
        """Made again, but the stream was trimmed and does not hold the time."""
        self.fields: Counter[str] = Counter()
        self.examples: list[Example] = []

    @property
    def differs(self) -> bool:
        return bool(self.changed or self.renumbered or self.missing or self.new)

    def _example(self, kind: str, entry_id: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        if sum(one.kind == kind for one in self.examples) < EXAMPLES_MAX:
            self.examples.append(Example(kind, entry_id, fields))


class Difference:
    """All topics."""

    def __init__(self) -> None:
        self.topics: dict[str, TopicReport] = defaultdict(TopicReport)

    @property
    def found(self) -> bool:
        """Whether anything differs."""
        return any(report.differs for report in self.topics.values())

    def compare(self, topic: str, made: Iterable[Entry], published: Iterable[Entry]) -> None:
        """Compare the messages of one stretch of time of one topic.

        Messages belong together by what does not depend on others: time of receipt, type, symbol, event; a message
        that is more or less then leaves those behind it equal but for their number (`renumbered`).
        """
        report = self.topics[topic]
        waiting = dict(published)
        left: list[Entry] = []
        for entry_id, body in made:
            if waiting.get(entry_id) == body:
                del waiting[entry_id]
                report.same += 1
            else:
                left.append((entry_id, body))
        if not left and not waiting:
            return
        others: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for entry_id, body in waiting.items():
            message = _read(body)
            others[_key(message)].append((entry_id, message))
        for entry_id, body in left:
            message = _read(body)
            same_key = others.get(_key(message))
            if not same_key:
                report.new += 1
                report._example("new", entry_id, {k: (None, v) for k, v in message.items()})
                continue
            old_id, old = same_key.pop(0)
            fields = {
                name: (old.get(name), message.get(name))
                for name in [*old, *(n for n in message if n not in old)]
                if old.get(name) != message.get(name)
            }
            if set(fields) <= {"seq"}:
                report.renumbered += 1
            else:
                report.changed += 1
                fields.pop("seq", None)
                report.fields.update(fields.keys())
                report._example("changed", old_id, fields)
        for rest in others.values():
            for entry_id, message in rest:
                report.missing += 1
                report._example("missing", entry_id, {k: (v, None) for k, v in message.items()})

    def plain(self) -> dict[str, Any]:
        """The report as JSON-like data; topics without a difference only as sums."""
        totals: Counter[str] = Counter()
        for report in self.topics.values():
            for name in ("same", "changed", "renumbered", "missing", "new", "unknown"):
                totals[name] += getattr(report, name)
        return {
            "totals": dict(totals),
            "topics": {
                name: {
                    "same": report.same,
                    "changed": report.changed,
                    "renumbered": report.renumbered,
                    "missing": report.missing,
                    "new": report.new,
                    "fields": dict(report.fields.most_common()),
                    "examples": [
                        {"kind": one.kind, "id": one.id, "fields": {k: list(v) for k, v in one.fields.items()}}
                        for one in report.examples
                    ],
                }
                for name, report in sorted(self.topics.items())
                if report.differs
            },
        }


def _read(body: bytes) -> dict[str, Any]:
    try:
        message = _decode(body)
    except msgspec.DecodeError:
        message = None
    return (
        message
        if isinstance(message, dict)
        else {"type": "(not a message)", "text": body[:200].decode("utf-8", "replace")}
    )


def _key(message: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(message.get(name) for name in ("ts_recv", "type", "raw_symbol", "event", "interval"))
