"""What the append function says of each topic in a call, and what follows from it."""

from collections.abc import Callable, Sequence

from relay.outbox import Topic
from relay.sink.ledger import Ledger
from relay.sink.reactions import UNKNOWN, Again, reaction
from relay.sink.suspects import Suspects


class Answers:
    """Reads replies of relay_append. `suspects`: topics that may be why the server refuses a call as a whole."""

    def __init__(self, ledger: Ledger, judge: Callable[[str], Again]) -> None:
        """`judge`: makes of an error reply what the sink does about it."""
        self._ledger, self._judge, self.suspects = ledger, judge, Suspects()
        self._claim, self._healer, self._event, self.stats = ledger.claim, ledger.healer, ledger.event, ledger.stats

    def appended(self, batch: Sequence[tuple[Topic, int]], notes: list[bytes]) -> Again | None:
        """Take out of the outbox what Redis has of a call. Give what is wrong with the server, if anything."""
        stopped, problem = self._read(batch, notes) if notes else (set[int](), None)
        for number, (topic, count) in enumerate(batch):
            if number not in stopped:
                self._ledger.done(topic, count, topic.ids[count - 1])
        self.suspects.passed(topic for number, (topic, _) in enumerate(batch) if number not in stopped)
        return problem

    def healed(self, batch: Sequence[tuple[Topic, list[str], list[bytes]]], notes: list[bytes]) -> Again | None:
        """The same for entries that were sent again."""
        stopped: set[int] = set()
        problem: Again | None = None
        for note in notes:
            number, kind, rest = _parts(note)
            topic = batch[number][0]
            if kind in ("GONE", "UNPUBLISHED"):
                continue
            stopped.add(number)
            if kind == "PARTIAL":
                last, _, why = rest.partition(" ")
                self._healer.start(topic, last)
                problem = self.refused(topic, why) or problem
            else:
                problem = self._noted(topic, kind, rest) or problem
        for number, (topic, ids, data) in enumerate(batch):
            if number not in stopped:
                self.stats.bytes += self._healer.sent(topic, ids, data)
        return problem

    def _read(self, batch: Sequence[tuple[Topic, int]], notes: list[bytes]) -> tuple[set[int], Again | None]:
        """Act on what the function says about topics. Give those that it stopped, and what is wrong with the server."""
        stopped: set[int] = set()
        problem: Again | None = None
        for note in notes:
            number, kind, rest = _parts(note)
            topic = batch[number][0]
            if kind == "GONE":
                self.stats.gone += 1
                self._event("stream_gone", {"topic": topic.name, "last": topic.last})
                continue
            if kind == "UNPUBLISHED":
                self.stats.unpublished += 1
                if self.stats.unpublished == 1:
                    self._event("unpublished", {"topic": topic.name, "error": rest})
                continue
            stopped.add(number)
            if kind == "PARTIAL":
                last, _, error = rest.partition(" ")
                if last != topic.last:
                    self._ledger.done(topic, topic.ids.index(last) + 1, last)
                problem = self.refused(topic, error) or problem
            else:
                problem = self._noted(topic, kind, rest) or problem
        return stopped, problem

    def _noted(self, topic: Topic, kind: str, rest: str) -> Again | None:
        """Act on a topic of which nothing was written."""
        if kind == "FENCED":
            raise self._claim.fenced(f"epoch {rest} is newer than ours, {self._claim.epoch}")
        if kind == "UNFENCED":
            return Again("fence", "Redis has lost keys of the relay", kind)
        if kind == "OWNED":
            self._ledger.block(topic, f"OWNED {rest}", f"the relay {rest!r} has taken this topic over")
        else:  # MISMATCH
            self._ledger.settle(topic, rest)
        return None

    def refused(self, topic: Topic, error: str) -> Again | None:
        """Act on the error at which a topic's entries stopped, it alone. Give what to do, if it is the server."""
        found = reaction(error)
        unknown = found is UNKNOWN
        if found[0] in ("block", "foreign", "isolate") or (unknown and self.suspects.proven(topic, self.stats.entries)):
            self._ledger.block(topic, error)
            return None
        if unknown:
            self._ledger.outbox.defer(topic)
        return self._judge(error)


def _parts(note: bytes) -> tuple[int, str, str]:
    """Take a note apart: number of the topic in the call, kind, the rest."""
    number, kind, rest = [*note.decode(errors="replace").split(" ", 2), ""][:3]
    return int(number), kind, rest
