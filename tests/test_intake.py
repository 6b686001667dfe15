"""Identity, gaps, routing and numbering: what stands between a provider's outputs and the outbox."""

import json
from typing import Any

import pytest

from relay import lifecycle, model, stats
from relay.intake import Intake, Source
from relay.normalizer import Collector
from relay.providers.base import (
    ChannelSpec,
    Identity,
    Options,
    ProviderSpec,
    Seen,
    Shared,
    Subscription,
)  # fmt: skip
from relay.topics import Topics

SECOND = 1_000_000_000
NOW = 1_772_359_200 * SECOND


def spec(identity: Identity | None, *, source: Any = "provider", cadence: float = 60.0) -> ProviderSpec:
    return ProviderSpec(
        name="made",
        title="Made up",
        options=Options,
        session=lambda *_: (_ for _ in ()).throw(AssertionError),
        channels={
            "trades": ChannelSpec(identity=identity, cadence_secs=cadence),
            "quotes": ChannelSpec(),
            "bars": ChannelSpec(params="interval"),
            "books": ChannelSpec(params="depth"),
            "orders": ChannelSpec(account=True),
        },
        rule=lambda raw: (raw, None),
        source=source,
    )


class Scene:
    """One intake over one source; what it published, in order."""

    def __init__(self, identity: Identity | None = None, *, subs: Any = None, merge: bool = False, **kw: Any) -> None:
        options = Options(**kw.pop("options", {}))
        self.out = Collector()
        self.intake = Intake(Topics("r"), self.out, 7, merge=merge)
        self.spec = spec(identity, **kw)
        self.source: Source = self.intake.source("made", self.spec, Shared(options), subs)

    def take(self, *outputs: Any, now: int = NOW, connection: str = "1") -> list[dict[str, Any]]:
        self.intake.take(self.source, connection, list(outputs), now)
        return self.drain()

    def drain(self) -> list[dict[str, Any]]:
        return [{"topic_": e.topic, "id_": e.id} | json.loads(e.body) for e in self.out.drain()]


def trade(number: int | None, symbol: str = "BTC-USD") -> model.Trade:
    return model.Trade(symbol=symbol, raw_symbol=symbol, price="1", size="2", src_seq=number)


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """`trade`, or `gap@trades.BTC-USD` for statuses."""
    return [m["type"] if m["type"] != "status" else f"{m['event']}@{m['topic_']}" for m in messages]


CONTIGUOUS = Identity("session", "contiguous")
GLOBAL = Identity("global", "contiguous")
RISING = Identity("session", "rising")
BOTH = ["gap@trades.BTC-USD", "gap@status.r"]


def test_numbers_and_ids_rise_without_holes_per_topic() -> None:
    scene = Scene()
    out = scene.take(trade(None), trade(None), trade(None, "ETH-USD"))
    assert [(m["topic_"], m["seq"]) for m in out] == [
        ("trades.BTC-USD", 1),
        ("trades.BTC-USD", 2),
        ("trades.ETH-USD", 1),
    ]
    assert [m["id_"] for m in out] == [f"{NOW // 1_000_000}-{n}" for n in (1, 2, 1)]
    assert {(m["run"], m["ts_recv"], m["provider"]) for m in out} == {(7, NOW, "made")}


def test_jump_is_said_in_band_before_the_message_with_exact_numbers() -> None:
    scene = Scene(CONTIGUOUS)
    scene.take(trade(5))
    out = scene.take(trade(9), now=NOW + SECOND)
    assert kinds(out) == [*BOTH, "trade"]
    gap = out[0]
    assert (gap["reason"], gap["first_missing"], gap["last_missing"], gap["missing"]) == ("sequence_jump", 6, 8, 3)
    assert (gap["from_ns"], gap["to_ns"]) == (NOW, NOW + SECOND)
    assert (gap["channel"], gap["topic"], gap["symbol"]) == ("trades", "trades.BTC-USD", "BTC-USD")


@pytest.mark.parametrize("identity", [CONTIGUOUS, RISING])
def test_repeats_are_dropped_and_counted(identity: Identity) -> None:
    scene = Scene(identity)
    assert kinds(scene.take(trade(5), trade(5), trade(4), trade(6))) == ["trade", "trade"]
    assert scene.source.counts.repeats == 2


def test_restart_of_the_count_is_a_reset_and_not_a_gap_of_millions() -> None:
    scene = Scene(CONTIGUOUS)
    scene.take(trade(5_000_000))
    out = scene.take(trade(1), trade(2))
    assert kinds(out) == [*BOTH, "trade", "trade"]
    assert out[0]["reason"] == "sequence_reset" and "missing" not in out[0]


@pytest.mark.parametrize("identity", [CONTIGUOUS, RISING])
def test_late_messages_are_not_published_behind_the_gap_that_named_them(identity: Identity) -> None:
    scene = Scene(identity)
    out = scene.take(trade(5), trade(8), trade(6), trade(7), trade(9))
    assert [m["src_seq"] for m in out if m["type"] == "trade"] == [5, 8, 9]
    assert [m["missing"] for m in out if m["type"] == "status"] == ([2, 2] if identity is CONTIGUOUS else [])
    assert scene.source.counts.repeats == 2


def test_count_begun_anew_below_the_window_is_known_by_its_start() -> None:
    scene = Scene(CONTIGUOUS)
    scene.take(trade(500))
    out = scene.take(trade(1), trade(2), trade(500), trade(3))
    assert kinds(out)[:4] == [*BOTH, "trade", "trade"]
    assert out[0]["reason"] == "sequence_reset" and "missing" not in out[0]


@pytest.mark.parametrize("identity", [CONTIGUOUS, RISING])
def test_count_begun_anew_somewhere_below_is_not_dropped_until_it_has_caught_up(identity: Identity) -> None:
    scene = Scene(identity)
    scene.take(trade(5000))
    assert scene.take(*(trade(number) for number in range(40, 2040))) == []
    out = scene.take(trade(2040), trade(2041))
    assert kinds(out) == [*BOTH, "trade", "trade"]
    numbers = {name: out[0].get(name) for name in ("first_missing", "last_missing", "missing")}
    known = identity is CONTIGUOUS
    assert numbers == {
        "first_missing": 40 if known else None,
        "last_missing": 2039 if known else None,
        "missing": 2000 if known else None,
    }
    assert scene.source.counts.repeats == 2000
    assert stats.messages([scene.source.counts]).difference == 0


def test_slow_count_begun_anew_is_known_after_a_minute() -> None:
    scene = Scene(CONTIGUOUS)
    scene.take(trade(5000))
    out = [m for n in range(61) for m in scene.take(trade(40 + n), now=NOW + n * 2 * SECOND)]
    assert kinds(out)[:3] == [*BOTH, "trade"] and out[0]["last_missing"] == out[2]["src_seq"] - 1 == 70


def test_connection_that_is_behind_catches_up_without_a_repeat() -> None:
    scene = Scene(GLOBAL)
    scene.take(trade(5000))
    out = scene.take(*(trade(number) for number in range(3500, 5010)))
    assert [m.get("src_seq") for m in out] == list(range(5001, 5010))
    twice = [trade(number) for n in range(5010, 9000) for number in (n, n)]
    assert kinds(scene.take(*twice)) == ["trade"] * 3990


def test_jump_that_no_market_makes_is_a_count_begun_anew() -> None:
    scene = Scene(GLOBAL)
    scene.take(trade(5))
    out = scene.take(trade(2_000_000_005), trade(2_000_000_006), now=NOW + SECOND)
    assert kinds(out) == [*BOTH, "trade", "trade"]
    assert out[0]["reason"] == "sequence_reset" and "missing" not in out[0]
    scene.intake.closed(scene.source, "1")
    later = scene.take(trade(2_030_000_007), now=NOW + 600 * SECOND)
    assert (later[0]["reason"], later[0]["missing"]) == ("disconnect", 30_000_000)


def test_break_of_a_session_is_said_before_the_next_message() -> None:
    scene = Scene(None)
    scene.take(trade(None))
    scene.intake.closed(scene.source, "1")
    scene.intake.opened(scene.source, "1")
    out = scene.take(trade(None), now=NOW + 3 * SECOND)
    assert kinds(out) == [*BOTH, "trade"]
    assert out[0]["reason"] == "disconnect" and out[0]["from_ns"] == NOW and "missing" not in out[0]
    assert kinds(scene.take(trade(None))) == ["trade"]


def test_break_with_global_numbers_is_exact_or_proven_whole() -> None:
    scene = Scene(GLOBAL)
    scene.take(trade(5))
    scene.intake.closed(scene.source, "1")
    scene.intake.opened(scene.source, "1")
    assert kinds(scene.take(trade(6))) == ["trade"]
    scene.intake.closed(scene.source, "1")
    out = scene.take(trade(9))
    assert (out[0]["reason"], out[0]["first_missing"], out[0]["last_missing"]) == ("disconnect", 7, 8)


def test_break_with_session_numbers_forgets_them() -> None:
    scene = Scene(CONTIGUOUS)
    scene.take(trade(500))
    scene.intake.closed(scene.source, "1")
    scene.intake.opened(scene.source, "1")
    out = scene.take(trade(1), trade(2))
    assert kinds(out) == [*BOTH, "trade", "trade"]
    assert out[0]["reason"] == "disconnect" and "missing" not in out[0]


def test_break_touches_only_the_routes_of_its_connection() -> None:
    scene = Scene(None)
    scene.take(trade(None), connection="1")
    scene.take(trade(None, "ETH-USD"), connection="2")
    scene.intake.closed(scene.source, "2")
    assert kinds(scene.take(trade(None), connection="1")) == ["trade"]


def test_number_of_a_useless_frame_counts_as_seen() -> None:
    scene = Scene(CONTIGUOUS)
    assert kinds(scene.take(trade(5), Seen("trades", "BTC-USD", 6), trade(7))) == ["trade", "trade"]
    out = scene.take(Seen("trades", "BTC-USD", 9), trade(10))
    assert kinds(out) == [*BOTH, "trade"] and (out[0]["first_missing"], out[0]["last_missing"]) == (8, 8)


def test_number_that_was_only_named_is_missing() -> None:
    scene = Scene(GLOBAL)
    assert scene.take(Seen("trades", "BTC-USD", 5, delivered=False)) == []  # the base line
    assert kinds(scene.take(trade(6))) == ["trade"]
    assert scene.take(Seen("trades", "BTC-USD", 6, delivered=False)) == []
    out = scene.take(Seen("trades", "BTC-USD", 8, delivered=False))
    assert kinds(out) == BOTH and (out[0]["first_missing"], out[0]["last_missing"], out[0]["missing"]) == (7, 8, 2)
    assert kinds(scene.take(trade(9))) == ["trade"]


def test_a_base_line_proves_nothing_where_no_earlier_number_is_known() -> None:
    """A restart knows from Redis alone that an earlier run wrote here; the first number that it sees is no proof."""
    scene = Scene(Identity("global", "contiguous"))
    topic = scene.out.topic("trades.BTC-USD", "trades", "made")
    topic.last_id = "1772359000000-5"
    out = scene.take(Seen("trades", "BTC-USD", 9, delivered=True), trade(10))
    assert kinds(out) == ["gap@trades.BTC-USD", "gap@status.r", "trade"]
    assert out[0]["reason"] == "relay_down"
    assert "missing" not in out[0]
    assert kinds(scene.take(trade(11))) == ["trade"]


def test_outside_of_every_subscription_makes_no_topic() -> None:
    scene = Scene(subs=[Subscription("trades", "BTC-*")])
    assert kinds(scene.take(trade(None, "BTC-USD"), trade(None, "ETH-USD"), trade(None, "ETH-USD"))) == ["trade"]
    assert scene.source.counts.outside == 2
    assert "trades.ETH-USD" not in scene.out.topics


def test_hostile_provider_cannot_make_topics_without_end() -> None:
    scene = Scene(options={"topics_max": 3})
    out = scene.take(*(trade(None, f"S{n}") for n in range(50)))
    assert [m["type"] for m in out].count("trade") == 3
    assert [m["text"] for m in out if m["type"] == "status"] == ["topics_max of 3 reached; further symbols are dropped"]
    assert scene.source.counts.made == scene.source.counts.published + scene.source.counts.outside
    assert len(scene.source.routes) < 20


def test_second_source_of_a_topic_is_refused_loudly_unless_merged() -> None:
    scene = Scene()
    other = scene.intake.source("other", scene.spec, Shared(Options()), None)
    scene.take(trade(None))
    scene.intake.take(other, "1", [trade(None)], NOW)
    (status,) = scene.drain()
    assert status["event"] == "refused" and "merge: true" in status["text"] and "{provider}" in status["text"]
    assert other.counts.outside == 1
    merged = Scene(merge=True)
    other = merged.intake.source("other", merged.spec, Shared(Options()), None)
    merged.take(trade(None))
    merged.intake.take(other, "1", [trade(None)], NOW)
    assert [m["seq"] for m in merged.drain()] == [2]


def test_snapshot_and_delta_share_one_topic_and_numbering() -> None:
    scene = Scene()
    header: dict[str, Any] = {"symbol": "A", "raw_symbol": "A"}
    out = scene.take(
        model.BookSnapshot(bids=(), asks=(), **header), model.BookDelta(bids=(("1", "0"),), asks=(), **header)
    )
    assert [(m["topic_"], m["seq"]) for m in out] == [("books.made.A", 1), ("books.made.A", 2)]


def test_bars_of_two_intervals_have_two_topics() -> None:
    scene = Scene(subs=[Subscription("bars", "A", "1m")])
    prices: dict[str, Any] = {"open": "1", "high": "1", "low": "1", "close": "1", "start": 0, "end": 1, "closed": True}
    bars = [model.Bar(symbol="A", raw_symbol="A", interval=i, **prices) for i in ("1m", "5m")]
    assert [m["topic_"] for m in scene.take(*bars)] == ["bars.1m.A"]
    assert scene.source.counts.outside == 1


def test_account_messages_go_to_the_account_and_need_no_symbol() -> None:
    scene = Scene(subs=[])
    out = scene.take(model.Order(account="main", order_id="1", state="open"))
    assert [m["topic_"] for m in out] == ["orders.main"]


def test_reject_lands_in_the_dead_letters_of_relay_or_account() -> None:
    scene = Scene()
    out = scene.take(model.Reject(reason="not_json"), model.Reject(reason="not_json", account="main"))
    assert [m["topic_"] for m in out] == ["deadletter.r", "deadletter.main"]
    assert scene.source.counts.rejects == 2


def test_silent_topic_goes_stale_once_and_fresh_before_its_next_message() -> None:
    scene = Scene(cadence=60.0)
    scene.take(trade(None))
    scene.intake.watch(NOW + 60 * SECOND)
    assert scene.drain() == []
    scene.intake.watch(NOW + 61 * SECOND)
    scene.intake.watch(NOW + 62 * SECOND)
    out = scene.drain()
    assert kinds(out) == ["stale@trades.BTC-USD", "stale@status.r"]
    assert kinds(scene.take(trade(None))) == ["fresh@trades.BTC-USD", "fresh@status.r", "trade"]


def test_config_overrides_the_cadence_and_zero_means_never() -> None:
    for seconds, stale in ((5.0, True), (0.0, False)):
        scene = Scene(options={"stale_secs": {"trades": seconds}})
        scene.take(trade(None))
        scene.intake.watch(NOW + 1000 * SECOND)
        assert bool(scene.drain()) is stale


def test_closed_market_is_no_alarm() -> None:
    scene = Scene()
    scene.take(trade(None), model.Status(event="market", open=False, raw_symbol="BTC-USD"))
    scene.intake.watch(NOW + 1000 * SECOND)
    assert scene.drain() == []
    scene.take(model.Status(event="market", open=True, raw_symbol="BTC-USD"))
    scene.intake.watch(NOW + 1000 * SECOND)
    assert kinds(scene.drain()) == ["stale@trades.BTC-USD", "stale@status.r"]


def test_gap_of_a_provider_goes_in_band_to_its_topic() -> None:
    scene = Scene()
    header: dict[str, Any] = {"symbol": "A", "raw_symbol": "A"}
    scene.take(model.BookSnapshot(bids=(), asks=(), **header))
    out = scene.take(model.Status(event="gap", channel="books", reason="sequence_jump", first_missing=3, **header))
    assert kinds(out) == ["gap@books.made.A", "gap@status.r"]


def test_topic_without_room_declares_what_it_could_not_take() -> None:
    scene = Scene()
    scene.take(trade(None))
    topic = scene.out.topics["trades.BTC-USD"]
    topic.full = True
    assert scene.take(trade(None), trade(None)) == []
    topic.full = False
    out = scene.take(trade(None))
    assert kinds(out) == [*BOTH, "trade"] and (out[0]["reason"], out[0]["missing"]) == ("overflow", 2)
    assert [m["seq"] for m in out if m["topic_"] == "trades.BTC-USD"] == [2, 3]


def test_new_run_says_that_the_relay_was_down() -> None:
    scene = Scene()
    scene.out.topic("trades.BTC-USD", "trades", "made").last_id = f"{NOW // 1_000_000 - 5000}-9"
    out = scene.take(trade(None))
    assert kinds(out) == [*BOTH, "trade"]
    assert (out[0]["reason"], out[0]["from_ns"]) == ("relay_down", NOW - 5 * SECOND)


def test_conservation_of_messages() -> None:
    scene = Scene(CONTIGUOUS, subs=[Subscription("trades", "BTC-USD")])
    scene.take(trade(1), trade(2), trade(2), trade(5), trade(1, "X"), model.Status(event="notice"), trade(3))
    counts = scene.source.counts
    assert counts.made == counts.published + counts.repeats + counts.outside + counts.overflow == 6


# -- conflation --------------------------------------------------------------------------------------------------------

MS = 1_000_000


def quote(bid: str, symbol: str = "BTC-USD") -> model.Quote:
    return model.Quote(symbol=symbol, raw_symbol=symbol, bid=bid)


def bids(messages: list[dict[str, Any]]) -> list[str]:
    return [m["bid"] for m in messages if m["type"] == "quote"]


def law_holds(scene: Scene) -> bool:
    return stats.messages([scene.source.counts]).difference == 0


def test_thinned_quotes_give_the_newest_of_each_interval_and_leave_no_hole() -> None:
    scene = Scene(options={"interval_ms": {"quotes": 100}})
    assert bids(scene.take(quote("1"))) == ["1"], "the first goes at once"
    assert scene.take(quote("2"), quote("3"), quote("1", "ETH-USD"), now=NOW + 10 * MS)[0]["raw_symbol"] == "ETH-USD"
    assert scene.intake.watch(NOW + 99 * MS) == 0
    assert scene.intake.watch(NOW + 100 * MS) == 1
    (released,) = scene.drain()
    assert (released["bid"], released["seq"], released["ts_recv"]) == ("3", 2, NOW + 100 * MS)
    assert released["id_"] == f"{(NOW + 100 * MS) // MS}-2"
    assert scene.take(quote("4"), now=NOW + 150 * MS) == []
    assert bids(scene.take(quote("5"), now=NOW + 200 * MS)) == ["5"], "newer than what was kept"
    counts = scene.source.counts
    assert (counts.made, counts.published, counts.conflated, counts.held) == (6, 4, 2, 0) and law_holds(scene)
    assert not scene.intake.conflation.release(NOW + 900 * MS)


def test_only_quotes_are_thinned() -> None:
    scene = Scene(options={"interval_ms": {"quotes": 100}})
    assert len(scene.take(trade(1), trade(2), trade(3))) == 3


def test_a_quote_that_is_kept_back_comes_before_the_gap_behind_it() -> None:
    scene = Scene(options={"interval_ms": {"quotes": 100}})
    scene.take(quote("1"))
    scene.take(quote("2"), now=NOW + MS)
    scene.intake.closed(scene.source, "1")
    found = scene.take(quote("3"), now=NOW + 2 * MS)
    assert kinds(found)[:2] == ["quote", "gap@quotes.BTC-USD"] and bids(found) == ["2"]
    scene.intake.watch(NOW + 500 * MS)
    assert bids(scene.drain()) == ["3"] and law_holds(scene)


def test_latest_keeps_one_quote_a_symbol_while_there_is_no_room() -> None:
    scene = Scene(options={"when_full": {"quotes": "latest"}})
    full = True
    scene.intake.conflation.pressed = lambda: full
    assert scene.take(*[quote(str(i)) for i in range(1, 50)], quote("7", "ETH-USD")) == []
    assert len(scene.take(trade(1))) == 1, "trades are never conflated"
    assert scene.intake.watch(NOW + SECOND) == 0
    assert (scene.source.counts.conflated, scene.source.counts.held) == (48, 2) and law_holds(scene)
    full = False
    assert scene.intake.watch(NOW + SECOND) == 2
    assert bids(scene.drain()) == ["49", "7"] and law_holds(scene)


def test_a_stop_publishes_what_was_kept_back() -> None:
    scene = Scene(options={"interval_ms": {"quotes": 60_000}})
    scene.take(quote("1"), quote("2"))
    lifecycle.stopped(scene.intake, NOW + MS)
    assert bids(scene.drain()) == ["2"] and law_holds(scene)


def test_first_gap_of_a_run_has_exact_numbers_where_the_spool_knows_the_last() -> None:
    scene = Scene(GLOBAL)
    topic = scene.out.topic("trades.BTC-USD", "trades", "made")
    topic.last_id = f"{NOW // MS - 5000}-9"
    topic.before = b'{"type":"trade","provider":"made","raw_symbol":"BTC-USD","src_seq":41}'
    gap, _, message = scene.take(trade(50))
    assert (gap["reason"], gap["first_missing"], gap["last_missing"], gap["missing"]) == ("relay_down", 42, 49, 8)
    assert message["src_seq"] == 50 and scene.out.topic("trades.BTC-USD", "trades", "made").contiguous
