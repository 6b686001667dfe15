"""IO: reads the topics of a Redis into the board: the newest entries at first, then whatever comes.

Streams only, by XREAD without waiting, a few times a second for all topics at once: nothing that arrived between two
looks is lost, a relay without pub/sub is no different, and a thousand updates cost one call. The pause between two
looks grows with what a look costs, so that the page never takes more than a small part of the server.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import msgspec
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from relay import codec
from relay.dashboard.rows import PRICED, Row, TopicInfo
from relay.dashboard.state import Board
from relay.dashboard.views import item
from relay.opening import close, newer_async, opened_async

EVERY_SECS = 0.15
"""Pause between two looks; a browser sees a price at most this and one way later."""
SHARE_MAX = 0.25
"""Part of the time that looks may take, measured here, which is more than what they cost the server."""
SWEEP_SECS = 0.5
LIST_SECS = 2.0
FORGET_SECS = 60.0
"""A topic that is listed no more goes after this; shorter, a server that lost its data would empty the page."""
READ_COUNT = 1_000
FIRST_COUNT = 12
DEEP_COUNT = 400
"""Entries looked through for a price behind statuses, where the newest FIRST_COUNT have none."""
STATUS_COUNT = 1_000
BATCH = 250
"""Topics in one pipeline of first reads."""
RETRY_SECS = 0.5
ANSWER_SECS = 5.0
HISTORY = {"quotes": 300, "rates": 300, "trades": 120, "bars": 60}
"""Entries that the detail of a row begins with."""


class Reader:
    """Follows one Redis for ever; a lost connection is mended, and said on the board meanwhile."""

    def __init__(
        self,
        board: Board,
        address: Callable[[], str],
        *,
        lists: Iterable[str],
        changed: Callable[[], None],
        options: Mapping[str, Any] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`address` is asked before each connect and may raise OSError; `lists`: the `relay:topics` hashes."""
        self.board, self._address, self._changed, self._clock_ns = board, address, changed, clock_ns
        self._lists = tuple(dict.fromkeys(lists))
        self._options = dict(options or {})
        self.topics: dict[str, TopicInfo] = {}
        self.last: dict[str, str] = {}
        self._missing: dict[str, float] = {}
        self._client: Any = None

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._session()
            except (RedisError, OSError, EOFError) as error:
                self.board.redis(_plain(error))
            self._told()
            await anyio.sleep(RETRY_SECS)

    async def _session(self) -> None:
        client: Any = opened_async(
            self._address(),
            {
                "socket_timeout": ANSWER_SECS,
                "socket_connect_timeout": ANSWER_SECS,
                "retry": Retry(NoBackoff(), 0),
                "client_name": "relay-dashboard",
                **self._options,
            },
        )
        try:
            await client.execute_command("PING")
            self._client = client
            await self._follow(client)
        finally:
            self._client = None
            with anyio.CancelScope(shield=True):
                await close(client)

    async def _follow(self, client: Any) -> None:
        list_at = sweep_at = 0.0
        while True:
            began = time.monotonic()
            if began >= list_at:
                await self._list(client)
                list_at = time.monotonic() + LIST_SECS
            if began >= sweep_at:
                await self._leases(client)
                self.board.redis("")
                self.board.sweep(self._clock_ns())
                sweep_at = time.monotonic() + SWEEP_SECS
            await self._read(client)
            self._changed()
            took = time.monotonic() - began
            await anyio.sleep(max(EVERY_SECS - took, took * (1 / SHARE_MAX - 1), 0.01))

    def _told(self) -> None:
        self.board.sweep(self._clock_ns())
        self._changed()

    # -- what is there -------------------------------------------------------------------------------------------

    async def _list(self, client: Any) -> None:
        """Learn of new topics and read their newest entries."""
        found: dict[str, TopicInfo] = {}
        for key in self._lists:
            space = key.removesuffix("relay:topics")
            for name, text in (await client.execute_command("HGETALL", key)).items():
                info = topic_info(name, text, space)
                if info is not None and self.board.wants(info):
                    found.setdefault(info.name, info)
        now = time.monotonic()
        for name in list(self.topics):
            if name in found:
                self._missing.pop(name, None)
            elif now - self._missing.setdefault(name, now) > FORGET_SECS:
                del self.topics[name], self._missing[name]
                self.last.pop(name, None)
                self.board.forget(name)
        # statuses first: what they say of a provider is there when its rows appear
        new = sorted((i for n, i in found.items() if n not in self.topics), key=lambda i: (i.kind != "status", i.name))
        for at in range(0, len(new), BATCH):
            await self._first(client, new[at : at + BATCH])

    async def _first(self, client: Any, new: Sequence[TopicInfo]) -> None:
        counts = [STATUS_COUNT if info.kind == "status" else FIRST_COUNT for info in new]
        for info, count, entries in zip(new, counts, await self._newest(client, new, counts), strict=True):
            if info.kind in PRICED and len(entries) == count and not any(_has_price(body) for _, body in entries):
                (entries,) = await self._newest(client, [info], [DEEP_COUNT])
            self.topics[info.name] = info
            self.last[info.name] = entries[-1][0] if entries else "0-0"
            self._take(info, entries)

    async def _newest(
        self, client: Any, infos: Sequence[TopicInfo], counts: Sequence[int], to: str = "+"
    ) -> list[list[tuple[str, bytes]]]:
        """Give the newest entries of topics, oldest first; none of what is no stream."""
        pipeline = client.pipeline(transaction=False)
        for info, count in zip(infos, counts, strict=True):
            pipeline.execute_command("XREVRANGE", info.name, to, "-", "COUNT", count)
        replies = await pipeline.execute(raise_on_error=False)
        return [_entries(reply)[::-1] for reply in replies]

    async def _leases(self, client: Any) -> None:
        known = list(self.board.relays)
        if not known:
            return
        pipeline = client.pipeline(transaction=False)
        for space, relay in known:
            pipeline.execute_command("EXISTS", f"{space}relay:lease:{relay}")
        now = self._clock_ns()
        for (space, relay), held in zip(known, await pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(held, int):  # a reader without the right to ask learns nothing
                self.board.lease(space, relay, bool(held), now)

    # -- what comes ----------------------------------------------------------------------------------------------

    async def _read(self, client: Any) -> None:
        names = [name for name in self.last if name in self.topics]
        if not names:
            return
        try:
            found = await newer_async(client, {name: self.last[name] for name in names}, READ_COUNT)
        except redis.exceptions.ResponseError:
            await self._drop_wrong(client, names)
            return
        for key, reply in found.items():
            name = key.decode(errors="surrogateescape")
            entries = _entries(reply)
            info = self.topics.get(name)
            if entries and info is not None:
                self.last[name] = entries[-1][0]
                self._take(info, entries)

    async def _drop_wrong(self, client: Any, names: Sequence[str]) -> None:
        """One key that is no stream, or that we may not read, must not hide the others."""
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.execute_command("XREVRANGE", name, "+", "-", "COUNT", 1)
        wrong = [n for n, r in zip(names, await pipeline.execute(raise_on_error=False), strict=True) if _refused(r)]
        if not wrong:
            raise ConnectionError("the server refuses to be read")
        for name in wrong:
            self.last.pop(name, None)  # it stays known, so that it is not tried again

    def _take(self, info: TopicInfo, entries: Iterable[tuple[str, bytes]]) -> None:
        board = self.board
        for _, body in entries:
            try:
                message = codec.decode(body)
            except (msgspec.MsgspecError, UnicodeError):
                board.unreadable += 1
                continue
            board.apply(info, message)

    # -- the detail of a row -------------------------------------------------------------------------------------

    async def history(self, row: Row) -> list[list[Any]]:
        """Give the newest items of a row's streams, oldest first a topic.

        They end where the board stood when this was called: what it takes from then on follows without a hole.
        """
        client = self._client
        lines = [line for line in row.lines.values() if line.channel in HISTORY and line.topic in self.topics]
        ends = [self.last.get(line.topic, "+") for line in lines]
        if client is None:
            return []
        found: list[list[Any]] = []
        for line, to in zip(lines, ends, strict=True):
            try:
                (entries,) = await self._newest(client, [self.topics[line.topic]], [HISTORY[line.channel]], to)
            except (RedisError, OSError, EOFError):
                return []
            for _, body in entries:
                try:
                    message = codec.decode(body)
                except (msgspec.MsgspecError, UnicodeError):
                    continue
                if (message.raw_symbol or message.symbol or "") == (row.raw or row.symbol):
                    found.append(item(message))
        return found


def topic_info(name: bytes, text: bytes, space: str) -> TopicInfo | None:
    """Read one entry of `relay:topics`; None for what somebody else wrote there."""
    try:
        fields = msgspec.json.decode(text)
        known = name.decode()
    except (msgspec.MsgspecError, UnicodeError):
        return None
    if not isinstance(fields, dict):
        return None
    kind, provider, relay = (fields.get(key) for key in ("kind", "provider", "relay"))
    if not (isinstance(kind, str) and isinstance(provider, str) and isinstance(relay, str)):
        return None
    return TopicInfo(known, kind, provider, relay, space)


def _entries(reply: Any) -> list[tuple[str, bytes]]:
    if not isinstance(reply, list):
        return []
    return [(id.decode(), fields.get(b"data", b"")) for id, fields in reply if isinstance(fields, dict)]


def _has_price(body: bytes) -> bool:
    return not body.startswith(b'{"type":"status"')


def _refused(reply: object) -> bool:
    return isinstance(reply, RedisError)


def _plain(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:200].rstrip(".")
