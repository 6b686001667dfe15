"""Wire numbers to plain decimal text, digit for digit; never through a float.

JSON numbers reach us as text by `float_hook=str` on a decoder whose number fields are typed `Any` (integers arrive
as `int`, which is exact); strings arrive as they are. `number` takes all of them. What cannot be a price is refused
with ValueError: NaN, infinities, a million digits, 1e999999999.
"""

import re
from typing import Any

from relay.model import NUMBER_CHARS_MAX

EXPONENT_MAX = 60
"""Largest exponent that is written out, either way: no price or size needs more."""

_FORM = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,3}))?")
_INT_MAX = 10 ** (NUMBER_CHARS_MAX - 1)  # a sign fits too
_DIGITS = "0123456789"


def number(value: Any) -> str:
    """Give the plain decimal text of one wire number (text, int, or the text that a float hook kept).

    Raises: ValueError where it is not a finite decimal number of reasonable length; also for bool and None.
    """
    if value.__class__ is str:
        rest = value.strip(_DIGITS)
        # the fast way: digits point digits, or digits
        if rest == ".":
            if value[0] != "." and value[-1] != "." and len(value) <= NUMBER_CHARS_MAX:
                return value
        elif not rest and value and len(value) <= NUMBER_CHARS_MAX:
            return value
        return _slow(value)
    if value.__class__ is int:
        if -_INT_MAX < value < _INT_MAX:
            return str(value)
        raise ValueError(f"number of {NUMBER_CHARS_MAX} digits or more")
    raise ValueError(f"not a number: {type(value).__name__}")


def _slow(text: str) -> str:
    """Signs, exponents, surrounding blanks, missing digits around the point."""
    if len(text) > NUMBER_CHARS_MAX + 20:
        raise ValueError(f"number of {len(text)} characters")
    match = _FORM.fullmatch(text.strip(" \t\r\n"))
    if not match:
        raise ValueError(f"not a decimal number: {text[:40]!r}")
    sign, digits, exponent = match.groups()
    whole, _, fraction = digits.partition(".")
    if exponent:
        power = int(exponent)
        if abs(power) > EXPONENT_MAX:
            raise ValueError(f"exponent out of range: {text[:40]!r}")
        if power >= 0:
            fraction = fraction.ljust(power, "0")
            whole, fraction = whole + fraction[:power], fraction[power:]
        else:
            whole = whole.rjust(-power, "0")
            whole, fraction = whole[:power], whole[power:] + fraction
        whole = whole.lstrip("0")
    out = (whole or "0") + ("." + fraction if fraction else "")
    if len(out) >= NUMBER_CHARS_MAX:
        raise ValueError(f"number of {len(out)} characters")
    return "-" + out if sign == "-" else out


def optional(value: Any) -> str | None:
    """As `number`; None and empty text give None."""
    return None if value is None or value == "" else number(value)


def is_zero(text: str) -> bool:
    """Tell whether a plain decimal text is zero in any spelling: 0, 0.00, -0.0."""
    return not text.strip("-0.")


def positive(value: Any) -> str | None:
    """As `optional`; zero and negative numbers give None (they stand for "unknown" at several providers)."""
    text = optional(value)
    return None if text is None or text[0] == "-" or is_zero(text) else text
