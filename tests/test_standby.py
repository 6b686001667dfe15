"""Active and standby: the ring, the seam between two writers, and whole pairs. Under load: test_standby_faults.py."""

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from checker import check, streams
from made_up import errors, with_alpha
from pairs import CONFIG, Node, pair
from relays import config_of, entries, relay_of, until
from servers import RedisServer
from test_faults import NAMES, PRODUCT_NAMES, provider

from relay import codec, model
from relay.books import Books
from relay.clock import Clock
from relay.intake import Intake
from relay.outbox import Outbox
from relay.providers import PROVIDERS
from relay.providers.base import Subscription
from relay.ring import MESSAGE_COST, Ring, cost
from relay.seam import Seam, Tail, sameness
from relay.simulator.server import Simulator
from relay.topics import Topics

S = 1_000_000_000

# -- the ring ------------------------------------------------------------------------------------------------------


def test_ring_holds_what_is_young_enough_and_counts_what_falls_out() -> None:
    ring = Ring(3 * S, 1 << 30, 0)
    for second in range(10):
        ring.add(second, second * S, messages=2)
    assert (len(ring), ring.messages, ring.fallen) == (4, 8, 12)
    assert ring.since_ns == 5 * S and not ring.narrow, "all that came later is there"
    assert [ring.pop() for _ in range(4)] == [(second * S, second) for second in (6, 7, 8, 9)]
    assert (ring.bytes, ring.messages) == (0, 0)


def test_ring_is_bounded_by_bytes_and_says_so() -> None:
    ring = Ring(100 * S, 3 * MESSAGE_COST, 0)
    for second in range(10):
        ring.add(second, second * S)
    assert len(ring) == 3 and ring.bytes == 3 * MESSAGE_COST and ring.narrow
    ring.add("large", 10 * S, 10 * MESSAGE_COST)
    assert len(ring) == 1, "one that is larger alone is kept alone"


def test_ring_that_is_read_keeps_all_although_the_clock_jumps() -> None:
    ring = Ring(3 * S, 1 << 30, 0)
    ring.add("a", S)
    ring.still = True
    ring.add("b", 3600 * S)
    assert [ring.pop()[1], ring.pop()[1]] == ["a", "b"]


def test_books_weigh_by_their_levels() -> None:
    level = ("1.0", "2.0")
    small = model.BookDelta(bids=(level,), asks=())
    large = model.BookSnapshot(bids=(level,) * 1000, asks=(level,) * 1000)
    assert cost([large]) > 100 * cost([small]) and cost([model.Trade(price="1")]) == MESSAGE_COST


# -- the seam ------------------------------------------------------------------------------------------------------


class Writer:
    """An intake with its outbox; another one goes on behind its entries."""

    def __init__(self, provider: str, subscription: Subscription, run: int) -> None:
        spec = PROVIDERS[provider]
        self.outbox = Outbox(1 << 26, 1 << 26)
        self.intake = Intake(Topics("t", {}, ""), self.outbox, run)
        options = spec.options(**({"api_key": "k" * 8} if "api_key" in spec.options.__struct_fields__ else {}))
        self.source = self.intake.source(provider, spec, spec.shared(options, "main"), [subscription])

    def behind(self, other: "Writer", topic: str, *, covered: bool = True, skew_ns: int = 0, until_ns: int = 0) -> None:
        """Go on behind what another one has written to a topic."""
        ids, data = other.outbox.topics[topic].ids, other.outbox.topics[topic].data
        numbered = {topic: data[-1]} if codec.decode(data[-1]).src_seq is not None else {}
        self.outbox.know({topic: ids[-1]}, numbered)
        connections = frozenset({(self.source.name, "1")}) if covered else frozenset[tuple[str, str]]()
        self.intake.seam = Seam(connections, skew_ns, until_ns, {topic: Tail(ids[-1], data[::-1], whole=True)})

    def ring(self, *messages: tuple[int, Any]) -> None:
        """Take messages out of a ring, by the time at which they came."""
        assert self.intake.seam is not None
        for then_ns, message in messages:
            self.intake.seam.at_ns = then_ns
            self.intake.take(self.source, "1", [message], max(then_ns, 1000 * S))
        self.intake.seam.at_ns = None

    def live(self, now_ns: int, message: Any) -> None:
        self.intake.take(self.source, "1", [message], now_ns)

    def made(self, topic: str) -> list[Any]:
        found = self.outbox.topics.get(topic)
        return [codec.decode(body) for body in found.data] if found else []


TRADES = Subscription("trades", "BTC-USD")
TRADES_TOPIC = "trades.BTC-USD"


def trade(number: int | None = None, price: str = "1", **more: Any) -> model.Trade:
    return model.Trade(symbol="BTC-USD", raw_symbol="BTC-USD", price=price, src_seq=number, **more)


def test_numbers_align_without_hole_or_repeat() -> None:
    one, two = Writer("coinbase", TRADES, 1), Writer("coinbase", TRADES, 2)
    for number in range(1, 11):
        one.live(900 * S + number * S, trade(number))
    two.behind(one, TRADES_TOPIC)
    two.ring(*[(903 * S + n * S, trade(n)) for n in range(5, 14)])
    two.live(1001 * S, trade(14))
    assert [message.src_seq for message in two.made(TRADES_TOPIC)] == [11, 12, 13, 14]
    assert two.source.counts.repeats == 6
    assert all(message.run == 2 for message in two.made(TRADES_TOPIC))


def test_a_ring_far_behind_is_no_count_begun_anew() -> None:
    one, two = Writer("coinbase", TRADES, 1), Writer("coinbase", TRADES, 2)
    one.live(900 * S, trade(50_000))
    two.behind(one, TRADES_TOPIC, until_ns=2000 * S)
    two.ring(*[(901 * S, trade(n)) for n in range(20_000, 50_002)])
    assert [message.src_seq for message in two.made(TRADES_TOPIC)] == [50_001]


def test_a_ring_that_does_not_reach_back_is_a_gap_with_its_numbers() -> None:
    one, two = Writer("coinbase", TRADES, 1), Writer("coinbase", TRADES, 2)
    one.live(900 * S, trade(10))
    two.behind(one, TRADES_TOPIC)
    two.ring((905 * S, trade(15)))
    gap, found = two.made(TRADES_TOPIC)
    assert (gap.event, gap.reason, gap.first_missing, gap.last_missing, gap.missing) == ("gap", "relay_down", 11, 14, 4)
    assert (gap.from_ns, found.src_seq) == (900 * S, 15)


QUOTES = Subscription("quotes", "BTC/USD")
QUOTES_TOPIC = "quotes.BTC-USD"


def quote(bid: str) -> model.Quote:
    return model.Quote(symbol="BTC-USD", raw_symbol="BTC/USD", bid=bid)


@pytest.mark.parametrize("skew_ns", [0, 800 * S, -800 * S])
def test_without_numbers_a_handover_is_said_and_the_clocks_of_both_do_not_matter(skew_ns: int) -> None:
    one, two = Writer("kraken", QUOTES, 1), Writer("kraken", QUOTES, 2)
    one.live(900 * S + skew_ns, quote("1"))
    one.live(910 * S + skew_ns, quote("2"))
    two.behind(one, QUOTES_TOPIC, skew_ns=skew_ns)
    two.ring((900 * S, quote("1")), (909 * S, quote("1.5")), (910 * S + 5_000_000, quote("2")), (911 * S, quote("3")))
    handover, found = two.made(QUOTES_TOPIC)
    assert (handover.event, handover.from_ns, handover.to_ns) == ("handover", 910 * S + skew_ns, 1000 * S)
    assert found.bid == "3", "what came before the last entry is there, and so is what says the same just behind it"
    assert [message.event for message in two.made("status.t")] == ["handover"], "with a copy"


def test_what_was_not_heard_is_a_gap_and_no_handover() -> None:
    one, two = Writer("kraken", QUOTES, 1), Writer("kraken", QUOTES, 2)
    one.live(900 * S, quote("1"))
    two.behind(one, QUOTES_TOPIC, covered=False)
    two.ring((950 * S, quote("2")))
    assert [getattr(message, "reason", None) for message in two.made(QUOTES_TOPIC)] == ["relay_down", None]


def test_rising_numbers_prove_what_reaches_back() -> None:
    one, two, three = (Writer("coinbase", Subscription("quotes", "BTC-USD"), run) for run in (1, 2, 3))

    def numbered(number: int) -> model.Quote:
        return model.Quote(symbol="BTC-USD", raw_symbol="BTC-USD", bid="1", src_seq=number)

    one.live(900 * S, numbered(10))
    two.behind(one, QUOTES_TOPIC)
    two.ring((899 * S, numbered(8)), (900 * S, numbered(10)), (901 * S, numbered(13)))
    assert [
        (message.type if hasattr(message, "type") else "", message.src_seq) for message in two.made(QUOTES_TOPIC)
    ] == [("", 13)]
    three.behind(one, QUOTES_TOPIC)
    three.ring((901 * S, numbered(13)))
    assert [getattr(message, "event", "") for message in three.made(QUOTES_TOPIC)] == ["handover", ""]


def test_of_accounts_nothing_is_lost() -> None:
    tail = Tail("910000-7", [codec.encode(_order("filled", 909 * S)), codec.encode(_order("open", 905 * S))])
    assert not tail.has(_order("cancelled"), 908 * S, True), "younger than what was read, and nothing of it says this"
    assert tail.has(_order("open"), 905 * S, True)
    assert not tail.has(_order("open"), 905 * S, True), "once only"
    assert tail.has(_order("open"), 904 * S, True), "older than all that was read"
    assert not tail.has(_order("rejected"), 911 * S, True)


def _order(state: Any, ts_recv: int = 0) -> model.Order:
    return model.Order(account="main", order_id="1", state=state, ts_recv=ts_recv)


def test_sameness_is_of_what_a_provider_said() -> None:
    assert sameness(trade(None, "1", ts_recv=1, run=2, seq=3)) == sameness(trade(None, "1"))
    assert sameness(trade(None, "1")) != sameness(trade(None, "2"))
    assert sameness(trade(None, "1", id="7")) == sameness(trade(None, "1.0", id="7"))


def test_books_begin_anew_with_a_whole_one() -> None:
    subscription = Subscription("books", "BTC/USD", "10")
    one, two = Writer("kraken", subscription, 1), Writer("kraken", subscription, 2)
    books = Books({"BTC/USD": ("BTC-USD", None)})
    books.want("BTC/USD", 0)
    topic = "books.kraken.BTC-USD"
    one.intake.take(one.source, "1", books.snapshot("BTC/USD", [("1", "5")], [("2", "5")], 900 * S), 900 * S)
    two.behind(one, topic)
    two.ring((901 * S, books.delta("BTC/USD", [("1", "6")], [], 901 * S)[0]))
    assert two.made(topic) == [], "it stands in the whole book"
    two.intake.take(two.source, "1", books.whole(1001 * S), 1001 * S)
    handover, book = two.made(topic)
    assert handover.event == "handover" and isinstance(book, model.BookSnapshot) and book.bids == (("1", "6"),)


# -- the configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("standby: {enabled: true}", "a Redis that all nodes reach"),
        ("redis: {url: 'redis://h'}\nstandby: {enabled: true, lease_secs: 6}", "ring_secs of 15.5 or more"),
        ("redis: {url: 'redis://h'}\nstandby: {enabled: true, cold: [alhpa]}", "did you mean `alpha`?"),
        ("standby: {lease_secs: 0.1}", "standby.lease_secs"),
    ],
)
def test_configurations_that_cannot_be(section: str, said: str) -> None:
    found = errors(with_alpha(section + "\n"))
    assert len(found) == 1 and said in found[0], found


# -- pairs ---------------------------------------------------------------------------------------------------------


def test_kill_and_planned_stop_leave_neither_hole_nor_repeat(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        subscribed = f"trades: [{', '.join(PRODUCT_NAMES)}]"
        with provider(1000) as port, pair(tmp_path, server, port, subscribed, lease=0.4, ring=3.0) as (one, two):
            found = two.standby()
            assert found["role"] == "standby" and found["active"].endswith(str(one.pid))
            one.kill()
            assert two.until_active()["epoch"] == found["epoch"] + 1
            with server.client() as client:
                assert client.hgetall("relay:active:t")["pid"] == str(two.pid)
            one.start()
            one.until_ready()
            two.stop()
            began = time.monotonic()
            assert one.until_active()["epoch"] == found["epoch"] + 2
            assert time.monotonic() - began < 0.4, "it need not wait for the lease"
            one.stop()
        verdict = check(streams(server.url, NAMES), true=True)
        assert verdict.right and verdict.gaps == 0 and verdict.data > 1000, str(verdict)
        with server.client() as client:
            assert not client.exists("relay:active:t", "relay:lease:t"), "a planned stop leaves the name free"
        assert "is void" in one.text, "what it had not sent when it was killed"
    finally:
        server.close()


@pytest.mark.fault
def test_what_nobody_has_followed_is_sent_after_a_crash(tmp_path: Path) -> None:
    """The spool of a killed writer: void once another node has written, else as good as ever."""
    server = RedisServer()
    try:
        text = CONFIG.format(
            folder="{folder}", redis=server.url, http="{http}", port="{port}", lease=0.4, ring=3.0, extra="",
            options="", subscribed=f"trades: [{', '.join(PRODUCT_NAMES)}]",
        )  # fmt: skip
        with provider(1000) as port:
            node = Node(tmp_path, text.replace("{port}", str(port)))
            node.start()
            try:
                first = node.until_active()["whole"]["run"]
                with server.client() as client:
                    client.client_pause(20_000, all=False)
                    stored = sum(client.xlen(name) for name in NAMES)
                    node.until(lambda found: found["whole"]["outbox"]["entries"] > 300)
                    node.kill()
                    client.client_unpause()
                    node.start()
                    node.until_active()
                    node.stop()
            finally:
                if node.process is not None:
                    node.kill()
        found = streams(server.url, NAMES).values()
        ours = sum(json.loads(body)["run"] == first for entries in found for _, body in entries)
        assert ours > stored + 200, "what Redis had not taken when it was killed is sent, in its old run"
        verdict = check(streams(server.url, NAMES), true=True)
        assert verdict.right and set(verdict.reasons) == {"relay_down"}, str(verdict)
    finally:
        server.close()


KRAKEN = """
name: t
redis: {{url: "{redis}"}}
standby: {{enabled: true, lease_secs: 0.3, ring_secs: 2}}
http: {{enabled: true, port: 0}}
providers:
  {provider}
"""


async def test_unnumbered_channels_say_handover_and_books_begin_anew(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["kraken"], rate=50) as simulator:
        text = KRAKEN.format(
            redis=redis_url,
            provider=f"kraken: {{url: {simulator.url('kraken')}, quotes: [BTC/USD], books: {{10: [BTC/USD]}}}}",
        )
        async with relay_of(config_of(text, tmp_path / "a")) as one:
            await until(lambda: len(entries(redis_url, QUOTES_TOPIC)) > 5)
            async with relay_of(config_of(text, tmp_path / "b")) as two:
                standby = two.bridge.standby
                assert standby is not None
                await until(lambda: two.bridge.is_ready() == (True, "standby"))
                assert standby.ring.messages and not two.bridge.intake.sources[0].counts.made, (
                    "it hears, and gives nothing"
                )
                one.bridge.stop()
                await until(lambda: standby.live and two.bridge.is_ready() == (True, "ready"))
                run = two.bridge.run
                await until(lambda: sum(m["run"] == run for _, m in entries(redis_url, QUOTES_TOPIC)) > 5)
                await until(lambda: sum(m["run"] == run for _, m in entries(redis_url, "books.kraken.BTC-USD")) > 5)
    assert one.said("sink stopped") and two.said("taken over")
    for topic in (QUOTES_TOPIC, "books.kraken.BTC-USD"):
        found = [message for _, message in entries(redis_url, topic)]
        at = next(i for i, message in enumerate(found) if message["run"] == run)
        assert found[at]["event"] == "handover" and found[at]["seq"] == 1
        assert (
            found[at]["from_ns"] // 1_000_000 == found[at - 1]["ts_recv"] // 1_000_000 < found[at]["to_ns"] // 1_000_000
        )
        assert "gap" not in {m.get("event") for m in found}
        assert found[at + 1]["type"] == ("quote" if topic == QUOTES_TOPIC else "book_snapshot")
    told = [message["event"] for _, message in entries(redis_url, "status.t") if message["run"] == run]
    assert told[0] == "handover" and "opened" in told, "who writes, over which connections"


@pytest.mark.fault
async def test_one_connection_a_key_stands_by_without_it(redis_url: str, tmp_path: Path) -> None:
    raw = "BITSTAMP_SPOT_BTC_USD"
    async with Simulator(["coinapi"], rate=50) as simulator:
        text = KRAKEN.format(
            redis=redis_url,
            provider=f"coinapi: {{url: {simulator.url('coinapi')}, api_key: kkkkkkkk, trades: [{raw}]}}",
        )
        async with relay_of(config_of(text, tmp_path / "a")) as one:
            await until(lambda: len(entries(redis_url, TRADES_TOPIC)) > 5)
            async with relay_of(config_of(text, tmp_path / "b")) as two:
                standby = two.bridge.standby
                assert standby is not None
                await until(lambda: two.bridge.is_ready() == (True, "standby"))
                assert standby.role == "cold standby" and standby.document()["cold"] == ["coinapi"]
                assert two.said("standing by without a connection") and two.bridge.feeds_live() == (0, 1)
                one.bridge.stop()
                await until(lambda: any(m["run"] == two.bridge.run for _, m in entries(redis_url, TRADES_TOPIC)))
                assert standby.role == "active"
    found = [message for _, message in entries(redis_url, TRADES_TOPIC) if message["run"] == two.bridge.run]
    assert (found[0]["event"], found[0]["reason"]) == ("gap", "relay_down"), "the hole is an ordinary one"


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.fault
async def test_clocks_an_hour_apart_change_nothing(redis_url: str, tmp_path: Path, hours: int) -> None:
    with provider(500) as port:
        text = KRAKEN.format(
            redis=redis_url,
            provider=f"coinbase: {{url: 'ws://127.0.0.1:{port}/', trades: [{', '.join(PRODUCT_NAMES)}]}}",
        )
        clock = Clock(lambda: time.time_ns() + hours * 3600 * S)
        async with relay_of(config_of(text, tmp_path / "a"), clock=clock) as one:
            await until(lambda: len(entries(redis_url, NAMES[0])) > 5)
            async with relay_of(config_of(text, tmp_path / "b")) as two:
                standby = two.bridge.standby
                assert standby is not None
                await until(lambda: two.bridge.is_ready() == (True, "standby"))
                one.bridge.stop()
                await until(lambda: standby.live)
                before = len(entries(redis_url, NAMES[0]))
                await until(lambda: len(entries(redis_url, NAMES[0])) > before + 5)
                assert two.bridge.providers["coinbase"].feeds[0].stats.opened == 1, "no session ends for it"
    verdict = check(streams(redis_url, NAMES), true=True)
    assert verdict.right and verdict.gaps == 0, str(verdict)
    assert two.said("the clock follows") == (hours == 1)


@pytest.mark.fault
async def test_a_node_that_hears_nothing_lets_others_go_first(redis_url: str, tmp_path: Path) -> None:
    text = KRAKEN.format(redis=redis_url, provider="coinbase: {url: 'ws://127.0.0.1:9/', trades: [P00-USD]}")
    with redis.Redis.from_url(redis_url) as client:
        client.set("relay:lease:t", "0 elsewhere pid 1", px=60_000)
        async with relay_of(config_of(text, tmp_path)) as node:
            await until(lambda: node.bridge.sink.state == "standby")
            ready, why = node.bridge.is_ready()
            assert not ready and "coinbase 1 is not connected" in why and node.said("not ready to take over")
            began = anyio.current_time()
            client.delete("relay:lease:t")
            await until(lambda: node.bridge.standby is not None and node.bridge.standby.live)
            assert anyio.current_time() - began > 0.9, "it waits for a better one, and does not leave the name alone"
