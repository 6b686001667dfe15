"""A provider that numbers its messages and goes on whoever listens: Coinbase's protocol, a process of its own.

`python numbered.py PORT RATE PRODUCTS` sends RATE messages a second over PRODUCTS products (P00-USD ...). A product's
trade ids follow the clock, so that what a relay has missed is known exactly. Every connection sees the same trades.
"""

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

STEP_SECS = 0.005
BEHIND_SECS = 3.0
"""A connection that takes nothing for so long is closed, as providers do."""


class Market:
    """The trade ids of all products, by time."""

    def __init__(self, rate: float, products: int) -> None:
        self.names = [f"P{i:02d}-USD" for i in range(products)]
        self.rate, self.begun = rate, time.monotonic()
        self.tail = {
            name: f',"maker_order_id":"a","taker_order_id":"b","side":"sell","size":"0.01","price":"100.25",'
            f'"product_id":"{name}","sequence":1,"time":"2026-03-01T12:00:00.000000Z"}}'
            for name in self.names
        }

    def now(self) -> int:
        """Messages so far, over all products; the first stands for a market that has a past."""
        return 1000 * len(self.names) + int((time.monotonic() - self.begun) * self.rate)

    def message(self, number: int) -> str:
        index = number % len(self.names)
        name = self.names[index]
        return f'{{"type":"match","trade_id":{number // len(self.names)}{self.tail[name]}'


async def main(port: int, rate: float, products: int) -> None:
    market = Market(rate, products)

    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await serve_one(connection)

    async def serve_one(connection: ServerConnection) -> None:
        asked: Any = json.loads(await connection.recv())
        channels = [
            {"name": one["name"] if isinstance(one, dict) else one, "product_ids": market.names}
            for one in asked["channels"]
        ]
        await connection.send(json.dumps({"type": "subscriptions", "channels": channels}))
        sent = market.now()
        for number in range(sent - products, sent):
            await connection.send(market.message(number).replace('"match"', '"last_match"'))
        while True:
            now = market.now()
            watch = asyncio.get_running_loop().call_later(BEHIND_SECS, connection.transport.abort)
            for number in range(sent, now):
                await connection.send(market.message(number))
            watch.cancel()
            sent = max(sent, now)
            await asyncio.sleep(STEP_SECS)

    async with serve(handle, "127.0.0.1", port, compression=None, ping_interval=None):
        print("listening", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
