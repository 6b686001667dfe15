"""What `relay top`, `status` and `health` show and answer, as functions of a status document and from a real relay."""

import io
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from relays import Process
from rich.cells import cell_len
from rich.console import Console

from relay.__main__ import main
from relay.cli._top import SORTS, View, lines, press, room_for_topics, size, span, value

NOW = 1_772_359_200_000_000_000


def provider(name: str, state: str = "up", **more: Any) -> dict[str, Any]:
    link = {"label": "1", "state": state, "since": NOW - 90_000_000_000, "connects": 1, "opened": 1}
    if state != "up":
        link |= {"why": "127.0.0.1:9: connection refused", "next": NOW + 7_900_000_000, "connects": 4}
    return {
        "name": name, "type": name, "title": name, "simulated": False, "connections": [link], "rate": 0.0,
        "frames_rate": 0.0, "last": NOW - 100_000_000, "published": 1, "gaps": 0, "missing": 0, "rejects": 0,
        "repeats": 0, "topics": 1, "stale": 0,
    } | more  # fmt: skip


def topic(name: str, *, stale: bool = False, rate: float | None = 1.0, **last: Any) -> dict[str, Any]:
    last = {"type": "trade", "ts_recv": NOW - 250_000_000, "price": "61250.58", "size": "0.005", "side": "buy"} | last
    return {
        "name": name, "kind": "trades", "provider": "coinapi", "count": 1234, "rate": rate, "waiting": 0,
        "stale": stale, "last": last,
    }  # fmt: skip


def document(topics: int = 40, **more: Any) -> dict[str, Any]:
    """One provider at 10,000 msg/s, one down, one stale; 10,000 topics of which a page is there."""
    found = [topic(f"trades.A{i:05d}-EUR") for i in range(topics)]
    found[:1] = [topic("quotes.BTC-USD", stale=True, type="quote", bid="1.10", ask="1.11", ts_recv=NOW - 69 * 10**9)]
    return {
        "relay": "t", "version": "0.1.0", "run": NOW // 10**6 - 3_725_000, "now": NOW, "ready": True, "why": "ready",
        "stopping": False, "cpu_secs": 5.0, "memory_bytes": 80 << 20,
        "loop_lag_ms": {"p50": 0.5, "p99": 50.0, "max": 61.0}, "receipt_to_stored_ms": {"p50": 1.0, "p99": 5.0},
        "reloads": {}, "loaded": NOW,
        "redis": {
            "url": "redis://127.0.0.1:6379", "bundled": False, "state": "flowing", "calls": 10,
            "call_ms": {"p50": 0.5, "p99": 5.0, "max": 9.0}, "entries": 5, "bytes": 5, "connects": 1, "errors": {},
        },
        "outbox": {"bytes": 4096, "bytes_max": 1 << 26, "entries": 9, "full": False, "blocked": []},
        "providers": [
            provider("coinapi", rate=10_012.4, topics=9_998),
            provider("coinbase", stale=2),
            provider("tickatlas", "waiting", last=None, quota=98_760),
        ],
        "topics": found, "topics_matching": 10_000, "topics_total": 10_000,
    } | more  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 10), (500, 200)])
def test_screen_fits_and_tells_the_three_states_apart(width: int, height: int) -> None:
    doc, view = document(200), View()
    page = lines(doc, view, width, height)
    assert len(page) == height
    assert all(cell_len(line.plain) <= width for line in page)
    if width < 80:
        return
    text = "\n".join(line.plain for line in page)
    assert "READY" in text and "10,012" in text
    (down,) = [line.plain for line in page if "tickatlas" in line.plain]
    assert "WAITING" in down and "again in" in down
    (stale,) = [line.plain for line in page if "quotes.BTC-USD" in line.plain]
    assert "STALE" in stale and "69s" in stale and "1.10 / 1.11" in stale
    shown = sum("trades.A" in line.plain or "quotes.BTC" in line.plain for line in page)
    assert shown == room_for_topics(doc, view, height) > height // 3
    assert f"1-{shown} of 10,000 topics by rate" in page[-1].plain
    assert page[-1].plain.endswith("q quit" if width > 120 else " q")
    if width >= 200:
        assert "connection refused" in down and "98,760" in down


def test_screen_says_the_same_without_colour() -> None:
    printed = []
    for plain in (True, False):
        out = io.StringIO()
        console = Console(file=out, width=80, force_terminal=True, color_system=None if plain else "standard")
        for line in lines(document(), View(), 80, 24):
            console.print(line)
        printed.append(out.getvalue())
    assert "\x1b[32m" in printed[1] and "\x1b" not in printed[0]
    for word in ("READY", "UP", "WAITING", "STALE"):
        assert word in printed[0]


def test_many_connections_leave_room_for_topics() -> None:
    doc = document(100, providers=[provider(f"p{i}") for i in range(100)])
    page = lines(doc, View(), 80, 24)
    assert any("more connections" in line.plain for line in page)
    shown = sum("trades.A" in line.plain or "quotes.BTC" in line.plain for line in page)
    assert shown == room_for_topics(doc, View(), 24) > 3


def test_trouble_blocked_topics_and_a_full_outbox_are_said() -> None:
    outbox = {"bytes": 1 << 26, "bytes_max": 1 << 26, "entries": 9, "full": True}
    blocked = [{"topic": "trades.X", "why": "OWNED other"}]
    doc = document(outbox=outbox | {"blocked": blocked}, ready=False, why="no feed is live")
    view = View(trouble="the relay does not answer", paused=True)
    text = "\n".join(line.plain for line in lines(doc, view, 120, 24))
    for said in ("NOT READY: no feed is live", "FULL", "trades.X: OWNED other", "does not answer", "PAUSED"):
        assert said in text, said


def test_foreign_text_is_shown_and_not_obeyed() -> None:
    evil = "\x1b[2J\x07\u202eabc"
    doc = document(
        providers=[provider("x", "waiting", connections=[{**provider("x", "waiting")["connections"][0], "why": evil}])]
    )
    doc["topics"] = [topic("t", type="status", event="gap", text=evil)]
    text = "".join(line.plain for line in lines(doc, View(), 200, 24))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_keys_sort_filter_page_pause_and_quit() -> None:
    view = View()

    def key(*pressed: str) -> str:
        return [press(view, one, ["a", "b"], 10, 25) for one in pressed][-1]

    assert (key(" "), view.paused, key(" "), view.paused) == ("draw", True, "ask", False)
    assert (key("down"), view.offset, key("down"), view.offset) == ("ask", 10, "ask", 20)
    assert (key("down"), view.offset, key("up"), view.offset) == ("ask", 20, "ask", 10)
    assert (key("end"), view.offset, key("home"), view.offset) == ("ask", 20, "ask", 0)
    assert (key("end", "s"), view.sort, view.offset) == ("ask", "age", 0)
    assert [key("s") and view.sort for _ in SORTS] == ["count", "name", "rate", "age"]
    assert [key("p") and view.provider for _ in range(3)] == ["a", "b", ""]
    assert (key("/"), view.typing) == ("draw", True)
    assert (key("q", "x", "\x7f"), view.filter) == ("ask", "q")
    assert (key("\n"), view.typing, view.filter) == ("ask", False, "q")
    assert (key("\x1b"), view.filter) == ("ask", "")
    assert key("z") == "draw" and key("q") == "quit"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"type": "quote", "bid": "1", "bid_size": "5", "ask": "2", "ask_size": "6"}, "1 / 2  5 x 6"),
        ({"type": "quote", "ask": "2"}, "- / 2"),
        ({"type": "quote", "mid": "1.5"}, "mid 1.5"),
        ({"type": "trade", "price": "3"}, "3"),
        ({"type": "trade", "price": "3", "size": "2", "side": "sell"}, "sell 2 @ 3"),
        ({"type": "bar", "open": "1", "high": "4", "low": "0", "close": "2", "closed": True}, "o 1 h 4 l 0 c 2 v -"),
        ({"type": "book_delta", "bids": [["1", "9"]], "asks": []}, "delta 1+0 levels  9@1 / -"),
        ({"type": "status", "event": "gap", "reason": "disconnect"}, "gap disconnect"),
        ({"type": "rate", "kind": "exchange", "value": "1.1", "seq": 4}, "kind exchange value 1.1"),
    ],
)
def test_last_values_are_short_words(message: dict[str, Any], text: str) -> None:
    assert value(message) == text


def test_times_and_sizes_keep_to_their_columns() -> None:
    assert [span(s) for s in (-1, 0.04, 9.94, 10, 119, 120, 7199, 7200, 86400 * 3, 86400 * 400)] == [
        "0.0s", "0.0s", "9.9s", "10s", "119s", "2m", "119m", "2h", "3d", "400d",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1024, 5 << 20, 5 << 30)] == ["0 B", "999 B", "1 KiB", "5 MiB", "5.0 GiB"]


def test_health_and_status_of_a_relay_by_exit_code_and_json(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "relay.yaml"
    head = f"state_dir: {tmp_path}/state\nredis: {{url: {redis_url}}}\nhttp: {{enabled: true, port: 0}}\n"
    file.write_text(head + "providers: {coinbase: {simulate: true, trades: [BTC-USD]}}\n")

    def run(*args: str) -> Any:
        return CliRunner().invoke(main, [*args, "-c", str(file)])

    assert run("health").exit_code == 1, "nobody runs"
    assert "no relay answers" in run("status").output
    with Process(tmp_path, "run", "-c", str(file)) as relay:
        relay.until(lambda: run("health", "--ready").exit_code == 0)
        assert json.loads(run("health", "--json").output) == {"ok": True, "text": "ok"}
        relay.until(lambda: "trades.BTC-USD" in run("status").output)
        found = json.loads(run("status", "--json", "--filter", "trades").output)
        assert [t["name"] for t in found["topics"]] == ["sim.trades.BTC-USD"]
        assert found["topics"][0]["last"]["origin"] == "simulated" and found["providers"][0]["rate"] is not None
        assert run("top").exit_code == 2, "it needs a terminal"
        assert relay.stop() == 0
    assert not (tmp_path / "state" / "http_url").exists()
    file.write_text(file.read_text().replace("enabled: true, ", ""))
    assert "http: {enabled: true}" in run("status").output


async def test_stranger_at_the_address_is_no_relay() -> None:
    async def stranger(stream: Any) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    from relay.cli._remote import Unreachable, document

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, stranger)
        with pytest.raises(Unreachable, match="this is no relay"):
            await anyio.to_thread.run_sync(document, f"http://127.0.0.1:{port}")
        tasks.cancel_scope.cancel()


def test_shards_are_one_line_that_names_what_is_not_well() -> None:
    shard = {"state": "up", "starts": 1, "ready": True, "rate": 12.0, "role": ""}
    shards = [
        shard | {"number": 1},
        shard | {"number": 2, "role": "standby"},
        shard | {"number": 3, "ready": False, "starts": 3},
        {"number": 4, "state": "waiting", "starts": 2, "why": "ended by SIGKILL"},
        {"number": 5, "state": "up", "starts": 1},
    ]
    (line,) = [str(line) for line in lines(document() | {"shards": shards}, View(), 200, None) if "shards" in str(line)]
    assert line == (
        "shards 5   1 12 msg/s  2 standby  3 NOT READY (2 restarts)  4 WAITING (ended by SIGKILL) (1 restarts)"
        "  5 NO ANSWER"
    )
