"""Decimal text: digit for digit, and nothing that is no price."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import codec, numbers
from relay.model import NUMBER_CHARS_MAX, Number, Rate

read = msgspec.json.Decoder(float_hook=str).decode
as_number = msgspec.json.Decoder(Number).decode


def is_published(text: str) -> bool:
    """Whether it passes the pattern and the bound of the published type."""
    try:
        as_number(msgspec.json.encode(text))
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("61250.58", "61250.58"),
        ("0.00000001", "0.00000001"),
        ("10101.80000000", "10101.80000000"),
        ("12345678901234.56789", "12345678901234.56789"),
        ("-1.50", "-1.50"),
        ("+1.50", "1.50"),
        ("1e-08", "0.00000001"),
        ("1.5E3", "1500"),
        ("1.23e1", "12.3"),
        ("0e5", "0"),
        ("-1E-2", "-0.01"),
        (".5", "0.5"),
        ("5.", "5"),
        (" 7 ", "7"),
        ("1e60", "1" + "0" * 60),
        (0, "0"),
        (-7, "-7"),
        (2**70, str(2**70)),
    ],
)
def test_number_is_written_out(wire: Any, text: str) -> None:
    assert numbers.number(wire) == text


@pytest.mark.parametrize(
    "wire",
    ["", " ", ".", "-", "+", "e5", "1e", "NaN", "nan", "inf", "-Infinity", "1,5", "1_000", "0x10", "1.2.3", "--1",
     "１２", "0.-10000", "1e61", "1e-61", "1e999999999", "9" * 101, "9" * 1_000_000, "1" * 60 + "e50",
     10**100, 10**5000, None, True, False, 1.5, b"1", [], {}],
    ids=lambda wire: repr(wire)[:20] if not isinstance(wire, int) else "a large integer",
)  # fmt: skip
def test_what_cannot_be_a_price_is_refused(wire: Any) -> None:
    with pytest.raises(ValueError):
        numbers.number(wire)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("-1e30"), max_value=Decimal("1e30")))
def test_any_spelling_keeps_its_value(value: Decimal) -> None:
    for spelling in (str(value), f"{value:f}", f"{value:e}", f"{value:E}"):
        try:
            text = numbers.number(spelling)
        except ValueError:
            assert len(f"{value:f}") > 60  # only what is absurdly long may be refused
            continue
        assert Decimal(text) == Decimal(spelling)
        assert is_published(text)


@given(st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,30})?", fullmatch=True))
def test_plain_digits_are_kept_as_they_are(text: str) -> None:
    assert numbers.number(text) == text


@given(st.integers() | st.integers(min_value=10**98, max_value=10**100) | st.integers(max_value=-(10**98)))
def test_integers_are_exact_or_refused(value: int) -> None:
    try:
        text = numbers.number(value)
    except ValueError:
        assert abs(value) >= 10**99
    else:
        assert int(text) == value and is_published(text)


@given(st.text())
def test_any_text_gives_a_published_number_or_a_value_error(text: str) -> None:
    try:
        number = numbers.number(text)
    except ValueError:
        return
    assert is_published(number)


@given(st.text("0123456789.eE+- ", max_size=140))
def test_whatever_looks_like_a_number_is_published_or_refused(text: str) -> None:
    test_any_text_gives_a_published_number_or_a_value_error.hypothesis.inner_test(text)


@pytest.mark.parametrize("wire", ["0.1", "12345678901234.56789", "1e-8", "100", "0.10"])
def test_json_numbers_reach_the_stream_without_a_float(wire: str) -> None:
    value = numbers.number(read(wire))
    assert Decimal(value) == Decimal(wire)
    assert f'"value":"{value}"'.encode() in codec.encode(Rate(kind="mark", value=value))


def test_optional_takes_nothing_for_absent() -> None:
    assert [numbers.optional(one) for one in (None, "", "0", 0, "1.0")] == [None, None, "0", "0", "1.0"]
    with pytest.raises(ValueError):
        numbers.optional(" ")


def test_positive_takes_zero_and_less_for_absent() -> None:
    nothing = (None, "", 0, "0", "0.00", "-0.0", "-1", -1, "0e5")
    assert [numbers.positive(one) for one in nothing] == [None] * len(nothing)
    assert numbers.positive("0.00000001") == "0.00000001"
    with pytest.raises(ValueError):
        numbers.positive("x")


@pytest.mark.parametrize("text", ["0", "0.0", "0.", "-0.00", "00"])
def test_zero_in_any_spelling(text: str) -> None:
    assert numbers.is_zero(text)


@pytest.mark.parametrize("text", ["0.01", "10", "-1", "0.00000001"])
def test_not_zero(text: str) -> None:
    assert not numbers.is_zero(text)


def test_the_bound_is_that_of_the_model() -> None:
    assert numbers.number("9" * NUMBER_CHARS_MAX) == "9" * NUMBER_CHARS_MAX
    with pytest.raises(ValueError):
        numbers.number("9" * (NUMBER_CHARS_MAX + 1))
