"""Recorded books of Coinbase and Kraken through a playing server, the relay and the bundled server; and spoiled lines.

What must come out was computed apart from any relay code (expected_public_feeds.json). The recordings have their own
licences and stay outside the repository; without them these tests are skipped.

What cannot be seen, and is said here exactly: Kraken's checksum covers the best ten levels, so a change lost below
them stays unseen until it rises; Coinbase's books have neither number nor checksum, so of a spoiled line only what is
unreadable or crosses the book is seen, and the levels that the line named may be wrong until their next change.
"""

import json
from collections import Counter, deque
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pytest
from relays import config_of, entries, relay_of, until
from test_books import Reference

from relay.model import BookDelta, BookSnapshot, Status
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Send
from relay.simulator.playback import Playback
from relay.simulator.server import Simulator

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
FIGURES = FRAMES / "expected_public_feeds.json"
SECOND = 1_000_000_000
RESYNC_NS = 2 * SECOND
ANSWER_NS = SECOND // 10
"""How long the made-up venue takes to answer a request."""
TICK_NS = SECOND // 4

pytestmark = pytest.mark.skipif(not FIGURES.exists(), reason=f"the recordings are not here: {FRAMES}")


@cache
def figures(name: str) -> dict[str, Any]:
    return json.loads(FIGURES.read_text())[f"{name}.jsonl"]


@cache
def recorded(name: str) -> tuple[tuple[str, int], ...]:
    """Frames and times of receipt (ns) of what was really recorded."""
    lines = map(json.loads, (FRAMES / f"{name}.jsonl").read_text().splitlines())
    return tuple(
        (line["frame"], int(Decimal(str(line["t"])) * SECOND))
        for line in lines
        if line["dir"] == "in" and line.get("src") == "rec"
    )


def checksum(book: Reference) -> int:
    """Kraken's rule, written down once more."""
    bids, asks = book.best(10)
    digits = (text.replace(".", "").lstrip("0") for row in (*asks, *bids) for text in row)
    return crc32("".join(digits).encode())


def same(ours: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> bool:
    return [[*map(Decimal, row)] for row in ours] == [[*map(Decimal, row)] for row in wanted]


# -- end to end --------------------------------------------------------------------------------------------------------


async def played(name: str, section: str, redis_url: str, tmp_path: Path, books: int) -> None:
    """Play a recording into a relay until so many book messages are published."""
    play = {name: Playback(FRAMES / f"{name}.jsonl", speed=0, where={"src": "rec"})}
    async with Simulator([name], play=play) as simulator:
        head = f"name: t\nredis: {{url: {redis_url}}}\nproviders:\n  {name}:\n    url: {simulator.url(name)}\n"
        async with relay_of(config_of(head + section, tmp_path)) as running:
            source = running.bridge.providers[name].source
            topics = [route.topic for route in source.routes.values() if route] or []

            def arrived() -> bool:
                nonlocal topics
                topics = list(
                    {id(r.topic): r.topic for r in source.routes.values() if r and r.channel == "books"}.values()
                )
                return sum(topic.seq for topic in topics) >= books

            await until(arrived, 20)
            assert source.counts.rejects == 0


def consumed(url: str, topic: str) -> tuple[Reference, Counter[str], list[int]]:
    """What a consumer of one topic has at the end of the session: the book, counts, and checksums that were wrong."""
    book, counts, wrong = Reference(None), Counter[str](), list[int]()
    for _, message in entries(url, topic):
        if message["type"] == "status":
            counts[f"{message['event']} {message.get('code')}"] += 1
            continue
        counts[message["type"]] += 1
        if message["type"] == "book_snapshot":
            book = Reference(None)
        rows = [tuple(map(tuple, message[side])) for side in ("bids", "asks")]
        counts["removed"] += sum(size == "0.00000000" for side in rows for _, size in side)
        book.apply(*rows)
        assert not book.crossed
        if "checksum" in message:
            counts["checksums"] += 1
            if checksum(book) != message["checksum"]:
                wrong.append(message["seq"])
    return book, counts, wrong


async def test_recorded_books_of_kraken_arrive_with_every_checksum_right(redis_url: str, tmp_path: Path) -> None:
    expected = figures("kraken")["symbols"]
    books = sum(e["snapshots"] + e["updates"] for e in expected.values())
    section = "    books: {10: [BTC/USD], 25: [XRP/USD]}\n"
    await played("kraken", section, redis_url, tmp_path, books)
    for raw, want in expected.items():
        book, counts, wrong = consumed(redis_url, f"books.kraken.{raw.replace('/', '-')}")
        assert wrong == [], "a consumer that only follows the deltas has the provider's book"
        assert (counts["book_snapshot"], counts["book_delta"]) == (want["snapshots"], want["updates"])
        assert (counts["checksums"], want["checksum_bad"]) == (want["checksum_ok"], 0)
        assert counts["removed"] == want["removals"]
        assert set(counts) <= {"book_snapshot", "book_delta", "checksums", "removed", "stale disconnect"}
        bids, asks = book.best()
        assert len(bids) <= want["depth"] and len(asks) <= want["depth"]
        assert same(bids[:5], want["final_bids_best5"]) and same(asks[:5], want["final_asks_best5"])


async def test_recorded_books_of_coinbase_arrive_whole(redis_url: str, tmp_path: Path) -> None:
    expected = figures("coinbase")
    products = ", ".join(expected)
    books = sum(e["snapshot"] + e["l2update"] for e in expected.values())
    section = f"    quotes: [{products}]\n    trades: [{products}]\n    books: {{full: [{products}]}}\n"
    await played("coinbase", section, redis_url, tmp_path, books)
    for raw, want in expected.items():
        book, counts, _ = consumed(redis_url, f"books.coinbase.{raw}")
        assert (counts["book_snapshot"], counts["book_delta"]) == (want["snapshot"], want["l2update"])
        bids, asks = book.best()
        assert [len(bids), len(asks)] == want["final_levels"]
        assert same(bids[:5], want["final_bids_best5"]) and same(asks[:5], want["final_asks_best5"])
        trades = [m for _, m in entries(redis_url, f"trades.{raw}") if m["type"] == "trade"]
        assert (len(trades), sum((Decimal(m["size"]) for m in trades), Decimal(0))) == (
            want["match"], Decimal(want["traded"]),
        )  # fmt: skip
        quotes = [m for _, m in entries(redis_url, f"quotes.{raw}") if m["type"] == "quote"]
        assert len(quotes) == want["ticker"]


# -- spoiled lines -----------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "kraken": {"books": {"10": ("BTC/USD",), "25": ("XRP/USD",)}},
    "coinbase": {"books": {"full": ("BAND-GBP", "SKL-GBP", "NU-GBP", "YFI-BTC", "SKL-BTC")}},
}


class Line:
    """One recorded book line: what it says, and the true book behind it."""

    def __init__(self, name: str, text: str, at_ns: int, books: dict[str, Reference]) -> None:
        self.text, self.at_ns = text, at_ns
        frame = json.loads(text, parse_float=str)
        if name == "kraken":
            (row,) = frame["data"]
            self.raw = row["symbol"]
            self.whole = frame["type"] == "snapshot"
            bids, asks = (tuple((str(one["price"]), str(one["qty"])) for one in row[s]) for s in ("bids", "asks"))
        else:
            self.raw, self.whole = frame["product_id"], frame["type"] == "snapshot"
            if self.whole:
                bids, asks = (tuple(map(tuple, frame[side])) for side in ("bids", "asks"))
            else:
                bids, asks = (tuple((p, q) for s, p, q in frame["changes"] if s == side) for side in ("buy", "sell"))
        depth = {"BTC/USD": 10, "XRP/USD": 25}.get(self.raw)
        held = Reference(depth) if self.whole else books[self.raw]
        held.apply(bids, asks)
        books[self.raw] = held
        self.bids, self.asks = held.best()
        self.prices = {Decimal(price) for price, _ in (*bids, *asks)}


@cache
def lines(name: str) -> tuple[Line, ...]:
    books: dict[str, Reference] = {}
    wanted = ("book",) if name == "kraken" else ("snapshot", "l2update")
    kind = "channel" if name == "kraken" else "type"
    return tuple(
        Line(name, text, at_ns, books) for text, at_ns in recorded(name) if json.loads(text).get(kind) in wanted
    )


class Venue:
    """Answers what the session sends: acknowledgements, and a snapshot of the true book a little later."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.late: deque[tuple[int, str]] = deque()  # symbols whose snapshot is due

    def heard(self, text: str, now_ns: int) -> None:
        message = json.loads(text)
        if self.name == "kraken":
            if message["method"] == "subscribe":
                self.late += [(now_ns + ANSWER_NS, raw) for raw in message["params"]["symbol"]]
        elif message["type"] == "subscribe":
            self.late += [(now_ns + ANSWER_NS, raw) for raw in message["product_ids"]]

    def snapshot(self, raw: str, true: Line) -> str:
        if self.name == "coinbase":
            return json.dumps({"type": "snapshot", "product_id": raw, "bids": true.bids, "asks": true.asks})
        book = Reference(None)
        book.apply(true.bids, true.asks)
        bids, asks = (
            ",".join(f'{{"price":{price},"qty":{qty}}}' for price, qty in side) for side in (true.bids, true.asks)
        )
        return (
            f'{{"channel":"book","type":"snapshot","data":[{{"symbol":"{raw}","bids":[{bids}],"asks":[{asks}],'
            f'"checksum":{checksum(book)}}}]}}'
        )


class Consumer:
    """Follows what is published, and holds it against the truth in the moment of its publication."""

    def __init__(self, name: str, excused: set[Decimal]) -> None:
        self.name, self.excused = name, excused
        self.books: dict[str, Reference] = {}
        self.stale_ns: dict[str, int] = {}
        self.doubts = 0
        self.differed = 0

    def take(self, outputs: Sequence[Any], now_ns: int, true: Line | None) -> None:
        for one in outputs:
            raw = one.raw_symbol
            if isinstance(one, Status) and one.event == "stale":
                assert raw not in self.stale_ns, "a doubt is said once"
                self.books.pop(raw, None)
                self.stale_ns[raw] = now_ns
                self.doubts += 1
            elif isinstance(one, BookSnapshot | BookDelta):
                if isinstance(one, BookSnapshot):
                    self.books[raw] = Reference(None)
                    since = self.stale_ns.pop(raw, now_ns)
                    assert now_ns - since <= RESYNC_NS, f"resync took {(now_ns - since) / SECOND} s"
                assert raw in self.books, "a delta without its snapshot"
                self.books[raw].apply(one.bids, one.asks)
                if true is not None and true.raw == raw:
                    self.compare(self.books[raw], true)

    def compare(self, book: Reference, true: Line) -> None:
        assert not book.crossed
        bids, asks = book.best()
        if self.name == "kraken":
            # the depth of BTC/USD is ten: all of it is vouched for
            assert (bids[:10], asks[:10]) == (true.bids[:10], true.asks[:10])
            return
        for ours, wanted in ((bids, true.bids), (asks, true.asks)):
            if ours == wanted:
                continue
            left = {Decimal(p): Decimal(q) for p, q in ours}
            right = {Decimal(p): Decimal(q) for p, q in wanted}
            wrong = {price for price in left.keys() | right.keys() if left.get(price) != right.get(price)}
            assert wrong <= self.excused, f"levels that the spoiled line did not name: {wrong - self.excused}"
            self.differed += bool(wrong)


def spoiled(rng: Random, text: str, how: str) -> str:
    if how == "cut":
        return text[: rng.randrange(len(text) // 3, len(text))]
    if how == "digit":
        places = [i for i, char in enumerate(text) if char.isdigit()]
        at = rng.choice(places)
        return text[:at] + rng.choice([d for d in "0123456789" if d != text[at]]) + text[at + 1 :]
    at = rng.randrange(len(text))
    return text[:at] + rng.choice('x"{}[],:9.e-') + text[at + 1 :]


def prices_in(text: str) -> set[Decimal]:
    """Prices that a spoiled line names, as far as it can be read."""
    try:
        frame = json.loads(text, parse_float=str)
        rows = [row[-2] for row in (*frame.get("changes", ()), *frame.get("bids", ()), *frame.get("asks", ()))]
        return {Decimal(price) for price in rows}
    except Exception:
        return set()


def life(name: str, seed: int) -> Consumer:
    """One session that gets part of a recording with one line dropped, repeated, swapped or corrupted."""
    rng = Random(seed)
    told = lines(name)
    how = rng.choice(("drop", "repeat", "swap", "cut", "digit", "char"))
    index = rng.randrange(len(told))
    raw = told[index].raw
    # the whole recording would be the same again: some lines before, led by a snapshot, and some behind
    own = [(number, line) for number, line in enumerate(told) if line.raw == raw]
    place = next(i for i, (number, _) in enumerate(own) if number == index)
    first = max(0, place - 20)
    picked = own[first : place + 60]
    feed: list[tuple[str, Line | None]] = [(line.text, line) for _, line in picked]
    excused: set[Decimal] = set()
    at = next(i for i, (number, _) in enumerate(picked) if number == index)
    victim = picked[at][1]
    if how == "drop":
        excused = victim.prices if not victim.whole else set()
        del feed[at]
    elif how == "repeat":
        feed.insert(at, feed[at])
    elif how == "swap" and at + 1 < len(feed):
        excused = victim.prices | picked[at + 1][1].prices
        feed[at], feed[at + 1] = (feed[at + 1][0], picked[at + 1][1]), (feed[at][0], victim)
        if name == "coinbase":
            # between the two there is no true book to compare with
            feed[at] = (feed[at][0], None)
            feed[at + 1] = (feed[at + 1][0], picked[at + 1][1])
    elif how in ("cut", "digit", "char"):
        text = spoiled(rng, victim.text, how)
        excused = victim.prices | prices_in(text)
        feed[at] = (text, victim)
    spec = PROVIDERS[name]
    options = spec.options(**OPTIONS[name])
    subscribed = [sub for sub in spec.subscribed(options) if sub.raw == raw]
    session: Any = spec.session(options, subscribed, spec.shared(options))
    venue, consumer = Venue(name), Consumer(name, excused)
    now_ns = picked[0][1].at_ns
    session.opened(now_ns)
    session.to_send()
    if not picked[0][1].whole:
        consumer.take(session.receive(Frame(now_ns, venue.snapshot(raw, own[first - 1][1]).encode())), now_ns, None)
    ticked, true = now_ns, victim

    def sent() -> None:
        for one in session.to_send():
            assert isinstance(one, Send)
            venue.heard(str(one.data), now_ns)

    def pass_time(until_ns: int) -> None:
        nonlocal now_ns, ticked
        while True:
            due = min(ticked + TICK_NS, venue.late[0][0] if venue.late else until_ns)
            if due > until_ns:
                break
            now_ns = max(now_ns, due)
            if venue.late and venue.late[0][0] <= now_ns:
                _, symbol = venue.late.popleft()
                text = venue.snapshot(symbol, true)
                consumer.excused = set()  # a new snapshot heals what was not seen
                consumer.take(session.receive(Frame(now_ns, text.encode())), now_ns, true)
            else:
                ticked = now_ns
                # acknowledgements are not played: their deadline is another test's
                session._asking._deadline_ns = None
                getattr(session._asking, "_pending", {}).clear()
                consumer.take(session.tick(now_ns), now_ns, true)
            sent()
            if due >= until_ns:
                break
        now_ns = max(now_ns, until_ns)

    for number, (text, line) in enumerate(feed):
        # what the line is, not when it was recorded: a swapped one comes in the other's place
        pass_time(max(now_ns, min(picked[min(number, len(picked) - 1)][1].at_ns, now_ns + 5 * SECOND)))
        true = line or true
        consumer.take(session.receive(Frame(now_ns, text.encode())), now_ns, line)
        sent()
    pass_time(now_ns + 3 * SECOND)
    assert consumer.stale_ns == {}, "the book came back"
    return consumer


@pytest.mark.parametrize("name", ["kraken", "coinbase"])
@pytest.mark.fault
def test_a_spoiled_line_never_makes_a_wrong_book_that_looks_good(name: str) -> None:
    lived = [life(name, seed) for seed in range(40)]
    assert sum(one.doubts for one in lived) > 5


@pytest.mark.fault
@pytest.mark.parametrize("name", ["kraken", "coinbase"])
def test_no_spoiled_line_ever_makes_a_wrong_book_that_looks_good(name: str) -> None:
    lived = [life(name, seed) for seed in range(1000, 1600)]
    assert sum(one.doubts for one in lived) > 100
