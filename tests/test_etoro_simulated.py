"""eToro's provider and its simulated side joined back to back, without a network: every dialect, every knob."""

import json
from random import Random
from typing import Any

import pytest

from relay import codec
from relay.errors import SessionError
from relay.providers.base import Frame, Reply, Request
from relay.providers.etoro import SPEC, EtoroOptions, EtoroSession, EtoroShared
from relay.simulator.base import Close, World
from relay.simulator.etoro import SIDE, EtoroSide

SECOND = 1_000_000_000
START = 1_772_463_846_000_000_000
BASE = "http://127.0.0.1:1/etoro"


class Pair:
    """A session and its side; `now` is the clock of both."""

    def __init__(self, *, keys: frozenset[str] = frozenset(), knobs: dict[str, Any] | None = None, **options: Any):
        self.options = EtoroOptions(simulate=True, rest_url=BASE, url="ws://127.0.0.1:1/etoro", **options)
        self.world = World(Random(7), keys=keys, knobs=dict(knobs or {}))
        self.shared = EtoroShared(self.options)
        self.now = START
        self.out: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.closed = False
        self.connect()

    def connect(self) -> None:
        self.session = EtoroSession(self.options, SPEC.subscribed(self.options), self.shared)
        connect = self.session.connect()
        self.side = SIDE.side(self.world, "/", {name.lower(): text for name, text in connect.headers.items()})
        assert isinstance(self.side, EtoroSide)
        self.refused = self.side.upgrade()
        if self.refused is None:
            self._steps(self.side.opened(self.now))
            self._took(self.session.opened(self.now))

    def _took(self, outputs: Any) -> None:
        self.out += [json.loads(codec.encode(one)) for one in outputs]
        for one in self.session.to_send():
            if isinstance(one, Request):
                assert SIDE.rest is not None and one.url.startswith(BASE)
                target = one.url.removeprefix(BASE)
                answer = SIDE.rest(self.world, one.method, target, one.headers, one.body, self.now)
                self.statuses.append(answer.status)
                reply = Reply(one.tag, answer.status, answer.body, answer.headers)
                self._took(self.session.replied(reply, self.now))
            else:
                self._steps(self.side.receive(one.data, self.now))

    def _steps(self, steps: Any) -> None:
        for step in steps:
            if isinstance(step, Close):
                self.closed = True
            else:
                binary = isinstance(step, bytes)
                data = step if isinstance(step, bytes) else step.encode()
                self._took(self.session.receive(Frame(self.now, data, binary)))

    def run(self, seconds: float, *, steps: int = 4) -> "Pair":
        """Let time pass in quarters of a second, with so many data messages in each."""
        for _ in range(int(seconds * 4)):
            self.now += SECOND // 4
            for _ in range(steps):
                self._steps(self.side.step(self.now))
            self._steps(self.side.tick(self.now))
            self._took(self.session.tick(self.now))
        return self

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [one for one in self.out if one["type"] == "status" and one["event"] in names]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.out if one["type"] == kind]


def test_inband_gives_quotes_flags_orders_and_instruments() -> None:
    pair = Pair(quotes=("AAPL", "EURUSD", "28", "18"), orders=True, knobs={"flags_every": 50}).run(60)
    assert not pair.of("reject")
    assert {one["symbol"] for one in pair.of("quote")} == {"AAPL", "EUR-USD", "28", "18"}
    assert {one["symbol"] for one in pair.of("instrument")} == {"AAPL", "EUR-USD", "28", "18"}
    assert all(one["price_precision"] in (2, 5) for one in pair.of("instrument")[-4:])
    assert {one["state"] for one in pair.of("order")} == {"pending", "partially_filled", "filled"}
    assert len(pair.events("market")) > 4
    assert len(pair.events("authenticated")) == 1
    assert not pair.events("refused", "degraded", "quota", "notice")


def test_the_merge_ends_where_the_market_stands() -> None:
    """With the snapshots and every delta taken, the quote equals the price that the simulator holds."""
    pair = Pair(quotes=("1001", "1111", "100000"), knobs={"heartbeats": 0.0, "flags_every": 10**9}).run(120)
    last = {int(one["raw_symbol"]): one for one in pair.of("quote")}
    prices = pair.world.state["market"].prices
    assert {ident: (one["bid"], one["ask"]) for ident, one in last.items()} == {
        ident: (prices[ident]["bid"], prices[ident]["ask"]) for ident in (1001, 1111, 100000)
    }


def test_header_gives_quotes_and_trades() -> None:
    pair = Pair(dialect="header", quotes=("AAPL", "1"), trades=("AAPL",)).run(30)
    assert not pair.of("reject")
    assert {one["symbol"] for one in pair.of("quote")} == {"AAPL", "1"}
    assert {one["symbol"] for one in pair.of("trade")} == {"AAPL"}
    assert len({one["id"] for one in pair.of("trade")}) == len(pair.of("trade")) > 10


def test_action_gives_bars_and_books_too() -> None:
    pair = Pair(dialect="action", quotes=("AAPL",), bars={"1m": ("AAPL",)}, books={"full": ("1111",)}).run(30)
    assert not pair.of("reject")
    assert {one["symbol"] for one in pair.of("bar")} == {"AAPL"}
    assert {(one["symbol"], one["raw_symbol"]) for one in pair.of("book_snapshot")} == {("1111", "1111")}


def test_wrong_keys_are_refused_in_every_dialect() -> None:
    with pytest.raises(SessionError) as ended:
        Pair(keys=frozenset({"right"}), api_key="wrong", user_key="u", quotes=("1001",))
    assert (ended.value.action, ended.value.code) == ("fatal", "Unauthorized")
    refused = Pair(keys=frozenset({"right"}), api_key="wrong", dialect="header", quotes=("1001",)).refused
    assert refused is not None and refused.status == 401
    assert Pair(keys=frozenset({"right"}), api_key="right", user_key="u", quotes=("1001",)).run(1).of("quote")


def test_a_login_that_is_put_off_comes_through() -> None:
    pair = Pair(quotes=("1001",), knobs={"auth_refusals": ["TooManyRequests", "TooManyRequests"]}).run(25)
    assert [one["code"] for one in pair.events("quota")] == ["TooManyRequests"] * 2
    assert pair.events("authenticated") and pair.of("quote")


def test_an_operation_that_was_lost_or_put_off_comes_through() -> None:
    pair = Pair(quotes=("1001",), knobs={"acks_lost": 1, "subscribe_refusals": ["TooManyRequests"]}).run(20)
    assert [one["code"] for one in pair.events("degraded", "quota")] == ["ack_timeout", "TooManyRequests"]
    assert pair.of("quote")


def test_more_topics_than_the_connection_may_have_are_refused_by_name() -> None:
    pair = Pair(quotes=("1001", "1111"), knobs={"topics_max": 1}).run(1)
    assert [one["raw_symbol"] for one in pair.events("refused")] == ["1001", "1111"]
    assert not pair.of("quote")


def test_no_message_is_larger_than_the_service_stands() -> None:
    ids = tuple(str(number) for number in range(100_000, 103_000))
    pair = Pair(quotes=ids, metadata=False, fallback_secs=0.0).run(1)
    assert not pair.closed
    assert len(pair.of("quote")) >= 3000, "a snapshot of each"


def test_a_bad_id_costs_itself_alone() -> None:
    ids = tuple(str(number) for number in range(1, 61))
    pair = Pair(quotes=ids, knobs={"bad_ids": [33]}).run(180)
    assert {one["raw_symbol"] for one in pair.of("instrument")} == set(ids) - {"33"}


@pytest.mark.fault
def test_the_budget_of_the_service_is_never_touched() -> None:
    ids = tuple(str(number) for number in range(1, 2001))
    knobs = {"quiet": True, "bad_ids": [7, 77, 777, 1777]}
    pair = Pair(quotes=ids, fallback_secs=5.0, knobs=knobs).run(300)
    assert len(pair.statuses) > 100
    assert 429 not in pair.statuses
    assert len({one["raw_symbol"] for one in pair.of("quote") if "mid" in one}) > 1900


def test_a_market_that_sleeps_falls_back_to_rest_and_wakes_up() -> None:
    pair = Pair(quotes=("1001", "EURUSD"), fallback_secs=10.0, knobs={"quiet": True}).run(30)
    mids = [one for one in pair.of("quote") if "mid" in one]
    assert {one["symbol"] for one in mids} == {"1001", "EUR-USD"}
    assert all(one["origin"] == "rest" and "bid" not in one for one in mids)
    assert len(mids) == 2, "an unchanged price is said once"
    pair.world.knobs["quiet"] = False
    pair.run(5)
    assert "mid" not in pair.of("quote")[-1]


def test_a_rest_side_that_is_down_does_not_harm_the_stream() -> None:
    pair = Pair(quotes=("1001",), knobs={"rest_status": 503}).run(400)
    assert pair.events("degraded")
    assert not pair.of("instrument")
    assert len(pair.of("quote")) > 100
    del pair.world.knobs["rest_status"]
    pair.run(320)
    assert pair.of("instrument")


def test_a_second_session_needs_no_rest_and_is_seeded_anew() -> None:
    pair = Pair(quotes=("AAPL",)).run(5)
    asked = len(pair.statuses)
    assert asked
    pair.out.clear()
    pair.connect()
    pair.run(5)
    assert len(pair.statuses) == asked
    first = pair.of("quote")[0]
    assert {"bid", "ask"} <= first.keys()
    assert pair.of("instrument")
