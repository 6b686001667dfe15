"""The control of the Sentinel suite: redis-py's own Sentinel support and its default retries, `*` ids.

`python naive_sentinel.py PORT SENTINEL_PORT,... SERVICE PASSWORD SENTINELS_PASSWORD`
"""

import asyncio
import json
import sys
from typing import Any

import redis
from redis.sentinel import Sentinel
from websockets.asyncio.client import connect


async def main(port: str, sentinels: str, service: str, password: str, theirs: str) -> None:
    hosts = [("127.0.0.1", int(one)) for one in sentinels.split(",")]
    found = Sentinel(hosts, sentinel_kwargs={"password": theirs}, password=password, socket_timeout=1)
    client: Any = found.master_for(service)
    waiting: list[tuple[str, bytes]] = []
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "channels": ["matches"]}))
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "match":
                body = {"type": "trade", "src_seq": message["trade_id"]}
                waiting.append((f"trades.{message['product_id']}", json.dumps(body).encode()))
            if len(waiting) >= 100:
                pipe = client.pipeline(transaction=False)
                for name, entry in waiting:
                    pipe.xadd(name, {"data": entry})
                try:
                    pipe.execute()
                    waiting = []
                except redis.RedisError:  # tried again, until the sentinels have named another
                    await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
