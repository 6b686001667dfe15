"""The drivers over a cluster: one connection for commands a node, one for channels where it carries some of them.

`shards` decides where everything goes. A node that is away holds up only its own topics: their places stay where they
are, and once it, or the replica that took its slots, answers again, what is missing is read from the streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import hiredis

from relay.client.items import Refused
from relay.client.shards import NODE_SECS, Listening, Poll, Round, Shards
from relay.client.steps import Call, Calls, Connect, Lost, Step, Subscribe
from relay.client.wires import (
    BATCH,
    Moved,
    SyncWires,
    Wires,
    connect,
    connect_sync,
    drop,
    exchange,
    exchange_sync,
    published,
    translate,
)
from relay.targets import Host, Target

MAP = [("CLUSTER", "SLOTS")]
MULTIPLE = ("XREAD", "XREADGROUP")
LOOK_SECS = 0.002
"""The sync driver looks at its channels so often: it has no loop that would wake it."""


def _of_nodes(target: Target, options: dict[str, Any]) -> dict[str, Any]:
    login = {"username": target.username, "password": target.password}
    return {**{name: value for name, value in login.items() if value}, **options}


class ClusterWires(Wires):
    """All connections of one reader, under asyncio."""

    def __init__(self, target: Target, options: dict[str, Any], connect_secs: float) -> None:
        super().__init__(target.shown, _of_nodes(target, options), connect_secs)
        self._shards = Shards(target)
        self._listening = Listening(self._shards)
        self._nodes: dict[Host, Any] = {}
        self._carriers: dict[Host, tuple[Any, asyncio.Task[None]]] = {}
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._refused: Refused | None = None

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Connect):
            await self._close()
            self._listening = Listening(self._shards)
            await self._learn()
            self._first.opened()
            return None
        if isinstance(step, Call) and step.args[0] in MULTIPLE:
            return await self._poll(Poll(step.args, step.wait))
        if isinstance(step, Call):
            (reply,) = await self._all([step.args])
            if isinstance(reply, Exception):
                raise self._failed(reply)
            return reply
        if isinstance(step, Calls):
            return await self._all(step.commands)
        return await super()._carry_out(step)

    # commands

    async def _learn(self) -> None:
        """Ask for the map. Raises: Lost where no node gives one."""
        why: BaseException = Lost("no node is known")
        for host in self._shards.to_ask():
            try:
                (reply,) = await self._talk(host, MAP)
                self._shards.learn(host, reply)
                return
            except Exception as error:
                why = translate(error)
                self._shards.failed(host)
                if isinstance(why, Refused):
                    break
        raise self._failed(why) from why

    async def _talk(self, host: Host, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Exchange with one node, whose connection is opened where it is not."""
        connection = self._nodes.get(host)
        try:
            if connection is None:
                connection = self._nodes[host] = await connect(self._shards.url(host), self._options, NODE_SECS)
            return await exchange(connection, commands, NODE_SECS)
        except BaseException:
            if connection is not None and self._nodes.get(host) is connection:
                del self._nodes[host]
                await drop(connection)
            raise

    async def _all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Exchange with all nodes that are meant; a Lost in the place of what a node that is away would answer."""
        if self._shards.map_is_due():
            with contextlib.suppress(Lost):
                await self._learn()
        round = Round(self._shards, commands)

        async def one(host: Host, group: list[tuple[int, bool]]) -> None:
            try:
                round.answered(host, group, await self._talk(host, round.packed(group)))
            except Exception as error:
                found = translate(error)
                if not isinstance(found, Lost):
                    raise found from error
                round.failed(host, group, found)

        while groups := round.groups():
            if len(groups) == 1:
                await one(*next(iter(groups.items())))
            else:
                await asyncio.gather(*(one(host, group) for host, group in groups.items()))
        return round.results

    async def _poll(self, poll: Poll) -> Any:
        while True:
            try:
                found = poll.answer(await self._all(poll.commands))
            except Lost as lost:
                raise self._failed(lost) from lost
            pause = None if found else poll.pause()
            if pause is None:
                return found
            await asyncio.sleep(pause)

    # channels

    async def _subscribe(self, step: Subscribe) -> None:
        self._listening.want(step.channels)
        await self._mend()

    async def _mend(self) -> None:
        """Subscribe to what no node carries yet; a node that is away is tried again later."""
        if self._shards.map_is_due():
            with contextlib.suppress(Lost):
                await self._learn()
        for host, names in self._listening.missing().items():
            try:
                if host not in self._carriers:
                    connection = await connect(self._shards.url(host), self._options, NODE_SECS)
                    self._carriers[host] = (connection, asyncio.create_task(self._listen(host, connection)))
                # one channel a command: those of one must be of one slot
                subscriptions: list[tuple[Any, ...]] = [("SSUBSCRIBE", name) for name in names]
                packed = b"".join([hiredis.pack_command(command) for command in subscriptions])
                await self._carriers[host][0].send_packed_command(packed, check_health=False)
            except Exception as error:
                found = translate(error)
                if isinstance(found, Refused):
                    raise found from error
                self._shards.failed(host)
                await self._leave(host)

    async def _listen(self, host: Host, connection: Any) -> None:
        """Take what a node publishes, for as long as it does."""
        try:
            while True:
                try:
                    reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
                except Exception as error:
                    found = translate(error)
                    if isinstance(found, Moved):  # of a subscription, which is made there a little later
                        self._shards.moved(found, host)
                        continue
                    if isinstance(found, Refused):
                        self._refused = found
                    return
                self._listening.told(host, reply)
                self._pushed += published(reply)
                if self._pushed:
                    self._arrived.set()
                while (
                    len(self._pushed) >= 10 * BATCH
                ):  # the server holds what is behind, and ends us if we are too slow
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._listening.lost(host)
            if self._carriers.get(host, (None,))[0] is connection:
                del self._carriers[host]
                await drop(connection)
            self._arrived.set()

    async def _receive(self, secs: float) -> list[tuple[str, bytes]]:
        if self._listening.is_due():
            await self._mend()
        if not self._pushed:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(secs, max(self._listening.mend_at - time.monotonic(), 0.01))):
                    await self._arrived.wait()
        if self._refused is not None:
            raise self._refused
        found, self._pushed = self._pushed[:BATCH], self._pushed[BATCH:]
        self._room.set()
        return found

    async def _leave(self, host: Host) -> None:
        self._listening.lost(host)
        connection, task = self._carriers.pop(host, (None, None))
        if connection is not None and task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
            await drop(connection)

    async def _close(self) -> None:
        for host in list(self._carriers):
            await self._leave(host)
        nodes, self._nodes = self._nodes, {}
        for connection in nodes.values():
            await drop(connection)
        self._pushed = []


class SyncClusterWires(SyncWires):
    """All connections of one reader, without asyncio: the twin of `ClusterWires`."""

    def __init__(self, target: Target, options: dict[str, Any], connect_secs: float) -> None:
        super().__init__(target.shown, _of_nodes(target, options), connect_secs)
        self._shards = Shards(target)
        self._listening = Listening(self._shards)
        self._nodes: dict[Host, Any] = {}
        self._carriers: dict[Host, Any] = {}

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Connect):
            self._close()
            self._listening = Listening(self._shards)
            self._learn()
            self._first.opened()
            return None
        if isinstance(step, Call) and step.args[0] in MULTIPLE:
            return self._poll(Poll(step.args, step.wait))
        if isinstance(step, Call):
            (reply,) = self._all([step.args])
            if isinstance(reply, Exception):
                raise self._failed(reply)
            return reply
        if isinstance(step, Calls):
            return self._all(step.commands)
        return super()._carry_out(step)

    # commands

    def _learn(self) -> None:
        why: BaseException = Lost("no node is known")
        for host in self._shards.to_ask():
            try:
                (reply,) = self._talk(host, MAP)
                self._shards.learn(host, reply)
                return
            except Exception as error:
                why = translate(error)
                self._shards.failed(host)
                if isinstance(why, Refused):
                    break
        raise self._failed(why) from why

    def _talk(self, host: Host, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._nodes.get(host)
        try:
            if connection is None:
                connection = self._nodes[host] = connect_sync(self._shards.url(host), self._options, NODE_SECS)
            return exchange_sync(connection, commands, NODE_SECS)
        except BaseException:
            if connection is not None:
                self._nodes.pop(host, None)
                with contextlib.suppress(Exception):
                    connection.disconnect()
            raise

    def _all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self._shards.map_is_due():
            with contextlib.suppress(Lost):
                self._learn()
        round = Round(self._shards, commands)
        while groups := round.groups():
            for host, group in groups.items():
                try:
                    round.answered(host, group, self._talk(host, round.packed(group)))
                except Exception as error:
                    found = translate(error)
                    if not isinstance(found, Lost):
                        raise found from error
                    round.failed(host, group, found)
        return round.results

    def _poll(self, poll: Poll) -> Any:
        while True:
            try:
                found = poll.answer(self._all(poll.commands))
            except Lost as lost:
                raise self._failed(lost) from lost
            pause = None if found else poll.pause()
            if pause is None:
                return found
            time.sleep(pause)

    # channels

    def _subscribe(self, step: Subscribe) -> None:
        self._listening.want(step.channels)
        self._mend()

    def _mend(self) -> None:
        if self._shards.map_is_due():
            with contextlib.suppress(Lost):
                self._learn()
        for host, names in self._listening.missing().items():
            try:
                if host not in self._carriers:
                    self._carriers[host] = connect_sync(self._shards.url(host), self._options, NODE_SECS)
                subscriptions: list[tuple[Any, ...]] = [("SSUBSCRIBE", name) for name in names]
                packed = b"".join([hiredis.pack_command(command) for command in subscriptions])
                self._carriers[host].send_packed_command([packed], check_health=False)
            except Exception as error:
                found = translate(error)
                if isinstance(found, Refused):
                    raise found from error
                self._shards.failed(host)
                self._leave(host)

    def _receive(self, secs: float) -> list[tuple[str, bytes]]:
        if self._listening.is_due():
            self._mend()
        until = time.monotonic() + min(secs, max(self._listening.mend_at - time.monotonic(), 0.01))
        while True:
            for host, connection in list(self._carriers.items()):
                self._take(host, connection)
            if self._pushed or time.monotonic() >= until:
                found, self._pushed = self._pushed, []
                return found
            time.sleep(LOOK_SECS)

    def _take(self, host: Host, connection: Any) -> None:
        """Take what a node has published meanwhile."""
        for _ in range(BATCH):
            try:
                if not connection.can_read(timeout=0):
                    return
                reply = connection.read_response(disable_decoding=True, timeout=NODE_SECS)
            except Exception as error:
                found = translate(error)
                if isinstance(found, Moved):
                    self._shards.moved(found, host)
                    continue
                if isinstance(found, Lost):
                    return self._leave(host)
                raise found from error
            self._listening.told(host, reply)
            self._pushed += published(reply)

    def _leave(self, host: Host) -> None:
        self._listening.lost(host)
        connection = self._carriers.pop(host, None)
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()

    def _close(self) -> None:
        for host in list(self._carriers):
            self._leave(host)
        nodes, self._nodes = self._nodes, {}
        for connection in nodes.values():
            with contextlib.suppress(Exception):
                connection.disconnect()
        self._pushed = []
