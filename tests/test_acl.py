"""deploy/relay.acl on real servers: each user can do its work, by the code of relay and reader, and no more."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from redis.exceptions import NoPermissionError
from relays import config_of, relay_of, until
from servers import RedisServer
from sinks import Relay
from test_examples import Recipe

from relay import codec, model
from relay.client import Client, Refused

ACL = Path(__file__).resolve().parents[1] / "deploy" / "relay.acl"
DEBIAN = shutil.which("redis-server")
T, ACCOUNT = "trades.BTC-USD", "orders.main"


@pytest.fixture(scope="module", params=["bundled", "redis-server"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "redis-server":
            if DEBIAN is None:
                pytest.skip("no redis-server on the PATH")
            patch.setenv("RELAY_TEST_REDIS_SERVER", DEBIAN)
        folder = tmp_path_factory.mktemp("acl")
        shutil.copy(ACL, folder / "relay.acl")
        # an administrator of the test's own: the file turns the default user off
        with (folder / "relay.acl").open("a") as file:
            file.write("\nuser admin on >admin ~* &* +@all\n")
        server = RedisServer("--aclfile", str(folder / "relay.acl"))
        try:
            yield server
        finally:
            server.close()


def as_user(server: RedisServer, user: str) -> "redis.Redis[Any]":
    password = "admin" if user == "admin" else f"change-me-{user}"
    return server.client(username=user, password=password)


@pytest.fixture
def filled(server: RedisServer) -> Iterator[RedisServer]:
    """A server with one entry on a market topic and one on an account topic."""
    with as_user(server, "admin") as admin:
        admin.flushall()
        head: dict[str, Any] = {"provider": "a", "run": 1, "seq": 1, "ts_recv": 1_000_000}
        trade = codec.encode(model.Trade(**head, symbol="BTC-USD", raw_symbol="BTC-USD", price="1"))
        order = codec.encode(model.Order(**head, account="main", order_id="1", state="open"))
        for topic, body in ((T, trade), (ACCOUNT, order), ("deadletter.t", b"{}")):
            admin.xadd(topic, {"data": body}, id="1-1")
            admin.hset("relay:topics", topic, "{}")
        yield server


def refused(client: "redis.Redis[Any]", *command: object) -> bool:
    """Whether the server refuses a command for want of rights; other errors mean that it was allowed."""
    try:
        client.execute_command(*command)
    except NoPermissionError:
        return True
    except redis.ResponseError as error:
        assert "NOPERM" not in str(error)
    return False


READS = [
    ("XREAD", "COUNT", 1, "STREAMS", T, "0-0"),
    ("XRANGE", T, "-", "+"),
    ("XREVRANGE", T, "+", "-", "COUNT", 1),
    ("XLEN", T),
    ("XINFO", "STREAM", T),
    ("HLEN", "relay:topics"),
    ("HKEYS", "relay:topics"),
    ("HGETALL", "relay:topics"),
    # of a cluster, where test_opening.py reads as this user
    ("CLUSTER", "SLOTS"),
    ("ASKING",),
    ("ROLE",),
]
SHARES = [
    ("XGROUP", "CREATE", T, "g", "0"),
    ("XREADGROUP", "GROUP", "g", "a", "STREAMS", T, ">"),
    ("XACK", T, "g", "1-1"),
    ("XAUTOCLAIM", T, "g", "a", 0, "0-0"),
    ("XINFO", "GROUPS", T),
    ("XPENDING", T, "g"),
]
CHANGES = [
    ("XADD", T, "*", "data", "x"),
    ("XTRIM", T, "MAXLEN", 0),
    ("XDEL", T, "1-1"),
    ("DEL", T),
    ("PUBLISH", T, "x"),
    ("HSET", "relay:topics", "x", "y"),
    ("HDEL", "relay:topics", T),
    ("SET", "relay:epoch", 99),
    ("SET", "relay:lease:relay", "me"),
    ("FCALL", "relay_append_x", 0),
    ("RENAME", T, "x"),
    ("EXPIRE", T, 1),
    ("COPY", T, "quotes.COPY"),
]
DANGERS = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", 1),
    ("SHUTDOWN", "NOSAVE"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "x", "on"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "LIST"),
    ("EVAL", "return 1", 0),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "DELETE", "x"),
    ("REPLICAOF", "NO", "ONE"),
    ("CLUSTER", "RESET"),
    ("CLUSTER", "FAILOVER"),
    ("SPUBLISH", "others", "x"),
    ("MONITOR",),
    ("SAVE",),
    ("GET", "somebody-elses"),
    ("SET", "somebody-elses", 1),
    ("XREAD", "STREAMS", "somebody-elses", "0"),
]
ACCOUNTS = [("XRANGE", ACCOUNT, "-", "+"), ("XREAD", "STREAMS", ACCOUNT, "0"), ("XRANGE", "deadletter.t", "-", "+")]
OWN_KEYS = [("GET", "relay:epoch"), ("HGETALL", "relay:writer:{trades.BTC-USD}"), ("GET", "relay:lease:relay")]

MAY: dict[str, list[tuple[Any, ...]]] = {
    "market": READS,
    "market-group": READS + SHARES,
    "accounts": READS + ACCOUNTS,
    "relay": [("XADD", T, "*", "data", "x"), ("XTRIM", T, "MAXLEN", 5), ("PUBLISH", ACCOUNT, "x"), *OWN_KEYS],
}
MAY_NOT: dict[str, list[tuple[Any, ...]]] = {
    "market": CHANGES + DANGERS + SHARES[:4] + ACCOUNTS + OWN_KEYS,
    "market-group": CHANGES
    + DANGERS
    + ACCOUNTS
    + OWN_KEYS
    + [("XGROUP", "DESTROY", T, "g"), ("XGROUP", "SETID", T, "g", 0)],
    "accounts": CHANGES + DANGERS + SHARES[:4] + OWN_KEYS,
    "relay": DANGERS
    + [("DEL", "somebody-elses"), ("XADD", "other", "*", "a", "b"), ("PUBLISH", "other", "x"), ("XDEL", T, "1-1")],
}


@pytest.mark.parametrize("user", MAY)
def test_user_may_do_its_work(filled: RedisServer, user: str) -> None:
    with as_user(filled, user) as client:
        assert [command for command in MAY[user] if refused(client, *command)] == []


@pytest.mark.parametrize("user", MAY_NOT)
def test_user_may_do_nothing_else(filled: RedisServer, user: str) -> None:
    with as_user(filled, user) as client:
        assert [command for command in MAY_NOT[user] if not refused(client, *command)] == []
    with as_user(filled, "admin") as admin:
        assert admin.exists(T, ACCOUNT) == 2


def test_nobody_enters_without_a_password(filled: RedisServer) -> None:
    with filled.client() as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with filled.client(username="market", password="guess") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


@pytest.mark.parametrize(
    ("user", "may", "may_not"),
    [
        ("market", ["quotes.*", "trades.*", "status.*"], ["orders.*", "deadletter.*", "*", "q*"]),
        ("accounts", ["quotes.*", "orders.*", "deadletter.*"], ["*", "relay:*"]),
        ("market-group", ["quotes.*"], ["orders.*", "*"]),
    ],
)
def test_channels_are_those_of_the_role(filled: RedisServer, user: str, may: list[str], may_not: list[str]) -> None:
    with as_user(filled, user) as client:
        for pattern in may:
            with client.pubsub() as channel:
                channel.psubscribe(pattern)
                assert channel.get_message(timeout=5)["type"] == "psubscribe"  # type: ignore[index]
        for pattern in may_not:
            with client.pubsub() as channel, pytest.raises(NoPermissionError):
                channel.psubscribe(pattern)
                channel.get_message(timeout=5)
        with client.pubsub() as channel:
            channel.subscribe(T)
            assert channel.get_message(timeout=5)["type"] == "subscribe"  # type: ignore[index]


async def test_sink_of_the_relay_works_with_its_user_alone(filled: RedisServer) -> None:
    """The lease, the functions, fences, appends, retention, and room made when there is too much."""
    relay = Relay(
        filled.url,
        "acl",
        username="relay",
        password="change-me-relay",
        retention_secs=3600,
        streams_bytes_max=1_000_000,
    )
    async with relay.running():
        relay.put("quotes.EUR-USD", 2_000)
        relay.put("orders.main2", 10)
        relay.put("status.acl", 10)
        await relay.drained()
        keeper = relay.sink._keeper
        keeper._bytes_max = 5_000
        trimmed, _ = await keeper.keep(10**12)
        assert trimmed > 0
        assert await keeper.make_room() >= 0
        relay.put("quotes.GBP-USD", 5)
        await relay.drained()
    assert not re.search("NOPERM|topic_blocked|holding", str(relay.events)), relay.events
    with as_user(filled, "admin") as admin:
        assert admin.xlen("quotes.GBP-USD") == 5 and admin.hget("relay:topics", "quotes.EUR-USD")
        assert not admin.exists("relay:lease:acl"), "given back at the end"


async def test_whole_relay_works_with_its_user_alone(filled: RedisServer, tmp_path: Path) -> None:
    config = config_of(
        f"""
name: t
redis: {{url: {filled.url}, username: relay, password: change-me-relay, prefix: ""}}
providers:
  coinapi: {{api_key: kkkkkkkk, trades: [BITSTAMP_SPOT_BTC_USD], simulate: true}}
""",
        tmp_path,
    )
    with as_user(filled, "admin") as admin:
        # made-up prices stand under sim.: the same rights, behind that prefix
        rights = next(line for line in ACL.read_text().splitlines() if line.startswith("user relay "))
        admin.execute_command("ACL", "SETUSER", "relay", *re.sub(r"([~&])", r"\1sim.", rights).split()[3:])
        async with relay_of(config) as running:
            await until(lambda: admin.exists("sim.trades.BTC-USD") and admin.xlen("sim.trades.BTC-USD") > 5, 20)
            assert not running.said("NOPERM")
        admin.execute_command("ACL", "LOAD")


@pytest.mark.parametrize("user", ["market", "market-group"])
async def test_reader_works_with_its_user_alone(filled: RedisServer, user: str) -> None:
    client = Client(filled.url, username=user, password=f"change-me-{user}")
    for via in ("stream", "channel"):
        with anyio.fail_after(10):
            async with contextlib.aclosing(client.read("trades.*", since="all", via=via)) as items:  # type: ignore[arg-type, type-var]
                async for item in items:
                    assert (item.topic, item.id) == (T, "1-1")
                    break
    with anyio.fail_after(10), pytest.raises(Refused, match="NOPERM"):
        async for _ in client.read("orders.main", since="all", follow=False):
            pass
    shared = client.share("trades.*", group="g", consumer="a", since="all", follow=False)
    if user == "market-group":
        assert [item.id async for item in shared] == ["1-1"]
    else:
        with pytest.raises(Refused, match="NOPERM"):
            [item async for item in shared]


async def test_pattern_that_is_not_allowed_is_followed_by_names(filled: RedisServer) -> None:
    """`trades.BTC*` is not literally in the ACL, the topics that it means are."""
    client = Client(filled.url, username="market", password="change-me-market")
    with anyio.fail_after(10):
        async with contextlib.aclosing(client.read("trades.BTC*", since="all", via="channel")) as items:  # type: ignore[type-var]
            async for item in items:
                assert item.id == "1-1"
                break


@pytest.mark.parametrize("name", ["python_stream.py", "python_pubsub.py", "node_stream.mjs", "node_pubsub.mjs"])
async def test_recipes_need_no_more_than_a_market_reader_has(filled: RedisServer, name: str, tmp_path: Path) -> None:
    url = filled.url.replace("redis://", "redis://market:change-me-market@")
    with Recipe(name, tmp_path, url, T, "0-0") as recipe:
        await recipe.got(["1-1"])


async def test_account_reader_sees_accounts(filled: RedisServer) -> None:
    client = Client(filled.url, username="accounts", password="change-me-accounts")
    found = [item async for item in client.read("*", since="all", follow=False)]
    assert {item.topic for item in found} == {T, ACCOUNT, "deadletter.t"}
