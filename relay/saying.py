"""What providers say, as log lines: one for each thing that happened, bounded, never one a message. Pure."""

from collections.abc import Callable, Mapping

from relay.model import Status, StatusEvent
from relay.times import iso

LINES_MAX = 20
"""Lines of one provider in WINDOW_NS; a provider that says an error a second must not fill the disk."""
WINDOW_NS = 60_000_000_000

PHRASES: Mapping[StatusEvent, tuple[str, str]] = {
    "authenticated": ("info", "logged in"),
    "subscribed": ("debug", "subscribed"),
    "unsubscribed": ("debug", "unsubscribed"),
    "refused": ("warning", "refused"),
    "quota": ("warning", "quota"),
    "degraded": ("warning", "degraded"),
    "notice": ("info", "notice"),
    "renewed": ("info", "renewed"),
    "handover": ("info", "handover"),
    "recovered": ("info", "recovered"),
}
"""Level and phrase by event; the others are not logged: they come by symbol, or the bridge says them itself."""


class Saying:
    """The log lines of all providers. `event(level, text, **fields)` writes one."""

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event
        self._begun: dict[str, int] = {}
        self._lines: dict[str, dict[tuple[str | None, ...], int]] = {}

    def __call__(self, provider: str, connection: str, status: Status, now_ns: int) -> None:
        """Write a line for a status, unless the same was written a moment ago."""
        phrase = PHRASES.get(status.event)
        if phrase is None:
            return
        lines = self._lines.setdefault(provider, {})
        if now_ns - self._begun.get(provider, 0) >= WINDOW_NS:
            self._begun[provider] = now_ns
            left_out = sum(lines.values()) - len(lines)
            lines.clear()
            if left_out > 0:
                self._event("info", "more was said than is logged", provider=provider, left_out=left_out)
        same: tuple[str | None, ...] = (
            connection,
            status.event,
            status.code,
            status.channel,
            status.raw_symbol,
            status.text,
        )
        if same in lines or len(lines) >= LINES_MAX:
            same = same if same in lines else next(reversed(lines))
            lines[same] += 1
            return
        lines[same] = 1
        level, text = phrase
        fields = {
            "code": status.code,
            "channel": status.channel,
            "symbol": status.raw_symbol,
            "why": status.text,
            "until": iso(status.until) if status.until is not None else None,
            "next": status.action,
        }
        self._event(level, text, provider=provider, connection=connection, **{k: v for k, v in fields.items() if v})
