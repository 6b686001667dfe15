"""Topics that may be the reason why a call fails: a reply that nobody knows, a connection that each call breaks.

Nothing in such an answer says whether it means the server or one topic (an entry larger than a proxy takes, a key that
a service forbids). So a topic that fails alone goes to the end of the line; if Redis takes others and then refuses it
again, it is that topic, and it alone must wait.
"""

from collections.abc import Iterable

from relay.outbox import Topic
from relay.sink.reactions import UNKNOWN, reaction

CUTS_MAX = 3
"""So many calls in a row without an answer, each on a new connection: from then on each topic is sent alone."""


def may_mean_a_topic(reply: str) -> bool:
    """Tell whether an error that stands for a whole call may be that of one topic in it."""
    found = reaction(reply)
    return found[0] == "isolate" or found is UNKNOWN


class Suspects:
    """The topics that have failed alone, with the entries that Redis had taken in all by then."""

    def __init__(self) -> None:
        self._marks: dict[Topic, int] = {}
        self._cuts = 0

    def chosen(self, batch: list[tuple[Topic, int]]) -> list[tuple[Topic, int]]:
        """Leave out of a call what might spoil it for the others."""
        if self._cuts > CUTS_MAX or batch[0][0] in self._marks:
            return batch[:1]
        return [one for one in batch if one[0] not in self._marks] if self._marks else batch

    def cut(self) -> bool:
        """A call had no answer. Tells whether that has come too often for chance."""
        self._cuts += 1
        return self._cuts > CUTS_MAX

    def proven(self, topic: Topic, taken: int) -> bool:
        """A topic failed alone; `taken`: entries that Redis has taken so far. Tells whether it is that topic."""
        return taken > self._marks.setdefault(topic, taken)

    def passed(self, topics: Iterable[Topic]) -> None:
        """Redis has taken entries of topics."""
        self._cuts = 0
        if self._marks:
            for topic in topics:
                self._marks.pop(topic, None)
