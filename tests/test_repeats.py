"""Repeated log lines: a few are written, the rest is counted, nothing is forgotten."""

from typing import Any

from relay.repeats import KINDS_MAX, WINDOW_SECS, WRITTEN, Repeats


class Log:
    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.repeats = Repeats(lambda level, text, **fields: self.lines.append((level, text, fields)), lambda: self.now)


def test_day_of_refused_connects_is_a_line_a_minute_with_its_count() -> None:
    log = Log()
    for second in range(600):
        log.now = float(second)
        log.repeats("warning", "connection refused", provider="a", connection="1", next=f"again in {second} s")
        log.repeats.flush()
    log.now = 10_000.0
    log.repeats.flush()
    assert len(log.lines) == WRITTEN + 600 / WINDOW_SECS
    assert sum(fields.get("repeated", 1) for _, _, fields in log.lines) == 600, "each is written or counted"
    assert log.lines[-1][2]["next"] == "again in 599 s", "the newest of those left out speaks for them"
    log.now = 20_000.0
    log.repeats.flush()
    log.repeats("warning", "connection refused", provider="a", connection="1")
    assert log.lines[-1] == ("warning", "connection refused", {"provider": "a", "connection": "1"}), "all begins anew"


def test_other_lines_are_never_held_back() -> None:
    log = Log()
    for provider in ("a", "b"):
        for text in ("x", "y"):
            for level in ("info", "error"):
                for _ in range(10):
                    log.repeats(level, text, provider=provider)
    assert len(log.lines) == 8 * WRITTEN
    for number in range(2 * KINDS_MAX):
        log.repeats("info", f"text {number}")
    assert len(log.lines) == 8 * WRITTEN + 2 * KINDS_MAX
