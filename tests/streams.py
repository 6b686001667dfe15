"""A writer of topics for the tests of readers: the relay's wire contract by plain commands, with faults on request."""

import time
from typing import Any

import redis

from relay import codec, model

RUN = 1_772_359_100_000


class Writer:
    """Appends and publishes numbered trades as the relay does; `run` and `seq` may be bent. `client`: of a cluster."""

    def __init__(self, url: str, run: int = RUN, client: Any = None) -> None:
        self.client = client or redis.Redis.from_url(url)
        self._publish = "SPUBLISH" if isinstance(client, redis.RedisCluster) else "PUBLISH"
        self.run, self.ms = run, time.time_ns() // 1_000_000
        self.seqs: dict[str, int] = {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def restart(self) -> None:
        """A new run: numbers begin again."""
        self.run += 1000
        self.seqs.clear()

    def put(
        self, topic: str, count: int = 1, *, store: bool = True, publish: bool = True, status: str = "", **fields: Any
    ) -> list[str]:
        """Give the ids of what was written. Without `store` the number is used up and nothing is kept."""
        ids = []
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hset("relay:topics", topic, '{"kind":"trades","provider":"acme","relay":"t"}')
            for _ in range(count):
                self.ms += 1
                seq = self.seqs[topic] = self.seqs.get(topic, 0) + 1
                head: dict[str, Any] = {
                    "provider": "acme", "symbol": "BTC-USD", "raw_symbol": "BTCUSD", "ts_recv": self.ms * 1_000_000,
                    "run": self.run, "seq": seq,
                }  # fmt: skip
                message: Any = (
                    model.Status(**head, event=status, topic=topic, **fields)  # type: ignore[arg-type]
                    if status
                    else model.Trade(**head, price=f"{seq}.50", **fields)
                )
                body = codec.encode(message)
                ids.append(f"{self.ms}-{seq}")
                if store:
                    pipe.xadd(topic, {"data": body}, id=ids[-1])
                if publish:
                    pipe.execute_command(self._publish, topic, body)
            pipe.execute()
        return ids

    def skip(self, topic: str, count: int) -> None:
        """Use up numbers."""
        self.seqs[topic] = self.seqs.get(topic, 0) + count
