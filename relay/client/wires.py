"""The drivers: carry out the steps of a reader on redis-py's connections, under asyncio and without it.

Commands are sent once and either answer or fail; a failure is the logic's to mend. Nothing of redis-py is imported
before the first connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import hiredis
from redis import connection as sync_connection
from redis.asyncio import connection as asyncio_connection
from redis.asyncio.retry import Retry as AsyncioRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from relay.client.cursor import Cursor
from relay.client.items import Gap, GapError, Item, Refused, Unreachable
from relay.client.steps import Call, Calls, Connect, Emit, Ended, Lost, Pause, Receive, Step, Steps, Subscribe

ANSWER_SECS = 5.0
"""A command without an answer for this long, beyond what it asked to wait, has lost its connection."""
BATCH = 1_000
"""Published messages taken together."""
PASSING = frozenset({"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "TRYAGAIN", "UNBLOCKED"})
"""Replies that say: not now. UNBLOCKED: the stream went away, or the server's role changed, while we waited."""
SUBSCRIBED = (b"subscribe", b"psubscribe")
log = logging.getLogger("relay.client")


def _options(
    url: str, options: dict[str, Any], retry: Any, parse: Callable[[str], Mapping[str, Any]]
) -> dict[str, Any]:
    """Connection arguments: the address, the caller's own, and what a reader needs."""
    given = {**parse(url), **options}
    of_network = {"socket_connect_timeout": ANSWER_SECS, "socket_keepalive": True}
    return {
        "client_name": "relay-client",
        **({} if "path" in given else of_network),
        **given,
        "protocol": 2,
        "retry": retry,
        "socket_read_size": 65536,
    }


def translate(error: BaseException) -> BaseException:
    """Turn what redis-py and the socket raise into ours; others, and ours, pass."""
    while isinstance(error, RedisError) and error.args and isinstance(error.args[0], RedisError):
        error = error.args[0]  # so wrapped by redis-py on unix sockets
    if isinstance(error, (AuthenticationError, AuthorizationError)):
        return Refused(f"login: {error}")
    if isinstance(error, AskError):  # MovedError is one too
        return Moved(error.slot_id, error.host, error.port, asking=not isinstance(error, MovedError))
    if isinstance(error, ResponseError) and not isinstance(error, ReadOnlyError):
        code = getattr(error, "status_code", None)  # redis-py takes some codes off the text
        text = str(error)
        text = f"{code} {text}" if code and not text.startswith(code) else text
        return Lost(text) if text.split(" ", 1)[0] in PASSING else Refused(text)
    if isinstance(error, (RedisError, OSError, asyncio.IncompleteReadError)):
        return Lost(f"{type(error).__name__}: {error}")
    return error


def _subscriptions(step: Subscribe) -> list[tuple[Any, ...]]:
    commands: list[tuple[Any, ...]] = []
    for word, names in (("SUBSCRIBE", step.channels), ("PSUBSCRIBE", step.patterns)):
        commands += [(word, *names[at : at + BATCH]) for at in range(0, len(names), BATCH)]
    return commands


def published(reply: list[Any]) -> list[tuple[str, bytes]]:
    """A message out of a push: ["message", channel, data] or ["pmessage", pattern, channel, data]."""
    return [(reply[-2].decode(), reply[-1])] if reply[0] in (b"message", b"pmessage", b"smessage") else []


class Moved(Refused):
    """A node of a cluster names another one, for a slot (MOVED) or for this time only (ASK)."""

    def __init__(self, slot: int, host: str, port: int, *, asking: bool) -> None:
        super().__init__(
            f"{'ASK' if asking else 'MOVED'} {slot} {host}:{port}: a cluster's address is redis+cluster://"
        )
        self.slot, self.host, self.port, self.asking = slot, host, port, asking


class _First:
    """The first connect has a deadline; after it losses are mended for ever, and told once each."""

    def __init__(self, secs: float) -> None:
        self._deadline, self._secs, self._ever, self._lost = time.monotonic() + secs, secs, False, False

    def opened(self) -> None:
        if self._lost:
            log.info("connected again")
        self._ever, self._lost = True, False

    def failed(self, lost: Lost) -> None:
        if not self._ever and time.monotonic() >= self._deadline:
            raise Unreachable(f"no server for {self._secs:g} s: {lost}") from lost
        if self._ever and not self._lost:
            log.warning("connection lost, reading goes on when it is back: %s", lost)
            self._lost = True


class _Both:
    """What the two drivers share: connection arguments, and what a failure means."""

    def __init__(self, url: str, options: dict[str, Any], connect_secs: float) -> None:
        self._url, self._options, self._first = url, options, _First(connect_secs)
        self._commands: Any = None
        self._channels: Any = None
        self._pushed: list[tuple[str, bytes]] = []

    def _failed(self, error: BaseException) -> BaseException:
        """Say what a failure means, and tell of a loss."""
        found = translate(error)
        if isinstance(found, Lost):
            self._first.failed(found)
        return found


class Wires(_Both):
    """Both connections of one reader, under asyncio."""

    async def run(self, steps: Steps, cursor: Cursor, on_gap: str) -> AsyncIterator[Item | Gap]:
        """Carry out the steps and give what they hand out."""
        result: Any = None
        error: BaseException | None = None
        handled = 0
        try:
            while True:
                try:
                    step = steps.throw(error) if error is not None else steps.send(result)
                except StopIteration:
                    return
                result = error = None
                if isinstance(step, Emit):
                    handled = 0
                    for thing, topic, id, run in step.out:
                        cursor.move(topic, id, run)
                        if on_gap == "raise" and isinstance(thing, Gap):
                            raise GapError(thing)
                        yield thing
                        handled += 1
                    handled, result = 0, len(step.out)
                    continue
                try:
                    result = await self._carry_out(step)
                except (Lost, Refused) as failed:
                    error = failed
        finally:
            try:  # the loop was left: let the logic do its last thing, where it has one
                with contextlib.suppress(Exception):
                    await self._carry_out(steps.throw(Ended(handled)))
            finally:
                await self._close()

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Call):
            (reply,) = await self._exchange([step.args], step.wait)
            if isinstance(reply, Exception):
                raise reply
            return reply
        if isinstance(step, Calls):
            return await self._exchange(step.commands, 0.0)
        if isinstance(step, Receive):
            return await self._receive(step.secs)
        if isinstance(step, Subscribe):
            return await self._subscribe(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.secs)
        assert isinstance(step, Connect)
        await self._close()
        self._commands = await self._open()
        self._first.opened()

    async def _open(self) -> Any:
        try:
            return await connect(self._url, self._options, ANSWER_SECS)
        except Exception as error:
            raise self._failed(error) from error

    async def _exchange(self, commands: Sequence[tuple[Any, ...]], wait: float) -> list[Any]:
        if self._commands is None:
            raise Lost("not connected")
        try:
            return await exchange(self._commands, commands, wait + ANSWER_SECS)
        except Exception as error:
            raise self._failed(error) from error

    async def _subscribe(self, step: Subscribe) -> None:
        if self._channels is None:
            self._channels = await self._open()
        connection, commands = self._channels, _subscriptions(step)
        left = sum(len(command) - 1 for command in commands)
        try:
            async with asyncio.timeout(2 * ANSWER_SECS):
                for command in commands:
                    await connection.send_packed_command(hiredis.pack_command(command), check_health=False)
                while left:
                    reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
                    left -= reply[0] in SUBSCRIBED
                    self._pushed += published(reply)
        except Exception as error:
            self._channels = None
            await drop(connection)
            raise self._failed(error) from error

    async def _receive(self, secs: float) -> list[tuple[str, bytes]]:
        found, self._pushed = self._pushed, []
        connection, wait = self._channels, 0.0 if found else secs
        try:
            while len(found) < BATCH:
                reply = await connection.read_response(disable_decoding=True, timeout=wait, disconnect_on_error=False)
                if reply is None:
                    break
                found += published(reply)
                wait = 0.0
        except Exception as error:
            if found:
                self._pushed = []  # the next look at the connection meets the loss again
                return found
            raise self._failed(error) from error
        return found

    async def _close(self) -> None:
        both, self._commands, self._channels = (self._commands, self._channels), None, None
        self._pushed = []
        for connection in both:
            if connection is not None:
                await drop(connection)


async def connect(url: str, given: dict[str, Any], secs: float) -> Any:
    """Open one connection. Raises what redis-py does."""
    options = _options(url, given, AsyncioRetry(NoBackoff(), 0), asyncio_connection.parse_url)
    options["socket_timeout"] = None  # ours, around each exchange
    connection = options.pop("connection_class", asyncio_connection.Connection)(**options)
    try:
        async with asyncio.timeout(secs):
            await connection.connect()
    except BaseException:
        await drop(connection)
        raise
    return connection


async def exchange(connection: Any, commands: Sequence[tuple[Any, ...]], secs: float) -> list[Any]:
    """Send commands together; a reply each, a Refused in the place of a refused one. Raises as redis-py."""
    replies: list[Any] = []
    async with asyncio.timeout(secs):
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        await connection.send_packed_command(packed, check_health=False)
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
            except ResponseError as error:
                replies.append(_reply_error(error))
    return replies


async def drop(connection: Any) -> None:
    """Close a connection without waiting for the other side."""
    with contextlib.suppress(Exception):
        await connection.disconnect(nowait=True)


def _reply_error(error: ResponseError) -> Refused:
    found = translate(error)
    if isinstance(found, Refused):
        return found
    raise found from error


class SyncWires(_Both):
    """Both connections of one reader, without asyncio: the twin of `Wires`, step for step."""

    def run(self, steps: Steps, cursor: Cursor, on_gap: str) -> Iterator[Item | Gap]:
        """Carry out the steps and give what they hand out."""
        result: Any = None
        error: BaseException | None = None
        handled = 0
        try:
            while True:
                try:
                    step = steps.throw(error) if error is not None else steps.send(result)
                except StopIteration:
                    return
                result = error = None
                if isinstance(step, Emit):
                    handled = 0
                    for thing, topic, id, run in step.out:
                        cursor.move(topic, id, run)
                        if on_gap == "raise" and isinstance(thing, Gap):
                            raise GapError(thing)
                        yield thing
                        handled += 1
                    handled, result = 0, len(step.out)
                    continue
                try:
                    result = self._carry_out(step)
                except (Lost, Refused) as failed:
                    error = failed
        finally:
            try:
                with contextlib.suppress(Exception):
                    self._carry_out(steps.throw(Ended(handled)))
            finally:
                self._close()

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Call):
            (reply,) = self._exchange([step.args], step.wait)
            if isinstance(reply, Exception):
                raise reply
            return reply
        if isinstance(step, Calls):
            return self._exchange(step.commands, 0.0)
        if isinstance(step, Receive):
            return self._receive(step.secs)
        if isinstance(step, Subscribe):
            return self._subscribe(step)
        if isinstance(step, Pause):
            return time.sleep(step.secs)
        assert isinstance(step, Connect)
        self._close()
        self._commands = self._open()
        self._first.opened()

    def _open(self) -> Any:
        try:
            return connect_sync(self._url, self._options, ANSWER_SECS)
        except Exception as error:
            raise self._failed(error) from error

    def _exchange(self, commands: Sequence[tuple[Any, ...]], wait: float) -> list[Any]:
        if self._commands is None:
            raise Lost("not connected")
        try:
            return exchange_sync(self._commands, commands, wait + ANSWER_SECS)
        except Exception as error:
            raise self._failed(error) from error

    def _subscribe(self, step: Subscribe) -> None:
        if self._channels is None:
            self._channels = self._open()
        connection, commands = self._channels, _subscriptions(step)
        left = sum(len(command) - 1 for command in commands)
        try:
            for command in commands:
                connection.send_packed_command([hiredis.pack_command(command)], check_health=False)
            while left:
                reply = connection.read_response(disable_decoding=True, timeout=2 * ANSWER_SECS)
                left -= reply[0] in SUBSCRIBED
                self._pushed += published(reply)
        except Exception as error:
            self._channels = None
            with contextlib.suppress(Exception):
                connection.disconnect()
            raise self._failed(error) from error

    def _receive(self, secs: float) -> list[tuple[str, bytes]]:
        found, self._pushed = self._pushed, []
        connection, wait = self._channels, 0.0 if found else secs
        try:
            while len(found) < BATCH and connection.can_read(timeout=wait):
                found += published(connection.read_response(disable_decoding=True, timeout=ANSWER_SECS))
                wait = 0.0
        except Exception as error:
            if found:
                return found
            raise self._failed(error) from error
        return found

    def _close(self) -> None:
        both, self._commands, self._channels = (self._commands, self._channels), None, None
        self._pushed = []
        for connection in both:
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.disconnect()


def connect_sync(url: str, given: dict[str, Any], secs: float) -> Any:
    """See `connect`."""
    options = _options(url, given, Retry(NoBackoff(), 0), sync_connection.parse_url)
    options["socket_timeout"] = secs
    connection = options.pop("connection_class", sync_connection.Connection)(**options)
    try:
        connection.connect()
    except BaseException:
        with contextlib.suppress(Exception):
            connection.disconnect()
        raise
    return connection


def exchange_sync(connection: Any, commands: Sequence[tuple[Any, ...]], secs: float) -> list[Any]:
    """See `exchange`; `secs`: for each reply."""
    replies: list[Any] = []
    connection.send_packed_command(
        [b"".join([hiredis.pack_command(command) for command in commands])], check_health=False
    )
    for _ in commands:
        try:
            replies.append(connection.read_response(disable_decoding=True, timeout=secs))
        except ResponseError as error:
            replies.append(_reply_error(error))
    return replies
