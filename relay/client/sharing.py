"""The logic of `share`: consumer groups. Each entry goes to one consumer and again to another, until it is handled.

What is handed out is acknowledged once the loop has asked for more. After a reconnect a consumer first takes what was
given to it and never acknowledged; what dead consumers left behind is claimed after `claim_secs`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from relay.client.items import Gap, Item, Refused
from relay.client.reading import CHUNK, HEALTHY_SECS, in_hand
from relay.client.steps import (
    BLOCK_SECS,
    Call,
    Calls,
    Connect,
    Emit,
    Ended,
    Lost,
    Pause,
    Step,
    Steps,
    Topics,
    backoff,
    entries_of,
    order,
    rows_of,
)  # fmt: skip

COUNT = 100
"""Entries taken at once: what a killed consumer leaves to the others is at most that, a topic."""
ACK = 25
"""Entries acknowledged together."""

Row = tuple[str, bytes | None]


class Sharing:
    """One consumer of one group. `since`: where a group that is made now begins (`$`: what is new)."""

    def __init__(self, topics: Topics, group: str, consumer: str, since: str, claim_secs: float, follow: bool) -> None:
        self._topics, self._group, self._consumer, self._since = topics, group, consumer, since
        self._claim_ms, self._follow = int(claim_secs * 1000), follow
        self._claim_at = 0.0
        self._joined: dict[str, tuple[str, int]] = {}
        """Topic -> last entry that the group was surely given, and its run (0: not known)."""
        self._waiting: list[str] = []  # topics whose stream is not there yet
        self._begun = False

    def steps(self) -> Steps:
        """Everything, for ever (without `follow`: until nothing is left to hand out)."""
        tries = 0
        while True:
            opened = time.monotonic()
            try:
                yield Connect()
                self._waiting += self._joined
                self._joined.clear()
                yield from self._join(opened)
                self._begun = True
                yield from self._own()
                if not (yield from self._work()):
                    return
            except Lost as lost:
                self._topics.forget()
                if time.monotonic() - opened > HEALTHY_SECS:
                    tries = 0
                yield Pause(backoff(tries), str(lost))
                tries += 1

    def _work(self) -> Generator[Step, Any, bool]:
        """Hand out what is new; False: nothing is left, and nobody wants to wait."""
        while True:
            now = time.monotonic()
            yield from self._join(now)
            if now >= self._claim_at:
                self._claim_at = now + max(self._claim_ms / 4000, 0.05)
                yield from self._claim()
            if not self._joined:
                if not self._follow:
                    return False
                yield Pause(BLOCK_SECS / 8, "")
                continue
            block = min(BLOCK_SECS / 2, max(self._claim_at - now, 0.01)) if self._follow else 0
            waiting = ("BLOCK", int(block * 1000) or 1) if self._follow else ()
            names = [*self._joined]
            try:
                reply = yield Call(self._asking(names, ">", waiting), block)
            except Refused as refused:
                if "NOGROUP" not in str(refused):
                    raise
                # the server has lost the group, or the stream: begin again, at the oldest entry that it still has
                self._waiting += self._joined
                self._joined.clear()
                yield from self._join(now)
                continue
            for topic, rows in entries_of(reply):
                gaps = yield from self._checked(topic, rows)
                yield from self._hand_out(topic, rows, gaps)
            if not reply and not self._follow:
                return False

    def _asking(self, names: list[str], id: str, waiting: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        group = ("XREADGROUP", "GROUP", self._group, self._consumer)
        return (*group, "COUNT", COUNT, *waiting, "STREAMS", *names, *[id] * len(names))

    # which topics

    def _join(self, now: float) -> Steps:
        """Look for topics, and make the group where it is not."""
        known = {*self._joined, *self._waiting}
        fresh = [name for name in (yield from self._topics.find(now)) if name not in known]
        for start in range(0, len(fresh), CHUNK):
            yield from self._enter(fresh[start : start + CHUNK], "0" if self._begun else self._since)
        if self._waiting:  # once there, all of it is new
            again, self._waiting = self._waiting, []
            for start in range(0, len(again), CHUNK):
                yield from self._enter(again[start : start + CHUNK], "0")

    def _enter(self, names: list[str], since: str) -> Steps:
        made = yield Calls([("XGROUP", "CREATE", name, self._group, since) for name in names])
        for name, reply in zip(names, made, strict=True):
            if not isinstance(reply, Exception) or "BUSYGROUP" in str(reply):
                self._joined[name] = ("", 0)
            elif "key to exist" in str(reply) or (isinstance(reply, Lost) and self._begun):
                self._waiting.append(name)
            else:
                raise reply
        there = [name for name in names if name in self._joined]
        groups = yield Calls([("XINFO", "GROUPS", name) for name in there])
        for name, reply in zip(there, groups, strict=True):
            for fields in reply if isinstance(reply, list) else ():
                one = dict(zip(fields[::2], fields[1::2], strict=False))
                if one[b"name"].decode() == self._group:
                    last = one[b"last-delivered-id"].decode()
                    self._joined[name] = ("" if last == "0-0" else last, 0)

    # entries

    def _own(self) -> Steps:
        """Take what was given to this consumer and never acknowledged."""
        names = [*self._joined]
        while names:
            reply = yield Call(self._asking(names, "0"))
            found = [(topic, rows) for topic, rows in entries_of(reply) if rows]
            names = [topic for topic, _ in found]
            for topic, rows in found:
                gaps = yield from self._again(topic, rows)
                yield from self._hand_out(topic, rows, gaps)

    def _claim(self) -> Steps:
        """Take what other consumers were given long ago and never acknowledged."""
        names = [*self._joined]
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            claim = (self._group, self._consumer, self._claim_ms, "0-0", "COUNT", COUNT)
            replies = yield Calls([("XAUTOCLAIM", name, *claim) for name in part])
            for topic, reply in zip(part, replies, strict=True):
                if isinstance(reply, Exception):
                    if "NOGROUP" in str(reply) or isinstance(reply, Lost):
                        continue  # the next read finds it out
                    raise reply
                rows = rows_of(row for row in reply[1] if row)
                rows += [(id.decode(), None) for id in (reply[2] if len(reply) > 2 else ())]
                if rows:
                    gaps = yield from self._again(topic, rows)
                    # what is gone is named at once, whoever has it: a living consumer may yet handle it
                    yield from self._hand_out(topic, rows, gaps, None)

    def _hand_out(self, topic: str, rows: list[Row], gaps: dict[str, Gap], gone: int | None = 1) -> Steps:
        """Hand out entries, and acknowledge what was surely handled."""
        for start in range(0, len(rows), ACK):
            out: list[tuple[Item | Gap, str, str, int]] = []
            for id, data in rows[start : start + ACK]:
                if id in gaps:
                    out.append((gaps[id], topic, id, 0))
                if data is None:
                    out.append((Gap(topic, "trimmed", id, missing=gone), topic, id, 0))
                else:
                    out.append((in_hand(topic, id, data), topic, id, 0))
            try:
                yield Emit(out)
            except Ended as ended:
                # a gap before an entry bears the entry's id, which counts only once the entry itself was handled
                open = {id for _, _, id, _ in out[ended.handled :]}
                if done := list(dict.fromkeys(id for _, _, id, _ in out if id not in open)):
                    yield Call(("XACK", topic, self._group, *done))
                return
            yield Call(("XACK", topic, self._group, *dict.fromkeys(id for _, _, id, _ in out)))

    # holes

    def _checked(self, topic: str, rows: list[Row]) -> Generator[Step, Any, dict[str, Gap]]:
        """Look for holes before and in new entries, which lie in the stream one behind the other."""
        gaps: dict[str, Gap] = {}
        last, run = self._joined[topic]
        for at, (id, data) in enumerate(rows):
            now = _run_of(topic, id, data)
            ms, seq = order(id)
            if at == 0 and not (last and run == now and seq == order(last)[1] + 1):
                # others of the group had what lies between; the stream tells, unless it was trimmed
                found = yield Call(("XREVRANGE", topic, f"({id}", "-", "COUNT", 1))
                before = rows_of(found)
                if before:
                    last, run = before[0][0], _run_of(topic, *before[0])
                elif last and seq > 1:
                    same = run == now or now <= order(last)[0]
                    if not same or seq > order(last)[1] + 1:
                        gaps[id] = Gap(topic, "trimmed", id, last, seq - order(last)[1] - 1 if same else None)
                    run = 0
            if run:
                expected = order(last)[1] + 1 if run == now else 1
                if seq > expected:
                    gaps[id] = Gap(topic, "hole", id, last, seq - expected)
            last, run = id, now
        self._joined[topic] = (last, run)
        return gaps

    def _again(self, topic: str, rows: list[Row]) -> Generator[Step, Any, dict[str, Gap]]:
        """Look for holes before entries that are handed out again: who had them may have died before it told of one."""
        gaps: dict[str, Gap] = {}
        live = [(id, data) for id, data in rows if data is not None]
        replies = yield Calls([("XREVRANGE", topic, f"({id}", "-", "COUNT", 1) for id, _ in live])
        for (id, data), reply in zip(live, replies, strict=True):
            for before, old in [] if isinstance(reply, Exception) else rows_of(reply):
                same = _run_of(topic, before, old) == _run_of(topic, id, data)
                expected = order(before)[1] + 1 if same else 1
                if order(id)[1] > expected:
                    gaps[id] = Gap(topic, "hole", id, before, order(id)[1] - expected)
        return gaps


def _run_of(topic: str, id: str, data: bytes | None) -> int:
    message = in_hand(topic, id, data or b"").message
    return 0 if message is None else message.run
