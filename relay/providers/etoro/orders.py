"""Order events of eToro's `private` topic (rule R15 of the provider's sheet).

StatusID has four published meanings that contradict each other: errors and executed units decide first, the raw code is
always kept, and `order_states` in the configuration overrides. The customer id is never published.
"""

from decimal import Decimal

from relay import numbers
from relay.model import Order, OrderState
from relay.providers.etoro import wire
from relay.providers.etoro.reference import EtoroShared
from relay.providers.etoro.wire import Object

_STATES: dict[int, OrderState] = {1: "pending", 2: "pending", 11: "pending", 3: "filled", 4: "rejected", 5: "cancelled"}


def order(content: Object, shared: EtoroShared) -> Order | None:
    """Make the message of an order object; None where it has no integer order id."""
    row = wire.ORDER.fold(content)
    order_id = wire.integer(row.get("OrderID"))
    if order_id is None:
        return None
    code = wire.integer(row.get("StatusID"))
    error = wire.text_of(row.get("ErrorCode"))
    failed = error not in ("", "0", "0.0")
    size, filled = wire.amount(row.get("RequestedUnits")), wire.amount(row.get("ExecutedUnits"))
    told = wire.text_of(row.get("ErrorMessage"))
    ident = wire.identifier(row.get("InstrumentID"))
    buy = wire.flag(row.get("IsBuy"))
    kind = row.get("OrderType")
    return Order(
        symbol=shared.order_symbol(ident) if ident else None,
        raw_symbol=ident,
        ts_event=wire.time_ns(row.get("RequestOccurred")) or wire.time_ns(row.get("OpenDateTime")),
        account=shared.account,
        order_id=str(order_id),
        state="rejected" if failed else _state(code, size, filled, shared),
        state_raw=None if code is None else str(code),
        side=None if buy is None else ("buy" if buy else "sell"),
        kind=wire.text_of(kind) or None,
        size=size,
        filled=filled,
        average_price=_rate(row.get("EndRate")) or _rate(row.get("Rate")),
        reason=(f"{told} (error {error})" if told else f"error {error}") if failed else (told or None),
    )


def _state(code: int | None, size: str | None, filled: str | None, shared: EtoroShared) -> OrderState:
    own: dict[str, OrderState] = shared.options.order_states
    if str(code) in own:
        return own[str(code)]
    if code in (4, 5):
        return _STATES[code]
    done = Decimal(filled) if filled else Decimal(0)
    if size and Decimal(size) > 0 and done >= Decimal(size):
        return "filled"
    if done > 0:
        return "partially_filled"
    return _STATES.get(code, "unknown") if code is not None else "unknown"


def _rate(value: object) -> str | None:
    """Give a price, where 0 and what cannot be read stand for none."""
    try:
        return numbers.positive(value)
    except ValueError:
        return None
