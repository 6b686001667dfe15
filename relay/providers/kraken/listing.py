"""The pairs that Kraken offers, over its public REST (`GET /0/public/AssetPairs`)."""

from typing import Any

import msgspec
from msgspec import Struct

from relay.providers.base import Listed, Request
from relay.providers.kraken.options import to_symbol

REST = "https://api.kraken.com"


class _Pair(Struct):
    status: str = ""


class _Answer(Struct):
    error: list[str] = []
    result: dict[str, _Pair] = {}


_decode = msgspec.json.Decoder(_Answer).decode


def request(options: Any) -> Request:
    """Ask for all pairs, under their v2 names. Raises: ValueError where the address is another one without its REST."""
    if options.url and not options.rest_url:
        raise ValueError("the REST side of this url is not known: name it by `rest_url`")
    return Request("symbols", "GET", f"{options.rest_url.rstrip('/') or REST}/0/public/AssetPairs?assetVersion=1")


def read(options: Any, body: bytes) -> list[Listed]:
    """Read the answer. Raises: ValueError where it is none, or an error of Kraken's."""
    try:
        answer = _decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a list of pairs: {error}") from error
    if answer.error:
        raise ValueError(f"Kraken says {'; '.join(answer.error)[:200]}")
    return [
        Listed(raw, options.symbols.get(raw) or to_symbol(raw)[0], active=pair.status in ("", "online"))
        for raw, pair in answer.result.items()
        if "/" in raw and not raw.endswith(".d")  # dark pools are not on the feed
    ]
