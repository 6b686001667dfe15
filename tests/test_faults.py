"""The real thing, broken: kills, cuts, failovers, full disks, under load. A checker looks at every message.

RELAY_TEST_DOSE multiplies how often; each suite has a control that must fail, else it is blind.
"""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import Verdict, check, streams
from relays import Process
from servers import RedisServer, free_port
from sinks import dose

pytestmark = pytest.mark.fault

PRODUCTS = 20
RATE = 5_000
NAMES = [f"trades.P{i:02d}-USD" for i in range(PRODUCTS)]
PRODUCT_NAMES = [f"P{i:02d}-USD" for i in range(PRODUCTS)]

CONFIG = """
name: t
state_dir: {folder}/state
redis: {{url: "{redis}", stream_length_max: 100000000, pubsub: true}}
{extra}
providers:
  coinbase:
    url: ws://127.0.0.1:{port}/
    trades: [{products}]
"""


@contextlib.contextmanager
def provider(rate: float = RATE, products: int = PRODUCTS) -> Iterator[int]:
    """The numbered provider, in a process of its own; gives its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("numbered.py")), str(port), str(rate), str(products)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        yield port
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def write(folder: Path, redis_url: str, port: int, extra: str = "") -> str:
    path = folder / "relay.yaml"
    text = CONFIG.format(folder=folder, redis=redis_url, port=port, extra=extra, products=", ".join(PRODUCT_NAMES))
    path.write_text(text)
    return str(path)


def length(server: RedisServer) -> int:
    with server.client() as client:
        return sum(client.xlen(name) for name in NAMES)


def wait_for_more(server: RedisServer, process: Process, more: int = 200, seconds: float = 20) -> None:
    """Wait until data flows into the server."""
    before = length(server)
    process.until(lambda: length(server) > before + more, seconds)


def verdict_of(server: RedisServer) -> Verdict:
    return check(streams(server.url, NAMES))


def stop(process: Process) -> None:
    assert process.stop(signal.SIGTERM, 12) == 0, process.text[-3000:]


def test_kill_of_the_relay_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    server = RedisServer()
    rounds = dose(20)
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port)
            for _ in range(rounds):
                with Process(tmp_path, "run", "-c", config) as process:
                    wait_for_more(server, process)
                    time.sleep(random.random() * 0.3)
                    process.process.kill()
                    process.process.wait()
            with Process(tmp_path, "run", "-c", config) as process:
                wait_for_more(server, process)
                stop(process)
        verdict = verdict_of(server)
        print(f"\nkill -9 of the relay x {rounds}: {verdict}")
        assert verdict.right, str(verdict)
        assert verdict.reasons.get("relay_down", 0) >= rounds, "every round was under load"
    finally:
        server.close()


def _restart(server: RedisServer, *, folder_kept: bool) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("options", [("--appendonly", "yes", "--appendfsync", "everysec"), ()], ids=["aof", "empty"])
def test_kill_of_the_server_loses_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    server = RedisServer(*options)
    rounds = dose(5)
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port)
            with Process(tmp_path, "run", "-c", config) as process:
                for _ in range(rounds):
                    wait_for_more(server, process, 500)
                    time.sleep(random.random())
                    server.kill()
                    time.sleep(random.random())
                    server.start()
                wait_for_more(server, process, 500)
                stop(process)
        verdict = verdict_of(server)
        print(f"\nkill -9 of the server x {rounds} {options}: {verdict}")
        assert verdict.right, str(verdict)
        assert verdict.gaps == 0, str(verdict)
    finally:
        server.close()
