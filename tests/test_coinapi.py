"""CoinAPI: its names, its options, and the provider talking to its own side in the simulator, without a network."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import codec
from relay.errors import SessionError
from relay.model import Bar, BookDelta, BookSnapshot, Instrument, Quote, Rate, Reject, Status, Trade
from relay.providers.base import Frame, Seen, Send, Subscription
from relay.providers.coinapi import SPEC
from relay.providers.coinapi.names import to_raw, to_symbol
from relay.simulator.base import Close, World
from relay.simulator.coinapi import SIDE
from relay.symbols import is_symbol

START_NS = 1_772_359_200_000_000_000
SECOND_NS = 1_000_000_000

ASSETS = st.sampled_from(
    ["BTC", "USD", "USDT", "1INCH", "IDX", "PERP", "C", "P", "260327", "X.Y", "A-B", "btc", "é", ""]
)
IDS = st.lists(ASSETS | st.sampled_from(["SPOT", "FTS", "OPT", "CRE", "60000", "5656B6"]), max_size=7).map("_".join)


def venue_ids(kind: str) -> Any:
    return IDS.map(lambda rest: f"V_{kind}_{rest}")


@given(
    st.lists(IDS | st.sampled_from(["SPOT", "PERP", "IDX", "FTS", "OPT"]).flatmap(venue_ids), min_size=2, max_size=30)
)
def test_two_raw_symbols_of_one_venue_never_meet(raws: list[str]) -> None:
    raws = [raw for raw in dict.fromkeys(raws)]
    names = [to_symbol(raw) for raw in raws]
    assert len(set(names)) == len(raws)
    assert all(is_symbol(symbol) for symbol, _ in names)


@pytest.mark.parametrize(
    ("raw", "symbol", "venue"),
    [
        ("COINBASE_SPOT_BTC_USD", "BTC-USD", "COINBASE"),
        ("UNISWAP-V3-ETHEREUM_SPOT_FAKT_USDT", "FAKT-USDT", "UNISWAP-V3-ETHEREUM"),
        ("BINANCEFTS_PERP_BTC_USDT", "BTC-USDT-PERP", "BINANCEFTS"),
        ("OKEX_FTS_ETH_USD_260327", "ETH-USD-20260327", "OKEX"),
        ("DERIBIT_OPT_BTC_USD_260327_60000_C", "BTC-USD-20260327-60000-C", "DERIBIT"),
        ("DERIBIT_IDX_BTC_USD", "BTC-USD-IDX", "DERIBIT"),
        ("BITFINEX_CRE_USD", "BITFINEX_5FCRE_5FUSD", "BITFINEX"),
        ("OKEX_FTS_ETH_USD_190927_5656B6", "OKEX_5FFTS_5FETH_5FUSD_5F190927_5F5656B6", "OKEX"),
        ("X_SPOT_A_IDX", "X_5FSPOT_5FA_5FIDX", "X"),
        ("X_FTS_A_B_261399", "X_5FFTS_5FA_5FB_5F261399", "X"),
    ],
)
def test_symbols_go_there_and_back(raw: str, symbol: str, venue: str) -> None:
    assert to_symbol(raw) == (symbol, venue)
    assert to_raw(symbol, venue) == raw


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"bars": {"1w": ["A"]}}, "no interval"),
        ({"bars": {"m": ["A"]}}, "no interval"),
        ({"books": {"10": ["A"]}}, "depth '10'"),
        ({"quotes": ["*"]}, "is no symbol"),
        ({"quotes": ["A*B*"]}, "is no symbol"),
        ({"trades": [""]}, "is no symbol"),
        ({"trades": ["COINBASE_SPOT_BTC_USD$"]}, "exact already"),
        ({"rates": ["BTC*"]}, "no patterns"),
        ({"quotes_update_ms": -1}, ">= 0"),
    ],
)
def test_options_refuse_what_coinapi_cannot_carry(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=wrong.replace("*", r"\*")):
        msgspec.convert(options, SPEC.options)


def test_a_rate_belongs_to_its_pair_and_to_each_asset() -> None:
    shared = SPEC.shared(msgspec.convert({}, SPEC.options))
    for raw, wanted in (("BTC/USD", True), ("BTC", True), ("USD", True), ("BT", False), ("ETH/USD", False)):
        assert shared.wants(Subscription("rates", raw), "BTC/USD", "") is wanted
    assert not shared.wants(Subscription("quotes", "A_SPOT_B"), "A_SPOT_B_C", "")


class Wire:
    """A provider's session and its own side, joined back to back."""

    def __init__(self, options: dict[str, Any], world: World | None = None) -> None:
        self.options = msgspec.convert(options, SPEC.options)
        self.world = world or World(Random(7))
        self.session = SPEC.session(self.options, SPEC.subscribed(self.options), SPEC.shared(self.options))
        connect = self.session.connect()
        self.side = SIDE.side(self.world, "/v1/", {name.lower(): value for name, value in connect.headers.items()})
        self.now_ns = START_NS
        self.out: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.closed = False
        self.side.opened(self.now_ns)
        self.take(self.session.opened(self.now_ns))

    def take(self, outputs: Any) -> None:
        for one in outputs:
            if not isinstance(one, Seen):
                assert codec.decode(codec.encode(one)) == one
        self.out += outputs
        for sent in self.session.to_send():
            assert isinstance(sent, Send) and isinstance(sent.data, str)
            self.asked.append(json.loads(sent.data))
            self.heard(self.side.receive(sent.data, self.now_ns))

    def heard(self, steps: Any) -> None:
        for step in steps:
            if isinstance(step, Close):
                self.closed = True
                return
            self.take(self.session.receive(Frame(self.now_ns, step.encode())))

    def run(self, steps: int, every_ns: int = SECOND_NS // 10) -> list[Any]:
        before = len(self.out)
        for _ in range(steps):
            self.now_ns += every_ns
            self.heard(self.side.step(self.now_ns))
            self.heard(self.side.tick(self.now_ns))
            self.take(self.session.tick(self.now_ns))
        return self.out[before:]


EVERYTHING = {
    "api_key": "a-key",
    "quotes": ["COINBASE_SPOT_BTC_USD", "KRAKEN_SPOT_*"],
    "trades": ["COINBASE_SPOT_BTC_USD", "NEWCOMER_SPOT_*"],
    "bars": {"1s": ["BITSTAMP_SPOT_BTC_USD"], "1m": ["BITSTAMP_SPOT_BTC_USD"]},
    "books": {"full": ["BITSTAMP_SPOT_ETH_USD"], "5": ["KRAKEN_SPOT_ETH_USD"]},
    "rates": ["BTC/USD", "ETH"],
    "instruments": ["KRAKENFTS_PERP_*"],
}


def of(kind: type[Any], out: list[Any]) -> list[Any]:
    return [one for one in out if isinstance(one, kind)]


def test_every_channel_comes_through() -> None:
    wire = Wire(EVERYTHING)
    out = wire.run(400)
    assert [one.event for one in of(Status, out)] == ["authenticated", "subscribed"]
    assert not of(Reject, out)
    assert {one.symbol for one in of(Quote, out)} == {"BTC-USD", "ETH-USD", "SOL-USD", "ETH-BTC"}
    assert {one.venue for one in of(Trade, out)} == {"COINBASE", "NEWCOMER"}
    assert {one.interval for one in of(Bar, out)} == {"1s", "1m"} and any(one.closed for one in of(Bar, out))
    assert {one.raw_symbol for one in of(Rate, out)} == {"BTC/USD", "ETH/USD"}
    assert [one.symbol for one in of(Instrument, out)] == ["BTC-USD-PERP"]
    assert {one.depth for one in of(BookSnapshot, out)} == {None, 5} and of(BookDelta, out)
    assert len(wire.asked) == 7 and [one["type"] for one in wire.asked] == ["hello"] + ["subscribe"] * 6


def test_deltas_rebuild_the_book_of_the_other_side() -> None:
    wire = Wire(
        {"api_key": "k", "books": {"full": ["BITSTAMP_SPOT_ETH_USD"]}}, World(Random(3), knobs={"late_deltas": 2})
    )
    book: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}
    wire.run(300)
    for one in wire.out:
        if isinstance(one, BookSnapshot):
            book = {"bids": {}, "asks": {}}
        if isinstance(one, BookSnapshot | BookDelta):
            for side in ("bids", "asks"):
                for price, size in getattr(one, side):
                    book[side].pop(price, None) if size == "0" else book[side].__setitem__(price, size)
    held = wire.side.books["BITSTAMP_SPOT_ETH_USD"]  # type: ignore[attr-defined]
    for side in ("bids", "asks"):
        assert book[side] == {f"{p // 100}.{p % 100:02d}": str(size) for p, size in held[side].items()}
    assert wire.session.useless >= 2  # the deltas before the snapshot


def test_gap_in_book_asks_for_a_snapshot_and_heals() -> None:
    wire = Wire({"api_key": "k", "books": {"full": ["BITSTAMP_SPOT_ETH_USD"]}})
    wire.run(10)
    wire.side.jump()
    out = wire.run(5)
    assert [(one.event, one.missing, one.channel) for one in of(Status, out)] == [("gap", 3, "books")]
    assert [one["type"] for one in wire.asked] == ["hello", "unsubscribe", "subscribe"]
    assert [type(one) for one in out[1:]] == [BookSnapshot, BookDelta, BookDelta, BookDelta]


def test_gap_in_bars_is_said_by_the_session() -> None:
    wire = Wire({"api_key": "k", "bars": {"1s": ["A_SPOT_B_C"], "1m": ["A_SPOT_B_C"]}})
    assert not [one for one in of(Status, wire.run(50)) if one.event == "gap"]
    wire.side.jump()
    assert [(one.reason, one.missing) for one in of(Status, wire.run(5))] == [("sequence_jump", 3)]


def test_silence_brings_heartbeats_that_prove_the_key() -> None:
    wire = Wire({"api_key": "k", "trades": ["A_SPOT_B_C"]})
    wire.side.order = []  # type: ignore[attr-defined]
    out = wire.run(50)
    assert [one.event for one in of(Status, out)] == ["authenticated", "subscribed"]
    assert wire.session.useless == 5


def test_wrong_key_is_refused_at_the_first_message() -> None:
    with pytest.raises(SessionError) as caught:
        Wire({"api_key": "wrong", "trades": ["A_SPOT_B_C"]}, World(Random(1), frozenset({"right"})))
    assert (caught.value.action, caught.value.code, caught.value.limit_secs) == ("slow", "invalid_api_key", 600.0)


def test_simulator_takes_no_key_of_ours_where_prices_are_made_up() -> None:
    assert of(Trade, Wire({"simulate": True, "trades": ["A_SPOT_B_C"]}).run(5))


def test_announced_close_ends_the_session_after_its_time() -> None:
    world = World(Random(1), knobs={"reconnect_after": 5, "reconnect_secs": 2})
    wire = Wire({"api_key": "k", "trades": ["A_SPOT_B_C"]}, world)
    out = wire.run(15)
    assert [one.until for one in of(Status, out) if one.event == "notice"] == [
        START_NS + 5 * SECOND_NS // 10 + 2 * SECOND_NS
    ]
    with pytest.raises(SessionError, match="announced time"):
        wire.run(30)
    assert wire.closed


def test_slow_reader_is_told_and_cut() -> None:
    wire = Wire({"api_key": "k", "trades": ["A_SPOT_B_C"]}, World(Random(1), knobs={"error_after": 3}))
    with pytest.raises(SessionError) as caught:
        wire.run(10)
    assert (caught.value.action, caught.value.code) == ("retry", "slow_reader")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "hello", "apikey": "k", "subscribe_data_type": ["nonsense"]},
        {"type": "hello", "apikey": "k", "subscribe_data_type": ["book"]},
        {"type": "hello", "apikey": "k", "subscribe_data_type": ["exrate"]},
        {"type": "hello", "apikey": "k", "subscribe_data_type": []},
        {"type": "nonsense", "apikey": "k"},
        {"type": "hello", "apikey": "k", "subscribe_data_type": ["ohlcv"], "subscribe_filter_period_id": ["1X"]},
    ],
)
def test_side_refuses_wrong_messages_and_the_provider_does_not_loop(message: dict[str, Any]) -> None:
    steps = SIDE.side(World(Random(1)), "/", {}).receive(json.dumps(message), START_NS)
    assert isinstance(steps[1], Close)
    options = msgspec.convert({"api_key": "k"}, SPEC.options)
    with pytest.raises(SessionError) as caught:
        SPEC.session(options, [], SPEC.shared(options)).receive(Frame(START_NS, str(steps[0]).encode()))
    assert caught.value.action == "fatal"


def test_run_time_changes_reach_the_other_side() -> None:
    wire = Wire({"api_key": "k", "trades": ["A_SPOT_B_C"]})
    wire.take(wire.session.subscribe([Subscription("quotes", "D_SPOT_E_F")], wire.now_ns))
    assert {one.raw_symbol for one in of(Quote, wire.run(25))} == {"D_SPOT_E_F"}
    wire.take(wire.session.unsubscribe([Subscription("trades", "A_SPOT_B_C")], wire.now_ns))
    assert not of(Trade, wire.run(20))
    events = [(one.event, one.channel) for one in of(Status, wire.out) if one.channel]
    assert events == [("subscribed", "quotes"), ("unsubscribed", "trades")]
