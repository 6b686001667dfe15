"""The reader against kill -9, of relay, server and itself, and against trimming: nothing twice, no hole untold."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from relays import Process, until
from servers import RedisServer, free_port
from sinks import dose
from streams import Writer

from relay.client import Client, Gap, Item, Unreachable

pytestmark = pytest.mark.fault
ROOT = Path(__file__).resolve().parents[1]
T = "trades.BTC-USD"

CONSUMER = """
import os, sys
from relay.client import Client, Cursor, Gap
how, url, name, path = sys.argv[1:]
out = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
if how == "cursor":
    cursor = Cursor()
    for line in open(path):
        topic, id, run, what = line.split()
        cursor.move(topic, id, int(run))
    items = Client(url, connect_secs=60).read_sync("trades.*", since="all", cursor=cursor)
else:
    items = Client(url, connect_secs=60).share_sync("trades.*", group="g", consumer=name, since="all", claim_secs=1.0)
for item in items:
    # one write holds the result and the cursor
    gap = isinstance(item, Gap)
    if how == "cursor":
        id, run = cursor[item.topic], cursor.run(item.topic)
    else:
        id, run = item.id, 0
    what = f"gap:{item.missing}" if gap else "item"
    os.write(out, f"{item.topic} {id} {run} {what}\\n".encode())
"""


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    """A server that forgets nothing when it is killed."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        yield server
    finally:
        server.close()


class Consumer:
    """A consumer in a process of its own, killed and started again; what it handled is in its file."""

    def __init__(self, how: str, url: str, name: str, folder: Path) -> None:
        self.path = folder / name
        self.path.touch()
        self.command = [sys.executable, "-c", CONSUMER, how, url, name, str(self.path)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    @property
    def handled(self) -> list[str]:
        return [f"{topic} {id}" for topic, id, _, what in self.lines if what == "item"]


@contextlib.contextmanager
def three(how: str, url: str, folder: Path) -> Iterator[list[Consumer]]:
    consumers = [Consumer(how, url, name, folder) for name in "abc"]
    try:
        for one in consumers:
            one.start()
        yield consumers
    finally:
        for one in consumers:
            one.kill()


async def under_fire(consumers: list[Consumer], server: RedisServer, writer: Writer, rounds: int) -> list[str]:
    """Write while consumers are killed at random and the server now and then. Gives what was stored."""
    chance = random.Random(7)
    stored = []
    for turn in range(rounds):
        for topic in (T, "trades.ETH-USD", f"trades.T{turn // 10}"):
            count = chance.randint(1, 40)
            stored += [f"{topic} {id}" for id in writer.put(topic, count)]
            if chance.random() < 0.1:
                writer.put(topic, 2, store=False, publish=False)  # a hole, told when the next one comes
        await anyio.sleep(chance.random() * 0.2)
        if chance.random() < 0.4:
            one = chance.choice(consumers)
            one.kill()
            one.start()
        if turn % 10 == 5:
            server.kill()
            server.start()
    for topic in writer.seqs:
        stored += [f"{topic} {id}" for id in writer.put(topic)]
    return stored


async def test_three_consumers_killed_at_random_have_each_id_once_by_their_cursors(
    durable: RedisServer, tmp_path: Path
) -> None:
    with Writer(durable.url) as writer, three("cursor", durable.url, tmp_path) as consumers:
        stored = await under_fire(consumers, durable, writer, dose(40))
        for one in consumers:
            await until(lambda one=one: len(one.handled) >= len(stored), 30)  # type: ignore[misc]
        for one in consumers:
            assert Counter(one.handled) == Counter(stored)
            missing = sum(int(what.partition(":")[2]) for *_, what in one.lines if what != "item")
            assert missing == sum(writer.seqs.values()) - len(stored), "each hole once"


async def test_three_consumers_killed_at_random_have_each_id_at_least_once_in_a_group(
    durable: RedisServer, tmp_path: Path
) -> None:
    with Writer(durable.url) as writer, three("group", durable.url, tmp_path) as consumers:
        stored = await under_fire(consumers, durable, writer, dose(40))
        await until(lambda: {id for one in consumers for id in one.handled} >= {*stored}, 60)
        handled = [id for one in consumers for id in one.handled]
        assert {*handled} == {*stored}
        gaps = {(line[0], line[1]): line[3] for one in consumers for line in one.lines if line[3] != "item"}
        told = sum(int(what.partition(":")[2]) for what in gaps.values())
        assert gaps and told == sum(writer.seqs.values()) - len(stored), "every hole is told by one of them"
        await until(lambda: all(writer.client.xpending(topic, "g")["pending"] == 0 for topic in writer.seqs), 30)


RELAY = """
name: t
state_dir: {folder}/state
redis: {{url: {url}, stream_length_max: {length}}}
providers:
  coinapi: {{api_key: kkkkkkkk, trades: [BITSTAMP_SPOT_BTC_USD, KRAKEN_SPOT_ETH_EUR], simulate: true}}
"""


@contextlib.asynccontextmanager
async def reading(source: AsyncIterator[Item | Gap], pause: float = 0.0) -> AsyncIterator[list[Item | Gap]]:
    found: list[Item | Gap] = []

    async def read() -> None:
        async with contextlib.aclosing(source) as items:  # type: ignore[type-var]
            async for item in items:
                found.append(item)
                if pause:
                    await anyio.sleep(pause)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        try:
            yield found
        finally:
            tasks.cancel_scope.cancel()


def account(found: list[Item | Gap]) -> None:
    """Within each run of each topic: what was read and what was told to be missing make up all numbers, in order."""
    last: dict[str, tuple[int, int]] = {}
    owed: Counter[str] = Counter()
    for item in found:
        if isinstance(item, Gap) and item.message is None:
            owed[item.topic] += item.missing or 0
            continue
        message: Any = item.message
        run, seq = last.get(item.topic, (0, 0))
        if item.topic in last:
            expected = (seq if message.run == run else 0) + owed.pop(item.topic, 0) + 1
            assert message.seq == expected, item
        else:
            owed.pop(item.topic, 0)
        last[item.topic] = (message.run, message.seq)


def stored(server: RedisServer, topic: str) -> list[str]:
    with server.client() as client:
        return [id for id, _ in client.xrange(topic)]


def ids(found: list[Item | Gap], topic: str) -> list[str]:
    return [item.id for item in found if item.topic == topic and (isinstance(item, Item) or item.message)]


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_relay_killed_and_back_is_read_once_and_whole(durable: RedisServer, tmp_path: Path, via: Any) -> None:
    (tmp_path / "relay.yaml").write_text(RELAY.format(folder=tmp_path, url=durable.url, length=1_000_000))
    topics = ("sim.trades.BTC-USD", "sim.trades.ETH-EUR")
    async with reading(Client(durable.url, prefix="sim.").read("trades.*", since="all", via=via)) as found:
        for turn in range(dose(3)):
            had = len(found)
            with Process(tmp_path, "run"):
                await until(lambda had=had: len(found) > had + 50, 30)  # type: ignore[misc]
            # leaving kills it: SIGKILL
            assert turn >= 0
        for topic in topics:
            await until(lambda topic=topic: ids(found, topic) == stored(durable, topic), 10)  # type: ignore[misc]
    account(found)
    assert not [item for item in found if isinstance(item, Gap) and item.message is None], "the streams have no hole"
    runs = {item.message.run for item in found if item.message}
    assert len(runs) == dose(3)
    told = [item for item in found if isinstance(item, Gap)]
    assert {gap.reason for gap in told} == {"relay_down"} and len(told) == (dose(3) - 1) * len(topics)


@pytest.mark.parametrize("keeps", [True, False])
async def test_server_killed_under_the_relay_leaves_no_hole_untold(tmp_path: Path, keeps: bool) -> None:
    server = RedisServer(*(("--appendonly", "yes", "--appendfsync", "always") if keeps else ()))
    try:
        (tmp_path / "relay.yaml").write_text(RELAY.format(folder=tmp_path, url=server.url, length=1_000_000))
        with Process(tmp_path, "run"):
            read = [Client(server.url).read("sim.trades.*", since="all", via=via) for via in ("stream", "channel")]  # type: ignore[arg-type]
            async with reading(read[0]) as one, reading(read[1]) as two:
                for _ in range(dose(3)):
                    had = min(len(one), len(two))
                    await until(lambda had=had: min(len(one), len(two)) > had + 50, 30)  # type: ignore[misc]
                    server.kill()
                    server.start()
                had = min(len(one), len(two))
                await until(lambda: min(len(one), len(two)) > had + 50, 30)
            for found in (one, two):
                account(found)
                for topic in ("sim.trades.BTC-USD", "sim.trades.ETH-EUR"):
                    assert len(ids(found, topic)) == len({*ids(found, topic)}) > 50, "nothing twice"
    finally:
        server.close()


async def test_slow_reader_of_a_trimmed_stream_is_told_every_number(durable: RedisServer) -> None:
    with Writer(durable.url) as writer:
        writer.put(T)
        async with reading(Client(durable.url).read(T, since="all"), pause=0.002) as found:
            await until(lambda: found)
            for _ in range(dose(30)):
                writer.put(T, 400)
                writer.client.xtrim(T, maxlen=100, approximate=False)
                await anyio.sleep(0.02)
            (last,) = writer.put(T)
            await until(lambda: found and found[-1].id == last, 60)
    account(found)
    missing = sum(item.missing or 0 for item in found if isinstance(item, Gap))
    assert missing > 0 and missing + len([item for item in found if isinstance(item, Item)]) == writer.seqs[T]


async def test_tls_checks_the_server_and_reads_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not shutil.which("openssl") or not shutil.which("redis-server"):
        pytest.skip("no openssl to make a certificate with, or no server on the PATH that speaks TLS")
    cert, key, port = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), free_port()
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    await anyio.run_process(
        ["openssl", *make.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    )
    monkeypatch.setenv("RELAY_TEST_REDIS_SERVER", "redis-server")
    tls = ("--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
    server = RedisServer(*tls, "--tls-auth-clients", "no")
    try:
        with Writer(server.url) as writer:
            stored = writer.put(T, 2)
        url = f"rediss://127.0.0.1:{port}/0"
        trusting = Client(url, ssl_ca_certs=cert)
        assert [item.id for item in trusting.read_sync(T, since="all", follow=False)] == stored
        for via in ("stream", "channel"):
            async with reading(trusting.read(T, since="all", via=via)) as found:  # type: ignore[arg-type]
                await until(lambda found=found: [item.id for item in found] == stored)  # type: ignore[misc]
        with pytest.raises(Unreachable, match="certificate"):
            next(iter(Client(url, connect_secs=0.1).read_sync(T, since="all")))
    finally:
        server.close()
