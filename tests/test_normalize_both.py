"""`relay normalize` on recordings of both directions: what a client sent explains what it was answered."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from test_expected import FRAMES, fits, load

from relay.cli.normalize import command


def normalized(name: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    result = CliRunner().invoke(command, [name, "-"], input=text)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def out(**message: Any) -> dict[str, Any]:
    return {"dir": "out", "frame": json.dumps(message)}


def come(**message: Any) -> dict[str, Any]:
    return {"dir": "in", "frame": json.dumps(message)}


def test_an_etoro_refusal_names_what_the_client_had_asked_for() -> None:
    asked = out(id="a", operation="Subscribe", data={"topics": ["instrument:28"], "snapshot": True})
    refusal = come(id="a", success=False, operation="Subscribe", errorCode="SubscribeFailed", errorMessage="no")
    told = normalized("etoro", [asked, refusal])
    assert [(m["event"], m.get("raw_symbol"), m.get("channel")) for m in told] == [("refused", "28", "quotes")]
    assert "raw_symbol" not in normalized("etoro", [refusal])[0]


def test_data_of_what_an_etoro_client_unsubscribed_from_is_left_out() -> None:
    rate = come(messages=[{"topic": "instrument:28", "content": json.dumps({"Bid": "1", "Ask": "2"})}])
    gone = out(id="b", operation="Unsubscribe", data={"topics": ["instrument:28"]})
    again = out(id="c", operation="Subscribe", data={"topics": ["instrument:28"]})
    newer = come(messages=[{"topic": "instrument:28", "content": json.dumps({"Bid": "1.5"})}])
    assert len(normalized("etoro", [rate])) == 1
    assert normalized("etoro", [gone, rate]) == []
    assert len(normalized("etoro", [gone, rate, again, newer])) == 1


def test_a_tickatlas_ack_is_compared_with_what_the_client_wanted() -> None:
    ack = come(type="subscribed", symbols=["EURUSD"], total_subscribed=1)
    told = normalized("tickatlas", [out(action="subscribe", symbols=["EURUSD", "XAUUSD"]), ack])
    assert [m["event"] for m in told] == ["subscribed", "refused"] and told[1]["raw_symbol"] == "XAUUSD"


@pytest.mark.parametrize("name", ["etoro", "aries", "tickatlas", "coinapi"])
def test_what_a_client_sent_may_be_anything(name: str) -> None:
    frames = [
        "",
        "{",
        "[]",
        "7",
        '{"operation":7,"id":[],"data":{"topics":[1,"x"]}}',
        '{"action":"subscribe","symbols":[{}]}',
    ]
    assert normalized(name, [{"dir": "out", "frame": frame} for frame in frames]) is not None


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is absent")
@pytest.mark.parametrize("name", ["etoro", "aries"])
def test_the_shared_frames_need_no_configuration(name: str) -> None:
    told = normalized(name, load(f"{name}.jsonl"))
    kinds = ("quote", "trade", "bar", "book_snapshot", "rate", "greeks", "order", "position", "balance", "account")
    ours = [m for m in told if m["type"] in kinds]
    lines = load(f"expected_{name}.jsonl")
    wanted = [m for line in lines for m in (line.get("any_of") or [line["out"]])[0] if m["type"] in kinds]
    free = ["start", "end", *(field for line in lines for field in line.get("free", ()))]
    assert wanted and fits(ours, wanted, free, False)
