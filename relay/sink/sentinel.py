"""A connection that goes where the sentinels say: to a service's primary, and away from it once it is that no more.

All sentinels are asked, at each connect and once a second beside the writing; the answer of the newest failover (their
config epoch) counts, so that one which was cut off from the others does not lead back to a demoted primary. What such a
primary took, or a lagging replica did not get, is none of this module's: who connects again asks for every last id.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import anyio

from relay.sink.link import Link, LinkLost, ReplyError, Server
from relay.targets import Host, Target, shown, target_of

ASK_SECS = 1.0
"""A sentinel that needs longer for a word or two does not count this time."""
GRACE_SECS = 0.1
"""Who connects waits so long for the other sentinels once one has given an answer that can be right."""
WATCH_SECS = 1.0
"""While connected the sentinels are asked this often."""
SENTINELS_MAX = 16
"""Sentinels that others have named are asked too, up to so many in all."""


class View(NamedTuple):
    """What one sentinel says: of which failover it knows, and where the primary is."""

    epoch: int
    primary: Host


class Sentinels:
    """The sentinels of one service: those of the address, and those that they name."""

    def __init__(self, target: Target, server: Server, client_name: str) -> None:
        self.target, self._server, self._client_name = target, server, client_name
        self.known: dict[Host, None] = dict.fromkeys(target.hosts)
        self.epoch = 0
        """That of the newest failover known: older answers are out of date."""

    async def primary(self) -> Host:
        """Ask who the primary is. Raises: LinkLost, with what each of them said."""
        links: dict[Host, Link] = {}
        try:
            return await self._look(links, GRACE_SECS)
        finally:
            await _close(links)

    async def watch(self, named: Callable[[Host], None]) -> None:
        """Ask again and again, for ever, and hand on each answer."""
        links: dict[Host, Link] = {}
        try:
            while True:
                await anyio.sleep(WATCH_SECS)
                with contextlib.suppress(LinkLost):
                    named(await self._look(links, ASK_SECS))
        finally:
            await _close(links)

    async def _look(self, links: dict[Host, Link], grace_secs: float) -> Host:
        views: dict[Host, View] = {}
        failed: list[str] = []
        async with anyio.create_task_group() as group:

            async def ask(host: Host) -> None:
                try:
                    view = views[host] = await self._ask(links, host)
                except (LinkLost, ReplyError) as error:
                    failed.append(f"{shown(host)}: {error}")
                    return
                if view.epoch >= self.epoch:
                    scope = group.cancel_scope
                    scope.deadline = min(scope.deadline, anyio.current_time() + grace_secs)

            for host in self.known:
                group.start_soon(ask, host)
        newest = max(views.values(), default=None)
        if newest is None:
            raise LinkLost(f"no sentinel tells who the primary is ({'; '.join(failed) or 'no answer in time'})")
        if newest.epoch < self.epoch and 2 * len(views.keys() & set(self.target.hosts)) <= len(self.target.hosts):
            # sentinels that were set up anew begin again, and then most of them say so
            raise LinkLost("only sentinels that missed the last failover answer")
        self.epoch = newest.epoch
        return newest.primary

    async def _ask(self, links: dict[Host, Link], host: Host) -> View:
        link = links.get(host)
        if link is None:
            url = f"{self.target.scheme}://{shown(host)}"
            server = self._server
            username, password = server.sentinel_username, server.sentinel_password
            server = replace(server, url=url, username=username, password=password, timeout_secs=ASK_SECS)
            link = links[host] = Link(server, self._client_name)
        if not link.up:
            await link.open()
        service = self.target.service
        words = ("GET-MASTER-ADDR-BY-NAME", "MASTER", "SENTINELS")
        address, about, others = await link.calls([("SENTINEL", word, service) for word in words])
        if isinstance(address, ReplyError):
            raise address
        if not address:
            raise LinkLost(f"monitors no service {service!r}")
        if isinstance(others, list):
            for fields in map(_fields, others):
                if len(self.known) < SENTINELS_MAX and fields.get("ip") and fields.get("port", "").isdecimal():
                    self.known[fields["ip"], int(fields["port"])] = None
        epoch = _fields(about).get("config-epoch", "")
        return View(int(epoch) if epoch.isdecimal() else 0, (address[0].decode(), int(address[1])))


class SentinelLink(Link):
    """A Link to the primary of a service. A call is given up when the sentinels name another one meanwhile."""

    def __init__(self, server: Server, target: Target, client_name: str) -> None:
        super().__init__(server, client_name)
        self._sentinels = Sentinels(target, server, client_name)
        self._given = server
        self._address: Host | None = None
        self._other: Host | None = None
        """The primary, where it is not the one we are connected to."""
        self._scope: anyio.CancelScope | None = None  # it may be made before there is an event loop

    @property
    def where(self) -> str:
        """See Link."""
        target = self._sentinels.target
        return target.shown if self._address is None else f"{target.at(self._address)} ({target.service})"

    async def open(self) -> None:
        """Ask the sentinels, connect, log in, and make sure that a primary answers."""
        await self.close()
        address = self._address = await self._sentinels.primary()
        self._other = None
        target = self._sentinels.target
        given = self._given
        username, password = given.username or target.username, given.password or target.password
        self._server = replace(given, url=target.at(address), username=username, password=password)
        with self._guard():
            await super().open()
        try:
            about = await self.call("INFO", "replication")
        except ReplyError:
            await self.close()
            raise
        role = _info(about).get("role", "")
        if role != "master":
            await self.close()
            raise LinkLost(f"{shown(address)} is named as the primary and is a {role or 'server without a role'}")

    async def _exchange(self, packed: bytes, count: int) -> list[Any]:
        if self._other is not None:
            await self.close()
            raise self._left()
        replies: list[Any] = []
        with self._guard():
            replies = await super()._exchange(packed, count)
        return replies

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        with anyio.CancelScope() as scope:
            self._scope = scope
            yield
        if scope.cancelled_caught:
            raise self._left()

    def _left(self) -> LinkLost:
        return LinkLost(f"the sentinels name another primary, {shown(self._other) if self._other else ''}")

    def _named(self, primary: Host) -> None:
        if self._address is not None and primary != self._address:
            self._other = primary
            if self._scope is not None:
                self._scope.cancel()
        else:
            self._other = None

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """See Link: ask the sentinels beside."""
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._sentinels.watch, self._named)
            try:
                yield
            except Exception as error:  # as it is, not in a group
                failed = error
            finally:
                group.cancel_scope.cancel()
        if failed is not None:
            raise failed


def link_to(server: Server, client_name: str) -> Link:
    """Make the link that an address asks for."""
    target = target_of(server.url)
    if target is not None and target.kind == "sentinel":
        return SentinelLink(server, target, client_name)
    return Link(server, client_name)


async def _close(links: dict[Host, Link]) -> None:
    with anyio.CancelScope(shield=True):
        for link in links.values():
            await link.close()


def _fields(reply: Any) -> dict[str, str]:
    """Read a reply of names and values in turn; nothing of one that is refused."""
    if not isinstance(reply, list):
        return {}
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in reply]
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _info(reply: bytes) -> dict[str, str]:
    return dict(line.strip().partition(":")[::2] for line in reply.decode(errors="replace").splitlines())
