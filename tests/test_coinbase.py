"""The Coinbase provider against its simulated side, sans-IO: what was asked, lost and refused comes to light."""

import json
from random import Random
from typing import Any

import pytest

from relay.errors import SessionError
from relay.model import Quote, Status, Trade
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Seen, Send, Subscription
from relay.providers.coinbase import CoinbaseOptions as Options
from relay.simulator import SIDES
from relay.simulator.base import Close, World

SECOND_NS = 1_000_000_000
START_NS = 1_772_359_200_000_000_000
SPEC = PROVIDERS["coinbase"]


class Wire:
    """One connection: a session, a side, and a clock of its own."""

    def __init__(self, options: Options, world: World) -> None:
        self.now_ns = START_NS
        self.out: list[Any] = []
        self.frames: list[dict[str, Any]] = []
        self.session: Any = SPEC.session(options, SPEC.subscribed(options), SPEC.shared(options))
        self.side = SIDES["coinbase"].side(world, "", {})
        assert self.side.upgrade() is None
        self._deliver(self.side.opened(self.now_ns))
        self.out += self.session.opened(self.now_ns)
        self._send()

    def _send(self) -> None:
        for one in self.session.to_send():
            assert isinstance(one, Send)
            self._deliver(self.side.receive(one.data, self.now_ns))

    def _deliver(self, steps: list[Any]) -> None:
        for one in steps:
            assert isinstance(one, str), one
            self.frames.append(json.loads(one))
            self.out += self.session.receive(Frame(self.now_ns, one.encode()))
        if steps:
            self._send()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._deliver(self.side.step(self.now_ns))

    def secs(self, count: int = 1) -> None:
        """Let time pass: heartbeats and deadlines."""
        for _ in range(4 * count):
            self.now_ns += SECOND_NS // 4
            self._deliver(self.side.tick(self.now_ns))
            self.out += self.session.tick(self.now_ns)
            self._send()

    def close(self) -> None:
        self.out += self.session.closed(self.now_ns)

    def of(self, kind: type[Any], raw: str | None = None) -> list[Any]:
        return [one for one in self.out if isinstance(one, kind) and (raw is None or one.raw_symbol == raw)]

    def statuses(self) -> list[tuple[str, str | None, str | None]]:
        return [(one.event, one.channel, one.raw_symbol) for one in self.of(Status)]


def world(**knobs: Any) -> World:
    return World(random=Random(7), knobs=knobs)


BOTH = Options(quotes=("BTC-USD", "ETH-EUR"), trades=("BTC-USD", "ETH-EUR"))


def test_every_trade_of_the_market_is_mapped() -> None:
    wire = Wire(BOTH, world())
    wire.step(50)
    wire.secs(3)
    assert wire.statuses() == [("subscribed", None, None)]
    for raw in BOTH.trades:
        base, *rest = wire.of(Seen, raw)
        assert not rest
        ids = [trade.src_seq for trade in wire.of(Trade, raw)]
        assert ids == list(range(base.src_seq + 1, base.src_seq + 26))
        assert len(wire.of(Quote, raw)) == 26  # one of them repeats the last trade
    takers = {(one["product_id"], one["trade_id"]): one["side"] for one in wire.frames if one["type"] == "ticker"}
    assert all(trade.side == takers[trade.raw_symbol, trade.src_seq] for trade in wire.of(Trade))
    assert sum(frame["type"] == "heartbeat" for frame in wire.frames) == 6


def test_lost_trades_show_with_the_second_heartbeat() -> None:
    wire = Wire(Options(trades=("BTC-USD",)), world())
    wire.step(3)
    last = wire.of(Trade)[-1].src_seq
    wire.side.jump()
    wire.secs(1)
    assert len(wire.of(Seen)) == 1  # the base line
    wire.secs(1)
    assert wire.of(Seen)[1:] == [Seen("trades", "BTC-USD", last + 3, delivered=False)]
    wire.secs(3)
    wire.step()
    assert wire.of(Trade)[-1].src_seq == last + 4 and len(wire.of(Seen)) == 2


def test_lost_trades_show_when_the_session_ends_before() -> None:
    wire = Wire(Options(trades=("BTC-USD",)), world())
    wire.step(3)
    wire.side.jump()
    wire.secs(1)
    wire.close()
    wire.close()
    assert wire.of(Seen)[1:] == [Seen("trades", "BTC-USD", wire.of(Trade)[-1].src_seq + 3, delivered=False)]


def test_last_match_shows_what_was_missed_between_sessions() -> None:
    market = world(missed=5)
    first = Wire(Options(trades=("BTC-USD",)), market)
    first.step(3)
    second = Wire(Options(trades=("BTC-USD",)), market)
    assert second.of(Seen) == [Seen("trades", "BTC-USD", first.of(Trade)[-1].src_seq + 5, delivered=False)]
    second.step()
    assert second.of(Trade)[0].src_seq == first.of(Trade)[-1].src_seq + 6


def test_two_connections_see_the_same_trades() -> None:
    market = world()
    pair = [Wire(Options(trades=("BTC-USD",)), market) for _ in range(2)]
    for _ in range(10):
        for wire in pair:
            wire.step()
    seen = [[(trade.id, trade.price, trade.size) for trade in wire.of(Trade)] for wire in pair]
    assert seen[0] == seen[1] and len(seen[0]) == 10


@pytest.mark.parametrize("partial", ["keep", "none"])
@pytest.mark.parametrize("knob", ["unknown", "delisted"])
def test_a_refused_product_leaves_the_others(partial: str, knob: str) -> None:
    wire = Wire(BOTH, world(partial=partial, **{knob: ["ETH-EUR"]}))
    assert wire.statuses() == [
        ("refused", "quotes", "ETH-EUR"),
        ("refused", "trades", "ETH-EUR"),
        ("subscribed", None, None),
    ]
    wire.step(2)
    assert len(wire.of(Trade, "BTC-USD")) == 2


def test_refusals_of_several_products_come_one_by_one() -> None:
    names = tuple(f"C{n}-USD" for n in range(10, 20))
    wire = Wire(Options(trades=names), world(partial="none", unknown=list(names[1:])))
    assert [one[2] for one in wire.statuses()] == [*names[1:], None]
    wire.step()
    assert len(wire.of(Trade, names[0])) == 1


def test_nothing_left_ends_the_session_slowly() -> None:
    wire = Wire(Options(quotes=("FOO-XXX",)), world())
    with pytest.raises(SessionError) as caught:
        wire.secs(1)
    assert caught.value.action == "slow" and wire.statuses() == [("refused", "quotes", "FOO-XXX")]


def test_no_answer_ends_the_session() -> None:
    wire = Wire(BOTH, world(mute=True))
    # the simulated side closes after five seconds: here only the provider's own deadline is looked at
    assert not wire.session.tick(START_NS + 9 * SECOND_NS)
    with pytest.raises(SessionError) as caught:
        wire.session.tick(START_NS + 10 * SECOND_NS)
    assert (caught.value.code, caught.value.action) == ("ack_timeout", "retry")


def test_subscriptions_change_at_run_time() -> None:
    wire = Wire(Options(trades=("BTC-USD",)), world())
    wire.out += wire.session.subscribe([Subscription("quotes", "SOL-USD")], wire.now_ns)
    wire._send()
    wire.out += wire.session.unsubscribe([Subscription("trades", "BTC-USD")], wire.now_ns)
    wire._send()
    assert wire.statuses() == [
        ("subscribed", None, None),
        ("subscribed", None, None),
        ("unsubscribed", "trades", "BTC-USD"),
    ]
    wire.step(2)
    wire.secs(2)
    assert not wire.of(Trade) and len(wire.of(Quote, "SOL-USD")) == 3
    assert {one["product_id"] for one in wire.frames if one["type"] == "heartbeat"} == {"SOL-USD"}
    assert len(wire.of(Status)) == 3


def test_plan_deals_products_in_twenties_and_keeps_their_channels_together() -> None:
    names = tuple(f"C{n}-USD" for n in range(45))
    options = Options(quotes=names, trades=names[::2])
    plan = SPEC.plan(options, SPEC.subscribed(options))
    assert [one.label for one in plan] == ["1", "2", "3"]
    homes = {sub.raw: one.label for one in plan for sub in one.subscriptions}
    assert all(homes[sub.raw] == one.label for one in plan for sub in one.subscriptions)
    assert [len({sub.raw for sub in one.subscriptions}) for one in plan] == [20, 20, 5]
    assert sorted(sub for one in plan for sub in one.subscriptions) == sorted(SPEC.subscribed(options))
    assert SPEC.plan(Options(), []) == []


def test_useless_frames_are_counted() -> None:
    wire = Wire(Options(quotes=("BTC-USD",)), world())
    mapped = len({id(one) for one in wire.out})
    wire.secs(4)
    assert wire.session.useless == len(wire.frames) - mapped == 4


def ask(side: Any, **message: Any) -> list[Any]:
    return [json.loads(one) for one in side.receive(json.dumps(message), START_NS)]


def test_side_closes_what_subscribes_to_nothing() -> None:
    side = SIDES["coinbase"].side(world(), "", {})
    side.opened(START_NS)
    assert side.tick(START_NS + 4 * SECOND_NS) == []
    assert isinstance(side.tick(START_NS + 5 * SECOND_NS)[0], Close)


def test_side_names_what_is_wrong_and_lists_what_is_right() -> None:
    side = SIDES["coinbase"].side(world(), "", {})
    answer = ask(
        side,
        type="subscribe",
        product_ids=["BTC-USD"],
        channels=["full", "candles", {"name": "ticker_batch", "product_ids": ["ETH-USD"]}],
    )
    assert [one.get("reason") for one in answer if one["type"] == "error"] == [
        "level2, level3, and full channels now require authentication.",
        "candles is not a valid channel",
    ]
    channels = next(one for one in answer if one["type"] == "subscriptions")["channels"]
    assert channels == [{"name": "ticker_1000", "product_ids": ["BTC-USD", "ETH-USD"], "account_ids": None}]
    assert side.receive("{", START_NS) == ['{"type": "error", "message": "Malformed JSON"}']
    assert ask(side, type="unsubscribe", channels=["ticker_batch"]) == [{"type": "subscriptions", "channels": []}]
