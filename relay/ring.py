"""What a standby has heard lately: events in order, bounded by time and bytes; what falls out is counted. Pure.

An event is what the ring's owner likes; the ring knows only when it came, what it weighs and how many messages it is.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from relay.model import BookDelta, BookSnapshot

MESSAGE_COST = 700
"""What a message costs in memory: its struct, about eight texts, the event around it."""
LEVEL_COST = 180
"""What a level of a book costs: a pair and two texts."""


def cost(outputs: Sequence[Any]) -> int:
    """Estimate the memory that a provider's outputs hold."""
    size = MESSAGE_COST * len(outputs)
    for message in outputs:
        if message.__class__ is BookDelta or message.__class__ is BookSnapshot:
            size += LEVEL_COST * (len(message.bids) + len(message.asks))
    return size


class Ring:
    """Events since `since_ns`, oldest first. `bytes`, `messages`: what it holds; `fallen`: messages that fell out."""

    def __init__(
        self, span_ns: int, bytes_max: int, now_ns: int, fell: Callable[[Any], None] = lambda event: None
    ) -> None:
        """`fell`: called with each event that falls out."""
        self.span_ns, self.bytes_max, self._fell = span_ns, bytes_max, fell
        self.since_ns = now_ns
        """It holds all that came later than this."""
        self.bytes = self.messages = self.fallen = 0
        self.still = False
        """It is being read: nothing falls out by age, the clock may be lifted meanwhile."""
        self.narrow = False
        """The bound in bytes, not the time, decided what fell out last."""
        self._events: deque[tuple[int, int, int, Any]] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Any, now_ns: int, size: int = MESSAGE_COST, messages: int = 0) -> None:
        """Put an event at the end. HOT."""
        events = self._events
        events.append((now_ns, size, messages, event))
        self.bytes += size
        self.messages += messages
        floor = now_ns - self.span_ns
        while events[0][0] < floor and not self.still:
            self.narrow = False
            self._fall()
        while self.bytes > self.bytes_max and len(events) > 1:
            self.narrow = True
            self._fall()

    def _fall(self) -> None:
        then, size, messages, event = self._events.popleft()
        self.since_ns = max(self.since_ns, then)
        self._fell(event)
        self.bytes -= size
        self.messages -= messages
        self.fallen += messages

    def restart(self, now_ns: int) -> None:
        """Begin anew: the clock by which it was kept has jumped."""
        while self._events:
            self._fall()
        self.since_ns = now_ns

    def pop(self) -> tuple[int, Any]:
        """Take the oldest event: when it came, and what it is."""
        then, size, messages, event = self._events.popleft()
        self.bytes -= size
        self.messages -= messages
        return then, event
