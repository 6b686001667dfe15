"""A small provider's side for the simulator's server: login, subscribe, numbered messages, a heartbeat each tick."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from relay.simulator.base import Answer, Close, Refuse, SideSpec, Step, World
from relay.simulator.server import Simulator


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
