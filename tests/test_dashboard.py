"""The dashboard: what it takes for live, what it sends to a page, and whom it refuses."""

import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx2
import pytest
import redis
from relays import until

from relay import codec, model
from relay.dashboard import Dashboard, Settings
from relay.dashboard.guard import HEADERS, Guard, host_of
from relay.dashboard.hub import NEWS_MAX, ROWS_A_MESSAGE, Hub
from relay.dashboard.rows import TopicInfo
from relay.dashboard.server import FILES, SEND_BUFFER, lists_of
from relay.dashboard.state import ROWS_MAX, Board, Limits
from relay.serving import LOCAL

S = 1_000_000_000
T0 = 1_772_359_200 * S
RUN = T0 // 1_000_000
QUOTES = TopicInfo("quotes.EUR-USD", "quotes", "p", "relay", "")
TRADES = TopicInfo("trades.EUR-USD", "trades", "p", "relay", "")
BARS = TopicInfo("bars.1m.EUR-USD", "bars", "p", "relay", "")
STATUS = TopicInfo("status.relay", "status", "", "relay", "")
ORDERS = TopicInfo("orders.main", "orders", "p", "relay", "")


def header(t: float = 0, **fields: Any) -> dict[str, Any]:
    return {
        "provider": "p", "symbol": "EUR-USD", "raw_symbol": "EURUSD", "ts_recv": T0 + int(t * S), "run": RUN, "seq": 1,
    } | fields  # fmt: skip


def quote(t: float = 0, bid: str | None = "1.0845", ask: str | None = "1.08461", **fields: Any) -> model.Quote:
    return model.Quote(bid=bid, ask=ask, **header(t, **fields))


def bar() -> model.Bar:
    prices = {"open": "1", "high": "2", "low": "1", "close": "1.5"}
    return model.Bar(interval="1m", start=T0, end=T0 + 60 * S, closed=True, **prices, **header())


def status(event: model.StatusEvent, t: float = 0, **fields: Any) -> model.Status:
    return model.Status(event=event, **header(t, **fields))


def provider_status(event: model.StatusEvent, t: float = 0, **fields: Any) -> model.Status:
    return model.Status(event=event, **header(t, symbol=None, raw_symbol=None, **fields))


@pytest.fixture
def board() -> Board:
    made = Board(Limits({("p", "quotes"): 60}))
    made.redis("")
    return made


def mark(board: Board, t: float) -> str:
    board.sweep(T0 + int(t * S))
    (row,) = board.rows.values()
    return row.mark


# -- what is live ------------------------------------------------------------------------------------------------------


def test_fresh_quote_is_live_with_its_own_digits(board: Board) -> None:
    board.apply(QUOTES, quote())
    assert mark(board, 1) == "live"
    values = json.loads(board.rows[1].encoded())
    assert values[1:3] == ["1.0845", "1.08461"] and values[13] == 5


def test_stale_in_band_marks_until_fresh(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.apply(QUOTES, status("stale", 60, text="nothing for 60 s"))
    assert mark(board, 60) == "stale"
    assert board.rows[1].why == "nothing for 60 s"
    assert board.rows[1].bid == "1.0845", "the last known values stand"
    board.apply(QUOTES, status("fresh", 70))
    board.apply(QUOTES, quote(70))
    assert mark(board, 70) == "live"


def test_stale_trades_say_nothing_of_quotes(board: Board) -> None:
    board.apply(QUOTES, quote(50))
    board.apply(TRADES, model.Trade(price="1.1", **header()))
    board.apply(TRADES, status("stale", 55))
    assert mark(board, 55) == "live"


def test_age_alone_marks_where_nobody_says_stale(board: Board) -> None:
    board.apply(QUOTES, quote())
    assert mark(board, 61.9) == "live", "the relay has its second to say so itself"
    assert mark(board, 62.1) == "old"


def test_one_age_limit_for_all_overrides_and_zero_is_none() -> None:
    assert Limits({("p", "quotes"): 60}, all=5).ns("p", "quotes") == 5 * S
    assert Limits({("p", "quotes"): 60}, all=0).ns("p", "quotes") == 0
    assert Limits({}).ns("other", "quotes") == 300 * S


def test_fallback_price_is_never_live_and_says_so(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.apply(QUOTES, status("stale", 60))
    board.apply(QUOTES, quote(61, bid=None, ask=None, mid="1.0850", origin="rest"))
    assert mark(board, 61) == "fallback"
    row = board.rows[1]
    assert (row.bid, row.ask, row.last, row.last_what, row.values()[8]) == (None, None, "1.0850", "mid", "REST")
    board.apply(QUOTES, quote(62))
    assert mark(board, 62) == "live"
    assert (row.last, row.values()[8]) == (None, ""), "no trace of the fallback beside live prices"


def test_simulated_price_says_so(board: Board) -> None:
    board.apply(QUOTES, quote(origin="simulated"))
    assert mark(board, 0) == "live"
    assert board.rows[1].values()[8] == "sim"


@pytest.mark.parametrize(
    ("flags", "expected"), [({"open": False}, "closed"), ({"open": True, "halted": True}, "halted")]
)
def test_closed_market_is_neither_live_nor_stale(board: Board, flags: dict[str, bool], expected: str) -> None:
    board.apply(STATUS, status("market", **flags))  # told before the first quote is read
    board.apply(QUOTES, quote())
    assert mark(board, 3600) == expected
    board.apply(STATUS, status("market", 3600, open=True))
    assert mark(board, 3601) == "old"


def test_market_of_the_whole_provider(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.apply(STATUS, provider_status("market", open=False))
    assert mark(board, 0) == "closed"


def test_dead_relay_marks_at_once_and_its_restart_leaves_old_values_waiting(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.lease("", "relay", True, T0)
    assert mark(board, 1) == "live"
    board.lease("", "relay", False, T0 + 2 * S)
    assert mark(board, 2) == "no relay"
    assert board.overview(T0 + 2 * S)["relays"][0]["missed"]
    assert not board.overview(T0 + 86_400 * S)["relays"][0]["missed"], "a relay that was taken away raises no alarm"
    board.lease("", "relay", True, T0 + 5 * S)
    assert mark(board, 5) == "waiting"
    board.apply(STATUS, provider_status("opened", 5, code="1", run=RUN + 5000))
    assert mark(board, 5) == "waiting"
    board.apply(QUOTES, quote(6, run=RUN + 5000))
    assert mark(board, 6) == "live"


def test_restart_between_two_looks_is_seen_by_its_run(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.apply(STATUS, provider_status("opened", 1, run=RUN + 1000))
    assert mark(board, 1) == "waiting"


def test_replayed_prices_need_no_living_relay(board: Board) -> None:
    board.apply(QUOTES, quote(origin="replay"))
    board.lease("", "relay", False, T0)
    assert mark(board, 0) == "live" and board.rows[1].values()[8] == "replay"


def test_lost_provider_marks_when_its_last_connection_goes(board: Board) -> None:
    for label in ("1", "2"):
        board.apply(STATUS, provider_status("opened", code=label))
    board.apply(QUOTES, quote(1))
    health = board.health["", "relay", "p"]
    relay = board.relays["", "relay"]
    board.apply(STATUS, provider_status("closed", 2, code="1006", text="1: connection lost", action="again in 1.0 s"))
    assert (mark(board, 2), health.state(relay)) == ("live", "partly"), "which connection feeds it is not known"
    board.apply(STATUS, provider_status("closed", 3, code="1006", text="2: connection lost", action="again in 1.0 s"))
    assert (mark(board, 3), health.state(relay)) == ("offline", "closed")
    assert board.rows[1].why == "2: connection lost - again in 1.0 s"
    board.apply(STATUS, provider_status("opened", 4, code="1"))
    assert mark(board, 4) == "offline", "until fresh values come"
    board.apply(QUOTES, quote(5))
    assert (mark(board, 5), health.state(relay)) == ("live", "partly")


def test_provider_that_is_given_up_says_so(board: Board) -> None:
    board.apply(STATUS, provider_status("refused", code="invalid_key", text="1: wrong key", action="not tried again"))
    assert board.health["", "relay", "p"].state(board.relays["", "relay"]) == "given up"


def test_refused_symbol_is_no_lost_connection(board: Board) -> None:
    board.apply(STATUS, provider_status("opened", code="1"))
    board.apply(STATUS, status("refused", channel="quotes", text="no such symbol"))
    assert board.health["", "relay", "p"].state(board.relays["", "relay"]) == "open"


def test_quota_ends_at_its_time(board: Board) -> None:
    board.apply(STATUS, provider_status("opened", code="1"))
    board.apply(STATUS, provider_status("quota", until=T0 + 60 * S))
    health, relay = board.health["", "relay", "p"], board.relays["", "relay"]
    assert health.state(relay) == "quota"
    board.sweep(T0 + 61 * S)
    assert health.state(relay) == "open"


def test_gap_shows_for_a_minute_and_is_counted_once(board: Board) -> None:
    board.apply(QUOTES, quote())
    for info in (QUOTES, STATUS):  # in band, and the copy
        board.apply(info, status("gap", 1, reason="sequence_jump", first_missing=7, last_missing=9, missing=3))
    mark(board, 2)
    row = board.rows[1]
    assert row.recent_gap and row.gaps == 1
    assert board.notices[-1]["text"] == "sequence jump, 3 missing, numbers 7 to 9"
    mark(board, 62)
    assert not row.recent_gap and row.gaps == 1


def test_degraded_relay_recovers(board: Board) -> None:
    def told(event: model.StatusEvent, code: str) -> None:
        board.apply(STATUS, provider_status(event, provider="relay", code=code, text="Redis is away"))

    told("degraded", "lost")
    assert board.overview(T0)["relays"][0]["degraded"] == ["Redis is away"]
    told("recovered", "recovered")
    assert board.overview(T0)["relays"][0]["degraded"] == []
    assert board.overview(T0)["providers"] == [], "the relay is no provider"


def test_unread_redis_marks_everything(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.redis("connection refused")
    assert mark(board, 0) == "no redis"


# -- rows --------------------------------------------------------------------------------------------------------------


def test_one_row_for_all_channels_of_a_raw_symbol(board: Board) -> None:
    board.apply(TRADES, model.Trade(price="1.2", **header(venue="X")))
    assert board.rows[1].values()[3:5] == ["1.2", "trade"]
    board.apply(QUOTES, quote(1))
    bar = model.Bar(
        interval="1m", start=T0, end=T0 + 60 * S, open="1", high="2", low="1", close="1.5", closed=True, **header()
    )
    board.apply(BARS, bar)
    assert len(board.rows) == 1
    assert board.rows[1].last == "1.2", "a bar's close is no last price beside trades"
    assert board.rows[1].about()["channels"] == ["bars 1m", "quotes", "trades"]


def test_rows_of_bars_alone_show_their_close(board: Board) -> None:
    bar = model.Bar(
        interval="1m", start=T0, end=T0 + 60 * S, open="1", high="2", low="1", close="1.5", closed=True, **header()
    )
    board.apply(BARS, bar)
    assert board.rows[1].values()[3:5] == ["1.5", "bar 1m"]
    board.apply(QUOTES, quote(1))
    assert board.rows[1].values()[3:5] == [None, ""]


def test_same_symbol_of_two_sources_two_relays_and_two_prefixes_is_apart(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.apply(QUOTES, quote(provider="q"))
    board.apply(QUOTES._replace(relay="other"), quote())
    board.apply(QUOTES._replace(space="sim."), quote())
    assert len(board.rows) == 4


def test_name_of_an_instrument_reaches_its_rows(board: Board) -> None:
    info = TopicInfo("instruments.EUR-USD", "instruments", "p", "relay", "")
    board.apply(QUOTES, quote())
    board.apply(info, model.Instrument(name="Euro / US dollar", **header(raw_symbol="1001")))
    assert board.rows[1].name == "Euro / US dollar"
    board.apply(QUOTES, quote(provider="later"))
    assert [row.name for row in board.rows.values() if row.info.provider == "later"] == ["Euro / US dollar"]


def test_forgotten_topic_takes_its_row_and_its_number(board: Board) -> None:
    board.apply(QUOTES, quote())
    board.forget(QUOTES.name)
    assert not board.rows and board.removed == {1}
    board.apply(QUOTES, quote())
    assert list(board.rows) == [2]


def test_rows_are_bounded(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.dashboard.state.ROWS_MAX", 2)
    for number in range(4):
        board.apply(QUOTES, quote(raw_symbol=f"R{number}"))
    assert len(board.rows) == 2 and board.overview(T0)["refused"] == 2 and ROWS_MAX >= 10_000


def test_accounts_are_not_even_read_unless_asked(board: Board) -> None:
    order = model.Order(account="main", order_id="secret-1", state="open", **header())
    assert not board.wants(ORDERS)
    board.apply(ORDERS, order)
    board.apply(STATUS, status("stale", channel="orders", topic="orders.main"))
    assert not board.account_items and not board.notices
    asked = Board(Limits(), accounts=True)
    assert asked.wants(ORDERS)
    asked.apply(ORDERS, order)
    (item,) = asked.account_items.values()
    assert item["order_id"] == "secret-1"


# -- pages -------------------------------------------------------------------------------------------------------------


def hub_of(board: Board) -> Hub:
    async def history(row: Any) -> list[list[Any]]:
        return [["q", 1, row.bid, row.ask, None, None]]

    return Hub(board, lambda: T0, history, {"hello": "1", "accounts": board.accounts})


def event(body: bytes) -> dict[str, Any]:
    assert body.endswith(b"\n\n") and body.count(b"\n") <= 3
    found: dict[str, Any] = json.loads(body[body.index(b"data: ") + 6 :])
    return found


async def test_page_gets_all_at_once_then_only_what_changed(board: Board) -> None:
    for number in range(3):
        board.apply(QUOTES, quote(raw_symbol=f"R{number}", symbol=f"S{number}"))
    hub = hub_of(board)
    client = hub.open()
    assert client is not None
    hub.changed()
    first = event(await hub.next(client))
    assert {about["symbol"] for about in first["about"]} == {"S0", "S1", "S2"} and len(first["rows"]) == 3
    board.apply(QUOTES, quote(1, bid="1.09", raw_symbol="R1"))
    hub.changed()
    second = event(await hub.next(client))
    assert "about" not in second
    assert [row[:2] for row in second["rows"]] == [[2, "1.09"]]


async def test_slow_page_is_conflated_and_bounded(board: Board) -> None:
    hub = hub_of(board)
    slow = hub.open()
    assert slow is not None
    board.apply(QUOTES, quote())
    hub.watch(slow.token, 1)
    for number in range(3 * NEWS_MAX):
        board.apply(QUOTES, quote(number, bid=f"1.{number}"))
        hub.changed()
    assert len(slow.pending) == 1 and len(slow.news) == NEWS_MAX
    got = event(await hub.next(slow))
    assert [row[1] for row in got["rows"]] == [f"1.{3 * NEWS_MAX - 1}"], "the newest value alone"


async def test_many_rows_come_in_several_messages(board: Board) -> None:
    for number in range(ROWS_A_MESSAGE + 5):
        board.apply(QUOTES, quote(raw_symbol=f"R{number}"))
    hub = hub_of(board)
    client = hub.open()
    assert client is not None
    sizes = [len(event(await hub.next(client))["rows"]) for _ in range(2)]
    assert sizes == [ROWS_A_MESSAGE, 5]


async def test_watched_row_begins_with_its_history_and_goes_on(board: Board) -> None:
    board.apply(QUOTES, quote())
    hub = hub_of(board)
    client = hub.open()
    assert client is not None and hub.watch(client.token, 1) and not hub.watch("other", 1)
    hub.changed()
    board.redis("away")
    assert "detail" not in event(await hub.next(client)), "it waits for Redis"
    board.redis("")
    assert event(await hub.next(client))["detail"] == {"row": 1, "items": [["q", 1, "1.0845", "1.08461", None, None]]}
    board.apply(TRADES, model.Trade(price="1.2", side="buy", **header(1)))
    hub.changed()
    (row, (trade,)) = event(await hub.next(client))["news"]
    assert row == 1 and trade[0] == "t" and trade[2] == "1.2"
    hub.close(client)
    assert not board.watched


# -- the server --------------------------------------------------------------------------------------------------------


class Bus:
    """What a relay leaves in Redis, written directly."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.client.set("relay:lease:relay", "t")
        self.seq = 0

    def put(self, topic: str, message: model.Header, kind: str = "quotes", provider: str = "p") -> None:
        self.seq += 1
        listed = json.dumps({"kind": kind, "provider": provider, "relay": "relay", "first_seen": 1})
        self.client.hset("relay:topics", topic, listed)
        message.ts_recv, message.run, message.seq = time.time_ns(), RUN, self.seq
        self.client.xadd(topic, {"data": codec.encode(message)})


@pytest.fixture
def bus(redis_url: str) -> Iterator[Bus]:
    made = Bus(redis_url)
    yield made
    made.client.close()


@contextlib.asynccontextmanager
async def serving(url: str, **settings: Any) -> AsyncIterator[Dashboard]:
    dashboard = Dashboard(Settings(port=0, **settings), lambda: url)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dashboard.run)
        yield dashboard
        tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def page(dashboard: Dashboard) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open the stream of events as a browser would."""

    async def events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])

    async with httpx2.AsyncClient(timeout=10) as client:
        async with client.stream("GET", f"{dashboard.url}/events") as response:
            assert response.headers["content-type"] == "text/event-stream"
            yield events(response)


async def first(events: AsyncIterator[dict[str, Any]], wanted: str) -> dict[str, Any]:
    with anyio.fail_after(10):
        async for found in events:
            if wanted in found:
                return found
    raise AssertionError("the stream ended")


async def test_page_shows_what_redis_holds_and_follows_it(redis_url: str, bus: Bus) -> None:
    bus.put("quotes.EUR-USD", quote())
    async with serving(redis_url) as dashboard, page(dashboard) as events:
        hello = await first(events, "hello")
        got = await first(events, "rows")
        assert (got["about"][0]["symbol"], got["rows"][0][1], got["rows"][0][6]) == ("EUR-USD", "1.0845", "live")
        bus.put("quotes.EUR-USD", quote(bid="1.0846"))
        while (await first(events, "rows"))["rows"][0][1] != "1.0846":
            pass
        async with httpx2.AsyncClient() as client:
            asked = f"{dashboard.url}/watch?client={hello['client']}&row=1"
            assert (await client.post(asked, headers={"origin": dashboard.url})).status_code == 204
        items = (await first(events, "detail"))["detail"]["items"]
        assert [item[2] for item in items] == ["1.0845", "1.0846"]
        bus.put("quotes.GBP-USD", quote(symbol="GBP-USD", raw_symbol="GBPUSD"))
        assert (await first(events, "about"))["about"][0]["symbol"] == "GBP-USD", "a new topic is found"


async def test_dead_and_restarted_relay_is_seen_by_the_page(redis_url: str, bus: Bus) -> None:
    bus.put("quotes.EUR-USD", quote())
    async with serving(redis_url) as dashboard, page(dashboard) as events:
        assert (await first(events, "rows"))["rows"][0][6] == "live"
        bus.client.delete("relay:lease:relay")
        while (await first(events, "rows"))["rows"][0][6] != "no relay":
            pass
        bus.client.set("relay:lease:relay", "t")
        bus.put("quotes.EUR-USD", quote())
        while (await first(events, "rows"))["rows"][0][6] != "live":
            pass


async def test_page_lives_through_an_outage_of_redis() -> None:
    from servers import RedisServer

    server = RedisServer("--appendonly", "yes")
    try:
        bus = Bus(server.url)
        bus.put("quotes.EUR-USD", quote())
        async with serving(server.url) as dashboard, page(dashboard) as events:
            assert (await first(events, "rows"))["rows"][0][6] == "live"
            server.kill()
            got = await first(events, "rows")
            assert (got["rows"][0][1], got["rows"][0][6]) == ("1.0845", "no redis"), "the last known values stand"
            server.start()
            bus.client.set("relay:lease:relay", "t")
            bus.put("quotes.EUR-USD", quote(bid="1.0847"))
            while (found := (await first(events, "rows"))["rows"][0])[6] != "live":
                pass
            assert found[1] == "1.0847"
    finally:
        server.close()


async def test_price_behind_many_statuses_is_found(redis_url: str, bus: Bus) -> None:
    bus.put("quotes.EUR-USD", quote())
    for _ in range(50):
        bus.put("quotes.EUR-USD", status("stale", text="quiet"))
    async with serving(redis_url) as dashboard, page(dashboard) as events:
        row = (await first(events, "rows"))["rows"][0]
        assert (row[1], row[6], row[7]) == ("1.0845", "stale", "quiet")


async def test_foreign_keys_and_broken_entries_hide_nothing(redis_url: str, bus: Bus) -> None:
    listed = json.dumps({"kind": "quotes", "provider": "p", "relay": "relay"})
    bus.client.set("quotes.STRING", "no stream")
    bus.client.hset("relay:topics", mapping={"quotes.STRING": listed, "quotes.X": "junk", b"\xff": listed})
    bus.client.xadd("quotes.EUR-USD", {"data": '{"type":"quote","bid":1}'})
    bus.client.xadd("quotes.EUR-USD", {"other": "field"})
    bus.put("quotes.EUR-USD", quote())
    async with serving(redis_url) as dashboard, page(dashboard) as events:
        assert (await first(events, "rows"))["rows"][0][1] == "1.0845"
        bus.put("quotes.EUR-USD", quote(bid="1.0848"))
        assert (await first(events, "rows"))["rows"][0][1] == "1.0848"
        assert dashboard.board.unreadable == 2


async def test_accounts_are_hidden_unless_asked(redis_url: str, bus: Bus) -> None:
    order = model.Order(account="main", order_id="canary-7", state="open", **header())
    bus.put("orders.main", order, kind="orders")
    bus.put("quotes.EUR-USD", quote())
    for asked in (False, True):
        async with serving(redis_url, accounts=asked) as dashboard, page(dashboard) as events:
            assert (await first(events, "hello"))["accounts"] is asked
            if asked:
                assert (await first(events, "accounts"))["accounts"][0]["order_id"] == "canary-7"
            else:
                assert "canary-7" not in json.dumps(
                    [await first(events, "rows"), *[await anext(events) for _ in range(3)]]
                )
                assert "orders.main" not in dashboard.reader.topics


async def test_browser_that_reads_nothing_slows_nobody(redis_url: str, bus: Bus) -> None:
    name = "n" * 2000
    for number in range(300):
        bus.put(f"quotes.S{number}", quote(symbol=f"S{number}", raw_symbol=f"R{number}{name[:200]}"))
    async with serving(redis_url) as dashboard:
        with socket.create_connection(("127.0.0.1", dashboard.port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await until(lambda: len(dashboard.hub.clients) == 1)
            (stuck,) = dashboard.hub.clients.values()
            async with page(dashboard) as events:
                await first(events, "rows")
                # more than the buffers between hold, so that it does stand still
                for round in range(2 * SEND_BUFFER // (300 * 40)):
                    for row in dashboard.board.rows.values():
                        row.bid, row.cache = f"1.{round:030d}", None
                        dashboard.board.dirty.add(row.id)
                    dashboard.hub.changed()
                    seen = await first(events, "rows")
                    assert seen["now"] >= time.time() * 1000 - 2000
                assert 0 < len(stuck.pending) <= 300, "it stands still, and what waits for it is bounded"
        await until(lambda: len(dashboard.hub.clients) == 0)


async def test_every_answer_carries_the_policy(redis_url: str) -> None:
    async with serving(redis_url) as dashboard, httpx2.AsyncClient() as client:
        for path in (*FILES, "/nothing"):
            answer = await client.get(dashboard.url + path)
            assert answer.status_code == (404 if path == "/nothing" else 200)
            for name, value in HEADERS:
                assert answer.headers[name.decode()] == value.decode(), (path, name)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'") and "unsafe" not in policy
        refused = await client.get(dashboard.url, headers={"host": "evil.example"})
        assert refused.status_code == 403 and "content-security-policy" in refused.headers


def test_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    from relay.dashboard.server import _load

    for path, (body, _) in _load().items():
        text = body.decode()
        outside = [word for word in text.replace('"', " ").split() if "://" in word and "www.w3.org" not in word]
        assert not outside, path
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in text, (path, sink)
        if path == "/":
            assert "<style" not in text and "style=" not in text and " onclick" not in text
            assert text.count("<script") == 1


def refused(method: str = "GET", **headers: str) -> str:
    async def nobody(*_: Any) -> None: ...

    guard = Guard(nobody, (*LOCAL, "desk.internal"))
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return guard.refusal(method, pairs)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "desk.internal:80"])
def test_known_names_are_served(host: str) -> None:
    assert refused(host=host) == ""
    assert refused(host=host, origin=f"http://{host}", sec_fetch_site="same-origin") == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example:127.0.0.1"},
        {"host": "localhost:80@evil.example"},
        {"host": "localhost", "origin": "http://evil.example"},
        {"host": "localhost:8080", "origin": "http://localhost:9999"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ],
)
def test_strangers_are_refused(headers: dict[str, str]) -> None:
    assert refused(**headers)


def test_link_from_elsewhere_opens_the_page_but_posts_need_an_origin() -> None:
    assert refused(host="localhost", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == ""
    assert refused("POST", host="localhost")
    assert refused("POST", host="localhost", origin="http://localhost") == ""
    assert host_of("[::1]evil") == ""


def test_made_up_prices_are_looked_for_under_every_prefix() -> None:
    assert lists_of(["", "prod."]) == (
        "relay:topics", "sim.relay:topics", "prod.relay:topics", "sim.prod.relay:topics",
    )  # fmt: skip


def test_taken_port_is_one_plain_line() -> None:
    from relay.errors import RelayError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(RelayError, match="choose another --port"):
            Dashboard(Settings(port=taken.getsockname()[1]), lambda: "redis://127.0.0.1:1")


def test_command_without_config_or_url_says_what_to_do(tmp_path: Any) -> None:
    from click.testing import CliRunner

    from relay.cli.dashboard import command

    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        result = CliRunner().invoke(command, [])
    finally:
        os.chdir(here)
    assert result.exit_code == 78 and "--url" in result.output
