"""Wire times to ns: every digit up to the ninth survives, and "no time" is none."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import times
from relay.times import any_ns, decimal_seconds_ns, epoch_ns, interval_ns, iso, iso_ns

T = 1_772_359_201_000_000_000
"""2026-03-01T10:00:01Z."""
SECONDS = st.integers(0, times.NS_MAX // 10**9 - 86_400 * 2)


def written(seconds: int, fraction: str, hours: int = 0) -> str:
    """An exact reference: whole seconds by datetime, the fraction as text."""
    zone = timezone(timedelta(hours=hours))
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    text = moment.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S") + ("." + fraction if fraction else "")
    return text + (f"{hours:+03d}:00" if hours else "Z")


@given(SECONDS, st.text("0123456789", max_size=12), st.integers(-12, 14))
def test_iso_is_exact_to_nine_digits(seconds: int, fraction: str, hours: int) -> None:
    want = seconds * 10**9 + int(fraction[:9].ljust(9, "0"))
    for _ in range(2):  # the second time from the cache
        assert iso_ns(written(seconds, fraction, hours)) == want


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-03-01T10:00:01Z", T),
        ("2026-03-01T10:00:01.1Z", T + 100_000_000),
        ("2026-03-01T10:00:01.127510Z", T + 127_510_000),
        ("2026-03-01T10:00:01.1275109Z", T + 127_510_900),
        ("2026-03-01T10:00:01.127510987Z", T + 127_510_987),
        ("2026-03-01T10:00:01.1275109879999Z", T + 127_510_987),
        ("2026-03-01T10:00:01.123000000Z", T + 123_000_000),
        ("2026-03-01T10:00:01", T),
        ("2026-03-01 10:00:01.5", T + 500_000_000),
        ("2026-03-01t10:00:01z", T),
        ("2026-03-01T10:00:01,5Z", T + 500_000_000),
        ("2026-03-01T12:00:01+02:00", T),
        ("2026-03-01T12:30:01.5+0230", T + 500_000_000),
        ("2026-03-01T09:00:01-01", T),
        ("2026-03-01T10:00:01 UTC", T),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_spellings_of_iso_times(text: str, ns: int) -> None:
    assert [iso_ns(text), iso_ns(text)] == [ns, ns]


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00+01:00", "9999-12-31T23:59:59Z",
     "9999-12-31T23:59:59.123Z", "2262-04-11T23:47:17Z", "2262-04-11T23:47:16.9Z"],
)  # fmt: skip
def test_no_time(text: str) -> None:
    assert [iso_ns(text), iso_ns(text), any_ns(text)] == [None, None, None]


@pytest.mark.parametrize(
    "text",
    ["", "x", "yesterday", "2026-03-01", "2026-03-01T10:00", "2026-13-01T10:00:01Z", "2026-03-01T25:00:01Z",
     "2026-03-01T10:00:01.Z", "2026-03-01T10:00:01.", "2026-03-01T10:00:01.12x4Z", "2026-03-01T10:00:01.１Z",
     "2026-03-01T10:00:01ZZ", "2026-03-01T10:00:01.1_0Z", "2026-03-01T10:00:01.-1Z", "2026-03-01T10:00+01",
     "2026-03-01T10+01:00", "2026-03-01T100000.1", "2026-03-01T10:00:01+25:00", "2026-03-01T10:00:01+01:60",
     "2026-03-01T10:00:01." + "1" * 40 + "Z"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        iso_ns(text)
    assert any_ns(text) is None


@given(st.text("0123456789-:.,TtZz+ UTC", max_size=40) | st.text(max_size=40))
def test_any_text_gives_a_time_or_a_value_error(text: str) -> None:
    try:
        ns = iso_ns(text)
    except ValueError:
        return
    assert ns is None or 0 <= ns <= times.NS_MAX


def test_the_cache_is_bounded_and_right_after_it_was_emptied() -> None:
    for second in range(2 * times._CACHE_MAX + 10):
        assert iso_ns(written(T // 10**9 + second, "25")) == T + second * 10**9 + 250_000_000
    assert max(len(times._seconds), len(times._dotted)) <= times._CACHE_MAX
    assert iso_ns(written(T // 10**9, "25")) == T + 250_000_000


@pytest.mark.parametrize("value", [T // 10**9, T // 10**6, T // 10**3, T])
def test_unit_of_an_epoch_number_is_told_by_its_size(value: int) -> None:
    assert epoch_ns(value) == any_ns(value) == any_ns(str(value)) == T


@pytest.mark.parametrize(
    "value",
    [None, True, False, -1, 1.5, "", " ", "x", "-5", "1.5", "9" * 20, 2**63, 99_999_999_999, "99999999999", [], {}],
)
def test_any_gives_none_for_what_is_no_time(value: Any) -> None:
    assert any_ns(value) is None


def test_any_takes_text_with_blanks() -> None:
    assert any_ns(" 2026-03-01T10:00:01Z ") == T


@given(st.integers(0, times.NS_MAX))
def test_decimal_seconds_are_exact(ns: int) -> None:
    seconds, fraction = divmod(ns, 10**9)
    assert decimal_seconds_ns(f"{seconds}.{fraction:09d}") == ns
    assert decimal_seconds_ns(f"{seconds}.{fraction:09d}999") == ns
    assert decimal_seconds_ns(str(seconds)) == seconds * 10**9


@pytest.mark.parametrize(
    "text", ["", ".", ".5", "-1.5", "1.-5", "1.5x", "1_0", "1.5_0", "1e9", " 1", "１", "9" * 10, "9" * 50]
)
def test_decimal_seconds_refuse_what_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        decimal_seconds_ns(text)


@pytest.mark.parametrize(
    ("interval", "seconds"), [("1s", 1), ("5m", 300), ("1h", 3600), ("4h", 14_400), ("1d", 86_400), ("1w", 604_800)]
)
def test_interval(interval: str, seconds: int) -> None:
    assert interval_ns(interval) == seconds * 10**9


@pytest.mark.parametrize("interval", ["", "m", "1", "0m", "05m", "1M", "1y", "-1m", "1.5h", "１m", "1 m"])
def test_interval_without_a_fixed_length(interval: str) -> None:
    with pytest.raises(ValueError):
        interval_ns(interval)


@given(st.integers(0, times.NS_MAX))
def test_iso_comes_back(ns: int) -> None:
    assert iso_ns(iso(ns)) == ns


def test_iso_writes_as_many_digits_as_it_needs() -> None:
    tails = {0: "01Z", 500_000_000: "01.500Z", 127_510_000: "01.127510Z", 1: "01.000000001Z"}
    assert {extra: iso(T + extra)[17:] for extra in tails} == tails
