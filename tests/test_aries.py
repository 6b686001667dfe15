"""Aries against its own side of the wire: three endpoints, one token, renewals, refusals; mostly without IO."""

import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relays import config_of, entries, relay_of, topics, until

from relay import codec
from relay.errors import SessionError
from relay.model import BookSnapshot, Greeks, Quote, Rate, Reject, Status, Trade
from relay.providers.aries import SPEC, AriesOptions, AriesShared, to_symbol
from relay.providers.aries.market import Market
from relay.providers.aries.options import normal
from relay.providers.aries.tokens import PRINTS_KEPT, Prints
from relay.providers.aries.wire import Envelope, Payload
from relay.providers.base import Frame, Reply, Request, Subscription
from relay.simulator.aries import SIDE
from relay.simulator.base import Close, World

SECOND = 1_000_000_000
START_NS = 1_773_322_800 * SECOND
OPTION = "MSFT260619C00450000"
MARKET = {
    "quotes": ["MSFT", OPTION],
    "trades": ["MSFT"],
    "books": {"full": ["MSFT"]},
    "rates": ["SPX"],
    "greeks": [OPTION],
}
ACCOUNT = {"account_id": "TEST-77", "pnl": ["1m"], "watchlist": True, "news": True}
OAUTH = {"client_id": "cid", "client_secret": "FAKE.SECRET", "refresh_token": "FAKE.REFRESH"}


class Scene:
    """The provider's sessions and the simulated side, joined by hand."""

    def __init__(self, options: dict[str, Any], knobs: dict[str, Any] | None = None) -> None:
        self.options = msgspec.convert(options, AriesOptions)
        self.world = World(Random(7), knobs=dict(knobs or {}))
        self.shared = AriesShared(self.options)
        self.now_ns = START_NS
        self.requests = 0

    def line(self, label: str) -> "Line":
        """Open one connection."""
        planned = {plan.label: plan.subscriptions for plan in SPEC.plan(self.options, SPEC.subscribed(self.options))}
        return Line(self, planned[label])

    def answer(self, request: Request) -> Reply:
        self.requests += 1
        assert SIDE.rest is not None
        path = request.url.removeprefix("https://api.aries.com")
        answer = SIDE.rest(self.world, request.method, path, request.headers, request.body, self.now_ns)
        return Reply(request.tag, answer.status, answer.body, answer.headers)


class Line:
    """One connection: what the session gave, what it sent, whether the side closed it."""

    def __init__(self, scene: Scene, subscriptions: tuple[Subscription, ...]) -> None:
        self.scene = scene
        self.session = SPEC.session(scene.options, subscriptions, scene.shared)
        path = self.session.connect().url.removeprefix("wss://api.aries.com")
        self.side = SIDE.side(scene.world, path, {})
        assert self.side.upgrade() is None
        self.out: list[Any] = []
        self.sent: list[Any] = []
        self.held: list[Request] = []
        self.hold = False
        self.closed = False
        self._deliver(self.side.opened(scene.now_ns))
        self.out += self.session.opened(scene.now_ns)
        self.flush()

    def flush(self) -> None:
        """Carry everything to the other end until nobody says anything more."""
        while items := self.session.to_send():
            for item in items:
                if isinstance(item, Request):
                    if self.hold:
                        self.held.append(item)
                    else:
                        self.out += self.session.replied(self.scene.answer(item), self.scene.now_ns)
                elif not self.closed:
                    self.sent.append(json.loads(item.data))
                    self._deliver(self.side.receive(item.data, self.scene.now_ns))

    def _deliver(self, steps: Any) -> None:
        for step in steps:
            if isinstance(step, Close):
                self.closed = True
            elif not self.closed:
                data = step.encode() if isinstance(step, str) else step
                self.out += self.session.receive(Frame(self.scene.now_ns, data))

    def step(self, count: int) -> None:
        """So many data messages."""
        for _ in range(count):
            self.scene.now_ns += SECOND // 50
            self._deliver(self.side.step(self.scene.now_ns))
            self.flush()

    def wait(self, secs: int, *, tick_secs: int = 5) -> None:
        """Let time pass at both ends."""
        for _ in range(secs // tick_secs):
            self.scene.now_ns += tick_secs * SECOND
            self._deliver(self.side.tick(self.scene.now_ns))
            self.out += self.session.tick(self.scene.now_ns)
            self.flush()

    def events(self) -> list[str]:
        return [one.event for one in self.out if isinstance(one, Status) and one.event != "market"]

    def sent_types(self) -> list[str]:
        return [one.get("type") for one in self.sent]


def test_market_gives_every_channel_it_subscribes() -> None:
    line = Scene({"token": "T", **MARKET}).line("market")
    line.step(200)
    kinds = {type(one) for one in line.out}
    assert kinds == {Quote, Trade, BookSnapshot, Rate, Greeks, Status}
    assert line.events() == ["authenticated"]
    quotes = [one for one in line.out if isinstance(one, Quote) and one.raw_symbol == "MSFT"]
    assert all(one.bid and one.ask and one.bid_size and one.ask_size for one in quotes), "sparse updates are merged"
    times = [one.ts_event for one in quotes]
    assert times == sorted(times) and times[0] is not None and abs(times[0] - START_NS) < SECOND, "New York offset"


def test_prints_of_two_streams_come_once() -> None:
    line = Scene({"token": "T", "trades": ["MSFT"], "time_and_sales": ["MSFT"]}).line("market")
    line.step(60)
    trades = [one for one in line.out if isinstance(one, Trade)]
    numbers = [one.src_seq for one in trades]
    assert len(trades) > 60 and numbers == sorted(set(numbers))


def test_charts_have_their_own_connection() -> None:
    scene = Scene({"token": "T", "quotes": ["MSFT", "AAPL"], "charts": ["MSFT"]})
    line = scene.line("charts")
    line.step(40)
    assert line.side.path == "/v1/charts/ws"
    assert {(type(one), one.raw_symbol) for one in line.out if not isinstance(one, Status)} == {
        (Quote, "MSFT"),
        (Trade, "MSFT"),
    }
    market = scene.line("market")
    assert [item["symbol"] for item in market.sent[1]["payload"]] == ["AAPL"]


def test_account_events_carry_the_label_and_never_the_id() -> None:
    line = Scene({"token": "T", **ACCOUNT}).line("accounts")
    line.step(60)
    types = {json.loads(codec.encode(one))["type"] for one in line.out}
    assert types == {"status", "order", "position", "balance", "account"}
    text = b"".join(map(codec.encode, line.out))
    assert b"TEST-77" not in text and b'"account":"main"' in text
    assert {one.kind for one in line.out if type(one).__name__ == "Account"} == {"pnl", "watchlist", "news"}
    states = [one.state for one in line.out if type(one).__name__ == "Order"]
    assert {"open", "partially_filled", "filled"} == set(states)


def test_plan_deals_each_thing_to_one_endpoint() -> None:
    options = msgspec.convert(
        {"token": "T", "quotes": ["MSFT", "spx"], "trades": ["SPX"], "charts": ["AAPL"], "account_id": "A"},
        AriesOptions,
    )
    plan = {planned.label: planned.subscriptions for planned in SPEC.plan(options, SPEC.subscribed(options))}
    assert plan["market"] == (Subscription("quotes", "MSFT"), Subscription("rates", "SPX"))
    assert plan["charts"] == (Subscription("quotes", "AAPL"), Subscription("trades", "AAPL"))
    assert [one.channel for one in plan["accounts"]] == ["orders", "positions", "balances", "account"]
    only_news = msgspec.convert({"token": "T", "news": True}, AriesOptions)
    assert SPEC.subscribed(only_news) == [Subscription("account", "")]


def test_session_is_renewed_on_the_same_connection() -> None:
    line = Scene({**OAUTH, **MARKET}, {"session_ms": 900_000}).line("market")
    line.step(5)
    line.wait(3600)
    assert not line.closed and line.events().count("renewed") >= 5
    assert line.sent_types().count("subscribe") >= 1
    assert line.events().count("authenticated") == 1 and "refused" not in line.events()
    logins = [one["payload"]["body"]["token"] for one in line.sent if one.get("type") == "request"]
    assert len(set(logins)) == len(logins), "each renewal brings a fresh token"
    assert line.sent_types().count("ping") >= 100
    before = len(line.out)
    line.step(10)
    assert len(line.out) > before, "data goes on"


def test_refresh_notice_renews_before_our_own_clock() -> None:
    line = Scene({"token": "T", "rates": ["SPX"]}, {"session_ms": 600_000, "refresh_auth_ms": 580_000}).line("market")
    line.wait(30)
    assert line.events() == ["authenticated", "notice", "renewed"]
    notice = next(one for one in line.out if isinstance(one, Status) and one.event == "notice")
    assert notice.code == "refreshAuth" and notice.until is not None and notice.until > line.scene.now_ns


def test_one_refresh_serves_three_connections() -> None:
    scene = Scene({**OAUTH, **MARKET, **ACCOUNT, "charts": ["AAPL"]}, {"only_issued": True})
    lines = [scene.line(label) for label in ("market", "charts", "accounts")]
    assert scene.requests == 1
    assert [line.events() for line in lines] == [["authenticated"]] * 3


def test_a_session_waits_for_the_fetch_of_another_and_takes_over_when_it_is_gone() -> None:
    scene = Scene({**OAUTH, **MARKET, "charts": ["AAPL"]})
    planned = {plan.label: plan.subscriptions for plan in SPEC.plan(scene.options, SPEC.subscribed(scene.options))}
    first = SPEC.session(scene.options, planned["market"], scene.shared)
    first.opened(scene.now_ns)
    [asked] = first.to_send()
    assert isinstance(asked, Request)
    second = scene.line("charts")
    assert second.sent == [] and scene.requests == 0
    first.closed(scene.now_ns)
    second.wait(5)
    assert scene.requests == 1 and second.events() == ["authenticated"]


def test_rotated_refresh_token_outlives_the_process_unless_a_new_one_is_configured() -> None:
    scene = Scene({**OAUTH, **MARKET})
    scene.line("market")
    state = json.loads(json.dumps(scene.shared.state()))
    assert state["refresh_token"] == "SIMULATED.REFRESH.1" and "FAKE.REFRESH" not in json.dumps(state)
    assert "SIMULATED.REFRESH.1" in scene.shared.secrets() and "SIMULATED.ACCESS.1" in scene.shared.secrets()

    again = Scene({**OAUTH, **MARKET})
    again.world = scene.world
    again.shared.load_state(state)
    assert again.line("market").events() == ["authenticated"]

    simulated = Scene({**OAUTH, **MARKET, "simulate": True})
    simulated.shared.load_state(state)
    assert simulated.line("market").events() == ["authenticated"]
    assert simulated.shared.state() == state, "a simulated run leaves the real token alone"

    newly = Scene({**OAUTH, **MARKET, "refresh_token": "FAKE.NEW"})
    newly.shared.load_state(state)
    assert newly.shared.tokens.refresh_token == "FAKE.NEW" and newly.shared.state() == {}


def test_a_used_refresh_token_is_final_and_says_what_to_do() -> None:
    scene = Scene({**OAUTH, **MARKET})
    scene.world.state["refresh_token"] = "another"
    with pytest.raises(SessionError) as raised:
        scene.line("market")
    assert raised.value.action == "fatal" and "log in again" in raised.value.text
    assert "FAKE" not in raised.value.text


def test_a_busy_token_call_is_obeyed() -> None:
    scene = Scene({**OAUTH, **MARKET}, {"token_status": 429, "retry_after": 20})
    with pytest.raises(SessionError) as raised:
        scene.line("market")
    assert (raised.value.action, raised.value.wait_secs) == ("retry", 20)
    scene.world.knobs["token_status"] = 200
    scene.now_ns += 5 * SECOND
    line = scene.line("market")
    assert scene.requests == 1, "not before its time"
    line.wait(20)
    assert scene.requests == 2 and line.events() == ["authenticated"]


def test_refused_logins_of_three_connections_with_one_token_are_not_final() -> None:
    scene = Scene({**OAUTH, **MARKET, **ACCOUNT, "charts": ["AAPL"]}, {"refuse_logins": 3})
    for label in ("market", "charts", "accounts"):
        with pytest.raises(SessionError) as raised:
            scene.line(label)
        assert raised.value.action == "retry"
    assert [scene.line(label).events() for label in ("market", "charts", "accounts")] == [["authenticated"]] * 3


def test_login_refused_with_a_fresh_token_too_is_final() -> None:
    scene = Scene({**OAUTH, **MARKET}, {"refuse_logins": 2})
    actions = []
    for _ in range(2):
        with pytest.raises(SessionError) as raised:
            scene.line("market")
        actions.append(raised.value.action)
    assert actions == ["retry", "fatal"] and scene.requests == 2


def test_expired_session_comes_back_with_a_fresh_token() -> None:
    scene = Scene({**OAUTH, **MARKET}, {"session_ms": 60_000, "refresh_auth_ms": 0})
    line = scene.line("market")
    line.hold = True  # the token call is never answered, so the renewal cannot come in time
    with pytest.raises(SessionError) as raised:
        line.wait(120)
    assert raised.value.code == "authExpired" and raised.value.action == "retry" and line.held
    line.session.closed(scene.now_ns)
    assert scene.line("market").events() == ["authenticated"]


def test_accounts_without_a_token_in_time_are_closed_by_the_server() -> None:
    scene = Scene({**OAUTH, **ACCOUNT})
    planned = SPEC.plan(scene.options, SPEC.subscribed(scene.options))
    side = SIDE.side(scene.world, "/v1/accounts/ws", {})
    side.opened(scene.now_ns)
    steps = side.tick(scene.now_ns + 5 * SECOND)
    assert isinstance(steps[-1], Close)
    session = SPEC.session(scene.options, planned[0].subscriptions, scene.shared)
    session.opened(scene.now_ns)
    assert list(session.receive(Frame(scene.now_ns, steps[0].encode()))) == [], "a token is on its way already"


def test_refused_symbols_are_named_and_the_rest_goes_on() -> None:
    options = {"token": "T", "quotes": ["MSFT", "NOPE", "AAPL"], "max_symbols_per_message": 1}
    line = Scene(options, {"refuse_symbols": ["NOPE"]}).line("market")
    line.step(50)
    refused = [one for one in line.out if isinstance(one, Status) and one.event == "refused"]
    assert [(one.channel, one.raw_symbol, one.text) for one in refused] == [("quotes", "NOPE", "symbol not found")]
    assert {one.raw_symbol for one in line.out if isinstance(one, Quote)} == {"MSFT", "AAPL"}
    assert line.sent_types().count("subscribe") == 3, "a refusal is not asked again"


def test_refused_topic_is_named_by_its_topic() -> None:
    line = Scene({"token": "T", **ACCOUNT}, {"refuse_topics": ["pnl"]}).line("accounts")
    [refused] = [one for one in line.out if isinstance(one, Status) and one.event == "refused"]
    assert refused.channel == "account" and refused.text == "topic pnl: unknown topic pnl"


def test_acknowledgements_confirm_what_they_answer() -> None:
    line = Scene({"token": "T", "quotes": ["MSFT"]}, {"acks": True}).line("market")
    [confirmed] = [one for one in line.out if isinstance(one, Status) and one.event == "subscribed"]
    assert (confirmed.channel, confirmed.raw_symbol) == ("quotes", "MSFT")


def test_unanswered_ping_ends_the_session() -> None:
    line = Scene({"token": "T", "rates": ["SPX"]}, {"mute": True}).line("market")
    line.wait(35)
    with pytest.raises(SessionError) as raised:
        line.wait(10)
    assert raised.value.code == "ping_timeout" and line.sent[-1]["type"] == "ping"


def test_refused_ping_switches_its_shape_once_for_all_connections() -> None:
    scene = Scene({"token": "T", **MARKET, "charts": ["AAPL"]}, {"refuse_ping": True})
    market, charts = scene.line("market"), scene.line("charts")
    market.wait(120)
    pings = [one for one in market.sent if "ping" in (one.get("type"), one.get("action"))]
    assert pings[0]["type"] == "ping" and all(one == {"action": "ping"} for one in pings[1:]) and len(pings) == 4
    charts.session.tick(scene.now_ns)
    assert json.loads(charts.session.to_send()[-1].data) == {"action": "ping"}


def test_errors_without_id_keep_the_session() -> None:
    line = Scene({"token": "T", "quotes": ["MSFT"]}, {"error_every": 5}).line("market")
    line.step(20)
    notices = [one for one in line.out if isinstance(one, Status) and one.event == "notice"]
    assert [one.text for one in notices] == ["internal error"] * 4


def test_run_time_subscriptions_reach_the_other_side() -> None:
    line = Scene({"token": "T", "quotes": ["MSFT"]}).line("market")
    line.session.subscribe([Subscription("quotes", "AAPL"), Subscription("quotes", "MSFT")], line.scene.now_ns)
    line.flush()
    line.step(30)
    assert {one.raw_symbol for one in line.out if isinstance(one, Quote)} == {"MSFT", "AAPL"}
    line.out += line.session.unsubscribe([Subscription("quotes", "MSFT")], line.scene.now_ns)
    line.flush()
    assert set(line.side.items) == {"AAPL"} and line.events()[-1] == "unsubscribed"


LONG = "".join(
    json.dumps({"type": "event", "payload": {"action": "update", "type": "trade", "symbol": "MSFT", "data": data}})
    + "\n"
    for data in ({"price": 410.1, "size": 1, "note": "ä\u2028"}, {"price": 2, "size": 3})
).encode()


@pytest.mark.parametrize("last", [LONG, LONG[:-1]])
def test_a_frame_cut_anywhere_gives_the_same_trades(last: bytes) -> None:
    options = msgspec.convert({"token": "T", "trades": ["MSFT"]}, AriesOptions)
    for at in range(1, len(last)):
        session = SPEC.session(options, SPEC.subscribed(options), AriesShared(options))
        out = [*session.receive(Frame(START_NS, last[:at])), *session.receive(Frame(START_NS, last[at:]))]
        assert [one.price for one in out if isinstance(one, Trade)] == ["410.1", "2"], at
        assert not any(isinstance(one, Reject) for one in out)


ROW = st.tuples(
    st.sampled_from(["", "0", "5", "7.50"]),
    st.integers(1, 500).map(lambda n: f"{n / 100:.2f}"),
    st.sampled_from(["", "0", "9"]),
)


@settings(max_examples=100)
@given(st.lists(ROW, max_size=20))
def test_books_are_sorted_best_first_without_empty_levels(rows: list[tuple[str, str, str]]) -> None:
    market = Market(AriesShared(AriesOptions()), [Subscription("books", "MSFT", "full")])
    out: list[Any] = []
    data = {"orderBook": [":".join(row) for row in rows]}
    market.map("level2", Payload(action="update", symbol="MSFT", data=data), Envelope(type="event"), b"", out)
    [book] = out
    bids, asks = [float(price) for price, _ in book.bids], [float(price) for price, _ in book.asks]
    assert bids == sorted(set(bids), reverse=True) and asks == sorted(set(asks))
    assert all(float(size) for _, size in (*book.bids, *book.asks))
    assert {price for _, price, size in rows if size not in ("", "0")} == {price for price, _ in book.bids}


@pytest.mark.parametrize(
    ("raw", "symbol"),
    [
        ("MSFT", "MSFT"),
        (" msft ", "MSFT"),
        ("BRK.B", "BRK.B"),
        ("BRK/B", "BRK_2FB"),
        ("SPX", "SPX-IDX"),
        (OPTION, "MSFT-20260619-450-C"),
        ("MSFT  260619C00450000", "MSFT-20260619-450-C"),
        ("O:SPX260619P00002500", "SPX-20260619-2.5-P"),
        ("MSFT261319C00450000", "MSFT261319C00450000"),  # no such month: not an option
        ("F", "F"),
    ],
)
def test_symbols(raw: str, symbol: str) -> None:
    assert to_symbol(raw) == (symbol, None)


@given(st.lists(st.text(max_size=30), min_size=2, max_size=2, unique_by=normal))
def test_two_raw_symbols_never_meet(raws: list[str]) -> None:
    first, second = raws
    assert to_symbol(first) != to_symbol(second)


def test_memory_of_prints_is_bounded() -> None:
    prints = Prints()
    for number in range(3 * PRINTS_KEPT):
        assert not prints.repeated("MSFT", "NSDQ", number, START_NS)
    assert prints.repeated("MSFT", "NSDQ", 3 * PRINTS_KEPT - 1, START_NS)
    assert prints.repeated("MSFT", "NSDQ", 2 * PRINTS_KEPT, None)
    assert not prints.repeated("MSFT", "NSDQ", 0, START_NS)
    assert len(prints._young) + len(prints._old) <= 2 * PRINTS_KEPT


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quotes": ["MSFT"]}, "needs token, token_file, or client_id"),
        ({"client_id": "c", "quotes": ["MSFT"]}, "client_id: belongs together"),
        ({"client_secret": "s", "token": "T"}, "client_secret: needs client_id"),
        ({"token": "T", "token_file": "/t"}, "token_file: give either"),
        ({"token": "T", "pnl": ["1m"]}, "pnl: needs account_id"),
        ({"token": "T", "account_id": "A", "pnl": ["1w"]}, "Invalid enum value '1w'"),
        ({"token": "T", "quote_fields": []}, "length >= 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert(options, AriesOptions)


@pytest.mark.parametrize("credentials", [{}, {"token": "T"}, {"token_file": "/nowhere"}, OAUTH])
def test_simulated_needs_no_token_of_its_own(credentials: dict[str, str]) -> None:
    line = Scene({"simulate": True, **credentials, **MARKET}).line("market")
    assert line.events() == ["authenticated"]


def test_no_output_shows_a_token() -> None:
    scene = Scene({**OAUTH, **MARKET, **ACCOUNT}, {"session_ms": 400_000, "refuse_symbols": ["SPX"]})
    text = b""
    for label in ("market", "accounts"):
        line = scene.line(label)
        line.step(20)
        line.wait(400)
        text += b"".join(map(codec.encode, line.out))
    assert b"FAKE" not in text and b"SIMULATED." not in text and b"TEST-77" not in text


async def test_simulated_relay_fills_every_topic(redis_url: str, tmp_path: Path) -> None:
    text = f"""
redis: {{url: {redis_url}}}
providers:
  aries:
    simulate: true
    client_id: cid
    refresh_token: ${{REFRESH}}
    quotes: [MSFT]
    trades: [MSFT]
    books: {{full: [MSFT]}}
    rates: [SPX]
    greeks: [{OPTION}]
    charts: [NVDA]
    account_id: TEST-77
    news: true
"""
    wanted = {
        "quotes.MSFT", "trades.MSFT", "books.aries.MSFT", "rates.SPX-IDX", "greeks.MSFT-20260619-450-C", "quotes.NVDA",
        "trades.NVDA", "orders.main", "positions.main", "balances.main", "account.main",
    }  # fmt: skip
    async with relay_of(config_of(text, tmp_path, REFRESH="FAKE.REFRESH")) as running:
        await until(lambda: {f"sim.{topic}" for topic in wanted} <= topics(redis_url, "sim."), 20)
        assert not running.said("error")
    assert entries(redis_url, "sim.trades.MSFT")[0][1]["origin"] == "simulated"
