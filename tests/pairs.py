"""Two relays of one name on one Redis, each a process with a folder of its own: one writes, the other stands by."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from relays import Process
from sentinels import Service
from servers import RedisServer, free_port

CONFIG = """
name: t
state_dir: {folder}/state
redis: {{url: "{redis}", stream_length_max: 100000000, pubsub: true{options}}}
http: {{enabled: true, port: {http}}}
standby: {{enabled: true, lease_secs: {lease}, ring_secs: {ring}}}
{extra}
providers:
  coinbase:
    url: ws://127.0.0.1:{port}/
    {subscribed}
"""


class Node:
    """One of the two. `process` is None while it is down."""

    def __init__(self, folder: Path, text: str, script: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.script = str(Path(__file__).with_name(script)) if script else ""
        self.http = free_port()
        self.path = folder / "relay.yaml"
        self.path.write_text(text.replace("{folder}", str(folder)).replace("{http}", str(self.http)))
        self.process: Process | None = None

    def start(self) -> None:
        kind = type("Scripted", (Process,), {"COMMAND": (sys.executable, self.script)}) if self.script else Process
        self.process = kind(self.folder, "run", "-c", str(self.path))

    @property
    def text(self) -> str:
        return (self.folder / "relay.out").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.process.kill()
        self.process.process.wait()
        self.process = None

    def stop(self) -> None:
        assert self.process is not None
        assert self.process.stop(signal.SIGTERM, 12) == 0, self.text[-3000:]
        self.process = None

    def standby(self) -> dict[str, Any]:
        """What its status document says of its role; empty where it does not answer."""
        with (
            contextlib.suppress(OSError, ValueError),
            urlopen(f"http://127.0.0.1:{self.http}/status.json", timeout=5) as r,
        ):
            found: dict[str, Any] = json.loads(r.read())
            return {**found["standby"], "whole": found}
        return {}

    def until(self, condition: Any, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until its role document is as wanted."""
        end = time.monotonic() + seconds
        while True:
            found = self.standby()
            if found and condition(found):
                return found
            assert self.process is not None
            assert self.process.process.poll() is None, self.text[-3000:]
            assert time.monotonic() < end, f"{found}\n{self.text[-3000:]}"
            time.sleep(0.02)

    def until_active(self) -> dict[str, Any]:
        return self.until(lambda found: found["role"] == "active")

    def until_ready(self) -> dict[str, Any]:
        """Wait until it stands by and could take over."""
        return self.until(lambda found: found["role"] != "active" and found["ready"])


@contextlib.contextmanager
def pair(
    folder: Path,
    server: "RedisServer | Service",
    port: int,
    subscribed: str,
    *,
    options: str = "",
    lease: float = 0.6,
    ring: float = 5.0,
    extra: str = "",
    script: str = "",
) -> Iterator[tuple[Node, Node]]:
    """Two nodes, the first of which writes and the second of which is ready to take over.

    `options`: more of the section `redis`.
    """
    text = CONFIG.format(
        folder="{folder}", redis=server.url, http="{http}", port=port, lease=lease, ring=ring, extra=extra,
        subscribed=subscribed, options=options,
    )  # fmt: skip
    nodes = Node(folder / "a", text, script), Node(folder / "b", text, script)
    try:
        nodes[0].start()
        nodes[0].until_active()
        nodes[1].start()
        nodes[1].until_ready()
        yield nodes
    finally:
        for node in nodes:
            if node.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    node.send(signal.SIGCONT)
                    node.send(signal.SIGKILL)
                node.process.process.wait()
