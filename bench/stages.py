"""What each stage of a message's way costs, in this process, one after the other: `python bench/stages.py [COUNT]`.

A report, never an assertion: figures of one run stand beside one another. The stages: `receive` (bytes of a real socket
become frames), `decode` (msgspec, the provider's wire struct), `normalize` (the rest of the provider's `receive`),
`route, number` and `encode` (the intake), `append` (the outbox and one function call of up to 1,000 entries; with the
time of the server, which is no CPU of ours). Where redis-server is missing, `append` is left out.
"""

import asyncio
import gc
import json
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from relay import codec
from relay.config import RedisConfig
from relay.feed.connection import open_wire
from relay.intake import Intake
from relay.outbox import Outbox
from relay.providers import PROVIDERS
from relay.providers.base import Connect, Frame
from relay.topics import Topics

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
SYMBOLS = 50
ROUNDS = 3
NOW = 1_772_359_200_000_000_000


def payload(number: int) -> bytes:
    return (
        f'{{"time_exchange":"2026-03-01T22:00:{number // 1000 % 60:02d}.{number % 1000:03d}0000Z",'
        f'"time_coinapi":"2026-03-01T22:00:{number // 1000 % 60:02d}.{number % 1000:03d}0000Z",'
        f'"uuid":"770c7a3b-7258-4441-8182-{number:012x}","price":{20000 + number % 977}.{number % 100:02d},'
        f'"size":0.{number % 9999 + 1:04d},"taker_side":"{"BUY" if number & 1 else "SELL"}",'
        f'"symbol_id":"BINANCE_SPOT_C{number % SYMBOLS:02d}_USDT","sequence":{number // SYMBOLS + 1},"type":"trade"}}'
    ).encode()


def best_of(run: Callable[[], Any], count: int = COUNT) -> float:
    """Least microseconds a message of some rounds: what it costs when nobody else wants the machine."""
    took = []
    for _ in range(ROUNDS):
        gc.collect()
        before = time.perf_counter()
        run()
        took.append((time.perf_counter() - before) / count * 1e6)
    return min(took)


class Nowhere:
    """An outbox that keeps nothing."""

    def __init__(self) -> None:
        self._outbox = Outbox(1 << 40, 1 << 40)

    def topic(self, name: str, kind: str, provider: str) -> Any:
        return self._outbox.topic(name, kind, provider)

    def add(self, topic: Any, entry_id: str, body: bytes) -> None: ...


async def receive() -> float:
    """CPU microseconds a frame from a real socket to a frame that waits for the session."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    blaster = [sys.executable, str(Path(__file__).with_name("blast.py")), str(port), str(COUNT), str(SYMBOLS)]
    with subprocess.Popen(blaster, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 -- nobody else waits
        try:
            assert process.stdout is not None and process.stdout.readline().strip() == "listening"
            wire = await open_wire(Connect(url=f"ws://127.0.0.1:{port}/v1/"), time.time_ns)
            await wire.send('{"type":"hello"}')
            await anyio.sleep(0.3)  # it begins half a second later
            before, seen = time.process_time(), 0
            while seen < COUNT:
                if wire.waiting:
                    seen += len(wire.waiting)
                    wire.waiting.clear()
                    await asyncio.sleep(0)
                else:
                    await wire.wait()
            cost = (time.process_time() - before) / COUNT * 1e6
            wire.transport.abort()
            return cost
        finally:
            process.terminate()


def measure() -> dict[str, float]:
    payloads = [payload(number) for number in range(COUNT)]
    spec = PROVIDERS["coinapi"]
    options = spec.options(trades=("BINANCE_SPOT_*",), api_key="bench-key", topics_max=20_000)  # type: ignore[call-arg]
    subscribed = spec.subscribed(options)
    out: dict[str, float] = {}

    out["receive (feed, websockets)"] = min(anyio.run(receive) for _ in range(ROUNDS))

    from relay.providers.coinapi.wire import decode

    out["decode (msgspec)"] = best_of(lambda: [decode(p) and None for p in payloads])
    frames = [Frame(NOW + i * 1000, p, False) for i, p in enumerate(payloads)]

    def session() -> Any:
        made: Any = spec.session(options, subscribed, spec.shared(options, "main"))
        made.connect()
        made.opened(NOW)
        made.to_send()
        return made

    def normalize() -> None:
        receive = session().receive
        for frame in frames:
            receive(frame)

    out["normalize (provider)"] = best_of(normalize) - out["decode (msgspec)"]

    def outputs() -> list[Any]:
        receive = session().receive
        return [receive(frame) for frame in frames]

    messages = outputs()
    flat = [message for some in messages for message in some]
    out["encode (msgspec)"] = best_of(lambda: [codec.encode(message) and None for message in flat])

    def take(outbox: Any, made: list[Any]) -> None:
        intake = Intake(Topics("bench"), outbox, NOW // 10**6)
        source = intake.source("coinapi", spec, spec.shared(options, "main"), subscribed)
        for frame, some in zip(frames, made, strict=True):
            intake.take(source, "1", some, frame.received_ns)

    out["route, number (intake)"] = best_of(lambda: take(Nowhere(), messages)) - out["encode (msgspec)"]
    outbox = Outbox(1 << 40, 1 << 40)
    take(outbox, messages)
    if shutil.which("redis-server"):
        cpu, wall = append(outbox)
        out["append (hiredis, redis-py)"] = cpu
        out["append, waiting for Redis too"] = wall
    return out


def append(outbox: Outbox) -> tuple[float, float]:
    """CPU and wall microseconds a message from the outbox into a real server."""
    from relay.embedded import EmbeddedServer
    from relay.sink import Sink

    async def run() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            server = EmbeddedServer(Path(folder))
            url = await server.start()
            try:
                settings = RedisConfig(url=url)
                sink = Sink(
                    url=url, settings=settings, outbox=outbox, relay="bench", prefix="", run=NOW // 10**6,
                    raise_floor=lambda ms: None, on_event=lambda kind, fields: None,
                )  # fmt: skip
                async with anyio.create_task_group() as tasks:
                    cpu, wall = time.process_time(), time.perf_counter()
                    tasks.start_soon(sink.run)
                    await sink.ready.wait()
                    await sink.drain(60)
                    found = (time.process_time() - cpu) / COUNT * 1e6, (time.perf_counter() - wall) / COUNT * 1e6
                    await sink.stop()
                return found
            finally:
                await server.stop()

    return anyio.run(run)


def main() -> None:
    found = measure()
    ours = sum(cost for name, cost in found.items() if "waiting" not in name)
    print(f"{COUNT:,} CoinAPI trades over {SYMBOLS} topics, Python {platform.python_version()}; us a message")
    for name, cost in found.items():
        share = "" if "waiting" in name else f"{cost / ours:7.0%}"
        print(f"{name:32}{cost:7.2f}{share}")
    print(f"{'sum of our CPU':32}{ours:7.2f}")
    results = Path(__file__).resolve().parent / "results"
    results.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"messages": COUNT, "python": platform.python_version(), "commit": commit, "us_per_message": found}
    (results / "stages.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
