"""A whole relay for tests: in this process, or as `relay run` in one of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import redis

from relay.bridge import Bridge
from relay.config import Config, load
from relay.providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[1]


def config_of(text: str, folder: Path, **environ: str) -> Config:
    return load(
        f"state_dir: {folder}/state\n{text}", "test.yaml", environ=environ, read_file=_unread, providers=PROVIDERS
    )


def _unread(path: str) -> str:
    raise FileNotFoundError(path)


class Running:
    """A bridge that runs in this process, and the lines it has logged."""

    def __init__(self, bridge: Bridge, lines: list[tuple[str, str, dict[str, Any]]]) -> None:
        self.bridge, self.lines = bridge, lines

    def said(self, text: str) -> bool:
        return any(text in line[1] or text in str(line[2]) for line in self.lines)


@contextlib.asynccontextmanager
async def relay_of(config: Config, make: type[Bridge] = Bridge, **kwargs: Any) -> AsyncIterator[Running]:
    """Run a bridge while inside; stop it as SIGTERM would."""
    lines: list[tuple[str, str, dict[str, Any]]] = []
    bridge = make(config, lambda level, text, **fields: lines.append((level, text, fields)), **kwargs)
    async with bridge.started(), anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.serve)
        try:
            yield Running(bridge, lines)
        finally:
            bridge.stop()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 -- what is waited for lies in Redis or another process
            await anyio.sleep(0.01)


def entries(url: str, topic: str) -> list[tuple[str, dict[str, Any]]]:
    """All entries of a stream: (id, message)."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return [(entry_id, json.loads(fields["data"])) for entry_id, fields in client.xrange(topic)]


def topics(url: str, prefix: str = "") -> set[str]:
    """Names in the relay's own list of topics."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return set(client.hkeys(f"{prefix}relay:topics"))


def keys(url: str) -> set[str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return set(client.keys("*"))


class Process:
    """`relay` in a process of its own; what it prints is collected in a file."""

    COMMAND = (sys.executable, "-m", "relay")

    def __init__(self, folder: Path, *args: str, **environ: str) -> None:
        self.folder = folder
        self.out = folder / "relay.out"
        with self.out.open("ab") as sink:
            self.process = subprocess.Popen(
                [*self.COMMAND, *args],
                cwd=folder,
                env={k: v for k, v in os.environ.items() if not k.startswith("RELAY_")}
                | {"PYTHONPATH": str(ROOT)}
                | environ,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        return self.out.read_text()

    def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s; it printed:\n{self.text}"
            assert self.process.poll() is None or condition(), f"it has ended; it printed:\n{self.text}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT, seconds: float = 10.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)

    @property
    def url(self) -> str:
        """The Redis that it names: the last one, where it was started twice in this folder."""
        return [line for line in self.text.splitlines() if "Redis:" in line][-1].split()[1]
