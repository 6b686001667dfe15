"""The simulator's server with a small side of its own: upgrade, rate, REST, scripts."""

import asyncio
import json
import logging
import subprocess
import sys
import time
from typing import Any

import anyio
import httpx2
import pytest
from small_side import SIDES, frames, numbered, simulator, subscribed
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from relay.simulator.faults import Faults
from relay.simulator.playback import Playback
from relay.simulator.script import close, drop, expect, hang, refuse, scripted, send, silence, until, wait
from relay.simulator.server import Simulator


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
