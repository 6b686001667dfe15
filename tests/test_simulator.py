"""The simulator's server with a small side of its own: rate, faults, playback, REST, scripts, `relay sim`."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from click.testing import CliRunner
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from relay.cli import sim
from relay.errors import JournalError
from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.simulator.faults import GARBAGE_TEXT, Faults, garbage_text
from relay.simulator.playback import CONTROLS, Playback
from relay.simulator.script import close, drop, expect, hang, refuse, scripted, send, silence, until, wait
from relay.simulator.server import Simulator

RECORDED = Path(__file__).parents[2] / "shared" / "frames"


class Small:
    """Login, subscribe, numbered messages, a heartbeat each tick."""

    def __init__(self, world: World, path: str, headers: Mapping[str, str]) -> None:
        self.world, self.path, self.headers = world, path, headers
        self.right = self.subscribed = False
        self.number = 0

    def upgrade(self) -> Refuse | None:
        if "forbidden" in self.path:
            return Refuse(403, {"x-why": "path"}, b"no")
        if "broken" in self.path:
            raise RuntimeError("a bug in the side")
        return None

    def opened(self, now_ns: int) -> list[Step]:
        return [json.dumps({"hello": self.path, "agent": self.headers.get("user-agent", "")})]

    def receive(self, data: str | bytes, now_ns: int) -> list[Step]:
        message = json.loads(data)
        if "key" in message:
            self.right = self.world.accepts(message["key"])
            return ['{"auth":true}'] if self.right else ['{"auth":false}', Close(4001, "wrong key")]
        if message == {"subscribe": 1}:
            self.subscribed = self.right
            return ['{"ack":1}']
        raise RuntimeError("a bug in the side")

    def step(self, now_ns: int) -> list[Step]:
        if not self.subscribed:
            return []
        self.number += 1
        return [json.dumps({"n": self.number, **self.world.knobs})]

    def tick(self, now_ns: int) -> list[Step]:
        return ['{"beat":1}']

    def jump(self) -> None:
        self.number += 10


def rest(world: World, method: str, path: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> Answer:
    if "broken" in path:
        raise RuntimeError("a bug in the side")
    right = world.accepts(headers.get("x-key", ""))
    told = {"method": method, "path": path, "body": body.decode(), "right": right, "seen": len(world.state)}
    return Answer(200 if right else 401, json.dumps(told).encode())


SIDES = {
    "small": SideSpec(Small, ("small.v1", "small.v2")),
    "rest": SideSpec(Small, (), rest),
    "other": SideSpec(Small),
    "coinbase": SideSpec(Small),
}


@asynccontextmanager
async def simulator(*providers: str, **options: Any) -> AsyncIterator[Simulator]:
    async with Simulator(providers or ("small",), sides=SIDES, **options) as running:
        yield running


@asynccontextmanager
async def subscribed(running: Simulator, provider: str = "small") -> AsyncIterator[ClientConnection]:
    async with connect(running.url(provider), close_timeout=1) as client:
        await client.send('{"key":"k"}')
        await client.send('{"subscribe":1}')
        yield client
        # a client that leaves a full wire unread would wait for the close in vain
        client.transport.abort()


async def frames(client: ClientConnection, until: Callable[[list[bytes]], Any]) -> list[bytes]:
    """Read until a condition holds; closing ends it as well."""
    found: list[bytes] = []
    with anyio.fail_after(5):
        try:
            while not until(found):
                found.append(await client.recv(decode=False))
        except ConnectionClosed:
            pass
    return found


def numbers(found: list[bytes]) -> list[int]:
    return [json.loads(frame)["n"] for frame in found if frame.startswith(b'{"n"')]


async def numbered(client: ClientConnection, count: int) -> list[int]:
    found: list[int] = []
    with anyio.fail_after(5):
        while len(found) < count:
            found += numbers([await client.recv(decode=False)])
    return found


async def test_path_headers_and_answers_reach_the_side() -> None:
    async with simulator() as running, connect(running.url("small") + "/v1/x?a=b", user_agent_header="me") as client:
        assert json.loads(await client.recv()) == {"hello": "/v1/x?a=b", "agent": "me"}
        await client.send('{"key":"k"}')
        assert await client.recv() == '{"auth":true}'
        await client.send('{"subscribe":1}')
        assert await client.recv() == '{"ack":1}'
        assert await client.recv() == '{"n": 1}'
    assert running.stats["small"].heard[0] == '{"key":"k"}'
    assert (running.stats["small"].connects, running.stats["small"].received) == (1, 2)


@pytest.mark.parametrize("path", ["", "/", "?x=1"])
async def test_rest_of_the_path_begins_with_a_slash(path: str) -> None:
    async with simulator() as running, connect(running.url("small") + path) as client:
        assert json.loads(await client.recv())["hello"] == "/" + path.lstrip("/")


async def test_subprotocol_is_the_clients_first_known_or_none() -> None:
    async with simulator("small", "other") as running:
        async with connect(running.url("small"), subprotocols=["x", "small.v2", "small.v1"]) as client:  # type: ignore[list-item]
            assert client.subprotocol == "small.v2"
        async with connect(running.url("small")) as client:
            assert client.subprotocol is None
        async with connect(running.url("other"), subprotocols=["small.v1"]) as client:  # type: ignore[list-item]
            assert client.subprotocol is None


async def test_refusals_of_the_upgrade() -> None:
    async with simulator() as running:
        with pytest.raises(InvalidStatus) as refused:
            await connect(running.url("small") + "/forbidden")
        assert refused.value.response.status_code == 403
        assert refused.value.response.headers["x-why"] == "path"
        assert refused.value.response.body == b"no"
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{running.port}/nobody")
        assert refused.value.response.status_code == 404
        async with httpx2.AsyncClient() as http:
            assert (await http.get(f"http://127.0.0.1:{running.port}/small")).status_code == 426


async def test_bug_in_a_side_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    async with simulator("small", "rest") as running:
        async with connect(running.url("small")) as client:
            await client.send('{"no":"such"}')
            await frames(client, lambda found: False)
            assert client.close_code == 1011
        with pytest.raises(InvalidStatus):
            await connect(running.url("small") + "/broken")
        async with httpx2.AsyncClient() as http:
            assert (await http.get(running.rest_url("rest") + "/broken")).status_code == 500
    assert (running.stats["small"].errors, running.stats["rest"].errors) == (2, 1)
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "simulated side failed provider=small",
        "simulated side failed provider=small",
        "simulated REST side failed provider=rest",
    ]


async def test_same_seed_same_walk() -> None:
    first, second, third = (Simulator(["small"], sides=SIDES, seed=s).worlds["small"] for s in (1, 1, 2))
    walks = [[world.walk("A") for _ in range(50)] for world in (first, second, third)]
    assert walks[0] == walks[1] != walks[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"providers": ["nobody"]},
        {"host": "0.0.0.0"},
        {"host": "192.168.1.1"},
        {"rate": -1},
        {"rate": float("nan")},
        {"keys": {"nobody": ["k"]}},
        {"play": {"nobody": Playback("x")}},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Simulator(sides=SIDES, **wrong)


async def test_knobs_and_keys_reach_the_world() -> None:
    options: dict[str, Any] = {"knobs": {"small": {"quota": 3}}, "keys": {"small": ["right"]}}
    async with simulator(**options) as running, connect(running.url("small")) as client:
        assert running.worlds["small"].knobs == {"quota": 3}
        await client.send('{"key":"wrong"}')
        found = await frames(client, lambda found: False)
        assert found[-1] == b'{"auth":false}'
        assert (client.close_code, client.close_reason) == (4001, "wrong key")


# -- rate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [200, 20_000])
async def test_rate_is_kept(rate: int) -> None:
    async with simulator(rate=rate) as running, subscribed(running) as client:
        await numbered(client, 1)
        began = time.monotonic()
        count = rate // 2
        assert await numbered(client, count) == list(range(2, count + 2))
        assert time.monotonic() - began > 0.4, "a batch early is possible; how late is the machine's affair"


async def test_slow_client_holds_the_sender_and_is_not_flooded_afterwards() -> None:
    long = {"small": {"text": "x" * 10_000}}
    async with simulator(rate=0, knobs=long) as running, subscribed(running) as client:
        stats = running.stats["small"]
        with anyio.fail_after(10):
            # the client's queue, the sockets' buffers and ours fill up, then nothing more is made
            before = -1
            while before != stats.sent or not stats.sent:
                before = stats.sent
                await anyio.sleep(0.1)
        held = stats.sent
        assert await numbered(client, held) == list(range(1, held + 1))


async def test_rate_changes_at_run_time() -> None:
    async with simulator(rate=0.001) as running, subscribed(running) as client:
        assert await numbered(client, 1) == [1]
        running.set_rate(10_000)
        assert await numbered(client, 500) == list(range(2, 502))


# -- faults --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def faulty(rate: float = 0.0, **faults: Any) -> AsyncIterator[tuple[Simulator, ClientConnection]]:
    async with simulator(rate=rate, faults=Faults(**faults)) as running, subscribed(running) as client:
        yield running, client


def played(running: Simulator) -> dict[str, int]:
    return dict(running.stats["small"].faults)


async def test_refuse_auth() -> None:
    async with faulty(refuse_auth=True) as (running, client):
        assert (await frames(client, lambda found: False))[-1] == b'{"auth":false}'
        assert client.close_code == 4001
        assert played(running) == {"refuse_auth": 1}


async def test_refuse_upgrade_only_the_first_connections() -> None:
    async with simulator(faults=Faults(refuse_upgrade=503, connections=2)) as running:
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                await connect(running.url("small"))
            assert refused.value.response.status_code == 503
        async with subscribed(running) as client:
            assert await numbered(client, 1) == [1]
        assert played(running) == {"refuse_upgrade": 2}


async def test_hang() -> None:
    async with simulator(faults=Faults(hang=True)) as running:
        with pytest.raises(TimeoutError):
            await connect(running.url("small"), open_timeout=0.2)
        hanging = asyncio.create_task(anyio.connect_tcp("127.0.0.1", running.port))
        stream = await hanging
        await stream.send(b"GET /small HTTP/1.1\r\n")
        with anyio.fail_after(3):
            await running.stop()
        await stream.aclose()
        assert played(running) == {"hang": 1}


async def test_accept_and_close() -> None:
    async with simulator(faults=Faults(accept_and_close=1013)) as running:
        async with connect(running.url("small")) as client:
            assert await frames(client, lambda found: False) == []
            assert client.close_code == 1013
        assert played(running) == {"accept_and_close": 1}


async def test_silence_says_nothing_at_all() -> None:
    async with faulty(silence=True) as (running, client):
        with anyio.move_on_after(0.6):
            pytest.fail(f"came: {await client.recv()!r}")
        assert played(running) == {"silence": 1}
        assert running.stats["small"].received == 2


async def test_mute_keeps_answers_and_heartbeats() -> None:
    async with faulty(mute=True) as (running, client):
        found = await frames(client, lambda found: found.count(b'{"beat":1}') == 2)
        assert found[1:] == [b'{"auth":true}', b'{"ack":1}', b'{"beat":1}', b'{"beat":1}']
        assert played(running) == {"mute": 1}
        running.set_faults(Faults())
        assert await numbered(client, 3) == [1, 2, 3]


async def test_drop_after_aborts_behind_n_messages() -> None:
    async with faulty(drop_after=300) as (running, client):
        assert numbers(await frames(client, lambda found: False)) == list(range(1, 301))
        assert client.close_code == 1006
        assert played(running) == {"drop_after": 1}
    assert running.stats["small"].open == 0


async def test_drop_every_secs() -> None:
    async with faulty(rate=100, drop_every_secs=0.3) as (running, client):
        began = time.monotonic()
        await frames(client, lambda found: False)
        assert 0.2 < time.monotonic() - began < 2
        assert client.close_code == 1006
        assert played(running) == {"drop_every_secs": 1}


async def test_close_after() -> None:
    async with faulty(close_after=(7, 4999)) as (running, client):
        assert numbers(await frames(client, lambda found: False)) == list(range(1, 8))
        assert client.close_code == 4999
        assert played(running) == {"close_after": 1}


@pytest.mark.parametrize("count", [0, 5])
async def test_stall_after_stays_open_and_silent(count: int) -> None:
    async with faulty(stall_after=count) as (running, client):
        found = await frames(client, lambda found: b'{"ack":1}' in found and len(numbers(found)) == count)
        assert numbers(found) == list(range(1, count + 1))
        with anyio.move_on_after(0.6):
            pytest.fail(f"came: {await client.recv()!r}")
        assert played(running) == {"stall_after": 1}
        assert running.stats["small"].open == 1


async def test_garbage_of_both_kinds_between_good_frames() -> None:
    async with faulty(garbage_every=10, binary_garbage_every=25) as (running, client):
        await client.recv()
        found = await frames(client, lambda found: found[-1:] == [b'{"n": 100}'])
        assert numbers(found) == list(range(1, 101))
        bad = [f for f in found if not f.startswith((b'{"n"', b'{"auth"', b'{"ack"', b'{"beat"'))]
        # what follows the hundredth good frame is still on its way
        assert len(bad) == 9 + 3
        assert played(running)["garbage_every"] >= 10 and played(running)["binary_garbage_every"] >= 4


def test_garbage_is_by_seed_and_all_of_it_comes() -> None:
    from random import Random

    one, two = Random(1), Random(1)
    first = [garbage_text(one) for _ in range(300)]
    assert first == [garbage_text(two) for _ in range(300)]
    assert set(first) == set(GARBAGE_TEXT)


async def test_jump_and_repeat() -> None:
    async with faulty(jump_every=3, repeat_every=4) as (running, client):
        assert await numbered(client, 9) == [1, 2, 3, 14, 14, 15, 16, 27, 28]


async def test_late_message_comes_behind_others() -> None:
    async with faulty(late_every=30) as (running, client):
        assert await numbered(client, 55) == [*range(1, 31), *range(32, 52), 31, *range(52, 56)]
        running.set_faults(Faults(), "small")
        assert set(range(56, 400)) < set(await numbered(client, 400)), "each comes"


async def test_slow_waits_before_each_frame() -> None:
    async with faulty(slow_secs=0.05) as (running, client):
        began = time.monotonic()
        assert await numbered(client, 4) == [1, 2, 3, 4]
        assert time.monotonic() - began >= 4 * 0.05
        assert played(running) == {"slow_secs": 1}


async def test_faults_change_on_an_open_connection_and_count_from_then() -> None:
    async with simulator(rate=0) as running, subscribed(running) as client:
        await numbered(client, 1000)
        running.set_faults(Faults(drop_after=10), "small")
        await frames(client, lambda found: False)
        assert client.close_code == 1006
        assert running.faults_of("small").drop_after == 10


async def test_drop_now() -> None:
    async with simulator("small", "other") as running:
        async with subscribed(running) as one, subscribed(running, "other") as two:
            await one.recv()
            await two.recv()
            assert running.drop("other") == 1
            await frames(two, lambda found: False)
            assert two.close_code == 1006
            assert await numbered(one, 1) == [1]


async def test_stop_closes_with_1001_and_start_takes_the_same_ports() -> None:
    running = Simulator(["small", "rest"], sides=SIDES)
    await running.start()
    ports = running.port, running.rest_port
    async with subscribed(running) as client:
        await client.recv()
        stopping = asyncio.create_task(running.stop())
        with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
            with anyio.fail_after(3):
                while True:
                    await client.recv()
        assert client.close_code == 1001
        await stopping
    await running.stop()
    with pytest.raises(OSError):
        await connect(running.url("small"))
    async with running:
        assert (running.port, running.rest_port) == ports
        async with subscribed(running) as client:
            assert await numbered(client, 1) == [1]


async def test_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    async with simulator(rate=0) as running, subscribed(running):
        with anyio.fail_after(5):
            await running.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop_after": -1},
        {"refuse_upgrade": 101},
        {"refuse_rest": 600},
        {"accept_and_close": 1005},
        {"close_after": (5, 999)},
        {"close_after": (0, 1000)},
    ],
)
def test_wrong_faults_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Faults(**wrong)


# -- REST ----------------------------------------------------------------------------------------------------------


async def test_rest_reaches_the_side() -> None:
    async with simulator("rest") as running, httpx2.AsyncClient() as http:
        reply = await http.post(running.rest_url("rest") + "/v1/t?a=b%20c", content=b"body", headers={"X-Key": "k"})
        assert reply.json() == {"method": "POST", "path": "/v1/t?a=b%20c", "body": "body", "right": True, "seen": 0}
        running.set_faults(Faults(refuse_rest=429))
        assert (await http.get(running.rest_url("rest"))).status_code == 429
        running.set_faults(Faults(refuse_auth=True))
        assert (await http.get(running.rest_url("rest"), headers={"x-key": "k"})).status_code == 401
        assert (await http.get(f"http://127.0.0.1:{running.rest_port}/nobody")).status_code == 404
        assert running.stats["rest"].rest == 3


async def test_rest_port_only_where_a_side_answers_it() -> None:
    async with simulator("other") as running, httpx2.AsyncClient() as http:
        assert running.rest_port == 0
        assert (await http.get(running.rest_url("other") + "/v1")).status_code == 426


def test_start_imports_little() -> None:
    code = (
        "import sys, asyncio; from relay.simulator.server import Simulator\n"
        "from relay.simulator.base import *\n"
        "async def main():\n"
        "    async with Simulator(sides={'x': SideSpec(None, rest=lambda *a: None)}): print(*sys.modules)\n"
        "asyncio.run(main())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert "websockets" in loaded
    # each of these costs as much as all the rest
    assert not loaded & {"redis", "rich", "httpx2", "prometheus_client", "structlog", "yaml"}


# -- playback ------------------------------------------------------------------------------------------------------


def recording(tmp_path: Path, *lines: Mapping[str, Any]) -> Path:
    path = tmp_path / "frames.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def test_playback_serves_the_recording_and_the_sides_own_answers(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        {"dir": "out", "frame": "never"},
        {"dir": "in", "frame": '{"type":"subscriptions"}', "src": "rec"},
        {"dir": "in", "frame": "one", "src": "rec"},
        {"dir": "in", "frame": "made up", "src": "made"},
        {"dir": "in", "frame": "\0\u00ff", "opcode": "binary", "src": "rec"},
        {"dir": "in", "frame": '{"n": 7}', "src": "rec"},
    )
    play = {"coinbase": Playback(path, where={"src": "rec"})}
    async with simulator("coinbase", play=play) as running:
        async with connect(running.url("coinbase")) as client:
            await client.send('{"key":"k"}')
            with anyio.move_on_after(0.3):
                pytest.fail(f"came before the subscription: {await client.recv()!r}")
            await client.send('{"subscribe":1}')
            with anyio.fail_after(2):
                assert [await client.recv() for _ in range(3)] == ["one", b"\0\xff", '{"n": 7}']
        assert running.stats["coinbase"].sent == 3


async def test_playback_lets_the_sides_answers_through(tmp_path: Path) -> None:
    from relay.simulator.playback import Controls

    controls = Controls(
        lambda frame: isinstance(frame, dict) and ("auth" in frame or "ack" in frame),
        lambda frame: isinstance(frame, dict) and "beat" in frame,
    )
    path = recording(tmp_path, {"frame": '{"ack":0}'}, {"frame": "one"}, {"frame": "two"})
    async with simulator(play={"small": Playback(path, controls=controls)}) as running:
        async with subscribed(running) as client:
            found = await frames(client, lambda found: b"two" in found and b'{"beat":1}' in found)
            assert [f for f in found if f != b'{"beat":1}'] == [b'{"auth":true}', b'{"ack":1}', b"one", b"two"]


async def test_playback_spacing_rate_and_loop(tmp_path: Path) -> None:
    # the hour between the recordings is not waited out, and a step back of the clock is none
    times = [100.0, 100.2, 100.4, 3700.4, 50.0]
    path = recording(tmp_path, *({"frame": str(i), "t": t} for i, t in enumerate(times)))
    assert Playback(path).load("small").offsets == pytest.approx([0, 0.2, 0.4, 5.4, 5.4])
    assert Playback(path, speed=2).load("small").offsets == pytest.approx([0, 0.1, 0.2, 2.7, 2.7])
    assert Playback(path, rate=10).load("small").offsets == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert Playback(path, speed=0).load("small").offsets == []
    async with simulator(play={"small": Playback(path, speed=20, loop=True)}) as running:
        async with subscribed(running) as client:
            began = time.monotonic()
            found = await frames(client, lambda found: found.count(b"4") == 3)
            assert [f for f in found if f in b"01234"] == [str(i).encode() for i in range(5)] * 3
            assert 3 * 0.27 < time.monotonic() - began < 2.5


async def test_playback_of_a_large_recording_as_fast_as_possible_with_faults(tmp_path: Path) -> None:
    path = recording(tmp_path, *({"frame": f"frame {i}", "t": i} for i in range(3000)))
    async with simulator(play={"small": Playback(path, speed=0)}) as running:
        async with subscribed(running) as client:
            found = await frames(client, lambda found: b"frame 2999" in found)
            assert [f for f in found if f.startswith(b"frame")] == [f"frame {i}".encode() for i in range(3000)]
        running.set_faults(Faults(jump_every=2, drop_after=4))
        async with subscribed(running) as client:
            found = await frames(client, lambda found: False)
            assert [f for f in found if f.startswith(b"frame")] == [b"frame 0", b"frame 1", b"frame 3", b"frame 4"]


async def test_recorded_rest_replies_are_served(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        {"dir": "in", "frame": '{"A":1}', "note": "rec: REST reply of GET /api/depth?symbol=A&limit=1000"},
        {"dir": "in", "frame": '{"B":1}', "note": "rec: REST reply of GET /api/depth?symbol=B&limit=1000"},
        {"dir": "in", "frame": "one"},
    )
    async with simulator("rest", play={"rest": Playback(path)}) as running, httpx2.AsyncClient() as http:
        base = running.rest_url("rest")
        assert (await http.get(f"{base}/api/depth?symbol=B&limit=50")).json() == {"B": 1}
        assert (await http.get(f"{base}/api/depth?limit=1000&symbol=A")).json() == {"A": 1}
        assert "path" in (await http.get(f"{base}/api/depth?symbol=C", headers={"x-key": "k"})).json()
        assert running.recordings["rest"].frames == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no frame to play"),
        ("{\n", ":1: not JSON"),
        ('{"frame":"x"}\n[]\n', ":2: not a JSON object"),
        ('{"dir":"in"}\n', ":1: no frame"),
    ],
)
async def test_broken_recording_fails_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "frames.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match=said):
        await Simulator(["small"], sides=SIDES, play={"small": Playback(path)}).start()
    with pytest.raises(JournalError, match="No such file"):
        await Simulator(["small"], sides=SIDES, play={"small": Playback(tmp_path / "none")}).start()


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings are not in ../shared/frames")
@pytest.mark.parametrize(
    ("provider", "answers", "count"), [("coinbase", 3, 2905), ("kraken", 18, 1551), ("binance", 0, 237)]
)
def test_recorded_acknowledgements_are_left_out(provider: str, answers: int, count: int) -> None:
    path = RECORDED / f"{provider}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = [line for line in lines if line["dir"] == "in" and line.get("src") == "rec"]
    out = [line for line in wanted if CONTROLS[provider].answer(json.loads(line["frame"]))]
    assert len(out) == answers
    found = Playback(path, where={"src": "rec"}).load(provider)
    assert len(found.frames) == count
    assert len(found.rest) == len(wanted) - answers - count


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings are not in ../shared/frames")
async def test_recorded_coinbase_session_reaches_the_client_whole_beside_the_sides_answer() -> None:
    from relay.simulator import SIDES as real

    play = {"coinbase": Playback(RECORDED / "coinbase.jsonl", speed=0, where={"src": "rec"})}
    async with Simulator(["coinbase"], play=play, sides=real) as running:
        recorded = [frame for frame in running.recordings["coinbase"].frames]
        async with connect(running.url("coinbase"), max_size=None) as client:
            subscribe = {"type": "subscribe", "product_ids": ["SKL-USD"], "channels": ["ticker", "matches"]}
            await client.send(json.dumps(subscribe))
            found: list[str | bytes] = []
            with anyio.fail_after(5):
                while len(found) < len(recorded) + 1:
                    found.append(await client.recv())
    answer = json.loads(found[0])
    assert answer["type"] == "subscriptions"
    assert [channel["product_ids"] for channel in answer["channels"]] == [["SKL-USD"], ["SKL-USD"]]
    assert found[1:] == recorded


# -- scripts -------------------------------------------------------------------------------------------------------


async def test_script_is_played_in_order() -> None:
    go = asyncio.Event()
    script = [
        send("early"),
        expect({"op": "auth"}),
        send(lambda message: {"id": message["id"], "ok": True}),
        expect("plain"),
        expect(lambda message: message["n"] > 1),
        expect(),
        until(go),
        wait(0.01),
        send(b"\x01"),
        close(4000, "done"),
    ]
    async with scripted(script, path="/p?q=1") as server:
        assert server.url.endswith("/p?q=1")
        async with connect(server.url) as client:
            assert await client.recv() == "early"
            await client.send('{"op":"auth","id":7,"more":1}')
            assert await client.recv() == '{"id":7,"ok":true}'
            for text in ("plain", '{"n":2}', "anything"):
                await client.send(text)
            go.set()
            assert await client.recv() == b"\x01"
            with pytest.raises(ConnectionClosedError):
                await client.recv()
            assert (client.close_code, client.close_reason) == (4000, "done")
        await server.done()
        assert server.received == ['{"op":"auth","id":7,"more":1}', "plain", '{"n":2}', "anything"]
        assert server.requests[0].path == "/p?q=1"


async def test_each_connection_has_its_script_and_the_last_goes_on() -> None:
    async with scripted([refuse(503, {"retry-after": "1"}, b"later")], [drop()], [send("a")]) as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url)
        assert refused.value.response.headers["retry-after"] == "1"
        async with connect(server.url) as client:
            with pytest.raises(ConnectionClosedError):
                await client.recv()
            assert client.close_code == 1006
        for _ in range(2):
            async with connect(server.url) as client:
                assert await client.recv() == "a"
        await server.done(4)
        assert server.connects == 4


async def test_script_that_hangs_or_is_silent_ends_with_its_block() -> None:
    with anyio.fail_after(5):
        async with scripted([hang()], [silence()], [expect(timeout=60)], [wait(60)]) as server:
            with pytest.raises(TimeoutError):
                await connect(server.url, open_timeout=0.1)
            clients = [await connect(server.url) for _ in range(3)]
            await clients[0].send("heard")
    for client in clients:
        await client.close()
    assert server.received in ([], ["heard"])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([expect({"op": "subscribe"})], r"step 1: expected \{'op': 'subscribe'\}, got '\{\"op\":\"auth\"\}'"),
        ([expect(), expect(timeout=0.05)], "step 2: expected any message, nothing came in 0.05 s"),
        ([expect(), expect("more")], "step 2: expected 'more', but the client went"),
    ],
)
async def test_client_against_the_script_is_told(script: list[Any], said: str) -> None:
    async def run() -> None:
        async with scripted(script) as server:
            async with connect(server.url) as client:
                await client.send('{"op":"auth"}')
                if "went" not in said:
                    with pytest.raises(ConnectionClosedError):
                        await client.recv()
                    assert client.close_code == 1008
            await server.done()

    with pytest.raises(AssertionError, match=said):
        await run()


async def test_upgrade_steps_come_first() -> None:
    with pytest.raises(ValueError, match="first step"):
        async with scripted([expect(), hang()]):
            pass


# -- relay sim -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.simulator.SIDES", SIDES)


def test_every_fault_is_a_flag() -> None:
    flags = {parameter.name for parameter in sim.command.params}
    wanted = {item.name for item in dataclasses.fields(Faults)} - {"connections"} | {"fault_connections"}
    assert wanted <= flags


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "Did you mean 'small'?"),
        (["small", "--play", "othr=x.jsonl"], "Did you mean 'other'?"),
        (["small", "--play", "other=x.jsonl"], "not among the providers"),
        (["--play", "what.jsonl"], "say which provider"),
        (["--play", "small.jsonl", "--play", "small=b.jsonl"], "twice"),
        (["--loop"], "need --play"),
        (["--where", "src"], "LABEL=VALUE"),
        (["--close-after", "5:x"], "not N or N:CODE"),
        (["--close-after", "5:1006"], "not a close code"),
        (["--refuse-upgrade", "200"], "300<=x<=599"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(sim.command, arguments)
    assert (result.exit_code, said in result.output) == (2, True), result.output


@pytest.mark.usefixtures("sides")
def test_unreadable_recording_exits_1() -> None:
    result = CliRunner().invoke(sim.command, ["small", "--port", "0", "--play", "/nowhere.jsonl"])
    assert result.exit_code == 1
    assert result.output == "relay: /nowhere.jsonl: No such file or directory\n"


def _started(*arguments: str) -> subprocess.Popen[str]:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import test_simulator, relay.simulator\n"
        "relay.simulator.SIDES = test_simulator.SIDES\n"
        "from relay.cli.sim import command; command(prog_name='relay sim')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.fault
async def test_command_serves_until_a_signal_and_exits_0(number: signal.Signals) -> None:
    with _started("rest", "--port", "0", "--json", "--drop-after", "3", "--rate", "0") as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())["providers"]["rest"]
        assert addresses["rest_url"].startswith("http://127.0.0.1:")
        async with connect(addresses["url"]) as client:
            await client.send('{"key":"k"}')
            await client.send('{"subscribe":1}')
            assert numbers(await frames(client, lambda found: False)) == [1, 2, 3]
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")
    assert err == "rest: 1 connects, 3 data messages, drop_after 1\n"


@pytest.mark.fault
async def test_command_prints_yaml_that_points_at_it_and_names_a_taken_port() -> None:
    async with simulator() as running:
        with _started("small", "--port", str(running.port)) as process:
            out, err = process.communicate(timeout=10)
        assert process.returncode == 1
        assert err.startswith(f"relay: cannot listen on port {running.port}: ")
    with _started("rest", "other", "--port", "0") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(7)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    import yaml

    found = yaml.safe_load("".join(lines))["providers"]
    assert found["rest"]["url"].endswith("/rest") and found["rest"]["rest_url"].endswith("/rest")
    assert list(found["other"]) == ["url"]
