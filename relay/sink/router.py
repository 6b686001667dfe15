"""Calls to a cluster that find their node by the key in them, and the map by which they do.

For what is called now and then: lease, epoch, list of topics, trimming; entries go by the lanes. One connection a node.
Everything called by it may be called twice: where no answer comes it is asked again.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import anyio

from relay.sink.functions import load
from relay.sink.link import Link, LinkLost, ReplyError, Server
from relay.sink.reactions import reaction
from relay.sink.slots import Slots, View, host_of, merge, read_view, redirect, slot_of
from relay.targets import Target, shown

NODE_SECS = 2.0
"""A node that answers a small call no sooner is away."""
UNUSED_SECS = 60.0
TRIES = 5
"""Redirections and missing functions that one call follows."""
ABOUT = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"), ("CLUSTER", "MYID"), ("INFO", "server"), ("INFO", "replication"))


class Node:
    """One connection to one node, shared: calls wait for one another."""

    def __init__(self, server: Server, client_name: str) -> None:
        self.link = Link(server, client_name)
        self._lock = anyio.Lock()
        self.used_at = 0.0

    async def calls(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send commands together, connecting when needed; a ReplyError in the place of a refused one."""
        async with self._lock:
            self.used_at = time.monotonic()
            if not self.link.up:
                await self.link.open()
            try:
                return await self.link.calls(commands)
            except ReplyError as error:  # of a single one
                return [error]

    async def load(self) -> None:
        """Load the function library where it is missing."""
        async with self._lock:
            if not self.link.up:
                await self.link.open()
            await load(self.link)


class Router(Link):
    """A Link whose calls go to whichever node serves their key. `up`: the map is known.

    Raises: LinkLost where no node answers at all, ReplyError `CLUSTERDOWN` where the one that is meant does not.
    """

    def __init__(self, server: Server, target: Target, client_name: str) -> None:
        super().__init__(server, client_name)
        self._target = target
        self.base = replace(
            server, username=server.username or target.username, password=server.password or target.password
        )
        self._nodes: dict[str, Node] = {}
        self._views: dict[str, View] = {}
        self._asked: set[str] = set()
        """Nodes that were asked for the map and have not answered yet."""
        self._known: dict[str, None] = dict.fromkeys(map(shown, target.hosts))
        """Addresses heard of, replicas included, those of the config first: asked when no primary answers."""
        self.slots = Slots()
        self.identities: dict[str, tuple[str, str]] = {}
        """By address: the server's run and its history. Another one may lack what was confirmed."""
        self.changed: Callable[[], None] = lambda: None
        """Called when the map has changed."""

    def server_at(self, address: str) -> Server:
        """Say how to reach a node."""
        return replace(self.base, url=f"{self._target.scheme}://{address}/0")

    @property
    def up(self) -> bool:
        """See Link."""
        return bool(self.slots.nodes)

    @property
    def where(self) -> str:
        """See Link."""
        return self._target.shown

    async def open(self) -> None:
        """Find the map, from whichever node answers first. Raises: LinkLost, or ReplyError where all refuse."""
        refused = await self.look()
        if not self.slots.nodes:
            for error in refused.values():
                if isinstance(error, ReplyError):
                    raise error
            if self._views:
                raise ReplyError("CLUSTERDOWN no slot is served by any node")
            why = "; ".join(f"{address}: {error}" for address, error in refused.items())
            raise LinkLost(f"no node of the cluster answers ({why})")

    async def close(self) -> None:
        """Close all connections; the map is found anew."""
        for node in self._nodes.values():
            await node.link.close()
        self.slots = Slots()
        self._views.clear()

    # the map

    async def look(self) -> dict[str, Exception]:
        """Ask all primaries for the map, or where none answers whoever was heard of. Give who did not answer.

        A node that was asked before and has not answered yet is not waited for.
        """
        refused: dict[str, Exception] = {}
        for first in (self.slots.nodes, self._known):
            asked: set[str] = set()
            async with anyio.create_task_group() as group:

                def ask(address: str, asked: set[str] = asked, group: Any = group) -> None:
                    if address not in asked and address not in self._asked:
                        asked.add(address)
                        self._asked.add(address)
                        group.start_soon(self._ask, address, ask, refused)

                for address in list(first):
                    ask(address)
            if self._views:
                break
        await self._forget()
        return refused

    async def _forget(self) -> None:
        """Let go of nodes that nobody names any more, but for those of the config."""
        named = {place for view in self._views.values() for place in view.places.values()}
        if named:
            self._known = dict.fromkeys([*map(shown, self._target.hosts), *named])
        before = time.monotonic() - UNUSED_SECS
        for address in [one for one, node in self._nodes.items() if one not in named and node.used_at < before]:
            await self._nodes.pop(address).link.close()

    async def _ask(self, address: str, also: Callable[[str], None], refused: dict[str, Exception]) -> None:
        """Hear one node, and take in at once what it says: others may take long to be found away."""
        try:
            slots, info, node, *about = await self._node(address).calls(list(ABOUT))
            self._asked.discard(address)
            if isinstance(slots, ReplyError):
                raise slots
        except (LinkLost, ReplyError) as error:
            self._asked.discard(address)
            refused[address] = error
            if self._views.pop(address, None) is not None:
                self._remap()
            return
        view = read_view(slots, info, node, host_of(address))
        if None not in about and not any(isinstance(text, ReplyError) for text in about):
            self.identities[address] = _identity(b"\n".join(about))
        for place in view.places.values():
            self._known.setdefault(place)
        if view != self._views.get(address):
            self._views[address] = view
            self._remap()
        for owner in view.owners():
            also(owner)

    def _remap(self) -> None:
        slots = merge(self._views.values())
        if slots.nodes and slots.owners != self.slots.owners:
            self.slots = slots
            self.changed()

    def moved(self, slot: int, address: str) -> None:
        """A node has said that another one serves a slot."""
        if self.slots.owners[slot] != address:
            self._known.setdefault(address)
            self.slots = self.slots.moved(slot, address)
            self.changed()

    # calls

    def _node(self, address: str) -> Node:
        node = self._nodes.get(address)
        if node is None:
            server = self.server_at(address)
            short = replace(server, timeout_secs=min(NODE_SECS, server.timeout_secs))
            node = self._nodes[address] = Node(short, self._client_name)
        return node

    async def call(self, *args: Any) -> Any:
        """See Link."""
        slot = slot_of(_key(args))
        address, commands = self.slots.owners[slot], [args]
        for _ in range(TRIES):
            if not address:
                raise ReplyError(f"CLUSTERDOWN no node serves slot {slot}")
            reply = (await self._at(address, commands))[-1]
            if not isinstance(reply, ReplyError):
                return reply
            what, _ = reaction(str(reply), cluster=True)
            if what == "moved":
                self.moved(*redirect(str(reply), host_of(address)))
                address, commands = self.slots.owners[slot], [args]
            elif what == "ask":
                address, commands = redirect(str(reply), host_of(address))[1], [("ASKING",), args]
            elif what == "load":
                await self.load(address)
            else:
                raise reply
        raise reply

    async def calls(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """See Link: by node, all nodes at once. A node that is away gives a ReplyError in each of its places."""
        replies: list[Any] = [None] * len(commands)
        by_node: dict[str, list[int]] = {}
        for number, command in enumerate(commands):
            by_node.setdefault(self.slots.of(_key(command)), []).append(number)

        async def one(address: str, numbers: list[int]) -> None:
            if address:
                try:
                    found = await self._at(address, [commands[number] for number in numbers])
                except ReplyError as error:
                    found = [error] * len(numbers)
            else:
                found = [ReplyError("CLUSTERDOWN no node serves this slot")] * len(numbers)
            for number, reply in zip(numbers, found, strict=True):
                replies[number] = reply

        async with anyio.create_task_group() as group:
            for address, numbers in by_node.items():
                group.start_soon(one, address, numbers)
        for number, reply in enumerate(replies):
            if isinstance(reply, ReplyError) and reaction(str(reply), cluster=True)[0] in ("moved", "ask", "load"):
                try:
                    replies[number] = await self.call(*commands[number])
                except ReplyError as error:
                    replies[number] = error
        return replies

    async def _at(self, address: str, commands: list[tuple[Any, ...]]) -> list[Any]:
        try:
            return await self._node(address).calls(commands)
        except LinkLost as error:
            raise ReplyError(f"CLUSTERDOWN {address} is away: {error}") from error

    async def asking(self, address: str, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send calls to the node that a slot is being moved to. Raises: LinkLost."""
        pairs = [command for one in commands for command in (("ASKING",), one)]
        return (await self._node(address).calls(pairs))[1::2]

    async def load(self, address: str) -> None:
        """Load the function library on a node where it is missing."""
        try:
            await self._node(address).load()
        except LinkLost as error:
            raise ReplyError(f"CLUSTERDOWN {address} is away: {error}") from error

    async def load_all(self) -> None:
        """The same on every primary; one that is away gets it when it is back."""
        async with anyio.create_task_group() as group:
            for address in self.slots.nodes:
                group.start_soon(self._load_quietly, address)

    async def _load_quietly(self, address: str) -> None:
        with contextlib.suppress(ReplyError):  # who needs it there will meet the same error
            await self.load(address)


def _key(args: Iterable[Any]) -> str:
    """Give the key by which a call finds its node."""
    command, *rest = args
    if command == "FCALL":
        return str(rest[2])
    return str(rest[1] if command == "MEMORY" else rest[0])


def _identity(about: bytes) -> tuple[str, str]:
    known = dict(line.strip().partition(":")[::2] for line in about.decode(errors="replace").splitlines())
    return known.get("run_id", ""), known.get("master_replid", "")
