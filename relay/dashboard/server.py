"""IO: the HTTP side of the dashboard: four files, one stream of events a page, and what a page looks at.

It runs inside our task group, leaves signals alone, and binds to loopback unless told otherwise. There is no login:
who reaches the port reads the prices.
"""

import hashlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from relay import serving
from relay.dashboard.guard import Guard
from relay.dashboard.hub import Client, Hub
from relay.dashboard.reader import Reader
from relay.dashboard.state import Board, Limits
from relay.errors import RelayError

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/table.js": ("table.js", "text/javascript; charset=utf-8"),
    "/detail.js": ("detail.js", "text/javascript; charset=utf-8"),
    "/decimal.js": ("decimal.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
SEND_SECS = 60.0
"""A page that takes nothing for this long has gone; it connects again when it is back."""
SEND_BUFFER = 128 * 1024
"""Of each socket: what the system buffers for a slow page is old by the time it is read."""
REQUESTS_MAX = 160


@dataclass(frozen=True)
class Settings:
    """What `relay dashboard` was asked for."""

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    """Further names by which it may be called."""
    accounts: bool = False
    limits: Limits = field(default_factory=Limits)
    lists: tuple[str, ...] = ("relay:topics", "sim.relay:topics")
    """The hashes that name the topics."""
    redis_options: Mapping[str, Any] = field(default_factory=dict)


class Dashboard:
    """Bound at once, serves in `run` until cancelled. Raises: RelayError where the address cannot be had."""

    def __init__(
        self, settings: Settings, address: Callable[[], str], clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._settings, self._stopping = settings, anyio.Event()
        self._files = _load()
        version = hashlib.sha256(b"".join(body for body, _ in self._files.values())).hexdigest()[:16]
        self.board = Board(settings.limits, accounts=settings.accounts)
        hello = {"hello": version, "accounts": settings.accounts}
        self.hub = Hub(self.board, clock_ns, lambda row: self.reader.history(row), hello)
        self.reader = Reader(
            self.board,
            address,
            lists=settings.lists,
            changed=self.hub.changed,
            options=settings.redis_options,
            clock_ns=clock_ns,
        )
        self._socket = _bind(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where to look from this machine."""
        return serving.url_of(self._settings.host, self.port)

    def close(self) -> None:
        """Give the address back; needed where `run` was never called."""
        self._socket.close()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.reader.run)
            tasks.start_soon(self._serve)
            try:
                await anyio.sleep_forever()
            finally:
                self._stopping.set()

    async def _serve(self) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a page that goes away is no news
        server = serving.server(
            self.app(), self._stopping, log_level="critical", limit_concurrency=REQUESTS_MAX, timeout_keep_alive=15
        )
        with anyio.CancelScope(shield=True):  # `run` ends it, so that sockets are closed
            await server.serve(sockets=[self._socket])

    def app(self) -> Guard:
        """Make the ASGI application."""
        routes = [Route(path, self._file(path), methods=["GET"]) for path in FILES]
        routes.append(Route("/events", self._events, methods=["GET"]))
        routes.append(Route("/watch", self._watch, methods=["POST"]))
        return Guard(Starlette(routes=routes), (*serving.names_of(self._settings.host), *self._settings.hosts))

    def _file(self, path: str) -> Callable[[Request], Any]:
        body, kind = self._files[path]

        async def serve(request: Request) -> Response:
            return Response(body, headers={"content-type": kind})

        return serve

    async def _watch(self, request: Request) -> Response:
        row = request.query_params.get("row", "")
        if row and not (row.isascii() and row.isdecimal() and len(row) < 16):
            return PlainTextResponse("row: a number\n", status_code=400)
        if not self.hub.watch(request.query_params.get("client", ""), int(row) if row else None):
            return PlainTextResponse("no such page\n", status_code=404)
        return Response(status_code=204)

    async def _events(self, request: Request) -> Response:
        client = self.hub.open()
        if client is None:
            return PlainTextResponse("too many pages are open\n", status_code=503)
        return _Events(self.hub, client, self._stopping)


class _Events(Response):
    """The stream of one page. A send that takes too long ends it, without anybody else waiting."""

    def __init__(self, hub: Hub, client: Client, stopping: anyio.Event) -> None:
        super().__init__()
        self._hub, self._client, self._stopping = hub, client, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ended, receive, tasks.cancel_scope)
                tasks.start_soon(self._stopped, tasks.cancel_scope)
                await self._send(send)
                tasks.cancel_scope.cancel()
        finally:
            self._hub.close(self._client)

    async def _send(self, send: Send) -> None:
        body = self._hub.hello(self._client)
        while True:
            with anyio.move_on_after(SEND_SECS) as scope:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if scope.cancelled_caught:
                return
            body = await self._hub.next(self._client)

    @staticmethod
    async def _ended(receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _stopped(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()


def _load() -> dict[str, tuple[bytes, str]]:
    folder = resources.files("relay.dashboard") / "static"
    return {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}


def _bind(host: str, port: int) -> socket.socket:
    try:
        return serving.bound(host, port, backlog=REQUESTS_MAX, send_buffer=SEND_BUFFER)
    except OSError as error:
        raise RelayError(f"{host}:{port} cannot be had: {error.strerror or error}; choose another --port") from error


def lists_of(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Give the hashes of topics under some prefixes; made-up prices stand under `sim.` before each."""
    return tuple(dict.fromkeys(f"{sim}{prefix}relay:topics" for prefix in prefixes for sim in ("", "sim.")))
