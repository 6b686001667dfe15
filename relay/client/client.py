"""`Client`: what a program calls. It holds an address and options; each read has connections of its own."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

from relay.client.cursor import Cursor
from relay.client.items import Gap, Item

if TYPE_CHECKING:
    from relay.client.wires import SyncWires, Wires

Since = str | datetime.datetime | datetime.timedelta | None
Via = Literal["auto", "stream", "channel"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Client:
    """A reader of the relay's topics.

    `url`: redis://, rediss:// or unix://, with user and password in it if wanted; redis+cluster://host:port,host:port;
    or redis+sentinel://host:port,host:port/service (`sentinel_username`, `sentinel_password`: their own login).
    `prefix`: as in relay.yaml (`sim.` for made-up prices on a server that is not the bundled one); it goes before every
    name and glob given here. `connect_secs`: the first connect of a read fails after this long with `Unreachable`;
    later losses are mended for ever, by themselves. `options`: arguments of redis-py's Connection (username, password,
    ssl_ca_certs ...).

        client = Client("redis://127.0.0.1:6379")
        async for item in client.read("quotes.*"):
            if isinstance(item, Gap):
                print("missing:", item)
            else:
                print(item.topic, item.id, item.message)  # a Quote, or a Status such as `stale`
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        prefix: str = "",
        connect_secs: float = 10.0,
        sentinel_username: str = "",
        sentinel_password: str = "",
        **options: Any,
    ) -> None:
        self.url, self.prefix = url, prefix
        self._connect_secs, self._options = connect_secs, options
        self._sentinels = (sentinel_username, sentinel_password)

    def __repr__(self) -> str:
        scheme, _, rest = self.url.partition("://")
        return f"<Client {scheme}://{rest.rpartition('@')[2].partition('?')[0]}>"

    # reading

    @overload
    def read(
        self, *topics: str, since: Since = None, cursor: Cursor | None = None,
        on_gap: Literal["yield"] = "yield", via: Via = "auto", follow: bool = True,
    ) -> AsyncIterator[Item | Gap]: ...  # fmt: skip

    @overload
    def read(
        self, *topics: str, since: Since = None, cursor: Cursor | None = None,
        on_gap: Literal["raise"], via: Via = "auto", follow: bool = True,
    ) -> AsyncIterator[Item]: ...  # fmt: skip

    def read(
        self,
        *topics: str,
        since: Since = None,
        cursor: Cursor | None = None,
        on_gap: Literal["yield", "raise"] = "yield",
        via: Via = "auto",
        follow: bool = True,
    ) -> AsyncIterator[Any]:
        """Give every message of topics (names, or globs such as `quotes.*`), in order within each topic.

        `cursor`: go on behind what it holds; it is moved just before each item is handed out, so that saving it with
        the item's result means each id once. `since`, for topics that the cursor does not hold: None (what is new),
        `all`, an age (`90s`, `10m`, `2h`, `1d` or a timedelta), a datetime, or an entry id to begin behind. Topics that
        appear later are read from their beginning.

        What is missing comes as a `Gap` in its place, or is raised as `GapError` with `on_gap="raise"`. `via`: `stream`
        (XREAD), `channel` (pub/sub: the lowest latency; what it misses is read from the streams), or `auto`: streams up
        to 200 topics, channels beyond. `follow=False` ends at the end of the streams.

        The connection is mended by itself, without a loss and without repeats. Raises: Unreachable, Refused, GapError.

            async with contextlib.aclosing(client.read("trades.BTC-USD", since="10m")) as items:
                async for item in items: ...
        """
        at = cursor if cursor is not None else Cursor()
        return self._wires().run(self._reading(topics, at, since, via, follow), at, on_gap)

    @overload
    def read_sync(
        self, *topics: str, since: Since = None, cursor: Cursor | None = None,
        on_gap: Literal["yield"] = "yield", via: Via = "auto", follow: bool = True,
    ) -> Iterator[Item | Gap]: ...  # fmt: skip

    @overload
    def read_sync(
        self, *topics: str, since: Since = None, cursor: Cursor | None = None,
        on_gap: Literal["raise"], via: Via = "auto", follow: bool = True,
    ) -> Iterator[Item]: ...  # fmt: skip

    def read_sync(
        self,
        *topics: str,
        since: Since = None,
        cursor: Cursor | None = None,
        on_gap: Literal["yield", "raise"] = "yield",
        via: Via = "auto",
        follow: bool = True,
    ) -> Iterator[Any]:
        """`read` without asyncio: the same, step for step.

        for item in client.read_sync("trades.*", since="all", follow=False): ...
        """
        at = cursor if cursor is not None else Cursor()
        return self._sync_wires().run(self._reading(topics, at, since, via, follow), at, on_gap)

    def _reading(self, topics: tuple[str, ...], cursor: Cursor, since: Since, via: Via, follow: bool) -> Any:
        from relay.client.reading import Reading
        from relay.client.steps import Topics

        if via not in ("auto", "stream", "channel"):
            raise ValueError(f"via={via!r}: it is auto, stream or channel")
        sharded = self.url.partition("://")[0].endswith("+cluster")
        return Reading(Topics(topics, self.prefix), cursor, start_id(since), via, follow, sharded).steps()

    def _wires(self) -> Wires:
        from relay.client.wires import Wires
        from relay.targets import target_of

        target = target_of(self.url)
        if target is None:
            return Wires(self.url, self._options, self._connect_secs)
        if target.kind == "cluster":
            from relay.client.cluster import ClusterWires

            return ClusterWires(target, self._options, self._connect_secs)
        from relay.client.sentinel import Guide, SentinelWires

        return SentinelWires(Guide(target, *self._sentinels), self._options, self._connect_secs)

    def _sync_wires(self) -> SyncWires:
        from relay.client.wires import SyncWires
        from relay.targets import target_of

        target = target_of(self.url)
        if target is None:
            return SyncWires(self.url, self._options, self._connect_secs)
        if target.kind == "cluster":
            from relay.client.cluster import SyncClusterWires

            return SyncClusterWires(target, self._options, self._connect_secs)
        from relay.client.sentinel import Guide, SyncSentinelWires

        return SyncSentinelWires(Guide(target, *self._sentinels), self._options, self._connect_secs)

    # sharing

    def share(
        self,
        *topics: str,
        group: str,
        consumer: str,
        since: Since = None,
        claim_secs: float = 60.0,
        follow: bool = True,
    ) -> AsyncIterator[Item | Gap]:
        """Share the messages of topics among the consumers of a group: each goes to one of them, at least once.

        An item counts as handled when the loop asks for the next one; it is then acknowledged. What a consumer took
        and did not handle comes again: to itself after a reconnect or a restart under its name, to the others after
        `claim_secs` (which must be longer than a consumer may need for 100 items). `since`: where the group begins if
        it is made now. Gaps come to one of the consumers. Order holds only within what one consumer gets.

        async for item in client.share("trades.*", group="risk", consumer=socket.gethostname()): ...
        """
        return self._wires().run(self._sharing(topics, group, consumer, since, claim_secs, follow), Cursor(), "yield")

    def share_sync(
        self,
        *topics: str,
        group: str,
        consumer: str,
        since: Since = None,
        claim_secs: float = 60.0,
        follow: bool = True,
    ) -> Iterator[Item | Gap]:
        """`share` without asyncio."""
        return self._sync_wires().run(
            self._sharing(topics, group, consumer, since, claim_secs, follow), Cursor(), "yield"
        )

    def _sharing(
        self, topics: tuple[str, ...], group: str, consumer: str, since: Since, claim_secs: float, follow: bool
    ) -> Any:
        from relay.client.sharing import Sharing
        from relay.client.steps import Topics

        return Sharing(Topics(topics, self.prefix), group, consumer, start_id(since) or "$", claim_secs, follow).steps()


def start_id(since: Since, now_ms: int | None = None) -> str | None:
    """Give the entry id to begin behind; None: what is new. Raises: ValueError."""
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    if since is None:
        return None
    if isinstance(since, datetime.timedelta):
        ms = now - int(since.total_seconds() * 1000)
    elif isinstance(since, datetime.datetime):
        ms = int(since.timestamp() * 1000)
    elif since == "all":
        return "0-0"
    elif since[-1:] in _UNITS and since[:-1].replace(".", "", 1).isdecimal():
        ms = now - int(float(since[:-1]) * _UNITS[since[-1]] * 1000)
    else:
        first, _, second = since.partition("-")
        if first.isdecimal() and second.isdecimal():
            return since
        raise ValueError(f"since={since!r}: give 'all', an age such as '10m', a datetime, or an entry id <ms>-<seq>")
    return f"{max(ms - 1, 0)}-{2**64 - 1}"
