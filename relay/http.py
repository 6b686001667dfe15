"""IO: the small HTTP server for who watches the relay: metrics, health, status. Reads only; knows no part of the relay.

It runs inside our task group and leaves signals alone. Names by which it may be called are checked (a web page that
points its own name at this machine must not read prices), and it holds no secret.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from relay import serving
from relay.config.structs import HttpConfig
from relay.errors import RelayError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

REQUESTS_MAX = 32
"""Served at one time; more are told 503. A scraper, a probe and a few people at `relay top` need a handful."""
IDLE_SECS = 15
_INDEX = """relay

/metrics      for Prometheus
/healthz      the loop turns
/readyz       Redis is up and a feed is live; or it stands by and could take over
/status.json  what relay top and relay status show
"""


@dataclass(frozen=True)
class Pages:
    """What is served. Called in the loop, so they must be quick."""

    registry: "CollectorRegistry"
    ready: Callable[[], tuple[bool, str] | Awaitable[tuple[bool, str]]]
    """Whether it is ready, and one line that says why not."""
    status: Callable[[Mapping[str, str]], dict[str, Any] | Awaitable[dict[str, Any]]]
    """The status document, for the parameters of the query. Raises: ValueError for a wrong one."""
    scrape: Callable[[], Awaitable[None]] | None = None
    """Called before the registry is read: gets what is asked of other processes."""


class HttpServer:
    """Bound at once, serves in `run` until cancelled. Raises: RelayError where the address cannot be had."""

    def __init__(self, config: HttpConfig, pages: Pages) -> None:
        self._config, self._pages = config, pages
        self._stopping = anyio.Event()
        try:
            self._socket = serving.bound(config.host, config.port, backlog=REQUESTS_MAX)
        except OSError as error:
            why = error.strerror or str(error)
            raise RelayError(f"http: {config.host}:{config.port} cannot be had: {why}; change `http.port`") from error
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where to look from this machine."""
        return serving.url_of(self._config.host, self.port)

    def close(self) -> None:
        """Give the address back; needed where `run` was never called."""
        self._socket.close()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._serve)
            try:
                await anyio.sleep_forever()
            finally:
                self._stopping.set()

    async def _serve(self) -> None:
        served = app(self._pages, (*serving.names_of(self._config.host), *self._config.hosts))
        server = serving.server(served, self._stopping, limit_concurrency=REQUESTS_MAX, timeout_keep_alive=IDLE_SECS)
        with anyio.CancelScope(shield=True):  # `run` ends it, so that requests are answered and sockets closed
            await server.serve(sockets=[self._socket])


def app(pages: Pages, hosts: tuple[str, ...]) -> "Starlette":
    """Make the ASGI application; `hosts` are the names by which it may be called."""
    from prometheus_client.exposition import choose_encoder
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def index(request: "Request") -> "Response":
        return PlainTextResponse(_INDEX)

    async def metrics(request: "Request") -> "Response":
        if pages.scrape is not None:
            await pages.scrape()
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(pages.registry), headers={"content-type": kind})

    async def healthz(request: "Request") -> "Response":
        return PlainTextResponse("ok\n")

    async def readyz(request: "Request") -> "Response":
        found = pages.ready()
        ready, why = await found if isinstance(found, Awaitable) else found
        return PlainTextResponse(f"{why}\n", status_code=200 if ready else 503)

    async def status(request: "Request") -> "Response":
        try:
            found = pages.status(request.query_params)
            document = await found if isinstance(found, Awaitable) else found
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        return Response(msgspec.json.encode(document), media_type="application/json")

    routes = {"/": index, "/metrics": metrics, "/healthz": healthz, "/readyz": readyz, "/status.json": status}
    return Starlette(
        routes=[Route(path, page, methods=["GET"]) for path, page in routes.items()],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )
