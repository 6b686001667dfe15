"""Every error reply of the table, and every way to break off, at each place where the sink asks Redis something.

Twice in a row, then all is well: nothing counts as delivered that was not, nothing is stored twice, none stops.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import redis
from between import Between
from servers import RedisServer
from sinks import Relay, bodies
from test_sink_faults import REPLIES
from test_spool import spool_in

from relay.sink import Unsupported, reaction
from relay.sink.reactions import UNKNOWN
from relay.sink.suspects import may_mean_a_topic
from relay.spooled import SpooledOutbox

PASSWORD = "pw"
NIL = b"$-1\r\n"
NONE = b"*0\r\n"
TIMES = 2
PLACES: dict[str, Callable[[list[bytes]], bool]] = {
    "connect: login": lambda args: args[0] == b"AUTH",
    "connect: name": lambda args: args[:2] == [b"CLIENT", b"SETNAME"],
    "connect: database": lambda args: args[0] == b"SELECT",
    "load: look": lambda args: args[:2] == [b"FUNCTION", b"LIST"],
    "load": lambda args: args[:2] == [b"FUNCTION", b"LOAD"],
    "lease": lambda args: args[0] == b"SET" and b":lease:" in args[1],
    "lease: holder": lambda args: args[0] == b"GET",
    "epoch: first": lambda args: args[0] == b"SET" and args[1].endswith(b":epoch"),
    "epoch": lambda args: args[0] == b"INCR",
    "topics": lambda args: args[0] == b"HGETALL",
    "fence": lambda args: args[0] == b"FCALL" and args[1].startswith(b"relay_fence_"),
    "register: look": lambda args: args[0] == b"HMGET",
    "register": lambda args: args[0] == b"HSET",
    "first call": lambda args: _append(args) and args[-1] == b"1",
    "later call": lambda args: _append(args) and args[-1] == b"20",
    "renewal": lambda args: args[0] == b"FCALL" and args[1].startswith(b"relay_lease_"),
    "identity": lambda args: args[0] == b"INFO",
    "room: age": lambda args: args[0] == b"XTRIM",
    "room: size": lambda args: args[0] == b"MEMORY",
    "healing: tails": lambda args: args[0] == b"XREVRANGE",
    "healing": lambda args: _append(args) and args[2 + 1 + int(args[2]) + 4] == b"0",
}
"""Where a reply can come, by the commands that are sent there."""
ASIDE = {"identity", "room: age", "room: size", "healing: tails"}
"""Places where an error changes nothing: it is asked again later."""


def _append(args: list[bytes]) -> bool:
    return args[0] == b"FCALL" and args[1].startswith(b"relay_append_")


def _of_one_topic(what: bytes | str) -> bool:
    return isinstance(what, bytes) and may_mean_a_topic(what[1:].decode())


def _error(reply: bytes) -> bytes:
    return b"-%b\r\n" % reply


class Script:
    """Gives one thing at one place, TIMES times; makes sure that the relay comes to that place."""

    def __init__(self, place: str, what: bytes | str) -> None:
        self.place, self.what, self.given = place, what, 0

    def __call__(self, args: list[bytes]) -> bytes | str | None:
        if self.given < TIMES:
            if PLACES[self.place](args):
                self.given += 1
                return self.what
            if self.place == "load" and args[:2] == [b"FUNCTION", b"LIST"]:
                return NONE
            if self.place == "lease: holder" and args[0] == b"SET":
                return NIL
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer("--requirepass", PASSWORD)
    yield server
    server.close()


def client_of(server: RedisServer) -> "redis.Redis":
    return redis.Redis(port=server.port, db=1, password=PASSWORD, decode_responses=True)


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secs in (
        ("sink.RIGHTS_SECS", 0.01),
        ("pace.BACKOFF_CAP_SECS", 0.02),
        ("claim.RENEWALS", 30),
        ("sink.IDENTITY_SECS", 0.05),
        ("sink.PROBE_SECS", 0.05),
        ("ledger.PROBE_SECS", 0.05),
        ("trim.KEEP_SECS", 0.05),
    ):
        monkeypatch.setattr(f"relay.sink.{name}", secs)


async def _met(server: RedisServer, folder: Path, place: str, what: bytes | str, wanted: str) -> None:
    """Run a relay that meets one thing at one place."""
    script = Script(place, what)
    between = Between(server.port, script)
    prefix = f"{place.replace(' ', '_')}."
    spool = spool_in(folder / prefix, segment_bytes=4096)
    spool.open()
    outbox = SpooledOutbox(64 << 20, 32 << 20, spool, 1_700_000_000_000)
    topics = outbox.topics
    spool.confirmed = lambda name: (topics[name].last, bool(topics[name].blocked))
    settings = {"password": PASSWORD, "retention_secs": 86_400.0, "streams_bytes_max": 1 << 30}
    least = 1 if what in ("cut", "half", "hang") else TIMES  # what had arrived is not sent again
    call_secs = 0.15 if what == "hang" else 5.0
    names = [f"{prefix}{letter}" for letter in "tu"]

    def put() -> None:
        for name in names:
            relay.put(name, 1)

    def whole() -> bool:
        return not outbox.entries() and all(topics[name].last == topics[name].acked for name in names)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(between.run)
            relay = Relay(between.url, prefix, prefix=prefix, outbox=outbox, call_secs=call_secs, **settings)  # type: ignore[arg-type]
            with client_of(server) as client:
                put()
                async with relay.running(ready=False):
                    for _ in range(19):
                        if relay.error is not None:
                            break
                        await relay.until(lambda: whole() or relay.error, 15)
                        put()
                    if place.startswith("healing"):
                        await relay.until(whole)
                        for name in names:
                            client.delete(name, f"{prefix}relay:writer:{{{name}}}")
                        put()
                    await relay.until(lambda: (whole() and script.given >= least) or relay.error, 15)
                if wanted == "unsupported" and place not in ASIDE:
                    assert isinstance(relay.error, Unsupported) and script.given >= 1, (place, relay.error)
                    assert "Redis 7.0" in str(relay.error) or "renamed" in str(relay.error)
                else:
                    assert relay.error is None, (place, relay.error)
                    for name in names:
                        assert bodies(client, name) == list(range(1, topics[name].seq + 1)), (place, name, relay.events)
                    quiet = place in ASIDE or wanted == "load" or (place == "fence" and _of_one_topic(what))
                    told = {"holding", "lost", "topic_blocked"} & set(relay.kinds())
                    assert quiet or told, (place, relay.events)
            tasks.cancel_scope.cancel()
    spool.close()


USUAL = b"LOADING"
"""The reply that is tried each time; the others with the long tests."""
ENTRIES = [
    pytest.param(
        _error(reply), wanted, id=reply.decode()[:30], marks=[] if reply.startswith(USUAL) else pytest.mark.fault
    )
    for reply, wanted in REPLIES
] + [pytest.param(how, "lost", id=how, marks=pytest.mark.fault) for how in ("refuse", "cut", "half", "hang")]


@pytest.mark.parametrize(("what", "wanted"), ENTRIES)
async def test_reply_at_each_place_loses_and_repeats_nothing(
    server: RedisServer, tmp_path: Path, what: bytes | str, wanted: str
) -> None:
    with client_of(server) as client:
        client.flushdb()
    async with anyio.create_task_group() as tasks:
        for place in PLACES:
            tasks.start_soon(_met, server, tmp_path, place, what, wanted)


INSIDE = [(reply, wanted) for reply, wanted in REPLIES if wanted not in ("unsupported", "load", "cluster")]
"""What may come for one topic from inside of a call."""


class Inside:
    """Answers append calls that carry a topic as the function does when Redis refuses that topic's first entry."""

    def __init__(self, name: str, reply: bytes) -> None:
        self.name, self.reply, self.given, self.on = name.encode(), reply, 0, True

    def __call__(self, args: list[bytes]) -> bytes | str | None:
        if not self.on or not _append(args) or self.name not in args:
            return None
        if args[2] != b"2":  # with others in the call: they are sent again alone, and this one too
            return b"-ERR nobody knows this\r\n"
        self.given += 1
        note = b"0 PARTIAL %b %b" % (args[2 + 1 + 2 + 5], self.reply)
        return b"*1\r\n$%d\r\n%b\r\n" % (len(note), note)


async def _poisoned(server: RedisServer, number: int, answer: Inside, whole: bool) -> None:
    """One topic is refused again and again: the others go on (where that is `whole`ly its own matter), none is lost."""
    prefix = f"p{number}."
    between = Between(server.port, answer)
    good, bad = f"{prefix}good", answer.name.decode()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(between.run)
            relay = Relay(between.url, prefix, prefix=prefix, password=PASSWORD)
            with client_of(server) as client:
                async with relay.running():
                    for count in range(1, 6):
                        relay.put(bad)
                        relay.put(good)
                        if whole:
                            await relay.until(lambda count=count: len(bodies(client, good)) == count, 15)
                    await relay.until(lambda: answer.given > 1 or relay.outbox.topics[bad].blocked == "foreign")
                    assert bodies(client, bad) == [], "an error is no delivery"
                    told = relay.event("topic_blocked" if whole else "holding")
                    assert (told["topic"] == bad) if whole else told["text"]
                    answer.on = False
                    if relay.outbox.topics[bad].blocked != "foreign":
                        await relay.until(lambda: len(bodies(client, bad)) == 5, 15)
                    await relay.until(lambda: len(bodies(client, good)) == 5)
                    for name in (good, bad):
                        assert bodies(client, name) in ([1, 2, 3, 4, 5], []), name
            tasks.cancel_scope.cancel()


async def test_one_poisoned_topic_never_blocks_the_rest(server: RedisServer) -> None:
    async with anyio.create_task_group() as tasks:
        for number, (reply, wanted) in enumerate(INSIDE):
            own = wanted in ("block", "foreign", "isolate") or reaction(reply.decode()) is UNKNOWN
            tasks.start_soon(_poisoned, server, number, Inside(f"p{number}.bad", reply), own)


@pytest.mark.fault
async def test_entry_that_breaks_each_connection_stops_its_topic_alone(server: RedisServer) -> None:
    """As with a server or proxy that takes no request so large, and closes."""
    async with anyio.create_task_group() as tasks:
        broken = [0]

        def answer(args: list[bytes]) -> str | None:
            if _append(args) and any(len(arg) > 100_000 for arg in args):
                broken[0] += 1
                return "refuse"
            return None

        between = Between(server.port, answer)
        await tasks.start(between.run)
        relay = Relay(between.url, "broken", prefix="broken.", password=PASSWORD)
        with client_of(server) as client:
            async with relay.running():
                relay.put("broken.large", 1, b"1" * 200_000)
                for count in range(1, 50):
                    relay.put("broken.t")
                    await relay.until(lambda count=count: bodies(client, "broken.t") == list(range(1, count + 1)), 15)
                told = await relay.told("topic_blocked")
                assert (told["topic"], told["reason"]) == ("broken.large", "CUT")
                before = broken[0]
                await relay.until(lambda: broken[0] > before)  # it is tried again now and then
                relay.put("broken.t")
                await relay.until(lambda: len(bodies(client, "broken.t")) == 50)
        tasks.cancel_scope.cancel()
