"""Says of streams what happened to numbered messages: lost, twice, out of order, or told by a gap event.

A topic is right when its entries' ids rise, its numbers `seq` have no hole within a run, and the provider's numbers in
data and gap events tile one range: nothing missing, nothing twice, nothing in disorder. Where the provider begins its
count anew, a gap event says so. Its true numbers (`true`: it puts them into the price) go on there: a hole in them
stands behind a gap event, which names as many where it gives numbers. Where Redis and the spool have lost entries, the
gap event for them has the number `seq` of the last.
"""

from collections.abc import Iterable, Iterator
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
    untold: int = 0
    """Holes in the true numbers that no gap event stands before."""
    false: int = 0
    """Gap events that name more or less than is missing."""
    back: int = 0
    """True numbers that do not rise."""
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        wrong = (self.lost, self.twice, self.disorder, self.holes, self.vague, self.untold, self.false, self.back)
        return not any(wrong)

    def fault(self, text: str) -> None:
        if len(self.faults) < 10:
            self.faults.append(text)

    def __str__(self) -> str:
        return (
            f"{self.entries} entries, {self.data} messages, {self.gaps} gaps with {self.missing} missing "
            f"{self.reasons}; lost {self.lost}, "
            f"twice {self.twice}, out of order {self.disorder}, holes {self.holes}, vague {self.vague}, "
            f"untold {self.untold}, false {self.false}, back {self.back} {self.faults}"
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
    price: str = ""


PAGE = 10_000
_decode = msgspec.json.Decoder(Message).decode


def check(
    topics: dict[str, Iterable[tuple[str, bytes]]], verdict: Verdict | None = None, *, true: bool = False
) -> Verdict:
    """Check topics: name to (entry id, body) in the stream's order. `true`: the true numbers too."""
    verdict = verdict or Verdict()
    for name, entries in topics.items():
        _check(name, entries, verdict, true)
    return verdict


def _check(name: str, entries: Iterable[tuple[str, bytes]], verdict: Verdict, true: bool) -> None:
    last_true: int | None = None
    named: int | None = 0  # how many the gap events since then name; None: one of them gives no number
    gaps = 0  # gap events since then
    above = (0, 0)
    run = seq = 0
    known: int | None = None  # the provider's number up to which all is told
    vague = False  # a gap event without numbers stands in front
    for entry_id, body in entries:
        verdict.entries += 1
        ms, _, own = entry_id.partition("-")
        if (int(ms), int(own)) <= above:
            verdict.disorder += 1
            verdict.fault(f"{name}: id {entry_id} after {above}")
        above = (int(ms), int(own))
        message = _decode(body)
        # a gap of what Redis and the spool have lost has the number of the last that is missing
        stands_for_more = message.reason in ("beyond_retention", "spool_corrupt") and message.seq > seq
        if message.run == run and message.seq != seq + 1 and not stands_for_more:
            verdict.holes += 1
            verdict.fault(f"{name}: seq {message.seq} after {seq} at {entry_id}")
        run, seq = message.run, message.seq
        if message.event == "gap":
            verdict.gaps += 1
            verdict.reasons[message.reason] = verdict.reasons.get(message.reason, 0) + 1
            gaps += 1
            if message.reason == "sequence_reset":
                known, vague, named = None, False, None  # how many of the old count were missed nobody knows
            if message.first_missing is None or message.last_missing is None:
                vague = message.reason != "sequence_reset"
                named = None
                continue
            if named is not None:
                named += message.last_missing - message.first_missing + 1
            verdict.missing += message.last_missing - message.first_missing + 1
            first, last = message.first_missing, message.last_missing
        elif message.src_seq is not None:
            verdict.data += 1
            first = last = message.src_seq
            if true:
                number = int(message.price.partition(".")[0])
                hole = number - last_true - 1 if last_true is not None else 0
                if hole < 0:
                    verdict.back += 1
                    verdict.fault(f"{name}: true number {number} after {last_true} at {entry_id}")
                elif hole and not gaps:
                    verdict.untold += 1
                    verdict.fault(f"{name}: true number {number} after {last_true} at {entry_id} and no gap event")
                elif named is not None and last_true is not None and named != hole:
                    verdict.false += 1
                    verdict.fault(f"{name}: gap events name {named} of {hole} missing before {number} at {entry_id}")
                last_true, named, gaps = number, 0, 0
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


def streams(url: str, names: Iterable[str]) -> dict[str, Iterable[tuple[str, bytes]]]:
    """Read whole streams, a page at a time."""
    return {name: _pages(url, name) for name in names}


def _pages(url: str, name: str) -> Iterator[tuple[str, bytes]]:
    above = "-"
    with redis.Redis.from_url(url) as client:
        while page := client.xrange(name, min=above, count=PAGE):
            for entry_id, fields in page:
                yield entry_id.decode(), fields[b"data"]
            above = f"({entry_id.decode()}"
