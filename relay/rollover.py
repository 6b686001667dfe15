"""A planned rollover: two sessions of one connection at a time, joined so that each message goes out once. Pure.

Until the old session ends it is the source. What the new one brings meanwhile is joined by what its channel declares:
numbers that go on over sessions (global scope) are taken from whichever session brings the next one first, and what is
ahead of a number that the old session still owes waits for it; a book of the new session waits with its snapshot; of
what has no number that both sessions know, only the newest is kept, in case the old session has not seen it.

The order is kept by the number, so nothing here looks at a clock: the same calls give the same messages.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

from relay import model
from relay.model import CHANNEL_OF, Header, Status
from relay.providers.base import Output, Seen
from relay.routes import Route, Source

SECOND = "+"
"""Ends the key of a connection's other session: `1` and `1+` take turns."""
HELD_MAX = 100_000
"""Messages that may wait: with so many the new session takes over though not everything has been joined."""

_BANDED = frozenset({"gap", "stale", "fresh"})
_EVENTS = frozenset({"trades", "orders"})
"""Channels of which each message counts; of the others (books aside) the newest says it all."""
_OWN = {cls: tuple(f for f in cls.__struct_fields__ if f not in Header.__struct_fields__) for cls in CHANNEL_OF}
_CLASS_OF: dict[str, type[Header]] = {channel: cls for cls, channel in reversed(CHANNEL_OF.items())}

Break = Callable[[Route, str], None]
"""`break_(route, reason)`: what comes next on the route stands behind a gap, unless its number proves otherwise."""


def label_of(key: str) -> str:
    """The connection that a session's key belongs to."""
    return key.removesuffix(SECOND)


class _Strand:
    """What both sessions have said of one thing since the new one was opened."""

    __slots__ = ("first", "kept", "last", "newest", "old", "taken", "waiting")

    def __init__(self) -> None:
        self.old = -1  # last number of the old session; 0 where it gave something without one
        self.first = self.last = -1  # first and last number of the new session; likewise
        self.waiting: list[tuple[int, int, Header | Seen]] = []  # a heap by number; in order of arrival for books
        self.newest: Header | None = None  # last message of the old session, where there are no numbers
        self.kept: Header | None = None  # and of the new one
        self.taken = False  # a book that comes from the new session already


class Rollover:
    """The sessions `old` and `new` (keys) of one connection of a source."""

    def __init__(self, source: Source, old: str, new: str, begun_ns: int) -> None:
        self.source, self.old, self.new, self.begun_ns = source, old, new, begun_ns
        self._strands: dict[object, _Strand] = {}
        self._waiting = 0
        self._turn = 0

    def admit(self, key: str, outputs: Iterable[Output]) -> Iterator[Output]:
        """Give what goes out now, in order. Lazily: each message must have been numbered when the next is asked for."""
        is_old = key == self.old
        for message in outputs:
            cls = message.__class__
            if cls is model.Reject:
                yield message
                continue
            if isinstance(message, Status):
                yield from self._status(message, is_old)
                continue
            if isinstance(message, Seen):
                channel: model.Channel = message.channel
                name: object = (_CLASS_OF[channel], message.raw_symbol)
                number: int | None = message.src_seq
            else:
                assert isinstance(message, Header)
                channel = CHANNEL_OF[type(message)]
                name = (
                    (cls, message.raw_symbol, message.interval)
                    if isinstance(message, model.Bar)
                    else (cls if channel != "books" else _CLASS_OF[channel], message.raw_symbol)
                )
                number = message.src_seq if message.origin is None else None
            strand = self._strands.get(name)
            if strand is None:
                strand = self._strands[name] = _Strand()
            step = self._step(channel)
            if step and number is not None:
                yield from self._numbered(strand, name, message, number, is_old, step == "contiguous")
            elif isinstance(message, Seen):
                if is_old:
                    yield message
            elif strand.taken:
                if is_old:
                    self._repeat(message)
                else:
                    yield message
            elif is_old:
                strand.old = 0
                strand.newest = message
                yield message
            else:
                self._kept(strand, channel, message)

    def _status(self, status: Status, is_old: bool) -> Iterator[Output]:
        """What the new session misses, the old one has; and a book that the old one has no more, the new one may."""
        strand = self._strands.get((model.BookSnapshot, status.raw_symbol)) if status.channel == "books" else None
        if status.event not in _BANDED or strand is None:
            if is_old or status.event not in _BANDED:
                yield status
        elif strand.taken:
            if not is_old:
                yield status
        elif not is_old:
            if status.event != "fresh":
                self._forget(strand)
        elif status.event == "stale" and strand.waiting:
            strand.taken = True
            yield from [message for _, _, message in strand.waiting]
            self._waiting -= len(strand.waiting)
            strand.waiting.clear()
        else:
            yield status

    def _numbered(
        self, strand: _Strand, name: object, message: Header | Seen, number: int, is_old: bool, contiguous: bool
    ) -> Iterator[Output]:
        if is_old:
            fell, strand.old = number < strand.old, max(number, strand.old)
            if fell:  # its own count goes back: late, or begun anew
                strand.old = number
                yield message
                return
            if number < self._next(name):
                self._repeat(message)
                return
            # what it has passed over, or only speaks of, the new one may have had
            yield from self._let_go(strand, name, number if _is_told(message) else number - 1)
            yield message
        else:
            if strand.first < 0:
                strand.first = number
            strand.last = number
            expected = self._next(name)
            if number < expected:
                self._repeat(message)
                return
            if not contiguous or number != expected or _is_told(message):
                self._turn += 1
                self._waiting += 1
                heappush(strand.waiting, (number, self._turn, message))
                return
            yield message
        if strand.waiting:
            yield from self._let_go(strand, name, -1, follow=contiguous)

    def _let_go(self, strand: _Strand, name: object, last: int, follow: bool = False) -> Iterator[Output]:
        """Let go what waits up to a number, or as far as the numbers follow one another.

        What has been published meanwhile is a repeat.
        """
        waiting = strand.waiting
        while waiting:
            expected, first = self._next(name), waiting[0][0]
            if first >= expected and (first > last if not follow else first > expected or _is_told(waiting[0][2])):
                return
            number, _, message = heappop(waiting)
            self._waiting -= 1
            if number < expected:
                self._repeat(message)
            else:
                yield message

    def _kept(self, strand: _Strand, channel: str, message: Header) -> None:
        strand.first = 0
        if channel == "books":
            if isinstance(message, model.BookSnapshot):
                self._forget(strand)
            elif not strand.waiting:
                self._repeat(message)
                return
            self._turn += 1
            self._waiting += 1
            strand.waiting.append((self._turn, self._turn, message))
            return
        if strand.kept is not None:
            self._repeat(strand.kept)
        strand.kept = message

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        """Whether the new session has brought everything that the old one brings, without a hole between them."""
        if self._waiting >= HELD_MAX:
            return True
        return all(self._is_joined(strand, name) for name, strand in self._strands.items())

    def _is_joined(self, strand: _Strand, name: object) -> bool:
        if strand.first < 0:
            return strand.old < 0
        if _is_book(name):
            return strand.taken or bool(strand.waiting) or strand.old < 0
        # a first message that the old session has not reached may have others before it
        return strand.first == 0 or strand.first < self._next(name) or (strand.old < 0 and self._next(name) < 0)

    def finish(self, proven: bool, break_: Break) -> list[Output]:
        """Let the new session be the only one: gives what it has in hand, in order.

        `proven`: it was subscribed to everything while the old one still lived. Else, and where a message may have
        fallen between the two without a number that shows it, `break_` is called.
        """
        reason = "resync" if proven else "disconnect"
        out: list[Output] = []
        routes = {id(route): route for route in self.source.routes.values() if route is not None}
        for route in routes.values():
            if route.connection != label_of(self.new):
                continue
            strand = self._strands.get(_name_of(route))
            step = self._step(route.channel)
            if not step:
                route.next = -1 if route.scope == "session" else route.next
            if self._may_miss(strand, route, step, proven):
                break_(route, reason)
        for name, strand in self._strands.items():
            waiting = strand.waiting
            if waiting and not _is_book(name):
                waiting.sort()
            for number, _, message in waiting:
                if not _is_book(name) and number < self._next(name):
                    self._repeat(message)
                else:
                    out.append(message)
            if strand.kept is not None:
                if self._is_news(strand, name, proven):
                    out.append(strand.kept)
                else:
                    self._repeat(strand.kept)
        return out

    def fail(self, break_: Break) -> None:
        """The new session is gone, the old one goes on: what waits has come, or will, from there."""
        for name, strand in self._strands.items():
            route = self.source.routes.get(name)
            if strand.taken and route is not None:
                break_(route, "disconnect")
            self._forget(strand)
            if strand.kept is not None:
                self._repeat(strand.kept)

    def _may_miss(self, strand: _Strand | None, route: Route, step: str, proven: bool) -> bool:
        if strand is not None and strand.taken:
            return False
        if step == "contiguous" or not proven:
            return True  # the next number proves that nothing is missing
        if step:
            return strand is not None and strand.first >= 0 and not self._is_joined(strand, _name_of(route))
        if route.channel == "books":
            return strand is None or not (strand.waiting or strand.taken)  # changes of nothing until its snapshot comes
        if route.channel in _EVENTS:
            return True
        if strand is not None and isinstance(strand.kept, model.Bar) and isinstance(strand.newest, model.Bar):
            return strand.kept.start > strand.newest.start and not strand.newest.closed
        return False

    def _is_news(self, strand: _Strand, name: object, proven: bool) -> bool:
        """Whether the new session's last word says something that the old one has not said."""
        kept, newest = strand.kept, strand.newest
        assert kept is not None
        if CHANNEL_OF[type(kept)] in _EVENTS:
            return False
        if newest is None:  # quiet on the old session: what it said last was the same
            return not proven or self.source.routes.get(name) is None
        if kept.ts_event is not None and newest.ts_event is not None and kept.ts_event < newest.ts_event:
            return False
        return any(getattr(kept, field) != getattr(newest, field) for field in _OWN[type(kept)])

    # -- small things --------------------------------------------------------------------------------------------

    def _step(self, channel: str) -> str:
        spec = self.source.spec.channels.get(channel)  # type: ignore[call-overload]
        identity = spec.identity if spec else None
        return identity.step if identity is not None and identity.scope == "global" else ""

    def _next(self, name: object) -> int:
        route = self.source.routes.get(name)
        return route.next if route is not None else -1

    def _forget(self, strand: _Strand) -> None:
        for _, _, message in strand.waiting:
            self._repeat(message)
        self._waiting -= len(strand.waiting)
        strand.waiting.clear()

    def _repeat(self, message: Header | Seen) -> None:
        if not isinstance(message, Seen):
            self.source.counts.made += 1
            self.source.counts.repeats += 1


def _is_told(message: Header | Seen) -> bool:
    """Whether it only tells of a message, which the other session may still bring."""
    return isinstance(message, Seen) and not message.delivered


def _name_of(route: Route) -> object:
    cls = _CLASS_OF[route.channel]
    return (cls, route.raw_symbol, route.param) if cls is model.Bar else (cls, route.raw_symbol)


def _is_book(name: object) -> bool:
    return isinstance(name, tuple) and name[0] is model.BookSnapshot
