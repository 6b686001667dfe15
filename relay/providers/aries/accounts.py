"""Account messages: orders, positions, balances, and what has no struct yet as `account` messages.

The provider's account id never leaves this file: messages carry our label. Numbers inside `data` are text.
"""

from collections.abc import Mapping
from typing import Any

from relay import times
from relay.model import Account, Balance, Order, OrderState, Position, Side
from relay.numbers import number, optional, positive
from relay.providers.aries.market import RAW_CHARS_MAX, event_ns
from relay.providers.aries.tokens import AriesShared
from relay.providers.aries.wire import Envelope, Kind, Payload
from relay.providers.base import Output, reject

CURRENCY = "USD"
"""What the provider's accounts are kept in; a `currency` member wins."""
_STATES: Mapping[str, OrderState] = {
    "PENDING_NEW": "pending",
    "NEW": "open",
    "WORKING": "open",
    "PARTIALLY_FILLED": "partially_filled",
    "FILLED": "filled",
    "REJECTED": "rejected",
    "CANCELED": "cancelled",
    "CANCELLED": "cancelled",
    "EXPIRED": "cancelled",
}
_ORDER_SIDES: Mapping[str, Side] = {"BUY": "buy", "BUY_TO_COVER": "buy", "SELL": "sell", "SELL_SHORT": "sell"}
_PRIVATE = frozenset({"accountId", "tradingAccountId", "account_id", "clientId"})
_PARTS: tuple[tuple[str, Kind], ...] = (
    ("orders", "order"),
    ("positions", "position"),
    ("balance", "balance"),
    ("balances", "balance"),
)


def map_account(
    kind: Kind, payload: Payload, envelope: Envelope, shared: AriesShared, line: bytes, out: list[Output]
) -> None:
    """Map one account message; one that holds several records is taken apart in the order orders to balances."""
    data = payload.data
    if data.__class__ is dict and kind not in ("pnl", "watchlist", "news"):
        parts = [(one, part) for name, one in _PARTS if (part := data.get(name)).__class__ in (list, dict)]
        if parts:
            for one, part in parts:
                for record in part if part.__class__ is list else [part]:
                    _record(one, record, payload, envelope, shared, line, out)
            return
    if kind in ("order", "position", "balance"):
        for record in data if data.__class__ is list else [data]:
            _record(kind, record, payload, envelope, shared, line, out)
        return
    name = kind
    if kind == "account" and payload.type:
        # `account.xyz`: a part of the account stream that nobody has described yet
        name = payload.type.rpartition(".")[2][:50] or kind  # type: ignore[assignment]
    out.append(
        Account(account=shared.account, ts_event=event_ns(None, payload, envelope), kind=name, data=without_ids(data))
    )


def _record(
    kind: Kind, data: Any, payload: Payload, envelope: Envelope, shared: AriesShared, line: bytes, out: list[Output]
) -> None:
    if data.__class__ is not dict:
        out.append(reject("bad_field", f"{kind} is not an object", line, account=shared.account))
        return
    try:
        if kind == "order":
            _order(data, payload, envelope, shared, line, out)
        elif kind == "position":
            _position(data, payload, envelope, shared, line, out)
        else:
            _balance(data, payload, envelope, shared, out)
    except ValueError as error:
        out.append(reject("bad_number", f"{kind}: {error}", line, account=shared.account))


def _order(
    data: dict[str, Any], payload: Payload, envelope: Envelope, shared: AriesShared, line: bytes, out: list[Output]
) -> None:
    raw_state = _text(data, "ordStatus", "status")
    state = _STATES.get((raw_state or "").upper().replace(" ", "_"), "unknown")
    # a cancel has an id of its own: the order that ends is the one it names
    order_id = (_text(data, "origClOrdId") if state == "cancelled" else None) or _text(
        data, "clOrdId", "ordId", "orderId"
    )
    if order_id is None:
        out.append(reject("missing_field", "an order without an id", line, account=shared.account))
        return
    wire = _text(data, "symbol") or payload.symbol
    legs = data.get("legs")
    if legs.__class__ is list and legs:
        # legs have no place in an order message: the whole order follows too, so that nothing is lost
        out.append(
            Account(
                account=shared.account,
                ts_event=event_ns(data.get("updatedAt"), payload, envelope),
                kind="order",
                data=without_ids(data),
            )
        )
        if wire is None:
            return
    if wire is None or len(wire) > RAW_CHARS_MAX:
        out.append(reject("missing_field", "an order without a symbol", line, account=shared.account))
        return
    raw, symbol = shared.names[wire]
    kind = _text(data, "type", "orderType")
    reason = _text(data, "ordRejReason")
    stamp = data.get("updatedAt")
    if times.any_ns(stamp) is None:
        stamp = data.get("transactTime")
    out.append(
        Order(
            account=shared.account,
            symbol=symbol,
            raw_symbol=raw,
            ts_event=event_ns(stamp, payload, envelope),
            order_id=order_id,
            state=state,
            state_raw=raw_state,
            side=_ORDER_SIDES.get((_text(data, "side") or "").upper()),
            kind=kind.lower() if kind else None,
            price=positive(data.get("price")),
            size=optional(_first(data, "qty", "quantity")),
            filled=optional(_first(data, "cumQty", "filledQty")),
            average_price=positive(data.get("avgPrice")),
            reason=reason[:4096] if reason else None,
        )
    )


def _position(
    data: dict[str, Any], payload: Payload, envelope: Envelope, shared: AriesShared, line: bytes, out: list[Output]
) -> None:
    wire = _text(data, "symbol") or payload.symbol
    if wire is None or len(wire) > RAW_CHARS_MAX or data.get("quantity") in (None, ""):
        out.append(reject("missing_field", "a position without symbol or quantity", line, account=shared.account))
        return
    raw, symbol = shared.names[wire]
    out.append(
        Position(
            account=shared.account,
            symbol=symbol,
            raw_symbol=raw,
            ts_event=event_ns(None, payload, envelope),
            size=number(data["quantity"]),
            average_price=positive(data.get("averagePrice")),
            unrealized=optional(data.get("unrealizedPl")),
        )
    )


def _balance(
    data: dict[str, Any], payload: Payload, envelope: Envelope, shared: AriesShared, out: list[Output]
) -> None:
    total, available = optional(data.get("totalEquity")), optional(data.get("settledFunds"))
    if total is None and available is None:
        return  # an update of members that a balance message does not carry
    out.append(
        Balance(
            account=shared.account,
            ts_event=event_ns(None, payload, envelope),
            currency=_text(data, "currency") or CURRENCY,
            total=total,
            available=available,
        )
    )


def without_ids(data: Any) -> Any:
    """Leave the provider's account and customer ids out of a document, at any depth."""
    if data.__class__ is dict:
        return {name: without_ids(value) for name, value in data.items() if name not in _PRIVATE}
    if data.__class__ is list:
        return [without_ids(value) for value in data]
    return data


def _first(data: dict[str, Any], *names: str) -> Any:
    """The first of these members that is there and not empty."""
    return next((data[name] for name in names if data.get(name) not in (None, "")), None)


def _text(data: dict[str, Any], *names: str) -> str | None:
    value = _first(data, *names)
    if value.__class__ is int:
        return str(value)
    return value if isinstance(value, str) and value.strip() else None
