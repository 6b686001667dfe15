"""One order book: exact text per level, sorted by price, checked by what its provider declares. Pure.

Never gives out a book that it doubts: a delta that does not fit leaves the book empty until the next snapshot.
What it gives out is cut to a window of levels a side, and each result is complete in itself: levels that come into
the window by another's removal are in it, levels pushed out of it are in it with size 0.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from relay.model import Level
from relay.numbers import number

SCALE = 18
"""Prices are compared as integers of this many decimals; longer ones as fractions, slower and as exact."""
KEYS_CACHED_MAX = 65_536
"""Price texts a side whose key is remembered: the levels of a large book come and go."""
REPEAT_WINDOW = 10_000
"""A number this much below the last one is late or repeated; further below, the provider started its count anew."""
_ALL = 1 << 60

State = Literal["syncing", "good", "doubted"]
Key = int | Fraction


class Checksum(NamedTuple):
    """A provider's checksum: how many levels a side it covers, and its rule.

    `of(bids, asks)` gets at most `levels` levels a side, best first, with the texts of the wire.
    """

    levels: int
    of: Callable[[Sequence[Level], Sequence[Level]], int]


class Doubt(NamedTuple):
    """Why a book cannot be trusted any more: a short code, and a readable line."""

    code: str
    text: str


class Applied(NamedTuple):
    """What changed inside the window: best first, absolute sizes, 0 removes, each price once. May be empty."""

    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


def level(price: Any, size: Any) -> Level:
    """Read one level of the wire. Raises: ValueError where either is no number, or is below what it can be."""
    price_text, size_text = number(price), number(size)
    if price_text[0] == "-" or not price_text.strip("0."):
        raise ValueError(f"a price that is not above zero: {price_text}")
    if size_text[0] == "-":
        raise ValueError(f"a size below zero: {size_text}")
    return price_text, size_text


def key_of(price: str) -> Key:
    """Give the number that a plain decimal text stands for, scaled: equal prices in any spelling, equal keys."""
    whole, _, fraction = price.partition(".")
    if len(fraction) <= SCALE:
        return int(whole + fraction.ljust(SCALE, "0"))
    scaled: Fraction = Fraction(price) * 10**SCALE
    return scaled


class _Side:
    """Levels of one side. `keys` ascend and the best is last (asks are negated): most changes happen near the end."""

    __slots__ = ("_cache", "_sign", "keys", "levels")

    def __init__(self, sign: int) -> None:
        self.keys: list[Key] = []
        self.levels: dict[Key, Level] = {}
        self._sign = sign
        self._cache: dict[str, Key] = {}

    def _key(self, price: str) -> Key:
        cache = self._cache
        if len(cache) >= KEYS_CACHED_MAX:
            cache.clear()
        key: Key = self._sign * key_of(price)
        cache[price] = key
        return key

    def clear(self) -> None:
        self.keys, self.levels = [], {}

    def replace(self, rows: Iterable[Level], depth: int) -> None:
        """Take a whole side; a price that comes twice counts as it came last, size 0 is no level."""
        levels: dict[Key, Level] = {}
        cached, make = self._cache.get, self._key
        for row in rows:
            price, size = row
            key = cached(price)
            if key is None:
                key = make(price)
            if size.strip("0."):
                levels[key] = row
            else:
                levels.pop(key, None)
        keys = sorted(levels)
        if len(keys) > depth:
            for key in keys[:-depth]:
                del levels[key]
            del keys[:-depth]
        self.keys, self.levels = keys, levels

    def apply(self, rows: Iterable[Level], depth: int, window: int) -> tuple[Level, ...]:
        """Take changes in order, then cut to `depth`; give what changed among the best `window`, best first."""
        keys, levels, cached = self.keys, self.levels, self._cache.get
        seen: dict[Key, Level] = {}
        for row in rows:
            price, size = row
            key = cached(price)
            if key is None:
                key = self._key(price)
            held = key in levels
            if size.strip("0."):
                levels[key] = row
                if held:
                    if len(keys) <= window or key >= keys[-window]:
                        seen[key] = row
                    continue
                if not keys or key > keys[-1]:
                    keys.append(key)
                    behind = 0
                else:
                    at = bisect_left(keys, key)
                    keys.insert(at, key)
                    behind = len(keys) - 1 - at
                if behind < window:
                    seen[key] = row
                    if len(keys) > window:
                        left = keys[-window - 1]
                        seen[left] = (levels[left][0], "0")
            elif held:
                del levels[key]
                at = bisect_left(keys, key)
                del keys[at]
                if len(keys) - at < window:
                    seen[key] = row
                    if len(keys) >= window:
                        come = keys[-window]
                        seen[come] = levels[come]
        if len(keys) > depth:
            for key in keys[:-depth]:
                del levels[key]
            del keys[:-depth]
        if len(seen) > 1:
            return tuple([seen[key] for key in sorted(seen, reverse=True)])
        return tuple(seen.values())

    def top(self, count: int) -> tuple[Level, ...]:
        """The best levels, best first."""
        levels = self.levels
        return tuple([levels[key] for key in reversed(self.keys[-count:])])


class Book:
    """The book of one symbol. `state`: syncing (no snapshot yet), good, doubted (a snapshot must come)."""

    __slots__ = ("_asks", "_bids", "_check", "_depth", "_first", "_may_cross", "_window", "crossed", "number", "state")

    def __init__(
        self, depth: int | None = None, check: Checksum | None = None, *, window: int | None = None,
        may_cross: bool = False,
    ) -> None:  # fmt: skip
        """`depth`: the provider's cut, levels a side; `window`: what is given out; None: all of it."""
        self._depth = depth or _ALL
        self._window = min(window or _ALL, self._depth)
        self._check = check
        self._may_cross = may_cross
        self._bids, self._asks = _Side(1), _Side(-1)
        self.crossed = False
        """Being crossed is the provider's word (an auction), and no doubt until the book has uncrossed."""
        self._first = False  # the next delta is the first behind a snapshot
        self.number: int | None = None
        """The provider's number of the last update in the book, where it numbers them."""
        self.state: State = "syncing"

    def snapshot(
        self, bids: Iterable[Level], asks: Iterable[Level], number: int | None = None, checksum: int | None = None
    ) -> Doubt | None:
        """Replace the whole book; None: it is good now."""
        self._bids.replace(bids, self._depth)
        self._asks.replace(asks, self._depth)
        self.number, self._first = number, True
        doubt = self._doubt(checksum)
        if doubt is None:
            self.state = "good"
        return doubt

    def delta(
        self, bids: Iterable[Level], asks: Iterable[Level], first: int | None = None, last: int | None = None,
        prev: int | None = None, checksum: int | None = None,
    ) -> Applied | Doubt | None:  # fmt: skip
        """Change a good book by absolute sizes; None: not applied, it is contained already (late or repeated).

        Numbers, where there are: the update covers `first` to `last` (`first` left out: `last` alone), and `prev` is
        what the provider says was the last number before it.
        """
        if last is not None:
            held = self.number
            if held is not None:
                follows = prev == held if prev is not None else (last if first is None else first) == held + 1
                if not follows or last <= held:
                    odd = self._odd(last if first is None else first, last, prev, held)
                    if odd is not None:
                        return None if odd is _REPEAT else odd
            self.number, self._first = last, False
        depth, window = self._depth, self._window
        changed_bids = self._bids.apply(bids, depth, window) if bids else ()
        changed_asks = self._asks.apply(asks, depth, window) if asks else ()
        doubt = self._doubt(checksum)
        return Applied(changed_bids, changed_asks) if doubt is None else doubt

    def _odd(self, first: int, last: int, prev: int | None, held: int) -> Doubt | None:
        """Numbers that do not simply follow; None: they fit all the same."""
        if last <= held:
            if held - last < REPEAT_WINDOW:
                return _REPEAT
            return self.doubt("sequence_reset", f"{last} after {held}")
        if self._first and first <= held + 1:
            return None  # the snapshot lies inside this update
        if prev is not None:
            return self.doubt("sequence_jump", f"{first} follows {prev}, the book is at {held}")
        if first <= held:
            return self.doubt("sequence_overlap", f"{first} to {last} after {held}")
        return self.doubt("sequence_jump", f"{first} after {held}: {first - held - 1} missing")

    def doubt(self, code: str, text: str) -> Doubt:
        """Throw the book away: what it says cannot be trusted until the next snapshot."""
        self._bids.clear()
        self._asks.clear()
        self.number, self.state = None, "doubted"
        return Doubt(code, text)

    def _doubt(self, checksum: int | None) -> Doubt | None:
        """Check what can be checked of the present state."""
        check = self._check
        if checksum is not None and check is not None:
            own = check.of(self._bids.top(check.levels), self._asks.top(check.levels))
            # a right checksum is the provider's word, also for a crossed book
            return None if own == checksum else self.doubt("checksum", f"checksum {own}, the provider's is {checksum}")
        if self._may_cross:
            return None
        bids, asks = self._bids.keys, self._asks.keys
        if not bids or not asks or bids[-1] < -asks[-1]:
            self.crossed = False
        elif not self.crossed:
            bid, ask = self.top()
            assert bid is not None and ask is not None
            return self.doubt("crossed", f"bid {bid[0]} at or above ask {ask[0]}")
        return None

    # -- reading -------------------------------------------------------------------------------------------------

    def top(self) -> tuple[Level | None, Level | None]:
        """The best bid and ask."""
        bids, asks = self._bids, self._asks
        return (
            bids.levels[bids.keys[-1]] if bids.keys else None,
            asks.levels[asks.keys[-1]] if asks.keys else None,
        )

    def levels(self, count: int | None = None) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """Bids and asks, best first, at most `count` a side; None: the window."""
        window = self._window if count is None else count
        return self._bids.top(window), self._asks.top(window)

    def reach(self, count: int) -> tuple[Level | None, Level | None]:
        """The levels at this rank, the best is 1; None where a side has fewer."""
        bids, asks = self._bids, self._asks
        return (
            bids.levels[bids.keys[-count]] if len(bids.keys) >= count else None,
            asks.levels[asks.keys[-count]] if len(asks.keys) >= count else None,
        )

    def __len__(self) -> int:
        """Levels held, both sides together."""
        return len(self._bids.keys) + len(self._asks.keys)


_REPEAT = Doubt("repeat", "")
