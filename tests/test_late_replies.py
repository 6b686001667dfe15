"""Answers that come when the session is over: a rotated token must not be lost with it."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from feeds import Probe, http, http_server, make_feed, running, server
from relays import config_of, relay_of, until

from relay.bridge import Bridge
from relay.feed import session
from relay.providers.base import BaseProvider, Connect, Frame, Output, Reply, Request


class Caller(BaseProvider):
    """Makes one call when it is opened, and writes down what it learns."""

    call = Request("token", "POST", "")
    learned: "list[Any]" = []
    connect_with = Connect("ws://127.0.0.1:1/")

    def connect(self) -> Connect:
        return self.connect_with

    def opened(self, now_ns: int) -> Sequence[Output]:
        self._out.append(self.call)
        return ()

    def receive(self, frame: Frame) -> Sequence[Output]:
        return ()

    def subscribe(self, subscriptions: Any, now_ns: int) -> Sequence[Output]:
        return ()

    unsubscribe = subscribe

    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]:
        self.learned.append(reply.body)
        return ()

    def closed(self, now_ns: int) -> Sequence[Output]:
        self.learned.append("closed")
        return ()


async def lived(method: str, answered: bool = True) -> "list[Any]":
    """A session whose server is gone while its call is under way; gives what the provider learned, in order."""
    asked, answer = anyio.Event(), anyio.Event()

    async def slow(head: bytes) -> bytes:
        asked.set()
        await answer.wait()
        return http(200, b"rotated")

    async def cut(ws: Any) -> None:
        await asked.wait()
        ws.transport.abort()

    probe = Probe()
    async with http_server(slow) as place, server(cut) as url:
        learned: list[Any] = []
        call = Request("token", method, f"http://{place}/")
        provider = type("Late", (Caller,), {"call": call, "learned": learned})
        feed = make_feed(probe, provider, url=url)
        async with running(feed):
            await asked.wait()
            await anyio.wait_all_tasks_blocked()
            if answered:
                answer.set()
            await probe.until(lambda: probe.closed)
            first = list(learned)
        answer.set()
    return first


async def test_a_rotated_token_is_learned_though_the_connection_is_gone() -> None:
    assert (await lived("POST"))[:2] == [b"rotated", "closed"]


async def test_a_question_that_changes_nothing_is_given_up_with_the_session() -> None:
    assert set(await lived("GET", False)) == {"closed"}


async def test_an_answer_that_never_comes_holds_the_end_up_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LAST_REPLY_SECS", 0.05)
    assert set(await lived("POST", False)) == {"closed"}


async def test_a_rotated_token_is_on_disk_before_the_new_one_is_sent(redis_url: str, tmp_path: Path) -> None:
    from relay.simulator.server import Simulator

    path = tmp_path / "state" / "providers" / "aries.json"
    seen: list[tuple[bool, int]] = []

    class Watched(Bridge):
        def sent(self, feed: Any, send: Any) -> None:
            if '"/auth"' in str(getattr(send, "data", "")):
                seen.append((path.exists(), stat.S_IMODE(os.stat(path).st_mode) if path.exists() else 0))
            super().sent(feed, send)

    path.parent.mkdir(parents=True)
    old = path.with_suffix(".new")
    old.write_text("left by a crash")
    old.chmod(0o644)
    async with Simulator(["aries"], rate=50, knobs={"aries": {"only_issued": True}}) as simulator:
        text = f"""
redis: {{url: {redis_url}}}
providers:
  aries:
    url: {simulator.url("aries")}
    rest_url: {simulator.rest_url("aries")}
    client_id: app
    refresh_token: ${{FIRST}}
    quotes: [AAPL]
"""
        async with relay_of(config_of(text, tmp_path, FIRST="first-refresh-token"), make=Watched) as running:
            await until(lambda: running.bridge.providers["aries"].source.counts.published > 0)
    assert seen and set(seen) == {(True, 0o600)}


async def test_a_state_that_cannot_be_saved_is_said(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "providers").write_text("in the way")
    text = f"redis: {{url: {redis_url}}}\nproviders: {{etoro: {{simulate: true, quotes: [TSLA]}}}}\n"
    async with relay_of(config_of(text, tmp_path)) as running:
        await until(lambda: running.said("state cannot be saved"))
    level, _, fields = next(line for line in running.lines if line[1] == "state cannot be saved")
    assert level == "error" and fields["provider"] == "etoro"
