"""What one writes first: a WebSocket, redis-py as it comes, `*` ids. The control that the fault suites must fail.

`python naive.py PORT REDIS_URL`
"""

import asyncio
import json
import sys
from urllib.parse import urlsplit

import redis
from websockets.asyncio.client import connect


async def main(port: str, url: str) -> None:
    client = redis.Redis(port=urlsplit(url).port or 6379)
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "channels": ["matches"]}))
        waiting: list[tuple[str, bytes]] = []
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "match":
                body = {"type": "trade", "src_seq": message["trade_id"], "price": message["price"]}
                waiting.append((f"trades.{message['product_id']}", json.dumps(body).encode()))
            if len(waiting) >= 100:
                pipe = client.pipeline(transaction=False)
                for name, body_bytes in waiting:
                    pipe.xadd(name, {"data": body_bytes})
                waiting = []
                pipe.execute()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
