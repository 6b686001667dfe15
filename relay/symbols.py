"""Canonical symbols: charset `[A-Z0-9._-]`, at most 64 characters, and never two raw symbols onto one by escaping.

`BTC-USD` is a pair, `AAPL` an equity; what is not spot says so behind it: `-PERP`, `-IDX`, `-YYYYMMDD`,
`-YYYYMMDD-STRIKE-C`. Characters outside the charset, and the escape character `_` itself, are written as `_` and two
hex digits a byte, so that the escape can be undone and no two raw symbols meet.
"""

import hashlib
import re

SYMBOL_CHARS_MAX = 64
_PLAIN = re.compile(r"[A-Z0-9.-]{1,64}")
_PLAIN_CHARS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
_DIGEST_CHARS = 16


def escape(raw: str) -> str:
    """Write any text in the symbol charset; injective up to the length bound, a hash suffix behind it.

    Lower-case letters are escaped too: providers exist whose symbols differ by case alone. Empty text gives `_`.
    """
    if _PLAIN.fullmatch(raw):
        return raw
    text = "".join(chr(b) if b in _PLAIN_CHARS else f"_{b:02X}" for b in raw.encode("utf-8", "surrogatepass")) or "_"
    if len(text) <= SYMBOL_CHARS_MAX:
        return text
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS].upper()
    # `_.` cannot come out of the escape above, so a shortened name never meets a short one
    return f"{text[: SYMBOL_CHARS_MAX - _DIGEST_CHARS - 2]}_.{digest}"


def unescape(symbol: str) -> str:
    """Undo `escape` for what was not shortened. Raises: ValueError for a shortened or foreign text."""
    if "_." in symbol:
        raise ValueError(f"a shortened symbol cannot be undone: {symbol}")
    if symbol == "_":
        return ""
    out = bytearray()
    parts = symbol.split("_")
    out += parts[0].encode()
    for part in parts[1:]:
        out += bytes.fromhex(part[:2]) + part[2:].encode()
    raw = out.decode("utf-8", "surrogatepass")
    if escape(raw) != symbol:
        raise ValueError(f"not an escaped symbol: {symbol}")
    return raw


def pair(base: str, quote: str) -> str:
    """`BTC`, `USD` to `BTC-USD`."""
    return escape(f"{base}-{quote}")


def perpetual(base: str, quote: str) -> str:
    """`BTC`, `USDT` to `BTC-USDT-PERP`."""
    return escape(f"{base}-{quote}-PERP")


def index(name: str) -> str:
    """`SPX` to `SPX-IDX`."""
    return escape(f"{name}-IDX")


def future(name: str, yyyymmdd: str) -> str:
    """`ETH-USD`, `20260327` to `ETH-USD-20260327`."""
    return escape(f"{name}-{yyyymmdd}")


def option(name: str, yyyymmdd: str, strike: str, right: str) -> str:
    """`MSFT`, `20260619`, `450`, `C` to `MSFT-20260619-450-C`."""
    return escape(f"{name}-{yyyymmdd}-{strike}-{right}")


def is_symbol(text: str) -> bool:
    """Tell whether a text can stand as a canonical symbol as it is (what a config's own map may name)."""
    return bool(re.fullmatch(r"[A-Z0-9._-]{1,64}", text))
