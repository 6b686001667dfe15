"""One connection to Redis: opened by redis-py (TLS, unix sockets, logins), calls packed by hiredis, no hidden retries.

redis-py retries writes by default and so stores entries twice; here a call is sent once and either answers or fails.
"""

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import hiredis
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CALL_SECS = 5.0
"""A call without an answer for this long counts as lost: the connection is given up and Redis asked what it has."""


@dataclass(frozen=True)
class Server:
    """Where Redis is and how to log in.

    `url`: redis://, rediss:// or unix://, with user, password and database in it if wanted, or an address of several
    servers (relay.targets). `timeout_secs`: for a connect and for each call.
    """

    url: str
    username: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout_secs: float = CALL_SECS
    sentinel_username: str = ""
    sentinel_password: str = ""

    def __repr__(self) -> str:
        return f"<Server {self.where}>"

    @property
    def where(self) -> str:
        """The address without its secrets, for logs."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


class LinkLost(Exception):
    """No answer, or half of one: whether the call was carried out is not known."""


class ReplyError(Exception):
    """Redis answered with an error; the text begins with its code."""


class Link:
    """One connection, one call at a time. Raises: LinkLost or ReplyError, nothing of redis-py."""

    def __init__(self, server: Server, client_name: str) -> None:
        self._server = server
        self._client_name = client_name
        self._connection: Any = None

    @property
    def where(self) -> str:
        """The server's address without its secrets, for logs."""
        return self._server.where

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Hold what has to go on beside the calls while inside: nothing, with one server."""
        yield

    @property
    def up(self) -> bool:
        """Whether a call can be made."""
        return self._connection is not None and bool(self._connection.is_connected)

    async def open(self) -> None:
        """Connect and log in."""
        await self.close()
        connection = self._connection = self._make()
        try:
            with anyio.fail_after(self._server.timeout_secs):
                await connection.connect()
        except BaseException as error:
            await self.close()
            translated = _translate(error)
            if translated is error:
                raise
            raise translated from error

    def _make(self) -> Any:
        server = self._server
        options: dict[str, Any] = dict(parse_url(server.url))
        make = options.pop("connection_class", Connection)
        if server.username:
            options["username"] = server.username
        if server.password:
            options["password"] = server.password
        files = {"ssl_ca_certs": server.ca_file, "ssl_certfile": server.cert_file, "ssl_keyfile": server.key_file}
        options |= {name: value for name, value in files.items() if value}
        options |= {
            "client_name": self._client_name,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,  # ours, below: redis-py would make a task for each call
            "socket_connect_timeout": server.timeout_secs,
            "socket_read_size": 65536,
        }
        return make(**options)

    async def call(self, *args: Any) -> Any:
        """Send one command and give its reply, bytes as bytes."""
        return (await self._exchange(hiredis.pack_command(args), 1))[0]

    async def calls(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Send commands together; give a reply each, a ReplyError in the place of a refused one."""
        if not commands:
            return []
        return await self._exchange(b"".join([hiredis.pack_command(command) for command in commands]), len(commands))

    async def _exchange(self, packed: bytes, count: int) -> list[Any]:
        connection = self._connection
        if connection is None or not connection.is_connected:
            raise LinkLost("not connected")
        replies: list[Any] = []
        try:
            with anyio.fail_after(self._server.timeout_secs):
                await connection.send_packed_command(packed, check_health=False)
                while len(replies) < count:
                    try:
                        replies.append(await connection.read_response(disable_decoding=True))
                    except RedisError as error:
                        translated = _translate(error)
                        if count == 1 or isinstance(translated, LinkLost):
                            raise
                        replies.append(translated)
        except BaseException as error:
            translated = _translate(error)
            if not isinstance(translated, ReplyError):
                await self.close()
            if translated is error:
                raise
            raise translated from error
        return replies

    async def close(self) -> None:
        """Close the connection. Never fails, never waits for the other side."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)


def _translate(error: BaseException) -> BaseException:
    """Turn what redis-py and the socket raise into ours; others pass."""
    if isinstance(error, RedisError):
        while error.args and isinstance(error.args[0], RedisError):  # so wrapped by redis-py on unix sockets
            error = error.args[0]
        code = getattr(error, "status_code", None)
        text = str(error)
        if code is not None:
            return ReplyError(f"{code} {text}"[:1000])
        head = text.partition(" ")[0]
        # redis-py strips the code of errors that it knows and keeps it for those it does not
        if type(error).__name__ == "ResponseError" and (head.isupper() or head.startswith("ERR")):
            return ReplyError(text[:1000])
        return LinkLost(f"{text or type(error).__name__}"[:1000])
    if isinstance(error, TimeoutError):
        return LinkLost("no answer in time")
    if isinstance(error, (OSError, EOFError, ssl.SSLError)):
        return LinkLost(str(error) or type(error).__name__)
    return error
