"""Canonical symbols: the charset holds, escapes can be undone, no two raw symbols meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import symbols
from relay.symbols import SYMBOL_CHARS_MAX, escape, is_symbol, unescape

RAW = st.text(max_size=90) | st.text("AZaz09._-/ é", max_size=90) | st.text(st.characters(categories=["Cs", "Lu"]))


@given(RAW)
def test_escape_gives_a_symbol(raw: str) -> None:
    assert is_symbol(escape(raw))


@given(RAW)
def test_escape_can_be_undone(raw: str) -> None:
    symbol = escape(raw)
    if "_." in symbol:
        assert len(raw.encode("utf-8", "surrogatepass")) > SYMBOL_CHARS_MAX // 3
        with pytest.raises(ValueError):
            unescape(symbol)
    else:
        assert unescape(symbol) == raw


@given(st.lists(RAW, unique=True, min_size=2))
def test_two_raw_symbols_never_meet(raws: list[str]) -> None:
    assert len({escape(raw) for raw in raws}) == len(raws)


@pytest.mark.parametrize(
    "pair", [("", "_"), ("a", "_61"), ("BTC/USD", "BTC_2FUSD"), ("x" * 40, "x" * 41), ("Aa", "AA"), ("A", "A ")]
)
def test_likely_clashes_do_not_meet(pair: tuple[str, str]) -> None:
    assert escape(pair[0]) != escape(pair[1])


@given(RAW, st.lists(RAW, min_size=1, max_size=3))
def test_a_symbol_escaped_again_does_not_meet_it(raw: str, others: list[str]) -> None:
    """What is already escaped may come as a raw symbol of its own."""
    for other in others:
        assert escape(escape(raw)) != escape(other) or escape(raw) == other


@pytest.mark.parametrize("raw", ["BTC-USD", "BARC.L", "SPX-IDX", "MSFT-20260619-450-C", "1001", "A" * 64])
def test_plain_symbols_stay(raw: str) -> None:
    assert escape(raw) == raw == unescape(raw)


def test_escapes_are_bytes_in_hex() -> None:
    assert escape("BTC/USD") == "BTC_2FUSD"
    assert escape("eur") == "_65_75_72"
    assert escape("a_b") == "_61_5F_62"
    assert escape("É") == "_C3_89"
    assert escape("") == "_"


def test_long_symbols_keep_their_head_and_a_digest() -> None:
    long = "A" * 100
    assert escape(long).startswith("A" * 46 + "_.") and len(escape(long)) == SYMBOL_CHARS_MAX
    assert escape(long) == escape(long) != escape(long + "A")


@pytest.mark.parametrize(
    "text", ["__", "_4", "_ZZ", "_2f", "_41", "abc", "A B", "A_", "_ 4", "_FF", "A_.0123456789ABCDEF"]
)
def test_foreign_text_is_not_undone(text: str) -> None:
    with pytest.raises(ValueError):
        unescape(text)


def test_names_of_each_class() -> None:
    assert symbols.pair("BTC", "USD") == "BTC-USD"
    assert symbols.perpetual("BTC", "USDT") == "BTC-USDT-PERP"
    assert symbols.index("SPX") == "SPX-IDX"
    assert symbols.future("ETH-USD", "20260327") == "ETH-USD-20260327"
    assert symbols.option("MSFT", "20260619", "450", "C") == "MSFT-20260619-450-C"
    assert symbols.pair("bt/c", "USD") == "_62_74_2F_63-USD"


@pytest.mark.parametrize("text", ["", "btc", "A B", "A/B", "A" * 65, "A\n", "É"])
def test_not_a_symbol(text: str) -> None:
    assert not is_symbol(text)
