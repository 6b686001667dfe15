"""The sink against a real server: what is written, who may write, what one bad topic does to the others."""

import asyncio
import json
import os

import anyio
import pytest
import redis
from servers import RedisServer, given_url
from sinks import Relay, bodies, epoch

from relay import codec
from relay.model import Quote
from relay.outbox import Outbox
from relay.sink import Fenced, LeaseHeld
from relay.sink.claim import LEASE_SECS
from relay.sink.functions import library
from relay.sink.pace import BACKOFF_CAP_SECS, BYTES_MAX, BYTES_MIN, ENTRIES_MAX, ENTRIES_MIN, Pace, SinkStats


class Given:
    """The server that RELAY_TEST_REDIS_URL names; its database is emptied."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, **options):
        return redis.Redis.from_url(self.url, decode_responses=True, **options)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def one_server():
    url = given_url()
    server = Given(url) if url else RedisServer()
    yield server
    server.close()


@pytest.fixture
def server(one_server):
    with one_server.client() as client:
        client.flushdb()
        if client.acl_list():
            for user in client.acl_users():
                if user != "default":
                    client.acl_deluser(user)
    return one_server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


async def test_entries_arrive_once_in_order_on_stream_and_channel(server, client):
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("quotes.A")
        assert heard.get_message(timeout=5) is None
        async with Relay(server.url).running() as relay:
            relay.put("quotes.A", 1)
            await relay.drained()
            relay.put("quotes.A", 2)
            relay.put("quotes.B", 3)
            await relay.drained()
        published = []
        while len(published) < 3:
            message = heard.get_message(timeout=5)
            published.append(message["data"])
    assert bodies(client, "quotes.A") == [1, 2, 3] == [int(body) for body in published]
    assert bodies(client, "quotes.B") == [1, 2, 3]
    last = client.xrevrange("quotes.A", count=1)[0][0]
    assert client.hgetall("relay:writer:{quotes.A}") == {"owner": "main", "epoch": str(epoch(client)), "last": last}
    known = json.loads(client.hget("relay:topics", "quotes.A"))
    assert known == {"kind": "quotes", "provider": "acme", "relay": "main", "first_seen": 1_700_000_000_000}
    assert client.get("relay:lease:main") is None, "a planned stop gives the lease back"
    assert relay.sink.stats.entries == 6 and relay.sink.stats.bytes == 6


async def test_without_pubsub_nothing_is_published(server, client):
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("t")
        heard.get_message(timeout=5)
        async with Relay(server.url, pubsub=False).running() as relay:
            relay.put("t", 2)
            await relay.drained()
        assert heard.get_message(timeout=0.1) is None
    assert bodies(client, "t") == [1, 2]


async def test_prefix_is_before_every_key(server, client):
    async with Relay(server.url, prefix="sim.").running() as relay:
        relay.put("sim.t")
        await relay.drained()
        assert sorted(client.keys()) == [
            "sim.relay:active:main",
            "sim.relay:epoch",
            "sim.relay:lease:main",
            "sim.relay:topics",
            "sim.relay:writer:{sim.t}",
            "sim.t",
        ]


async def test_small_and_large_entries_share_a_run(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 1, b"x" * 3_000_000)
        relay.put("t", 2000)
        relay.put("t", 1, b"y" * 300_000)
        await relay.drained()
    stored = client.xrange("t")
    assert len(stored) == 2002 and len(stored[0][1]["data"]) == 3_000_000 and len(stored[-1][1]["data"]) == 300_000
    assert relay.sink.stats.batch_max <= 1000


async def test_streams_are_cut_at_their_length(server, client):
    async with Relay(server.url, stream_length_max=500).running() as relay:
        for _ in range(40):
            relay.put("t", 100)
            relay.put("one")
            await relay.drained()
        assert 500 <= client.xlen("t") <= 700
        assert bodies(client, "t")[-1] == 4000


async def test_retention_trims_by_age_also_quiet_topics(server, client, monkeypatch):
    monkeypatch.setattr("relay.sink.trim.KEEP_SECS", 0.0)
    async with Relay(server.url, retention_secs=60).running() as relay:
        clock = [1_700_000_000_000]
        relay.now_ms = lambda: clock[0]
        relay.put("busy", 1000)
        relay.put("quiet", 1000)
        await relay.drained()
        clock[0] += 120_000
        relay.put("busy", 1)
        await relay.drained()
        assert client.xlen("busy") < 200
        await relay.until(lambda: client.xlen("quiet") < 200)


async def test_memory_of_all_streams_is_bounded(server, client, monkeypatch):
    monkeypatch.setattr("relay.sink.trim.KEEP_SECS", 0.0)
    async with Relay(server.url, streams_bytes_max=400_000).running() as relay:
        for n in range(4):
            relay.put(f"t{n}", 2000, b"x" * 200)
        await relay.drained()
        told = await relay.told("streams_trimmed")
        assert told["bytes"] > 400_000 and told["entries"] > 0
        await relay.until(lambda: sum(client.memory_usage(f"t{n}") for n in range(4)) < 450_000)


async def test_feeds_wait_for_room_and_are_woken(server, client):
    relay = Relay(server.url, bytes_max=100_000)
    relay.put("t", 1000)
    assert relay.outbox.full
    async with relay.running():
        with anyio.fail_after(5):
            await relay.sink.room()
        await relay.drained()
    assert bodies(client, "t") == list(range(1, 1001))


async def test_drain_says_what_is_left_when_redis_is_away():
    relay = Relay("redis://127.0.0.1:1/0")
    relay.put("t", 7)
    async with relay.running(ready=False):
        assert await relay.sink.drain(0.1) == 7
        assert relay.kinds()[0] == "lost" and "redis://127.0.0.1:1" in relay.event("lost")["server"]
    assert relay.kinds()[-1] == "stopped"


# who may write


async def test_second_relay_of_the_name_is_refused_while_the_first_lives(server, client, monkeypatch):
    monkeypatch.setattr("relay.sink.claim.PATIENCE_SECS", 0.6)  # longer than a renewal
    async with Relay(server.url).running() as first:
        second = Relay(server.url)
        async with second.running(ready=False):
            await second.until(lambda: second.error)
        assert isinstance(second.error, LeaseHeld)
        assert "--takeover" in str(second.error) and f"pid {os.getpid()}" in str(second.error)
        assert second.kinds()[-2:] == ["lease_refused", "stopped"]
        first.put("t", 3)
        await first.drained()
        assert first.error is None
    assert bodies(client, "t") == [1, 2, 3]


async def test_takeover_ends_the_first_with_one_clear_line(server, client):
    async with Relay(server.url).running() as first:
        first.put("t", 3)
        await first.drained()
        before = epoch(client)
        async with Relay(server.url, takeover=True).running() as second:
            assert second.floor > 0 and epoch(client) == before + 1
            second.put("t", 2)
            await second.drained()
            first.put("t", 1)
            await first.until(lambda: first.error)
            assert isinstance(first.error, Fenced) and "has taken over" in str(first.error)
            assert "fenced" in first.kinds()
            second.put("t", 1)
            await second.drained()
    assert bodies(client, "t") == [1, 2, 3, 1, 2, 3]


async def test_stale_epoch_cannot_write_even_with_the_lease_in_hand(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t")
        await relay.drained()
        client.hset("relay:writer:{t}", "epoch", epoch(client) + 1)
        relay.put("t")
        await relay.until(lambda: relay.error)
        assert isinstance(relay.error, Fenced)
    assert bodies(client, "t") == [1]


async def test_lease_of_a_killed_relay_lapses_within_two_seconds(server, client):
    client.set("relay:lease:main", "0123 elsewhere pid 1", px=int(LEASE_SECS * 1000))
    with anyio.fail_after(2.0):
        async with Relay(server.url).running() as relay:
            relay.put("t")
            await relay.drained()
    assert bodies(client, "t") == [1]


async def test_topic_of_another_relay_is_refused_and_the_others_go_on(server, client):
    async with Relay(server.url, "one").running() as one:
        one.put("shared", 2)
        await one.drained()
        async with Relay(server.url, "two").running() as two:
            two.put("shared", 3)
            two.put("own", 3)
            told = await two.told("owned")
            assert told["topic"] == "shared" and "'one'" in told["text"] and "it runs" in told["text"]
            assert await two.sink.drain(5) == 3
            one.put("shared", 1)
            await one.drained()
            assert two.error is None and one.error is None
    assert bodies(client, "shared") == [1, 2, 3] and bodies(client, "own") == [1, 2, 3]
    assert json.loads(client.hget("relay:topics", "shared"))["relay"] == "one"


@pytest.mark.parametrize("takeover", [False, True])
async def test_topic_of_a_relay_that_is_gone(server, client, takeover):
    async with Relay(server.url, "gone").running() as gone:
        gone.put("t", 2)
        await gone.drained()
    async with Relay(server.url, "new", takeover=takeover).running() as new:
        new.put("t", 1)
        if takeover:
            await new.drained()
            assert new.event("topics_taken")["owner"] == "gone"
            assert bodies(client, "t") == [1, 2, 1]
        else:
            assert "--takeover" in (await new.told("owned"))["text"]
            assert bodies(client, "t") == [1, 2]


async def test_running_relay_does_not_lose_its_topics_to_a_takeover_of_another_name(server, client):
    async with Relay(server.url, "one").running() as one:
        one.put("t", 1)
        await one.drained()
        async with Relay(server.url, "two", takeover=True).running() as two:
            two.put("t", 1)
            await two.told("owned")
    assert bodies(client, "t") == [1]


async def test_next_run_goes_on_behind_the_last(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 5)
        await relay.drained()
        last = client.xrevrange("t", count=1)[0][0]
        before = epoch(client)
    again = Relay(server.url)
    async with again.running():
        assert again.floor == int(last.split("-")[0]) + 1
        assert again.outbox.topic("t", "quotes", "acme").last_id == last
        again.put("t", 2)
        await again.drained()
    assert bodies(client, "t") == [1, 2, 3, 4, 5, 1, 2]
    assert epoch(client) == before + 1


@pytest.mark.parametrize("when", ["before the first contact", "new topic"])
async def test_clock_that_went_back_restamps_what_waits(server, client, when):
    future = 4_000_000_000_000
    async with Relay(server.url).running() as relay:
        relay.now_ms = lambda: future
        relay.put("quotes.A", 3)
        await relay.drained()
    if when == "new topic":  # the floor is not known from relay:topics
        client.delete("relay:topics")
    relay = Relay(server.url)
    outbox: Outbox = relay.outbox

    def add():
        topic = outbox.topic("quotes.A", "quotes", "acme")
        for seq in (1, 2):
            quote = Quote(provider="acme", symbol="A", bid="1", ts_recv=1_700_000_000_000_000_000 + seq, run=1, seq=seq)
            outbox.add(topic, f"1700000000000-{seq}", codec.encode(quote))
        relay.sink.notify()

    if when != "new topic":
        add()
    async with relay.running():
        if when == "new topic":
            add()
        await relay.drained()
    assert relay.floor == future + 1 and relay.event("restamped")["entries"] == 2
    stored = client.xrange("quotes.A")[3:]
    assert [entry_id for entry_id, _ in stored] == [f"{future + 1}-1", f"{future + 1}-2"]
    messages = [codec.decode(fields["data"]) for _, fields in stored]
    assert [(m.ts_recv, m.seq, m.bid) for m in messages] == [((future + 1) * 1_000_000, seq, "1") for seq in (1, 2)]


async def test_lost_epoch_counter_does_not_stop_a_start(server, client):
    for _ in range(3):
        async with Relay(server.url).running() as relay:
            relay.put("t")
            await relay.drained()
    before = epoch(client)
    client.delete("relay:epoch")
    async with Relay(server.url).running() as relay:
        relay.put("t")
        await relay.drained()
    assert epoch(client) > before
    client.set("relay:epoch", 1)  # restored from an old copy
    async with Relay(server.url).running() as relay:
        relay.put("t")
        await relay.drained()
    assert epoch(client) > before + 1
    client.delete("relay:epoch", "relay:topics")
    async with Relay(server.url).running() as relay:
        relay.put("t")
        await relay.drained()
    assert bodies(client, "t") == [1] * 6 and int(client.hget("relay:writer:{t}", "epoch")) == epoch(client)


# one bad topic


async def test_wrong_type_blocks_that_topic_and_heals(server, client, monkeypatch):
    for module in ("sink", "ledger"):
        monkeypatch.setattr(f"relay.sink.{module}.PROBE_SECS", 0.1)
    client.set("bad", "a string of somebody")
    async with Relay(server.url).running() as relay:
        relay.put("bad", 3)
        relay.put("good", 3)
        told = await relay.told("topic_blocked")
        assert told["topic"] == "bad" and told["reason"].startswith("WRONGTYPE")
        assert await relay.sink.drain(1) == 3
        assert relay.outbox.topics["bad"].blocked
        client.delete("bad")
        await relay.told("topic_unblocked")
        await relay.drained()
    assert bodies(client, "bad") == bodies(client, "good") == [1, 2, 3]


async def test_key_that_turns_into_a_string_blocks_its_topic_at_run_time(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("bad", 1)
        relay.put("good", 1)
        await relay.drained()
        client.set("bad", "now a string")
        relay.put("bad", 2)
        relay.put("good", 2)
        assert await relay.sink.drain(1) == 2
        assert relay.event("topic_blocked")["topic"] == "bad"
    assert bodies(client, "good") == [1, 2, 3] and client.get("bad") == "now a string"


async def test_forbidden_key_blocks_its_topic_only(server, client, monkeypatch):
    for module in ("sink", "ledger"):
        monkeypatch.setattr(f"relay.sink.{module}.PROBE_SECS", 0.1)
    client.acl_setuser("relay", enabled=True, passwords=["+pw"], keys=["relay:*", "good*"], commands=["+@all"])
    client.execute_command("ACL", "SETUSER", "relay", "&*")
    async with Relay(server.url, username="relay", password="pw").running() as relay:
        relay.put("bad", 2)
        relay.put("good1", 2)
        relay.put("good2", 2)
        assert (await relay.told("topic_blocked"))["reason"].startswith("NOPERM")
        assert await relay.sink.drain(1) == 2
        client.execute_command("ACL", "SETUSER", "relay", "resetkeys", "~relay:*", "~bad")
        relay.put("good1", 1)  # at run time: taken away from one topic, given to another
        await relay.until(lambda: relay.outbox.topics["good1"].blocked)
        await relay.until(lambda: bodies(client, "bad") == [1, 2])
    assert bodies(client, "good1") == [1, 2] == bodies(client, "good2")


async def test_forbidden_channel_is_said_once_and_stops_nothing(server, client):
    client.acl_setuser("relay", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"])
    client.execute_command("ACL", "SETUSER", "relay", "resetchannels")
    async with Relay(server.url, username="relay", password="pw").running() as relay:
        relay.put("t", 3)
        relay.put("u", 3)
        await relay.drained()
        assert relay.kinds().count("unpublished") == 1 and relay.sink.stats.unpublished == 2
    assert bodies(client, "t") == [1, 2, 3]


async def test_wrong_password_is_tried_slowly_and_mended(server, client, monkeypatch):
    monkeypatch.setattr("relay.sink.sink.RIGHTS_SECS", 0.05)
    client.acl_setuser("relay", enabled=True, passwords=["+other"], keys=["*"], commands=["+@all"])
    client.execute_command("ACL", "SETUSER", "relay", "&*")
    async with Relay(server.url, username="relay", password="secret-pw").running(ready=False) as relay:
        relay.put("t")
        told = await relay.told("holding")
        assert told["reaction"] == "rights" and "secret-pw" not in str(relay.events)
        client.execute_command("ACL", "SETUSER", "relay", ">secret-pw")
        await relay.drained()
    assert bodies(client, "t") == [1]


async def test_somebody_else_in_the_stream_stops_the_topic_loudly(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 1)
        relay.put("good", 1)
        await relay.drained()
        client.xadd("t", {"data": "99"}, id="9000000000000-1")
        relay.put("t", 1)
        relay.put("good", 1)
        assert await relay.sink.drain(5) == 1
        assert relay.outbox.topics["t"].blocked == "foreign" and relay.event("topic_blocked")["topic"] == "t"
        client.hset("relay:writer:{good}", "last", "9000000000000-9")
        relay.put("good", 1)
        await relay.until(lambda: relay.outbox.topics["good"].blocked == "foreign")
        relay.put("other", 1)
        await relay.until(lambda: bodies(client, "other") == [1])
    assert bodies(client, "t") == [1, 99] and bodies(client, "good") == [1, 2]


# keys that vanish


async def test_flushall_under_load_goes_on_and_is_said(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 10)
        relay.put("u", 10)
        await relay.drained()
        client.flushdb()
        relay.put("t", 5)
        await relay.drained()
        told = await relay.told("redis_lost")
        assert told["topics"] == 2 and sorted(told["names"]) == ["t", "u"]
        relay.put("u", 1)
        await relay.drained()
        assert bodies(client, "t") == [-10, 11, 12, 13, 14, 15] and bodies(client, "u") == [-10, 11]
        assert client.hget("relay:topics", "t") and epoch(client) >= 1
        await relay.until(lambda: client.get("relay:lease:main"))


async def test_deleted_stream_goes_on_and_is_said(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        client.delete("t")
        relay.put("t", 2)
        await relay.drained()
        assert relay.event("stream_gone")["topic"] == "t" and relay.sink.stats.gone == 1
        relay.put("t", 1)
        await relay.drained()
        assert relay.kinds().count("stream_gone") == 1
    assert bodies(client, "t") == [4, 5, 6]


async def test_stream_trimmed_by_somebody_goes_on_without_a_word(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        before = relay.kinds()
        client.xtrim("t", maxlen=0, approximate=False)
        relay.put("t", 2)
        await relay.drained()
        assert relay.kinds() == before
    assert bodies(client, "t") == [4, 5]


async def test_lost_writer_key_is_made_again_from_the_stream(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        client.delete("relay:writer:{t}")
        relay.put("t", 2)
        await relay.drained()
        assert "redis_lost" not in relay.kinds()
    assert bodies(client, "t") == [1, 2, 3, 4, 5]


async def test_lost_functions_are_loaded_again(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 1)
        await relay.drained()
        client.function_flush()
        relay.put("t", 2)
        await relay.drained()
    assert bodies(client, "t") == [1, 2, 3] and relay.error is None


async def test_library_of_another_version_is_left_alone(server, client):
    other = library().text.replace(library().name.removeprefix("relay_"), "0123456789ab")
    client.function_load(other)
    async with Relay(server.url).running() as relay:
        relay.put("t")
        await relay.drained()
    names = {dict(zip(entry[::2], entry[1::2], strict=True))["library_name"] for entry in client.function_list()}
    assert names >= {"relay_0123456789ab", library().name}
    client.function_flush()


async def test_restored_backup_goes_on_behind_what_it_holds(server, client):
    async with Relay(server.url).running() as relay:
        relay.put("t", 3)
        await relay.drained()
        saved = {key: client.execute_command("DUMP", key, NEVER_DECODE=True) for key in ("t", "relay:writer:{t}")}
        relay.put("t", 3)
        await relay.drained()
        for key, dump in saved.items():
            client.restore(key, 0, dump, replace=True)
        relay.put("t", 2)
        await relay.drained()
        assert "redis_lost" in relay.kinds()
    assert bodies(client, "t") == [1, 2, 3, -6, 7, 8], "what is lost is said where it is missing"


async def test_stop_gives_up_on_a_server_that_hangs(monkeypatch):
    """A stop does not wait for the time-out of a call."""
    monkeypatch.setattr("relay.sink.sink.STOP_SECS", 0.1)
    held: list[asyncio.StreamWriter] = []
    hung = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    async with hung:
        port = hung.sockets[0].getsockname()[1]
        relay = Relay(f"redis://127.0.0.1:{port}/0")
        with anyio.fail_after(2):
            async with relay.running(ready=False):
                await relay.until(lambda: held)
        for writer in held:
            writer.close()
    assert relay.sink.state == "stopped"


def test_slow_calls_shrink_and_quick_ones_grow_again():
    pace = Pace(SinkStats())
    for _ in range(20):
        pace.answered(0.2, 100, trip_secs=0.001)
    assert (pace.entries_max, pace.bytes_max) == (ENTRIES_MIN, BYTES_MIN)
    for _ in range(60):
        pace.answered(0.2, 100, trip_secs=0.19)  # the way is long, the server quick
    assert (pace.entries_max, pace.bytes_max) == (ENTRIES_MAX, BYTES_MAX)


def test_pause_is_none_at_first_then_jittered_below_the_lease():
    pace = Pace(SinkStats())
    pauses = [pace.pause_secs() for _ in range(200)]
    assert pauses[0] == 0.0 and 0.3 < max(pauses) <= BACKOFF_CAP_SECS < LEASE_SECS
    assert len(set(pauses)) > 190
