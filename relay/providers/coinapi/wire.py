"""CoinAPI's frames as they stand on the wire, their fields, and what is wrong with one that cannot be used."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from relay.errors import HandshakeRefused, SessionError, SubscribeRefused
from relay.model import Level, Reject, RejectReason
from relay.numbers import is_zero, number, optional
from relay.providers.base import reject
from relay.providers.coinapi.names import SYMBOL_CHARS_MAX
from relay.times import interval_ns, iso_ns

NEW_KEY_SECS = 600.0
"""A new key is refused at some sites for 5 to 10 minutes."""
TEXT_CHARS_MAX = 2000
DEPTH_OF = {"book5": 5, "book20": 20, "book50": 50}
UNIT_OF = {"SEC": "s", "MIN": "m", "HRS": "h", "DAY": "d"}


class UnknownType(ValueError):
    """A frame of a type that no sheet names."""


class WireLevel(Struct, gc=False):
    price: Any = None
    size: Any = None


_Text = Annotated[str, Meta(max_length=256)] | None
_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)] | str | None


class Wire(Struct, gc=False):
    """Any message, names as on the wire. One struct of all fields, those of a live trade first, in their order: it
    costs a trade 60 ns more than a struct of its own, and a tagged union 120 (which reads twice when the tag is last).
    """

    time_exchange: str | None = None
    uuid: _Text = None
    price: Any = None
    size: Any = None
    taker_side: str | None = None
    ask_price: Any = None
    ask_size: Any = None
    bid_price: Any = None
    bid_size: Any = None
    symbol_id: str | None = None
    sequence: _Number = None
    is_snapshot: Any = None
    asks: list[WireLevel] | None = None
    bids: list[WireLevel] | None = None
    type: str = ""
    period_id: str | None = None
    time_period_start: str | None = None
    time_period_end: str | None = None
    price_open: Any = None
    price_high: Any = None
    price_low: Any = None
    price_close: Any = None
    volume_traded: Any = None
    trades_count: Any = None
    asset_id_base: _Text = None
    asset_id_quote: _Text = None
    time: str | None = None
    rate: Any = None
    within_seconds: Any = None
    before_time: Any = None
    message: Any = None


decode = msgspec.json.Decoder(Wire, float_hook=str).decode

_NUMBERS: dict[str, tuple[str, ...]] = {
    "trade": ("price", "size"),
    "quote": ("ask_price", "ask_size", "bid_price", "bid_size"),
    "ohlcv": ("price_open", "price_high", "price_low", "price_close", "volume_traded"),
    "exrate": ("rate",),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "trade": ("symbol_id", "price", "size"),
    "quote": ("symbol_id",),
    "book": ("symbol_id", "is_snapshot", "sequence"),
    "ohlcv": ("symbol_id", "time_period_start", "time_period_end"),
    "exrate": ("asset_id_base", "asset_id_quote", "rate"),
}


# -- fields ------------------------------------------------------------------------------------------------------


def sequence_of(value: int | str | None) -> int | None:
    """Numbers as text are accepted. Raises: ValueError where it is none, or too long."""
    if value is None or isinstance(value, int):
        return value
    if value.isascii() and value.isdecimal() and len(value) <= 18:
        return int(value)
    raise ValueError("a sequence that is no number")


def above_zero(value: Any) -> str | None:
    """0 stands for "unknown", null and absent too. Raises: ValueError for the rest that is no positive number."""
    if value is None:
        return None
    text = number(value)
    if text[0] == "-":
        raise ValueError("a negative price or size")
    return None if text[0] == "0" and is_zero(text) else text


def levels_of(levels: list[WireLevel] | None) -> tuple[Level, ...]:
    """Give one side of a book as it came. Raises: ValueError where one level cannot be read: no book in part."""
    if not levels:
        return ()
    out = tuple([(number(level.price), number(level.size)) for level in levels])
    for price, size in out:
        if price[0] == "-" or size[0] == "-":
            raise ValueError("a negative price or size")
    return out


_PERIOD = re.compile(r"([1-9][0-9]{0,5})([A-Z]{1,8})")


def interval_of(period: str | None, length_ns: int) -> str:
    """`1MIN` to `1m`; without a period id, by the bar's length."""
    if period:
        match = _PERIOD.fullmatch(period)
        if not match:
            raise ValueError("a period_id that cannot be read")
        count, unit = match.groups()
        return count + UNIT_OF.get(unit, unit.lower())
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(length_ns, interval_ns("1" + unit))
        if count and not rest:
            return f"{count}{unit}"
    raise ValueError("a bar of no whole second")


# -- what cannot be used -----------------------------------------------------------------------------------------


def broken(data: bytes, error: Exception) -> Reject:
    """Say why a frame did not decode."""
    try:
        if isinstance(error, RecursionError):
            raise error
        document = msgspec.json.decode(data)
    except RecursionError:
        return reject("too_deep", "nested too deeply", data)
    except ValueError as cause:
        return reject("not_json", str(cause), data)
    if not isinstance(document, dict):
        return reject("not_object", f"a JSON {type(document).__name__}", data)
    if not isinstance(document.get("type"), str):
        return reject("missing_field", "type", data)
    return reject("bad_field", str(error), data)


def explain(wire: Wire, data: bytes, error: Exception) -> Reject:
    """Say which field of a decoded frame was unusable; the slow way, for the dead-letter topic."""
    kind, reason, detail = wire.type, "bad_field", str(error)
    if not kind:
        return reject("missing_field", "type", data)
    if isinstance(error, UnknownType):
        return reject("unknown_type", kind[:100], data)
    missing = [name for name in _REQUIRED.get(kind, ("symbol_id",)) if getattr(wire, name) is None]
    if missing:
        reason, detail = "missing_field", ", ".join(missing)
    elif wire.symbol_id is not None and not 0 < len(wire.symbol_id) <= SYMBOL_CHARS_MAX:
        reason = "bad_symbol"
    else:
        for name in _NUMBERS.get(kind, ()):
            try:
                negative = (optional(getattr(wire, name)) or "0")[0] == "-"
            except ValueError as cause:
                negative, detail = True, str(cause)
            if negative:
                reason, detail = "bad_number", f"{name}: {detail}"
                break
        else:
            for name in ("time_exchange", "time_period_start", "time_period_end", "time"):
                try:
                    iso_ns(getattr(wire, name) or "1970-01-01T00:00:00Z")
                except ValueError as cause:
                    reason, detail = "bad_time", f"{name}: {cause}"
                    break
    name_of: dict[str, Any] = {"raw_symbol": wire.symbol_id} if wire.symbol_id and reason != "bad_symbol" else {}
    return reject(_reason(reason), f"{kind}: {detail}", data, **name_of)


def _reason(text: str) -> RejectReason:
    return text  # type: ignore[return-value]


_OURS = re.compile(
    r"subscribe_|filter|\bfields?\b|data[ _]?type|\bjson\b|\bparse|deseriali|unknown value|malformed", re.IGNORECASE
)
_PLAN = re.compile(r"limit|quota|concurren|subscription|exceed|too many", re.IGNORECASE)


def refusal(text: str) -> SessionError:
    """Turn the text of an error frame into what must follow; CoinAPI has no codes, and closes after each of them."""
    text = text[:TEXT_CHARS_MAX]
    lower = text.lower()
    if "invalid api key" in lower:
        return HandshakeRefused(
            f"{text} (a new key takes up to 10 minutes to reach every site)",
            code="invalid_api_key", action="slow", wait_secs=60.0, limit_secs=NEW_KEY_SECS,
        )  # fmt: skip
    if "maximum allowed buffered messages" in lower:
        return SessionError(
            f"{text} (read too slowly: subscribe to less, or give the relay more CPU)", code="slow_reader"
        )
    if _OURS.search(text):
        return SubscribeRefused(text, code="bad_request", action="fatal")
    if _PLAN.search(text):
        return SubscribeRefused(text, code="plan_limit", action="slow", wait_secs=60.0)
    return SessionError(text or "an error without a message", code="error")
