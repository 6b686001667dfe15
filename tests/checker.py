"""Says of streams what happened to numbered messages: lost, twice, out of order, or told by a gap event.

A topic is right when its entries' ids rise, its numbers `seq` have no hole within a run, and the provider's numbers in
data and gap events tile one range: nothing missing, nothing twice, nothing in disorder.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import redis


@dataclass
class Verdict:
    """Counts over all topics; `faults`: the first of each kind, in words."""

    entries: int = 0
    data: int = 0
    gaps: int = 0
    missing: int = 0
    """Numbers that gap events name."""
    lost: int = 0
    """Numbers that nothing names."""
    twice: int = 0
    disorder: int = 0
    holes: int = 0
    """Holes in our own numbers."""
    vague: int = 0
    """Gap events in front of a hole that do not say the numbers."""
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not (self.lost or self.twice or self.disorder or self.holes or self.vague)

    def fault(self, text: str) -> None:
        if len(self.faults) < 10:
            self.faults.append(text)

    def __str__(self) -> str:
        return (
            f"{self.data} messages, {self.gaps} gaps with {self.missing} missing {self.reasons}; lost {self.lost}, "
            f"twice {self.twice}, out of order {self.disorder}, holes {self.holes}, vague {self.vague} {self.faults}"
        )


class Message(msgspec.Struct):
    type: str = ""
    event: str = ""
    run: int = 0
    seq: int = 0
    src_seq: int | None = None
    reason: str = ""
    first_missing: int | None = None
    last_missing: int | None = None


_decode = msgspec.json.Decoder(Message).decode


def check(topics: dict[str, Iterable[tuple[str, bytes]]], verdict: Verdict | None = None) -> Verdict:
    """Check topics: name to (entry id, body) in the stream's order."""
    verdict = verdict or Verdict()
    for name, entries in topics.items():
        _check(name, entries, verdict)
    return verdict


def _check(name: str, entries: Iterable[tuple[str, bytes]], verdict: Verdict) -> None:
    above = (0, 0)
    run = seq = 0
    known: int | None = None  # the provider's number up to which all is told
    vague = False  # a gap event without numbers stands in front
    for entry_id, body in entries:
        verdict.entries += 1
        ms, _, number = entry_id.partition("-")
        if (int(ms), int(number)) <= above:
            verdict.disorder += 1
            verdict.fault(f"{name}: id {entry_id} after {above}")
        above = (int(ms), int(number))
        message = _decode(body)
        if message.run == run and message.seq != seq + 1:
            verdict.holes += 1
            verdict.fault(f"{name}: seq {message.seq} after {seq} at {entry_id}")
        run, seq = message.run, message.seq
        if message.event == "gap":
            verdict.gaps += 1
            verdict.reasons[message.reason] = verdict.reasons.get(message.reason, 0) + 1
            if message.first_missing is None or message.last_missing is None:
                vague = True
                continue
            verdict.missing += message.last_missing - message.first_missing + 1
            first, last = message.first_missing, message.last_missing
        elif message.src_seq is not None:
            verdict.data += 1
            first = last = message.src_seq
        else:
            continue
        if known is not None and first != known + 1:
            if first > known + 1:
                if vague:
                    verdict.vague += 1
                else:
                    verdict.lost += first - known - 1
            elif last <= known:
                verdict.twice += 1
            else:
                verdict.disorder += 1
            verdict.fault(f"{name}: {message.type} {message.event} {first}..{last} after {known} at {entry_id}")
        vague = False
        known = max(known or 0, last)


def streams(url: str, names: Iterable[str]) -> dict[str, list[tuple[str, bytes]]]:
    """Read whole streams."""
    with redis.Redis.from_url(url) as client:
        return {
            name: [(entry_id.decode(), fields[b"data"]) for entry_id, fields in client.xrange(name)] for name in names
        }
