"""The simulator's IO: one WebSocket port for all simulated providers, a REST port beside it, rate and faults.

The first segment of the path is the provider's type; the rest goes to the provider's side. The server keeps the rate,
plays recordings in place of made-up data, and does wrong what `Faults` asks for. It binds to loopback and nothing else.
"""

import asyncio
import ipaddress
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Subprotocol

from relay import serving
from relay.simulator.base import Answer, SideSpec, World
from relay.simulator.faults import NO_FAULTS, Faults
from relay.simulator.playback import Playback, Recording
from relay.simulator.session import Session
from relay.simulator.wire import refusal, tracked

if TYPE_CHECKING:
    import uvicorn

HEARD_MAX = 1000
"""How many of the last client messages are kept for tests to look at."""
CLOSE_SECS = 1.0
"""How long a client may take to answer our close, and how long all of them may together when the simulator stops."""
PONG_SECS = 60.0
"""How long a ping may stay unanswered: the most patient of the providers (Binance) waits a minute."""
_NO_KEY = frozenset({"\0 no key is right"})

log = logging.getLogger("relay.simulator")
_silent = logging.getLogger("relay.simulator.websocket")
"""For the library, which logs a traceback for each client that goes away; what matters is logged by us."""
_silent.setLevel(logging.CRITICAL + 1)


@dataclass
class Stats:
    """What happened at one provider's side since the simulator was made."""

    connects: int = 0
    """Upgrades asked for, refused ones included."""
    open: int = 0
    """Connections that are open now."""
    sent: int = 0
    """Data messages, garbage and repeats not included."""
    answers: int = 0
    """Other messages: acknowledgements, heartbeats."""
    received: int = 0
    """Messages of clients."""
    rest: int = 0
    """REST calls."""
    errors: int = 0
    """Times the side's own code failed: a bug in the simulator."""
    faults: Counter[str] = field(default_factory=Counter)
    """Faults played, by the name of the field in Faults."""
    heard: deque[str | bytes] = field(default_factory=lambda: deque(maxlen=HEARD_MAX))
    """The last messages of clients."""


class Simulator:
    """The simulated providers, as a server on loopback.

    `providers`: types to serve, None: all. `rate`: data messages a second and connection, 0: as fast as the client
    reads. `keys`: accepted API keys by provider; not named: any key. `knobs`: a side's own switches, by provider.
    `play`: recordings in place of made-up data, by provider. `sides`: another table than SIDES.

    Raises: ValueError for an unknown provider, an address that is not loopback, a negative rate.
    """

    def __init__(
        self,
        providers: Sequence[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rest_port: int = 0,
        rate: float = 20.0,
        seed: int = 0,
        faults: Faults = NO_FAULTS,
        knobs: Mapping[str, Mapping[str, Any]] | None = None,
        keys: Mapping[str, Iterable[str]] | None = None,
        play: Mapping[str, Playback] | None = None,
        compression: bool = False,
        clock: Callable[[], int] = time.time_ns,
        sides: Mapping[str, SideSpec] | None = None,
    ) -> None:
        if sides is None:
            from relay.simulator import SIDES

            sides = SIDES
        names = list(sides) if providers is None else list(dict.fromkeys(providers))
        for name in (*names, *(knobs or ()), *(keys or ()), *(play or ())):
            if name not in sides:
                raise ValueError(f"no simulated provider {name!r}; there are: {', '.join(sides) or 'none'}")
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"the simulator serves loopback alone, not {host}")
        self.sides: dict[str, SideSpec] = {name: sides[name] for name in names}
        self.worlds: dict[str, World] = {
            name: World(
                random=Random(f"{seed} {name}"),
                keys=frozenset((keys or {}).get(name, ())),
                knobs=dict((knobs or {}).get(name, {})),
            )
            for name in names
        }
        self.stats: dict[str, Stats] = {name: Stats() for name in names}
        self.host, self.port, self.rest_port = host, port, rest_port
        self.clock, self.compression = clock, compression
        self.play = {name: playback for name, playback in (play or {}).items() if name in self.sides}
        self.recordings: dict[str, Recording] = {}
        self.garbage = Random(f"{seed} garbage")
        self.sessions: set[Session] = set()
        self._rates: dict[str, float] = {}
        self._faults: dict[str, _Set] = {}
        self._connections: set[ServerConnection] = set()
        self._upgraded: dict[ServerConnection, Session] = {}
        self._server: Server | None = None
        self._rest: _Rest | None = None
        self.set_rate(rate)
        self.set_faults(faults)

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind both ports and serve. The ports stay the same when it is started again after a stop.

        Raises: OSError where a port cannot be had; JournalError where a recording cannot be read.
        """
        if self._server is not None:
            raise RuntimeError("the simulator is running")
        for name, playback in self.play.items():
            if name not in self.recordings:
                self.recordings[name] = playback.load(name)
        server = await serve(
            self._handle,
            self.host,
            self.port,
            process_request=self._upgrade,
            select_subprotocol=self._subprotocol,
            create_connection=tracked(self._connections),
            compression="deflate" if self.compression else None,
            # a hanging upgrade is a fault that we play for as long as the client stands it
            open_timeout=None,
            close_timeout=CLOSE_SECS,
            ping_timeout=PONG_SECS,
            server_header=None,
            logger=_silent,
        )
        self._server = server
        self.port = next(iter(server.sockets)).getsockname()[1]
        if any(spec.rest for spec in self.sides.values()):
            try:
                await self._start_rest()
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Close every connection (1001) and both ports. A second call does nothing."""
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.stopping.set()
            rest.server.force_exit = True
        server, self._server = self._server, None
        if server is not None:
            for connection in list(self._connections):
                if connection.state is State.CONNECTING:
                    connection.transport.abort()
            server.close()
            try:
                async with asyncio.timeout(2 * CLOSE_SECS):
                    await server.wait_closed()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.transport.abort()
                await server.wait_closed()
        if rest is not None:
            await rest.task

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def url(self, provider: str) -> str:
        """The WebSocket address that stands for a provider's own, once started."""
        return self._address("ws", self.port, provider)

    def rest_url(self, provider: str) -> str:
        """The REST address that stands for a provider's own, once started.

        A side that answers no REST gives an address that refuses every call: what is simulated must never ask the
        real provider.
        """
        has_rest = provider in self.sides and self.sides[provider].rest is not None
        return self._address("http", self.rest_port if has_rest else self.port, provider)

    def addresses(self) -> dict[str, tuple[str, str]]:
        """Both addresses of every provider that it stands for."""
        return {name: (self.url(name), self.rest_url(name)) for name in self.sides}

    def _address(self, scheme: str, port: int, provider: str) -> str:
        if provider not in self.sides:
            raise ValueError(f"{provider} is not simulated here")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{port}/{provider}"

    # -- switches at run time ------------------------------------------------------------------------------------

    def set_faults(self, faults: Faults, *providers: str) -> None:
        """Play these faults from now on, on open connections too; no provider named: all. Not added to the old."""
        for name in providers or self.sides:
            self._faults[self._known(name)] = _Set(faults)
        for session in self.sessions:
            session.wake()

    def set_rate(self, rate: float, *providers: str) -> None:
        """Send so many data messages a second and connection from now on; no provider named: all."""
        if not 0 <= rate < float("inf"):
            raise ValueError(f"not a rate: {rate}")
        for name in providers or self.sides:
            self._rates[self._known(name)] = rate
        for session in self.sessions:
            session.wake()

    def rate_of(self, provider: str) -> float:
        return self._rates[provider]

    def faults_of(self, provider: str) -> Faults:
        return self._faults[provider].faults

    def drop(self, *providers: str) -> int:
        """Abort the TCP connections that are open now; give their number."""
        found = [s for s in self.sessions if not providers or s.provider in providers]
        for session in found:
            session.connection.transport.abort()
        return len(found)

    def _known(self, name: str) -> str:
        if name not in self.sides:
            raise ValueError(f"{name} is not simulated here")
        return name

    def current_faults(self, session: Session) -> Faults:
        """What is played on a connection now. It takes one of the `connections` of a set when it meets that first."""
        current = self._faults[session.provider]
        if session.fault_set is not current:
            current.met += 1
            limit = current.faults.connections
            session.faults_set(current, limit is None or current.met <= limit)
        return current.faults if session.faulty else NO_FAULTS

    # -- WebSocket -----------------------------------------------------------------------------------------------

    async def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer the upgrade: None accepts it."""
        name, rest = _split(request.path)
        if name not in self.sides:
            return refusal(404, {}, f"No such provider. There are: {', '.join(self.sides)}\n".encode())
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return refusal(426, {"Upgrade": "websocket"}, b"This port speaks WebSocket.\n")
        stats = self.stats[name]
        stats.connects += 1
        session = Session(self, name, connection)
        faults = self.current_faults(session)
        if faults.hang:
            stats.faults["hang"] += 1
            # until the client or stop() ends the connection
            await asyncio.wait([connection.connection_lost_waiter])
            return refusal(503, {}, b"")
        if faults.refuse_upgrade:
            stats.faults["refuse_upgrade"] += 1
            return refusal(faults.refuse_upgrade, {}, b"simulated refusal\n")
        if faults.refuse_auth:
            stats.faults["refuse_auth"] += 1
        headers = {key.lower(): value for key, value in request.headers.raw_items()}
        try:
            session.side = self.sides[name].side(self._world(name, faults), rest, headers)
            refuse = session.side.upgrade()
        except Exception:
            stats.errors += 1
            log.exception("simulated side failed provider=%s", name)
            return refusal(500, {}, b"the simulator failed\n")
        if refuse is not None:
            return refusal(refuse.status, refuse.headers, refuse.body)
        self._upgraded[connection] = session
        connection.connection_lost_waiter.add_done_callback(lambda _: self._upgraded.pop(connection, None))
        return None

    def _world(self, name: str, faults: Faults) -> World:
        """The provider's world; where no key is right, another look at the same world."""
        world = self.worlds[name]
        return replace(world, keys=_NO_KEY) if faults.refuse_auth else world

    def _subprotocol(self, connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        known = self.sides[self._upgraded[connection].provider].subprotocols
        return next((name for name in offered if name in known), None)

    async def _handle(self, connection: ServerConnection) -> None:
        session = self._upgraded.get(connection)
        if session is None:
            return  # gone already
        stats = self.stats[session.provider]
        self.sessions.add(session)
        stats.open += 1
        try:
            await session.run()
        except ConnectionClosed:
            pass
        except Exception:
            # a bug of a side must be seen, and must not look like a quiet provider
            stats.errors += 1
            log.exception("simulated side failed provider=%s", session.provider)
            with suppress(ConnectionClosed):
                await connection.close(1011, "the simulator failed")
        finally:
            stats.open -= 1
            self.sessions.discard(session)

    # -- REST ----------------------------------------------------------------------------------------------------

    async def _start_rest(self) -> None:
        stopping = asyncio.Event()
        sock = serving.bound(self.host, self.rest_port)
        try:
            self.rest_port = sock.getsockname()[1]
            rest = serving.server(self._app(), stopping)
            task = asyncio.create_task(rest.serve(sockets=[sock]), name="simulator REST")
            self._rest = _Rest(rest, task, stopping)
        except BaseException:
            sock.close()
            raise

    def _app(self) -> Any:
        from starlette.requests import Request as RestRequest
        from starlette.responses import Response as RestResponse

        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = RestRequest(scope, receive)
            target = scope["raw_path"].decode("ascii", "replace")
            if scope["query_string"]:
                target += "?" + scope["query_string"].decode("ascii", "replace")
            answer = self._answer(request.method, target, dict(request.headers), await request.body())
            await RestResponse(answer.body, answer.status, dict(answer.headers))(scope, receive, send)

        return app

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        name, rest = _split(target)
        spec = self.sides.get(name)
        if spec is None or spec.rest is None:
            return Answer(404, b'{"error":"no such provider"}')
        stats, current = self.stats[name], self._faults[name]
        stats.rest += 1
        limit = current.faults.connections
        faults = current.faults if limit is None or current.met < limit else NO_FAULTS
        if faults.refuse_rest:
            stats.faults["refuse_rest"] += 1
            return Answer(faults.refuse_rest, b'{"error":"simulated refusal"}')
        recording = self.recordings.get(name)
        if recording is not None and (recorded := recording.answer(rest)) is not None:
            return recorded
        try:
            return spec.rest(self._world(name, faults), method, rest, headers, body, self.clock())
        except Exception:
            stats.errors += 1
            log.exception("simulated REST side failed provider=%s", name)
            return Answer(500, b'{"error":"the simulator failed"}')


@dataclass
class _Rest:
    """The running REST server."""

    server: "uvicorn.Server"
    task: asyncio.Task[None]
    stopping: asyncio.Event


class _Set:
    """Faults as set once, and how many connections have met them."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.met = faults, 0


def _split(target: str) -> tuple[str, str]:
    """`/coinapi/v1/?a=b` to `coinapi` and `/v1/?a=b`; the rest always begins with a slash."""
    path, mark, query = target.partition("?")
    name, _, rest = path.lstrip("/").partition("/")
    return name, f"/{rest}{mark}{query}"
