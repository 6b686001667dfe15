"""What one writes first: a WebSocket, redis-py as it comes, `*` ids. The control that the fault suites must fail.

`python naive.py PORT REDIS_URL`
"""

import asyncio
import contextlib
import json
import sys
from urllib.parse import urlsplit

import redis
from websockets.asyncio.client import connect


def client_of(url: str) -> "redis.Redis | redis.RedisCluster":
    if url.startswith("redis+cluster"):
        ports = [int(host.rpartition(":")[2]) for host in url.partition("://")[2].split(",")]
        return redis.RedisCluster(startup_nodes=[redis.cluster.ClusterNode("127.0.0.1", port) for port in ports])
    return redis.Redis(port=urlsplit(url).port or 6379)


async def main(port: str, url: str) -> None:
    client = client_of(url)
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "channels": ["matches"]}))
        waiting: list[tuple[str, bytes]] = []
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "match":
                body = {"type": "trade", "src_seq": message["trade_id"], "price": message["price"]}
                waiting.append((f"trades.{message['product_id']}", json.dumps(body).encode()))
            if len(waiting) >= 100:
                pipe = client.pipeline(transaction=False) if isinstance(client, redis.Redis) else client.pipeline()
                for name, body_bytes in waiting:
                    pipe.xadd(name, {"data": body_bytes})
                if isinstance(client, redis.RedisCluster):
                    with contextlib.suppress(redis.RedisError):  # after its own retries: with what comes next
                        pipe.execute()
                        waiting = []
                    continue
                waiting = []
                pipe.execute()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
