"""A real recording of 2021 through the Binance provider and the whole relay, against figures computed apart from it.

The recording has its own licence and stays outside the repository; without it these tests are skipped.
"""

import json
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from relays import config_of, entries, relay_of, until

from relay.model import BookDelta, BookSnapshot, Status
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Reply, Request, Send
from relay.providers.binance import BinanceOptions
from relay.simulator.playback import Playback
from relay.simulator.server import Simulator

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
RECORDING = FRAMES / "binance.jsonl"
FIGURES = FRAMES / "expected_public_feeds.json"
SECOND_NS = 1_000_000_000
SPEC = PROVIDERS["binance"]

pytestmark = pytest.mark.skipif(
    not (RECORDING.exists() and FIGURES.exists()), reason=f"the recording is not here: {RECORDING}"
)

Side = dict[str, str]
Book = tuple[Side, Side]


@cache
def figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text())["binance.jsonl"]


class Line(NamedTuple):
    t_ns: int
    text: str
    raw: str
    """The symbol of a book line; empty: another line."""


@cache
def recorded() -> tuple[tuple[Line, ...], dict[str, dict[str, Any]]]:
    """Frames of the stream in order, and the recorded snapshots by symbol."""
    lines, snapshots = [], {}
    for text in RECORDING.read_text().splitlines():
        line = json.loads(text)
        if line["dir"] != "in" or line.get("src") != "rec":
            continue
        if line["note"].startswith("rec: REST"):
            snapshots[line["note"].partition("symbol=")[2].partition("&")[0]] = json.loads(line["frame"])
            continue
        frame = json.loads(line["frame"])
        raw = frame["data"]["s"] if frame["stream"].endswith("@depth@100ms") else ""
        lines.append(Line(int(Decimal(str(line["t"])) * SECOND_NS), line["frame"], raw))
    return tuple(lines), snapshots


def change(side: Side, rows: list[list[str]]) -> None:
    for price, size in rows:
        if Decimal(size):
            side[price] = size
        else:
            side.pop(price, None)


def best(side: Side, count: int, *, bids: bool) -> Side:
    """The best levels of a side, in their order; every price of the recording has eight decimals."""
    return {price: side[price] for price in sorted(side, key=Decimal, reverse=bids)[:count]}


class State(NamedTuple):
    """The true book behind one event."""

    t_ns: int
    number: int
    book: Book


@cache
def truth(raw: str) -> tuple[State, ...]:
    """Every state of a book, kept the plain way: the snapshot, then each event that it does not hold."""
    lines, snapshots = recorded()
    snapshot = snapshots[raw]
    bids, asks = dict(snapshot["bids"]), dict(snapshot["asks"])
    number = snapshot["lastUpdateId"]
    out = [State(0, number, (dict(bids), dict(asks)))]
    for line in lines:
        data = json.loads(line.text)["data"] if line.raw == raw else None
        if data is not None and data["u"] > number:
            change(bids, data["b"])
            change(asks, data["a"])
            number = data["u"]
            out.append(State(line.t_ns, number, (dict(bids), dict(asks))))
    return tuple(out)


@cache
def best_of(raw: str, count: int) -> dict[int, Book]:
    """Every state of a book by its number, cut to its best levels."""
    return {
        state.number: (best(state.book[0], count, bids=True), best(state.book[1], count, bids=False))
        for state in truth(raw)
    }


# -- end to end ------------------------------------------------------------------------------------------------------


async def test_the_recording_arrives_whole(redis_url: str, tmp_path: Path) -> None:
    """Playing server, relay, real server: counts, the last of each, and the books that a consumer rebuilds."""
    raws = list(figures())
    play = {"binance": Playback(RECORDING, speed=30, where={"src": "rec"})}
    async with Simulator(["binance"], play=play) as simulator:
        config = config_of(
            f"""
name: t
redis: {{url: {redis_url}}}
providers:
  binance:
    url: {simulator.url("binance")}
    rest_url: {simulator.rest_url("binance")}
    trades_from: aggTrade
    quotes: [{", ".join(raws)}]
    trades: [{", ".join(raws)}]
    bars: {{1m: [{", ".join(raws)}]}}
    books: {{full: [{", ".join(raws)}]}}
""",
            tmp_path,
        )
        async with relay_of(config) as running:
            stats = running.bridge.providers["binance"].feeds[0].stats
            await until(lambda: stats.frames >= len(recorded()[0]) + 1, 20)
            await until(lambda: final_numbers(redis_url) == [figures()[raw]["book"]["final_update_id"] for raw in raws])
        assert running.bridge.providers["binance"].source.counts.rejects == 0
    for raw in raws:
        want, symbol = figures()[raw], {"NKNUSDT": "NKN-USDT", "BLZETH": "BLZ-ETH"}[raw]
        quotes = of(redis_url, f"quotes.{symbol}", "quote")
        assert len(quotes) == want["counts"]["bookTicker"]
        last = quotes[-1]
        got = [Decimal(last[name]) for name in ("bid", "bid_size", "ask", "ask_size")]
        assert got == [Decimal(text) for text in want["last_book_ticker"]]
        trades = of(redis_url, f"trades.{symbol}", "trade")
        assert len(trades) == want["counts"].get("aggTrade", 0)
        assert sum(trade["side"] == "buy" for trade in trades) == want["aggressor_buys"]
        assert sum(trade["side"] == "sell" for trade in trades) == want["aggressor_sells"]
        bars = of(redis_url, f"bars.1m.{symbol}", "bar")
        assert (len(bars), sum(bar["closed"] for bar in bars)) == (want["bars"], want["closed_bars"])
        told = [message for _, message in entries(redis_url, f"books.binance.{symbol}")]
        book = [one for one in told if one["type"] != "status"]
        # no gap and no doubt; stale with the end of the relay's session
        assert [one["code"] for one in told[len(book) :]] == ["disconnect"] and told[: len(book)] == book
        assert book[0]["type"] == "book_snapshot" and book[-1]["src_seq"] == want["book"]["final_update_id"]
        bids, asks = rebuilt(book)
        for side, rows, descending in ((bids, "final_bids_best5", True), (asks, "final_asks_best5", False)):
            top = best(side, 5, bids=descending)
            assert [[Decimal(p), Decimal(s)] for p, s in top.items()] == [
                [Decimal(p), Decimal(s)] for p, s in want["book"][rows]
            ]
        assert (best(bids, 1000, bids=True), best(asks, 1000, bids=False)) == (
            best(truth(raw)[-1].book[0], 1000, bids=True),
            best(truth(raw)[-1].book[1], 1000, bids=False),
        )


def of(url: str, topic: str, kind: str) -> list[dict[str, Any]]:
    return [message for _, message in entries(url, topic) if message["type"] == kind]


def final_numbers(url: str) -> list[int]:
    books = [entries(url, f"books.binance.{symbol}") for symbol in ("NKN-USDT", "BLZ-ETH")]
    return [book[-1][1].get("src_seq", 0) if book else 0 for book in books]


def rebuilt(messages: list[dict[str, Any]]) -> Book:
    """What a consumer holds who starts at the first message."""
    bids, asks = {}, {}
    for one in messages:
        if one["type"] == "book_snapshot":
            bids, asks = {}, {}
        change(bids, one["bids"])
        change(asks, one["asks"])
    return bids, asks


def test_events_are_counted_as_they_should() -> None:
    """The reference itself, against the figures: events dropped and applied, no gap."""
    lines, snapshots = recorded()
    for raw, want in figures().items():
        events = [json.loads(line.text)["data"] for line in lines if line.raw == raw]
        book = want["book"]
        assert snapshots[raw]["lastUpdateId"] == book["snapshot_update_id"] and events[0]["U"] == book["first_event_U"]
        assert len(truth(raw)) - 1 == book["events_applied"]
        assert len(events) - book["events_applied"] == book["events_dropped"]
        assert truth(raw)[-1].number == book["final_update_id"]


# -- spoiled lines ---------------------------------------------------------------------------------------------------

DEPTH = 50
LATENCY_NS = 150_000_000
TICK_NS = 250_000_000
RESYNC_NS = 2 * SECOND_NS


class Market:
    """The provider's session, its REST side as it stood in recorded time, and one consumer that trusts what it gets."""

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth
        raws = tuple(figures())
        options = BinanceOptions(books={"full": raws}, book_depth_max=depth)
        self.session: Any = SPEC.session(options, SPEC.subscribed(options), SPEC.shared(options))
        self.replies: list[tuple[int, Reply]] = []
        self.books: dict[str, Book | None] = dict.fromkeys(raws)  # None: not good
        self.numbers: dict[str, int] = {}
        self.stale: dict[str, int] = {}  # since when
        self.doubts: list[str] = []
        self.states = {raw: best_of(raw, depth) for raw in raws}
        self.seen = 0
        self.now_ns = recorded()[0][0].t_ns - SECOND_NS // 2
        self.take(self.session.opened(self.now_ns))

    def play(self, lines: list[Line]) -> None:
        for line in lines:
            self.forward(line.t_ns)
            self.take(self.session.receive(Frame(line.t_ns, line.text.encode("utf-8", "surrogatepass"))))
        self.forward(self.now_ns + RESYNC_NS)

    def forward(self, until_ns: int) -> None:
        """Let recorded time pass: answers arrive, ticks are due."""
        while self.now_ns + TICK_NS <= until_ns or (self.replies and self.replies[0][0] <= until_ns):
            due = self.replies[0][0] if self.replies else until_ns + 1
            if due <= self.now_ns + TICK_NS:
                self.now_ns = max(self.now_ns, due)
                self.take(self.session.replied(self.replies.pop(0)[1], self.now_ns))
            else:
                self.now_ns += TICK_NS
                self.take(self.session.tick(self.now_ns))
        self.now_ns = max(self.now_ns, until_ns)

    def take(self, outputs: Any) -> None:
        for one in outputs:
            raw = getattr(one, "raw_symbol", None)
            if isinstance(one, BookSnapshot | BookDelta):
                self.book(one)
            elif isinstance(one, Status) and one.event == "stale":
                assert one.action == "resync"
                self.doubts.append(one.code or "")
                self.books[raw] = None
                self.stale.setdefault(raw, self.now_ns)
        for send in self.session.to_send():
            if isinstance(send, Send):
                self.take(self.session.receive(Frame(self.now_ns, b'{"result":null,"id":1}')))
            else:
                self.ask(send)
        for raw, since in self.stale.items():
            assert self.now_ns - since <= RESYNC_NS, f"{raw} is stale for more than 2 s"

    def ask(self, request: Request) -> None:
        raw = request.tag.removeprefix("depth ")
        if raw == "symbols":
            pairs = {"NKNUSDT": ("NKN", "USDT"), "BLZETH": ("BLZ", "ETH")}
            found = [{"symbol": raw, "baseAsset": base, "quoteAsset": quote} for raw, (base, quote) in pairs.items()]
            self.replies.append((self.now_ns, Reply("symbols", 200, json.dumps({"symbols": found}).encode())))
            return
        limit = int(request.url.rpartition("limit=")[2])
        at = self.now_ns + LATENCY_NS // 2
        state = [state for state in truth(raw) if state.t_ns <= at][-1]
        bids, asks = best_of(raw, limit)[state.number]
        body = {"lastUpdateId": state.number, "bids": list(bids.items()), "asks": list(asks.items())}
        self.replies.append((self.now_ns + LATENCY_NS, Reply(request.tag, 200, json.dumps(body).encode())))

    def book(self, one: BookSnapshot | BookDelta) -> None:
        raw = one.raw_symbol or ""
        if isinstance(one, BookSnapshot):
            held: Book = ({}, {})
            self.stale.pop(raw, None)
        else:
            known = self.books[raw]
            assert known is not None, "a delta to a book that is in doubt"
            # events that change nothing among the published levels lie between
            assert one.prev_seq is not None and one.prev_seq >= self.numbers[raw]
            held = known
        change(held[0], list(map(list, one.bids)))
        change(held[1], list(map(list, one.asks)))
        assert one.src_seq is not None
        self.books[raw], self.numbers[raw] = held, one.src_seq
        self.seen += 1
        assert held == self.states[raw][one.src_seq], f"{raw} at {one.src_seq} is published and differs from the truth"


def spoil(rng: Random, lines: list[Line]) -> tuple[str, list[Line]]:
    """Spoil one book line; give what was done."""
    books = [at for at, line in enumerate(lines) if line.raw]
    at = rng.choice(books)
    line, out = lines[at], list(lines)
    what = rng.choice(("drop", "repeat", "late", "swap", "corrupt"))
    if what == "drop":
        del out[at]
    elif what == "repeat":
        out.insert(at, line)
    elif what == "late":
        behind = min(at + rng.randint(1, 30), len(out) - 1)
        out.insert(behind + 1, line._replace(t_ns=out[behind].t_ns))
    elif what == "swap":
        after = [other for other in books if other > at and lines[other].raw == line.raw]
        if after:
            other = after[0]
            out[at], out[other] = lines[other]._replace(t_ns=line.t_ns), line._replace(t_ns=lines[other].t_ns)
    else:
        how, text = corrupted(rng, line.text)
        what = f"corrupt: {how}"
        out[at] = line._replace(text=text)
    return f"{what} line {at} of {line.raw}", out


def corrupted(rng: Random, text: str) -> tuple[str, str]:
    """Make a line unreadable. A digit turned into another digit is beyond anybody: Binance has no checksum."""
    how = rng.choice(("cut", "byte", "level", "member", "number", "symbol", "empty"))
    frame = json.loads(text)
    data = frame["data"]
    rows = [row for side in "ba" for row in data[side]]
    if how == "cut":
        return how, text[: rng.randrange(len(text))]
    if how == "byte":
        at = rng.randrange(len(text))
        return how, text[:at] + "\x00" + text[at + 1 :]
    if how == "level" and rows:
        row = rng.choice(rows)
        row[rng.randrange(2)] = rng.choice(("", "NaN", "-1", "1,5", None, "1e999", [], True))
    elif how == "member":
        del data[rng.choice(("U", "u", "b", "a", "s"))]
    elif how == "number":
        data[rng.choice("Uu")] = rng.choice((-1, "x", None, 1.5, 2**70))
    elif how == "symbol":
        data["s"] = rng.choice(("BTCUSDT", "", None, 7))
    else:
        return "empty", ""
    return how, json.dumps(frame, separators=(",", ":"))


def spoiled(seed: int) -> tuple[str, Market]:
    rng = Random(seed)
    what, lines = spoil(rng, list(recorded()[0]))
    market = Market()
    try:
        market.play(lines)
    except AssertionError as error:
        error.add_note(f"seed {seed}: {what}")
        raise
    ends = {raw: truth(raw)[-1].number for raw in figures()}
    for raw in ends:
        assert market.books[raw] is not None, f"seed {seed}: {what}: {raw} is not good at the end"
    return what, market


@pytest.mark.parametrize("depth", [5, DEPTH, 2500])
def test_every_published_state_is_the_true_one(depth: int) -> None:
    market = Market(depth)
    market.play(list(recorded()[0]))
    assert market.doubts == [] and market.seen > (20 if depth == 5 else 100)
    assert market.numbers["NKNUSDT"] == figures()["NKNUSDT"]["book"]["final_update_id"] or depth < 2500


@pytest.mark.parametrize("what", ["drop", "swap", "corrupt"])
def test_a_spoiled_line_is_noticed(what: str) -> None:
    """In the middle of the busy book; at its end nobody can know."""
    lines = list(recorded()[0])
    one, two = [at for at, line in enumerate(lines) if line.raw == "NKNUSDT"][75:77]
    if what == "drop":
        del lines[one]
    elif what == "swap":
        lines[one], lines[two] = lines[two], lines[one]
    else:
        lines[one] = lines[one]._replace(text=lines[one].text.replace('"b":[', '"b":[["x","1"],', 1))
    market = Market()
    market.play(lines)
    assert market.doubts == ["sequence_jump" if what != "corrupt" else "unreadable"]
    assert market.books["NKNUSDT"] is not None


@pytest.mark.parametrize("seed", range(12))
def test_a_spoiled_line_never_makes_a_wrong_book(seed: int) -> None:
    spoiled(seed)


@pytest.mark.fault
def test_five_hundred_spoiled_lines_never_make_a_wrong_book() -> None:
    doubted = 0
    for seed in range(1000, 1600):
        _, market = spoiled(seed)
        doubted += bool(market.doubts)
    assert doubted > 250
