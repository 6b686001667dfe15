"""TickAtlas, eToro and Aries as they should never be: scripted servers, the whole relay, and what it makes of each.

Each case is one thing gone wrong. It must end in the reaction of the provider's fact sheet: the session's end with its
decision, or a session that lives; one readable line in the log; a status on the stream.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from relays import Running, config_of, entries, relay_of, until

from relay.clock import Clock
from relay.feed import session
from relay.providers.tickatlas import TickAtlas
from relay.simulator.script import Act, Expect, Scripted, close, drop, expect, refuse, scripted, send, silence

KEY = "scripted-key-0001"
FAST = 400
"""How much faster the relay's clock runs while a deadline of the provider is awaited: 10 s are 25 ms."""


@dataclass
class Case:
    """One script and the reaction to it."""

    provider: str
    scripts: Sequence[Sequence[Act]]
    """Of the connections in order; the last one serves all later ones."""
    line: tuple[str, str]
    """Level of the one line, and words in it (joined by `|`): the phrase, or its fields."""
    status: Mapping[str, Any]
    """Fields of a status on the stream; text and action must only contain theirs."""
    lives: bool = False
    """The session that it happened to lives on, and data goes through it."""
    options: str = ""
    hurry: int = 0
    """After so many messages of ours only time is missing: let it run (0: never)."""
    check: Callable[[Running, Scripted], None] | None = None
    lines: int = 1


# -- the three providers' words ----------------------------------------------------------------------------------------


def ticks(**body: Any) -> Act:
    quote = {"symbol": "EURUSD", "time": "2026-03-12T09:41:00Z", "bid": 1.08525, "ask": 1.08533}
    return send({"type": "quote", "data": {**quote, **body}})


ASKED = expect({"action": "auth", "key": KEY})
WELCOME = send(
    {"type": "authenticated", "plan": "pro", "max_symbols": 25, "credits_per_push": 4, "daily_quota_remaining": 9}
)
WISHED = expect({"action": "subscribe", "symbols": ["EURUSD"]})
ACKED = send({"type": "subscribed", "symbols": ["EURUSD"], "total_subscribed": 1})
TICKATLAS = [ASKED, WELCOME, WISHED, ACKED, ticks()]


def failed(code: str) -> Act:
    return send({"type": "error", "code": code, "message": f"made up: {code}"})


def answer(success: bool = True, **more: Any) -> Act:
    def made(asked: Any) -> Mapping[str, Any]:
        return {"id": asked["id"], "success": success, "operation": asked["operation"], **more}

    return send(made)


def rate(bid: str = "184.20") -> Act:
    content = json.dumps({"Bid": bid, "Ask": "184.31", "Date": "2026-03-02T15:04:05.1234567Z", "PriceRateID": bid[-2:]})
    return send(
        {"messages": [{"topic": "instrument:1001", "content": content, "id": "1", "type": "Trading.Instrument.Rate"}]}
    )


LOGIN = expect({"operation": "Authenticate", "data": {"userKey": KEY, "apiKey": KEY}})
TOPICS = expect({"operation": "Subscribe", "data": {"topics": ["instrument:1001"], "snapshot": True}})
ETORO = [LOGIN, answer(), TOPICS, answer(), rate()]


def event(action: str, **payload: Any) -> Act:
    return send({"type": "event", "payload": {"action": action, "timestamp": 1773322860331, **payload}})


def msft(bid: float = 410.11) -> Act:
    return event("update", type="quote", symbol="MSFT", data={"bidPrice": bid, "askPrice": 410.14})


def is_login(number: int) -> Act:
    def login(message: Any) -> bool:
        body = {"action": "auth", "token": KEY}
        return bool(message["id"] == f"auth-{number}" and message["payload"]["body"] == body)

    return expect(login)


def is_subscribe(message: Any) -> bool:
    return bool(message["type"] == "subscribe" and message["payload"][0]["symbol"] == "MSFT")


LET_IN = event("authSuccess", id="auth-1", data={"expiresIn": 2700000})
ARIES = [is_login(1), LET_IN, expect(is_subscribe), msft()]

WHOLE = {"tickatlas": TICKATLAS, "etoro": ETORO, "aries": ARIES}
MORE = {"tickatlas": ticks(bid=1.08526), "etoro": rate("184.21"), "aries": msft(410.12)}
"""Data once more: it shows that the session lives."""
SECTIONS = {
    "tickatlas": f"api_key: {KEY}\n    quotes: [EURUSD]",
    "etoro": f"api_key: {KEY}\n    user_key: {KEY}\n    quotes: ['1001']\n    metadata: false\n    fallback_secs: 0",
    "aries": f"token: {KEY}\n    quotes: [MSFT]",
}
TOPIC = {"tickatlas": "quotes.EUR-USD", "etoro": "quotes.1001", "aries": "quotes.MSFT"}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def closes(code: int, provider: str) -> Case:
    end: Act = drop() if code == 1006 else close(code, "made up")
    words = {1000: "closed 1000 made up", 1001: "closed 1001 made up", 1006: "broke off"}.get(
        code, f"with {code}: made up"
    )
    return Case(
        provider,
        [[*WHOLE[provider], end], [*WHOLE[provider]]],
        ("warning", f"{words}|again in 0.0 s"),
        {"event": "closed", "action": "again in"},
    )


def pause_is_kept(running: Running, server: Scripted) -> None:
    assert server.connects == 1 and len(server.received) == 2, "no reconnect, no subscribe"


def sent_both_names(running: Running, server: Scripted) -> None:
    assert [json.loads(text).get("api_key") for text in server.received] == [None, KEY]


def has_rejects(running: Running, server: Scripted) -> None:
    (state,) = running.bridge.providers.values()
    assert state.source.counts.rejects >= 4 and state.feeds[0].stats.opened == 1


CASES: dict[str, Case] = {
    # TickAtlas
    "tickatlas refuses the key": Case(
        "tickatlas",
        [[ASKED, failed("invalid_key"), close(1008)]],
        ("error", "unknown or revoked|not tried again"),
        {"event": "closed", "code": "invalid_key", "action": "not tried again"},
        options="auth_field: both",
    ),
    "tickatlas refuses the key under both names": Case(
        "tickatlas",
        [[ASKED, failed("invalid_key"), close(1008)], [ASKED, failed("invalid_key"), close(1008)]],
        ("error", "unknown or revoked|not tried again"),
        {"event": "closed", "code": "invalid_key", "action": "not tried again"},
        check=sent_both_names,
        lines=2,
    ),
    "tickatlas has no streaming in this plan": Case(
        "tickatlas",
        [[ASKED, failed("forbidden")]],
        ("error", "no streaming|not tried again"),
        {"event": "closed", "code": "forbidden", "action": "not tried again"},
    ),
    "tickatlas never answers the login": Case(
        "tickatlas",
        [[ASKED, silence()], [*TICKATLAS]],
        ("warning", "no answer to the login within 10 s|again in 0.0 s"),
        {"event": "closed", "code": "auth_timeout"},
        hurry=1,
    ),
    "tickatlas sends data before the ack": Case(
        "tickatlas",
        [[ASKED, WELCOME, WISHED, ticks(), ACKED, MORE["tickatlas"]]],
        ("info", "logged in|9 credits left"),
        {"event": "subscribed", "text": "EURUSD"},
        lives=True,
    ),
    "tickatlas never acks": Case(
        "tickatlas",
        [[ASKED, WELCOME, WISHED, ticks(), MORE["tickatlas"]]],
        ("info", "logged in|9 credits left"),
        {"event": "authenticated"},
        lives=True,
    ),
    "tickatlas' quota is used up": Case(
        "tickatlas",
        [[*TICKATLAS, failed("quota_exceeded")]],
        ("warning", "quota|made up: quota_exceeded|T00:00:00"),
        {"event": "quota", "code": "quota_exceeded", "action": "stay connected"},
        check=pause_is_kept,
    ),
    "tickatlas closes while the quota is used up": Case(
        "tickatlas",
        [[*TICKATLAS, failed("quota_exceeded"), drop()]],
        ("warning", "until midnight UTC|again in"),
        {"event": "closed", "code": "quota_exceeded"},
        check=pause_is_kept,
        lines=2,
    ),
    "tickatlas' connections are taken": Case(
        "tickatlas",
        [[ASKED, failed("connection_limit"), close(1008)]],
        ("warning", "both connections of this key|again in 1"),
        {"event": "closed", "code": "connection_limit"},
    ),
    "tickatlas refuses the upgrade": Case(
        "tickatlas",
        [[refuse(403)]],
        ("warning", "HTTP 403|no key was sent yet|again in"),
        {"event": "refused", "code": "http_403"},
    ),
    # eToro
    "etoro refuses the key": Case(
        "etoro",
        [[LOGIN, answer(False, errorCode="InvalidKey", errorMessage="made up")]],
        ("error", "eToro refused the login: InvalidKey|not tried again"),
        {"event": "closed", "code": "InvalidKey", "action": "not tried again"},
    ),
    "etoro never answers the login": Case(
        "etoro",
        [[LOGIN, send(b"\x00"), silence()], [*ETORO]],
        ("warning", "no answer to the login within 10 s|again in 0.0 s"),
        {"event": "closed", "code": "auth_timeout"},
        hurry=1,
    ),
    "etoro sends data before it answers": Case(
        "etoro",
        [[LOGIN, rate("184.19"), answer(), TOPICS, rate(), answer(), MORE["etoro"]]],
        ("info", "logged in"),
        {"event": "subscribed", "channel": "quotes"},
        lives=True,
    ),
    "etoro never acks": Case(
        "etoro",
        [[LOGIN, answer(), TOPICS, TOPICS, TOPICS, silence()], [*ETORO]],
        ("warning", "sent 3 times|again in 0.0 s"),
        {"event": "closed", "code": "ack_timeout"},
        hurry=2,
        lines=2,  # and once: no answer, sent again
    ),
    "etoro's topics are too many": Case(
        "etoro",
        [
            [
                LOGIN,
                answer(),
                TOPICS,
                answer(False, errorCode="SubscribeFailed", errorMessage="Too many subscriptions for session"),
                MORE["etoro"],
            ]
        ],
        ("warning", "refused|SubscribeFailed|connection_topics_max"),
        {"event": "refused", "code": "SubscribeFailed", "channel": "quotes"},
        lives=True,
    ),
    "etoro asks for a pause": Case(
        "etoro",
        [[*ETORO, send({"success": False, "errorCode": "TooManyRequests"}), MORE["etoro"]]],
        ("warning", "quota|TooManyRequests|pause"),
        {"event": "quota", "code": "TooManyRequests", "action": "pause"},
        lives=True,
    ),
    "etoro's upgrade is refused by a proxy": Case(
        "etoro",
        [[refuse(403)], [*ETORO]],
        ("warning", "HTTP 403|no key was sent yet|again in 0.0 s"),
        {"event": "refused", "code": "http_403"},
    ),
    "etoro refuses the keys in the header": Case(
        "etoro",
        [[refuse(401)]],
        ("error", "HTTP 401|not tried again"),
        {"event": "refused", "code": "http_401", "action": "not tried again"},
        options="dialect: header",
    ),
    "etoro's header dialect brings nothing": Case(
        "etoro",
        [[expect({"type": "subscribe", "channels": ["quotes.1001"]}), silence()]],
        ("warning", "degraded|try dialect: inband"),
        {"event": "degraded", "code": "no_data"},
        options="dialect: header",
        hurry=1,
    ),
    # Aries
    "aries refuses the token": Case(
        "aries",
        [[is_login(1), event("error", error="authentication failed", id="auth-1")]],
        ("error", "authentication failed, also with a fresh token|not tried again"),
        {"event": "closed", "code": "auth_refused", "action": "not tried again"},
        lines=2,  # the first refusal asks for a fresh token
    ),
    "aries never answers the login": Case(
        "aries",
        [[is_login(1), silence()], [*ARIES]],
        ("warning", "no answer to the login within 10 s|again in 0.0 s"),
        {"event": "closed", "code": "auth_timeout"},
        hurry=1,
    ),
    "aries sends data before it answers": Case(
        "aries",
        [[is_login(1), msft(410.10), LET_IN, expect(is_subscribe), MORE["aries"]]],
        ("info", "logged in"),
        {"event": "authenticated", "code": "market"},
        lives=True,
    ),
    "aries refuses a subscription": Case(
        "aries",
        [
            [
                is_login(1),
                LET_IN,
                expect(is_subscribe),
                event("error", error="symbol not found", id="sub-1"),
                MORE["aries"],
            ]
        ],
        ("warning", "refused|MSFT|symbol not found"),
        {"event": "refused", "raw_symbol": "MSFT", "text": "symbol not found"},
        lives=True,
    ),
    "aries wants a fresh login": Case(
        "aries",
        [
            [
                *ARIES,
                event("refreshAuth", data={"expiresIn": 300000}),
                is_login(2),
                event("authSuccess", id="auth-2"),
                MORE["aries"],
            ]
        ],
        ("info", "renewed|same connection"),
        {"event": "renewed"},
        lives=True,
        lines=2,  # and the notice that the session ends soon
    ),
    "aries' session has expired": Case(
        "aries",
        [[*ARIES, event("authExpired")], [*ARIES]],
        ("warning", "session has expired|again in 0.0 s"),
        {"event": "closed", "code": "authExpired"},
    ),
    "aries asks for a login again": Case(
        "aries",
        [[*ARIES, event("authRequired"), is_login(2), event("authSuccess", id="auth-2"), MORE["aries"]]],
        ("info", "renewed|same connection"),
        {"event": "renewed"},
        lives=True,
    ),
}
for _name in WHOLE:
    CASES[f"{_name} goes silent"] = Case(
        _name,
        [[*WHOLE[_name], silence()], [silence()]],
        ("warning", "nothing came|again in 0.0 s"),
        {"event": "closed", "code": "ping_timeout" if _name == "aries" else "silence"},
        options="silence_secs: 0.2" if _name == "etoro" else "",
        hurry=2 if _name == "aries" else 0,
    )
    CASES[f"{_name} sends garbage"] = Case(
        _name,
        [
            [
                *WHOLE[_name],
                send('{"type":'),
                send(b"\xff\xfe"),
                send("\x00\x01 [[["),
                send("7"),
                send("{}"),
                MORE[_name],
            ]
        ],
        ("info", "logged in"),
        {"event": "authenticated"},
        lives=True,
        check=has_rejects,
    )
    for _code in (1000, 1001, 1006, 1008, 1011, 1012):
        CASES[f"{_name} closes with {_code}"] = closes(_code, _name)


class HurriedClock(Clock):
    """Runs FAST times faster while it is hurried: what a provider waits for is over soon."""

    def __init__(self) -> None:
        super().__init__()
        self.hurried = False
        self._more = self._last = 0

    def __call__(self) -> int:
        now = super().__call__()
        if self.hurried:
            self._more += (now - self._last) * (FAST - 1)
        self._last = now
        return now + self._more


@asynccontextmanager
async def played(case: Case, redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(session, "TICK_SECS", 0.02)
    monkeypatch.setattr(session, "GONE_SECS", 0.02)
    connect = TickAtlas.connect
    quick = lambda self: replace(connect(self), silence_secs=0.2)  # noqa: E731
    monkeypatch.setattr(TickAtlas, "connect", quick)
    section = SECTIONS[case.provider].replace(KEY, "${K}")
    async with scripted(*case.scripts) as server:
        text = f"name: t\nredis: {{url: '{redis_url}'}}\nproviders:\n  {case.provider}:\n    url: {server.url}\n"
        config = config_of(f"{text}    {section}\n" + (f"    {case.options}\n" if case.options else ""), folder, K=KEY)
        clock = HurriedClock()
        async with relay_of(config, clock=clock) as running:
            if case.hurry:
                await until(lambda: len(server.received) >= case.hurry, 4)
                clock.hurried = True
                await until(lambda: any(level == "warning" for level, *_ in running.lines), 4)
                clock.hurried = case.lines > 1
            yield running, server


def noted(running: Running) -> list[tuple[str, str]]:
    """Level and words of each line that says that something is not as it always is."""
    usual = ("connected", "subscribed", "unsubscribed", "Redis is up")
    return [(level, f"{text} {fields}") for level, text, fields in running.lines if text not in usual]


def fits(message: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a status holds what is wanted; text and action only have to contain it."""
    loose = {key: wanted[key] for key in ("text", "action") if key in wanted}
    return {**message, **wanted} == {**message, **loose} and all(v in message.get(k, "") for k, v in loose.items())


@pytest.mark.parametrize("name", CASES)
async def test_reaction_of_the_fact_sheet(
    name: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    level, words = case.line
    async with played(case, redis_url, tmp_path, monkeypatch) as (running, server):

        def found() -> int | None:
            lines = noted(running)
            return next(
                (n for n, (at, said) in enumerate(lines) if at == level and all(w in said for w in words.split("|"))),
                None,
            )

        def statuses() -> list[dict[str, Any]]:
            return [m for _, m in entries(redis_url, "status.t") if m["type"] == "status" and fits(m, case.status)]

        def through() -> bool:
            """The scripts are played to their ends, and the last data has arrived, on the first connection."""
            expected = sum(isinstance(act, Expect) for acts in case.scripts for act in acts)
            if server.connects < len(case.scripts) or len(server.received) < expected:
                return False
            last = json.loads(MORE[case.provider].data) if case.lives else None
            quotes = [m for _, m in entries(redis_url, TOPIC[case.provider]) if m["type"] == "quote"]
            return last is None or (bool(quotes) and quotes[-1].get("bid") in str(last) and server.finished == 1)

        try:
            await until(lambda: found() is not None and statuses() and through(), 4)
        except TimeoutError:
            raise AssertionError(f"{running.lines}\n{[m for _, m in entries(redis_url, 'status.t')]}") from None
        place = found()
        assert place is not None
        before = [
            line for line in noted(running)[: place + 1] if not line[1].startswith("logged in") or "logged in" in words
        ]
        if not case.lives:
            assert len(before) == case.lines, before
        else:
            assert server.connects == 1
            rest = [line for line in noted(running) if not line[1].startswith("logged in")]
            assert len(rest) == case.lines - ("logged in" in words), rest
        if case.check is not None:
            case.check(running, server)
        assert KEY not in str(running.lines) + str(entries(redis_url, "status.t"))


def test_reactions_are_not_matched_too_easily() -> None:
    status = {"event": "closed", "code": "silence", "text": "nothing came", "action": "again in 0.0 s"}
    assert fits(status, {"event": "closed", "code": "silence", "action": "again"})
    assert not fits(status, {"event": "closed", "code": "pong"})
    assert not fits(status, {"event": "closed", "action": "not tried"})
    assert not fits(status, {"event": "closed", "channel": "quotes"})
