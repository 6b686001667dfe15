"""Planned rollovers: two sessions of a connection, joined without a hole and without a repeat."""

import json
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from checker import check
from checker import streams as streams_of
from relays import Running, config_of, entries, relay_of, until
from sinks import dose
from test_faults import faulty
from test_replay import replay, streams

from relay import lifecycle, stats
from relay.errors import SessionError
from relay.intake import Intake, Source
from relay.model import BookDelta, BookSnapshot, Quote, Status, Trade
from relay.normalizer import Collector
from relay.providers import PROVIDERS
from relay.providers.base import Seen, Subscription
from relay.retry import Decision
from relay.simulator.faults import Faults
from relay.topics import Topics

RAW = "BTC-USD"
SUBSCRIPTIONS = [Subscription("trades", RAW), Subscription("quotes", RAW), Subscription("books", RAW, "full")]
JOINED, REPLACED = Decision("joined", 0.0, 0), Decision("replaced", 0.0, 0)


class Two:
    """An intake with two sessions of one connection of a provider."""

    def __init__(self, provider: str = "coinbase") -> None:
        self._out = Collector()
        self._bodies: dict[str, list[bytes]] = {}
        self.intake = Intake(Topics("t"), self._out, 1)
        spec = PROVIDERS[provider]
        shared = spec.shared(spec.options(), "main")
        self.source: Source = self.intake.source("p", spec, shared, SUBSCRIPTIONS)
        self.now = 10**18
        lifecycle.opened(self.intake, self.source, "1", self.now)

    def begin(self) -> None:
        lifecycle.opened(self.intake, self.source, "1+", self.now)

    def give(self, key: str, *messages: Any) -> None:
        self.now += 1_000_000
        self.intake.take(self.source, key, messages, self.now)

    def end(self, key: str = "1", decision: Decision | None = JOINED) -> None:
        self.now += 1_000_000
        error = None if decision is JOINED else SessionError("it broke")
        lifecycle.closed(self.intake, self.source, key, True, error, 1000, "", decision, self.now)

    @property
    def bodies(self) -> dict[str, list[bytes]]:
        for entry in self._out.drain():
            self._bodies.setdefault(entry.topic, []).append(entry.body)
        return self._bodies

    @property
    def joined(self) -> bool:
        return bool(self.source.rollovers["1"].joined)

    def published(self, kind: str) -> list[Any]:
        """What stands in the topic: numbers or bids of messages, reasons of gaps."""
        out = []
        for name, bodies in self.bodies.items():
            if name.startswith(kind):
                for message in map(json.loads, bodies):
                    if message["type"] == "status":
                        gap = [message.get("first_missing"), message.get("last_missing")]
                        out.append((message["reason"], *gap) if gap[0] is not None else message.get("reason"))
                    else:
                        out.append(message.get("src_seq") or message["bids" if kind == "books" else "bid"])
        return out

    def balanced(self) -> bool:
        return not stats.messages([self.source.counts]).difference


def trade(number: int | None) -> Trade:
    return Trade(raw_symbol=RAW, symbol="BTC-USD", src_seq=number, price="1", size="1")


def quote(bid: str, number: int | None = None) -> Quote:
    return Quote(raw_symbol=RAW, symbol="BTC-USD", src_seq=number, bid=bid, ask="9")


@pytest.mark.parametrize("seed", range(40))
def test_numbers_tile_however_the_two_sessions_are_mixed(seed: int) -> None:
    random = Random(seed)
    two = Two()
    ahead = {"1": 0, "1+": random.randint(0, 30)}  # what each session has brought so far
    for number in range(1, 21):
        two.give("1", trade(number))
    ahead["1"], top = 20, 200
    two.begin()
    if random.random() < 0.5:
        two.give("1+", Seen("trades", RAW, ahead["1+"], delivered=False))
    while ahead["1"] < 120 or ahead["1+"] < 120 or not two.joined:
        # now this one is faster, now that one; and neither owes more than the provider has
        key = "1" if random.random() < (0.2, 0.5, 0.8)[seed % 3] and ahead["1"] < top else "1+"
        ahead[key] = min(ahead[key] + 1, top)
        two.give(key, trade(ahead[key]))
        if ahead["1+"] == top:
            while ahead["1"] < top:
                ahead["1"] += 1
                two.give("1", trade(ahead["1"]))
    two.end()
    for number in range(ahead["1+"] + 1, top + 21):
        two.give("1+", trade(number))
    assert two.published("trades") == list(range(1, max(ahead["1+"], ahead["1"], top + 20) + 1))
    assert two.balanced() and two.source.counts.repeats > 0


def test_what_one_session_loses_is_taken_from_the_other() -> None:
    two = Two()
    two.give("1", trade(5))
    two.begin()
    two.give("1+", trade(6), trade(7), trade(9))
    two.give("1", trade(6), trade(8), trade(10))
    two.give("1+", trade(10), trade(11))
    two.end()
    assert two.published("trades") == [5, 6, 7, 8, 9, 10, 11] and two.balanced()


def test_what_both_sessions_lose_is_a_gap_with_its_numbers() -> None:
    two = Two()
    two.give("1", trade(5))
    two.begin()
    two.give("1+", trade(9))
    two.give("1", trade(8))
    two.end()
    two.give("1+", trade(12))
    assert two.published("trades") == [5, ("sequence_jump", 6, 7), 8, 9, ("resync", 10, 11), 12]


def test_an_old_session_that_ends_before_the_new_one_has_joined_leaves_a_gap_with_its_numbers() -> None:
    two = Two()
    two.give("1", trade(5), quote("1", 50))
    two.begin()
    two.give("1+", trade(8), quote("3", 80))
    assert not two.joined
    two.end(decision=REPLACED)
    two.give("1+", trade(9))
    assert two.published("trades") == [5, ("disconnect", 6, 7), 8, 9]
    assert two.published("quotes") == [50, "disconnect", 80] and two.balanced()


def test_rising_numbers_are_joined_in_order() -> None:
    two = Two()
    two.give("1", quote("1", 50))
    two.begin()
    two.give("1+", quote("3", 70), quote("4", 90))
    two.give("1", quote("2", 60))
    assert not two.joined, "the old one has not brought what the new one began with"
    two.give("1", quote("3", 70), quote("3.5", 80))
    assert two.joined
    two.end()
    two.give("1+", quote("5", 100))
    assert two.published("quotes") == [50, 60, 70, 80, 90, 100] and two.balanced()


def test_without_numbers_the_source_changes_once_and_trades_say_that_some_may_be_missing() -> None:
    two = Two("aries")  # neither its trades nor its quotes are numbered
    two.give("1", trade(None), quote("1"))
    two.begin()
    two.give("1+", trade(None), quote("2"))
    two.give("1", quote("2"), trade(None))
    two.end()
    two.give("1+", trade(None), quote("3"))
    assert two.published("quotes") == ["1", "2", "3"], "what both said is published once"
    trades = [json.loads(body) for body in two.bodies["trades.BTC-USD"]]
    assert [m.get("reason", m["type"]) for m in trades] == ["trade", "trade", "resync", "trade"]
    assert two.balanced()


def test_the_last_word_of_the_new_session_is_not_lost_with_the_old_one() -> None:
    two = Two("aries")
    two.give("1", quote("1"))
    two.begin()
    two.give("1", quote("2"))
    two.give("1+", quote("2"), quote("4"))  # the old one was slower
    two.end()
    assert two.published("quotes") == ["1", "2", "4"] and two.balanced()


def test_a_book_is_taken_over_whole() -> None:
    def snapshot(price: str) -> BookSnapshot:
        return BookSnapshot(raw_symbol=RAW, symbol="BTC-USD", bids=[(price, "1")], asks=[])

    def delta(price: str) -> BookDelta:
        return BookDelta(raw_symbol=RAW, symbol="BTC-USD", bids=[(price, "1")], asks=[])

    two = Two()
    two.give("1", snapshot("1"), delta("2"))
    two.begin()
    two.give("1+", delta("0"))
    two.give("1", delta("3"))
    assert not two.joined, "its snapshot is not here yet"
    two.give("1+", snapshot("10"), delta("11"))
    two.give("1", delta("4"))
    assert two.joined
    two.end()
    two.give("1", delta("5"))  # nothing of the old session counts any more, but it is closed by then
    two.give("1+", delta("12"))
    assert [rows[0][0] for rows in two.published("books")][:6] == ["1", "2", "3", "4", "10", "11"]
    assert two.balanced()


def test_a_book_that_the_old_session_gives_up_is_taken_over_at_once() -> None:
    def book(cls: Any, price: str) -> Any:
        return cls(raw_symbol=RAW, symbol="BTC-USD", bids=[(price, "1")], asks=[])

    stale = Status(event="stale", channel="books", raw_symbol=RAW)
    two = Two()
    two.give("1", book(BookSnapshot, "1"))
    two.begin()
    two.give("1+", book(BookSnapshot, "10"), stale)  # in doubt: nothing to take over yet
    two.give("1", book(BookDelta, "2"))
    assert not two.joined
    two.give("1+", book(BookSnapshot, "11"), book(BookDelta, "12"))
    two.give("1", stale)
    two.give("1+", book(BookDelta, "13"))
    two.give("1", book(BookDelta, "3"))
    two.end()
    two.give("1+", book(BookDelta, "14"))
    assert [rows[0][0] for rows in two.published("books")] == ["1", "2", "11", "12", "13", "14"]
    assert two.balanced()


def test_a_new_session_that_fails_leaves_no_gap() -> None:
    two = Two()
    two.give("1", trade(1))
    two.begin()
    two.give("1+", trade(2), trade(5))
    two.end("1+", Decision("retry", 1.0, 1))
    two.give("1", trade(2), trade(3))
    assert two.published("trades") == [1, 2, 3] and two.balanced()
    statuses = [json.loads(body) for body in two.bodies["status.t"]]
    assert [s["event"] for s in statuses] == ["opened", "opened", "notice"]
    assert statuses[-1]["code"] == "not_renewed" and "old one stays" in statuses[-1]["action"]


def test_statuses_of_the_new_session_say_nothing_in_band_before_it_takes_over() -> None:
    two = Two()
    two.give("1", trade(1))
    two.begin()
    gap = Status(event="gap", reason="resync", channel="trades", raw_symbol=RAW)
    two.give("1+", gap, Status(event="subscribed", channel="trades", raw_symbol=RAW))
    assert two.published("trades") == [1]
    assert json.loads(two.bodies["status.t"][-1])["event"] == "subscribed"


# -- the whole relay ---------------------------------------------------------------------------------------------------

PRODUCTS = [f"P{i:02d}-USD" for i in range(4)]


def renew(running: Running, name: str) -> None:
    provider = running.bridge.providers[name].feeds[0].provider
    assert provider is not None
    provider.renew = True


async def rolled(running: Running, name: str) -> None:
    """Ask for a rollover and wait until it is over."""
    feed = running.bridge.providers[name].feeds[0]
    before = feed.provider
    renew(running, name)
    await until(lambda: feed.provider is not None and feed.provider is not before, 20)


async def more(running: Running, name: str, count: int = 50) -> None:
    counts = running.bridge.providers[name].source.counts
    wanted = counts.published + count
    await until(lambda: counts.published >= wanted)


def renewals(url: str, topic: str = "status.t") -> list[dict[str, Any]]:
    found = [message for _, message in entries(url, topic)]
    return [m for m in found if m["event"] in ("renewed", "closed", "gap", "refused")]


async def test_rollovers_of_a_numbered_provider_under_load_and_their_replay(redis_url: str, tmp_path: Path) -> None:
    names = [f"trades.{name}" for name in PRODUCTS]
    with faulty(1000, len(PRODUCTS)) as numbered:
        config = config_of(
            f"name: t\njournal: {{dir: {tmp_path}/journal, flush_ms: 20}}\nredis: {{url: {redis_url}}}\n"
            f"providers:\n  coinbase:\n    url: ws://127.0.0.1:{numbered.port}/\n    trades: [{', '.join(PRODUCTS)}]\n",
            tmp_path,
        )
        async with relay_of(config) as running:
            await more(running, "coinbase")
            for _ in range(3):  # to the second lane, back, and again
                await rolled(running, "coinbase")
                await more(running, "coinbase")
            feed = running.bridge.providers["coinbase"].feeds[0]
            assert feed.stats.ended == {"close_1000": 3} and feed.stats.opened == 4
            verdict = check(streams_of(redis_url, names), true=True)
            assert verdict.right and verdict.gaps == 0 and verdict.data > 2000, str(verdict)
            renew(running, "coinbase")  # and one that a planned stop interrupts
            await until(lambda: running.bridge.providers["coinbase"].source.rollovers)
        assert not running.said("not accounted for"), running.lines
        assert numbered.play("none") == 5
    # the new session may have been ahead of what the old one, that was stopped, had read: then a gap says so
    verdict = check(streams_of(redis_url, names), true=True)
    assert verdict.right and verdict.gaps <= len(names) and set(verdict.reasons) <= {"disconnect"}, str(verdict)
    assert verdict.data > 3000, str(verdict)
    found = renewals(redis_url)
    assert [m["event"] for m in found][:3] == ["renewed"] * 3 and all(m["from_ns"] < m["to_ns"] for m in found[:3])
    assert sum(line[1].endswith("the old one is closed") for line in running.lines) == 3
    live = streams(redis_url)
    result = await anyio.to_thread.run_sync(
        lambda: replay(tmp_path / "journal", "--url", redis_url, "--into", "again.")
    )
    assert result.exit_code == 0, result.output
    again = streams(redis_url, "again.*")
    assert {name.removeprefix("again."): found for name, found in again.items()} == live


@pytest.mark.fault
async def test_an_announced_end_makes_a_rollover_and_its_replay_gives_the_same(redis_url: str, tmp_path: Path) -> None:
    section = (
        "    simulate: true\n    quotes: [BTCUSDT]\n    trades: [BTCUSDT, ETHUSDT]\n    bars: {1m: [BTCUSDT]}\n"
        "    books: {20: [BTCUSDT], full: [ETHUSDT]}\n"
    )
    config = config_of(
        f"name: t\njournal: {{dir: {tmp_path}/journal, flush_ms: 20}}\nredis: {{url: {redis_url}}}\n"
        f"simulator: {{rate: 200}}\nproviders:\n  binance:\n{section}",
        tmp_path,
    )
    async with relay_of(config) as running:
        await more(running, "binance")
        running.bridge.simulator.set_faults(Faults(end_secs=0.5, connections=1))
        feed = running.bridge.providers["binance"].feeds[0]
        before = feed.provider
        await until(lambda: feed.provider is not None and feed.provider is not before, 20)
        await more(running, "binance", 200)
        assert feed.stats.ended == {"close_1000": 1}
    assert not running.said("not accounted for"), running.lines
    live = streams(redis_url)
    verdict = check({name: found for name, found in live.items() if "trades." in name})
    assert verdict.right and verdict.gaps == 0 and verdict.data > 100, str(verdict)
    events = [m["event"] for m in renewals(redis_url, "sim.status.t")]
    assert events == ["renewed", "closed"], events
    books = [found[:-1] for name, found in live.items() if "books." in name]  # the last entry: the relay has stopped
    assert len(books) == 2 and not any(b'"event":"stale"' in body for found in books for _, body in found)
    assert not any(b'"event":"gap"' in body for found in live.values() for _, body in found)
    result = await anyio.to_thread.run_sync(
        lambda: replay(tmp_path / "journal", "--url", redis_url, "--into", "again.")
    )
    assert result.exit_code == 0, result.output
    again = streams(redis_url, "again.*")
    assert {name.removeprefix("again."): found for name, found in again.items()} == live


@pytest.mark.fault
@pytest.mark.parametrize("second", [True, False], ids=["make-before-break", "control: break, then make"])
async def test_rollovers_under_load_lose_nothing(second: bool, redis_url: str, tmp_path: Path) -> None:
    rounds = dose(20) if second else 3
    names = [f"P{i:02d}-USD" for i in range(20)]
    with faulty(5000, len(names)) as numbered:
        config = config_of(
            f"name: t\nredis: {{url: {redis_url}, stream_length_max: 100000000}}\n"
            f"providers:\n  coinbase:\n    url: ws://127.0.0.1:{numbered.port}/\n    trades: [{', '.join(names)}]\n",
            tmp_path,
        )
        async with relay_of(config) as running:
            feed = running.bridge.providers["coinbase"].feeds[0]
            feed._limits.spare = lambda: second  # type: ignore[method-assign]
            await more(running, "coinbase", 1000)
            for _ in range(rounds):
                await rolled(running, "coinbase")
                await more(running, "coinbase", 1000)
            assert feed.stats.opened == rounds + 1
            repeats = running.bridge.providers["coinbase"].source.counts.repeats
        assert not running.said("not accounted for"), running.lines
    verdict = check(streams_of(redis_url, [f"trades.{name}" for name in names]), true=True)
    print(f"\n{rounds} rollovers: {verdict}; {repeats} repeats dropped")
    assert verdict.right, str(verdict)
    assert (verdict.gaps == 0) is second, str(verdict)
