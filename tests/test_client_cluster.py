"""The reader over a real cluster: every id once, every hole told, through moved slots and primaries that die."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis
from clusters import Cluster
from relays import until
from servers import free_port
from sinks import dose
from streams import Writer
from test_client import Reader, everything

from relay.client import Client, Cursor, Gap, Refused, Unreachable, reading, steps
from relay.client.shards import Poll, Round, Shards
from relay.client.steps import Lost
from relay.client.wires import Moved
from relay.targets import target_of

NAMES = [f"trades.T{number}" for number in range(12)]
"""They lie on all three nodes."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(3, 0)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SWEEP_SECS", 0.3)
    monkeypatch.setattr(steps, "DISCOVER_SECS", 0.1)


@pytest.fixture
def writer(cluster: Cluster) -> Iterator[Writer]:
    client = cluster.client()
    client.flushall(target_nodes="primaries")
    with contextlib.closing(client), Writer("", client=client) as writer:
        yield writer


def put(writer: Writer, count: int = 1, **how: Any) -> dict[str, list[str]]:
    return {name: writer.put(name, count, **how) for name in NAMES}


def by_topic(items: list[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in items:
        if not isinstance(item, Gap):
            found.setdefault(item.topic, []).append(item.id)
    return found


def joined(*parts: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [id for part in parts for id in part.get(name, [])] for name in NAMES}


async def got(reader: Reader, wanted: dict[str, list[str]]) -> None:
    await until(lambda: reader.error or len(reader.ids) >= sum(map(len, wanted.values())))
    assert reader.error is None
    assert by_topic(reader.items) == wanted


async def test_topics_of_all_nodes_are_read(cluster: Cluster, writer: Writer) -> None:
    wanted = put(writer, 3)
    client = Client(cluster.url)
    found = await everything(client.read("trades.*", since="all", follow=False))
    assert by_topic(found) == wanted
    assert by_topic(list(client.read_sync(*NAMES, since="all", follow=False))) == wanted
    assert (
        len({cluster.owner(int(one.call("CLUSTER", "KEYSLOT", n))).port for n in NAMES for one in cluster.nodes[:1]})
        == 3
    )


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_what_is_new_comes_with_topics_that_appear_later(cluster: Cluster, writer: Writer, via: Any) -> None:
    first = put(writer, 2)
    async with Reader(Client(cluster.url).read("trades.*", since="all", via=via)).running() as reader:
        await got(reader, first)
        second = put(writer, 2)
        await got(reader, joined(first, second))
        late = {"trades.LATE": writer.put("trades.LATE", 3)}
        writer.put("quotes.other")
        await got(reader, {**joined(first, second), **late})
    assert reader.gaps == []


async def test_channels_are_those_of_the_slots(cluster: Cluster, writer: Writer) -> None:
    first = put(writer)
    async with Reader(Client(cluster.url).read("trades.*", since="all", via="channel")).running() as reader:
        await got(reader, first)
        await until(lambda: sum(len(node.call("PUBSUB", "SHARDCHANNELS")) for node in cluster.nodes) == len(NAMES))
        second = put(writer, store=False)  # no sweep of the streams finds these
        await got(reader, joined(first, second))
        third = put(writer, publish=False)
        await got(reader, joined(first, second, third))
    assert reader.gaps == []
    await until(lambda: not any(node.call("PUBSUB", "SHARDCHANNELS") for node in cluster.nodes))


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_holes_are_told_in_their_place(cluster: Cluster, writer: Writer, via: Any) -> None:
    first = put(writer, 2)
    async with Reader(Client(cluster.url).read(*NAMES, since="all", via=via)).running() as reader:
        await got(reader, first)
        put(writer, 3, store=False, publish=False)
        last = put(writer)
        await got(reader, joined(first, last))
    assert {(gap.topic, gap.reason, gap.missing) for gap in reader.gaps} == {(name, "hole", 3) for name in NAMES}


def test_sync_follows_by_channel(cluster: Cluster, writer: Writer) -> None:
    wanted = put(writer, 2)
    cursor, seen = Cursor(), []
    for item in Client(cluster.url).read_sync("trades.*", since="all", cursor=cursor, via="channel"):
        seen.append(item)
        if len(seen) == 2 * len(NAMES):
            wanted = joined(wanted, put(writer))
        if len(seen) == 3 * len(NAMES):
            break
    assert by_topic(seen) == wanted
    assert dict(cursor) == {name: ids[-1] for name, ids in wanted.items()}


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_slots_move_while_they_are_read(cluster: Cluster, writer: Writer, via: Any) -> None:
    written = put(writer, 2)
    async with Reader(Client(cluster.url).read("trades.*", since="all", via=via)).running() as reader:
        await got(reader, written)
        for name in NAMES[:3]:
            slot = int(cluster.nodes[0].call("CLUSTER", "KEYSLOT", name))
            source = cluster.owner(slot)
            target = next(node for node in cluster.nodes if node is not source)
            await anyio.to_thread.run_sync(cluster.move, slot, target)
            written = joined(written, put(writer, 2))
            await got(reader, written)
    assert reader.gaps == []


async def test_group_shares_topics_of_all_nodes(cluster: Cluster, writer: Writer) -> None:
    wanted = put(writer, 5)
    client = Client(cluster.url)
    one = await everything(client.share("trades.*", group="g", consumer="a", since="all", follow=False))
    assert by_topic(one) == wanted
    more = put(writer, 2)
    two = list(client.share_sync("trades.*", group="g", consumer="b", follow=False))
    assert by_topic(two) == more
    assert all(writer.client.xpending(name, "g")["pending"] == 0 for name in NAMES)


async def test_refusals_and_wrong_addresses_are_told(cluster: Cluster, writer: Writer) -> None:
    put(writer)
    writer.client.set("trades.text", "x")
    with pytest.raises(Refused, match="WRONGTYPE"):
        await everything(Client(cluster.url).read("trades.text", since="all"))
    with pytest.raises(Refused, match="login"):
        await everything(Client(cluster.url, username="nobody", password="x").read(NAMES[0]))
    with pytest.raises(Unreachable):
        await everything(Client(f"redis+cluster://127.0.0.1:{free_port()}", connect_secs=0.1).read(NAMES[0]))
    with pytest.raises(Refused, match=r"MOVED.* a cluster's address is redis\+cluster://"):
        for node in cluster.nodes:
            list(Client(f"redis://{node.address}").read_sync(NAMES[0], since="all", follow=False))
    with pytest.raises(ValueError, match="names a database"):
        Client("redis+cluster://a/3").read("x")


# -- what needs no cluster -----------------------------------------------------------------------------------------


def shards() -> Shards:
    target = target_of("redis+cluster://a:1,b:2")
    assert target is not None
    shards = Shards(target)
    shards.learn(("a", 1), [[0, 8191, [b"", 1, b"id"]], [8192, 16383, [b"b", 2, b"id"], [b"c", 3, b"id"]]])
    return shards


def test_redirections_are_followed_and_remembered_where_they_are_for_good() -> None:
    map, commands = shards(), [("XRANGE", "foo", "-", "+"), ("XRANGE", "bar", "-", "+")]  # slots 12182 and 5061
    round = Round(map, commands)
    groups = round.groups()
    assert groups == {("b", 2): [(0, False)], ("a", 1): [(1, False)]}
    round.answered(("b", 2), groups["b", 2], [Moved(12182, "c", 3, asking=False)])
    round.answered(("a", 1), groups["a", 1], [Moved(5061, "b", 2, asking=True)])
    groups = round.groups()
    assert groups == {("c", 3): [(0, False)], ("b", 2): [(1, True)]}
    assert round.packed(groups["b", 2]) == [("ASKING",), commands[1]]
    round.answered(("c", 3), groups["c", 3], ["one"])
    round.answered(("b", 2), groups["b", 2], [b"OK", "two"])
    assert not round.groups() and round.results == ["one", "two"]
    assert map.owner("foo") == ("c", 3) and map.owner("bar") == ("a", 1)


def test_a_node_that_is_away_holds_up_only_its_own() -> None:
    map = shards()
    round = Round(map, [("XRANGE", "foo"), ("XRANGE", "bar")])
    groups = round.groups()
    round.failed(("b", 2), groups["b", 2], OSError("gone"))
    round.answered(("a", 1), groups["a", 1], ["one"])
    assert isinstance(round.results[0], Lost) and round.results[1] == "one"
    again = Round(map, [("XRANGE", "foo")])
    assert not again.groups() and "foo is away" in str(again.results[0])
    poll = Poll(("XREAD", "COUNT", 5, "STREAMS", "foo", "bar", "0-0", "7-1"), 0)
    assert poll.commands == [("XRANGE", "foo", "(0-0", "+", "COUNT", 5), ("XRANGE", "bar", "(7-1", "+", "COUNT", 5)]
    assert poll.answer([Lost("x"), [["8-1", []]]]) == [[b"bar", [["8-1", []]]]]
    assert poll.answer([Lost("x"), []]) is None and poll.pause() is None
    with pytest.raises(Lost):
        poll.answer([Lost("x"), Lost("y")])


def test_nodes_that_send_on_and_on_end_it() -> None:
    map, count = shards(), 0
    round = Round(map, [("XRANGE", "foo")])
    while groups := round.groups():
        ((host, group),) = groups.items()
        round.answered(host, group, [Moved(12182, "b" if host[0] == "c" else "c", 2, asking=False)])
        count += 1
        assert count < 20
    assert "from node to node" in str(round.results[0])


# -- the real thing, killed ----------------------------------------------------------------------------------------


class Healing:
    """A writer that puts back, with the old ids, what a failover took: what the relay's spool is for."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.ids: dict[str, list[str]] = {name: [] for name in NAMES}
        self.over = False

    def run(self) -> None:
        while not self.over:
            for name in NAMES:
                with contextlib.suppress(redis.RedisError):
                    self._one(name)
            time.sleep(0.005)

    def _one(self, name: str) -> None:
        client, ids = self.writer.client, self.ids[name]
        newest = client.xrevrange(name, count=1)
        last = newest[0][0].decode() if newest else "0-0"
        rest = ids[ids.index(last) + 1 :] if last in ids else ids
        for id in rest:
            self._write(name, id, publish=False)
        number = len(ids) + 1
        ms = max(time.time_ns() // 1_000_000, int(ids[-1].split("-")[0]) if ids else 0)
        ids.append(f"{ms}-{number}")
        self._write(name, ids[-1], publish=True)

    def _write(self, name: str, id: str, publish: bool) -> None:
        ms, seq = id.split("-")
        body = (
            f'{{"type":"trade","provider":"a","symbol":"A-B","raw_symbol":"AB","ts_recv":{ms}000000,"run":7,'
            f'"seq":{seq},"price":"1"}}'
        )
        with contextlib.suppress(redis.ResponseError):  # it is there: the answer was lost
            self.writer.client.xadd(name, {"data": body}, id=id)
        if publish:
            self.writer.client.execute_command("SPUBLISH", name, body)


@pytest.mark.fault
@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_primaries_are_killed_and_slots_move_under_readers(via: Any) -> None:
    cluster = Cluster(3, 3)
    client = cluster.client()
    try:
        with Writer("", client=client) as writer:
            for name in NAMES:
                writer.client.hset("relay:topics", name, '{"kind":"trades"}')
            healing = Healing(writer)
            thread = asyncio.get_running_loop().run_in_executor(None, healing.run)
            async with Reader(Client(cluster.url).read("trades.*", since="all", via=via)).running() as reader:
                for number in range(dose(3)):
                    before = len(reader.ids)
                    await until(lambda before=before: len(reader.ids) > before + 500, 30)
                    victim = (await anyio.to_thread.run_sync(cluster.primaries))[number % 3]
                    await anyio.to_thread.run_sync(cluster.kill, victim)
                    await anyio.to_thread.run_sync(cluster.until, cluster.whole)
                    slot = int(cluster.nodes[0].call("CLUSTER", "KEYSLOT", NAMES[number % len(NAMES)]))
                    source = cluster.owner(slot)
                    target = next(node for node in cluster.primaries() if node is not source)
                    with contextlib.suppress(redis.ResponseError):  # an entry came while its key was moved
                        await anyio.to_thread.run_sync(cluster.move, slot, target)
                healing.over = True
                await thread
                await got(reader, healing.ids)
        assert reader.gaps == []
    finally:
        client.close()
        cluster.close()
