"""The conservation laws (design.md 6): nothing that came in is unaccounted for. Pure sums over plain counters.

    frames    in = gave something + useless + ended their session
    messages  made = numbered + repeats + outside any subscription + dropped in declared gaps + conflated + kept back
    entries   numbered, with all statuses and rejects = in Redis + waiting in memory or spool

Each side is counted at another place: a balance that does not hold is a fault of ours.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from relay.outbox import NOTHING, Topic, order
from relay.routes import Counts


class FrameCounts(Protocol):
    """What a feed counts."""

    frames: int
    gave: int
    useless: int
    ending: int


class Balance(NamedTuple):
    """One law: what came in, and what became of it, by name."""

    total: int
    parts: dict[str, int]

    @property
    def difference(self) -> int:
        """What is not accounted for; 0: the law holds."""
        return self.total - sum(self.parts.values())

    def __add__(self, other: object) -> "Balance":
        """Sum two balances of the same law."""
        if not isinstance(other, Balance):
            return NotImplemented
        return Balance(self.total + other.total, {name: n + other.parts.get(name, 0) for name, n in self.parts.items()})


def frames(feeds: Iterable[FrameCounts]) -> Balance:
    """The law of frames, over feeds."""
    total = gave = useless = ending = 0
    for feed in feeds:
        total += feed.frames
        gave += feed.gave
        useless += feed.useless
        ending += feed.ending
    return Balance(total, {"gave": gave, "useless": useless, "ending": ending})


def messages(sources: Iterable[Counts]) -> Balance:
    """The law of messages, over sources."""
    total = 0
    parts = dict.fromkeys(("numbered", "repeats", "outside", "dropped", "conflated", "held"), 0)
    for counts in sources:
        total += counts.made
        parts["numbered"] += counts.published
        parts["repeats"] += counts.repeats
        parts["outside"] += counts.outside
        parts["dropped"] += counts.overflow
        parts["conflated"] += counts.conflated
        parts["held"] += counts.held
    return Balance(total, parts)


def entries(topics: Iterable[Topic], sources: Iterable[Counts], beside: int) -> Balance:
    """The law of entries, over all topics of a relay: what was numbered stands in a topic.

    `beside`: statuses, rejects and what else the intake put in without a provider's message.
    """
    numbered = sum(counts.published for counts in sources) + beside
    return Balance(numbered, {"in topics": sum(topic.seq for topic in topics)})


def differences(
    feeds: Iterable[FrameCounts], sources: Iterable[Counts], topics: Iterable[Topic], beside: int
) -> dict[str, int]:
    """Give the laws that do not hold, by name, with what is not accounted for."""
    counts = list(sources)
    laws = {"frames": frames(feeds), "messages": messages(counts), "entries": entries(topics, counts, beside)}
    return {name: law.difference for name, law in laws.items() if law.difference}


def in_flight(topic: Topic, run_ms: int) -> int:
    """Entries of this run that Redis has not confirmed yet."""
    last = topic.acked or NOTHING
    ms, seq = order(last)
    return topic.seq - (seq if ms >= run_ms else 0)
