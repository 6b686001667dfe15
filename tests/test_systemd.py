"""What systemd hears from a running relay."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from relays import Process

from relay.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_relay_says_ready_state_reload_and_stop(manager: socket.socket, tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(f"redis: {{url: {redis_url}}}\nproviders: {{coinbase: {{simulate: true, trades: [BTC-USD]}}}}\n")
    heard: list[str] = []

    def until(text: str) -> None:
        while text not in heard:
            heard.extend(manager.recv(4096).decode().splitlines())

    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with Process(tmp_path, "run", "-c", str(file), **environ) as relay:
        until("READY=1")
        until("STATUS=1 of 1 connections live, Redis flowing")
        until("WATCHDOG=1")
        heard.clear()
        relay.process.send_signal(signal.SIGHUP)
        until("READY=1")
        assert heard[0] == "RELOADING=1" or "RELOADING=1" in heard[: heard.index("READY=1")]
        assert any(line.startswith("MONOTONIC_USEC=") and int(line[15:]) > 0 for line in heard)
        relay.process.send_signal(signal.SIGTERM)
        until("STOPPING=1")
        assert relay.process.wait(10) == 0


def test_nothing_is_said_where_nobody_listens(tmp_path: Path) -> None:
    silent = Notifier({})
    assert not silent and silent.watchdog_secs == 0
    silent.tell("READY=1")
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "2000000"})
    gone.tell("READY=1")
    assert gone and gone.watchdog_secs == 2.0
    other = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    assert Notifier(other).watchdog_secs == 0, "meant for another process"


@pytest.mark.skipif(not hasattr(socket, "SOCK_CLOEXEC"), reason="abstract sockets are Linux's")
def test_abstract_socket_is_understood() -> None:
    name = f"relay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).tell("READY=1", "STATUS=x")
        assert sock.recv(100) == b"READY=1\nSTATUS=x"
