"""Which node of a cluster has which topic: the map of slots, and what a reader's commands become there. No socket here.

An XREAD over topics of several slots is no command for a cluster; it becomes an XRANGE a topic, asked again and again
while the reader would wait. What a node that is down has does not come, and the others' topics go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from relay.client.items import Refused
from relay.client.steps import Lost
from relay.client.wires import Moved
from relay.targets import Host, Target, shown

NODE_SECS = 1.0
"""A node that does not answer for so long is left alone for a while, so that the others' topics go on."""
QUIET_SECS, QUIET_CAP_SECS = 0.2, 5.0
"""How long a node that failed is left alone: doubled each time."""
MAP_SECS = 0.25
"""The map is asked for at most this often."""
MAP_ANYWAY_SECS = 10.0
REDIRECTS_MAX = 5
POLL_SECS, POLL_CAP_SECS = 0.005, 0.05
"""Pause between two looks for what is new: shortest after something came."""

_KEY_SECOND = frozenset({"XGROUP", "XINFO"})
Command = tuple[Any, ...]


class Shards:
    """The nodes of a cluster as a reader knows them."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._owners: list[Host | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: dict[Host, None] = {}
        self._quiet: dict[Host, tuple[float, float]] = {}  # until when a node is left alone, and for how long it was
        self.stale = True
        """The map is known to be wrong somewhere."""
        self._map_at = self._map_anyway_at = 0.0

    def url(self, host: Host) -> str:
        """Give the address of a node."""
        return self.target.at(host)

    # the map

    def map_is_due(self) -> bool:
        """Tell whether to ask for the map now, and take note of it."""
        now = time.monotonic()
        if now < self._map_at or not (self.stale or now >= self._map_anyway_at):
            return False
        self._map_at, self._map_anyway_at = now + MAP_SECS, now + MAP_ANYWAY_SECS
        return True

    def to_ask(self) -> list[Host]:
        """Give the nodes that may know the map, those that are well first."""
        return sorted(dict.fromkeys([*self._nodes, *self.target.hosts]), key=self._is_quiet)

    def learn(self, host: Host, reply: Any) -> None:
        """Read a node's CLUSTER SLOTS. Raises: what is no map."""
        if isinstance(reply, Exception):
            raise reply
        owners: list[Host | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in reply:
            name = (primary[0] or b"").decode()
            owner = (host[0] if name in ("", "?") else name, int(primary[1]))
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        self._nodes = dict.fromkeys(owner for owner in owners if owner is not None)
        self.stale = None in owners

    def moved(self, moved: Moved, asked: Host) -> Host:
        """Give the node that a redirection names, and remember it where it is for good."""
        owner = (moved.host or asked[0], moved.port)
        if not moved.asking:
            self._owners[moved.slot] = owner
            self.stale = True
        return owner

    def owner(self, name: str | bytes) -> Host | None:
        """Give the node of a key or channel; None where nobody serves it, or it is left alone for now."""
        key = name.encode() if isinstance(name, str) else name
        owner = self._owners[key_slot(key)]
        if owner is None:
            self.stale = True
        return None if owner is None or self._is_quiet(owner) else owner

    # nodes that are down

    def _is_quiet(self, host: Host) -> bool:
        return time.monotonic() < self._quiet.get(host, (0.0, 0.0))[0]

    def failed(self, host: Host) -> None:
        """Leave a node alone for a while."""
        secs = min(max(self._quiet.get(host, (0.0, 0.0))[1] * 2, QUIET_SECS), QUIET_CAP_SECS)
        self._quiet[host] = (time.monotonic() + secs, secs)
        self.stale = True

    def answered(self, host: Host) -> None:
        """Forget that a node was down."""
        self._quiet.pop(host, None)


class Round:
    """Commands on their way to their nodes, redirections followed. Fill `results` until `groups` gives nothing."""

    def __init__(self, shards: Shards, commands: Sequence[Command]) -> None:
        self._shards, self._commands = shards, commands
        self.results: list[Any] = [None] * len(commands)
        """A reply each, a Refused or a Lost in the place of one."""
        self._open: dict[int, Host | None] = dict.fromkeys(range(len(commands)))
        self._tries = 0

    def groups(self) -> dict[Host, list[tuple[int, bool]]]:
        """Give the commands to send to each node: their numbers, and whether with ASKING."""
        found: dict[Host, list[tuple[int, bool]]] = {}
        if self._tries > REDIRECTS_MAX:
            self._close(self._open, "the cluster sends a reader from node to node")
        self._tries += 1
        for number, asked in list(self._open.items()):
            name = key_of(self._commands[number])
            owner = asked or self._shards.owner(name)
            if owner is None:
                self._close([number], f"the node of {name} is away")
            else:
                found.setdefault(owner, []).append((number, asked is not None))
        return found

    def packed(self, group: list[tuple[int, bool]]) -> list[Command]:
        """Give what to send for a group."""
        return [one for n, asking in group for one in ([("ASKING",)] if asking else []) + [self._commands[n]]]

    def answered(self, host: Host, group: list[tuple[int, bool]], replies: list[Any]) -> None:
        """Take a node's replies."""
        self._shards.answered(host)
        rest = iter(replies)
        for number, asking in group:
            if asking:
                next(rest)
            reply = next(rest)
            if isinstance(reply, Moved):
                owner = self._shards.moved(reply, host)
                self._open[number] = owner if reply.asking else None
            else:
                self.results[number] = reply
                del self._open[number]

    def failed(self, host: Host, group: list[tuple[int, bool]], why: Exception) -> None:
        """A node did not answer."""
        self._shards.failed(host)
        self._close([number for number, _ in group], f"{shown(host)}: {why}")

    def _close(self, numbers: Iterable[int], why: str) -> None:
        for number in list(numbers):
            self.results[number] = Lost(why)
            del self._open[number]


class Poll:
    """An XREAD or XREADGROUP over several slots: what is asked of each topic, and what came of it."""

    def __init__(self, command: Command, wait: float) -> None:
        self._until = time.monotonic() + wait
        self._pause = POLL_SECS
        at = command.index("STREAMS")
        rest = command[at + 1 :]
        self._names = rest[: len(rest) // 2]
        pairs = list(zip(self._names, rest[len(rest) // 2 :], strict=True))
        count = command[command.index("COUNT") + 1]
        self._by_group = command[0] == "XREADGROUP"
        if self._by_group:
            head = command[: command.index("COUNT") + 2]  # without BLOCK
            self.commands: list[Command] = [(*head, "STREAMS", name, id) for name, id in pairs]
        else:
            self.commands = [("XRANGE", name, f"({id}", "+", "COUNT", count) for name, id in pairs]

    def answer(self, results: list[Any]) -> Any:
        """Give the reply as XREAD would; None: nothing has come yet. Raises: Refused; Lost where all nodes are away."""
        failed: list[Exception] = []
        found: list[Any] = []
        for name, result in zip(self._names, results, strict=True):
            if isinstance(result, Exception):
                failed.append(result)
            elif self._by_group:
                found += [one for one in result or () if one[1]]
            elif result:
                found.append([name.encode(), result])
        if found:  # what was refused is refused at the next look again
            return found
        refused = refused_of(failed)
        if refused is not None or len(failed) == len(results):
            raise refused or failed[0]
        return None

    def pause(self) -> float | None:
        """Give the pause before the next look; None: the time is over."""
        left = self._until - time.monotonic()
        if left <= 0:
            return None
        pause, self._pause = self._pause, min(self._pause * 1.5, POLL_CAP_SECS)
        return min(pause, left)


class Listening:
    """The channels of a reader, and which node's connection carries each."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._at: dict[str, Host | None] = {}
        self.mend_at = 0.0

    def want(self, names: Iterable[str]) -> None:
        """Listen to these too."""
        for name in names:
            self._at.setdefault(name, None)
        self.mend_at = 0.0

    def missing(self) -> dict[Host, list[str]]:
        """Give what is to be subscribed to now, by node."""
        self.mend_at = time.monotonic() + QUIET_SECS
        found: dict[Host, list[str]] = {}
        for name, host in self._at.items():
            if host is None and (owner := self._shards.owner(name)) is not None:
                found.setdefault(owner, []).append(name)
        return found

    def is_due(self) -> bool:
        """Tell whether something is to be subscribed to again."""
        return time.monotonic() >= self.mend_at and None in self._at.values()

    def told(self, host: Host, reply: list[Any]) -> None:
        """Read a notice: a channel is carried by this node, or no longer (its slot has moved)."""
        if len(reply) > 1 and isinstance(reply[1], bytes):
            name = reply[1].decode()
            if reply[0] == b"ssubscribe" and name in self._at:
                self._at[name] = host
            elif reply[0] == b"sunsubscribe" and self._at.get(name) == host:
                self._at[name] = None
                self._shards.stale = True

    def lost(self, host: Host) -> None:
        """A node's connection broke."""
        for name, at in self._at.items():
            if at == host:
                self._at[name] = None

    def carried(self, host: Host) -> int:
        """Give the number of channels that a node carries."""
        return sum(at == host for at in self._at.values())


def key_of(command: Command) -> str:
    """Give the key that decides where a command goes."""
    if command[0] == "XREADGROUP":
        return str(command[command.index("STREAMS") + 1])
    return str(command[2 if command[0] in _KEY_SECOND else 1])


def refused_of(results: Iterable[Any]) -> Refused | None:
    """Give the first refusal among replies."""
    return next((result for result in results if isinstance(result, Refused)), None)
