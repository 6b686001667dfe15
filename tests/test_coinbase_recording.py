"""A real recording of 2021 through the Coinbase provider, against figures computed apart from any relay code.

The recording has its own licence and stays outside the repository; without it these tests are skipped.
"""

import json
from collections import defaultdict
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from relay.model import Quote, Reject, Trade
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Seen
from relay.providers.coinbase import CoinbaseOptions as Options

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
RECORDING = FRAMES / "coinbase.jsonl"
FIGURES = FRAMES / "expected_public_feeds.json"

pytestmark = pytest.mark.skipif(
    not (RECORDING.exists() and FIGURES.exists()), reason=f"the recording is not here: {RECORDING}"
)


@cache
def figures() -> dict[str, Any]:
    return json.loads(FIGURES.read_text())["coinbase.jsonl"]


@cache
def recorded() -> tuple[tuple[str, int], ...]:
    """Frames and times of receipt (ns) of what was really recorded."""
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    return tuple(
        (line["frame"], int(Decimal(str(line["t"])) * 10**9))
        for line in lines
        if line["dir"] == "in" and line.get("src") == "rec"
    )


class Played:
    """What the recording gave, by product."""

    def __init__(self) -> None:
        self.quotes: dict[str, list[Quote]] = defaultdict(list)
        self.trades: dict[str, list[Trade]] = defaultdict(list)
        self.base_lines: dict[str, int] = {}
        self.others: list[Any] = []
        spec, products = PROVIDERS["coinbase"], tuple(figures())
        options = Options(quotes=products, trades=products)
        session = spec.session(options, spec.subscribed(options), spec.shared(options))
        session.opened(recorded()[0][1])
        for text, received_ns in recorded():
            for output in session.receive(Frame(received_ns, text.encode())):
                if isinstance(output, Quote):
                    self.quotes[output.raw_symbol or ""].append(output)
                elif isinstance(output, Trade):
                    self.trades[output.raw_symbol or ""].append(output)
                elif isinstance(output, Seen):
                    assert output.channel == "trades" and not output.delivered
                    self.base_lines[output.raw_symbol] = output.src_seq
                else:
                    self.others.append(output)
        self.useless = session.useless


@cache
def played() -> Played:
    return Played()


def test_counts_are_those_of_the_recording() -> None:
    got = {raw: (len(played().quotes[raw]), len(played().trades[raw])) for raw in figures()}
    assert got == {raw: (want["ticker"], want["match"]) for raw, want in figures().items()}
    assert not [one for one in played().others if isinstance(one, Reject)]


def test_every_frame_is_mapped_or_counted() -> None:
    want = figures().values()
    # a `last_match` gives no message, only its number: it is useless
    mapped = sum(one["ticker"] + one["match"] for one in want)
    assert played().useless + mapped == len(recorded()) - len(played().others)


def test_aggressors_and_sums_of_sizes() -> None:
    for raw, want in figures().items():
        trades = played().trades[raw]
        assert sum(trade.side == "buy" for trade in trades) == want["aggressor_buys"]
        assert sum(trade.side == "sell" for trade in trades) == want["aggressor_sells"]
        assert sum(Decimal(trade.size or "NaN") for trade in trades) == Decimal(want["traded"])


def test_trade_ids_are_whole_and_begin_behind_the_base_line() -> None:
    for raw, want in figures().items():
        ids = [int(trade.id or "") for trade in played().trades[raw]]
        assert ids == [trade.src_seq for trade in played().trades[raw]]
        assert (ids[:1], ids[-1:]) == ([want["first_trade_id"]] if ids else [], [want["last_trade_id"]] if ids else [])
        base = played().base_lines[raw]
        jumps = [b for a, b in zip([base, *ids], ids, strict=False) if b != a + 1]
        assert len(jumps) == want["trade_id_gaps"]


def test_quotes_are_never_crossed_and_carry_no_time_of_the_trade() -> None:
    for quotes in played().quotes.values():
        for quote in quotes:
            assert quote.ts_event is None
            assert Decimal(quote.bid or "NaN") < Decimal(quote.ask or "NaN")


def test_digits_survive() -> None:
    """Every price and size of a match stands in the output as it stood on the wire."""
    wire = [json.loads(text) for text, _ in recorded()]
    matches = {(one["product_id"], one["trade_id"]): one for one in wire if one["type"] == "match"}
    for raw, trades in played().trades.items():
        for trade in trades:
            one = matches[raw, trade.src_seq]
            assert (trade.price, trade.size) == (one["price"], one["size"])
            assert trade.ts_event is not None and trade.ts_event % 1_000_000_000 == int(one["time"][20:26]) * 1000
