"""A scripted WebSocket server for tests: it expects messages, sends, waits, closes, word for word as written.

    async with scripted([expect({"type": "subscribe"}), send({"type": "ack"}), close(1001)]) as server:
        ... a client of server.url ...

Where the simulator plays a provider as it is, a script plays it as it should never be: the login refused, never
answered, data before the acknowledgement. What the client did against the script is raised at the end of the block.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from relay.simulator.playback import decoded
from relay.simulator.wire import refusal, tracked

EXPECT_SECS = 5.0
Message = str | bytes
Match = Mapping[str, Any] | Message | Callable[[Any], bool]
"""What a client's message must be: an object with at least these members, this text, or a test of the message (decoded
where it is JSON)."""


@dataclass(frozen=True)
class Expect:
    match: Match | None
    timeout: float


@dataclass(frozen=True)
class Send:
    data: Message | Callable[[Any], Message | Mapping[str, Any]]


@dataclass(frozen=True)
class Close:
    code: int
    reason: str


@dataclass(frozen=True)
class Refuse:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Wait:
    secs: float


@dataclass(frozen=True)
class Until:
    event: asyncio.Event


@dataclass(frozen=True)
class Drop:
    """Abort TCP."""


@dataclass(frozen=True)
class Hang:
    """Never answer the upgrade."""


@dataclass(frozen=True)
class Silence:
    """Read, answer nothing, until the client goes."""


Act = Expect | Send | Close | Refuse | Wait | Until | Drop | Hang | Silence


def expect(match: Match | None = None, *, timeout: float = EXPECT_SECS) -> Expect:
    """The next message of the client must match, and come in time (seconds); None: any message."""
    return Expect(match, timeout)


def send(data: Message | Mapping[str, Any] | Sequence[Any] | Callable[[Any], Message | Mapping[str, Any]]) -> Send:
    """Send text, bytes (a binary frame), JSON, or what a function makes of the last message expected."""
    return Send(data if callable(data) else _wire(data))


def close(code: int = 1000, reason: str = "") -> Close:
    return Close(code, reason)


def refuse(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Refuse:
    """Refuse the upgrade; only as the first step."""
    return Refuse(status, headers or {}, body)


def hang() -> Hang:
    """Never answer the upgrade; only as the first step."""
    return Hang()


def drop() -> Drop:
    return Drop()


def wait(secs: float) -> Wait:
    return Wait(secs)


def until(event: asyncio.Event) -> Until:
    """Go on when the test says so."""
    return Until(event)


def silence() -> Silence:
    return Silence()


@dataclass
class Scripted:
    """A running scripted server."""

    url: str = ""
    connects: int = 0
    received: list[Message] = field(default_factory=list)
    """All messages of all clients, in order of arrival."""
    requests: list[Request] = field(default_factory=list)
    """The upgrade of each connection: path and headers."""
    failures: list[str] = field(default_factory=list)
    finished: int = 0
    """Connections whose script came to its end."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def done(self, connections: int = 1, timeout: float = EXPECT_SECS) -> None:
        """Wait until so many connections played their script to the end, or one went wrong.

        Raises: AssertionError for what went wrong; TimeoutError.
        """
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: self.finished >= connections or self.failures)
        self.check()

    def check(self) -> None:
        """Raises: AssertionError for what clients did against the script."""
        if self.failures:
            raise AssertionError("\n".join(self.failures))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Mismatch(Exception):
    """The client did something else than the script says."""


@asynccontextmanager
async def scripted(
    *scripts: Sequence[Act], path: str = "/", subprotocols: Sequence[str] = ()
) -> AsyncIterator[Scripted]:
    """Serve scripts on loopback, one a connection in order; the last one serves all later connections too.

    After its script a connection stays open and silent until the client goes.

    Raises: AssertionError at the end of the block for what clients did against the script; ValueError where a step for
    the upgrade is not the first.
    """
    if not scripts:
        raise ValueError("no script")
    if any(isinstance(act, (Refuse, Hang)) for script in scripts for act in script[1:]):
        raise ValueError("refuse() and hang() answer the upgrade: only as the first step")
    server = Scripted()
    connections: set[ServerConnection] = set()
    stopping = False
    chosen: dict[ServerConnection, Sequence[Act]] = {}

    async def upgrade(connection: ServerConnection, request: Request) -> Response | None:
        script = scripts[min(server.connects, len(scripts) - 1)]
        server.connects += 1
        server.requests.append(request)
        first = script[0] if script else None
        if isinstance(first, (Refuse, Hang)):
            server.finished += 1
            await server._tell()
            if isinstance(first, Refuse):
                return refusal(first.status, first.headers, first.body)
            await asyncio.wait([connection.connection_lost_waiter])
            return refusal(503, {}, b"")
        chosen[connection] = script
        return None

    async def handle(connection: ServerConnection) -> None:
        try:
            await _play(server, connection, chosen.pop(connection))
            server.finished += 1
            await server._tell()
            await _listen(server, connection)
        except _Mismatch as error:
            # a client that we ourselves cut off at the end of the block did nothing wrong
            if not stopping:
                server.failures.append(f"connection {server.connects}: {error}")
                await server._tell()
            await connection.close(1008, "not in the script")
        except ConnectionClosed:
            pass

    listening = await serve(
        handle,
        "127.0.0.1",
        0,
        process_request=upgrade,
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        compression=None,
        create_connection=tracked(connections),
        open_timeout=None,
        close_timeout=1,
        ping_interval=None,
    )
    port = next(iter(listening.sockets)).getsockname()[1]
    server.url = f"ws://127.0.0.1:{port}{path}"
    try:
        yield server
    finally:
        stopping = True
        for connection in list(connections):
            connection.transport.abort()
        listening.close()
        await listening.wait_closed()
    server.check()


async def _play(server: Scripted, connection: ServerConnection, script: Sequence[Act]) -> None:
    last: Any = None
    for number, act in enumerate(script, 1):
        match act:
            case Expect():
                last = await _expect(server, connection, act, f"step {number}")
            case Send(data):
                await connection.send(_wire(data(last)) if callable(data) else data)
            case Wait(secs):
                await _unless_gone(connection, asyncio.sleep(secs))
            case Until(event):
                await _unless_gone(connection, event.wait())
            case Close(code, reason):
                await connection.close(code, reason)
            case Drop():
                connection.transport.abort()
                await connection.wait_closed()
            case Silence():
                await _listen(server, connection)
            case Refuse() | Hang():
                raise AssertionError("played at the upgrade")


async def _expect(server: Scripted, connection: ServerConnection, act: Expect, where: str) -> Any:
    """Read one message; give it decoded where it is JSON."""
    try:
        async with asyncio.timeout(act.timeout):
            message = await connection.recv()
    except TimeoutError:
        raise _Mismatch(f"{where}: expected {_told(act.match)}, nothing came in {act.timeout:g} s") from None
    except ConnectionClosed as error:
        raise _Mismatch(f"{where}: expected {_told(act.match)}, but the client went: {error}") from None
    server.received.append(message)
    found = decoded(message)
    if not _matches(act.match, message, found):
        raise _Mismatch(f"{where}: expected {_told(act.match)}, got {message!r:.500}")
    return found


async def _unless_gone(connection: ServerConnection, waits: Coroutine[Any, Any, Any]) -> None:
    """Wait, but not longer than the connection lives. Raises: ConnectionClosed."""
    task = asyncio.create_task(waits)
    try:
        await asyncio.wait([task, connection.connection_lost_waiter], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise connection.close_exc
    finally:
        task.cancel()


async def _listen(server: Scripted, connection: ServerConnection) -> None:
    async for message in connection:
        server.received.append(message)


def _matches(match: Match | None, message: Message, found: Any) -> bool:
    if match is None:
        return True
    if isinstance(match, (str, bytes)):
        return message == match
    if isinstance(match, Mapping):
        return isinstance(found, dict) and all(k in found and found[k] == v for k, v in match.items())
    return bool(match(found))


def _told(match: Match | None) -> str:
    if match is None:
        return "any message"
    return getattr(match, "__name__", "a test") if callable(match) else repr(match)


def _wire(data: Any) -> Message:
    return data if isinstance(data, (str, bytes)) else json.dumps(data, separators=(",", ":"))
