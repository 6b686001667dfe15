"""eToro's JSON: names in any case, numbers as text or number, times in several forms, booleans as text.

Pure reading; nothing here knows a session. Rules R4, R6, R7, R8 and R18 of the provider's sheet.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from relay import model, numbers, times
from relay.providers.base import reject

Object: TypeAlias = dict[str, Any]

decode = msgspec.json.Decoder(Any, float_hook=str).decode
"""JSON to plain objects; numbers with a point or exponent stay the text that they were."""
BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `decode` raises for what is not JSON (or is nested too deep)."""


class Names:
    """The documented spelling of the names of one kind of object."""

    def __init__(self, names: Iterable[str]) -> None:
        self._documented = frozenset(names)
        self._by_lower = {name.lower(): name for name in self._documented}

    def fold(self, value: Object) -> Object:
        """Give the object with its names as documented; where two spellings meet, the documented one wins."""
        if value.keys() <= self._documented:
            return value
        out: Object = {}
        for key, item in value.items():
            name = self._by_lower.get(key.lower(), key)
            if name == key or (name not in value and name not in out):
                out[name] = item
        return out


TOP = Names(
    "messages id success operation errorCode errorMessage type topic content data channels code message retryAfter "
    "instrumentId instrument symbol bid ask last lastExecution priceRateID ts price size quantity units amount side "
    "tradeId interval open high low close volume time fromDate date bids asks".split()
)
INNER = Names("topic content data id type".split())
RATE = Names(
    "Ask Bid LastExecution Date PriceRateID InstrumentID NewUnitMargin UnitMarginAsk UnitMarginBid BidDiscounted "
    "AskDiscounted UnitMarginBidDiscounted UnitMarginAskDiscounted ConversionRateAsk ConversionRateBid IsMarketOpen "
    "IsExchangeOpen IsInstrumentActive AllowBuy AllowSell OfficialClosingPrice DailyClose IsOfficialClosingPrice "
    "MaxPositionUnits AvailabilityReason DelayedAsk DelayedBid".split()
)
ORDER = Names(
    "OrderID OrderType StatusID CID InstrumentID RequestedUnits ExecutedUnits EndRate Rate NetProfit CloseReason "
    "ErrorCode ErrorMessage PendingClosePositionIDs PositionID RequestOccurred OpenDateTime IsBuy".split()
)


def price(value: Any) -> str | None:
    """Give a price above 0 as text; None where it is absent (null, empty). Raises: ValueError for anything else."""
    if value is None or value == "":
        return None
    text = numbers.number(value)
    if text[0] == "-" or numbers.is_zero(text):
        raise ValueError("a price is above 0")
    return text


def last_price(value: Any) -> str | None:
    """As `price`, but 0 and below mean that there is no last price any more: given as empty text."""
    if value is None or value == "":
        return None
    text = numbers.number(value)
    return "" if text[0] == "-" or numbers.is_zero(text) else text


def amount(value: Any) -> str | None:
    """Give a number as text, None where it is absent or cannot be read (for fields that decide nothing)."""
    try:
        return numbers.optional(value)
    except ValueError:
        return None


def time_ns(value: Any) -> int | None:
    """Give ns of ISO text or an epoch number of any unit, fractions included; None where it cannot be read."""
    found = times.any_ns(value)
    if found is not None or value.__class__ is not str:
        return found
    try:
        text = numbers.number(value)
    except ValueError:
        return None
    whole, _, fraction = text.partition(".")
    if whole[0] == "-" or len(whole) > 19:
        return None
    unit = times.epoch_ns(1) if int(whole) == 0 else times.epoch_ns(int(whole)) // int(whole)
    return int(whole) * unit + int(fraction[:9].ljust(9, "0")) * unit // 1_000_000_000


def flag(value: Any) -> bool | None:
    """Give true or false, also from text in any case; None for anything else."""
    if value is True or value is False:
        return bool(value)
    if value.__class__ is str:
        return {"true": True, "false": False}.get(value.strip().lower())
    return None


def integer(value: Any) -> int | None:
    """Give an integer from a number or a text of digits (`604.0` too); None for anything else."""
    if value.__class__ is int:
        return int(value)
    if value.__class__ is str:
        text = value.strip().removesuffix(".0")
        if text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 20:
            return int(text)
    return None


def identifier(value: Any) -> str | None:
    """Give an instrument id as text of digits; None for what is not an integer above 0."""
    found = integer(value)
    return str(found) if found is not None and found > 0 else None


def rate_id(value: Any) -> str | None:
    """Give a PriceRateID as text: digits as sent, a float loses its fraction, other text is kept."""
    if value is None or value == "":
        return None
    if value.__class__ is str:
        head, point, tail = value.partition(".")
        return head if point and head.isdecimal() and not tail.strip("0123456789") else value
    return str(value)


def text_of(value: Any) -> str:
    """Give a code or a message as one line of bounded text; empty where there is none."""
    return "" if value is None else " ".join(str(value)[:500].split())


def unwrap(content: Any) -> Object | None:
    """Give the object of a message's content: an object, or JSON text of one, wrapped at most twice.

    Raises: one of BROKEN where the text is not JSON.
    """
    for _ in range(2):
        if content.__class__ is not str:
            break
        content = decode(content.strip("\x00 \t\r\n"))
    return content if isinstance(content, dict) else None


_CUSTOMER = re.compile(rb"(cid\\*\"\s*:\s*\\*\"?)[0-9]+", re.IGNORECASE)


def rejected(reason: model.RejectReason, detail: str, frame: bytes, **header: Any) -> model.Reject:
    """Build a reject whose frame holds no customer id."""
    return reject(reason, detail, _CUSTOMER.sub(rb"\1***", frame), **header)
