"""What the server pays: `python bench/server.py [entries] [appends] [replicas] [readers]`, all by default.

`entries`: memory of an entry in a stream, over messages that a relay wrote. `appends`: CPU of Redis an entry by the
relay's own append function, by batch and by subscribers that PUBLISH reaches; bytes on its wires. `replicas`: what a
replica adds to that. `readers`: CPU of Redis for a consumer that reads by XREAD BLOCK, by the topics that it follows.
The figures go to bench/results/server.json, where bench/scaling.py reads them. CPU is that of the server's main
thread, as the server itself counts it; loopback, so the card's share of network work is not in it.
"""

import contextlib
import json
import os
import platform
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import hiredis
import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import RESULTS, port, running, scene, table
from relay.sink.functions import library

FILE = RESULTS / "server.json"
TOPICS = 50
MAXLEN = "10000"
SUBSCRIBERS = (0, 1, 10, 100)
DELIVERIES = 400_000
FOLLOWED = (1, 10, 100, 1_000, 10_000)
BODY = (
    b'{"type":"trade","provider":"coinapi","symbol":"C00001-USDT","raw_symbol":"BINANCE_SPOT_C00001_USDT",'
    b'"venue":"BINANCE","ts_event":1772359200000000000,"ts_recv":1772359200000000000,"run":1772359100000,"seq":1,'
    b'"src_seq":1,"price":"20001.01","size":"0.0002","side":"BUY","id":"00000000000000000000000000000001"}'
)
"""Stands in until `entries` has seen what a relay writes."""


class Server:
    """A server of its own; `cluster`: one node that serves all slots, SPUBLISH instead of PUBLISH."""

    def __init__(self, number: int, cluster: bool) -> None:
        self.port, self.cluster = number, cluster
        self.client = redis.Redis(port=number)
        self.sock = socket.create_connection(("127.0.0.1", number))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = hiredis.Reader()
        self.client.execute_command("FUNCTION", "LOAD", library().text)
        self.append, self.fence, _ = library().names
        self.ids = count(1_772_359_200_000)
        self.last: dict[str, str] = {}

    def fenced(self, topics: list[str]) -> list[str]:
        """Own these topics."""
        for topic in topics:
            self.client.execute_command("FCALL", self.fence, 2, topic, f"relay:writer:{{{topic}}}", "bench", 1)
            self.last[topic] = "0-0"
        return topics

    def packed(self, topics: list[str], entries: int, body: bytes) -> bytes:
        """One call of the append function, as the relay packs it."""
        keys: list[str] = []
        args: list[bytes | str | int] = ["bench", 1, MAXLEN, 0, 2 if self.cluster else 1]
        for topic in topics:
            keys += (topic, f"relay:writer:{{{topic}}}")
            ids = [f"{next(self.ids)}-1" for _ in range(entries)]
            args += (self.last[topic], entries, *ids, *[body] * entries)
            self.last[topic] = ids[-1]
        return bytes(hiredis.pack_command(("FCALL", self.append, len(keys), *keys, *args)))

    def answer(self) -> Any:
        while (reply := self.reader.gets()) is False:
            self.reader.feed(self.sock.recv(1 << 20))
        if reply:
            sys.exit(f"the append function says {reply}")
        return reply

    def used(self) -> tuple[float, int, int]:
        """CPU seconds of the main thread, bytes in, bytes out."""
        info: Any = self.client.info()
        cpu = info["used_cpu_sys_main_thread"] + info["used_cpu_user_main_thread"]
        return cpu, info["total_net_input_bytes"], info["total_net_output_bytes"]


@contextlib.contextmanager
def server(cluster: bool = False) -> Iterator[Server]:
    number = port()
    args = ("--cluster-enabled", "yes", "--cluster-port", str(port())) if cluster else ()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, running(
        "redis-server", "--port", str(number), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
        "--dir", folder, *args, stdout=subprocess.DEVNULL,
    ):  # fmt: skip
        with redis.Redis(port=number) as client:
            end = time.time() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.time() > end:
                        raise
                    time.sleep(0.02)
            if cluster:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
                while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                    time.sleep(0.02)
        yield Server(number, cluster)


# -- appends -----------------------------------------------------------------------------------------------------

SHAPES = {
    # name: topics a call, entries of each, calls sent before the first answer is read, cluster
    "alone": (1, 1, 1, False),
    "one an entry": (TOPICS, 1, 1, False),
    "batched": (TOPICS, 10, 1, False),
    "cluster, alone": (1, 1, 1, True),
    "cluster, one an entry": (1, 1, TOPICS, True),
    "cluster, batched": (1, 10, TOPICS, True),
}


def appends(body: bytes) -> list[dict[str, Any]]:
    """CPU of Redis by an entry, by the shape of the calls and the subscribers of each topic."""
    rows = []
    for shape, (wide, deep, ahead, cluster) in SHAPES.items():
        for subscribers in SUBSCRIBERS:
            with server(cluster) as target:
                topics = target.fenced([f"trades.C{number:05d}-USDT" for number in range(TOPICS)])
                with drained(target, subscribers, topics):
                    rows.append({"shape": shape, "subscribers": subscribers}
                                | _appended(target, topics, wide, deep, ahead, subscribers, body))  # fmt: skip
    return rows


def replicas(body: bytes) -> list[dict[str, Any]]:
    """What a replica costs its primary: CPU by an entry, bytes sent to it."""
    rows = []
    for attached in (0, 1):
        with server() as target, contextlib.ExitStack() as stack:
            if attached:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-"))
                stack.enter_context(
                    running("redis-server", "--port", str(port()), "--bind", "127.0.0.1", "--save", "", "--dir", folder,
                            "--replicaof", "127.0.0.1", str(target.port), stdout=subprocess.DEVNULL)
                )  # fmt: skip
                end = time.time() + 30
                while _state(target) != "online":
                    if time.time() > end:
                        sys.exit("the replica does not come up")
                    time.sleep(0.1)
            topics = target.fenced([f"trades.C{number:05d}-USDT" for number in range(TOPICS)])
            found = _appended(target, topics, *SHAPES["batched"][:3], 0, body)
            rows.append({"replicas": attached, **found})
    # answers to the relay are in both
    rows[1]["bytes_to_replica_per_entry"] = rows[1]["bytes_out_per_entry"] - rows[0]["bytes_out_per_entry"]
    rows[0]["bytes_to_replica_per_entry"] = 0.0
    return rows


def _state(target: Server) -> str:
    known: Any = target.client.info("replication")
    return str(known.get("slave0", {}).get("state", ""))


def _appended(
    target: Server, topics: list[str], wide: int, deep: int, ahead: int, subscribers: int, body: bytes
) -> dict[str, float]:
    most = 15_000 if wide * deep * ahead == 1 else 60_000
    rounds = min(most, DELIVERIES // (subscribers + 1)) // (wide * deep * ahead)

    def blob(number: int) -> bytes:
        if wide > 1:
            return target.packed(topics, deep, body)
        begin = number * ahead
        return b"".join(target.packed([topics[(begin + i) % TOPICS]], deep, body) for i in range(ahead))

    blobs = [blob(number) for number in range(rounds)]
    done = 0
    before = (0.0, 0, 0)
    for number, one in enumerate(blobs):
        if number == rounds // 10:
            before, done = target.used(), 0
        target.sock.sendall(one)
        for _ in range(ahead):
            target.answer()
        done += wide * deep * ahead
    after = target.used()
    cpu, sent_in, sent_out = (b - a for a, b in zip(before, after, strict=True))
    return {
        "cpu_us_per_entry": cpu / done * 1e6,
        "bytes_in_per_entry": sent_in / done,
        "bytes_out_per_entry": sent_out / done,
        "bytes_out_per_delivery": sent_out / done / subscribers if subscribers else 0.0,
    }


@contextlib.contextmanager
def drained(target: Server, subscribers: int, topics: list[str]) -> Iterator[None]:
    """So many subscribers of all topics, in a process of their own, that take what comes."""
    if not subscribers:
        yield
        return
    word = "SSUBSCRIBE" if target.cluster else "SUBSCRIBE"
    with running(
        sys.executable, __file__, "--drain", str(target.port), str(subscribers), word, *topics, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "subscribed"
        yield


def drain(number: int, subscribers: int, word: str, topics: list[str]) -> None:
    chosen = selectors.DefaultSelector()
    for _ in range(subscribers):
        sock = socket.create_connection(("127.0.0.1", number))
        sock.sendall(b"".join(hiredis.pack_command((word, topic)) for topic in topics))
        reader, heard = hiredis.Reader(), 0
        while heard < len(topics):
            reader.feed(sock.recv(1 << 16))
            while reader.gets() is not False:
                heard += 1
        chosen.register(sock, selectors.EVENT_READ)
    print("subscribed", flush=True)
    buffer = bytearray(1 << 20)
    while True:
        for key, _ in chosen.select():
            if not key.fileobj.recv_into(buffer):  # type: ignore[union-attr]
                return


# -- readers -----------------------------------------------------------------------------------------------------


def readers(body: bytes) -> list[dict[str, Any]]:
    """CPU of Redis by one XREAD BLOCK that a single entry wakes, and by an entry of a long reply, by topics."""
    rows = []
    for followed in FOLLOWED:
        with server() as target:
            topics = target.fenced([f"trades.C{number:05d}-USDT" for number in range(followed)])
            rounds = max(60, min(3_000, 200_000 // followed))
            alone = _woken(target, topics, rounds, body, reading=False)
            woken = _woken(target, topics, rounds, body, reading=True)
            row = {"topics": followed, "rounds": rounds, "cpu_us_per_read": woken - alone}
            row["cpu_us_per_look"] = _looked(target, topics)
            rows.append(row | _long(target, topics[0], body))
    return rows


def _woken(target: Server, topics: list[str], rounds: int, body: bytes, *, reading: bool) -> float:
    """Microseconds of the server a round: an entry appended, with a reader that waits for it or without one."""
    sock = socket.create_connection(("127.0.0.1", target.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    replies = hiredis.Reader()
    for _ in range(2):  # a first, short time to warm up
        before = target.used()[0]
        for number in range(rounds):
            topic = topics[number % len(topics)]
            if reading:
                ids = [target.last[one] for one in topics]
                sock.sendall(hiredis.pack_command(("XREAD", "BLOCK", "0", "STREAMS", *topics, *ids)))
            # it must wait before the entry comes: the time that the server takes to begin to wait, and some. Without a
            # reader too: a server that was idle takes longer for the next call than one that is kept busy
            time.sleep(0.0003 + len(topics) * 2e-6)
            target.sock.sendall(target.packed([topic], 1, body))
            target.answer()
            if reading:
                while (found := replies.gets()) is False:
                    replies.feed(sock.recv(1 << 20))
                assert len(found) == 1, found
        cost = (target.used()[0] - before) / rounds * 1e6
    sock.close()
    return cost


def _looked(target: Server, topics: list[str]) -> float:
    """Microseconds of the server for one look at one topic that has nothing new, 100 looks sent together.

    So a reader of a cluster goes over its topics, which lie in different slots.
    """
    looks = [("XREAD", "COUNT", "100", "STREAMS", topic, target.last[topic]) for topic in topics]
    blob = b"".join(hiredis.pack_command(looks[number % len(looks)]) for number in range(100))
    rounds = 500
    before = target.used()[0]
    for _ in range(rounds):
        target.sock.sendall(blob)
        heard = 0
        while heard < 100:
            target.reader.feed(target.sock.recv(1 << 20))
            while target.reader.gets() is not False:
                heard += 1
    return (target.used()[0] - before) / rounds / 100 * 1e6


def _long(target: Server, topic: str, body: bytes) -> dict[str, float]:
    entries, times = 5_000, 10
    for _ in range(entries // 500):
        target.sock.sendall(target.packed([topic], 500, body))
        target.answer()
    before, _, out = target.used()
    for _ in range(times):
        at = "0-0"
        for _ in range(entries // 500):
            reply: Any = target.client.execute_command("XREAD", "COUNT", 500, "STREAMS", topic, at)
            found = reply[topic.encode()] if isinstance(reply, dict) else reply[0][1]
            at = (found[0] if isinstance(found[0][0], list) else found)[-1][0]
    after, _, ended = target.used()
    return {
        "cpu_us_per_entry_of_500": (after - before) / entries / times * 1e6,
        "bytes_out_per_entry": (ended - out) / entries / times,
    }


# -- entries -----------------------------------------------------------------------------------------------------

SIMULATED = {
    "kraken": "quotes: [BTC/USD, ETH/USD, SOL/USD], trades: [BTC/USD], bars: {1m: [BTC/USD]}, books: {10: [BTC/USD]}",
    "coinbase": "trades: [BTC-USD], quotes: [BTC-USD]",
}
ENTRIES_MIN = 1_000


def entries() -> list[dict[str, Any]]:
    """Memory of an entry (MEMORY USAGE of whole streams) by the kind of message, as a relay wrote them."""
    with scene(count=100_000, symbols=10) as stage:
        stage.until(100_000)
        rows = [_stored(stage.client, "CoinAPI trades", "trades.*")]
        FOUND["body"] = stage.client.xrevrange("trades.C00001-USDT", count=1)[0][1][b"data"]
    number = port()
    with running(
        sys.executable, "-m", "relay", "sim", *SIMULATED, "--rate", "2000", "--port", str(number),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    ):  # fmt: skip
        sections = "".join(
            f"  {name}: {{url: 'ws://127.0.0.1:{number}/{name}', {what}}}\n" for name, what in SIMULATED.items()
        )
        template = "topics: {quotes: 'quotes.{provider}.{symbol}', trades: 'trades.{provider}.{symbol}'}\n"
        with scene(providers=sections, config=template) as stage:
            stage.until(20_000)
            rows += [
                _stored(stage.client, "Kraken quotes", "quotes.kraken.*"),
                _stored(stage.client, "Coinbase trades", "trades.coinbase.*"),
                _stored(stage.client, "Kraken book changes", "books.kraken.*"),
            ]
    return rows


FOUND: dict[str, bytes] = {}
"""A real message, for the other two."""


def _stored(client: Any, kind: str, pattern: str) -> dict[str, Any]:
    names = [name for name in client.keys(pattern) if client.xlen(name) >= ENTRIES_MIN]
    if not names:
        found = {name.decode(): client.xlen(name) for name in client.keys(pattern)}
        sys.exit(f"no stream of {pattern} has {ENTRIES_MIN} entries: {found}")
    counts = [client.xlen(name) for name in names]
    memory = sum(client.memory_usage(name, samples=0) for name in names)
    bodies = [fmean(len(fields[b"data"]) for _, fields in client.xrange(name)) for name in names]
    return {
        "kind": kind,
        "entries": sum(counts),
        "bytes_per_entry": memory / sum(counts),
        "body_bytes": fmean(bodies),
    }


# -- all ---------------------------------------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["--drain"]:
        with contextlib.suppress(ConnectionError, KeyboardInterrupt):
            drain(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
        return
    parts = ("entries", "appends", "replicas", "readers")
    chosen = sys.argv[1:] or list(parts)
    if set(chosen) - set(parts):
        sys.exit(f"usage: server.py {' '.join(f'[{name}]' for name in parts)}, not {' '.join(chosen)}")
    known: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if "entries" in chosen:
        known["entries"] = entries()
        known["message"] = FOUND["body"].decode()
    body = known["message"].encode() if "message" in known else BODY
    for name, function in (("appends", appends), ("replicas", replicas), ("readers", readers)):
        if name in chosen:
            known[name] = function(body)
    for name in chosen:
        print(f"{name}:\n{table(known[name])}\n", flush=True)
    with server() as target:
        info: Any = target.client.info("server")
    about = {"machine": f"{os.cpu_count()} cores", "python": platform.python_version(),
             "server": f"Redis {info['redis_version']}"}  # fmt: skip
    FILE.write_text(json.dumps(about | known, indent=1) + "\n")


if __name__ == "__main__":
    main()
