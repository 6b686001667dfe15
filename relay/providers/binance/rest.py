"""What one session asks Binance's REST side: the symbol list, and the snapshots that its whole books begin with.

A book by diffs: its stream is open (acknowledged), diffs are kept, a snapshot is asked for, and diffs are placed behind
it by their numbers (relay.books). A snapshot ends at some depth, beyond which levels are known only where they changed:
a book whose published levels would reach beyond it begins anew.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from relay.books import Books, level
from relay.books.book import Key, key_of
from relay.model import Level, Status
from relay.providers.base import Output, Reply, Request
from relay.providers.binance.options import BinanceOptions, BinanceShared
from relay.providers.binance.wire import Diff, Partial, depth_reply, exchange_info, fault

LIST_TAG, DEPTH_TAG = "symbols", "depth "
LIST_PATH = "/api/v3/exchangeInfo?showPermissionSets=false"
BACK_OFF_NS = 60 * 1_000_000_000
"""Pause after 429 or 418 without `Retry-After`."""
BACK_OFF_MAX_NS = 3 * 86_400 * 1_000_000_000
"""The longest ban there is."""


def list_request(base: str) -> Request:
    """Ask for all symbols."""
    return Request(LIST_TAG, "GET", base + LIST_PATH, timeout_secs=30.0)


class _Bounds:
    """How far a snapshot reached, where it was cut: keys of the worst bid and ask; None: it was whole."""

    __slots__ = ("ask", "bid")

    def __init__(self, bid: Key | None, ask: Key | None) -> None:
        self.bid, self.ask = bid, ask


class Rest:
    """The requests of one session, drained from `out`. `refused`: raw symbols whose book cannot be had, and why."""

    def __init__(self, options: BinanceOptions, shared: BinanceShared, books: Books) -> None:
        self.out: list[Request] = []
        self.refused: dict[str, tuple[str, str]] = {}
        self.base = options.rest
        self.books = books
        self._shared = shared
        self._limit, self._weight = options.snapshot_limit
        self._shown = options.book_depth_max
        self._queue: dict[str, None] = {}  # books whose first snapshot waits for the minute's weight
        self._bounds: dict[str, _Bounds] = {}
        self._list_wanted = False
        self._anew = False

    def want_list(self, now_ns: int, *, anew: bool) -> None:
        """Ask for the symbol list where it is old, or (`anew`) lacks something."""
        self._list_wanted = True
        self._anew = self._anew or anew
        self.work(now_ns)

    def want_book(self, raw: str) -> None:
        """Keep this book from now on: its stream is open."""
        self._queue[raw] = None

    def forget(self, raw: str) -> None:
        self._queue.pop(raw, None)
        self._bounds.pop(raw, None)
        self.books.forget(raw)

    def work(self, now_ns: int) -> None:
        """Ask for what is wanted, as far as Binance's limits allow. Raises: SequenceGap where asking did not help."""
        shared = self._shared
        if self._list_wanted and shared.list_is_fresh(now_ns) and not self._anew:
            self._list_wanted = False
        if self._list_wanted and shared.ask_list(now_ns, anew=self._anew):
            self.out.append(list_request(self.base))
        if now_ns < shared.paused_ns:
            return
        first: set[str] = set()
        for raw in list(self._queue):
            if not shared.spend(self._weight, now_ns):
                break
            del self._queue[raw]
            first.add(raw)
            self.books.want(raw, now_ns, ask=True)
        if self.books.pending:
            for raw in self.books.resync(now_ns):
                if raw not in first:
                    # a book in doubt goes before the others: it is taken from the weight, and waits for none
                    shared.spend(self._weight, now_ns)
                url = f"{self.base}/api/v3/depth?symbol={quote(raw)}&limit={self._limit}"
                self.out.append(Request(DEPTH_TAG + raw, "GET", url, timeout_secs=8.0))

    def tick(self, now_ns: int) -> list[Output]:
        out: list[Output] = []
        if now_ns >= self._shared.paused_ns:
            out += self.books.tick(now_ns)
        self.work(now_ns)
        return out

    # -- diffs ---------------------------------------------------------------------------------------------------

    def changed(
        self, one: Diff, bids: Sequence[Level], asks: Sequence[Level], ts_event: int | None, now_ns: int
    ) -> Sequence[Output]:
        """Take one event of a whole book."""
        raw, books = one.s, self.books
        out: Sequence[Output] = books.delta(raw, bids, asks, now_ns, first=one.U, last=one.u, ts_event=ts_event)
        if raw in self._bounds and raw in books and books[raw].state == "good":
            out = self._worn(raw, now_ns) or out
        if books.pending:
            self.work(now_ns)
        return out

    def _worn(self, raw: str, now_ns: int) -> Sequence[Output]:
        """Throw a book away whose published levels reach beyond its cut snapshot."""
        bounds = self._bounds[raw]
        bid, ask = self.books[raw].reach(self._shown)
        for side, bound, last in (("bids", bounds.bid, bid), ("asks", bounds.ask, ask)):
            if bound is None:
                continue
            beyond = last is None or (key_of(last[0]) < bound if side == "bids" else key_of(last[0]) > bound)
            if beyond:
                text = f"less than {self._shown} {side} are left of the snapshot"
                return self.books.doubt(raw, "snapshot_worn", text, now_ns)
        return ()

    def unreadable(self, raw: str, text: str, now_ns: int) -> Sequence[Output]:
        """An event that could not be read: the book misses it."""
        out = self.books.doubt(raw, "unreadable", text[:500], now_ns)
        self.work(now_ns)
        return out

    # -- answers -------------------------------------------------------------------------------------------------

    def replied(self, reply: Reply, now_ns: int) -> list[Output]:
        """Take an answer."""
        out = self._paused(reply, now_ns)
        if reply.tag == LIST_TAG:
            out += self._listed(reply, now_ns)
        elif reply.tag.startswith(DEPTH_TAG):
            out += self._snapshot(reply.tag.removeprefix(DEPTH_TAG), reply, now_ns)
        self.work(now_ns)
        return out

    def _paused(self, reply: Reply, now_ns: int) -> list[Output]:
        """429: too fast; 418: banned. Nothing is asked before the time that it names."""
        if reply.status not in (418, 429):
            return []
        asked = reply.headers.get("retry-after", "")
        wait = int(asked) * 1_000_000_000 if asked.isascii() and asked.isdecimal() and len(asked) < 10 else BACK_OFF_NS
        until = now_ns + min(wait, BACK_OFF_MAX_NS)
        if until <= self._shared.paused_ns:
            return []
        self._shared.paused_ns = until
        text = "banned by Binance's REST side" if reply.status == 418 else "too many requests to Binance's REST side"
        return [Status(event="quota", code=f"http_{reply.status}", text=text, until=until)]

    def _listed(self, reply: Reply, now_ns: int) -> list[Output]:
        text = _problem(reply)
        if not text:
            try:
                listed = exchange_info(reply.body).symbols
            except (ValueError, RecursionError) as error:
                text = f"the symbol list cannot be read: {error}"
            else:
                if listed:
                    self._list_wanted = self._anew = False
                    self._shared.list_came(listed, now_ns)
                    return []
                text = "the symbol list is empty"
        self._shared.list_failed(now_ns)
        return [Status(event="notice", code="symbol_list", text=text)]

    def _snapshot(self, raw: str, reply: Reply, now_ns: int) -> list[Output]:
        if raw not in self.books:
            return []
        text = _problem(reply)
        if reply.status in (403, 451) or (reply.status == 400 and "-1121" in text):
            self.refused[raw] = (f"http_{reply.status}", f"no book snapshot to be had: {text}")
            return []
        found: Partial | None = None
        bids: list[Level] = []
        asks: list[Level] = []
        if not text:
            try:
                found = depth_reply(reply.body)
                bids = [level(price, size) for price, size in found.bids]
                asks = [level(price, size) for price, size in found.asks]
            except (ValueError, RecursionError) as error:
                found, text = None, f"the snapshot cannot be read: {error}"
        if found is None:
            return [*self.books.doubt(raw, "snapshot_failed", text[:500], now_ns)]
        out = self.books.snapshot(raw, bids, asks, now_ns, number=found.lastUpdateId)
        if out and self.books[raw].state == "good":
            self._bounds.pop(raw, None)
            if max(len(bids), len(asks)) >= self._limit:
                self._bounds[raw] = _Bounds(
                    min(key_of(price) for price, _ in bids) if len(bids) >= self._limit else None,
                    max(key_of(price) for price, _ in asks) if len(asks) >= self._limit else None,
                )
                return [*(self._worn(raw, now_ns) or out)]
        return [*out]


def _problem(reply: Reply) -> str:
    """Say what is wrong with an answer; empty: nothing."""
    if reply.status == 200:
        return ""
    if reply.status == 0:
        return reply.error or "no answer"
    try:
        said = fault(reply.body)
    except (ValueError, RecursionError):
        return f"HTTP {reply.status}"
    text: Any = said.msg
    return f"HTTP {reply.status}: {said.code} {text}"[:500]
