"""A real Redis Cluster on loopback: nodes come and go, slots move, primaries are killed. All by plain commands."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
from servers import RedisServer, free_port

from relay.sink.slots import SLOTS

NODE_TIMEOUT_MS = 1500
"""Small, for quick failovers; smaller, and a busy machine fails over by itself."""
KEYS_AT_ONCE = 10


class Node(RedisServer):
    """One node; its ports stay the same when it is started again."""

    def __init__(self, *options: str) -> None:
        self.bus = free_port()
        super().__init__(
            "--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-config-file", "nodes.conf",
            "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no",
            "--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no",
            "--repl-diskless-sync-delay", "0", "--repl-backlog-size", "32768", "--appendonly", "no",
            *options,
        )  # fmt: skip
        self.id = str(self.call("CLUSTER", "MYID"))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def call(self, *args: Any) -> Any:
        """One command; replies as text."""
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=10) as client:
            client.response_callbacks.clear()
            return client.execute_command(*args)

    def info(self) -> dict[str, str]:
        return dict(line.partition(":")[::2] for line in self.call("CLUSTER", "INFO").split())


class Cluster:
    """`primaries` primaries and as many replicas. `nodes`: all of them, the first primaries first."""

    def __init__(self, primaries: int = 3, replicas: int = 3, *options: str) -> None:
        self.options = options
        self.nodes: list[Node] = []
        try:
            self._build(primaries, replicas)
        except BaseException:
            self.close()
            raise

    def _build(self, primaries: int, replicas: int) -> None:
        for number in range(primaries + replicas):
            node = Node(*self.options)
            self.nodes.append(node)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                bounds = [SLOTS * part // primaries for part in (number, number + 1)]
                node.call("CLUSTER", "ADDSLOTSRANGE", bounds[0], bounds[1] - 1)
        self._meet(self.nodes[1:])
        for number, node in enumerate(self.nodes[primaries:]):
            node.call("CLUSTER", "REPLICATE", self.nodes[number % primaries].id)
        self.until(self.whole)

    def _meet(self, others: list[Node]) -> None:
        for node in others:
            self.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        self.until(lambda: all(self._knows_all(node) for node in self.nodes))

    def _knows_all(self, node: Node) -> bool:
        listed = node.call("CLUSTER", "NODES")
        return "handshake" not in listed and all(other.id in listed for other in self.nodes)

    def add(self) -> Node:
        """Start a primary without slots."""
        node = Node(*self.options)
        self.nodes.append(node)
        self._meet([node])
        self.until(self.whole)
        return node

    @staticmethod
    def until(condition: Callable[[], Any], secs: float = 20.0) -> None:
        end = time.monotonic() + secs
        while not condition():
            assert time.monotonic() < end, f"the cluster does not get there within {secs} s"
            time.sleep(0.02)

    def whole(self) -> bool:
        """Whether all nodes are up, agree, and all replicas follow."""
        try:
            return all(self._is_well(node) for node in self.nodes)
        except redis.RedisError:
            return False

    def _is_well(self, node: Node) -> bool:
        listed = node.call("CLUSTER", "NODES")
        if node.info()["cluster_state"] != "ok" or "fail" in listed or node.call("PING") != "PONG":
            return False
        role = node.call("ROLE")
        return role[0] == "master" or role[3] == "connected"

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes[:3])

    def client(self) -> "redis.RedisCluster":
        return redis.RedisCluster(startup_nodes=[
            redis.cluster.ClusterNode("127.0.0.1", node.port) for node in self.nodes if node.alive
        ])  # fmt: skip

    def primaries(self) -> list[Node]:
        """Nodes that serve slots, as they see it themselves."""
        return [node for node in self.nodes if node.alive and self._serves(node)]

    @staticmethod
    def _serves(node: Node) -> bool:
        mine = next(line for line in node.call("CLUSTER", "NODES").splitlines() if "myself" in line).split()
        return "master" in mine[2] and len(mine) > 8

    def owner(self, slot: int) -> Node:
        """The node that serves a slot."""
        asked = next(node for node in self.nodes if node.alive and node.info()["cluster_state"] == "ok")
        for first, last, place, *_ in asked.call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.id == place[2])
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, node: Node) -> Node:
        return next(one for one in self.nodes if one.alive and one.call("ROLE")[:3:2] == ["slave", node.port])

    # what happens to clusters

    @contextlib.contextmanager
    def moving(self, slot: int, target: Node) -> Iterator[Node]:
        """Begin to move a slot; leaving ends it. Gives the node that it is moved from."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        yield source
        self.migrate(slot, source, target)
        for node in (target, source, *self.primaries()):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def migrate(self, slot: int, source: Node, target: Node, *keys: str) -> None:
        """Move some keys of a slot, or all, one by one as redis-cli does."""
        while found := list(keys) or source.call("CLUSTER", "GETKEYSINSLOT", slot, KEYS_AT_ONCE):
            for key in found:
                source.call("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            if keys:
                return

    def move(self, slot: int, target: Node) -> None:
        """Move a slot with its keys."""
        with self.moving(slot, target):
            pass

    def kill(self, node: Node) -> Node:
        """kill -9 a primary, wait for its replica to take over, start it again, empty. Gives the new primary."""
        replica = self.replica_of(node)
        node.kill()
        self.until(lambda: replica.call("ROLE")[0] == "master" and replica.info()["cluster_state"] == "ok")
        node.start()
        return replica

    def hang(self, node: Node) -> Node:
        """Stop a primary until its replica has taken over; it goes on as if nothing had been. Gives the new primary."""
        replica = self.replica_of(node)
        node.signal(signal.SIGSTOP)
        self.until(lambda: replica.call("ROLE")[0] == "master" and replica.info()["cluster_state"] == "ok")
        node.signal(signal.SIGCONT)
        return replica

    def close(self) -> None:
        for node in self.nodes:
            node.close()
