"""The pairs that Kraken offers, over its public REST (`GET /0/public/AssetPairs`)."""

from typing import Any

import msgspec
from msgspec import Struct

from relay.providers.base import Listed, Listing, Request
from relay.providers.kraken.options import to_raw, to_symbol

REST = "https://api.kraken.com"


class _Pair(Struct):
    wsname: str | None = None
    """The v1 feed's name: `XBT/USD` for what v2 calls `BTC/USD`."""
    status: str = ""


class _Answer(Struct):
    error: list[str] = []
    result: dict[str, _Pair] = {}


_decode = msgspec.json.Decoder(_Answer).decode


def _request(options: Any, base: str, prefix: str) -> Request:
    return Request("symbols", "GET", f"{(base or REST).rstrip('/')}/0/public/AssetPairs")


def _read(options: Any, body: bytes) -> list[Listed]:
    answer = _decode(body)
    if answer.error:
        raise ValueError(f"Kraken says {'; '.join(answer.error)[:200]}")
    out = []
    for pair in answer.result.values():
        symbol = to_symbol(pair.wsname)[0] if pair.wsname else ""
        raw = to_raw(symbol) if symbol else None
        if raw is not None:  # dark pools have no name on the feed
            out.append(Listed(raw, options.symbols.get(raw) or symbol, active=pair.status in ("", "online")))
    return out


LISTING = Listing(_request, _read)
