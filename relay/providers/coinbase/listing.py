"""The products that Coinbase offers, over its public REST (`GET /products`)."""

from typing import Any

import msgspec
from msgspec import Struct

from relay import symbols
from relay.providers.base import Listed, Request

REST = "https://api.exchange.coinbase.com"


class _Product(Struct):
    id: str
    status: str = ""
    trading_disabled: bool = False


_decode = msgspec.json.Decoder(list[_Product]).decode


def request(options: Any) -> Request:
    """Ask for all products. Raises: ValueError where the address is another one without its REST."""
    if options.url and not options.rest_url:
        raise ValueError("the REST side of this url is not known: name it by `rest_url`")
    # it refuses calls that name no program
    headers = {"accept": "application/json", "user-agent": "market-relay"}
    return Request("symbols", "GET", f"{options.rest_url.rstrip('/') or REST}/products", headers)


def read(options: Any, body: bytes) -> list[Listed]:
    """Read the answer. Raises: ValueError where it is no list of products."""
    try:
        products = _decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a list of products: {error}") from error
    return [
        Listed(
            one.id,
            options.symbols.get(one.id) or symbols.escape(one.id),
            active=one.status in ("", "online") and not one.trading_disabled,
        )
        for one in products
    ]


def to_raw(symbol: str) -> str:
    """`BTC-USD` is `BTC-USD`. Raises: ValueError where it is no pair of two assets."""
    base, _, quote = symbol.partition("-")
    if not base or not quote or "-" in quote or "_" in symbol:
        raise ValueError(f"{symbol!r} is no pair of two assets, such as BTC-USD")
    return symbol
