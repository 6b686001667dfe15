"""Cuts, kills, pauses and every error of the table: nothing lost, nothing twice, order kept."""

import json
import os
import shutil
import signal
import sys
import time

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import redis
import redis.asyncio
from anyio.streams.buffered import BufferedByteReceiveStream
from servers import Proxy, RedisServer, free_port
from sinks import Relay, bodies, dose

from relay.sink import REACTIONS, Unsupported, reaction


@pytest.fixture
def server():
    server = RedisServer()
    yield server
    server.close()


def exact(client: "redis.Redis", relay: Relay) -> None:
    """Every number once, in order, under rising ids."""
    for topic in relay.outbox.topics.values():
        assert bodies(client, topic.name) == list(range(1, topic.seq + 1)), topic


async def feed(relay: Relay, topics: int, rate: int, until, batch: int = 10) -> None:
    """Add `rate` entries a second over some topics until a condition holds."""
    started, sent = time.monotonic(), 0
    while not until():
        due = int((time.monotonic() - started) * rate)
        while sent < due:
            relay.put(f"t{sent // batch % topics}", batch)
            sent += batch
        if relay.outbox.full:
            await relay.sink.room()
        await anyio.sleep(0.002)


async def _cuts(server: RedisServer, how: str, wanted: int) -> Relay:
    """Run under load through a proxy that cuts each third append call."""
    proxy = Proxy(server.port)
    calls = [0]

    def fault():
        calls[0] += 1
        return how if calls[0] % 3 == 0 and proxy.faults < wanted else None

    proxy.fault = fault
    async with anyio.create_task_group() as group:
        await group.start(proxy.run)
        async with Relay(proxy.url).running() as relay:
            with anyio.fail_after(30):
                await feed(relay, 5, 5_000, lambda: proxy.faults >= wanted)
            await relay.drained()
        group.cancel_scope.cancel()
    assert proxy.faults == wanted and relay.sink.stats.connects == wanted + 1
    return relay


@pytest.mark.parametrize("how", ["cut", "half", "refuse"])
async def test_cut_connection_loses_and_repeats_nothing(server, how):
    wanted = 50 if how == "cut" else 10
    relay = await _cuts(server, how, wanted)
    with server.client() as client:
        exact(client, relay)
        if how == "refuse":
            assert relay.sink.stats.confirmed == 0
        else:
            assert relay.sink.stats.confirmed > wanted // 2, "the cuts came after Redis had written"
        if how == "cut":
            await _control(server, client)


async def _control(server: RedisServer, client: "redis.Redis") -> None:
    """The same cuts under a plain XADD with redis-py's defaults must show duplicates, or the test proves nothing."""
    proxy = Proxy(server.port, match=b"XADD")
    proxy.fault = lambda: "cut" if proxy.requests % 3 == 0 else None
    async with anyio.create_task_group() as group:
        await group.start(proxy.run)
        async with redis.asyncio.Redis(host="127.0.0.1", port=proxy.listen) as naive:
            for number in range(1, 31):
                await naive.xadd("control", {"data": number})
        group.cancel_scope.cancel()
    stored = bodies(client, "control")
    assert len(stored) > 30 and sorted(set(stored)) == list(range(1, 31))


REPLIES = [
    (b"LOADING Redis is loading the dataset in memory", "wait"),
    (b"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "wait"),
    (b"TRYAGAIN Multiple keys request during rehashing of slot", "wait"),
    (b"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "wait"),
    (b"NOREPLICAS Not enough good replicas to write.", "wait"),
    (b"MISCONF Errors writing to the AOF file: No space left on device", "wait"),
    (b"CLUSTERDOWN The cluster is down", "wait"),
    (b"OOM command not allowed when used memory > 'maxmemory'.", "trim"),
    (b"READONLY You can't write against a read only replica.", "reconnect"),
    (b"UNBLOCKED force unblock from blocking operation", "reconnect"),
    (b"ERR max number of clients reached", "reconnect"),
    (b"NOAUTH Authentication required.", "rights"),
    (b"WRONGPASS invalid username-password pair or user is disabled.", "rights"),
    (b"ERR AUTH <password> called without any password configured", "rights"),
    (b"ERR Client sent AUTH, but no password is set", "rights"),
    (b"NOPERM this user has no permissions to run the 'fcall' command", "rights"),
    (b"NOPERM No permissions to access a key", "isolate"),
    (b"NOPERM this user has no permissions to access one of the keys used as arguments", "isolate"),
    (b"NOSCRIPT No matching script. Please use EVAL.", "load"),
    (b"ERR Function not found", "load"),
    (b"WRONGTYPE Operation against a key holding the wrong kind of value", "block"),
    (b"ERR The ID specified in XADD is equal or smaller than the target stream top item", "foreign"),
    (b"ERR The stream has exhausted the last possible ID, unable to add more items", "foreign"),
    (b"MOVED 3999 127.0.0.1:6381", "cluster"),
    (b"ASK 3999 127.0.0.1:6381", "cluster"),
    (b"CROSSSLOT Keys in request don't hash to the same slot", "cluster"),
    (b"ERR This instance has cluster support disabled", "cluster"),
    (b"ERR unknown command 'FCALL', with args beginning with:", "unsupported"),
    (b"ERR Unknown Redis command called from script", "unsupported"),
    (b"ERR something that nobody has seen before", "wait"),
    (b"WEIRD new code", "wait"),
]


def test_every_entry_of_the_table_is_tested():
    for prefix, what, _ in REACTIONS:
        assert any(reply.decode().startswith(prefix) and what in (wanted, "isolate") for reply, wanted in REPLIES), (
            prefix
        )


@pytest.mark.parametrize(("reply", "wanted"), REPLIES)
def test_reply_has_one_named_reaction(reply, wanted):
    assert reaction(reply.decode())[0] == wanted


@pytest.mark.parametrize(("reply", "wanted"), REPLIES)
async def test_no_error_counts_as_delivered(server, monkeypatch, reply, wanted):
    """Three refusals of the append call in a row, then all is well: each entry is stored once."""
    monkeypatch.setattr("relay.sink.sink.RIGHTS_SECS", 0.01)
    monkeypatch.setattr("relay.sink.pace.BACKOFF_CAP_SECS", 0.02)
    proxy = Proxy(server.port)
    refusing = [True]
    proxy.fault = lambda: b"-%b\r\n" % reply if refusing[0] else None
    async with anyio.create_task_group() as group:
        await group.start(proxy.run)
        async with Relay(proxy.url).running() as relay:
            relay.put("t", 3)
            if wanted == "unsupported":
                await relay.until(lambda: relay.error)
                assert (
                    isinstance(relay.error, Unsupported)
                    and "Redis 7.0" in str(relay.error)
                    or "renamed" in str(relay.error)
                )
            elif wanted == "isolate":
                # one topic alone is refused: it waits, blocked, and nothing else does
                told = await relay.told("topic_blocked")
                assert told["topic"] == "t" and told["reason"].startswith("NOPERM")
                refusing[0] = False
                relay.put("u", 2)
                await relay.until(lambda: relay.sink.stats.entries == 2)
                assert len(relay.outbox.topics["t"].ids) == 3
            else:
                await relay.until(lambda: proxy.faults >= 3)
                assert relay.sink.stats.entries == 0 and len(relay.outbox.topics["t"].ids) == 3
                if wanted != "load":
                    told = relay.event("holding")
                    assert told["reaction"] == wanted and told["text"] and reply.decode()[:20] in told["reply"]
                refusing[0] = False
                await relay.drained()
                assert relay.kinds().count("recovered") == (1 if wanted != "load" else 0)
                with server.client() as client:
                    exact(client, relay)
        group.cancel_scope.cancel()


async def test_unix_socket_carries_the_same(server):
    path = os.path.join(server.folder, "redis.sock")
    server.options = ("--unixsocket", path, "--requirepass", "pw")
    server.kill()
    server.start()
    async with Relay(f"unix://{path}", password="pw").running() as relay:
        relay.put("t", 3)
        await relay.drained()
    with server.client(password="pw") as client:
        exact(client, relay)
    async with Relay(f"unix://{path}", password="wrong").running(ready=False) as relay:
        assert (await relay.told("holding"))["reaction"] == "rights"


async def test_tls_checks_the_server_and_carries_the_same(server):
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    cert, key, port = os.path.join(server.folder, "cert.pem"), os.path.join(server.folder, "key.pem"), free_port()
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    await anyio.run_process(["openssl", *make.split(), *names])
    server.kill()
    server.options = ("--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key)
    server.options += ("--tls-ca-cert-file", cert)
    try:
        server.start()
    except AssertionError as error:
        pytest.skip(f"this server is built without TLS: {str(error)[-200:]}")
    url = f"rediss://127.0.0.1:{port}/0"
    async with Relay(url, ca_file=cert, cert_file=cert, key_file=key).running() as relay:
        relay.put("t", 3)
        await relay.drained()
    with server.client() as client:
        exact(client, relay)
    async with Relay(url, cert_file=cert, key_file=key).running(ready=False) as relay:
        relay.put("t", 1)
        assert "certificate" in (await relay.told("lost"))["error"].lower()
        assert relay.sink.stats.connects == 0


async def test_server_without_functions_ends_the_process_at_the_start(server):
    with server.client() as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
    proxy = Proxy(server.port, match=b"FUNCTION")
    proxy.fault = lambda: b"-ERR unknown command 'FUNCTION', with args beginning with: 'LIST'\r\n"
    async with anyio.create_task_group() as group:
        await group.start(proxy.run)
        async with Relay(proxy.url).running(ready=False) as relay:
            await relay.until(lambda: relay.error)
            assert isinstance(relay.error, Unsupported) and "Redis 7.0" in str(relay.error)
        group.cancel_scope.cancel()


async def _killed(server: RedisServer, down_secs: float) -> None:
    server.options = ("--appendonly", "yes", "--appendfsync", "everysec")
    server.kill()
    server.start()
    async with Relay(server.url).running() as relay, anyio.create_task_group() as group:
        fed = anyio.Event()

        async def feeding():
            await feed(relay, 4, 2_000, fed.is_set, batch=5)

        group.start_soon(feeding)
        await relay.until(lambda: relay.sink.stats.entries > 500)
        server.kill()
        await relay.told("lost")
        await anyio.sleep(down_secs)
        before = relay.sink.stats.entries
        assert sum(len(topic.ids) for topic in relay.outbox.topics.values()) > 0
        await anyio.to_thread.run_sync(server.start)
        await relay.until(lambda: relay.sink.stats.entries > before + 500, 20)
        fed.set()
        await relay.drained()
        assert "recovered" in relay.kinds() and "redis_lost" not in relay.kinds()
    with server.client() as client:
        exact(client, relay)


@pytest.mark.fault
async def test_killed_server_comes_back_with_its_data(server):
    await _killed(server, 1.0)


@pytest.mark.fault
async def test_server_killed_for_longer_and_again(server):
    for _ in range(dose(3)):
        await _killed(server, 5.0)
        with server.client() as client:
            client.config_set("appendfsync", "always")  # else a kill may take the FLUSHALL back: it is written 2 s late
            client.flushall()


async def test_killed_server_comes_back_empty(server):
    """Without a spool what was acknowledged is gone: a gap event stands in its place, what follows is there."""
    async with Relay(server.url).running() as relay:
        relay.put("t", 10)
        await relay.drained()
        server.kill()
        relay.put("t", 5)
        await anyio.to_thread.run_sync(server.start)
        await relay.drained()
        assert relay.event("redis_lost")["names"] == ["t"]
    with server.client() as client:
        assert bodies(client, "t") == [-10, 11, 12, 13, 14, 15]


async def test_stopped_server_times_out_and_repeats_nothing(server):
    async with Relay(server.url, call_secs=0.3).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        server.signal(signal.SIGSTOP)
        relay.put("t", 3)
        await relay.told("lost")
        relay.put("t", 3)
        server.signal(signal.SIGCONT)
        await relay.drained()
    with server.client() as client:
        exact(client, relay)


@pytest.mark.fault
async def test_server_stopped_again_and_again_under_load(server):
    async with Relay(server.url, call_secs=0.3).running() as relay, anyio.create_task_group() as group:
        over = anyio.Event()
        group.start_soon(feed, relay, 4, 5_000, over.is_set)
        for _ in range(dose(10)):
            lost = relay.sink.stats.errors.get("lost", 0)
            server.signal(signal.SIGSTOP)
            await relay.until(lambda lost=lost: relay.sink.stats.errors.get("lost", 0) > lost)
            server.signal(signal.SIGCONT)
            entries = relay.sink.stats.entries
            await relay.until(lambda entries=entries: relay.sink.stats.entries > entries + 100)
        over.set()
        await relay.drained()
    with server.client() as client:
        exact(client, relay)


async def test_clients_killed_under_load(server):
    async with Relay(server.url).running() as relay, anyio.create_task_group() as group:
        over = anyio.Event()
        group.start_soon(feed, relay, 4, 5_000, over.is_set)
        with server.client() as client:
            for _ in range(20):
                connects = relay.sink.stats.connects
                client.client_kill_filter(_type="normal", skipme=True)
                await relay.until(lambda connects=connects: relay.sink.stats.connects > connects)
        over.set()
        await relay.drained()
    with server.client() as client:
        exact(client, relay)


async def test_full_memory_heals_by_trimming_the_oldest(server):
    with server.client() as client:
        async with Relay(server.url).running() as relay:
            for _ in range(20):
                relay.put("t", 500, b"7" * 500)
                relay.put("u", 500, b"7" * 500)
                await relay.drained()
            client.xadd("of.others", {"field": "x" * 10_000})
            newest = client.xrevrange("t", count=1)[0][0]
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
            relay.put("t", 500, b"8" * 500)
            await relay.drained(20)
            told = relay.event("oom_trimmed")
            assert told["entries"] > 0 and relay.event("holding")["reaction"] == "trim"
            assert "recovered" in relay.kinds()
        assert client.xlen("t") < 10_500 and client.xlen("of.others") == 1
        stored = [int(fields["data"][0]) for _, fields in client.xrange("t")]
        assert stored.count(8) == 500 and stored == sorted(stored), "only the oldest were trimmed"
        assert client.xrange("t", min=newest, max=newest)


async def test_memory_filled_by_others_is_not_paid_with_all_our_entries(server):
    with server.client() as client:
        async with Relay(server.url).running() as relay:
            relay.put("t", 1000)
            await relay.drained()
            client.set("big", "x" * 8_000_000)
            client.config_set("maxmemory", 6_000_000)
            relay.put("t", 10)
            await relay.until(lambda: relay.kinds().count("oom_trimmed") > 4, 20)
            assert 90 < client.xlen("t") < 1000 and len(relay.outbox.topics["t"].ids) == 10
            client.delete("big")
            await relay.drained()
        assert bodies(client, "t")[-1] == 1010


async def test_full_server_is_met_at_the_start(server):
    with server.client() as client:
        async with Relay(server.url).running() as relay:
            for _ in range(20):
                relay.put("t", 1000, b"7" * 500)
                await relay.drained()
        client.function_flush()
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
        async with Relay(server.url).running() as relay:
            relay.put("t", 1)
            await relay.drained()
        assert bodies(client, "t")[-1] == 1


async def test_demoted_server_is_left_and_asked_again(server):
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        with server.client() as client:
            client.replicaof("127.0.0.1", 1)
            relay.put("t", 3)
            told = await relay.told("holding")
            assert told["reaction"] in ("reconnect", "wait") and len(relay.outbox.topics["t"].ids) == 3
            client.replicaof("NO", "ONE")
            await relay.drained()
            exact(client, relay)


async def test_rights_taken_away_at_run_time_and_given_back(server, monkeypatch):
    monkeypatch.setattr("relay.sink.sink.RIGHTS_SECS", 0.01)
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        with server.client() as client:
            client.config_set("requirepass", "pw")
            client.client_kill_filter(_type="normal", skipme=True)
            relay.put("t", 3)
            assert (await relay.told("holding"))["reaction"] == "rights"
            client.config_set("requirepass", "")
            await relay.drained()
            exact(client, relay)


@pytest.mark.fault
async def test_killed_relay_does_not_hold_its_own_restart_up(server):
    """SIGKILL of a real process that holds the lease; its successor writes within two seconds."""
    code = (
        "import anyio\nfrom sinks import Relay\n"
        "async def main():\n"
        f"    async with Relay({server.url!r}).running() as relay:\n"
        "        relay.put('t', 5)\n        await relay.drained()\n        print('ready', flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    here = os.path.dirname(__file__)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])}
    process = await anyio.open_process([sys.executable, "-c", code], env=env, stderr=None)
    async with process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(20):
                lines = BufferedByteReceiveStream(process.stdout)
                assert await lines.receive_until(b"\n", 100) == b"ready"
        finally:
            process.kill()
    started = time.monotonic()
    async with Relay(server.url).running() as relay:
        relay.put("t", 1)
        await relay.drained()
    assert time.monotonic() - started < 2.0
    with server.client() as client:
        assert bodies(client, "t") == [1, 2, 3, 4, 5, 1]
        assert json.loads(client.hget("relay:topics", "t"))["relay"] == "main"


async def test_stale_writer_after_a_pause_is_refused(server):
    """A relay that slept through its lease, with a call of its own still on the way, writes nothing."""
    async with Relay(server.url).running() as first:
        first.put("t", 2)
        await first.drained()
        with server.client() as client:
            client.delete("relay:lease:main")  # as if it had slept
            # its next renewal takes the lease again unless a successor was faster
        async with Relay(server.url, takeover=True).running() as second:
            for _ in range(20):
                first.put("t", 1, b"666")
                second.put("t", 1)
                await anyio.lowlevel.checkpoint()
            await second.drained()
            await first.until(lambda: first.error)
    with server.client() as client:
        stored = bodies(client, "t")
    assert 666 not in stored and stored[-20:] == list(range(1, 21))
