"""The sink against a real cluster: who writes what where, moves of slots, nodes that go, come back, and lie behind."""

import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from clusters import Cluster, Node
from servers import RedisServer, free_port
from sinks import Relay
from test_heal import put as put_trades
from test_heal import relay_of as spooled_relay
from test_spool import spool_in

from relay.config import shown_url
from relay.sink import CLUSTER_REACTIONS, REACTIONS, ClusterSink, Fenced, LeaseHeld, Sink, reaction, sink_to
from relay.sink.functions import library
from relay.sink.slots import slot_of

ACL = Path(__file__).resolve().parents[1] / "deploy" / "relay.acl"
NAMES = [f"quotes.T{number}" for number in range(20)]


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(one_cluster: Cluster) -> Cluster:
    one_cluster.until(one_cluster.whole)
    for node in one_cluster.primaries():
        node.call("FLUSHALL")
    return one_cluster


async def in_thread(what: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_thread.run_sync(what, *args)


async def during(relay: Relay, what: Callable[[], Any], names: list[str] = NAMES) -> Any:
    """Feed the relay while something happens to the cluster."""
    result: list[Any] = []

    async def run() -> None:
        result.append(await in_thread(what))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while not result:
            for name in names:
                relay.put(name, 3)
            await anyio.sleep(0.002)
    return result[0]


def numbers(cluster: Cluster, name: str) -> list[int]:
    """The numbers that a stream holds, in its order; a gap event as its own number, negative."""
    texts = [fields[1] for _, fields in cluster.owner(slot_of(name)).call("XRANGE", name, "-", "+")]
    return [int(text) if text.isdigit() else -json.loads(text)["seq"] for text in texts]


def exact(cluster: Cluster, relay: Relay) -> None:
    """Every number once, in order."""
    for topic in relay.outbox.topics.values():
        assert numbers(cluster, topic.name) == list(range(1, topic.seq + 1)), topic


def on(cluster: Cluster, node: Node, count: int = 3) -> list[str]:
    """Names of topics that a node serves."""
    names = (f"quotes.N{number}" for number in range(10_000))
    return list(itertools.islice((name for name in names if cluster.owner(slot_of(name)) is node), count))


def other(cluster: Cluster, node: Node) -> Node:
    return next(one for one in cluster.primaries() if one is not node)


async def test_topics_lie_on_their_nodes_and_are_published_to_their_shards(cluster: Cluster) -> None:
    with cluster.client() as client:
        heard = client.pubsub()
        heard.ssubscribe(NAMES[3])
        assert heard.get_sharded_message(timeout=5)["type"] == "ssubscribe"
        async with Relay(cluster.url).running() as relay:
            for _ in range(5):
                for name in NAMES:
                    relay.put(name, 7)
                await relay.drained()
            exact(cluster, relay)
            await relay.until(lambda: relay.sink.state == "flowing" and relay.sink.away == [])
            await relay.until(lambda: len(client.hgetall("relay:topics")) == len(NAMES))
            assert client.get("relay:lease:main")
        bodies = []
        while len(bodies) < 35:
            message = await in_thread(lambda: heard.get_sharded_message(timeout=5))
            if message is not None:
                bodies.append(int(message["data"]))
        heard.close()
        assert bodies == list(range(1, 36))
        assert client.get("relay:lease:main") is None, "a planned stop gives the lease back"
        owner = client.hgetall(f"relay:writer:{{{NAMES[3]}}}")
        assert owner[b"owner"] == b"main" and owner[b"epoch"] == client.get("relay:epoch")
    for node in cluster.primaries():
        assert node.call("FUNCTION", "LIST", "LIBRARYNAME", library().name), "loaded on every primary"


async def test_slots_move_under_load(cluster: Cluster) -> None:
    async with Relay(cluster.url).running() as relay:
        for name in NAMES[:3]:
            slot = slot_of(name)
            await during(relay, lambda slot=slot: cluster.move(slot, other(cluster, cluster.owner(slot))))
        await relay.drained()
        exact(cluster, relay)
        told = await relay.told("cluster_changed")
        assert told["slots"] >= 1 and "node_lost" not in relay.kinds() and "redis_lost" not in relay.kinds()


@pytest.mark.fault
async def test_topic_in_the_middle_of_a_move_waits_alone(cluster: Cluster) -> None:
    name, fresh = on(cluster, cluster.nodes[0], 1)[0], ""
    slot = slot_of(name)
    fresh = next(n for n in (f"quotes.{i}" for i in range(10**6)) if slot_of(n) == slot)
    async with Relay(cluster.url).running() as relay:
        relay.put(name, 5)
        await relay.drained()
        target = other(cluster, cluster.owner(slot))
        with cluster.moving(slot, target) as source:
            # one of its two keys has gone: nobody can take it
            await in_thread(cluster.migrate, slot, source, target, name)
            relay.put(name, 5)
            relay.put(fresh, 5)
            for each in NAMES:
                relay.put(each, 5)
            others = [relay.outbox.topics[each] for each in NAMES]
            await relay.until(lambda: not any(topic.ids for topic in others))
            waiting = [relay.outbox.topics[name], relay.outbox.topics[fresh]]
            await relay.until(lambda: all("is being moved" in topic.blocked for topic in waiting))
            assert relay.sink.state == "flowing" and all(len(topic.ids) == 5 for topic in waiting)
            # both of its keys have gone: the target takes it before the slot is its own
            await in_thread(cluster.migrate, slot, source, target, f"relay:writer:{{{name}}}")
            await relay.until(lambda: not waiting[0].ids and not waiting[0].blocked)
            assert numbers_at(target, slot, name) == list(range(1, 11))
        await relay.drained()
        assert "topic_blocked" not in relay.kinds() and "redis_lost" not in relay.kinds()
        exact(cluster, relay)


def numbers_at(node: Node, slot: int, name: str) -> list[int]:
    with RedisServer.client(node) as client:
        client.execute_command("ASKING")
        return [int(fields["data"]) for _, fields in client.xrange(name)]


@pytest.mark.fault
async def test_killed_primary_is_followed_by_its_replica(cluster: Cluster) -> None:
    async with Relay(cluster.url).running() as relay:
        victim = cluster.owner(slot_of(NAMES[0]))
        follower = await during(relay, lambda: cluster.kill(victim))
        await relay.drained()
        exact(cluster, relay)
        assert cluster.owner(slot_of(NAMES[0])) is follower
        await relay.told("node_replaced")
        assert relay.event("node_lost")["node"] == victim.address
        assert "topic_blocked" not in relay.kinds() and "lost" not in relay.kinds()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """One whose slots have not been moved about."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.mark.fault
async def test_node_that_is_away_holds_up_only_its_own_topics(own_cluster: Cluster) -> None:
    cluster = own_cluster
    node = cluster.owner(slot_of("relay:lease:main"))  # that nobody can renew the lease there stops no lane
    theirs, ours = on(cluster, node), on(cluster, other(cluster, node))
    body = b"x" * 1000
    relay = Relay(cluster.url, call_secs=1.0, bytes_max=2_000_000, topic_bytes_max=200_000)
    async with relay.running():
        for name in theirs + ours:
            relay.put(name, 1)
        await relay.drained()
        replica = cluster.replica_of(node)
        assert node.call("WAIT", 1, 5000) == 1
        for one in (replica, node):
            one.signal(signal.SIGSTOP)
        try:
            for _ in range(100):
                for name in theirs + ours:
                    relay.put(name, 2)
            await relay.until(lambda: not any(relay.outbox.topics[name].ids for name in ours))
            told = await relay.told("node_lost")
            assert told["node"] == node.address
            await relay.until(lambda: all("is away" in relay.outbox.topics[name].blocked for name in theirs))
            relay.put(theirs[0], 300, body)
            assert relay.outbox.topics[theirs[0]].full and not relay.outbox.full, "only its own bound"
            for name in ours:
                relay.put(name, 500, body)
            await relay.until(lambda: not any(relay.outbox.topics[name].ids for name in ours))
            assert relay.sink.state == "degraded" and relay.sink.away == [node.address]
        finally:
            replica.signal(signal.SIGCONT)
        try:
            await relay.drained(20.0)
            await relay.until(lambda: relay.sink.state == "flowing", 20.0)
            await relay.told("node_replaced")
            assert "fenced" not in relay.kinds() and relay.error is None
            for name in theirs:
                assert replica.call("XLEN", name) == relay.outbox.topics[name].seq
        finally:
            node.signal(signal.SIGCONT)


@pytest.mark.fault
async def test_what_a_promoted_replica_lacks_is_sent_again_quiet_topics_too(cluster: Cluster, tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "s")
    spool.open()
    node = cluster.primaries()[0]
    names = on(cluster, node, 10)
    relay = spooled_relay(cluster.url, spool)
    async with relay.running():
        for name in names:
            put_trades(relay, name, 20)
        await relay.drained()
        replica = cluster.replica_of(node)
        node.call("WAIT", 1, 5000)
        # it follows no more: what comes now it does not get
        node.call("CONFIG", "SET", "client-output-buffer-limit", "replica 1 1 1")
        replica.signal(signal.SIGSTOP)
        blob = b'{"type":"trade","provider":"acme","run":1,"seq":0,"text":"' + b"x" * 50_000 + b'"}'
        relay.put(on(cluster, node, 11)[10], 200, blob)
        await relay.drained()
        for name in names:
            put_trades(relay, name, 20)
        await relay.drained()
        node.kill()
        replica.signal(signal.SIGCONT)
        await in_thread(cluster.until, lambda: replica.call("ROLE")[0] == "master")
        lost = await relay.told("redis_lost")
        assert lost["topics"] >= len(names)
        await relay.told("healed")
        await relay.until(lambda: not relay.sink.lanes.healing)
        for name in names:
            stored = [json.loads(fields[1])["seq"] for _, fields in replica.call("XRANGE", name, "-", "+")]
            assert stored == list(range(1, 41)), name
        await in_thread(node.start)
    spool.close()


@pytest.mark.fault
async def test_new_node_gets_functions_with_its_first_slot(cluster: Cluster) -> None:
    node = await in_thread(cluster.add)
    try:
        async with Relay(cluster.url).running() as relay:
            slot = slot_of(NAMES[5])
            home = cluster.owner(slot)
            await during(relay, lambda: cluster.move(slot, node))
            await relay.drained()
            assert cluster.owner(slot) is node
            exact(cluster, relay)
            await during(relay, lambda: cluster.move(slot, home))
            await relay.drained()
            exact(cluster, relay)
            await relay.until(lambda: len(list(relay.sink.lanes)) == 3)
    finally:
        for one in cluster.nodes[:-1]:
            one.call("CLUSTER", "FORGET", node.id)
        cluster.nodes.remove(node)
        node.close()


async def test_node_that_lost_its_keys_or_functions_is_made_good(cluster: Cluster, tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "s")
    spool.open()
    node = cluster.primaries()[1]
    names = on(cluster, node, 3)
    relay = spooled_relay(cluster.url, spool)
    async with relay.running():
        for name in names:
            put_trades(relay, name, 30)
        await relay.drained()
        node.call("FUNCTION", "FLUSH")
        put_trades(relay, names[0], 10)
        await relay.drained()
        node.call("FLUSHALL")
        put_trades(relay, names[0], 10)
        await relay.told("healed")
        await relay.drained()
        for name, count in zip(names, (50, 30, 30), strict=True):
            stored = [json.loads(fields[1])["seq"] for _, fields in node.call("XRANGE", name, "-", "+")]
            assert stored == list(range(1, count + 1)), name
    spool.close()


@pytest.mark.fault
async def test_what_stands_beside_the_topics_comes_back(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of topics, who writes and the epoch lie on some node, which may lose them while the topics' do not."""
    monkeypatch.setattr("relay.sink.cluster.IDENTITY_SECS", 0.2)
    async with Relay(cluster.url).running() as relay:
        for name in NAMES:
            relay.put(name, 1)
        await relay.drained()
        keys = ("relay:topics", "relay:active:main", "relay:epoch")

        def kept() -> list[Any]:
            return [cluster.owner(slot_of(key)).call("GET" if key == "relay:epoch" else "HGETALL", key) for key in keys]

        await relay.until(lambda: all(kept()) and len(kept()[0]) == len(NAMES))
        before = kept()
        for key in keys:
            cluster.owner(slot_of(key)).call("DEL", key)
        await relay.until(lambda: sorted(map(str, kept()[0])) == sorted(map(str, before[0])), 5.0)
        await relay.until(lambda: [len(kept()[1]), kept()[2]] == [len(before[1]), before[2]], 5.0)
        relay.put(NAMES[0], 1)
        await relay.drained()


@pytest.mark.fault
async def test_full_node_is_trimmed_alone(cluster: Cluster) -> None:
    node = cluster.primaries()[2]
    theirs, ours = on(cluster, node, 2), on(cluster, other(cluster, node), 2)
    async with Relay(cluster.url).running() as relay:
        for name in theirs + ours:
            relay.put(name, 5_000)
        await relay.drained()
        used = int(next(line for line in node.call("INFO", "memory").splitlines() if "used_memory:" in line)[12:])
        node.call("CONFIG", "SET", "maxmemory", used + 100_000)
        try:
            for _ in range(20):
                for name in theirs + ours:
                    relay.put(name, 500)
                await relay.drained(20.0)
        finally:
            node.call("CONFIG", "SET", "maxmemory", 0)
        told = await relay.told("oom_trimmed")
        assert told["node"] == node.address and relay.sink.stats.trimmed > 0
        for name in ours:
            assert numbers(cluster, name) == list(range(1, 15_001))
        for name in theirs:
            found = numbers(cluster, name)
            assert found == list(range(found[0], 15_001)) and found[0] > 1


@pytest.mark.fault
async def test_size_of_all_streams_together_is_bounded(cluster: Cluster) -> None:
    async with Relay(cluster.url, streams_bytes_max=500_000).running() as relay:
        for name in NAMES:
            relay.put(name, 100, b"x" * 1000)
        await relay.drained()
        relay.sink._keeper._next = 0.0
        told = await relay.told("streams_trimmed")
        assert told["bytes"] > 1_500_000, "the sum over all nodes"
        lengths = [len(cluster.owner(slot_of(name)).call("XRANGE", name, "-", "+")) for name in NAMES]
        assert all(10 < length < 50 for length in lengths), lengths


@pytest.mark.fault
async def test_one_relay_of_a_name_and_one_writer_of_a_topic(cluster: Cluster) -> None:
    async with Relay(cluster.url).running() as first:
        first.put(NAMES[0], 3)
        await first.drained()
        second = Relay(cluster.url)
        async with second.running(ready=False):
            await second.until(lambda: second.error)
        assert isinstance(second.error, LeaseHeld) and "'main' already runs" in str(second.error)
        foreign = Relay(cluster.url, "other")
        async with foreign.running():
            foreign.put(NAMES[0], 1)
            assert "it runs" in (await foreign.told("owned"))["text"]
        third = Relay(cluster.url, takeover=True)
        async with third.running():
            first.put(NAMES[0], 1)
            await first.until(lambda: first.error)
            assert isinstance(first.error, Fenced)
    assert numbers(cluster, NAMES[0]) == [1, 2, 3]


@pytest.mark.fault
async def test_starts_with_a_node_away_and_says_from_when_on_its_topics_miss_something(cluster: Cluster) -> None:
    # the relay's own keys lie elsewhere
    own = {cluster.owner(slot_of(key)) for key in ("relay:lease:main", "relay:epoch", "relay:topics")}
    away = [node for node in cluster.primaries() if node not in own]
    if not away:
        pytest.skip("each node serves one of the relay's own keys after the moves of other tests")
    node = away[0]
    theirs, ours = on(cluster, node, 1)[0], on(cluster, other(cluster, node), 1)[0]
    async with Relay(cluster.url).running() as relay:
        relay.put(theirs, 1)
        relay.put(ours, 1)
        await relay.drained()
    stopped = (cluster.replica_of(node), node)
    for one in stopped:
        one.signal(signal.SIGSTOP)
    relay = Relay(cluster.url, call_secs=1.0)
    try:
        async with relay.running():
            assert relay.outbox.earlier[theirs] == "1700000000000-0", "since it was first seen"
            assert relay.outbox.earlier[ours] > "1700000000000-0"
            relay.put(ours, 1)
            relay.put(theirs, 1)
            await relay.until(lambda: not relay.outbox.topics[ours].ids)
            for one in reversed(stopped):
                one.signal(signal.SIGCONT)
            await relay.drained(20.0)
    finally:
        for one in stopped:
            one.signal(signal.SIGCONT)


async def test_wrong_kind_of_address_is_said(cluster: Cluster) -> None:
    relay = Relay(f"redis://127.0.0.1:{cluster.nodes[0].port}")
    async with relay.running(ready=False):
        relay.put(NAMES[0])
        assert "redis+cluster://" in (await relay.told("holding"))["text"]
    server = RedisServer()
    try:
        relay = Relay(f"redis+cluster://127.0.0.1:{server.port}")
        async with relay.running(ready=False):
            told = await relay.told("holding")
            assert "begin redis.url with redis://" in told["text"] and relay.sink.state == "holding"
    finally:
        server.close()
    relay = Relay(f"redis+cluster://127.0.0.1:{server.port}")
    async with relay.running(ready=False):
        assert "no node of the cluster answers" in (await relay.told("lost"))["error"]


async def test_the_user_of_the_acl_file_may_do_what_is_needed(cluster: Cluster) -> None:
    rights = next(line for line in ACL.read_text().splitlines() if line.startswith("user relay ")).split()[3:]
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "writer", "on", ">s3cret", *rights)
    async with Relay(cluster.url.replace("://", "://writer:s3cret@"), retention_secs=3600).running() as relay:
        for name in NAMES[:6]:
            relay.put(name, 5)
        await relay.drained()
        slot = slot_of(NAMES[0])
        with cluster.moving(slot, other(cluster, cluster.owner(slot))) as source:
            cluster.migrate(slot, source, other(cluster, source), *source.call("CLUSTER", "GETKEYSINSLOT", slot, 10))
            relay.put(NAMES[0], 5)
            await relay.drained()
        relay.put(NAMES[0], 5)
        await relay.drained()
        exact(cluster, relay)
        assert not re.search("NOPERM|topic_blocked|holding", str(relay.events)), relay.events
        assert "s3cret" not in str(relay.events) and "s3cret" not in repr(relay.sink.server)
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "writer", "-@all", "+ping")
    relay = Relay(cluster.url, username="writer", password="s3cret")
    async with relay.running(ready=False):
        told = await relay.told("holding")
        assert told["reaction"] == "rights" and "ACL" in told["text"]
    relay = Relay(cluster.url, username="writer", password="wrong")
    async with relay.running(ready=False):
        assert (await relay.told("holding"))["reaction"] == "rights"


@pytest.mark.fault
async def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not shutil.which("openssl") or not shutil.which("redis-server"):
        pytest.skip("no openssl to make a certificate with, or no server on the PATH that speaks TLS")
    cert, key, port = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), free_port()
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    await anyio.run_process(
        ["openssl", *make.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    )
    monkeypatch.setenv("RELAY_TEST_REDIS_SERVER", "redis-server")
    tls = ("--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
    cluster = Cluster(1, 0, *tls, "--tls-auth-clients", "no", "--tls-cluster", "yes")
    try:
        async with Relay(f"rediss+cluster://127.0.0.1:{port}", ca_file=cert).running() as relay:
            relay.put(NAMES[0], 2)
            await relay.drained()
            assert [lane.address for lane in relay.sink.lanes] == [f"127.0.0.1:{port}"]
        exact(cluster, relay)
        distrusting = Relay(f"rediss+cluster://127.0.0.1:{port}")
        async with distrusting.running(ready=False):
            assert "certificate" in (await distrusting.told("lost"))["error"].lower()
    finally:
        cluster.close()


def test_the_address_decides_the_sink() -> None:
    assert type(Relay("redis+cluster://a:1,b:2").sink) is ClusterSink
    assert type(Relay("redis://a:1").sink) is Sink and sink_to is not Sink
    assert shown_url("rediss+cluster://u:pw@a:1,b:2") == "rediss+cluster://u:***@a:1,b:2"


def test_cluster_reactions_stand_before_the_others() -> None:
    assert [what for _, what, _ in CLUSTER_REACTIONS] == ["moved", "ask", "later", "block"]
    for prefix, what, _ in CLUSTER_REACTIONS:
        assert reaction(f"{prefix} 3999 127.0.0.1:6381", cluster=True)[0] == what
        assert reaction(f"{prefix} 3999 127.0.0.1:6381")[0] in ("cluster", "wait")
    for prefix, what, _ in REACTIONS:
        if what not in ("cluster", "wait"):
            assert reaction(prefix, cluster=True)[0] == reaction(prefix)[0]
