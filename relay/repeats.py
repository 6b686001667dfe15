"""Log lines that come again and again: a few are written, the rest is counted and said once. Pure.

A provider that is down for a day is tried a thousand times; its log has a line a minute, with how often it was tried.
"""

from collections.abc import Callable
from typing import Any

WINDOW_SECS = 60.0
WRITTEN = 3
"""Lines of one kind that are written in a window, before the others are counted."""
KINDS_MAX = 500
"""Kinds of lines that are told apart at one time; what comes beyond is written as it is."""

_SAME = ("provider", "connection", "topic", "why", "code")
"""Fields that make a line another one. The rest (when it goes on, how much waits) may differ."""


class Repeats:
    """Stands before `event(level, text, **fields)`. Call `flush` now and then. `monotonic` gives seconds."""

    def __init__(self, event: Callable[..., None], monotonic: Callable[[], float]) -> None:
        self._event, self._monotonic = event, monotonic
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def __call__(self, level: str, text: str, **fields: Any) -> None:
        """Write a line, or count it."""
        key = (level, text, *(str(fields.get(name, "")) for name in _SAME))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) < KINDS_MAX:
                self._kinds[key] = _Kind(self._monotonic())
            self._event(level, text, **fields)
            return
        if kind.written < WRITTEN:
            kind.written += 1
            self._event(level, text, **fields)
            return
        kind.left_out += 1
        kind.last = (level, text, fields)

    def flush(self) -> None:
        """Say what was left out in windows that are over."""
        over = self._monotonic() - WINDOW_SECS
        for key, kind in list(self._kinds.items()):
            if kind.begun > over:
                continue
            del self._kinds[key]
            if kind.last is not None:
                level, text, fields = kind.last
                self._event(level, text, **fields, repeated=kind.left_out)
                self._kinds[key] = again = _Kind(self._monotonic())
                again.written = WRITTEN  # it goes on: a line a window


class _Kind:
    __slots__ = ("begun", "last", "left_out", "written")

    def __init__(self, begun: float) -> None:
        self.begun, self.written, self.left_out = begun, 1, 0
        self.last: tuple[str, str, dict[str, Any]] | None = None
