"""Redis that comes back with less than it had confirmed is healed from the spool, quiet topics too, without PUBLISH."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from servers import Proxy, RedisServer
from sinks import Relay
from test_spool import spool_in

from relay.outbox import Topic
from relay.spool import Spool
from relay.spooled import SpooledOutbox


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def client(server: RedisServer) -> Iterator["redis.Redis"]:
    with server.client() as client:
        yield client


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = spool_in(tmp_path / "s", segment_bytes=4096)
    spool.open()
    yield spool
    spool.close()


def relay_of(url: str, spool: Spool, **settings: Any) -> Relay:
    outbox = SpooledOutbox(64 << 20, 32 << 20, spool, 1_700_000_000_000)
    topics = outbox.topics
    spool.confirmed = lambda name: (topics[name].last, bool(topics[name].blocked))
    return Relay(url, outbox=outbox, **settings)


def put(relay: Relay, name: str, count: int, run: int = 1, ahead: int = 100) -> Topic:
    """`ahead`: so much larger are the provider's numbers than ours."""
    topic = relay.outbox.topic(name, "trades", "acme")
    topic.contiguous = True
    for _ in range(count):
        number = topic.seq + 1
        message = {"type": "trade", "provider": "acme", "run": run, "seq": number, "src_seq": number + ahead}
        relay.put(name, 1, json.dumps(message, separators=(",", ":")).encode())
        if number % 10 == 0:
            relay.outbox.flush()
    return topic


def stored(client: "redis.Redis", name: str) -> list[tuple[str, int]]:
    return [(entry_id, json.loads(fields["data"])["seq"]) for entry_id, fields in client.xrange(name)]


async def whole(relay: Relay, client: "redis.Redis", name: str, count: int) -> list[tuple[str, int]]:
    await relay.until(lambda: _length(client, name) == count, 5.0)
    found = stored(client, name)
    assert [seq for _, seq in found] == list(range(1, count + 1))
    return found


def _length(client: "redis.Redis", name: str) -> int:
    try:
        return client.xlen(name)
    except redis.ConnectionError:
        return -1


async def test_quiet_topics_of_an_emptied_server_are_healed_within_seconds(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    relay = relay_of(server.url, spool)
    async with relay.running():
        for i in range(30):
            put(relay, f"t{i}", 40)
        await relay.drained()
        before = stored(client, "t7")
        with client.pubsub() as channel:
            channel.psubscribe("*")
            channel.get_message(timeout=1)
            client.flushall()
            for i in range(30):
                await whole(relay, client, f"t{i}", 40)
            await relay.told("healed")
            assert stored(client, "t7") == before, "with their old ids"
            assert channel.get_message(timeout=0.3) is None, "no subscriber gets anything twice"
        put(relay, "t7", 5)
        await relay.drained()
        await whole(relay, client, "t7", 45)
    assert relay.event("healed") == {"topics": 30, "entries": 1200}


async def test_restarted_empty_server_is_healed(server: RedisServer, client: "redis.Redis", spool: Spool) -> None:
    relay = relay_of(server.url, spool)
    async with relay.running():
        put(relay, "t", 300)
        await relay.drained()
        before = stored(client, "t")
        server.kill()
        put(relay, "t", 50)
        server.start()
        assert (await whole(relay, client, "t", 350))[:300] == before


@pytest.mark.fault
async def test_another_history_behind_the_same_connection_is_seen(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    """Demoted, filled from a master that lacks our entries, promoted again: no write fails, no connection breaks."""
    other = RedisServer()
    relay = relay_of(server.url, spool)
    try:
        async with relay.running():
            put(relay, "t", 20)
            await relay.drained()
            await relay.until(lambda: relay.sink._identity is not None, 5.0)
            with other.client() as theirs:
                theirs.ping()
            client.replicaof("127.0.0.1", other.port)
            await relay.until(lambda: client.info("replication").get("master_link_status") == "up", 20.0)
            assert client.xlen("t") == 0
            client.replicaof("NO", "ONE")
            await whole(relay, client, "t", 20)
    finally:
        other.close()


async def test_failover_during_healing_to_a_server_that_has_more_is_no_foreign_write(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    """The server before had taken a call whose answer never came; its replica takes over while another is healed."""
    relay = relay_of(server.url, spool)
    async with relay.running():
        topic = put(relay, "t", 20)
        await relay.drained()
        server.kill()
        await relay.told("lost")
        put(relay, "t", 5)
        ids = list(topic.ids)
        ledger = relay.sink._ledger
        ledger.settle(topic, "1-10")
        assert topic.parked
        ledger.settle(topic, ids[2])
        assert not topic.blocked and not topic.parked
        assert topic.last == topic.acked == ids[2] and topic.ids == ids[3:]
        ledger.settle(topic, "1-10")
        ledger.settle(topic, "99999999999999-1")
        assert topic.blocked == "foreign", "nobody of ours wrote that"


@pytest.mark.fault
async def test_healing_that_is_cut_off_repeats_nothing(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    proxy = Proxy(server.port)
    relay = relay_of(proxy.url, spool)
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.run)
        async with relay.running():
            put(relay, "a", 2000)
            put(relay, "b", 2000)
            await relay.drained()
            cuts = iter(["cut", None, "half", "cut", None, "refuse", "cut"])
            proxy.fault = lambda: next(cuts, None)
            client.flushall()
            await whole(relay, client, "a", 2000)
            await whole(relay, client, "b", 2000)
        assert proxy.faults >= 5
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("reply", [b"-OOM command not allowed", b"-MISCONF Errors writing", b"-ERR nobody knows"])
@pytest.mark.fault
async def test_healing_that_is_refused_for_a_while_leaves_no_hole(
    server: RedisServer, client: "redis.Redis", spool: Spool, reply: bytes
) -> None:
    proxy = Proxy(server.port)
    relay = relay_of(proxy.url, spool)
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.run)
        async with relay.running():
            put(relay, "a", 2000)
            put(relay, "b", 2000)
            await relay.drained()
            answers = iter([None, reply + b"\r\n", None, reply + b"\r\n", reply + b"\r\n"])
            proxy.fault = lambda: next(answers, None)
            client.flushall()
            await whole(relay, client, "a", 2000)
            await whole(relay, client, "b", 2000)
        assert proxy.faults == 3
        tasks.cancel_scope.cancel()


async def test_no_more_is_sent_again_than_a_stream_holds(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    relay = relay_of(server.url, spool, stream_length_max=500)
    async with relay.running():
        put(relay, "long", 3000)
        put(relay, "short", 400)
        await relay.drained()
        client.flushall()
        await relay.told("healed")
        assert relay.event("healed") == {"topics": 2, "entries": 900}
        put(relay, "long", 10)
        await relay.drained()
    assert [seq for _, seq in stored(client, "long")][-510:] == list(range(2501, 3011))
    assert [seq for _, seq in stored(client, "short")] == list(range(1, 401))
    assert "hole" not in relay.kinds()


async def test_beyond_retention_a_gap_says_what_is_missing(
    server: RedisServer, client: "redis.Redis", spool: Spool
) -> None:
    relay = relay_of(server.url, spool)
    async with relay.running():
        put(relay, "t", 100)
        await relay.drained()
        kept = client.xrange("t", count=30)
        spool._drop(lambda segment: segment.number < 2)
        first_left = spool.read(spool.find("t", "0-0"), ("t",))[0][0]  # type: ignore[arg-type]
        left = int(first_left.ids[0].split("-")[1])
        assert 31 < left < 100
        # an old backup: the first 30 entries, and the writer's key of that time
        writer = client.hgetall("relay:writer:{t}")
        client.delete("t")
        for entry_id, fields in kept:
            client.xadd("t", fields, id=entry_id)
        client.hset("relay:writer:{t}", mapping={**writer, "last": kept[-1][0]})
        put(relay, "t", 1)
        await relay.told("healed")
        await relay.drained()
    found = [json.loads(fields["data"]) for _, fields in client.xrange("t")]
    assert [m["seq"] for m in found] == [*range(1, 31), *range(left - 1, 102)]
    gap = found[30]
    assert (gap["event"], gap["reason"], gap["topic"]) == ("gap", "beyond_retention", "t")
    assert (gap["first_missing"], gap["last_missing"]) == (131, left + 99)
    assert relay.event("hole")["status"].missing == gap["missing"] == left - 31


async def test_what_another_node_had_written_and_redis_lost_is_a_gap(
    server: RedisServer, client: "redis.Redis", tmp_path: Path
) -> None:
    """A standby takes over, then Redis falls back behind the takeover: no spool of ours ever held what is missing."""
    spools = [spool_in(tmp_path / name) for name in ("a", "b")]
    for spool in spools:
        spool.open()
    first = relay_of(server.url, spools[0])
    async with first.running():
        put(first, "t", 40)
        await first.drained()
    kept = client.xrange("t", count=30)
    relay = relay_of(server.url, spools[1])
    async with relay.running():
        put(relay, "t", 10, run=2, ahead=140)
        await relay.drained()
        writer = client.hgetall("relay:writer:{t}")
        client.delete("t")
        for entry_id, fields in kept:
            client.xadd("t", fields, id=entry_id)
        client.hset("relay:writer:{t}", mapping={**writer, "last": kept[-1][0]})
        put(relay, "t", 1, run=2, ahead=140)
        await relay.told("healed")
        await relay.drained()
    found = [json.loads(fields["data"]) for _, fields in client.xrange("t")]
    assert [(m["run"], m["seq"]) for m in found] == [(1, n) for n in range(1, 31)] + [(1, 40)] + [
        (2, n) for n in range(1, 12)
    ]
    gap = found[30]
    assert (gap["event"], gap["reason"], gap["missing"]) == ("gap", "beyond_retention", 10)
    assert (gap["first_missing"], gap["last_missing"]) == (131, 140)
    for spool in spools:
        spool.close()


async def test_what_another_node_had_written_between_two_runs_of_ours_is_a_gap(
    server: RedisServer, client: "redis.Redis", tmp_path: Path
) -> None:
    """We write, another node does, we do again, and are started anew; then Redis loses all of it."""
    ours, theirs = spool_in(tmp_path / "ours"), spool_in(tmp_path / "theirs")
    for spool, run, count, ahead in ((ours, 1, 40, 100), (theirs, 2, 10, 140), (ours, 3, 5, 150)):
        spool.open()
        relay = relay_of(server.url, spool)
        async with relay.running():
            put(relay, "t", count, run, ahead)
            await relay.drained()
        spool.acknowledge({"t": relay.outbox.topics["t"].acked})
        spool.close()
    client.flushall()
    found = ours.open()
    relay = relay_of(server.url, ours)
    topic = relay.outbox.topic("t", "trades", "acme")
    topic.contiguous = found.about["t"].contiguous
    relay.outbox.recover(topic, found.last["t"], found.marks["t"], found.bodies["t"])
    async with relay.running():
        await relay.told("healed")
        put(relay, "t", 2, 4, 155)
        await relay.drained()
    messages = [json.loads(fields["data"]) for _, fields in client.xrange("t")]
    assert [(m["run"], m["seq"]) for m in messages] == [
        *((1, n) for n in range(1, 42)), *((3, n) for n in range(1, 6)), (4, 1), (4, 2)
    ]  # fmt: skip
    gap = messages[40]
    assert (gap["event"], gap["first_missing"], gap["last_missing"], gap["missing"]) == ("gap", 141, 150, 10)
    ours.close()


async def test_feeds_go_on_when_a_full_spool_has_room_again(
    server: RedisServer, client: "redis.Redis", tmp_path: Path
) -> None:
    spool = spool_in(tmp_path / "full", segment_bytes=4096, bytes_max=65_536)
    spool.open()
    relay = relay_of(server.url, spool)
    async with relay.running():
        put(relay, "t", 10)
        await relay.drained()
        server.kill()
        await relay.told("lost")
        while not relay.outbox.full:
            put(relay, "t", 10)
        count = relay.outbox.topics["t"].seq
        server.start()
        with anyio.fail_after(5):
            await relay.sink.room()
        await relay.drained()
        assert not spool.full and spool.bytes < 65_536
        put(relay, "t", 10)
        await relay.drained()
        await whole(relay, client, "t", count + 10)
    spool.close()
