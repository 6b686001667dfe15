"""The order-book engine against a reference that does everything the slow way, and each reason to doubt a book."""

import random
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal

import pytest

from relay.books import Applied, Book, Books, Checksum, Doubt, Rules, level
from relay.books.books import RESYNC_PAUSE_NS, RESYNC_TRIES_MAX, SNAPSHOT_WAIT_NS
from relay.errors import SequenceGap
from relay.model import BookDelta, BookSnapshot, Header, Level, Quote, Status

SECOND = 1_000_000_000
ZEROS = ("0", "0.0", "0.00000000", "0.")


class Reference:
    """A book as plainly as it can be written: a dict a side, sorted whenever somebody looks."""

    def __init__(self, depth: int | None) -> None:
        self.depth = depth
        self.bids: dict[Decimal, Level] = {}
        self.asks: dict[Decimal, Level] = {}

    def apply(self, bids: Sequence[Level], asks: Sequence[Level]) -> None:
        for side, rows in ((self.bids, bids), (self.asks, asks)):
            for price, size in rows:
                if Decimal(size) == 0:
                    side.pop(Decimal(price), None)
                else:
                    side[Decimal(price)] = (price, size)
        if self.depth is not None:
            for side, reverse in ((self.bids, True), (self.asks, False)):
                for key in sorted(side, reverse=reverse)[self.depth :]:
                    del side[key]

    def best(self, count: int | None = None) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        return (
            tuple(self.bids[key] for key in sorted(self.bids, reverse=True)[:count]),
            tuple(self.asks[key] for key in sorted(self.asks)[:count]),
        )

    @property
    def crossed(self) -> bool:
        return bool(self.bids and self.asks) and max(self.bids) >= min(self.asks)


def crc(bids: Sequence[Level], asks: Sequence[Level]) -> int:
    return zlib.crc32(repr((tuple(bids), tuple(asks))).encode())


CHECK = Checksum(10, crc)


def spelled(rng: random.Random, cents: int) -> str:
    """One price in one of its spellings."""
    plain = f"{cents // 100}.{cents % 100:02d}"
    return rng.choice((plain, plain + "0", plain.rstrip("0").rstrip("."), plain + "0" * 20))


def rows(rng: random.Random, low: int, high: int, count: int) -> list[Level]:
    return [
        (spelled(rng, rng.randint(low, high)), rng.choice((*ZEROS, "1", "2.50", "0.00010", "7"))) for _ in range(count)
    ]


def history(seed: int, steps: int = 40) -> None:
    """One random life of a book: every state, and every published state, equals the reference."""
    rng = random.Random(seed)
    depth, window = rng.choice((None, 1, 3, 10)), rng.choice((None, 1, 2, 5, 50))
    check = rng.choice((None, CHECK))
    may_cross = rng.random() < 0.5
    spread = rng.choice((0, 10))  # without a gap between the sides books cross now and then
    book, wire = Book(depth, check, window=window, may_cross=may_cross), Reference(depth)
    out = Reference(None)  # a consumer that only does what it is told
    number = rng.randint(0, 5)
    shown = depth if window is None else window if depth is None else min(window, depth)
    for _ in range(steps):
        bids = rows(rng, 80, 100 + 2 * (spread == 0), rng.randint(0, 6))
        asks = rows(rng, 100 + spread, 130, rng.randint(0, 6))
        if book.state != "good" or rng.random() < 0.05:
            wire = Reference(depth)
            wire.apply(bids, asks)
            told = crc(*wire.best(10)) if check else None
            doubt = book.snapshot(bids, asks, number, told)
            assert (doubt is None) == (may_cross or check is not None or not wire.crossed)
            if doubt is None:
                out = Reference(None)
                out.apply(*book.levels())
            else:
                assert doubt.code == "crossed"
                continue
        else:
            wire.apply(bids, asks)
            told = crc(*wire.best(10)) if check and rng.random() < 0.8 else None
            first = number + 1
            number += rng.randint(1, 3)
            applied = book.delta(bids, asks, first, number, checksum=told)
            if isinstance(applied, Doubt):
                assert applied.code == "crossed" and wire.crossed and not may_cross and told is None
                assert book.state == "doubted" and len(book) == 0
                continue
            assert isinstance(applied, Applied)
            for side, reverse in ((applied.bids, True), (applied.asks, False)):
                keys = [Decimal(price) for price, _ in side]
                assert keys == sorted(set(keys), reverse=reverse)
            out.apply(*applied)
        assert book.levels(1000) == wire.best()
        assert book.levels() == wire.best(shown) == out.best()
        assert len(book) == len(wire.bids) + len(wire.asks)
        best = wire.best(1)
        assert book.top() == (best[0][0] if best[0] else None, best[1][0] if best[1] else None)
        assert may_cross or check or not wire.crossed


@pytest.mark.parametrize("block", range(10))
def test_random_histories_equal_the_reference(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        history(seed)


@pytest.mark.fault
def test_ten_thousand_random_histories_equal_the_reference() -> None:
    for seed in range(10_000, 20_000):
        history(seed)


# -- one book ----------------------------------------------------------------------------------------------------


def made(depth: int | None = None, *, number: int | None = None, check: Checksum | None = None) -> Book:
    book = Book(depth, check)
    assert book.state == "syncing"
    assert book.snapshot([("10", "1"), ("9", "1"), ("8", "1")], [("11", "1"), ("12", "1")], number) is None
    assert book.state == "good"
    return book


def test_zero_in_any_spelling_removes_and_a_level_not_held_passes() -> None:
    book = made()
    for price, zero in (("10.0", "0"), ("9.00", "0.00000000"), ("8", "0.")):
        assert book.delta([(price, zero)], []) == Applied(((price, zero),), ())
    assert book.delta([("7", "0")], [("99", "0.0")]) == Applied((), ())
    assert book.top() == (None, ("11", "1"))


def test_a_price_that_comes_twice_counts_as_it_came_last() -> None:
    book = made()
    applied = book.delta([("10", "0"), ("10", "5"), ("9.5", "1"), ("9.5", "0")], [])
    assert isinstance(applied, Applied)
    assert book.levels()[0] == (("10", "5"), ("9", "1"), ("8", "1"))
    assert applied.bids[0] == ("10", "5")


def test_a_checksum_sees_each_digit() -> None:
    book = made(check=CHECK)
    right = crc((("10", "1.0"), ("9", "1"), ("8", "1")), (("11", "1"), ("12", "1")))
    doubt = book.delta([("10", "1.00")], [], checksum=right)
    assert isinstance(doubt, Doubt) and doubt.code == "checksum" and str(right) in doubt.text
    assert book.state == "doubted" and len(book) == 0


def test_prices_beyond_the_scale_are_told_apart() -> None:
    long, longer = "1." + "0" * 30 + "1", "1." + "0" * 30 + "2"
    book = Book()
    assert book.snapshot([(long, "1"), ("1", "2")], [(longer, "3")]) is None
    assert book.top() == ((long, "1"), (longer, "3"))
    assert book.delta([], [(longer + "000", "0")]) == Applied((), ((longer + "000", "0"),))


@pytest.mark.parametrize(
    ("first", "last", "prev", "code"),
    [
        (101, 101, None, None),
        (101, 105, None, None),
        (None, 101, None, None),
        (103, 105, None, "sequence_jump"),
        (None, 102, None, "sequence_jump"),
        (150, 160, 100, None),
        (150, 160, 99, "sequence_jump"),
    ],
)
def test_numbers_must_follow(first: int | None, last: int, prev: int | None, code: str | None) -> None:
    book = made(number=99)
    assert isinstance(book.delta([], [("12", "3")], 100, 100, 99), Applied)
    got = book.delta([("10", "2")], [], first, last, prev)
    assert (got.code if isinstance(got, Doubt) else None) == code
    assert book.number == (None if code else last)


def test_the_first_update_may_contain_the_snapshot_but_no_later_one() -> None:
    book = made(number=100)
    assert isinstance(book.delta([("10", "2")], [], 95, 102), Applied)
    doubt = book.delta([("10", "2")], [], 101, 104)
    assert isinstance(doubt, Doubt) and doubt.code == "sequence_overlap"


def test_late_and_repeated_numbers_change_nothing_and_a_new_count_is_a_doubt() -> None:
    book = made(number=50_000)
    assert book.delta([("10", "0")], [], 50_000, 50_000) is None
    assert book.delta([("10", "0")], [], 49_000, 49_990) is None
    assert book.top()[0] == ("10", "1")
    doubt = book.delta([("10", "0")], [], 1, 1)
    assert isinstance(doubt, Doubt) and doubt.code == "sequence_reset"


@pytest.mark.parametrize("wire", [("0", "1"), ("-1", "1"), ("1", "-1"), ("x", "1"), ("1", None), ("1", "0.-10000")])
def test_what_is_no_level_is_refused(wire: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="."):
        level(*wire)


# -- the books of a session --------------------------------------------------------------------------------------


def books(rules: Rules = Rules(), **options: object) -> Books:  # noqa: B008
    return Books({"X": ("X-Y", None)}, rules, **options)  # type: ignore[arg-type]


BIDS, ASKS = [("10", "1"), ("9", "2")], [("11", "1"), ("12", "2")]


def kinds(out: Sequence[Header]) -> list[str]:
    return [one.event if isinstance(one, Status) else type(one).__name__ for one in out]


def test_a_doubt_is_said_once_and_nothing_goes_out_before_the_snapshot() -> None:
    held = books(quotes=["X"])
    held.want("X", 0)
    assert kinds(held.snapshot("X", BIDS, ASKS, 1)) == ["BookSnapshot", "Quote"]
    out = held.delta("X", [("11", "1")], [], 2)
    assert kinds(out) == ["stale", "stale"]
    assert isinstance(out[0], Status) and (out[0].code, out[0].action) == ("crossed", "resync")
    assert [one.channel for one in out if isinstance(one, Status)] == ["books", "quotes"]
    assert held.delta("X", [("10", "3")], [], 3) == ()
    assert held.doubt("X", "other", "once more", 3) == []
    assert held.resync(3) == ["X"]
    assert kinds(held.snapshot("X", BIDS, ASKS, 4)) == ["BookSnapshot", "Quote"]
    assert kinds(held.delta("X", [("9.5", "3")], [], 5)) == ["BookDelta"]


def asked(held: Books, until_ns: int) -> Iterator[int]:
    for now in range(0, until_ns, SECOND // 4):
        for _ in held.resync(now):
            yield now
        held.tick(now)


def test_requests_keep_their_pace_and_end_the_session() -> None:
    held = books()
    held.want("X", 0)
    held.doubt("X", "test", "", 0)
    times = []
    with pytest.raises(SequenceGap):
        for now in asked(held, 600 * SECOND):
            times.append(now)
            assert len(times) <= RESYNC_TRIES_MAX
            held.snapshot("X", BIDS, ASKS, now + 1)
            assert kinds(held.doubt("X", "test", "", now + 2)) == ["stale"]
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert len(times) == RESYNC_TRIES_MAX
    assert times[0] == 0 and pauses[0] == RESYNC_PAUSE_NS and pauses == sorted(pauses) and pauses[1] > pauses[0]


def test_a_snapshot_that_does_not_come_is_asked_for_again() -> None:
    held = books()
    held.want("X", 0)
    assert held.tick(SNAPSHOT_WAIT_NS - 1) == [] and held.resync(SNAPSHOT_WAIT_NS - 1) == []
    (status,) = held.tick(SNAPSHOT_WAIT_NS)
    assert isinstance(status, Status) and (status.event, status.code) == ("stale", "snapshot_timeout")
    assert held.resync(SNAPSHOT_WAIT_NS) == ["X"]
    assert held.tick(SNAPSHOT_WAIT_NS + 1) == []


def test_a_book_that_lasted_begins_its_count_anew() -> None:
    held = books()
    held.want("X", 0)
    now = 0
    for _ in range(3 * RESYNC_TRIES_MAX):
        held.snapshot("X", BIDS, ASKS, now)
        now += 60 * SECOND
        assert kinds(held.doubt("X", "test", "", now)) == ["stale"]
        assert held.resync(now) == ["X"]


def test_a_market_that_is_crossed_itself_is_published_as_it_is() -> None:
    held = books()
    held.want("X", 0)
    crossed = ([("12", "1")], [("11", "1")])
    assert kinds(held.snapshot("X", *crossed, 0)) == ["stale"]
    assert held.resync(1) == ["X"]
    assert kinds(held.snapshot("X", *crossed, 1)) == ["BookSnapshot"]
    assert kinds(held.delta("X", [("12", "5")], [], 2)) == ["BookDelta"]
    assert kinds(held.delta("X", [("12", "0"), ("10", "1")], [], 2)) == ["BookDelta"]
    assert kinds(held.delta("X", [("12", "5")], [], 3)) == ["stale"]


def test_a_snapshot_comes_again_by_count_and_by_time() -> None:
    held = books(snapshot_every=3, snapshot_secs=10, quotes=["X"])
    held.want("X", 0)
    held.snapshot("X", BIDS, ASKS, 0)
    got = [kinds(held.delta("X", [("10", str(n))], [], n)) for n in range(2, 6)]
    assert got == [["BookDelta", "Quote"]] * 2 + [["BookDelta", "BookSnapshot", "Quote"], ["BookDelta", "Quote"]]
    (again,) = held.tick(10 * SECOND + 4)
    assert isinstance(again, BookSnapshot) and again.bids[0] == ("10", "5")
    assert held.tick(60 * SECOND) == []  # no change since


def test_a_good_book_is_asked_for_again_where_losses_are_unseen() -> None:
    held = books(refresh_secs=60)
    held.want("X", 0)
    held.snapshot("X", BIDS, ASKS, 0)
    held.tick(59 * SECOND)
    assert not held.pending
    assert held.tick(60 * SECOND) == [] and held.resync(60 * SECOND) == ["X"]
    assert kinds(held.delta("X", [("10", "3")], [], 61 * SECOND)) == ["BookDelta"]
    assert kinds(held.snapshot("X", BIDS, ASKS, 61 * SECOND)) == ["BookSnapshot"]
    held.tick(120 * SECOND)
    assert not held.pending
    held.tick(121 * SECOND)
    assert held.resync(121 * SECOND) == ["X"]
    assert kinds(held.tick(131 * SECOND)) == ["stale"], "an answer that does not come is a doubt"
    assert held.resync(131 * SECOND) == ["X"]


def test_a_quote_comes_of_a_changed_top_only() -> None:
    held = books(quotes=["X"])
    held.want("X", 0)
    _, quote = held.snapshot("X", BIDS, ASKS, 0, ts_event=7)
    assert isinstance(quote, Quote)
    assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size, quote.ts_event) == ("10", "1", "11", "1", 7)
    assert kinds(held.delta("X", [("9", "5")], [], 1)) == ["BookDelta"]
    assert kinds(held.delta("X", [("10", "5")], [], 1)) == ["BookDelta", "Quote"]
    (_, one_sided) = held.delta("X", [("10", "0"), ("9", "0")], [], 1)
    assert isinstance(one_sided, Quote) and one_sided.bid is None and one_sided.ask == "11"


def test_only_the_window_goes_out() -> None:
    held = books(depth_max=2)
    held.want("X", 0)
    (whole,) = held.snapshot("X", [*BIDS, ("8", "1")], ASKS, 0)
    assert isinstance(whole, BookSnapshot) and whole.depth == 2 and whole.bids == tuple(BIDS)
    assert held.delta("X", [("8", "2"), ("7", "1")], [], 1) == ()
    (delta,) = held.delta("X", [("10", "0.0")], [], 1)
    assert isinstance(delta, BookDelta) and delta.bids == (("10", "0.0"), ("8", "2"))


def test_deltas_wait_for_a_snapshot_by_rest() -> None:
    held = books(Rules(buffered=True))
    held.want("X", 0, ask=True)
    assert held.resync(0) == ["X"]
    for first, last in ((96, 100), (101, 103), (104, 104)):
        assert held.delta("X", [("10", str(last))], [], 0, first=first, last=last, ts_event=last) == ()
    assert kinds(held.snapshot("X", BIDS, ASKS, 1, number=90)) == ["stale"]  # older than what waits
    assert held.resync(1) == ["X"] and held.resync(1) == []
    (whole,) = held.snapshot("X", BIDS, ASKS, 2, number=102)
    assert isinstance(whole, BookSnapshot) and (whole.src_seq, whole.ts_event) == (104, 104)
    assert whole.bids[0] == ("10", "104")
    assert held.snapshot("X", [], [], 3, number=103) == []  # an answer that comes late
    (delta,) = held.delta("X", [("10", "7")], [], 4, first=105, last=107)
    assert isinstance(delta, BookDelta) and (delta.src_seq, delta.prev_seq) == (107, 104)
    assert kinds(held.delta("X", [("10", "8")], [], 5, first=109, last=109)) == ["stale"]
    # the one behind the hole waited already
    (whole,) = held.snapshot("X", BIDS, ASKS, 6, number=108)
    assert isinstance(whole, BookSnapshot) and whole.src_seq == 109 and whole.bids[0] == ("10", "8")


def test_an_end_of_the_session_is_said_of_good_books_only() -> None:
    held = Books({"X": ("X", None), "Y": ("Y", None)})
    held.want("X", 0)
    held.want("Y", 0)
    held.snapshot("X", BIDS, ASKS, 0)
    (status,) = held.closed(1)
    assert isinstance(status, Status) and (status.raw_symbol, status.code) == ("X", "disconnect")
    assert held.delta("X", [("10", "7")], [], 4) == () and held.snapshot("X", BIDS, ASKS, 5) == []
