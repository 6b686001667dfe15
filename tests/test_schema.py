"""schemas/ says what stands on the wire, and is what `relay schema` writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from relay import asyncapi, codec, model, schema, typescript
from relay.cli.schema import command
from relay.model import MESSAGES, Header

SCHEMAS = Path(__file__).parents[1] / "schemas"
STAMP: dict[str, Any] = {"provider": "demo", "ts_recv": 1_772_359_200_000_000_000, "run": 1_772_359_200_000, "seq": 1}
HEAD: dict[str, Any] = {**STAMP, "symbol": "BTC-USD", "raw_symbol": "BTC/USD"}
PRICE, LEVELS = "61250.10", (("61250.10", "0.5"), ("61250.00", "0"))

SAMPLES: tuple[Header, ...] = (
    model.Quote(**HEAD, bid=PRICE),
    model.Quote(**HEAD, mid=PRICE),
    model.Quote(**HEAD, bid=PRICE, ask=PRICE, bid_size="1", ask_size="2.50", last="0.00000001", src_seq=7, venue="X"),
    model.Trade(**HEAD, price=PRICE),
    model.Trade(**HEAD, price=PRICE, size="1", side="buy", side_estimated=True, id="7", ts_event=1, origin="replay"),
    model.Bar(
        **HEAD, interval="1m", start=0, end=60, open="1", high="2", low="1", close="2", closed=True, volume="3",
        ticks=4, trades=5, vwap="1.5",
    ),
    model.BookSnapshot(**HEAD, bids=LEVELS, asks=(), depth=20, checksum=7),
    model.BookDelta(**HEAD, bids=(), asks=LEVELS, prev_seq=6, src_seq=7),
    model.Rate(**HEAD, kind="funding", value="-0.0001"),
    model.Greeks(**HEAD, delta="0.5", gamma="-0.1", theta="1", vega="2", rho="3", iv="0.25"),
    model.Instrument(**HEAD, base="BTC", quote="USD", name="Bitcoin", price_precision=2, active=False),
    model.Order(**STAMP, account="main", order_id="1", state="partially_filled", side="sell", price=PRICE, filled="1"),
    model.Position(**STAMP, account="main", size="-3", average_price=PRICE, unrealized="-1.5"),
    model.Balance(**STAMP, account="main", currency="USD", total="10", available="0"),
    model.Account(**STAMP, account="main", kind="pnl", data={"any": [1, None, "x"]}),
    model.Status(**STAMP, event="gap", channel="trades", reason="sequence_jump", first_missing=1, missing=2, to_ns=5),
    model.Reject(**STAMP, reason="not_json", detail="cut off", frame="{"),
)  # fmt: skip


def document_of(message: Header) -> dict[str, Any]:
    return schema.documents()[str(type(message).__struct_config__.tag)]


def wire(message: Header) -> dict[str, Any]:
    return json.loads(codec.encode(message))


def test_shipped_schemas_are_up_to_date() -> None:
    """Write them anew with: relay schema schemas"""
    wanted = {f"{name}.json": schema.text(document) for name, document in schema.documents().items()}
    wanted |= {"asyncapi.json": schema.text(asyncapi.document()), "relay.d.ts": typescript.text()}
    assert {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir()} == wanted


def test_samples_show_every_message() -> None:
    assert {type(one) for one in SAMPLES} == set(MESSAGES)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda one: type(one).__name__)
def test_encoded_messages_are_valid(message: Header) -> None:
    document = document_of(message)
    Draft202012Validator.check_schema(document)
    Draft202012Validator(document).validate(wire(message))
    assert set(wire(message)) <= set(document["properties"])


@pytest.mark.parametrize("name", schema.documents())
def test_every_field_says_what_it_means(name: str) -> None:
    document = schema.documents()[name]
    assert document["description"]
    for field, value in document["properties"].items():
        assert len(value["description"]) > 8, field
        assert "anyOf" not in value and value.get("default", 0) is not None, field


@pytest.mark.parametrize("name", schema.documents())
def test_what_the_relay_stamps_is_required(name: str) -> None:
    document = schema.documents()[name]
    assert {"type", "provider", "ts_recv", "run", "seq"} <= set(document["required"])
    assert not [field for field in document["required"] if "default" in document["properties"][field]]


def test_prices_name_their_unit() -> None:
    quote = schema.documents()["quote"]["properties"]
    assert quote["bid"]["description"].startswith("Best bid") and "quote asset" in quote["bid"]["description"]
    assert "base asset" in quote["ask_size"]["description"]


BREAKERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a float": lambda one: one.update(bid=1.5),
    "an exponent": lambda one: one.update(bid="1e-8"),
    "a null": lambda one: one.update(ask=None),
    "no side": lambda one: one.pop("bid"),
    "no number": lambda one: one.pop("seq"),
    "no symbol": lambda one: one.pop("symbol"),
    "another kind": lambda one: one.update(type="trade"),
    "a number of 200 digits": lambda one: one.update(bid="1" * 200),
}


@pytest.mark.parametrize("breaker", BREAKERS.values(), ids=BREAKERS)
def test_what_is_never_published_is_invalid(breaker: Callable[[dict[str, Any]], object]) -> None:
    quote = model.Quote(**HEAD, bid=PRICE)
    document = wire(quote)
    breaker(document)
    with pytest.raises(jsonschema.ValidationError):
        Draft202012Validator(document_of(quote)).validate(document)


def test_fields_of_later_versions_are_allowed() -> None:
    quote = model.Quote(**HEAD, bid=PRICE)
    Draft202012Validator(document_of(quote)).validate({**wire(quote), "later": 1})


def test_command_writes_checks_and_prints(tmp_path: Path) -> None:
    folder, runner = tmp_path / "made" / "schemas", CliRunner()
    assert runner.invoke(command, ["--check", str(folder)]).exit_code == 1
    written = runner.invoke(command, [str(folder)])
    assert (written.exit_code, written.output) == (0, f"{len(MESSAGES) + 2} files written to {folder}\n")
    assert runner.invoke(command, ["--check", str(folder)]).exit_code == 0
    (folder / "quote.json").write_text("{}")
    checked = runner.invoke(command, ["--check", str(folder)])
    assert checked.exit_code == 1 and "quote.json differ" in checked.output
    printed = runner.invoke(command, ["--json"])
    assert json.loads(printed.output) == schema.documents()
    assert runner.invoke(command, ["--json", "--check"]).exit_code == 2
