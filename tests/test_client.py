"""The reader: every id once, every hole told, by stream, by channel and in a group, with and without asyncio."""

import ast
import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from relays import until
from servers import RedisServer, free_port
from streams import RUN, Writer

from relay import codec, model
from relay.client import Client, ClientError, Cursor, Gap, GapError, Item, Refused, Unreachable
from relay.client import reading as reading_module
from relay.client.client import start_id
from relay.client.steps import Call, Calls, Connect, Emit, Lost, Pause, Receive, Subscribe, Topics, backoff

ROOT = Path(__file__).resolve().parents[1]
T = "trades.BTC-USD"


@pytest.fixture
def writer(redis_url: str) -> Iterator[Writer]:
    with Writer(redis_url) as writer:
        yield writer


class Reader:
    """Reads in a task; what came lies in `items`."""

    def __init__(self, source: AsyncIterator[Item | Gap]) -> None:
        self.source = source
        self.items: list[Item | Gap] = []
        self.error: Exception | None = None

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items if not isinstance(item, Gap)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    async def _run(self) -> None:
        try:
            async with contextlib.aclosing(self.source) as source:  # type: ignore[type-var]
                async for item in source:
                    self.items.append(item)
        except ClientError as error:
            self.error = error

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Reader"]:
        async with anyio.create_task_group() as group:
            group.start_soon(self._run)
            try:
                yield self
            finally:
                group.cancel_scope.cancel()

    async def got(self, ids: list[str], seconds: float = 10.0) -> None:
        await until(lambda: len(self.ids) >= len(ids), seconds)
        assert self.ids == ids


async def everything(source: AsyncIterator[Any]) -> list[Any]:
    with anyio.fail_after(10):
        return [item async for item in source]


async def connected(url: str, count: int = 1) -> None:
    """Wait until readers are at the server, waiting for what is new."""

    def waiting() -> bool:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            found = [one for one in client.client_list() if one["name"] == "relay-client"]
            return (
                len([one for one in found if one["cmd"] in ("xread", "xreadgroup", "psubscribe", "subscribe")]) >= count
            )

    await until(waiting)


# what it costs to import, and what it may import


def test_import_pulls_in_nothing_else() -> None:
    code = (
        "import sys, relay.client; print(*[m for m in sys.modules if m.split('.')[0] in ('relay','redis','msgspec')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert {name for name in found.split() if not name.startswith("relay.client")} == {"relay"}


def test_source_names_only_messages_their_coder_and_addresses() -> None:
    allowed = {"relay", "relay.model", "relay.codec", "relay.targets"}
    for path in (ROOT / "relay" / "client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "relay":
                assert node.module in allowed or node.module.startswith("relay.client"), (path, node.module)


# reading


async def test_messages_come_as_structs_with_their_ids(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 3)
    items = await everything(Client(redis_url).read(T, since="all", follow=False))
    assert [item.id for item in items] == ids and {item.topic for item in items} == {T}
    assert [type(item.message) for item in items] == [model.Trade] * 3
    assert [item.message.price for item in items] == ["1.50", "2.50", "3.50"]


def test_sync_twin_gives_the_same(redis_url: str, writer: Writer) -> None:
    writer.put(T, 3)
    writer.skip(T, 2)
    writer.put("trades.ETH-USD", 2)
    writer.put(T)
    client = Client(redis_url)
    found = list(client.read_sync("trades.*", since="all", follow=False))
    assert found == asyncio.run(everything(client.read("trades.*", since="all", follow=False)))
    assert [item.missing for item in found if isinstance(item, Gap)] == [2]


async def test_new_only_by_default(redis_url: str, writer: Writer) -> None:
    writer.put(T, 3)
    async with Reader(Client(redis_url).read("trades.*")).running() as reader:
        await connected(redis_url)
        await reader.got(writer.put(T, 2))
    assert reader.gaps == []


async def test_topic_that_appears_later_is_read_from_its_beginning(redis_url: str, writer: Writer) -> None:
    async with Reader(Client(redis_url).read("trades.*", "quotes.EUR-USD")).running() as reader:
        await connected(redis_url)
        ids = writer.put("trades.NEW", 3)
        writer.put("bars.1m.NEW")
        await reader.got(ids)
        await reader.got(ids + writer.put("quotes.EUR-USD"))
    assert reader.gaps == []


def test_age_time_and_id_say_where_to_begin() -> None:
    top = 2**64 - 1
    assert start_id(None) is None and start_id("all") == "0-0" and start_id("5-7") == "5-7"
    assert start_id("10m", 1_000_000) == f"399999-{top}" and start_id("1.5s", 1_000_000) == f"998499-{top}"
    assert start_id(datetime.timedelta(seconds=1), 1_000_000) == f"998999-{top}"
    assert start_id(datetime.datetime(1970, 1, 1, 0, 0, 2, tzinfo=datetime.UTC)) == f"1999-{top}"
    with pytest.raises(ValueError, match="since='yesterday'"):
        start_id("yesterday")


async def test_cursor_goes_on_where_it_was(redis_url: str, writer: Writer, tmp_path: Path) -> None:
    client, path = Client(redis_url), tmp_path / "cursor"
    ids = writer.put(T, 5)
    cursor = Cursor.load(path)
    async with contextlib.aclosing(client.read(T, since="all", cursor=cursor)) as items:  # type: ignore[type-var]
        async for item in items:
            cursor.save(path)
            if item.id == ids[2]:
                break
    again = Cursor.load(path)
    assert dict(again) == {T: ids[2]} and again.run(T) == RUN
    assert [item.id for item in await everything(client.read(T, cursor=again, follow=False))] == ids[3:]
    assert dict(again) == {T: ids[-1]}


def test_cursor_is_json_and_takes_plain_ids(tmp_path: Path) -> None:
    cursor = Cursor.from_json('{"a": "5-1", "b": {"id": "6-2", "run": 7}}')
    assert dict(cursor) == {"a": "5-1", "b": "6-2"} and (cursor.run("a"), cursor.run("b")) == (0, 7)
    assert dict(Cursor.from_json(cursor.to_json())) == dict(cursor)
    assert dict(Cursor({"a": "1-1"})) == {"a": "1-1"}
    for wrong in ("[]", '{"a": 5}', '{"a": "x"}', '{"a": {"id": "5-1", "run": "x"}}', "{"):
        with pytest.raises(ValueError):
            Cursor.from_json(wrong)
    with pytest.raises(ValueError, match="not an entry id"):
        cursor["a"] = "$"


# holes


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_hole_in_the_numbers_is_told_once(redis_url: str, writer: Writer, via: Any) -> None:
    first = writer.put(T, 2)
    cursor = Cursor()
    async with Reader(Client(redis_url).read(T, since="all", cursor=cursor, via=via)).running() as reader:
        await reader.got(first)
        writer.put(T, 3, store=False, publish=False)
        last = writer.put(T)
        await reader.got(first + last)
    assert reader.gaps == [Gap(T, "hole", last[0], first[-1], 3)]
    assert reader.items.index(reader.gaps[0]) == 2, "in its place"


async def test_raised_gap_is_passed_by_the_same_cursor(redis_url: str, writer: Writer) -> None:
    first = writer.put(T)
    writer.skip(T, 1)
    second = writer.put(T, 2)
    cursor, client = Cursor(), Client(redis_url)
    read: list[str] = []
    with pytest.raises(GapError, match="1 missing") as raised:
        async for item in client.read(T, since="all", cursor=cursor, on_gap="raise", follow=False):
            read.append(item.id)  # noqa: PERF401 - what came before the error counts
    assert raised.value.gap.missing == 1
    read += [item.id async for item in client.read(T, cursor=cursor, on_gap="raise", follow=False)]
    assert read == first + second


async def test_notice_of_the_relay_is_a_gap_in_its_topic_only(redis_url: str, writer: Writer) -> None:
    fields = {"reason": "sequence_jump", "missing": 7, "from_ns": 5_000_000}
    (id,) = writer.put(T, status="gap", **fields)
    writer.put("status.t", status="gap", **fields)  # `topic` there is its own name: changed below
    body = json.dumps({"type": "status", "provider": "a", "ts_recv": 1, "run": 1, "seq": 2, "event": "gap", "topic": T})
    writer.client.xadd("status.t", {"data": body}, id="99999999999999-2")
    gap, *rest = await everything(Client(redis_url).read(T, since="all", follow=False))
    assert (gap.reason, gap.missing, gap.after, gap.id) == ("sequence_jump", 7, "5-0", id) and rest == []
    assert isinstance(gap.message, model.Status)
    *_, copy = await everything(Client(redis_url).read("status.t", since="all", follow=False))
    assert isinstance(copy, Item) and copy.message.topic == T


async def test_trimmed_stream_is_told_with_its_number(redis_url: str, writer: Writer) -> None:
    client, cursor = Client(redis_url), Cursor()
    ids = writer.put(T, 10)
    cursor[T] = ids[1]
    writer.client.xtrim(T, maxlen=3, approximate=False)
    gap, *items = await everything(client.read(T, cursor=cursor, follow=False))
    assert gap == Gap(T, "trimmed", ids[7], ids[1], 5)
    assert [item.id for item in items] == ids[7:]


async def test_trimmed_right_behind_the_cursor_is_no_gap(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 10)
    writer.client.xtrim(T, maxlen=3, approximate=False)
    items = await everything(Client(redis_url).read(T, cursor=Cursor({T: ids[6]}), follow=False))
    assert [item.id for item in items] == ids[7:] and not [item for item in items if isinstance(item, Gap)]


async def test_new_run_is_no_gap_while_nothing_was_trimmed(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 3)
    writer.restart()
    ids += writer.put(T, 3)
    items = await everything(Client(redis_url).read(T, cursor=Cursor({T: ids[1]}), follow=False))
    assert [item.id for item in items] == ids[2:] and not [item for item in items if isinstance(item, Gap)]


async def test_new_run_behind_a_trimmed_end_is_a_possible_gap(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 5)
    writer.restart()
    last = writer.put(T, 2)
    writer.client.xtrim(T, maxlen=2, approximate=False)
    cursor = Cursor.from_json(json.dumps({T: {"id": ids[1], "run": RUN}}))
    gap, *items = await everything(Client(redis_url).read(T, cursor=cursor, follow=False))
    assert gap == Gap(T, "trimmed", last[0], ids[1], None) and [item.id for item in items] == last


async def test_beginning_of_a_new_run_that_is_missing_is_a_hole(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 2)
    writer.restart()
    writer.skip(T, 4)
    last = writer.put(T)
    _, _, gap, item = await everything(Client(redis_url).read(T, since="all", follow=False))
    assert gap == Gap(T, "hole", last[0], ids[-1], 4) and item.id == last[0]


async def test_entry_that_is_no_message_is_told_and_the_rest_goes_on(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T)
    writer.client.xadd(T, {"data": '{"type":"of a later version"}'}, id=f"{writer.ms + 1}-2")
    writer.seqs[T], writer.ms = 2, writer.ms + 1
    ids += writer.put(T)
    one, gap, two = await everything(Client(redis_url).read(T, since="all", follow=False))
    assert [one.id, two.id] == ids
    assert (gap.reason, gap.missing, gap.data) == ("unreadable", 1, b'{"type":"of a later version"}')


async def test_run_of_a_plain_id_is_learned_from_its_entry(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 3)
    writer.restart()
    writer.skip(T, 5)
    last = writer.put(T)
    gap, _ = await everything(Client(redis_url).read(T, cursor=Cursor({T: ids[2]}), follow=False))
    assert gap == Gap(T, "hole", last[0], ids[2], 5)


# by channel


def test_what_was_taken_is_handed_out_before_a_loss_is_mended() -> None:
    """The connection breaks in the middle of a repair: the message before the hole must not be forgotten."""
    steps = reading_module.Reading(Topics([T], ""), Cursor({T: "1000-1"}), None, "channel", True).steps()

    def body(seq: int) -> bytes:
        head: dict[str, Any] = {"provider": "a", "symbol": "s", "raw_symbol": "s", "run": 7, "ts_recv": 2_000_000_000}
        return codec.encode(model.Trade(**head, seq=seq, price="1"))

    assert isinstance(next(steps), Connect)
    assert isinstance(steps.send(None), Calls)  # the entry at the cursor
    assert isinstance(steps.send([[(b"1000-1", [b"data", body(1)])]]), Subscribe)
    assert isinstance(steps.send(None), Call)  # the first look at the streams
    assert isinstance(steps.send(None), Receive)
    repair = steps.send([(T, body(2)), (T, body(5))])
    assert isinstance(repair, Call) and repair.args[:3] == ("XRANGE", T, "(2000-2")
    taken = steps.throw(Lost("cut"))
    assert isinstance(taken, Emit) and [id for _, _, id, _ in taken.out] == ["2000-2"]
    assert isinstance(steps.send(1), Pause)


def test_globs_are_written_as_redis_does() -> None:
    topics = Topics(["quotes.[!A]*", "trades.X"], "sim.")
    assert topics.redis_globs == ("sim.quotes.[^A]*",) and topics.names == ("sim.trades.X",)
    assert topics.match("sim.quotes.B") and topics.match("sim.trades.X")
    assert not topics.match("sim.quotes.A") and not topics.match("quotes.B") and not topics.match("sim.trades.XY")


async def test_channel_takes_what_was_not_published_from_the_stream(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 2)
    async with Reader(Client(redis_url).read(T, since="all", via="channel")).running() as reader:
        await reader.got(ids)
        ids += writer.put(T)
        ids += writer.put(T, 3, publish=False)
        ids += writer.put(T)
        await reader.got(ids)
        ids += writer.put(T, publish=False)  # and nothing after it
        await reader.got(ids)
        writer.restart()
        ids += writer.put(T, 2)
        await reader.got(ids)
    assert reader.gaps == []


async def test_channel_takes_what_is_no_longer_in_the_stream(redis_url: str, writer: Writer) -> None:
    first = writer.put(T)
    async with Reader(Client(redis_url).read(T, since="all", via="channel")).running() as reader:
        await reader.got(first)
        writer.skip(T, 1)
        last = writer.put(T, store=False)
        await reader.got(first + last)
    assert [(gap.reason, gap.missing) for gap in reader.gaps] == [("hole", 1)]


async def test_many_topics_are_followed_by_channel(
    redis_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "CHANNEL_FROM", 10)
    ids = [id for n in range(9) for id in writer.put(f"trades.T{n}")]
    async with Reader(Client(redis_url).read("trades.*", since="all")).running() as reader:
        await until(lambda: sorted(reader.ids) == sorted(ids))
        with redis.Redis.from_url(redis_url) as client:
            assert client.pubsub_numpat() == 0
            ids += [id for n in range(9, 20) for id in writer.put(f"trades.T{n}")]
            await until(lambda: sorted(reader.ids) == sorted(ids))
            await until(client.pubsub_numpat)
        ids += [id for n in range(25) for id in writer.put(f"trades.T{n}", 2)]
        writer.put("quotes.other")
        await until(lambda: len(reader.ids) >= len(ids))
    assert sorted(reader.ids) == sorted(ids) and reader.gaps == []


# addresses and losses of the connection


async def test_unix_socket_and_options_in_the_address_work(tmp_path: Path) -> None:
    server = RedisServer("--unixsocket", str(tmp_path / "sock"))
    try:
        with Writer(server.url) as writer:
            ids = writer.put(T, 2)
        for url in (f"unix://{tmp_path}/sock", f"{server.url}?socket_timeout=1&decode_responses=True&protocol=3"):
            client = Client(url)
            assert [item.id for item in client.read_sync(T, since="all", follow=False)] == ids
            for via in ("stream", "channel"):
                async with Reader(client.read(T, since="all", via=via)).running() as reader:  # type: ignore[arg-type]
                    await reader.got(ids)
    finally:
        server.close()


def test_secrets_of_the_address_are_not_shown() -> None:
    assert repr(Client("redis://me:secret@host:1/0?password=x")) == "<Client redis://host:1/0>"


async def test_wrong_address_ends_after_the_first_connect(redis_url: str) -> None:
    client = Client(f"redis://127.0.0.1:{free_port()}", connect_secs=0.1)
    with pytest.raises(Unreachable):
        await everything(client.read(T))
    with pytest.raises(Unreachable):
        next(iter(client.read_sync(T)))


async def test_refusals_are_raised(redis_url: str, writer: Writer) -> None:
    writer.client.set("trades.text", "x")
    with pytest.raises(Refused, match="WRONGTYPE"):
        await everything(Client(redis_url).read("trades.text", since="all"))
    with pytest.raises(Refused, match="login"):
        await everything(Client(redis_url, username="nobody", password="x").read(T))
    with pytest.raises(ValueError, match="at least one topic"):
        Client(redis_url).read()


def test_pauses_grow_to_a_bound() -> None:
    assert backoff(0) == 0 and 0 < backoff(1) < backoff(2) and backoff(50) == backoff(99) == 2.0


@pytest.mark.parametrize("via", ["stream", "channel"])
async def test_cut_connections_are_mended(redis_url: str, writer: Writer, via: Any) -> None:
    ids = writer.put(T, 2)
    async with Reader(Client(redis_url).read("trades.*", since="all", via=via)).running() as reader:
        await reader.got(ids)
        for _ in range(3):
            for one in writer.client.client_list():
                if one["name"] == "relay-client":
                    with contextlib.suppress(redis.ResponseError):  # it has gone meanwhile
                        writer.client.client_kill_filter(_id=one["id"])
            ids += writer.put(T, 5)
            await reader.got(ids)
    assert reader.gaps == []


async def test_leaving_the_loop_closes_the_connections(redis_url: str, writer: Writer) -> None:
    writer.put(T, 2)
    async for _ in Client(redis_url).read(T, since="all", via="channel"):
        break
    for _ in Client(redis_url).read_sync(T, since="all", via="channel"):
        break
    await until(lambda: not [one for one in writer.client.client_list() if one["name"] == "relay-client"])


# groups


async def test_group_shares_and_acknowledges_what_was_handled(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 60)
    client = Client(redis_url)
    taken: list[str] = []
    async with contextlib.aclosing(client.share(T, group="g", consumer="a", since="all")) as items:  # type: ignore[type-var]
        async for item in items:
            if len(taken) == 30:
                break
            taken.append(item.id)
    assert taken == ids[:30]
    assert writer.client.xpending(T, "g")["pending"] == 30
    other = await everything(client.share(T, group="g", consumer="b", follow=False))
    assert other == [], "they are a's still"
    again = await everything(client.share(T, group="g", consumer="a", follow=False))
    assert [item.id for item in again] == ids[30:]
    assert writer.client.xpending(T, "g")["pending"] == 0


async def test_group_claims_what_the_dead_left(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 5)
    writer.client.xgroup_create(T, "g", "0")
    writer.client.xreadgroup("g", "dead", {T: ">"}, count=3)
    async with Reader(Client(redis_url).share("trades.*", group="g", consumer="b", claim_secs=0.2)).running() as reader:
        await until(lambda: len(reader.ids) >= 5)
    assert sorted(reader.ids) == ids


def test_group_works_without_asyncio(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 5)
    found = list(Client(redis_url).share_sync(T, group="g", consumer="a", since="all", follow=False))
    assert [item.id for item in found] == ids and writer.client.xpending(T, "g")["pending"] == 0


async def test_group_tells_of_holes_and_of_what_was_trimmed(redis_url: str, writer: Writer) -> None:
    client = Client(redis_url)
    first = writer.put(T, 2)
    writer.skip(T, 3)
    first += writer.put(T)
    found = await everything(client.share(T, group="g", consumer="a", since="all", follow=False))
    assert [(gap.reason, gap.missing) for gap in found if isinstance(gap, Gap)] == [("hole", 3)]
    ids = writer.put(T, 10)
    writer.client.xtrim(T, maxlen=4, approximate=False)
    gap, *items = await everything(client.share(T, group="g", consumer="b", follow=False))
    assert gap == Gap(T, "trimmed", ids[6], first[-1], 6) and [item.id for item in items] == ids[6:]
    writer.put(T, 4)
    writer.client.xreadgroup("g", "a", {T: ">"})
    writer.client.xtrim(T, maxlen=1, approximate=False)
    again = await everything(client.share(T, group="g", consumer="a", follow=False))
    assert [(one.reason, one.missing) for one in again if isinstance(one, Gap)] == [("trimmed", 1)] * 3
    assert writer.client.xpending(T, "g")["pending"] == 0


async def test_group_tells_of_what_a_dead_consumer_did_not(redis_url: str, writer: Writer) -> None:
    first = writer.put(T)
    writer.skip(T, 2)
    rest = writer.put(T, 4)
    writer.client.xgroup_create(T, "g", "0")
    writer.client.xreadgroup("g", "dead", {T: ">"})
    writer.client.xdel(T, *rest[2:])
    async with Reader(Client(redis_url).share(T, group="g", consumer="b", claim_secs=0.05)).running() as reader:
        await until(lambda: len(reader.items) >= 6)
    assert reader.ids == first + rest[:2]
    told = {(gap.reason, gap.id, gap.missing) for gap in reader.gaps}
    assert told == {("hole", rest[0], 2), ("trimmed", rest[2], None), ("trimmed", rest[3], None)}


async def test_group_that_the_server_lost_is_made_again(redis_url: str, writer: Writer) -> None:
    ids = writer.put(T, 2)
    async with Reader(Client(redis_url).share(T, group="g", consumer="a", since="all")).running() as reader:
        await reader.got(ids)
        writer.client.delete(T)
        ids += writer.put(T, 2)
        await reader.got(ids)
    assert reader.gaps == []


# the real thing, killed


@pytest.mark.fault
async def test_server_killed_and_back_gives_each_id_once(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        with Writer(server.url) as writer:
            ids = writer.put(T, 5)
            readers = [
                Reader(Client(server.url).read("trades.*", since="all", via=via)) for via in ("stream", "channel")
            ]  # type: ignore[arg-type]
            async with readers[0].running(), readers[1].running():
                for _ in range(3):
                    for reader in readers:
                        await reader.got(ids)
                    server.kill()
                    server.start()
                    ids += writer.put(T, 5)
                for reader in readers:
                    await reader.got(ids)
                    assert reader.gaps == []
    finally:
        server.close()


@pytest.mark.fault
async def test_server_that_lost_all_is_told_with_the_number_that_is_missing() -> None:
    server = RedisServer()
    try:
        with Writer(server.url) as writer:
            ids = writer.put(T, 5)
            reader = Reader(Client(server.url).read(T, since="all"))
            async with reader.running():
                await reader.got(ids)
                server.kill()
                server.start()
                writer.skip(T, 4)
                ids += writer.put(T, 2)
                await reader.got(ids)
            assert [(gap.reason, gap.missing) for gap in reader.gaps] == [("trimmed", 4)]
    finally:
        server.close()
