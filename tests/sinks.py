"""A sink at work for tests: numbered entries in, what Redis holds out, and every event that was told."""

import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import redis

from relay.config.structs import RedisConfig
from relay.outbox import Outbox, Topic
from relay.sink import sink_to


class Relay:
    """What the bridge and the intake do around a sink, as little of it as a test needs."""

    def __init__(
        self,
        url: str,
        name: str = "main",
        *,
        prefix: str = "",
        takeover: bool = False,
        call_secs: float = 5.0,
        bytes_max: int = 64 << 20,
        topic_bytes_max: int = 32 << 20,
        outbox: Outbox | None = None,
        **settings: Any,
    ) -> None:
        self.outbox = outbox or Outbox(bytes_max, topic_bytes_max)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.floor = 0
        self.now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        self.error: Exception | None = None
        self.sink = sink_to(
            url=url,
            settings=RedisConfig(**{"stream_length_max": 1_000_000, **settings}),
            outbox=self.outbox,
            relay=name,
            prefix=prefix,
            run=1_700_000_000_000,
            raise_floor=self._raise_floor,
            on_event=lambda kind, fields: self.events.append((kind, fields)),
            takeover=takeover,
            call_secs=call_secs,
        )

    def _raise_floor(self, ms: int) -> None:
        self.floor = max(self.floor, ms)

    def put(self, name: str, count: int = 1, body: bytes | None = None) -> Topic:
        """Number and add entries whose bodies count from 1."""
        topic = self.outbox.topic(name, "quotes", "acme")
        self.floor = ms = max(self.floor, self.now_ms())
        for _ in range(count):
            topic.seq += 1
            self.outbox.add(topic, f"{ms}-{topic.seq}", body or b"%d" % topic.seq)
        self.sink.notify()
        return topic

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def event(self, kind: str) -> dict[str, Any]:
        """The first event of a kind."""
        return next(fields for told, fields in self.events if told == kind)

    async def until(self, condition: Callable[[], Any], secs: float = 10.0) -> None:
        with anyio.fail_after(secs):
            while not condition():  # noqa: ASYNC110 - what is awaited happens in another process
                await anyio.sleep(0.005)

    async def told(self, kind: str, secs: float = 10.0) -> dict[str, Any]:
        """Wait for an event."""
        await self.until(lambda: kind in self.kinds(), secs)
        return self.event(kind)

    async def _run(self) -> None:
        try:
            await self.sink.run()
        except Exception as error:
            self.error = error

    @contextlib.asynccontextmanager
    async def running(self, ready: bool = True) -> AsyncIterator["Relay"]:
        async with anyio.create_task_group() as group:
            group.start_soon(self._run)
            try:
                if ready:
                    with anyio.fail_after(10):
                        await self.sink.ready.wait()
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self.sink.stop()
                group.cancel_scope.cancel()

    async def drained(self, secs: float = 10.0) -> None:
        assert await self.sink.drain(secs) == 0, (self.events, self.outbox.topics)


def bodies(client: "redis.Redis", name: str) -> list[int]:
    """The numbers that a stream holds, in its order; a gap event as its own number, negative."""
    texts = [fields["data"] for _, fields in client.xrange(name)]
    return [int(text) if text.isdigit() else -json.loads(text)["seq"] for text in texts]


def epoch(client: "redis.Redis") -> int:
    """The last one that was given."""
    return int(client.get("relay:epoch"))


def dose(count: int) -> int:
    """How often a fault test repeats: RELAY_TEST_DOSE multiplies it."""
    return max(1, int(count * float(os.environ.get("RELAY_TEST_DOSE", "1"))))
