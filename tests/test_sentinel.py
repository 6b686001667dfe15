"""Sentinel: the primary of this moment is found, left when it is demoted, and given again what a replica had lost."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import redis
from checker import Verdict, check, streams
from relays import Process, config_of, until
from sentinels import PASSWORD, SENTINELS_PASSWORD, SERVICE, Service, wait
from servers import RedisServer
from sinks import Relay, dose
from streams import Writer
from test_client import Reader, T, everything
from test_faults import NAMES, provider, stop
from test_heal import put, relay_of, stored
from test_spool import spool_in

from relay.client import Client, Unreachable, reading
from relay.client import sentinel as guide
from relay.client.steps import Lost
from relay.config import shown_url
from relay.config.addresses import passwords_in
from relay.keeping import _where
from relay.sink.link import LinkLost, Server
from relay.sink.sentinel import Sentinels, View
from relay.targets import Target, target_of

# -- addresses -----------------------------------------------------------------------------------------------------

ADDRESSES = {
    "redis+sentinel://a,b:1/s": Target("sentinel", False, (("a", 26379), ("b", 1)), service="s"),
    "rediss+sentinel://u:p%40@a:1, a:1/s/3": Target("sentinel", True, (("a", 1),), "u", "p@", "s", 3),
    "redis+sentinel://:p@[::1]:5,[fe80::2]/s%2Ft/": Target(
        "sentinel", False, (("::1", 5), ("fe80::2", 26379)), "", "p", "s/t"
    ),
    "redis+cluster://u@a,b:7001": Target("cluster", False, (("a", 6379), ("b", 7001)), "u"),
    "rediss+cluster://a/0": Target("cluster", True, (("a", 6379),)),
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_address_with_several_servers_is_read(url: str) -> None:
    assert target_of(url) == ADDRESSES[url]


@pytest.mark.parametrize("url", ["redis://a:1/0", "rediss://a", "unix:///a", "embedded", ""])
def test_address_of_one_server_is_none_of_it(url: str) -> None:
    assert target_of(url) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a", "names no service; write redis+sentinel://host:26379,host:26379/service"),
        ("redis+sentinel:///s", "names no host"),
        ("redis+sentinel://a:0/s", "port"),
        ("redis+sentinel://a:x/s", "port"),
        ("redis+sentinel://[::1/s", "port"),
        ("redis+sentinel://a/s/0/1", "number of the database"),
        ("redis+sentinel://a/s?db=1", "options"),
        ("redis+cluster://a/1", "a cluster has only one"),
    ],
)
def test_wrong_address_names_the_cure(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        target_of(url)
    assert why in str(caught.value)


def test_secrets_of_an_address_are_not_shown() -> None:
    url = "rediss+sentinel://me:p%40ss@b:1,[::1]:2/s/4"
    assert shown_url(url) == "rediss+sentinel://me:***@[::1]:2,b:1/s/4"
    assert passwords_in(url) == ["p%40ss", "p@ss"]
    assert "p@ss" not in repr(Server(url)) and "p%40" not in repr(Server(url))
    assert shown_url("redis+sentinel://:secret@a:b/s") == "***"


def test_spool_belongs_to_the_service_not_to_its_primary(tmp_path: Path) -> None:
    def mark(url: str) -> str:
        return _where(config_of(f"redis: {{url: '{url}'}}\nproviders: {{kraken: {{trades: [BTC/USD]}}}}", tmp_path))

    first = mark("redis+sentinel://:one@a:1,b:2/s")
    assert first == mark("redis+sentinel://:two@b:2,a:1/s") and "one" not in first
    assert len({first, mark("redis+sentinel://a:1,b:2/t"), mark("redis+sentinel://a:1,b:3/s")}) == 3


# -- what sentinels say --------------------------------------------------------------------------------------------

A, B = ("a", 1), ("b", 2)


def sentinels_that_say(monkeypatch: pytest.MonkeyPatch, *answers: "View | str") -> Sentinels:
    """Sentinels of which each says what stands here; text: why it says nothing."""
    hosts = tuple((f"s{number}", 1) for number in range(len(answers)))
    sentinels = Sentinels(Target("sentinel", False, hosts, service="s"), Server("redis+sentinel://x/s"), "test")

    async def ask(self: Sentinels, links: Any, host: tuple[str, int]) -> View:
        answer = said[host]
        if isinstance(answer, str):
            raise LinkLost(answer)
        return answer

    said = dict(zip(hosts, answers, strict=True))
    monkeypatch.setattr(Sentinels, "_ask", ask)
    return sentinels


async def test_newest_failover_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await sentinels_that_say(monkeypatch, View(3, A), View(4, B), View(3, A)).primary() == B


async def test_a_sentinel_that_missed_the_failover_leads_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = sentinels_that_say(monkeypatch, View(3, A), "refused", "no answer in time")
    sentinels.epoch = 4
    with pytest.raises(LinkLost, match="missed the last failover"):
        await sentinels.primary()


async def test_sentinels_that_were_set_up_anew_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = sentinels_that_say(monkeypatch, View(0, A), "refused", View(0, A))
    sentinels.epoch = 4
    assert await sentinels.primary() == A and sentinels.epoch == 0


async def test_what_each_sentinel_said_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = sentinels_that_say(monkeypatch, "Connection refused", "monitors no service 's'")
    with pytest.raises(LinkLost, match="s0:1: Connection refused; s1:1: monitors no service 's'"):
        await sentinels.primary()


# -- one real sentinel, two servers --------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(servers=1, sentinels=1)
    yield service
    service.close()


async def test_named_primary_is_followed_and_gets_what_it_lacks(service: Service, tmp_path: Path) -> None:
    other = RedisServer("--requirepass", PASSWORD)
    spool = spool_in(tmp_path / "s")
    spool.open()
    relay = relay_of(service.url, spool, sentinel_password=SENTINELS_PASSWORD)
    try:
        async with relay.running():
            put(relay, "t", 20)
            await relay.drained()
            server = relay.event("connected")["server"]
            assert server == f"redis://127.0.0.1:{service.servers[0].port}/0 ({SERVICE})"
            service.sentinels[0].monitor(other)
            told = await relay.told("lost")
            assert told["error"] == f"the sentinels name another primary, 127.0.0.1:{other.port}"
            put(relay, "t", 5)
            await relay.told("healed")
            await relay.drained()
            with service.client(other) as client:
                assert [seq for _, seq in stored(client, "t")] == list(range(1, 26))
        with service.client(service.servers[0]) as client:
            assert client.xlen("t") == 20, "nothing was written to the former one"
    finally:
        spool.close()
        other.close()


async def test_replica_that_is_named_is_not_written_to(service: Service) -> None:
    first = service.servers[0]
    with service.client(first) as client:
        relay = Relay(service.url, sentinel_password=SENTINELS_PASSWORD)
        client.replicaof("127.0.0.1", 1)
        async with relay.running(ready=False):
            told = await relay.told("lost")
            assert told["error"] == f"127.0.0.1:{first.port} is named as the primary and is a slave"
            assert relay.sink.stats.connects == 0
            client.replicaof("NO", "ONE")
            relay.put("t", 3)
            await relay.drained()
            assert client.xlen("t") == 3


@pytest.mark.parametrize(
    ("url", "password", "why"),
    [
        ("redis+sentinel://127.0.0.1:{port}/other", SENTINELS_PASSWORD, "monitors no service 'other'"),
        ("redis+sentinel://127.0.0.1:{port}/the-service", "wrong", "WRONGPASS"),
        ("redis+sentinel://127.0.0.1:{port}/the-service", "", "NOAUTH"),
        ("redis+sentinel://127.0.0.1:1/the-service", "", "127.0.0.1:1: "),
    ],
)
async def test_sentinel_that_does_not_help_is_told(service: Service, url: str, password: str, why: str) -> None:
    relay = Relay(url.format(port=service.sentinels[0].port), sentinel_password=password)
    async with relay.running(ready=False):
        told = await relay.told("lost")
    assert why in told["error"] and "no sentinel tells who the primary is" in told["error"]


# -- readers -------------------------------------------------------------------------------------------------------


async def test_reader_goes_where_the_sentinels_say(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "WATCH_SECS", 0.1)
    monkeypatch.setattr(reading, "BLOCK_SECS", 0.2)
    monkeypatch.setattr(reading, "SWEEP_SECS", 0.2)
    other = RedisServer("--requirepass", PASSWORD)
    first = service.servers[0]
    try:
        with service.client(first) as one, service.client(other) as two:
            ids = Writer("", client=one).put(T, 4)
            two.xadd(T, {"data": one.xrange(T)[0][1]["data"]}, id=ids[0])  # a replica that lagged
            client = Client(service.url, sentinel_password=SENTINELS_PASSWORD)
            assert [item.id for item in client.read_sync(T, since="all", follow=False)] == ids
            readers = [Reader(client.read(T, since="all", via=via)) for via in ("stream", "channel")]  # type: ignore[arg-type]
            async with readers[0].running(), readers[1].running():
                for reader in readers:
                    await reader.got(ids)
                service.sentinels[0].monitor(other)
                for entry_id, fields in one.xrange(T)[1:]:  # healed
                    two.xadd(T, fields, id=entry_id)
                writer = Writer("", client=two)
                writer.seqs[T] = 4
                more = writer.put(T, 2)
                for reader in readers:
                    await reader.got(ids + more)
                    assert reader.gaps == []
                assert [item.id for item in client.read_sync(T, since="all", follow=False)] == ids + more
    finally:
        other.close()


async def test_reader_is_told_why_no_sentinel_helps(service: Service) -> None:
    for url, password, why in (
        (service.url.replace(SERVICE, "other"), SENTINELS_PASSWORD, "monitors no service 'other'"),
        (service.url, "wrong", "no sentinel tells who the primary is .*login"),
        ("redis+sentinel://127.0.0.1:1/s", "", "127.0.0.1:1: "),
    ):
        client = Client(url, connect_secs=0.1, sentinel_password=password)
        with pytest.raises(Unreachable, match=why):
            await everything(client.read(T))
        with pytest.raises(Unreachable, match=why):
            list(client.read_sync(T))


def test_reader_believes_the_newest_failover() -> None:
    target = target_of("redis+sentinel://a,b/s")
    assert target is not None
    asked = guide.Guide(target, "", "")

    def answer(port: int, epoch: int) -> list[Any]:
        return [[b"h", b"%d" % port], [b"name", b"s", b"config-epoch", b"%d" % epoch]]

    a, b = asked.begin()
    assert asked.heard(a, answer(1, 5)) == ("h", 1) and asked.heard(b, answer(2, 6)) == ("h", 2)
    assert asked.heard(a, answer(1, 5)) is None, "it missed the last failover"
    asked.silent(a, "no answer")
    assert asked.begin() == [b, a]
    with pytest.raises(Lost, match="no sentinel tells"):
        asked.ended()
    assert asked.heard(a, answer(1, 0)) is None and asked.heard(b, answer(1, 0)) is None
    assert asked.ended() == ("h", 1) and asked.heard(a, answer(1, 0)) == ("h", 1), "they were set up anew"


# -- the whole, broken ---------------------------------------------------------------------------------------------

CONFIG = """
name: t
state_dir: {folder}/state
redis:
  url: "{redis}"
  sentinel_password: "{password}"
  stream_length_max: 100000000
providers:
  coinbase:
    url: ws://127.0.0.1:{port}/
    trades: [{products}]
"""


class Failovers:
    """Failovers under load. Before each the replicas are cut off for a while: they lack what was acknowledged."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.behind = 0
        self.told: list[str] = []

    def entries(self, server: RedisServer) -> int:
        with self.service.client(server) as client:
            return sum(client.xlen(name) for name in NAMES)

    def grows(self, server: RedisServer, more: int = 300) -> None:
        before = self.entries(server)
        wait(lambda: self.entries(server) > before + more, f"{server.port} is written to")

    def flows(self, how: str) -> None:
        """Whoever is the primary is written to; a busy machine may have seen one more failover meanwhile."""
        before: dict[int, int] = {}

        def grown() -> bool:
            primary = self.service.primary
            count = self.entries(primary)
            return count > before.setdefault(primary.port, count) + 300

        wait(grown, f"the primary after {how} is written to; {self.told}")

    def ask(self, old: RedisServer) -> None:
        """Ask the sentinels for a failover, and again when they gave it up.

        They do so where the machine was too busy to serve them, and a replica that was cut off for 5 s is not good
        enough for one then, as long as the primary lives: it follows for a moment, and is cut off again.
        """
        for _ in range(5):
            with contextlib.suppress(redis.ResponseError):  # INPROG, NOGOODSLAVE
                self.service.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", SERVICE)
            with contextlib.suppress(AssertionError):
                wait(lambda: self.service.primary is not old, "a planned failover", 8)
                return
            self.service.reconcile()
            if self.service.primary is not old:
                return
            self.service.cut_off_replicas()
            self.grows(old, 1500)

    def once(self, how: str, first: Callable[[RedisServer], object] = lambda old: None) -> None:
        """One failover: `kill`, `stop`, `shut out` (the old primary lives and takes writes), `planned`.

        `first`: what else happens right before it, while the replicas are cut off.
        """
        service = self.service
        service.settle()
        old = service.primary
        self.grows(old)
        service.cut_off_replicas()
        self.grows(old, 1500)
        replicas = service.others()
        behind = self.entries(old) - max(map(self.entries, replicas))
        self.behind += behind
        first(old)
        begun = time.monotonic()
        if how == "kill":
            old.kill()
        elif how == "stop":
            old.signal(19)  # SIGSTOP
        elif how == "shut out":
            with service.client(old) as client:
                client.acl_deluser("watcher")
        else:
            self.ask(old)
        wait(lambda: service.primary is not old, f"a failover after {how}")
        took = time.monotonic() - begun
        self.flows(how)
        if how == "stop":
            old.signal(18)  # SIGCONT
        service.reconcile()
        self.told.append(f"{how} {took:.1f}s -{behind}")


WAYS = ("kill", "shut out", "stop", "planned", "kill")


def failed_over(service: Service, rounds: int) -> Failovers:
    failovers = Failovers(service)
    for number in range(rounds):
        failovers.once(WAYS[number % len(WAYS)])
    return failovers


def verdict_of(service: Service) -> Verdict:
    return check(streams(service.direct, NAMES))


def written(folder: Path, service: Service, port: int) -> str:
    products = ", ".join(name.removeprefix("trades.") for name in NAMES)
    path = folder / "relay.yaml"
    path.write_text(
        CONFIG.format(folder=folder, redis=service.url, port=port, products=products, password=SENTINELS_PASSWORD)
    )
    return str(path)


@pytest.mark.fault
async def test_readers_get_each_id_once_through_failovers(tmp_path: Path) -> None:
    service, rounds = Service(), dose(3)
    client = Client(service.url, sentinel_password=SENTINELS_PASSWORD)
    readers = [Reader(client.read("trades.*", since="all", via=via)) for via in ("stream", "channel")]  # type: ignore[arg-type]
    try:
        with provider(1000) as port, Process(tmp_path, "run", "-c", written(tmp_path, service, port)) as process:
            await until(lambda: Failovers(service).entries(service.primary) > 500, 30)
            async with readers[0].running(), readers[1].running():
                await anyio.to_thread.run_sync(failed_over, service, rounds)
                await anyio.to_thread.run_sync(stop, process)
                found = {
                    name: [entry_id for entry_id, _ in rows] for name, rows in streams(service.direct, NAMES).items()
                }
                for reader in readers:
                    await until(lambda reader=reader: len(reader.items) >= sum(map(len, found.values())))
        for reader in readers:
            by_topic: dict[str, list[str]] = {}
            for item in reader.items:
                by_topic.setdefault(item.topic, []).append(item.id)
            assert reader.error is None and reader.gaps == [] and by_topic == found
    finally:
        service.close()


@pytest.mark.fault
def test_failovers_to_lagging_replicas_lose_nothing(tmp_path: Path) -> None:
    service, rounds = Service(), dose(5)
    try:
        with provider() as port, Process(tmp_path, "run", "-c", written(tmp_path, service, port)) as process:
            wait(lambda: Failovers(service).entries(service.primary) > 500, "the relay writes")
            try:
                failovers = failed_over(service, rounds)
            except AssertionError:
                print(process.text[-5000:])
                raise
            stop(process)
            assert PASSWORD not in process.text and SENTINELS_PASSWORD not in process.text
        verdict = verdict_of(service)
        print(f"\nfailovers x {rounds}, {failovers.behind} acknowledged entries were behind: {verdict}")
        print(*failovers.told, sep=", ")
        assert failovers.behind >= rounds * 500, "every new primary lacked something"
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        service.close()


@pytest.mark.fault
def test_redis_py_by_itself_loses_by_a_failover() -> None:
    """The control: the same service and failover under redis-py's own Sentinel and `*` ids."""
    service = Service()
    ports = ",".join(str(sentinel.port) for sentinel in service.sentinels)
    try:
        with provider() as port:
            command = [sys.executable, str(Path(__file__).with_name("naive_sentinel.py")), str(port), ports]
            naive = subprocess.Popen([*command, SERVICE, PASSWORD, SENTINELS_PASSWORD], start_new_session=True)
            try:
                wait(lambda: Failovers(service).entries(service.primary) > 500, "the control writes")
                with contextlib.suppress(AssertionError):  # it may not survive a failover at all
                    failed_over(service, 1)
            finally:
                naive.kill()
                naive.wait()
        verdict = verdict_of(service)
        print(f"\nthe control: {verdict}")
        assert verdict.lost or verdict.twice, "a suite that finds nothing here is blind"
    finally:
        service.close()
