"""The Kraken provider against its simulated side, sans-IO: books stay the market's, what is refused comes to light."""

from random import Random
from typing import Any

import pytest
from test_books import Reference

from relay.errors import SessionError
from relay.model import Bar, BookDelta, BookSnapshot, Instrument, Quote, Status, Trade
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Seen, Send, Subscription
from relay.providers.kraken import to_raw, to_symbol
from relay.providers.kraken.options import KrakenOptions
from relay.simulator import SIDES
from relay.simulator.base import World

SECOND_NS = 1_000_000_000
START_NS = 1_772_359_200_000_000_000
SPEC = PROVIDERS["kraken"]


def world(**knobs: Any) -> World:
    return World(Random(7), knobs=knobs)


class Wire:
    """One connection: a session, a side, and a clock of its own."""

    def __init__(self, options: KrakenOptions, world: World, shared: Any = None) -> None:
        self.now_ns = START_NS
        self.out: list[Any] = []
        self.shared = shared or SPEC.shared(options)
        self.session: Any = SPEC.session(options, SPEC.subscribed(options), self.shared)
        self.side = SIDES["kraken"].side(world, "", {})
        assert self.side.upgrade() is None
        self.deliver(self.side.opened(self.now_ns))
        self.out += self.session.opened(self.now_ns)
        self.send()

    def send(self) -> None:
        for one in self.session.to_send():
            assert isinstance(one, Send)
            self.deliver(self.side.receive(one.data, self.now_ns))

    def deliver(self, steps: list[Any]) -> None:
        for one in steps:
            assert isinstance(one, str), one
            self.out += self.session.receive(Frame(self.now_ns, one.encode()))
        if steps:
            self.send()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_ns += SECOND_NS // 100
            self.deliver(self.side.step(self.now_ns))

    def secs(self, count: int = 1) -> None:
        for _ in range(4 * count):
            self.now_ns += SECOND_NS // 4
            self.deliver(self.side.tick(self.now_ns))
            self.out += self.session.tick(self.now_ns)
            self.send()

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.out if isinstance(one, kind)]

    def events(self, *names: str) -> list[Status]:
        return [one for one in self.of(Status) if one.event in names]


ALL = KrakenOptions(
    quotes=("BTC/USD", "ETH/USD"), trades=("BTC/USD",), bars={"1m": ("BTC/USD",)}, instruments=("BTC/USD",),
    books={"10": ("BTC/USD",), "25": ("ETH/USD",), "100": ("XRP/USD",)},
)  # fmt: skip


def test_every_channel_arrives_and_books_are_the_markets() -> None:
    wire = Wire(ALL, world())
    wire.step(2000)
    assert [one.event for one in wire.of(Status) if one.event != "notice"] == ["subscribed"]
    for kind in (Quote, Trade, Bar, Instrument, BookSnapshot, BookDelta):
        assert wire.of(kind), kind
    numbers = [one.src_seq for one in wire.of(Trade)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for raw, depth in (("BTC/USD", 10), ("ETH/USD", 25), ("XRP/USD", 100)):
        book = Reference(None)
        for one in wire.out:
            if isinstance(one, BookSnapshot | BookDelta) and one.raw_symbol == raw:
                book.apply(one.bids, one.asks)
        market: Any = wire.side._market(raw)  # type: ignore[attr-defined]
        sent: Any = wire.side.subscribed["book", raw, depth]  # type: ignore[attr-defined]
        assert [len(side) for side in book.best()] == [len(side) for side in sent.view]
        assert len(book.bids) == min(depth, len(market.bids))


@pytest.mark.parametrize("knobs", [{"wrong_checksum_every": 25}, {}])
def test_a_wrong_checksum_resyncs_that_symbol_alone(knobs: dict[str, Any]) -> None:
    wire = Wire(ALL, world(**knobs))
    for _ in range(10):
        wire.step(40)
        if not knobs:
            wire.side.jump()
        wire.secs(2)
    stale = wire.events("stale")
    assert len(stale) > 3 and {one.code for one in stale} == {"checksum"}
    for one in stale:
        behind = [m for m in wire.out[wire.out.index(one) + 1 :] if m.raw_symbol == one.raw_symbol]
        books = [m for m in behind if isinstance(m, BookSnapshot | BookDelta | Status)]
        assert not books or isinstance(books[0], BookSnapshot)
    gaps = [b.src_seq - a.src_seq for a, b in zip(wire.of(Trade), wire.of(Trade)[1:], strict=False)]
    assert knobs or {4} <= set(gaps) <= {1, 4, 7}, "each jump loses three trades"


def test_books_without_checksums_are_kept_all_the_same() -> None:
    wire = Wire(ALL, world(no_checksum=True))
    wire.step(500)
    assert len(wire.of(BookDelta)) > 50 and not wire.events("stale")
    assert {one.checksum for one in wire.of(BookDelta)} == {None}


def test_unknown_symbol_is_refused_and_the_rest_goes_on() -> None:
    wire = Wire(ALL, world(unknown=["ETH/USD"]))
    refused = wire.events("refused")
    assert {(one.channel, one.raw_symbol) for one in refused} == {("quotes", "ETH/USD"), ("books", "ETH/USD")}
    assert wire.events("subscribed")
    wire.step(50)
    wire.secs(15)
    assert {one.raw_symbol for one in wire.of(BookDelta)} == {"BTC/USD", "XRP/USD"}
    assert not wire.events("stale"), "a refused book is not waited for"


def test_nothing_left_and_no_answer_end_the_session() -> None:
    wire = Wire(KrakenOptions(quotes=("FOO/USD",)), world(unknown=["FOO/USD"]))
    with pytest.raises(SessionError, match="nothing is left") as ended:
        wire.secs()
    assert ended.value.action == "slow"
    wire = Wire(KrakenOptions(quotes=("BTC/USD",)), world(mute=True))
    with pytest.raises(SessionError, match="no answer") as ended:
        wire.secs(11)
    assert (ended.value.action, ended.value.code) == ("retry", "ack_timeout")


def test_a_reconnect_fills_the_trades_in_between() -> None:
    market = world()
    options = KrakenOptions(trades=("BTC/USD",))
    first = Wire(options, market)
    first.step(100)
    last = first.of(Trade)[-1].src_seq
    for _ in range(10):
        first.side._market("BTC/USD")._trade("buy", 630_000, first.now_ns)  # type: ignore[attr-defined]
    second = Wire(options, market, first.shared)
    second.step(50)
    assert not second.of(Seen)
    assert [one.src_seq for one in second.of(Trade)][:11] == list(range(last + 1, last + 12))


def test_run_time_changes_are_acknowledged() -> None:
    wire = Wire(KrakenOptions(quotes=("BTC/USD",)), world())
    sub = Subscription("books", "ETH/USD", "10")
    wire.session.subscribe([sub], wire.now_ns)
    wire.send()
    assert [one.raw_symbol for one in wire.of(BookSnapshot)] == ["ETH/USD"]
    wire.session.unsubscribe([sub], wire.now_ns)
    wire.send()
    assert [(one.channel, one.raw_symbol) for one in wire.events("unsubscribed")] == [("books", "ETH/USD")]
    count = len(wire.of(BookDelta))
    wire.step(20)
    assert len(wire.of(BookDelta)) == count and wire.of(Quote)


@pytest.mark.parametrize(
    ("raw", "symbol"), [("BTC/USD", "BTC-USD"), ("DOGE/EUR", "DOGE-EUR"), ("AAPLx/USD", "AAPL_78-USD")]
)
def test_symbols_map_both_ways(raw: str, symbol: str) -> None:
    assert to_symbol(raw) == (symbol, None)
    assert to_raw(symbol) == raw


def test_old_codes_are_modern_and_what_is_no_pair_stays_whole() -> None:
    assert [to_symbol(raw)[0] for raw in ("XBT/USD", "XDG/XBT")] == ["BTC-USD", "DOGE-BTC"]
    assert len({to_symbol(raw)[0] for raw in ("BTCUSD", "BTC/", "/USD", "A/B/C", "", "BTC-USD")}) == 6
    for symbol in ("BTCUSD", "BTC-USD-PERP", "_"):
        with pytest.raises(ValueError, match="pair"):
            to_raw(symbol)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"books": {"20": ("BTC/USD",)}}, "10, 25, 100, 500, 1000"),
        ({"bars": {"2m": ("BTC/USD",)}}, "no interval of Kraken"),
        ({"quotes": ("BTC-USD",)}, "BTC/USD"),
        ({"quotes": ("XBT/USD",)}, "says BTC for XBT"),
        ({"books": {"10": ("BTC/USD",), "25": ("BTC/USD",)}}, "one depth a symbol"),
        ({"quotes_from_books": ("BTC/USD",)}, "not listed under books"),
        ({"books": {"10": ("BTC/USD",)}, "quotes": ("BTC/USD",), "quotes_from_books": ("BTC/USD",)}, "quotes too"),
    ],
)
def test_what_kraken_would_refuse_is_refused_at_the_start(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KrakenOptions(**section)
