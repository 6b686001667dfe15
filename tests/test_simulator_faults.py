"""The simulator's faults, with a small side of its own."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from small_side import SIDES, frames, numbered, numbers, simulator, subscribed
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from relay.simulator.faults import GARBAGE_TEXT, Faults, garbage_text
from relay.simulator.server import Simulator


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
