"""The books of one session: what goes out of them, when they are in doubt, when a snapshot is asked for again. Pure.

A provider declares its rules, says `want` for each symbol, hands in snapshots and deltas, passes on what it gets back,
and asks the provider's server again for what `resync` names. After a doubt the book's topic says `stale` at once, and
no delta goes out before the next good snapshot.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from relay.books.book import Applied, Book, Checksum, Doubt
from relay.errors import SequenceGap
from relay.model import BookDelta, BookSnapshot, Header, Level, Quote, Status

SECOND = 1_000_000_000
RESYNC_PAUSE_NS = 3 * SECOND // 2
"""Least time between two requests for one book, so that a second doubt in a row is healed within two seconds, too; it
doubles with each request that did not help, up to the cap."""
RESYNC_CAP_NS = 60 * SECOND
RESYNC_TRIES_MAX = 6
"""Requests in a row (about a minute) that did not give a lasting book; then only a new session can help."""
SNAPSHOT_WAIT_NS = 10 * SECOND
"""A snapshot comes within half a second of its request: after this long the request counts as lost."""
HEALTHY_NS = 30 * SECOND
"""A book that stayed good for this long begins its count of requests anew."""
BUFFERED_MAX = 5_000
"""Deltas kept while a snapshot by REST is on its way: some minutes of a busy book."""


class Rules(NamedTuple):
    """What a provider declares of its books."""

    check: Checksum | None = None
    may_cross: bool = False
    buffered: bool = False
    """Snapshots come by REST, beside the stream: deltas wait for them, and are placed by their numbers."""


_PLAIN = Rules()
_NONE_CAME = Doubt("snapshot_timeout", f"no snapshot within {SNAPSHOT_WAIT_NS // SECOND} s")


class Buffered(NamedTuple):
    """A delta that waits for its snapshot."""

    bids: Sequence[Level]
    asks: Sequence[Level]
    first: int | None
    last: int | None
    prev: int | None
    checksum: int | None
    ts_event: int | None


class _Entry:
    """One symbol's book and what is going on with it."""

    __slots__ = (
        "asked_ns", "book", "buffer", "changed", "checked", "checksum", "crossed", "depth", "due", "good_ns", "odd",
        "quoted", "raw", "refreshing", "since", "snapshot_ns", "symbol", "told", "top", "tries", "ts_event", "venue",
        "whole_ns",
    )  # fmt: skip

    def __init__(self, raw: str, symbol: str, venue: str | None, book: Book, depth: int | None, now_ns: int) -> None:
        self.raw, self.symbol, self.venue, self.book, self.depth = raw, symbol, venue, book, depth
        self.asked_ns = now_ns
        self.tries = 0  # requests in a row for another snapshot
        self.due = False  # another one must be asked for
        self.refreshing = False  # it is, of a good book
        self.whole_ns = now_ns  # when the provider's last snapshot came
        self.good_ns = 0  # since when it is good; 0: it is not
        self.told = False  # the doubt has been said
        self.odd = False  # its last snapshot was thrown away for unreadable levels
        self.crossed = False  # its last snapshot was thrown away for being crossed
        self.buffer: list[Buffered] = []
        self.since = 0  # messages since the last snapshot that went out
        self.changed = False
        self.snapshot_ns = 0
        self.quoted = False
        self.top: object = None
        self.ts_event: int | None = None
        self.checked = True  # what goes out is deep enough for the provider's checksum
        self.checksum: int | None = None


class Books:
    """All books of one session. What the methods give goes out as the provider's own outputs, in that order."""

    def __init__(
        self, names: Mapping[str, tuple[str, str | None]], rules: Rules = _PLAIN, *, depth_max: int = 1000,
        snapshot_every: int = 5000, snapshot_secs: float = 60.0, quotes: Iterable[str] = (), refresh_secs: float = 0.0,
    ) -> None:  # fmt: skip
        """`names`: raw symbol to (symbol, venue). `depth_max`: levels a side that go out. A snapshot goes out again
        after `snapshot_every` messages, and `snapshot_secs` after the last one if there was a change (0: never).
        `quotes`: raw symbols whose best bid and ask go out as quotes. `refresh_secs`: a good book is asked for again
        after this long, where a lost update cannot be seen (0: never)."""
        self._names, self._rules = names, rules
        self._depth_max, self._every, self._secs_ns = depth_max, snapshot_every, int(snapshot_secs * SECOND)
        self._refresh_ns = int(refresh_secs * SECOND)
        self._quotes = frozenset(quotes)
        self._entries: dict[str, _Entry] = {}
        self._due: dict[str, None] = {}

    def __contains__(self, raw: str) -> bool:
        return raw in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, raw: str) -> Book:
        return self._entries[raw].book

    def want(self, raw: str, now_ns: int, *, depth: int | None = None, ask: bool = False) -> None:
        """Expect a snapshot of this symbol from now on; `depth`: the provider's cut. `ask`: it comes on request only,
        so let `resync` name it."""
        symbol, venue = self._names[raw]
        window = min(self._depth_max, depth or self._depth_max)
        book = Book(depth, self._rules.check, window=window, may_cross=self._rules.may_cross)
        entry = self._entries[raw] = _Entry(raw, symbol, venue, book, window, now_ns)
        entry.quoted = raw in self._quotes
        check = self._rules.check
        entry.checked = check is not None and window >= min(check.levels, depth or check.levels)
        if ask:
            entry.due, entry.tries = True, -1  # the first request is none of the tries
            self._due[raw] = None

    def forget(self, raw: str) -> None:
        """Not subscribed any more, or refused."""
        self._entries.pop(raw, None)
        self._due.pop(raw, None)

    # -- data ----------------------------------------------------------------------------------------------------

    def snapshot(
        self, raw: str, bids: Sequence[Level], asks: Sequence[Level], now_ns: int, *, number: int | None = None,
        checksum: int | None = None, ts_event: int | None = None, unread: int = 0,
    ) -> list[Header]:  # fmt: skip
        """Take a whole book, and what waited for it. `unread`: levels of it that could not be read; such a snapshot
        is thrown away once, and when the next one has them too it is what the provider has to give."""
        entry = self._entries.get(raw)
        if entry is None:
            return []
        waiting, book = entry.buffer, entry.book
        if self._rules.buffered and number is not None:
            if book.state == "good" and book.number is not None and number <= book.number:
                return []  # asked for twice, and the stream is further on
            waiting = [one for one in waiting if one.last is None or one.last > number]
            if waiting and (waiting[0].first or waiting[0].last or 0) > number + 1:
                entry.buffer = waiting
                text = f"the snapshot ends at {number}, the stream begins at {waiting[0].first}"
                return self._in_doubt(entry, Doubt("snapshot_too_old", text), now_ns)
        entry.buffer = []
        if unread and not entry.odd:
            entry.odd = True
            return self._in_doubt(entry, Doubt("bad_level", f"{unread} levels of the snapshot are unreadable"), now_ns)
        doubt = book.snapshot(bids, asks, number, checksum)
        if doubt is not None and doubt.code == "crossed" and entry.crossed:
            # twice in a row: the market is crossed (an auction), not our copy of it
            book.crossed = True
            doubt = book.snapshot(bids, asks, number, checksum)
        if doubt is not None:
            entry.crossed = doubt.code == "crossed"
            return self._in_doubt(entry, doubt, now_ns)
        entry.checksum, entry.ts_event = checksum, ts_event
        for one in waiting:
            applied = book.delta(one.bids, one.asks, one.first, one.last, one.prev, one.checksum)
            if isinstance(applied, Doubt):
                return self._in_doubt(entry, applied, now_ns)
            if applied is not None:
                entry.checksum, entry.ts_event = one.checksum, one.ts_event
        entry.good_ns = entry.good_ns if entry.refreshing else now_ns
        entry.whole_ns, entry.refreshing = now_ns, False
        entry.due = entry.told = entry.crossed = entry.odd = False
        self._due.pop(raw, None)
        out: list[Header] = [self._whole(entry, now_ns)]
        if entry.quoted:
            self._quote(entry, out)
        return out

    def delta(
        self, raw: str, bids: Sequence[Level], asks: Sequence[Level], now_ns: int, *, first: int | None = None,
        last: int | None = None, prev: int | None = None, checksum: int | None = None, ts_event: int | None = None,
    ) -> Sequence[Header]:  # fmt: skip
        """Take one update. Gives nothing where no book is good, or where nothing changed that goes out."""
        entry = self._entries.get(raw)
        if entry is None:
            return ()
        book = entry.book
        if book.state != "good":
            if self._rules.buffered:
                self._wait(entry, Buffered(bids, asks, first, last, prev, checksum, ts_event))
            return ()
        before = book.number
        applied = book.delta(bids, asks, first, last, prev, checksum)
        if applied.__class__ is not Applied:
            if applied is None:
                return ()
            assert isinstance(applied, Doubt)
            if self._rules.buffered:
                self._wait(entry, Buffered(bids, asks, first, last, prev, checksum, ts_event))
            return self._in_doubt(entry, applied, now_ns)
        assert applied is not None
        entry.checksum, entry.ts_event = checksum, ts_event
        changed_bids, changed_asks = applied
        if not changed_bids and not changed_asks:
            return ()
        delta = BookDelta(
            symbol=entry.symbol, raw_symbol=raw, venue=entry.venue, ts_event=ts_event, src_seq=last,
            bids=changed_bids, asks=changed_asks, depth=entry.depth, checksum=checksum if entry.checked else None,
            prev_seq=None if last is None else before,
        )  # fmt: skip
        entry.changed = True
        entry.since += 1
        if not entry.quoted and entry.since < self._every:
            return (delta,)
        out: list[Header] = [delta]
        if entry.since >= self._every:
            out.append(self._whole(entry, now_ns))
        if entry.quoted:
            self._quote(entry, out)
        return out

    def doubt(self, raw: str, code: str, text: str, now_ns: int) -> list[Header]:
        """The provider itself has a reason not to trust the book (an unreadable level, a failed request)."""
        entry = self._entries.get(raw)
        if entry is None:
            return []
        return self._in_doubt(entry, Doubt(code, text), now_ns)

    # -- time ----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether `resync` may name something: cheap to ask after every frame."""
        return bool(self._due)

    def resync(self, now_ns: int) -> list[str]:
        """Name the symbols whose snapshot must be asked for now; they count as asked. Call it in `tick` and where
        `pending` is true. Raises: SequenceGap where asking did not help."""
        out = []
        for raw in list(self._due):
            entry = self._entries[raw]
            if not entry.refreshing and entry.tries > 0 and now_ns - entry.asked_ns < self._pause(entry.tries):
                continue
            if entry.tries >= RESYNC_TRIES_MAX and not entry.refreshing:
                raise SequenceGap(f"books {raw}: no lasting book after {entry.tries} requests", code="book_resync")
            if not entry.refreshing:
                entry.tries += 1
            entry.asked_ns, entry.due = now_ns, False
            del self._due[raw]
            out.append(raw)
        return out

    def tick(self, now_ns: int) -> list[Header]:
        """Give the snapshots that are due by time, and notice those that did not come."""
        out: list[Header] = []
        for entry in self._entries.values():
            if entry.book.state == "good":
                if self._secs_ns and entry.changed and now_ns - entry.snapshot_ns >= self._secs_ns:
                    out.append(self._whole(entry, now_ns))
                if entry.refreshing:
                    if not entry.due and now_ns - entry.asked_ns >= SNAPSHOT_WAIT_NS:
                        out += self._in_doubt(entry, _NONE_CAME, now_ns)
                elif self._refresh_ns and now_ns - entry.whole_ns >= self._refresh_ns:
                    entry.refreshing = entry.due = True
                    self._due[entry.raw] = None
            elif not entry.due and now_ns - entry.asked_ns >= SNAPSHOT_WAIT_NS:
                out += self._in_doubt(entry, _NONE_CAME, now_ns)
        return out

    def whole(self, now_ns: int) -> list[Header]:
        """Give each good book whole: who reads on behind another relay begins anew with it."""
        return [self._whole(entry, now_ns) for entry in self._entries.values() if entry.book.state == "good"]

    def closed(self, now_ns: int) -> list[Header]:
        """The session is over: no book is good any more."""
        out: list[Header] = []
        for entry in self._entries.values():
            if entry.book.state == "good":
                out += self._stale(entry, entry.book.doubt("disconnect", "the session ended"), "reconnect")
        self._entries.clear()
        self._due.clear()
        return out

    # -- inside --------------------------------------------------------------------------------------------------

    def _in_doubt(self, entry: _Entry, doubt: Doubt, now_ns: int) -> list[Header]:
        """Say it once, and ask for a snapshot as soon as the pace allows."""
        if entry.good_ns and now_ns - entry.good_ns >= HEALTHY_NS:
            entry.tries = 0
        entry.book.doubt(*doubt)
        entry.good_ns, entry.top, entry.due, entry.refreshing = 0, None, True, False
        self._due[entry.raw] = None
        if entry.told:
            return []
        entry.told = True
        return self._stale(entry, doubt, "resync")

    def _stale(self, entry: _Entry, doubt: Doubt, action: str) -> list[Header]:
        channels = ("books", "quotes") if entry.quoted else ("books",)
        return [
            Status(
                event="stale", channel=channel, raw_symbol=entry.raw, symbol=entry.symbol, venue=entry.venue,
                code=doubt.code, text=doubt.text, action=action,
            )
            for channel in channels
        ]  # fmt: skip

    def _wait(self, entry: _Entry, delta: Buffered) -> None:
        buffer = entry.buffer
        buffer.append(delta)
        if len(buffer) > BUFFERED_MAX:
            # the newest ones are what a later snapshot needs
            del buffer[: BUFFERED_MAX // 2]

    def _whole(self, entry: _Entry, now_ns: int) -> BookSnapshot:
        bids, asks = entry.book.levels()
        entry.since, entry.changed, entry.snapshot_ns = 0, False, now_ns
        return BookSnapshot(
            symbol=entry.symbol, raw_symbol=entry.raw, venue=entry.venue, ts_event=entry.ts_event,
            src_seq=entry.book.number, bids=bids, asks=asks, depth=entry.depth,
            checksum=entry.checksum if entry.checked else None,
        )  # fmt: skip

    def _quote(self, entry: _Entry, out: list[Header]) -> None:
        """Give the best bid and ask, where they changed."""
        top = bid, ask = entry.book.top()
        if top == entry.top or (bid is None and ask is None):
            return
        entry.top = top
        out.append(
            Quote(
                symbol=entry.symbol,
                raw_symbol=entry.raw,
                venue=entry.venue,
                ts_event=entry.ts_event,
                bid=bid[0] if bid else None,
                bid_size=bid[1] if bid else None,
                ask=ask[0] if ask else None,
                ask_size=ask[1] if ask else None,
            )  # fmt: skip
        )

    @staticmethod
    def _pause(tries: int) -> int:
        return min(RESYNC_PAUSE_NS << (tries - 1), RESYNC_CAP_NS)
