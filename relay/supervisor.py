"""Several relay processes on one host as one: started, watched, restarted, stopped together, seen on one page.

Each process is `relay run --shard i/N`, with a share of the topics (relay.shards). What there is once is held here: the
embedded Redis, the simulator, the HTTP address. One that dies is started again, the others are not touched; when we
die they end (the parent-death signal), and what they could not write is in their spools.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec

from relay import brought, gathered
from relay.bridge import Bridge
from relay.clock import Clock
from relay.config import Config, Shard, shown_url
from relay.embedded import EmbeddedServer
from relay.errors import RelayError
from relay.gathered import Standing
from relay.held import VARIABLE, Held
from relay.http import HttpServer, Pages
from relay.keeping import memory_mb, spool_folder
from relay.metrics import shards_registry
from relay.overview import SORTS
from relay.retry import HEALTHY_SECS, Backoff, Policy
from relay.shards import SHARDS_MAX, deal, name_of
from relay.systemd import Watchdog

POLICY = Policy(first_secs=0.5, cap_secs=10.0)
"""How a shard that dies is started again: at once the first time. Its topics stand still meanwhile, so the longest wait
is short, yet long enough that reconnecting stays below what the strictest provider allows an address."""
STOP_SECS = 12.0
"""A shard ends within ten seconds of SIGTERM; one that does not is killed."""
HANG_SECS = 20.0
"""A shard whose loop stands still for so long is killed, and started again like one that died."""
ASK_SECS = 2.0
DRAIN_SECS = 30.0
"""What a former layout has left in a spool gets so long to reach Redis before the shards start."""
CONTACT_SECS = 5.0
LINE_BYTES_MAX = 64 * 1024
_NOT_FOR_SHARDS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Child:
    """One shard's process."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.process: anyio.abc.Process | None = None
        self.backoff = Backoff(POLICY)
        self.state, self.why = "starting", ""
        self.since_ns = time.time_ns()
        self.starts = 0

    def turn(self, state: str, why: str = "") -> None:
        """Note what becomes of it."""
        self.state, self.why, self.since_ns = state, why, time.time_ns()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """`async with started()`, then `serve`; `stop` begins the end.

    `command(number)`: how to start a shard. `write`: takes the lines of the shards, each with its shard's name.
    """

    def __init__(
        self,
        config: Config,
        count: int,
        command: Callable[[int], Sequence[str]],
        event: Callable[..., None],
        write: Callable[[str], None],
    ) -> None:
        self.config, self.count = config, count
        self._command, self._event, self._write = command, event, write
        self.children = [Child(number, name_of(config.name, number)) for number in range(1, count + 1)]
        self.redis_url = ""
        self.server: EmbeddedServer | None = None
        self.run = time.time_ns() // 1_000_000
        self.stopping = False
        self.http: HttpServer | None = None
        self._held = Held(os.getpid())
        self._stop = anyio.Event()
        self._failed: set[int] = set()
        self._samples: dict[str, str] = {}
        self._clock = Clock()

    # -- life ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator["Supervisor"]:
        """Hold what all shards share while inside."""
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            if config.http.enabled:
                registry = shards_registry(lambda: self._samples, self._standings)
                self.http = HttpServer(config.http, Pages(registry, self._ready, self._status, self._scrape))
                stack.callback(self.http.close)
                brought.leave(stack, config, "http_url", self.http.url)
            self.server, self.redis_url = await brought.redis_of(stack, config)
            simulator = await brought.simulator_of(stack, config)
            simulated = {} if simulator is None else simulator.addresses()
            self._held = Held(os.getpid(), self.redis_url if self.server is not None else "", simulated)
            yield self

    async def serve(self) -> None:
        """Run until `stop`, and until every shard has ended. Raises: RelayError where none of them can run."""
        async with anyio.create_task_group() as tasks:
            if self.server is not None:
                tasks.start_soon(self.server.run, self._server_event)
            if self.http is not None:
                tasks.start_soon(self.http.run)
            await self._drain_former()
            async with anyio.create_task_group() as shards:
                for child in self.children:
                    shards.start_soon(self._keep, child)
            tasks.cancel_scope.cancel()
        if len(self._failed) == self.count:
            raise RelayError(f"none of the {self.count} shards can start, for the reasons above")

    def stop(self) -> None:
        """Begin the planned stop of all shards."""
        self.stopping = True
        self._stop.set()
        for child in self.children:
            child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End everything now."""
        for child in self.children:
            child.signal(signal.SIGKILL)
        if self.server is not None:
            self.server.kill()

    def reload(self) -> None:
        """Let each shard read the configuration again."""
        for child in self.children:
            child.signal(signal.SIGHUP)

    def _server_event(self, name: str, text: str) -> None:
        self._event("warning", f"bundled server {name}", why=text)

    # -- the shards ----------------------------------------------------------------------------------------------

    async def _keep(self, child: Child) -> None:
        """Run one shard, again and again, until `stop`."""
        while not self.stopping:
            began = time.monotonic()
            code = await self._once(child)
            lived = time.monotonic() - began
            why = _ending(code)
            if self.stopping:
                child.turn("ended", why)
                if code:
                    self._event("warning", "shard did not end as planned", shard=child.name, why=why)
                return
            if lived >= HEALTHY_SECS:
                child.backoff.healthy()
            elif code > 0 and child.starts == 1:
                self._failed.add(child.number)
                if len(self._failed) == self.count:
                    self.stop()
                    return
            decision = child.backoff.next(None, jitter=random.random(), now_secs=time.monotonic(), now_ns=0)
            child.turn("waiting", why)
            self._event(
                "error", "shard died", shard=child.name, why=why, next=f"started again in {decision.delay_secs:.1f} s"
            )
            with anyio.move_on_after(decision.delay_secs):
                await self._stop.wait()

    async def _once(self, child: Child) -> int:
        """Start a shard and wait for its end; gives the exit code, below 0 for a signal."""
        environ = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_SHARDS}
        environ[VARIABLE] = msgspec.json.encode(self._held).decode()
        watchdog: Watchdog | None = None
        with contextlib.suppress(OSError):
            watchdog = Watchdog(HANG_SECS)
            environ |= watchdog.environ
        self._http_file(child).unlink(missing_ok=True)  # of an earlier process
        child.starts += 1
        child.process = process = await anyio.open_process(
            list(self._command(child.number)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # Ctrl-C in a terminal comes to us alone, we hand it on
        )
        child.turn("up")
        self._event("info", "shard started", shard=child.name, pid=process.pid)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, child, process, said := anyio.Event())
                tasks.start_soon(self._end_late, process)
                if watchdog is not None:
                    tasks.start_soon(self._end_hanging, child, process, watchdog)
                code = await process.wait()
                with anyio.move_on_after(1.0):  # its last words; another process may hold the pipe open
                    await said.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await process.aclose()
            if watchdog is not None:
                watchdog.close()
        return code

    async def _end_hanging(self, child: Child, process: anyio.abc.Process, watchdog: Watchdog) -> None:
        """Kill a shard that says nothing any more: its topics would stand still until somebody looks."""
        await watchdog.until_silent()
        self._event("error", "shard hangs", shard=child.name, silent_secs=watchdog.secs, next="it is killed")
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    async def _end_late(self, process: anyio.abc.Process) -> None:
        """Kill a shard that does not end when it should."""
        await self._stop.wait()
        await anyio.sleep(STOP_SECS)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    async def _read(self, child: Child, process: anyio.abc.Process, said: anyio.Event) -> None:
        """Hand on what a shard says, line by line; `said` is set at its end."""
        assert process.stdout is not None
        rest = b""
        with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            while True:
                *lines, rest = (rest + await process.stdout.receive()).split(b"\n")
                for line in lines:
                    self._write(named(child.name, line.decode("utf-8", "replace")))
                if len(rest) > LINE_BYTES_MAX:
                    self._write(named(child.name, rest.decode("utf-8", "replace")))
                    rest = b""
        if rest:
            self._write(named(child.name, rest.decode("utf-8", "replace")))
        said.set()

    # -- what a former layout has left ---------------------------------------------------------------------------

    async def _drain_former(self) -> None:
        """Bring to Redis what relays of another number of shards, or of none, have left in their spools here."""
        config, count = self.config, self.count
        if not config.spool.enabled:
            return
        shard = Shard(
            0, config.name, config.state_dir, config.all_simulated, config.simulated_types, deal(config, count)
        )
        change = msgspec.structs.replace
        for name in (config.name, *(name_of(config.name, number) for number in range(count + 1, SHARDS_MAX + 1))):
            former = change(
                config,
                name=name,
                state_dir=str(Path(config.state_dir, name)),
                spool=change(config.spool, dir=config.spool.dir or str(Path(config.state_dir, "spool"))),
                journal=change(config.journal, dir=""),
                http=change(config.http, enabled=False),
                standby=change(config.standby, enabled=False),  # it sends what it has and goes
                providers={},
                shard=shard,
            )
            if any(spool_folder(former).glob("*.spool")):
                await self._drain(former)

    async def _drain(self, former: Config) -> None:
        self._event("info", "sending what a former layout has left in its spool", relay=former.name)
        bridge = Bridge(former, self._former_event, held=self._held)
        async with bridge.started(), anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.serve)
            with anyio.move_on_after(CONTACT_SECS) as waited:
                await bridge.sink.ready.wait()
            if not waited.cancelled_caught:
                await bridge.sink.drain(DRAIN_SECS)
            left = waited.cancelled_caught or bridge.outbox.entries()
            bridge.stop()
        if not left:
            for path in spool_folder(former).glob("0*.*"):  # nobody goes on from there
                path.unlink(missing_ok=True)
        else:
            text = "its spool could not be sent; what Redis lacks of it comes when these shards are started again"
            self._event("error", text, relay=former.name)

    def _former_event(self, level: str, text: str, **fields: Any) -> None:
        if level in ("warning", "error"):
            self._event(level, text, **fields)

    # -- the pages -----------------------------------------------------------------------------------------------

    def _http_file(self, child: Child) -> Path:
        return Path(self.config.state_dir, child.name, "http_url")

    async def _ask(self, path: str, query: Mapping[str, Any] | None = None) -> dict[int, Any]:
        """GET a page of every shard; those that do not answer are missing."""
        import httpx2

        found: dict[int, Any] = {}

        async def one(child: Child, client: httpx2.AsyncClient) -> None:
            with contextlib.suppress(OSError, httpx2.HTTPError):
                url = self._http_file(child).read_text().strip()
                answer = await client.get(url + path, params=dict(query or {}))
                if answer.status_code == 200:
                    found[child.number] = answer.text

        async with httpx2.AsyncClient(timeout=ASK_SECS, trust_env=False) as client, anyio.create_task_group() as tasks:
            for child in self.children:
                if child.state == "up":
                    tasks.start_soon(one, child, client)
        return found

    async def _documents(self, query: Mapping[str, str]) -> list[Standing]:
        offset, limit = gathered.page_of(query)
        asked = {key: query[key] for key in ("filter", "provider", "sort") if query.get(key)}
        documents: dict[int, Any] = {}
        first = 0
        while True:
            part = min(offset + limit - first, gathered.TOPICS_MAX)
            for number, text in (await self._ask("/status.json", asked | {"offset": first, "limit": part})).items():
                document = msgspec.json.decode(text)
                if number in documents:
                    documents[number]["topics"] += document["topics"]
                else:
                    documents[number] = document
            first += part
            if first >= min(offset + limit, max((d["topics_matching"] for d in documents.values()), default=0)):
                return self._standings(documents)

    def _standings(self, documents: Mapping[int, Any] | None = None) -> list[Standing]:
        return [
            Standing(
                child.number,
                child.name,
                child.state,
                child.since_ns,
                child.starts,
                child.process.pid if child.process is not None and child.state == "up" else None,
                child.why,
                (documents or {}).get(child.number),
            )
            for child in self.children
        ]

    async def _ready(self) -> tuple[bool, str]:
        return (False, "stopping") if self.stopping else gathered.ready(await self._documents({"limit": "0"}))

    async def _status(self, query: Mapping[str, str]) -> dict[str, Any]:
        if query.get("sort", "name") not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}")
        standings = await self._documents(query)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        own = {
            "run": self.run,
            "now": self._clock(),
            "stopping": self.stopping,
            "redis_url": shown_url(self.redis_url),
            "bundled": self.server is not None,
            "cpu_secs": usage.ru_utime + usage.ru_stime,
            "memory_bytes": int(memory_mb() * 1e6),
        }
        return gathered.status(self.config.name, standings, query, own)

    async def _scrape(self) -> None:
        self._samples = {str(number): text for number, text in (await self._ask("/metrics")).items()}


def named(name: str, line: str) -> str:
    """Put a shard's name to a line of its own: as a field where the line is a JSON object."""
    if line.startswith('{"') and line.endswith("}"):
        return f'{{"shard": "{name}", {line[1:]}'
    return f"{name} | {line}"


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
