"""What the simulator and scripted servers share: connections to count on, and refusing an upgrade."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response


class Batching(ServerConnection):
    """A connection that writes what waits in one go: many small frames a write, not a write a frame."""

    def send_data(self) -> None:
        writes = self.protocol.writes
        # an empty chunk at the end asks for a half-close, which the library's own loop must see
        if len(writes) > 1 and writes[-1]:
            self.protocol.writes = [b"".join(writes)]
        super().send_data()


def tracked(connections: set[ServerConnection]) -> type[ServerConnection]:
    """Make a class of connections that are in this set while their TCP lives, the upgrade not yet done included."""

    class Tracked(Batching):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connections.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self)
            super().connection_lost(exc)

    return Tracked


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Response:
    """The HTTP answer that refuses an upgrade."""
    fields = Headers(headers)
    for name, value in (("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Connection", "close")):
        if name not in fields:
            fields[name] = value
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Refused"
    return Response(status, phrase, fields, body)
