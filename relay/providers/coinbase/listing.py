"""The products that Coinbase offers, over its public REST (`GET /products`)."""

from typing import Any

import msgspec
from msgspec import Struct

from relay import symbols
from relay.providers.base import Listed, Listing, Request

REST = "https://api.exchange.coinbase.com"


class _Product(Struct):
    id: str
    status: str = ""
    trading_disabled: bool = False


_decode = msgspec.json.Decoder(list[_Product]).decode


def _request(options: Any, base: str, prefix: str) -> Request:
    # it refuses calls that name no program
    headers = {"accept": "application/json", "user-agent": "market-relay"}
    return Request("symbols", "GET", f"{(base or REST).rstrip('/')}/products", headers)


def _read(options: Any, body: bytes) -> list[Listed]:
    return [
        Listed(
            one.id,
            options.symbols.get(one.id) or symbols.escape(one.id),
            active=one.status in ("", "online") and not one.trading_disabled,
        )
        for one in _decode(body)
    ]


def to_raw(symbol: str, venue: str = "") -> str | None:
    """`BTC-USD` is `BTC-USD`; None where it is no pair of two assets."""
    base, _, quote = symbol.partition("-")
    return symbol if base and quote and "-" not in quote and "_" not in symbol else None


LISTING = Listing(_request, _read)
