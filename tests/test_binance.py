"""The Binance provider against its simulated side, sans-IO: symbols, acknowledgements, books by snapshot and diffs."""

import json
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from relays import config_of, entries, relay_of, until

from relay.errors import SessionError
from relay.model import Bar, BookDelta, BookSnapshot, Quote, Status, Trade
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Reply, Request, Send, Subscription
from relay.providers.binance import BinanceOptions, to_raw, to_symbol
from relay.simulator import SIDES
from relay.simulator.base import Close, World
from relay.simulator.binance import PAIRS, rest
from relay.simulator.faults import Faults
from relay.simulator.server import Simulator

SECOND_NS = 1_000_000_000
START_NS = 1_772_359_200_000_000_000
SPEC = PROVIDERS["binance"]
BASE = "http://127.0.0.1:1/binance"


def options(**given: Any) -> BinanceOptions:
    return BinanceOptions(**{"url": "ws://127.0.0.1:1/binance", "rest_url": BASE, **given})


def world(**knobs: Any) -> World:
    return World(random=Random(7), knobs=knobs)


class Wire:
    """One connection: a session, a side, its REST side, and a clock of its own."""

    def __init__(self, given: BinanceOptions, market: World, shared: Any = None) -> None:
        self.now_ns, self.market = START_NS, market
        self.out: list[Any] = []
        self.frames: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.late: list[Request] | None = None  # requests that are kept unanswered, where it is a list
        self.shared = SPEC.shared(given) if shared is None else shared
        self.session: Any = SPEC.session(given, SPEC.subscribed(given), self.shared)
        path = self.session.connect().url.removeprefix("ws://127.0.0.1:1/binance")
        self.side = SIDES["binance"].side(market, path, {})
        assert self.side.upgrade() is None
        self._deliver(self.side.opened(self.now_ns))
        self.out += self.session.opened(self.now_ns)
        self.send()

    def send(self) -> None:
        while sends := self.session.to_send():
            for one in sends:
                if isinstance(one, Send):
                    self._deliver(self.side.receive(one.data, self.now_ns))
                elif self.late is not None:
                    self.late.append(one)
                else:
                    self.answer(one)

    def answer(self, request: Request) -> None:
        target = request.url.removeprefix(BASE)
        self.asked.append(target)
        answer = rest(self.market, request.method, target, {}, request.body, self.now_ns)
        reply = Reply(request.tag, answer.status, answer.body, dict(answer.headers))
        self.out += self.session.replied(reply, self.now_ns)

    def _deliver(self, steps: list[Any]) -> None:
        for one in steps:
            assert isinstance(one, str), one
            self.frames.append(json.loads(one))
            self.out += self.session.receive(Frame(self.now_ns, one.encode()))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._deliver(self.side.step(self.now_ns))
            self.send()

    def secs(self, count: int = 1) -> None:
        for _ in range(4 * count):
            self.now_ns += SECOND_NS // 4
            self._deliver(self.side.tick(self.now_ns))
            self.out += self.session.tick(self.now_ns)
            self.send()

    def of(self, kind: type[Any], raw: str | None = None) -> list[Any]:
        return [one for one in self.out if isinstance(one, kind) and (raw is None or one.raw_symbol == raw)]

    def statuses(self) -> list[tuple[str, str | None, str | None]]:
        return [(one.event, one.channel, one.raw_symbol) for one in self.of(Status)]

    def book(self, raw: str) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
        """What a consumer holds after all that came."""
        sides: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
        for one in self.out:
            if isinstance(one, BookSnapshot | BookDelta) and one.raw_symbol == raw:
                for side, rows in zip(sides, (one.bids, one.asks), strict=True):
                    if isinstance(one, BookSnapshot):
                        side.clear()
                    for price, size in rows:
                        if Decimal(size):
                            side[Decimal(price)] = Decimal(size)
                        else:
                            side.pop(Decimal(price), None)
        return sides

    def true_book(self, raw: str, count: int = 1000) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
        market = self.market.state["markets"][raw]
        bids, asks = (
            {Decimal(p) / 100: Decimal(size).scaleb(-8) for p, size in market.best(side, count)} for side in "ba"
        )
        return bids, asks


# -- symbols ---------------------------------------------------------------------------------------------------------


def test_symbols_part_in_one_known_way_and_come_back() -> None:
    for raw, symbol in {
        "BTCUSDT": "BTC-USDT", "ETHBTC": "ETH-BTC", "USDTTRY": "USDT-TRY", "BTCFDUSD": "BTC-FDUSD", "BNBUSD": "BNB-USD",
        "BTCTUSD": "BTC-TUSD", "1INCHUSDT": "1INCH-USDT", "btcusdt": "BTC-USDT", "FDUSDUSDT": "FDUSD-USDT",
    }.items():  # fmt: skip
        assert to_symbol(raw) == (symbol, None)
        assert to_raw(symbol) == raw.upper()


def test_what_cannot_be_parted_stays_whole() -> None:
    for raw in ("C00USDT", "BTCXUSDT", "USDT", "NEWCOINBTC", "BTCXAEUR", "幣USDT"):
        symbol, _ = to_symbol(raw)
        assert "-" not in symbol and to_raw(symbol) == raw
    for wrong in ("BTC-USD-PERP", "-USD", "BTC-", ""):
        with pytest.raises(ValueError):
            to_raw(wrong)


def test_every_pair_of_the_list_is_named_by_it() -> None:
    wire = Wire(options(quotes=("NKNUSDT", "BTCUSDT")), world())
    assert {raw: wire.shared.names[raw] for raw in PAIRS} == {
        raw: ("-".join(pair), None) for raw, pair in PAIRS.items()
    }
    wire.step(4)
    assert {quote.symbol for quote in wire.of(Quote)} == {"NKN-USDT", "BTC-USDT"}


def test_symbols_that_only_the_list_names_wait_for_it() -> None:
    market = world(retry_after=1)
    wire = Wire(options(quotes=("NKNUSDT", "BTCUSDT")), market)
    assert list(wire.side.streams) == ["btcusdt@bookTicker"]
    assert [one.event for one in wire.of(Status)] == ["subscribed", "quota", "notice"]
    market.knobs.clear()
    wire.secs(7)
    assert list(wire.side.streams) == ["btcusdt@bookTicker", "nknusdt@bookTicker"]


def test_without_a_list_symbols_keep_their_whole_names() -> None:
    wire = Wire(options(quotes=("NKNUSDT",), symbols={"BLZETH": "BLZ-ETH"}, trades=("BLZETH",)), world(retry_after=1))
    assert list(wire.side.streams) == ["blzeth@trade"]
    wire.secs(30)
    assert list(wire.side.streams) == ["blzeth@trade", "nknusdt@bookTicker"]
    assert [one for one in wire.of(Status) if one.code == "no_symbol_list"]
    wire.step(2)
    assert [one.symbol for one in wire.of(Quote)] == ["NKNUSDT"] and [one.symbol for one in wire.of(Trade)] == [
        "BLZ-ETH"
    ]


def test_unlisted_symbols_are_refused_by_name() -> None:
    wire = Wire(options(quotes=("BTCUSDT", "FOOBAR"), trades=("ETHUSDT",)), world(unlisted=["ETHUSDT"]))
    wire.secs(1)
    assert sorted(one for one in wire.statuses() if one[0] == "refused") == [
        ("refused", "quotes", "FOOBAR"),
        ("refused", "trades", "ETHUSDT"),
    ]
    assert list(wire.side.streams) == ["btcusdt@bookTicker"]


def test_nothing_left_ends_the_session_slowly() -> None:
    with pytest.raises(SessionError) as caught:
        Wire(options(quotes=("FOOBAR",)), world()).secs(1)
    assert caught.value.action == "slow"


def test_the_list_is_kept_and_asked_for_once_a_day() -> None:
    given = options(quotes=("NKNUSDT",))
    first = Wire(given, world())
    kept = SPEC.shared(given)
    kept.load_state(json.loads(msgspec.json.encode(first.shared.state())))
    second = Wire(given, world(), kept)
    assert second.asked == [] and list(second.side.streams) == ["nknusdt@bookTicker"]
    other = SPEC.shared(options(quotes=("NKNUSDT",), rest_url="http://elsewhere"))
    other.load_state(first.shared.state())
    assert other.pairs == {}
    second.now_ns += 24 * 3600 * SECOND_NS
    second.session.tick(second.now_ns)
    fresh = SPEC.session(given, SPEC.subscribed(given), kept)
    fresh.opened(second.now_ns)
    assert [one.tag for one in fresh.to_send() if isinstance(one, Request)] == ["symbols"]


def test_lower_case_symbols_are_folded() -> None:
    given = options(quotes=("btcusdt",), books={"full": ("ethusdt",)}, quotes_from_books=("ethusdt",))
    wire = Wire(given, world())
    wire.step(6)
    assert {one.raw_symbol for one in wire.of(Quote)} == {"BTCUSDT", "ETHUSDT"}
    assert SPEC.shared(given).wants(Subscription("quotes", "BTCUSDT"), "BTCUSDT", "")


# -- streams ---------------------------------------------------------------------------------------------------------


ALL = options(
    quotes=("BTCUSDT",),
    trades=("BTCUSDT", "ETHBTC"),
    bars={"1m": ("BTCUSDT",)},
    books={"full": ("BTCUSDT",), "5": ("ETHBTC",)},
)


def test_every_channel_is_mapped() -> None:
    wire = Wire(ALL, world())
    wire.step(20)
    assert wire.statuses() == [("subscribed", None, None)]
    for raw in ("BTCUSDT", "ETHBTC"):
        trades = wire.of(Trade, raw)
        ids = [trade.src_seq for trade in trades]
        assert ids == list(range(ids[0], ids[0] + 10)) and [str(n) for n in ids] == [trade.id for trade in trades]
        events = [f["data"] for f in wire.frames if f.get("stream") == f"{raw.lower()}@trade"]
        assert [trade.side for trade in trades] == ["sell" if event["m"] else "buy" for event in events]
    assert len(wire.of(Quote)) == 10 and len(wire.of(Bar)) == 10
    assert all(len(one.bids) == len(one.asks) == 5 for one in wire.of(BookSnapshot, "ETHBTC"))
    assert wire.book("BTCUSDT") == wire.true_book("BTCUSDT")
    assert wire.session.useless == 0


def test_bars_close_and_their_end_is_the_next_start() -> None:
    wire = Wire(options(bars={"1m": ("BTCUSDT",), "1M": ("BTCUSDT",)}), world())
    wire.step(3)
    wire.now_ns += 60 * SECOND_NS
    wire.step(1)
    bars = [bar for bar in wire.of(Bar) if bar.interval == "1m"]
    assert [bar.closed for bar in bars] == [False, False, False, True, False]
    assert bars[3].end == bars[4].start == START_NS // (60 * SECOND_NS) * 60 * SECOND_NS + 60 * SECOND_NS
    months = [bar for bar in wire.of(Bar) if bar.interval == "1M"]
    assert months[0].end - months[0].start == 31 * 86_400 * SECOND_NS


def test_one_of_trade_and_aggregated_trade_is_published() -> None:
    wire = Wire(options(trades=("BTCUSDT",), trades_from="aggTrade", microseconds=False), world())
    assert list(wire.side.streams) == ["btcusdt@aggTrade"]
    wire.side._join(["btcusdt@trade"])
    wire.step(5)
    events = [frame["data"] for frame in wire.frames if frame.get("stream") == "btcusdt@aggTrade"]
    assert [trade.src_seq for trade in wire.of(Trade)] == [event["a"] for event in events]
    assert wire.session.useless == 5
    assert {trade.ts_event for trade in wire.of(Trade)} == {START_NS}


def test_streams_are_asked_for_in_few_messages() -> None:
    raws = tuple(raw for raw in PAIRS if "-" in to_symbol(raw)[0])[:60]
    given = options(quotes=raws, trades=raws, bars={"1m": raws, "1s": raws[:30]})
    wire = Wire(given, world())
    assert len(wire.side.streams) == 180 + 30 and len(wire.side.heard) == 2
    assert wire.statuses() == [("subscribed", None, None)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_refused_stream_leaves_the_others(wrapped: bool) -> None:
    given = options(quotes=("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT"))
    wire = Wire(given, world(refuse=["bnbusdt@bookTicker"], wrapped=wrapped))
    assert wire.statuses() == [("refused", "quotes", "BNBUSDT"), ("subscribed", None, None)]
    assert set(wire.side.streams) == {"btcusdt@bookTicker", "ethusdt@bookTicker", "solusdt@bookTicker"}


def test_no_answer_ends_the_session() -> None:
    wire = Wire(options(quotes=("BTCUSDT",)), world(mute=True))
    with pytest.raises(SessionError) as caught:
        wire.secs(12)
    assert (caught.value.code, caught.value.action) == ("ack_timeout", "retry")


def test_subscriptions_change_at_run_time() -> None:
    wire = Wire(options(trades=("BTCUSDT",)), world())
    wire.out += wire.session.subscribe([Subscription("books", "ETHUSDT", "full")], wire.now_ns)
    wire.send()
    wire.step(4)
    wire.out += wire.session.unsubscribe([Subscription("trades", "BTCUSDT")], wire.now_ns)
    wire.send()
    wire.step(4)
    assert wire.statuses()[-1] == ("unsubscribed", "trades", "BTCUSDT")
    assert len(wire.of(Trade)) == 2 and wire.book("ETHUSDT") == wire.true_book("ETHUSDT")
    wire.out += wire.session.unsubscribe([Subscription("books", "ETHUSDT", "full")], wire.now_ns)
    wire.send()
    assert not wire.side.streams


def test_server_shutdown_is_a_wish_for_a_new_session() -> None:
    wire = Wire(options(trades=("BTCUSDT",)), world(shutdown_secs=3))
    wire.secs(2)
    assert wire.session.settled is True and not wire.session.renew
    wire.secs(2)
    assert wire.statuses()[-1][0] == "notice"
    assert wire.session.renew, "the session itself goes on as long as the server lets it"


def test_silent_streams_of_unverified_symbols_are_named() -> None:
    wire = Wire(options(rest_url="", url="ws://127.0.0.1:1/binance", quotes=("BTCUSDT", "C00USDT")), world())
    wire.step(2)
    wire.secs(61)
    assert [(one.event, one.raw_symbol, one.code) for one in wire.of(Status)][1:] == [
        ("notice", "C00USDT", "silent_stream")
    ]


def test_plan_deals_a_thousand_streams_a_connection() -> None:
    raws = tuple(f"C{n}USDT" for n in range(1500))
    given = options(quotes=raws, trades=raws[:600], books={"full": raws[:1]}, quotes_from_books=())
    plan = SPEC.plan(given, SPEC.subscribed(given))
    assert [len(one.subscriptions) for one in plan] == [999, 1000, 102]
    homes = {sub.raw: one.label for one in plan for sub in one.subscriptions}
    assert all(homes[sub.raw] == one.label for one in plan for sub in one.subscriptions)
    assert sorted(sub for one in plan for sub in one.subscriptions) == sorted(SPEC.subscribed(given))


def test_frames_are_mapped_useless_or_rejected() -> None:
    wire = Wire(ALL, world())
    before = len(wire.out)
    frames = 0
    for text in (
        b'{"stream":"!miniTicker@arr","data":[{"e":"24hrMiniTicker"}]}', b'{"e":"referencePrice","s":"BAZUSD"}',
        b'{"e":"kline"', b"[]", b'{"stream":"btcusdt@trade"}', b'{"stream":"btcusdt@nothing","data":{}}', b"{}",
        b'{"stream":"btcusdt@trade","data":{"e":"trade","s":"ETHBTC","t":1,"p":"1","q":"1"}}',
    ):  # fmt: skip
        frames += 1
        wire.out += wire.session.receive(Frame(wire.now_ns, text))
    rejects = [one.reason for one in wire.out[before:]]
    assert rejects == ["not_json", "not_object", "missing_field", "unknown_type", "missing_field", "bad_symbol"]
    assert wire.session.useless + len(rejects) == frames


def test_side_closes_who_sends_too_fast() -> None:
    side = SIDES["binance"].side(world(), "/ws", {})
    answers = [side.receive('{"method":"LIST_SUBSCRIPTIONS","id":1}', START_NS)[0] for _ in range(6)]
    assert isinstance(answers[-1], Close) and not any(isinstance(one, Close) for one in answers[:-1])


# -- whole books -----------------------------------------------------------------------------------------------------


BOOK = options(books={"full": ("BTCUSDT",)}, book_depth_max=20)


def late(wire: Wire) -> list[Request]:
    """Keep requests unanswered from now on."""
    wire.late = []
    return wire.late


def test_diffs_wait_for_their_snapshot() -> None:
    wire = Wire(options(), world())
    requests = late(wire)
    wire.out += wire.session.subscribe([Subscription("books", "BTCUSDT", "full")], wire.now_ns)
    wire.send()
    wire.step(10)
    assert [one.tag for one in requests] == ["symbols", "depth BTCUSDT"][-len(requests) :] and not wire.of(BookSnapshot)
    wire.answer(requests[-1])
    wire.step(10)
    assert len(wire.of(BookSnapshot)) == 1 and len(wire.of(BookDelta)) >= 9
    assert wire.book("BTCUSDT") == wire.true_book("BTCUSDT")


def test_a_lost_diff_makes_the_book_stale_and_it_begins_anew() -> None:
    wire = Wire(BOOK, world())
    wire.step(5)
    wire.side.jump()
    requests = late(wire)
    wire.step(3)
    stale = wire.of(Status)[-1]
    assert (stale.event, stale.channel, stale.code, stale.action) == ("stale", "books", "sequence_jump", "resync")
    assert [one.tag for one in requests] == ["depth BTCUSDT"] and wire.out[-1] is stale
    wire.answer(requests[-1])
    wire.step(3)
    wire.late = None
    snapshots = wire.of(BookSnapshot)
    assert len(snapshots) == 2 and snapshots[-1].depth == 20
    assert wire.book("BTCUSDT") == wire.true_book("BTCUSDT", 20)


def test_an_unreadable_diff_makes_the_book_stale() -> None:
    wire = Wire(BOOK, world())
    wire.step(2)
    late(wire)
    bad = (
        b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","s":"BTCUSDT","U":1,"u":2,"b":[["x","1"]],"a":[]}}'
    )
    out = wire.session.receive(Frame(wire.now_ns, bad))
    assert [getattr(one, "event", None) or one.reason for one in out] == ["bad_number", "stale"]


def test_a_snapshot_that_failed_is_asked_for_again() -> None:
    wire = Wire(options(books={"full": ("BTCUSDT",)}), world(retry_after=3))
    assert [one.code for one in wire.of(Status) if one.event == "quota"] == ["http_429"]
    wire.market.knobs.clear()
    wire.secs(5)
    wire.step(3)
    assert wire.book("BTCUSDT") == wire.true_book("BTCUSDT")


def test_a_book_that_cannot_be_had_is_refused_alone() -> None:
    wire = Wire(options(trades=("BTCUSDT",)), world())
    wire.late = []
    wire.out += wire.session.subscribe([Subscription("books", "ETHUSDT", "full")], wire.now_ns)
    wire.send()
    reply = Reply(wire.late[-1].tag, 451, b"{}")
    wire.out += wire.session.replied(reply, wire.now_ns)
    wire.send()
    assert ("refused", "books", "ETHUSDT") in wire.statuses()
    assert list(wire.side.streams) == ["btcusdt@trade"]


def test_a_cut_snapshot_that_wears_down_begins_anew() -> None:
    given = options(books={"full": ("BTCUSDT",)}, book_depth_max=2)
    wire = Wire(given, world())
    base, ask = wire.of(BookSnapshot)[0].src_seq, "70000"
    wire.late = []

    def snapshot(number: int, count: int) -> None:
        rows = [[f"{60000 - n}", "1"] for n in range(count)], [[f"{60001 + n}", "1"] for n in range(count)]
        body = json.dumps({"lastUpdateId": number, "bids": rows[0], "asks": rows[1]}).encode()
        wire.out += wire.session.replied(Reply("depth BTCUSDT", 200, body), wire.now_ns)

    def diff(first: int, bids: list[list[str]]) -> None:
        data = {"e": "depthUpdate", "s": "BTCUSDT", "U": first, "u": first, "b": bids, "a": [[ask, "0"]]}
        text = json.dumps({"stream": "btcusdt@depth@100ms", "data": data}, separators=(",", ":"))
        wire.out += wire.session.receive(Frame(wire.now_ns, text.encode()))

    snapshot(base + 1, 100)
    wire.out.clear()
    for n in range(98):
        diff(base + 2 + n, [[f"{60000 - n}", "0"]])
    assert not wire.of(Status) and len(wire.of(BookDelta)) == 98
    diff(base + 100, [["59800", "5"]])  # beyond the snapshot: known, and what lies between is not
    assert not wire.of(Status) and len(wire.of(BookDelta)) == 98
    diff(base + 101, [["59902", "0"]])
    assert [(one.event, one.code) for one in wire.of(Status)] == [("stale", "snapshot_worn")]
    assert len(wire.of(BookDelta)) == 98


def test_many_books_are_begun_within_the_weight_of_a_minute() -> None:
    raws = tuple(list(PAIRS)[:40])
    wire = Wire(options(books={"full": raws}), world())
    asked = [target for target in wire.asked if "depth" in target]
    assert len(asked) == (4500 - 20) // 250
    wire.secs(61)
    wire.secs(61)
    assert len([target for target in wire.asked if "depth" in target]) == 40
    wire.step(40)
    assert all(wire.book(raw) == wire.true_book(raw) for raw in raws)


def test_quotes_from_a_book_follow_its_top() -> None:
    for depth in ("full", "20"):
        given = options(books={depth: ("BTCUSDT",)}, quotes_from_books=("BTCUSDT",))
        wire = Wire(given, world())
        wire.step(10)
        last = wire.of(Quote)[-1]
        bids, asks = wire.true_book("BTCUSDT", 1)
        assert ({Decimal(last.bid): Decimal(last.bid_size)}, {Decimal(last.ask): Decimal(last.ask_size)}) == (
            bids,
            asks,
        )
        assert list(wire.side.streams) == [f"btcusdt@depth{'' if depth == 'full' else depth}@100ms"]


def test_options_that_cannot_work_are_refused() -> None:
    for wrong in (
        {"bars": {"7m": ("BTCUSDT",)}}, {"books": {"50": ("BTCUSDT",)}},
        {"books": {"full": ("BTCUSDT",)}, "book_depth_max": 5000},
        {"books": {"full": ("BTCUSDT",)}, "rest_url": ""},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            options(**wrong)
    assert BinanceOptions(url="wss://stream.binance.us:9443").rest == "https://api.binance.us"
    for url in (
        "wss://stream.binance.us:9443",
        "wss://stream.binance.us:9443/ws/",
        "wss://stream.binance.us:9443/stream",
    ):
        given = options(url=url, quotes=("BTCUSD",), microseconds=False)
        session = SPEC.session(given, SPEC.subscribed(given), SPEC.shared(given))
        assert session.connect().url == "wss://stream.binance.us:9443/stream"
    assert BinanceOptions().rest == "https://api.binance.com"


# -- the whole relay -------------------------------------------------------------------------------------------------


async def test_a_broken_connection_is_said_in_band_and_the_book_begins_anew(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["binance"], rate=200) as simulator:
        config = config_of(
            f"""
name: t
redis: {{url: {redis_url}}}
providers:
  binance:
    url: {simulator.url("binance")}
    rest_url: {simulator.rest_url("binance")}
    trades: [BTCUSDT]
    books: {{full: [BTCUSDT]}}
""",
            tmp_path,
        )

        def kinds() -> list[str]:
            found = [message for _, message in entries(redis_url, "books.binance.BTC-USDT")]
            return [one.get("event") or one["type"] for one in found]

        async with relay_of(config):
            await until(lambda: kinds().count("book_delta") > 20)
            simulator.drop("binance")
            await until(lambda: "stale" in kinds() and "book_delta" in kinds()[kinds().index("stale") :])
        told = kinds()
    stale = told.index("stale")
    assert told[0] == "book_snapshot" and set(told[1:stale]) == {"book_delta"}
    behind = told[stale + 1 :]
    assert behind[: behind.index("book_snapshot")] == ["gap", "fresh"] and "book_delta" in behind
    trades = [message for _, message in entries(redis_url, "trades.BTC-USDT")]
    ids = [one["src_seq"] for one in trades if one["type"] == "trade"]
    gaps = [one for one in trades if one.get("event") == "gap"]
    missing = sum(one.get("missing", 0) for one in gaps)
    assert ids[-1] - ids[0] + 1 == len(ids) + missing, "every lost trade is counted"


async def test_a_place_that_is_not_served_is_told_where_else_to_go(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["binance"], faults=Faults(refuse_upgrade=451)) as simulator:
        section = f"{{url: {simulator.url('binance')}, quotes: [BTCUSDT]}}"
        text = f"redis: {{url: {redis_url}}}\nproviders: {{binance: {section}}}"
        async with relay_of(config_of(text, tmp_path)) as running:
            await until(lambda: running.said("not tried again"))
            assert running.said("data-stream.binance.vision")
