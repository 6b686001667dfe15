"""A provider that numbers its messages and goes on whoever listens: Coinbase's protocol, a process of its own.

`python numbered.py PORT RATE PRODUCTS` sends RATE messages a second over PRODUCTS products (P00-USD ...). A product's
trade ids follow the clock, so that what a relay has missed is known exactly. Every connection sees the same trades,
of the products that it asked for. A trade's price is its true number: it goes on where the trade ids begin anew.

Each line on its input is a fault to play from now on (FAULTS, `none`); answered with the connects so far.
"""

import asyncio
import contextlib
import json
import sys
import time
from http import HTTPStatus
from random import Random
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from relay.simulator.faults import garbage_binary, garbage_text

STEP_SECS = 0.005
BEHIND_SECS = 3.0
"""A connection that takes nothing for so long is closed, as providers do."""
AGE_SECS = 0.3
"""How old a connection gets while it is dropped or closed."""
LATE = 101
"""A late message comes behind so many others."""
FAULTS = (
    "drop", "close", "storm", "refuse", "hang", "stall", "mute", "slow", "garbage", "jump", "reset", "repeat", "resend",
    "reorder", "flood",
)  # fmt: skip


class Market:
    """The trade ids of all products, by time."""

    def __init__(self, rate: float, products: int) -> None:
        self.names = [f"P{i:02d}-USD" for i in range(products)]
        self.rate, self.begun = rate, time.monotonic()
        self.base = 0
        """The true number at which the trade ids began."""
        self.fault, self.connects = "none", 0
        self.tail = {
            name: f'.25","maker_order_id":"a","taker_order_id":"b","side":"sell","size":"0.01",'
            f'"product_id":"{name}","sequence":1,"time":"2026-03-01T12:00:00.000000Z"}}'
            for name in self.names
        }

    def now(self) -> int:
        """Messages so far, over all products; the first stands for a market that has a past."""
        return 1000 * len(self.names) + int((time.monotonic() - self.begun) * self.rate)

    def message(self, number: int) -> str:
        index = number % len(self.names)
        name = self.names[index]
        true = number // len(self.names)
        return f'{{"type":"match","trade_id":{true - self.base},"price":"{true}{self.tail[name]}'

    def play(self, fault: str) -> None:
        """Play a fault from now on."""
        assert fault == "none" or fault in FAULTS, fault
        self.fault = fault
        if fault == "reset":
            # a step is made of whole rounds over the products, so that each begins with 1
            self.base = self.now() // len(self.names)


class Bent:
    """What becomes of one connection's messages by faults."""

    def __init__(self) -> None:
        self.random = Random(7)
        self.sent: list[str] = []
        self.late: list[tuple[int, str]] = []
        self.count = 0

    def __call__(self, fault: str, messages: list[str]) -> list[str | bytes]:
        out: list[str | bytes] = []
        for message in messages:
            self.count += 1
            count = self.count
            while self.late and (self.late[0][0] <= count or fault != "reorder"):
                out.append(self.late.pop(0)[1])
            if fault == "jump" and count % 47 < 3:
                continue
            if fault == "reorder" and count % 11 == 0:
                self.late.append((count + LATE, message))
                continue
            out.append(message)
            if fault == "repeat" and count % 7 == 0:
                out.append(message)
            if fault == "resend":
                self.sent.append(message)
                if count % 500 == 0:  # as some do after each subscribe
                    out += self.sent[-400:]
                    self.sent.clear()
            if fault == "garbage" and count % 5 == 0:
                out.append(
                    garbage_binary(self.random) if count % 2 else garbage_text(self.random).decode(errors="replace")
                )
            if fault == "flood" and count % 50 == 0:
                out.append('{"type":"status","products":[' + '"x",' * 200_000 + '"x"]}')
        return out


async def main(port: int, rate: float, products: int) -> None:
    market = Market(rate, products)

    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await serve_one(connection)

    async def upgrade(connection: ServerConnection, request: Request) -> Response | None:
        market.connects += 1
        while market.fault == "hang":  # noqa: ASYNC110 -- a line on our input changes it
            await asyncio.sleep(STEP_SECS)
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "") if market.fault == "refuse" else None

    async def serve_one(connection: ServerConnection) -> None:
        if market.fault == "storm":
            await connection.close(1013)
        asked: Any = json.loads(await connection.recv())
        wanted = set(asked.get("product_ids") or market.names)
        for one in asked["channels"]:
            if isinstance(one, dict):
                wanted = set(one.get("product_ids") or wanted)
        channels = [
            {"name": one["name"] if isinstance(one, dict) else one, "product_ids": sorted(wanted)}
            for one in asked["channels"]
        ]
        await connection.send(json.dumps({"type": "subscriptions", "channels": channels}))
        ours = [name in wanted for name in market.names]
        sent = market.now()
        for number in range(sent - products, sent):
            if ours[number % products]:
                await connection.send(market.message(number).replace('"match"', '"last_match"'))
        opened, bent = time.monotonic(), Bent()
        while True:
            fault = market.fault
            old = time.monotonic() - opened > AGE_SECS
            if fault in ("drop", "storm", "refuse", "hang") and old:
                connection.transport.abort()
            elif fault == "close" and old:
                await connection.close(1012)
            now = market.now()
            if fault in ("stall", "mute"):
                sent = now  # what it did not send is gone
            if fault == "stall":
                connection.transport.pause_reading()
            elif not connection.transport.is_reading() and not connection.transport.is_closing():
                connection.transport.resume_reading()
            if fault == "slow":
                now = min(now, sent + 1)
            watch = asyncio.get_running_loop().call_later(BEHIND_SECS, connection.transport.abort)
            new = [market.message(number) for number in range(sent, now) if ours[number % products]]
            for message in bent(fault, new):
                await connection.send(message)
            watch.cancel()
            sent = max(sent, now)
            await asyncio.sleep(STEP_SECS)

    def heard() -> None:
        line = sys.stdin.readline().strip()
        if not line:  # nobody will say anything any more
            loop.remove_reader(sys.stdin)
            return
        market.play(line)
        print(market.connects, flush=True)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, heard)
    async with serve(handle, "127.0.0.1", port, compression=None, ping_interval=None, process_request=upgrade):
        print("listening", flush=True)
        await loop.create_future()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
