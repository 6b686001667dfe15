"""The symbols that CoinAPI offers, over REST (`GET /v1/symbols`): with a key, by their beginning; all are too many."""

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from relay.providers.base import Listed, Listing, Request
from relay.providers.coinapi.asking import KEY_URL
from relay.providers.coinapi.names import to_symbol

REST = "https://rest.coinapi.io"


class _Symbol(Struct):
    symbol_id: str
    symbol_type: str | None = None


_decode = msgspec.json.Decoder(list[_Symbol]).decode


def _request(options: Any) -> Request:
    raise ValueError("CoinAPI has millions of symbols: say how they begin, as in 'KRAKEN_SPOT_*'")


def _narrowed(options: Any, prefix: str) -> Request:
    if not options.api_key or options.api_key == "simulated":
        raise ValueError(f"it lists its symbols with a key only: get one at {KEY_URL}, export COINAPI_API_KEY")
    url = f"{options.rest_url.rstrip('/') or REST}/v1/symbols?filter_symbol_id={quote(prefix)}"
    return Request("symbols", "GET", url, {"X-CoinAPI-Key": options.api_key, "accept": "application/json"}, b"", 60.0)


def _read(options: Any, body: bytes) -> list[Listed]:
    out = []
    for one in _decode(body):
        symbol, venue = to_symbol(one.symbol_id)
        kind = (one.symbol_type or "").lower()
        out.append(
            Listed(one.symbol_id, options.symbols.get(one.symbol_id) or symbol, " ".join(filter(None, (venue, kind))))
        )
    return out


LISTING = Listing(_request, _read, _narrowed)
