"""Providers' words as log lines: one for each thing, bounded."""

from typing import Any

from relay.model import Status
from relay.saying import LINES_MAX, WINDOW_NS, Saying

NOW = 1_772_359_200_000_000_000


def said(*statuses: Status, step_ns: int = 0) -> list[tuple[str, str, dict[str, Any]]]:
    lines: list[tuple[str, str, dict[str, Any]]] = []
    saying = Saying(lambda level, text, **fields: lines.append((level, text, fields)))
    for number, status in enumerate(statuses):
        saying("p", "1", status, NOW + number * step_ns)
    return lines


def test_a_line_holds_what_is_known() -> None:
    until = NOW + 3_600_000_000_000
    (line,) = said(Status(event="quota", code="q", text="used up", until=until, action="wait"))
    fields = {"provider": "p", "connection": "1", "code": "q", "why": "used up", "next": "wait"}
    assert line == ("warning", "quota", fields | {"until": line[2]["until"]})
    assert line[2]["until"].startswith("2026-03-01T11:00:00")


def test_the_same_is_said_once_a_minute_and_what_comes_by_symbol_not_at_all() -> None:
    once = said(*(Status(event="notice", text="again") for _ in range(50)), Status(event="market", open=False))
    assert len(once) == 1
    twice = said(*(Status(event="notice", text="again") for _ in range(3)), step_ns=WINDOW_NS // 2)
    assert [line[1] for line in twice] == ["notice", "more was said than is logged", "notice"]
    assert twice[1][2]["left_out"] == 1


def test_a_flood_is_bounded_and_counted() -> None:
    lines = said(*(Status(event="notice", text=str(n)) for n in range(500)))
    assert len(lines) == LINES_MAX
    more = said(*(Status(event="notice", text=str(n)) for n in range(500)), step_ns=WINDOW_NS // 400)
    assert next(line for line in more if "more was said" in line[1])[2]["left_out"] == 400 - LINES_MAX
