"""The shared frames end to end: a playing server, the relay, the bundled server; what Redis holds is what is expected.

The server sends one frame at a time and the test reads all streams before the next, so that each message belongs to a
line. Sessions follow one another as EXPECTED.md says; where the relay would wait before the next one (a refusal, a
pause), another relay goes on.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from relays import Running, relay_of, until
from test_etoro import _alike
from test_expected import FRAMES, RECEIVED, fits, is_copy
from websockets.asyncio.server import ServerConnection, serve

from relay.bridge import Bridge
from relay.clock import Clock
from relay.config import load
from relay.feed import session
from relay.normalizer import everything
from relay.providers import PROVIDERS
from relay.providers.base import Subscription, one_connection
from relay.retry import Policy

TICKATLAS = ["EURUSD", "XAUUSD", "GBPUSD", "USDJPY", "BTCUSD", "US30.CASH"]
OPTIONS = {
    "tickatlas": "api_key: k-k-k-k",
    "etoro": "api_key: API-KEY\n    user_key: USER-KEY\n    metadata: false\n    fallback_secs: 0",
    "aries": "token: FAKE.ACCESS.TOKEN",
}
PATIENCE_SECS = 0.05
"""A relay that waits longer before its next session is replaced by another one."""


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FRAMES / name).read_text(encoding="utf-8").split("\n") if line]


class Player:
    """The provider's end of the wire: the newest connection, and what came over it."""

    def __init__(self) -> None:
        self.url = ""
        self.connects = 0
        self.current: ServerConnection | None = None
        self.heard: list[Any] = []

    async def handle(self, connection: ServerConnection) -> None:
        self.connects += 1
        self.current, self.heard = connection, []
        async for message in connection:
            self.heard.append(json.loads(message))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Player"]:
        async with serve(
            self.handle, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=0.2
        ) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            yield self


class Watched(Bridge):
    """Writes down how sessions end."""

    def session_closed(self, feed: Any, error: Any, code: Any, reason: Any, decision: Any, now_ns: int) -> None:
        super().session_closed(feed, error, code, reason, decision, now_ns)
        self.__dict__.setdefault("ends", []).append((error, decision))


class Live:
    """One provider's frames through relays, one after another, all on one server."""

    def __init__(self, name: str, url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.name, self.url, self.folder, self.stack = name, url, folder, stack
        self.player = Player()
        self.running: Running | None = None
        self.relay = AsyncExitStack()
        self.subscriptions: list[Subscription] = []
        self.more = ""
        self.open = False
        self.relays = 0
        self.used = 0  # connections that are behind us
        self.read: dict[str, str] = {}

    @property
    def ends(self) -> list[Any]:
        assert self.running is not None
        return self.running.bridge.__dict__.setdefault("ends", [])  # type: ignore[no-any-return]

    @property
    def feed(self) -> Any:
        assert self.running is not None
        return self.running.bridge.providers[self.name].feeds[0]

    async def restart(self) -> None:
        """Another relay, on an empty server."""
        await self.relay.aclose()
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        self.read = {}
        spec = replace(
            PROVIDERS[self.name],
            policy=Policy(0.001, 0.002, 1.0),
            subscribed=lambda options: self.subscriptions,
            plan=one_connection,
        )
        self.relays += 1  # what an earlier one kept would tell of a relay that was down
        text = (
            f"state_dir: {self.folder / str(self.relays)}\nredis: {{url: '{self.url}'}}\nproviders:\n  {self.name}:\n"
        )
        text += f"    url: {self.player.url}\n    {OPTIONS[self.name]}\n{self.more}"
        config = load(text, "t", environ={}, read_file=str, providers={**PROVIDERS, self.name: spec})
        received = RECEIVED[self.name]
        assert received is not None
        relay = relay_of(config, make=Watched, clock=Clock(wall_ns=lambda: received))
        self.running = await self.relay.enter_async_context(relay)

    async def begin(self) -> None:
        """A new session: the one before it is closed, and the relay comes back, or another one."""
        if self.running is None:
            await self.restart()
        elif self.open:
            assert self.player.current is not None
            count = len(self.ends)
            await self.player.current.close(1000)
            await until(lambda: len(self.ends) > count)
        if self.ends:
            _, decision = self.ends[-1]
            if decision.kind == "fatal" or decision.delay_secs > PATIENCE_SECS:
                await self.restart()
        await until(lambda: self.player.connects > self.used and self.feed.live)
        self.used = self.player.connects
        self.open = True
        await self.messages()

    async def give(self, frame: str, binary: bool, ends: bool) -> list[dict[str, Any]]:
        """One frame, and what Redis holds of it."""
        assert self.player.current is not None
        frames, count = self.feed.stats.frames, len(self.ends)
        await self.player.current.send(frame.encode() if binary else frame)
        await until(lambda: self.feed.stats.frames > frames)
        if ends:
            with suppress(TimeoutError):  # one of several right answers may be that it does not end
                await until(lambda: len(self.ends) > count, 1)
        out = await self.messages()
        if len(self.ends) > count:
            self.open = False
            error, _ = self.ends[count]
            out.append({"type": "session_ended", "action": error.action, "code": error.code, "text": error.text})
        return out

    async def messages(self) -> list[dict[str, Any]]:
        """What has come into the streams since the last call; copies of gaps are left out."""
        assert self.running is not None
        topics = self.running.bridge.outbox.topics
        with redis.Redis.from_url(self.url, decode_responses=True) as client:

            def settled() -> bool:
                newest = {name: client.xrevrange(name, count=1) for name, topic in topics.items() if topic.seq}
                return all(found and int(found[0][0].split("-")[1]) == topics[n].seq for n, found in newest.items())

            await until(settled)
            out = []
            for name in list(topics):
                for entry_id, fields in client.xrange(name, f"({self.read[name]}" if name in self.read else "-"):
                    self.read[name] = entry_id
                    message = json.loads(fields["data"])
                    if not is_copy(name, message):
                        out.append(message)
        # a status of the relay's connections is none of the frame's
        return [m for m in out if not (m["type"] == "status" and m["event"] in ("opened", "closed", "stopped"))]


def wanted_by(lines: list[dict[str, Any]]) -> list[Subscription]:
    """What the subscribe messages of an eToro session name."""
    subs = []
    for line in lines:
        frame = json.loads(line["frame"]) if line["dir"] == "out" else {}
        for topic in (frame.get("data") or {}).get("topics", ()):
            raw = topic.partition(":")[2]
            subs.append(Subscription("quotes", raw) if raw else Subscription("orders", ""))
        for topic in frame.get("channels", ()):
            word, _, raw = topic.partition(".")
            subs.append(Subscription("quotes" if word == "quotes" else "trades", raw))
    if lines[0]["conn"] == "s6":
        subs = [Subscription("quotes", "AAPL"), Subscription("bars", "AAPL", "1m")]
    return list(dict.fromkeys(subs)) or [Subscription("quotes", "99999")]  # nothing of this session


def own_ids(frame: str, theirs: list[dict[str, Any]], heard: list[Any]) -> str:
    """Put the ids of our own requests in the place of theirs."""
    for asked in theirs:
        ours = next((one for one in reversed(heard) if "operation" in asked and _alike(one, asked)), None)
        if ours is not None and asked.get("id"):
            frame = frame.replace(asked["id"], ours["id"])
    logins = [one["id"] for one in heard if str(one.get("id", "")).startswith("auth-")]
    return frame.replace('"auth-1"', f'"{logins[-1]}"') if logins else frame


def ends_in(expected: dict[str, Any]) -> Iterator[bool]:
    for choice in expected.get("any_of") or [expected["out"]]:
        yield any(message["type"] == "session_ended" for message in choice)


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is absent: it is not part of this repository")
@pytest.mark.parametrize("name", OPTIONS)
async def test_frames_arrive_as_expected(
    name: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TICK_SECS", 0.02)
    lines, expected = lines_of(f"{name}.jsonl"), lines_of(f"expected_{name}.jsonl")
    login = next((one["frame"] for one in lines if one["dir"] == "in" and '"authenticated"' in one["frame"]), "")
    bad: list[str] = []
    checked = 0
    async with AsyncExitStack() as stack:
        live = Live(name, redis_url, tmp_path, stack)
        await stack.enter_async_context(live.player.serving())
        stack.push_async_callback(live.relay.aclose)
        if name == "tickatlas":
            live.subscriptions = [Subscription("quotes", raw) for raw in TICKATLAS]
            live.subscriptions += [Subscription("bars", raw, "1m") for raw in TICKATLAS]
        elif name == "aries":
            live.subscriptions = everything(PROVIDERS[name])
        key: object = None
        theirs: list[dict[str, Any]] = []
        for line, want in zip(lines, expected, strict=True):
            if line.get("conn") != key and line.get("conn") is not None:
                part = [one for one in lines if one["conn"] == line["conn"]]
                live.subscriptions, live.more = wanted_by(part), f"    dialect: {part[0]['dialect']}\n"
                live.running, live.open, theirs = None, False, []
            if line["dir"] == "out":
                if name == "etoro":
                    asked = json.loads(line["frame"])
                    theirs.append(asked)
                    if asked.get("operation") == "Unsubscribe" and live.open:
                        raws = [topic.partition(":")[2] for topic in asked["data"]["topics"]]
                        live.feed.unsubscribe([Subscription("quotes", raw) for raw in raws])
                    key = line["conn"]
                continue
            now = (line.get("conn"), line.get("endpoint"))
            if now != key and (name != "etoro" or not live.open) or not live.open:
                await live.begin()
                key = now if name != "etoro" else line["conn"]
                if name == "tickatlas":
                    await live.give(login, False, False)
            if name == "aries":
                await until(lambda: live.player.heard)  # the login, whose id is asked for
            frame = own_ids(line["frame"], theirs, live.player.heard)
            ours = await live.give(frame, line.get("opcode") == "binary", any(ends_in(want)))
            choices = want.get("any_of") or [want["out"]]
            ours = [{k: v for k, v in m.items() if k not in ("ts_recv", "run", "seq")} for m in ours]
            checked += 1
            if not any(fits(ours, choice, want.get("free", []), name in ("etoro", "aries")) for choice in choices):
                bad.append(f"line {want['line']}: {want.get('note', '')}\n  ours   {ours}\n  wanted {choices}")
    assert not bad, "\n".join(bad)
    assert checked > 40
