"""Closed markets, fallbacks over REST, and what may not stand in statuses and rejects."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from relays import config_of, entries, relay_of, topics, until
from test_intake import NOW, SECOND, Scene, kinds

from relay import model
from relay.intake import Intake
from relay.model import MESSAGES, Status
from relay.providers.base import Options, Shared, reject
from relay.redaction import Redactor
from relay.simulator.faults import Faults
from relay.simulator.server import Simulator
from relay.topics import Topics


def quote(raw: str = "AAPL", **fields: Any) -> model.Quote:
    return model.Quote(symbol=raw, raw_symbol=raw, **(fields or {"bid": "1"}))


def stale(scene: Scene, secs: float) -> list[str]:
    scene.intake.watch(NOW + int(secs * SECOND))
    return [m["symbol"] for m in scene.drain() if m.get("event") == "stale" and m["topic_"].startswith("quotes.")]


@pytest.mark.parametrize("raw", ["AAPL", None])
def test_a_closed_market_is_no_alarm_until_it_has_opened(raw: str | None) -> None:
    scene = Scene()
    scene.take(quote("AAPL"), quote("MSFT"))
    scene.take(Status(event="market", raw_symbol=raw, open=False), now=NOW + SECOND)
    assert stale(scene, 3600) == (["MSFT"] if raw else [])
    scene.take(Status(event="market", raw_symbol=raw, open=True), now=NOW + 3600 * SECOND)
    assert stale(scene, 3630) == [], "the silence counts from the opening"
    assert stale(scene, 3661) == (["AAPL"] if raw else ["AAPL", "MSFT"])


def test_a_fallback_over_rest_is_never_live() -> None:
    scene = Scene()
    scene.take(quote())
    assert stale(scene, 61) == ["AAPL"]
    told = scene.take(quote(mid="1.5", origin="rest"), now=NOW + 62 * SECOND)
    assert kinds(told) == ["quote"] and told[0]["origin"] == "rest", "not fresh"
    assert stale(scene, 63) == [], "stale already, and still"
    assert kinds(scene.take(quote(), now=NOW + 70 * SECOND))[0] == "fresh@quotes.AAPL"


def test_fallbacks_do_not_keep_a_topic_from_going_stale() -> None:
    scene = Scene()
    scene.take(quote(mid="1", origin="rest"))
    for second in range(0, 60, 10):
        scene.take(quote(mid="1", origin="rest"), now=NOW + second * SECOND)
    assert stale(scene, 61) == ["AAPL"]


def test_a_gap_waits_for_the_next_live_message() -> None:
    scene = Scene()
    scene.take(quote())
    scene.intake.closed(scene.source, "1")
    assert kinds(scene.take(quote(mid="1", origin="rest"))) == ["quote"]
    assert kinds(scene.take(quote()))[0] == "gap@quotes.AAPL"


def test_statuses_and_rejects_leave_without_secrets() -> None:
    scene = Scene()
    scene.intake = Intake(Topics("r"), scene.out, 7, redactor=Redactor(["canary-key-1234567890"]))
    scene.source = scene.intake.source("made", scene.spec, Shared(Options()), None)
    echoed = '{"key":"canary-key-1234567890"}'
    told = scene.take(
        Status(event="notice", code="canary-key-1234567890", text=f"refused {echoed}"),
        reject("not_json", f"at {echoed}", echoed),
        reject("not_json", "cut", "x" * 990 + echoed),
    )
    assert "canary" not in json.dumps(told) and len(told) == 3 and told[1]["frame"] == '{"key":"***"}'


def test_the_relay_names_itself_in_what_it_says_itself() -> None:
    scene = Scene()
    scene.intake.status(None, Status(event="stopped"), NOW)
    assert scene.drain()[0]["provider"] == "r"


async def test_every_published_message_is_what_its_schema_says(redis_url: str, tmp_path: Path) -> None:
    validators = {
        path.stem: jsonschema.Draft202012Validator(json.loads(path.read_text()))
        for path in (Path(__file__).parents[1] / "schemas").glob("*.json")
        if "properties" in json.loads(path.read_text())
    }
    async with Simulator(rate=100, faults=Faults(garbage_every=20, drop_after=150)) as simulator:
        # real addresses of simulated sides: the messages of a live relay, without an origin
        text = f"""
name: t
redis: {{url: "{redis_url}"}}
topics:
  quotes: quotes.{{provider}}.{{symbol}}
  trades: trades.{{provider}}.{{symbol}}
providers:
  coinapi:
    url: {simulator.url("coinapi")}
    api_key: ${{K}}
    quotes: [BITSTAMP_SPOT_BTC_USD]
    trades: [BITSTAMP_SPOT_BTC_USD]
    books: {{20: [BITSTAMP_SPOT_BTC_USD]}}
    rates: [BTC/USD]
  tickatlas:
    url: {simulator.url("tickatlas")}
    api_key: ${{K}}
    quotes: [EURUSD]
    bars: {{1m: [EURUSD]}}
  aries:
    url: {simulator.url("aries")}
    rest_url: {simulator.rest_url("aries")}
    token: ${{K}}
    account: paper
    account_id: A1
    pnl: [1m]
    watchlist: true
    news: true
    quotes: [AAPL]
    trades: [AAPL, SPX]
    greeks: [AAPL260619C00200000]
  etoro:
    url: {simulator.url("etoro")}
    rest_url: {simulator.rest_url("etoro")}
    api_key: ${{K}}
    user_key: ${{K}}
    quotes: [TSLA]
    orders: true
"""
        wanted = {str(kind.__struct_config__.tag) for kind in MESSAGES} - {"book_delta"}  # books of 20 come whole
        async with relay_of(config_of(text, tmp_path, K="key-of-the-test")):

            def found() -> list[dict[str, Any]]:
                names = topics(redis_url) | {"status.t"}
                return [message for name in names for _, message in entries(redis_url, name)]

            await until(lambda: wanted <= {m["type"] for m in found()}, 15)
        for message in found():
            validators[message["type"]].validate(message)
