"""A small HTTP server on a socket that is bound at once: the part that all who serve pages share.

It runs inside its owner's tasks, leaves signals alone, says nothing of itself and sleeps until it is stopped.
"""

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import uvicorn

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names by which a server on this machine may always be called."""
ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
"""Addresses that mean every one of the machine, and how it is reached from itself."""


class Stopping(Protocol):
    """An event of anyio or asyncio: set once the server must end."""

    async def wait(self) -> Any: ...


def bound(host: str, port: int, *, backlog: int | None = None, send_buffer: int = 0) -> socket.socket:
    """Take an address; clients may connect from now on and wait until the server is up. Raises: OSError."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if send_buffer:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        found.bind((host, port))
        if backlog is None:
            found.listen()
        else:
            found.listen(backlog)
    except BaseException:
        found.close()
        raise
    return found


def url_of(host: str, port: int) -> str:
    """Give the address as it is called from this machine."""
    return f"http://{bracketed(ANY.get(host, host))}:{port}"


def names_of(host: str) -> tuple[str, ...]:
    """Give the names by which a server on an address may be called."""
    return LOCAL if host in ANY else (*LOCAL, bracketed(host))


def bracketed(host: str) -> str:
    """Write an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def server(app: Any, stopping: Stopping, *, log_level: str = "warning", **options: Any) -> "uvicorn.Server":
    """Make the server of an ASGI application; `options` are uvicorn's. Serve it with `serve(sockets=[...])`."""
    import uvicorn

    class Quiet(uvicorn.Server):
        """Leaves signals to whoever runs us, and sleeps until it is stopped: no ten looks a second."""

        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            return contextlib.nullcontext()

        async def main_loop(self) -> None:
            await self.on_tick(0)
            await stopping.wait()

    return Quiet(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level=log_level,
            access_log=False,
            ws="none",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
            **options,
        )
    )
