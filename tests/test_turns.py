"""Feeds and sink share one loop: who is ahead of Redis lets the sink catch up, for a moment."""

import anyio
import pytest

from relay.outbox import Outbox
from relay.turns import AHEAD_BYTES, ANSWER_SECS, Turns

LONG_SECS = 3600.0


def ahead() -> tuple[Outbox, Turns, list[int]]:
    outbox = Outbox(1 << 30, 1 << 30)
    outbox.add(outbox.topic("t", "trades", "p"), "1-1", b"x" * AHEAD_BYTES)
    heard: list[int] = []
    return outbox, Turns(outbox, lambda batch, entries: heard.append(entries)), heard


async def test_feed_that_is_not_ahead_waits_for_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.turns.ANSWER_SECS", LONG_SECS)
    outbox = Outbox(1 << 30, 1 << 30)
    turns = Turns(outbox, lambda batch, entries: None)
    with anyio.fail_after(2):
        await turns.turn()


async def test_what_a_blocked_topic_holds_makes_no_feed_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.turns.ANSWER_SECS", LONG_SECS)
    outbox, turns, _ = ahead()
    outbox.block(outbox.topics["t"], "WRONGTYPE")
    assert outbox.size >= AHEAD_BYTES
    with anyio.fail_after(2):
        await turns.turn()


async def test_feed_that_is_ahead_goes_on_with_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.turns.ANSWER_SECS", LONG_SECS)
    outbox, turns, heard = ahead()
    done: list[str] = []

    async def feed(name: str) -> None:
        await turns.turn()
        done.append(name)

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed, "a")
            tasks.start_soon(feed, "b")
            await anyio.wait_all_tasks_blocked()
            assert done == []
            turns.answered([(outbox.topics["t"], 1)], 1)
    assert sorted(done) == ["a", "b"]  # both: none is held up by another one's frames
    assert heard == [1]


async def test_feed_that_is_ahead_waits_a_moment_where_no_answer_comes() -> None:
    _, turns, _ = ahead()
    before = anyio.current_time()
    with anyio.fail_after(2):
        await turns.turn()
    assert anyio.current_time() - before >= ANSWER_SECS * 0.9
