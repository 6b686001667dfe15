"""Topic names from templates: what identifies a source stands in them, and nothing else gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.topics import DEFAULT_TEMPLATES, PLACEHOLDERS, REQUIRED, Topics, compile_template

TOPICS = Topics("relay-1")


def test_default_names() -> None:
    assert TOPICS.name("quotes", provider="demo", symbol="EUR-USD") == "quotes.EUR-USD"
    assert TOPICS.name("bars", provider="demo", symbol="EUR-USD", interval="1m") == "bars.1m.EUR-USD"
    assert TOPICS.name("books", provider="demo", symbol="BTC-USD") == "books.demo.BTC-USD"
    assert TOPICS.name("books", provider="demo", venue="KRAKEN", symbol="BTC-USD") == "books.demo.KRAKEN.BTC-USD"
    assert TOPICS.name("orders", provider="demo", account="main") == "orders.main"
    assert TOPICS.status == "status.relay-1"
    assert TOPICS.deadletter() == "deadletter.relay-1"
    assert TOPICS.deadletter("main") == "deadletter.main"


def test_every_kind_has_a_default_that_is_right() -> None:
    assert set(DEFAULT_TEMPLATES) == set(PLACEHOLDERS)
    for kind, template in DEFAULT_TEMPLATES.items():
        assert compile_template(kind, template)


def test_prefix_stands_before_all() -> None:
    topics = Topics("r", prefix="sim.")
    names = [topics.name("trades", symbol="A"), topics.status, topics.deadletter(), topics.deadletter("main")]
    assert names == ["sim.trades.A", "sim.status.r", "sim.deadletter.r", "sim.deadletter.main"]


def test_own_templates() -> None:
    topics = Topics("r", {"quotes": "md:{provider}[:{venue}]:q:{symbol}", "status": "relay.status"})
    assert topics.name("quotes", provider="p", symbol="A") == "md:p:q:A"
    assert topics.name("quotes", provider="p", venue="V", symbol="A") == "md:p:V:q:A"
    assert (topics.status, topics.name("trades", symbol="A")) == ("relay.status", "trades.A")


@pytest.mark.parametrize(
    ("kind", "template", "complaint"),
    [
        ("quotes", "quotes", "{symbol} must stand"),
        ("quotes", "", "cannot be empty"),
        ("bars", "bars.{symbol}", "{interval} must stand"),
        ("orders", "orders.{symbol}", "{symbol} is unknown for orders"),
        ("quotes", "quotes.{interval}.{symbol}", "{interval} is unknown for quotes"),
        ("quotes", "quotes.{nosuch}.{symbol}", "{nosuch} is unknown"),
        ("quotes", "quotes {symbol}", "' ' cannot stand"),
        ("quotes", "quotes.{symbol}*", "'*' cannot stand"),
        ("quotes", "quotes.{Symbol}", "'{' cannot stand"),
        ("quotes", "quotes.{symbol", "'{' cannot stand"),
        ("quotes", "quotes.é.{symbol}", "'é' cannot stand"),
        ("books", "books[.{venue}.{symbol}", "without its closing one"),
        ("books", "books.{venue}].{symbol}", "without its opening one"),
        ("books", "books[.[{venue}]].{symbol}", "inside brackets"),
        ("status", "", "cannot be empty"),
    ],
)
def test_wrong_templates_say_what_is_wrong(kind: str, template: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        compile_template(kind, template)
    assert complaint in str(caught.value)


def test_what_a_template_needs_it_may_name() -> None:
    assert all(names <= PLACEHOLDERS[kind] for kind, names in REQUIRED.items())


def test_values_cannot_break_out() -> None:
    name = TOPICS.name("books", provider="demo", venue="a.b c", symbol="x\ny")
    assert name == "books.demo._61._62_20_63._78_0A_79"


@given(st.lists(st.text(max_size=70), unique=True, min_size=2))
def test_two_symbols_never_share_a_topic(raws: list[str]) -> None:
    assert len({TOPICS.name("quotes", symbol=raw) for raw in raws if raw}) == len([raw for raw in raws if raw])
