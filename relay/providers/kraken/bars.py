"""Kraken's bars: published as they run, and once more as final when a later one or the time shows it."""

from collections.abc import Iterable

from relay import numbers, times
from relay.model import Bar
from relay.providers.base import SymbolTable
from relay.providers.kraken.options import INTERVALS
from relay.providers.kraken.wire import BarData

GRACE_NS = 10_000_000_000
"""Behind its end a bar is final after this long: late trades have come by then."""
_MINUTE_NS = 60_000_000_000

Slot = tuple[str, str]
"""(raw symbol, interval)."""


class Bars:
    """The running bar of each symbol and interval. `closed` outlives the session: starts of the last final bars."""

    def __init__(self, symbols: SymbolTable, closed: dict[Slot, int]) -> None:
        self._symbols, self._closed = symbols, closed
        self._running: dict[Slot, Bar] = {}

    def forget(self, raw: str, interval: str) -> None:
        self._running.pop((raw, interval), None)
        self._closed.pop((raw, interval), None)

    def read(self, row: BarData) -> Bar:
        """Map one row. The row's own `timestamp` is the end of its interval and is not looked at.

        Raises: ValueError where it is no bar.
        """
        interval = INTERVALS.get(row.interval)
        if interval is None:
            raise ValueError(f"{row.interval} minutes are no interval")
        try:
            start = times.iso_ns(row.interval_begin)
        except TypeError:
            start = None
        if start is None:
            raise ValueError("no time of its beginning")
        symbol, venue = self._symbols[row.symbol]
        prices = [numbers.number(one) for one in (row.open, row.high, row.low, row.close)]
        volume, vwap = numbers.optional(row.volume), numbers.positive(row.vwap)
        if any(one[0] == "-" for one in prices) or (volume is not None and volume[0] == "-"):
            raise ValueError("a number below zero")
        return Bar(
            symbol=symbol, raw_symbol=row.symbol, venue=venue, interval=interval, start=start,
            end=start + row.interval * _MINUTE_NS, open=prices[0], high=prices[1], low=prices[2], close=prices[3],
            volume=volume, vwap=vwap, trades=row.trades if row.trades.__class__ is int and row.trades >= 0 else None,
            closed=False,
        )  # fmt: skip

    def snapshot(self, bars: Iterable[Bar]) -> list[Bar]:
        """Take past bars and the running one. History before the first session is not published; what ended while
        the connection was away is."""
        out: list[Bar] = []
        slots: dict[Slot, list[Bar]] = {}
        for bar in bars:
            slots.setdefault((bar.raw_symbol or "", bar.interval), []).append(bar)
        for slot, run in slots.items():
            run.sort(key=lambda one: one.start)
            last = self._closed.get(slot)
            if last is not None:
                out += [self._final(slot, bar) for bar in run[:-1] if bar.start > last]
            elif len(run) > 1:
                # the base line of what follows
                self._closed[slot] = run[-2].start
            out += self._take(slot, run[-1])
        return out

    def update(self, bars: Iterable[Bar]) -> list[Bar]:
        """Take updates of the running bar; the first of the next one closes it."""
        out: list[Bar] = []
        for bar in bars:
            out += self._take((bar.raw_symbol or "", bar.interval), bar)
        return out

    def tick(self, now_ns: int) -> list[Bar]:
        """Close what has ended: a market without trades sends no later bar."""
        due = [(slot, bar) for slot, bar in self._running.items() if now_ns >= bar.end + GRACE_NS]
        return [self._final(slot, bar) for slot, bar in due]

    def _take(self, slot: Slot, bar: Bar) -> list[Bar]:
        out: list[Bar] = []
        held = self._running.get(slot)
        if held is not None and bar.start > held.start:
            out.append(self._final(slot, held))
        if bar.start <= self._closed.get(slot, -1) or (held is not None and bar.start < held.start):
            # a correction of what is final
            bar.closed = True
        else:
            self._running[slot] = bar
        out.append(bar)
        return out

    def _final(self, slot: Slot, bar: Bar) -> Bar:
        """Give the last state of a bar as a new message: what went out is not changed any more."""
        if self._running.get(slot) is bar:
            del self._running[slot]
        self._closed[slot] = max(bar.start, self._closed.get(slot, 0))
        return Bar(
            symbol=bar.symbol, raw_symbol=bar.raw_symbol, venue=bar.venue, interval=bar.interval, start=bar.start,
            end=bar.end, open=bar.open, high=bar.high, low=bar.low, close=bar.close, volume=bar.volume,
            vwap=bar.vwap, trades=bar.trades, closed=True,
        )  # fmt: skip
