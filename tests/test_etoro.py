"""eToro: sparse merge against a reference, chunks, login and refusals, REST batches, budget, names, fallback."""

import json
import uuid
from pathlib import Path
from random import Random
from typing import Any

import pytest

from relay import codec, times
from relay.errors import SessionError
from relay.normalizer import Normalizer
from relay.providers.base import Frame, Reply, Request, Send, Subscription
from relay.providers.etoro import SPEC, EtoroOptions, EtoroSession, EtoroShared, to_symbol
from relay.providers.etoro.merge import Standing
from relay.providers.etoro.topics import chunks

NOW = 1_772_463_846_000_000_000
SECOND = 1_000_000_000


# -- the frames of ../shared/frames/etoro.jsonl, for tests/test_expected.py ------------------------------------------


def feed_expected(normalizer: Normalizer) -> list[list[dict[str, Any]]]:
    """Feed the shared frames: dialect and subscriptions of each connection, our own request ids in the replies.

    Gives the outputs of each line, as `test_expected.run` does.
    """
    path = Path(__file__).resolve().parents[2] / "shared" / "frames" / "etoro.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    results: list[list[dict[str, Any]]] = []
    sent: list[dict[str, Any]] = []
    theirs: dict[str, dict[str, Any]] = {}
    conn = ""
    for line in lines:
        if line["conn"] != conn:
            conn = line["conn"]
            normalizer.close(NOW)
            _open_for([one for one in lines if one["conn"] == conn], normalizer, sent)
        if line["dir"] == "out":
            asked = json.loads(line["frame"])
            theirs[asked.get("id", "")] = asked
            if asked.get("operation") == "Unsubscribe":
                raws = [topic.partition(":")[2] for topic in asked["data"]["topics"]]
                normalizer.session.unsubscribe([Subscription("quotes", raw) for raw in raws], NOW)
                normalizer.session.to_send()
            results.append([])
            continue
        text = line["frame"]
        for ident, asked in theirs.items():
            ours = next((one for one in reversed(sent) if _alike(one, asked)), None)
            if ident and ours is not None:
                text = text.replace(ident, ours["id"])
        entries, error = normalizer.frame(text.encode(), NOW, binary=line.get("opcode") == "binary")
        out = [json.loads(entry.body) for entry in entries]
        if error is not None:
            out.append({"type": "session_ended", "action": error.action, "code": error.code, "text": error.text})
        results.append(out)
    return results


def _open_for(lines: list[dict[str, Any]], normalizer: Normalizer, sent: list[dict[str, Any]]) -> None:
    subs: list[Subscription] = []
    for line in lines:
        frame = json.loads(line["frame"]) if line["dir"] == "out" else {}
        topics = [topic.partition(":") for topic in (frame.get("data") or {}).get("topics", ())]
        subs += [Subscription("quotes", raw) if raw else Subscription("orders", "") for _, _, raw in topics]
        for topic in frame.get("channels", ()):
            word, _, raw = topic.partition(".")
            subs.append(Subscription("quotes" if word == "quotes" else "trades", raw))
    if lines[0]["conn"] == "s6":
        subs = [Subscription("quotes", "AAPL"), Subscription("bars", "AAPL", "1m")]
    normalizer.options = EtoroOptions(api_key="API-KEY", user_key="USER-KEY", dialect=lines[0]["dialect"])
    normalizer.shared.options = normalizer.options
    normalizer.subscriptions = subs
    normalizer.source.resubscribed(subs)
    normalizer.open(NOW)
    drain = normalizer.session.to_send

    def spy() -> list[Any]:
        out = drain()
        sent.extend(json.loads(one.data) for one in out if isinstance(one, Send))
        return out  # type: ignore[no-any-return]

    normalizer.session.to_send = spy
    spy()


def _alike(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """The same operation for some of the same topics."""
    if ours.get("operation") != theirs.get("operation"):
        return False
    mine, its = ((one.get("data") or {}).get("topics") for one in (ours, theirs))
    return mine is its is None or bool(set(mine or ()) & set(its or ()))


# -- a session under the tests' hands --------------------------------------------------------------------------------


class Desk:
    """One session, its clock, and what went out."""

    def __init__(self, shared: EtoroShared | None = None, *, connection: str = "", **options: Any) -> None:
        self.options = EtoroOptions(**{"api_key": "API-KEY", "user_key": "USER-KEY", "metadata": False, **options})
        self.shared = shared or EtoroShared(self.options)
        subscribed = SPEC.subscribed(self.options)
        planned = {one.label: one.subscriptions for one in SPEC.plan(self.options, subscribed)}
        self.session = EtoroSession(self.options, planned[connection] if connection else subscribed, self.shared)
        self.now = NOW
        self.sent: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.out: list[dict[str, Any]] = []
        self.did(self.session.opened(self.now))

    def did(self, outputs: Any) -> list[dict[str, Any]]:
        found = [json.loads(codec.encode(one)) for one in outputs]
        for one in self.session.to_send():
            if isinstance(one, Request):
                self.requests.append(one)
            else:
                assert isinstance(one.data, str)
                self.sent.append(json.loads(one.data))
        self.out += found
        return found

    def frame(self, value: Any) -> list[dict[str, Any]]:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.did(self.session.receive(Frame(self.now, data)))

    def rate(self, raw: int, kind: str = "Trading.Instrument.Rate", **content: Any) -> list[dict[str, Any]]:
        message = {"topic": f"instrument:{raw}", "content": json.dumps(content), "id": "x", "type": kind}
        return self.frame({"messages": [message]})

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        self.now += int(seconds * SECOND)
        return self.did(self.session.tick(self.now))

    def login(self) -> "Desk":
        self.answer(self.sent[-1])
        return self

    def answer(self, asked: dict[str, Any], code: str = "", text: str = "") -> list[dict[str, Any]]:
        reply: dict[str, Any] = {"id": asked["id"], "success": not code, "operation": asked["operation"]}
        return self.frame(reply | ({"errorCode": code, "errorMessage": text} if code else {}))

    def reply(self, request: Request, status: int, value: Any = None, **headers: str) -> list[dict[str, Any]]:
        body = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.did(self.session.replied(Reply(request.tag, status, body, headers), self.now))

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.url]


def described(*rows: tuple[int, str]) -> dict[str, Any]:
    return {"instrumentDisplayDatas": [{"instrumentID": ident, "symbolFull": symbol} for ident, symbol in rows]}


# -- the merge -------------------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_ten_thousand_sparse_updates_equal_a_reference_merge() -> None:
    """A seeded walk of deltas, late ones, repeats, heartbeats and snapshots against the rules written the slow way."""
    random = Random(20261121)
    ids = [1001, 1, 100000]
    desk = Desk(quotes=tuple(map(str, ids))).login()
    book: dict[int, dict[str, Any]] = {ident: {"prices": {}, "accepted": []} for ident in ids}
    expected, got = [], []
    last_message: dict[int, dict[str, Any]] = {}
    for number in range(10_000):
        ident = random.choice(ids)
        content: dict[str, Any] = {
            name: f"{random.randint(99, 102)}.{random.randint(0, 3)}0"
            for name in ("Bid", "Ask", "LastExecution")
            if random.random() < 0.4
        }
        if "LastExecution" in content and random.random() < 0.1:
            content["LastExecution"] = "0"
        second = number + (random.randint(-40, -2) if random.random() < 0.1 else 0)
        if random.random() < 0.95:
            content["Date"] = times.iso(NOW + max(0, second) * SECOND)
        if random.random() < 0.9:
            content["PriceRateID"] = str(10**11 + number)
        if random.random() < 0.05 and ident in last_message:
            content = dict(last_message[ident])
        last_message[ident] = content
        snapshot = random.random() < 0.05
        out = desk.rate(ident, "Snapshot" if snapshot else "Trading.Instrument.Rate", **content)
        got += [(ident, one.get("bid"), one.get("ask"), one.get("last"), one.get("ts_event")) for one in out]
        expected += _reference(book[ident], ident, content, snapshot)
    assert len(expected) > 5000
    assert got == expected


def _reference(state: dict[str, Any], ident: int, content: dict[str, Any], snapshot: bool) -> list[tuple[Any, ...]]:
    """Rules R9, R11 and R12 over the whole history, with no state but it."""
    prices, accepted = state["prices"], state["accepted"]
    told = {name: content[name] for name in ("Bid", "Ask", "LastExecution") if name in content}
    if not told:
        return []
    at = times.iso_ns(content["Date"]) if "Date" in content else None
    dated = [one[0] for one in accepted if one[0] is not None]
    watermark = max(dated) if dated else None
    if at is not None and watermark is not None and at < watermark:
        fills = {name: text for name, text in told.items() if name != "LastExecution" and name not in prices}
        if not snapshot or not fills:
            return []
        prices.update(fills)
        return [(ident, prices.get("Bid"), prices.get("Ask"), prices.get("LastExecution"), watermark)]
    before = dict(prices)
    for name, text in told.items():
        if text == "0":
            prices.pop(name, None)
        else:
            prices[name] = text
    rate = content.get("PriceRateID")
    if prices == before and (bool(accepted) or rate is None):
        previous = accepted[-1] if accepted else (None, None)
        if (rate is not None and rate == previous[1]) or (rate is None and at == previous[0]):
            return []
    accepted.append((at, rate))
    if "Bid" not in prices and "Ask" not in prices:
        return []
    return [(ident, prices.get("Bid"), prices.get("Ask"), prices.get("LastExecution"), at)]


def test_state_of_an_instrument_is_forgotten_at_unsubscribe() -> None:
    desk = Desk(quotes=("1001",)).login()
    desk.rate(1001, Bid="10.1", Ask="10.2")
    desk.did(desk.session.unsubscribe([Subscription("quotes", "1001")], desk.now))
    assert desk.rate(1001, Bid="10.3") == []
    desk.did(desk.session.subscribe([Subscription("quotes", "1001")], desk.now))
    assert [one.get("ask") for one in desk.rate(1001, Bid="10.4")] == [None]


def test_an_undated_update_leaves_the_watermark() -> None:
    standing = Standing()
    assert standing.apply("1", "2", None, 100, "a", False)
    assert standing.apply("1.1", None, None, None, "b", False)
    assert standing.time is None
    assert not standing.apply("1.2", None, None, 99, "c", False)
    assert (standing.bid, standing.watermark) == ("1.1", 100)


# -- login, subscriptions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["InvalidKey", "Unauthorized", "ApiKeyRequired", "UserKeyRequired", "Forbidden"])
def test_refused_keys_are_fatal_at_once(code: str) -> None:
    desk = Desk(quotes=("1001",))
    with pytest.raises(SessionError) as ended:
        desk.answer(desk.sent[0], code, "no")
    assert (ended.value.action, ended.value.code) == ("fatal", code)


def test_an_unknown_refusal_is_fatal_after_five_in_a_row() -> None:
    shared = None
    actions = []
    for _ in range(5):
        desk = Desk(shared, quotes=("1001",))
        shared = desk.shared
        with pytest.raises(SessionError) as ended:
            desk.answer(desk.sent[-1], "Whatever")
        actions.append(ended.value.action)
    assert actions == ["retry"] * 4 + ["fatal"]


@pytest.mark.parametrize(
    "reply", [{"operation": "authenticate"}, {"type": "Authenticate"}, {"success": True}, {"success": "true"}]
)
def test_every_known_form_of_acceptance_is_understood(reply: dict[str, Any]) -> None:
    desk = Desk(quotes=("1001",))
    assert [one["event"] for one in desk.frame(reply)] == ["authenticated"]
    assert desk.sent[-1]["data"] == {"topics": ["instrument:1001"], "snapshot": True}


def test_data_before_the_login_are_mapped_and_prove_nothing() -> None:
    desk = Desk(quotes=("1001",))
    assert desk.rate(1001, Bid="1.5")[0]["bid"] == "1.5"
    assert len(desk.sent) == 1
    assert desk.frame({"success": False, "errorCode": "BinaryMessagesNotSupported"})[0]["event"] == "notice"


def test_login_pauses_grow_and_honour_a_given_delay() -> None:
    desk = Desk(quotes=("1001",))
    waits = []
    for _ in range(4):
        status = desk.answer(desk.sent[-1], "TooManyRequests")[0]
        waits.append((status["until"] - desk.now) // SECOND)
        desk.wait(waits[-1])
    assert waits == [5, 15, 60, 60]
    refusal = {"operation": "Authenticate", "success": False, "errorCode": "TooManyRequests", "retryAfter": 7}
    assert desk.frame(refusal)[0]["until"] == desk.now + 7 * SECOND


def test_subscribes_are_cut_by_bytes() -> None:
    ids = [str(1 + 37 * number) for number in range(4000)]
    desk = Desk(quotes=tuple(ids)).login()
    frames = [one for one in desk.sent if one["operation"] == "Subscribe"]
    sizes = [len(json.dumps(one, separators=(",", ":"))) for one in frames]
    assert max(sizes) <= 20 * 1024
    assert min(sizes[:-1]) > 19 * 1024, "a chunk is filled before the next one begins"
    assert [topic for one in frames for topic in one["data"]["topics"]] == [f"instrument:{ident}" for ident in ids]


@pytest.mark.parametrize("bytes_max", [256, 1024, 20 * 1024])
def test_no_chunk_is_empty_or_too_large(bytes_max: int) -> None:
    topics = ["instrument:" + "9" * (number % 6 + 1) for number in range(3000)] + ["private"]
    parts = chunks(topics, bytes_max)
    assert sorted(topic for part in parts for topic in part) == sorted(topics)
    assert all(parts)
    assert max(len(json.dumps(part, separators=(",", ":"))) for part in parts) <= bytes_max
    assert ["private"] in parts


def test_a_large_frame_without_an_ack_halves_the_chunks() -> None:
    ids = tuple(str(number) for number in range(1, 2001))
    desk = Desk(quotes=ids).login()
    assert max(len(one["data"]["topics"]) for one in desk.sent[1:]) > 1000
    desk.did(desk.session.closed(desk.now))
    again = Desk(desk.shared, quotes=ids).login()
    sizes = [len(json.dumps(one, separators=(",", ":"))) for one in again.sent]
    assert max(sizes) <= 10 * 1024


def test_a_lost_operation_is_sent_three_times_then_the_session_ends() -> None:
    desk = Desk(quotes=("1001",)).login()
    for _ in range(2):
        assert desk.wait(10)[0]["code"] == "ack_timeout"
    assert len({one["id"] for one in desk.sent}) == len(desk.sent) == 4
    with pytest.raises(SessionError) as ended:
        desk.wait(10)
    assert ended.value.action == "retry"


def test_a_refused_subscribe_names_each_symbol_and_is_not_asked_again() -> None:
    desk = Desk(quotes=("1001", "28"), symbols={"28": "NSDQ"}).login()
    refused = desk.answer(desk.sent[-1], "SubscribeFailed", "Too many subscriptions for session")
    assert [(one["symbol"], one["raw_symbol"], one["channel"]) for one in refused] == [
        ("1001", "1001", "quotes"),
        ("NSDQ", "28", "quotes"),
    ]
    desk.did(desk.session.subscribe([Subscription("quotes", "1004")], desk.now))
    assert desk.sent[-1]["data"]["topics"] == ["instrument:1004"]
    desk.did(desk.session.subscribe([Subscription("quotes", "28")], desk.now))
    assert desk.sent[-1]["data"]["topics"] == ["instrument:28"]


def test_an_unhandled_exception_is_tried_again_a_few_times() -> None:
    desk = Desk(quotes=("1001",)).login()
    for wait in (5, 15, 60, 60, 60):
        assert desk.answer(desk.sent[-1], "UnhandledException")[0]["event"] == "degraded"
        desk.wait(wait)
    assert desk.answer(desk.sent[-1], "UnhandledException")[0]["event"] == "refused"


def test_topics_are_dealt_to_connections_and_a_symbol_stays_whole() -> None:
    options = EtoroOptions(
        api_key="k", user_key="u", quotes=tuple(map(str, range(1, 11))), orders=True, connection_topics_max=4
    )
    planned = SPEC.plan(options, SPEC.subscribed(options))
    topics = [[sub for sub in one.subscriptions if sub.channel != "instruments"] for one in planned]
    assert [len(one) for one in topics] == [4, 4, 3]
    for one in planned:
        quotes = {sub.raw for sub in one.subscriptions if sub.channel == "quotes"}
        assert {sub.raw for sub in one.subscriptions if sub.channel == "instruments"} == quotes


def test_keys_ride_on_the_upgrade_in_the_header_dialect_alone() -> None:
    plain = Desk(quotes=("1001",)).session.connect()
    assert (plain.url, dict(plain.headers)) == ("wss://ws.etoro.com/ws", {})
    other = Desk(quotes=("1001",), dialect="header", query={"src": "a b"}, subprotocols=("x",)).session.connect()
    assert other.url == "wss://ws.etoro.com/ws?src=a+b"
    assert (other.headers["x-api-key"], other.headers["x-user-key"]) == ("API-KEY", "USER-KEY")
    assert uuid.UUID(other.headers["x-request-id"]).version == 4


def test_the_user_key_belongs_to_the_api_key() -> None:
    with pytest.raises(ValueError, match="^user_key: "):
        EtoroOptions(api_key="k")
    assert EtoroOptions(api_key="k", dialect="header").keys() == ("k", "")
    assert all(EtoroOptions(simulate=True).keys())


# -- names and metadata ----------------------------------------------------------------------------------------------


def test_an_instrument_is_named_as_the_configuration_writes_it() -> None:
    desk = Desk(quotes=("aapl", "28", "EURUSD"), symbols={"28": "NDX-IDX"}).login()
    for request in list(desk.asked("search")):
        name = request.url.rpartition("=")[2]
        ident = {"aapl": 1001, "EURUSD": 1}[name]
        desk.reply(request, 200, {"items": [{"instrumentId": ident, "internalSymbolFull": name.upper()}]})
    symbols = [desk.rate(raw, Bid="1.5")[0]["symbol"] for raw in (1001, 28, 1)]
    assert symbols == ["AAPL", "NDX-IDX", "EUR-USD"]
    wants = desk.shared.wants
    assert wants(Subscription("quotes", "aapl"), "1001", "")
    assert wants(Subscription("quotes", "28"), "28", "")
    assert wants(Subscription("orders", ""), "1001", "")
    assert not wants(Subscription("quotes", "aapl"), "1", "")
    assert not wants(Subscription("bars", "aapl", "5m"), "1001", "1m")


def test_symbols_of_ids_and_names() -> None:
    found = [to_symbol(raw)[0] for raw in ("1001", "AAPL", "BARC.L", "novo-b.co", "NDA_SE.ST", "GBPJPY", "GOOGLE")]
    assert found == ["1001", "AAPL", "BARC.L", "NOVO-B.CO", "NDA_5FSE.ST", "GBP-JPY", "GOOGLE"]


def test_an_unknown_name_is_refused_and_asked_again_a_day_later() -> None:
    desk = Desk(quotes=("NOSUCH",)).login()
    refused = desk.reply(desk.requests[0], 200, {"items": [{"instrumentId": -5, "internalSymbolFull": "NOSUCH"}]})
    assert [(one["event"], one["code"], one["raw_symbol"]) for one in refused] == [
        ("refused", "unknown_symbol", "NOSUCH")
    ]
    desk.wait(3600)
    assert len(desk.requests) == 1
    desk.wait(24 * 3600)
    assert len(desk.requests) == 2


def test_many_names_are_looked_up_in_one_call() -> None:
    desk = Desk(quotes=tuple(f"N{number}" for number in range(30))).login()
    assert [request.url.rpartition("/")[2] for request in desk.requests] == ["instruments"]
    desk.reply(desk.requests[0], 200, described(*((number + 1, f"n{number}") for number in range(29)), (500, "X")))
    assert len(desk.sent[-1]["data"]["topics"]) == 29
    assert "500" not in desk.shared.items
    assert [one["raw_symbol"] for one in desk.out if one.get("event") == "refused"] == ["N29"]


def test_metadata_is_asked_in_batches_and_halved_down_to_the_bad_id() -> None:
    ids = tuple(str(number) for number in range(1, 121))
    desk = Desk(quotes=ids, metadata=True).login()
    sizes, bad, served = [], {"77"}, 0
    while served < len(desk.requests):
        request = desk.requests[served]
        served += 1
        if "instrumentIds=" not in request.url:
            desk.reply(request, 200, {"exchangeInfo": [], "instrumentTypes": []})
            continue
        assert "%2" not in request.url
        batch = request.url.partition("instrumentIds=")[2].split(",")
        sizes.append(len(batch))
        if bad & set(batch) and len(batch) > 1:
            desk.reply(request, 500, {"errorCode": "UnhandledException"})
        elif bad & set(batch):
            desk.reply(request, 400, {"errorCode": "BadRequest"})
        else:
            desk.reply(request, 200, described(*((int(ident), f"S{ident}") for ident in batch)))
    assert sizes[:2] == [50, 50] and sizes.count(1) >= 1
    assert len(sizes) <= 3 + 2 * 6, "a halving costs two calls a level"
    assert {one["raw_symbol"] for one in desk.out if one["type"] == "instrument"} == set(ids) - bad
    assert len(desk.requests) == served


def test_no_more_than_fifty_calls_go_out_in_a_minute() -> None:
    desk = Desk(quotes=tuple(str(number) for number in range(1, 101)), metadata=True).login()
    desk.answer(desk.sent[-1])
    sent_at: list[float] = []
    served = 0
    for _ in range(400):
        while served < len(desk.requests):
            request = desk.requests[served]
            served += 1
            sent_at.append(desk.now / SECOND)
            desk.reply(request, 500, {})  # halves down to single ids, each of them tried three times
        desk.wait(0.5)
    assert len(sent_at) > 100
    for at in sent_at:
        assert sum(at - 60 < other <= at for other in sent_at) <= 50


def test_too_many_calls_pause_for_the_time_given_or_a_minute() -> None:
    desk = Desk(quotes=("1001",), metadata=True).login()
    for headers, wait in (({"retry-after": "9"}, 9), ({}, 60)):
        request = desk.asked("instrumentIds")[-1]
        status = desk.reply(request, 429, {"errorCode": "TooManyRequests"}, **headers)[0]
        assert (status["event"], status["until"]) == ("quota", desk.now + wait * SECOND)
        before = len(desk.requests)
        desk.wait(wait - 1)
        assert len(desk.requests) == before
        desk.wait(1)
        assert len(desk.requests) > before


def test_calls_that_fail_are_tried_again_and_then_left_for_later() -> None:
    desk = Desk(quotes=("AAPL",)).login()
    for wait in (1, 2):
        desk.reply(desk.requests[-1], 503, b"")
        desk.wait(wait)
    assert len(desk.requests) == 3
    status = desk.reply(desk.requests[-1], 0)[0]
    assert (status["event"], status["code"]) == ("degraded", "unreachable")
    desk.wait(299)
    assert len(desk.requests) == 3
    desk.wait(2)
    assert len(desk.requests) == 4


def test_rest_refusing_the_keys_is_fatal_only_where_the_stream_has_not_proven_them() -> None:
    flat = Desk(quotes=("AAPL",), dialect="header")
    with pytest.raises(SessionError) as ended:
        flat.reply(flat.requests[0], 401, {"success": False, "error": {"code": "Unauthorized", "message": "no"}})
    assert ended.value.action == "fatal"
    proven = Desk(quotes=("AAPL", "1001")).login()
    assert proven.reply(proven.requests[0], 403, {"statusCode": 403, "message": "no"})[0]["event"] == "degraded"
    proven.wait(3600)
    assert len(proven.requests) == 1
    page = Desk(quotes=("AAPL",)).login()
    page.reply(page.requests[0], 403, b"<html>blocked</html>")
    page.wait(1)
    assert len(page.requests) == 2


def test_the_instrument_map_survives_as_plain_json() -> None:
    desk = Desk(quotes=("AAPL",), metadata=True).login()
    desk.reply(desk.asked("search")[0], 200, {"items": [{"instrumentId": 1001, "internalSymbolFull": "AAPL"}]})
    for request in desk.requests[1:]:
        if "instrumentIds" in request.url:
            desk.reply(request, 200, described((1001, "AAPL")))
        else:
            desk.reply(request, 200, {"exchangeInfo": [{"exchangeID": 4, "exchangeDescription": "Nasdaq"}]})
    assert desk.shared.changed
    kept = json.loads(json.dumps(desk.shared.state()))
    fresh = EtoroShared(desk.options)
    fresh.load_state(kept)
    assert fresh.state() == kept
    again = Desk(fresh, quotes=("AAPL",), metadata=True).login()
    assert not again.asked("search") and not again.asked("instrumentIds")
    assert again.sent[-1]["data"]["topics"] == ["instrument:1001"]
    simulated = EtoroShared(EtoroOptions(simulate=True))
    simulated.load_state(kept)
    assert simulated.items == {}
    for broken in (
        {},
        {"version": 1, "simulated": False, "items": [1, {"id": "x"}, {"id": "5"}], "tables": 3},
        {"version": 99},
    ):
        EtoroShared(desk.options).load_state(broken)


# -- the fallback ----------------------------------------------------------------------------------------------------


def test_a_quiet_instrument_gets_the_rest_mid_once_marked_as_such() -> None:
    desk = Desk(quotes=("1001", "28")).login()
    desk.answer(desk.sent[-1])
    desk.rate(1001, Bid="10.10", Ask="10.21", Date=times.iso(NOW))
    desk.wait(50)
    assert not desk.requests
    desk.rate(28, Bid="5", Ask="6", Date=times.iso(desk.now))
    desk.wait(15)
    assert desk.requests[-1].url.endswith("/rates?instrumentIds=1001")
    row = {"instrumentID": 1001, "bid": 10.1, "ask": 10.25, "date": times.iso(NOW + SECOND)}
    quotes = desk.reply(desk.requests[-1], 200, {"rates": [row]})
    wanted = {"type": "quote", "symbol": "1001", "raw_symbol": "1001", "ts_event": NOW + SECOND}
    assert quotes == [wanted | {"origin": "rest", "mid": "10.175"}]
    desk.wait(63)
    assert desk.reply(desk.requests[-1], 200, {"rates": [row]}) == [], "the same price is not said twice"
    assert "bid" in desk.rate(1001, Bid="10.30")[0]


@pytest.mark.parametrize(
    ("row", "mid"),
    [
        ({"bid": 1.10215, "ask": 1.1023}, "1.102225"),
        ({"bid": 184.2, "ask": 184.4}, "184.3"),
        ({"bid": 0, "ask": 5.5, "lastExecution": 5.25}, "5.25"),
    ],
)
def test_the_mid_is_exact_or_the_last_execution(row: dict[str, Any], mid: str) -> None:
    desk = Desk(quotes=("1001",)).login()
    desk.answer(desk.sent[-1])
    desk.wait(1)
    desk.wait(64)
    assert [one["mid"] for one in desk.reply(desk.requests[-1], 200, {"rates": [{"instrumentID": 1001, **row}]})] == [
        mid
    ]


def test_a_price_of_the_stream_beats_an_answer_that_comes_late_or_is_older() -> None:
    desk = Desk(quotes=("1001",)).login()
    desk.answer(desk.sent[-1])
    desk.rate(1001, Bid="10", Ask="11", Date=times.iso(NOW))
    desk.wait(1)
    desk.wait(64)
    older = {"rates": [{"instrumentID": 1001, "bid": 1, "ask": 2, "date": times.iso(NOW - SECOND)}]}
    assert desk.reply(desk.requests[-1], 200, older) == []
    desk.wait(63)
    desk.now += SECOND
    desk.rate(1001, Bid="10.5", Date=times.iso(desk.now))
    newer = {"rates": [{"instrumentID": 1001, "bid": 1, "ask": 2, "date": times.iso(desk.now + SECOND)}]}
    assert desk.reply(desk.requests[-1], 200, newer) == []


def test_the_official_close_serves_where_no_rate_is_told() -> None:
    desk = Desk(quotes=("1001", "28")).login()
    desk.answer(desk.sent[-1])
    desk.wait(1)
    desk.wait(64)
    desk.reply(desk.requests[-1], 200, {"rates": []})
    closing = desk.asked("closing-price")[0]
    rows = [
        {
            "instrumentId": 1001,
            "officialClosingPrice": 184.5,
            "closingPrices": {"daily": {"date": "2026-02-27 00:00:00Z"}},
        },
        {"instrumentId": 28, "officialClosingPrice": -1, "closingPrices": {"daily": {"date": "0001-01-01 00:00:00Z"}}},
    ]
    out = desk.reply(closing, 200, rows)
    assert [(one["mid"], one["origin"], one["raw_symbol"]) for one in out] == [("184.5", "rest", "1001")]
    assert out[0]["ts_event"] == times.iso_ns("2026-02-27T00:00:00Z")


def test_no_fallback_where_it_is_switched_off() -> None:
    desk = Desk(quotes=("1001",), fallback_secs=0.0).login()
    desk.answer(desk.sent[-1])
    desk.wait(1)
    desk.wait(600)
    assert desk.requests == []


# -- orders, odds and ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ({"StatusID": 1}, "pending"),
        ({"StatusID": 3}, "filled"),
        ({"StatusID": 3, "RequestedUnits": 4, "ExecutedUnits": 1}, "partially_filled"),
        ({"StatusID": 4, "RequestedUnits": 4, "ExecutedUnits": 4}, "rejected"),
        ({"StatusID": "5"}, "cancelled"),
        ({"StatusID": 99}, "unknown"),
        ({}, "unknown"),
        ({"StatusID": 7}, "open"),
        ({"StatusID": 7, "ErrorCode": "12"}, "rejected"),
        ({"StatusID": 3, "ErrorCode": "0"}, "filled"),
    ],
)
def test_order_states(content: dict[str, Any], state: str) -> None:
    desk = Desk(orders=True, order_states={"7": "open"}).login()
    frame = {"messages": [{"topic": "private", "content": {"OrderID": 1, **content}}]}
    assert [one["state"] for one in desk.frame(frame)] == [state]


def test_customer_ids_never_come_out() -> None:
    desk = Desk(orders=True).login()
    for content in ({"OrderID": 1, "CID": 32000001}, {"CID": 32000001}, '{"CID":32000001'):
        text = content if isinstance(content, str) else json.dumps(content)
        desk.frame({"messages": [{"topic": "private", "content": text}]})
    desk.frame(b'{"messages":[{"topic":"private","content":{"CID":"32000001"')
    assert len(desk.out) == 5
    assert "32000001" not in json.dumps(desk.out)


@pytest.mark.parametrize(
    ("date", "ns"),
    [
        ("2026-03-02T15:04:05.123456789Z", 1772463845123456789),
        ("2026-03-02 17:04:05+02:00", 1772463845000000000),
        (1772463845, 1772463845000000000),
        ("1772463845123", 1772463845123000000),
        (1772463845.25, 1772463845250000000),
        ("1772463845123456", 1772463845123456000),
        (1772463845123456789, 1772463845123456789),
        ("0001-01-01T00:00:00Z", None),
        ("soon", None),
        (True, None),
    ],
)
def test_times_in_every_form(date: Any, ns: int | None) -> None:
    desk = Desk(quotes=("1001",)).login()
    assert desk.rate(1001, Bid="1", Date=date)[0].get("ts_event") == ns


@pytest.mark.parametrize("bid", ["NaN", "Infinity", "1,000.5", True, "-1", 0, "1e999", {"a": 1}])
def test_what_is_no_price_is_rejected_and_the_session_lives(bid: Any) -> None:
    desk = Desk(quotes=("1001",)).login()
    assert [one["type"] for one in desk.rate(1001, Bid=bid)] == ["reject"]
    assert [one["type"] for one in desk.rate(1001, Bid=bid, Ask="2")] == ["quote", "reject"]


def test_useless_frames_are_counted() -> None:
    desk = Desk(quotes=("1001",)).login()
    before = desk.session.useless
    desk.session.receive(Frame(NOW, b"\x00", True))
    desk.rate(1001, Date="2026-03-02T15:04:05Z", PriceRateID="1")
    desk.frame({"type": "heartbeat"})
    desk.frame({"messages": []})
    assert desk.session.useless == before + 4
