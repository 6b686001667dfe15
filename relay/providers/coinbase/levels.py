"""Coinbase's book rows to levels, one by one: a broken row is told beside the good ones."""

import re
from collections.abc import Sequence
from typing import Any

from relay.books import level
from relay.model import Level

_VENUES_OWN = re.compile(r"-?[0-9]+\.-[0-9]+")
"""`0.-10000`: how the venue itself writes the size of a level now and then, seen by recorders; it says nothing."""


def sides(message_bids: Sequence[Any], message_asks: Sequence[Any]) -> tuple[list[Level], list[Level], list[str], int]:
    """Read the rows of a snapshot; the third list says what is wrong with those left out, the number how many of them
    are broken otherwise than the venue's own bad sizes are."""
    wrong: list[str] = []
    strange = 0
    out: list[list[Level]] = []
    for rows in (message_bids, message_asks):
        good: list[Level] = []
        for row in rows:
            try:
                good.append(level(row[0], row[1]))
            except (ValueError, TypeError, LookupError) as error:
                wrong.append(f"{str(row)[:100]}: {error}")
                own = isinstance(row, list) and len(row) > 1 and isinstance(row[1], str)
                strange += not (own and _VENUES_OWN.fullmatch(row[1]))
        out.append(good)
    return out[0], out[1], wrong, strange


def changes(rows: Sequence[Any]) -> tuple[list[Level], list[Level], list[str]]:
    """Read the changes of an update into bids and asks, each in order; the third list says what is wrong."""
    wrong: list[str] = []
    bids: list[Level] = []
    asks: list[Level] = []
    for row in rows:
        try:
            side, price, size = row
            if side == "buy":
                bids.append(level(price, size))
            elif side == "sell":
                asks.append(level(price, size))
            else:
                wrong.append(f"{str(row)[:100]}: side is neither buy nor sell")
        except (ValueError, TypeError) as error:
            wrong.append(f"{str(row)[:100]}: {error}")
    return bids, asks, wrong
