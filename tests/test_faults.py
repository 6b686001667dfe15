"""The real thing, broken: kills, cuts, failovers, full disks, under load. A checker looks at every message.

RELAY_TEST_DOSE multiplies how often; each suite has a control that must fail, else it is blind.
"""

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import redis
from checker import Verdict, check, streams
from relays import ROOT, Process
from servers import Proxy, RedisServer, free_port
from sinks import dose

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("timed")]

PRODUCTS = 20
RATE = float(os.environ.get("RELAY_TEST_RATE", "5000"))
"""Messages a second; RELAY_TEST_RATE for runs by hand."""
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


class Provider:
    """The numbered provider, in a process of its own."""

    def __init__(self, rate: float, products: int) -> None:
        self.port = free_port()
        script = str(Path(__file__).with_name("numbered.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.port), str(rate), str(products)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            text=True,
        )
        assert self._line() == "listening"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def play(self, fault: str) -> int:
        """Play a fault from now on. Gives the connects so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(fault + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def faulty(rate: float = RATE, products: int = PRODUCTS) -> Iterator[Provider]:
    """The numbered provider, with faults on request."""
    numbered = Provider(rate, products)
    try:
        yield numbered
    finally:
        numbered.close()


@contextlib.contextmanager
def provider(rate: float = RATE, products: int = PRODUCTS) -> Iterator[int]:
    """The numbered provider; gives its port."""
    with faulty(rate, products) as numbered:
        yield numbered.port


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
    assert "not accounted for" not in process.text, "the laws of conservation hold"


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


class Switch:
    """One address that leads to this server or that one, as a failover would have it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=1)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self.pairs.append((client, server))
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        raise OSError
                    key.data.sendall(data)
        client.close()
        server.close()

    def cut(self) -> None:
        """Cut every connection."""
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        self.cut()


def _following(replica: RedisServer, master: RedisServer) -> None:
    with replica.client() as client:
        client.replicaof("127.0.0.1", master.port)
        end = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < end
            time.sleep(0.02)


def test_failover_to_a_replica_that_lagged_loses_nothing(tmp_path: Path) -> None:
    master, replica = RedisServer("--repl-diskless-sync-delay", "0"), RedisServer("--repl-diskless-sync-delay", "0")
    switch = Switch(master.port)
    rounds, behind = dose(3), 0
    try:
        with provider() as port, Process(tmp_path, "run", "-c", write(tmp_path, switch.url, port)) as process:
            for _ in range(rounds):
                _following(replica, master)
                wait_for_more(master, process, 500)
                with replica.client() as client:
                    client.replicaof("NO", "ONE")
                time.sleep(random.uniform(0.1, 0.8))
                behind += length(master) - length(replica)
                master.kill()
                switch.target = replica.port
                switch.cut()
                wait_for_more(replica, process, 500)
                master.start()
                master, replica = replica, master
            stop(process)
        verdict = verdict_of(master)
        print(f"\nfailover x {rounds}, {behind} acknowledged entries were behind: {verdict}")
        assert behind > 0, "each replica had lost something"
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        switch.close()
        master.close()
        replica.close()


def test_stopped_server_gets_everything_once(tmp_path: Path) -> None:
    server = RedisServer()
    rounds = dose(3)
    try:
        with provider() as port, Process(tmp_path, "run", "-c", write(tmp_path, server.url, port)) as process:
            for number in range(rounds):
                wait_for_more(server, process)
                server.signal(signal.SIGSTOP)
                time.sleep(6.5 if number == 0 else random.uniform(1, 3 if rounds <= 3 else 30))
                server.signal(signal.SIGCONT)
            wait_for_more(server, process)
            stop(process)
        verdict = verdict_of(server)
        print(f"\nSIGSTOP of the server x {rounds}: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        server.close()


async def test_replies_that_are_cut_off_repeat_nothing(tmp_path: Path) -> None:
    server = RedisServer()
    proxy = Proxy(server.port)
    cuts = dose(200)
    calls = 0

    def fault() -> str | None:
        nonlocal calls
        calls += 1
        return "cut" if calls % 3 == 0 and proxy.faults < cuts else None

    proxy.fault = fault
    try:
        with provider() as port:
            async with anyio.create_task_group() as tasks:
                await tasks.start(proxy.run)
                with Process(tmp_path, "run", "-c", write(tmp_path, proxy.url, port)) as process:
                    with anyio.fail_after(20 + cuts):
                        while proxy.faults < cuts:
                            assert process.process.poll() is None, process.text
                            await anyio.sleep(0.02)
                    await anyio.sleep(0.2)
                    process.process.send_signal(signal.SIGTERM)
                    assert await anyio.to_thread.run_sync(process.process.wait, 12) == 0
                tasks.cancel_scope.cancel()
        verdict = verdict_of(server)
        print(f"\nreplies cut off x {proxy.faults}: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        server.close()


def test_sigterm_at_any_instant_keeps_all_for_the_next_start(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    rounds = dose(10)
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port)
            for number in range(rounds):
                down = number % 4 == 3
                with Process(tmp_path, "run", "-c", config) as process:
                    wait_for_more(server, process)
                    if down:
                        server.kill()
                    time.sleep(random.random())
                    begun = time.monotonic()
                    stop(process)
                    assert time.monotonic() - begun < 10
                    if down:
                        assert "waits in the spool" in process.text
                        server.start()
            with Process(tmp_path, "run", "-c", config) as process:
                wait_for_more(server, process)
                stop(process)
        verdict = verdict_of(server)
        print(f"\nSIGTERM x {rounds}: {verdict}")
        assert verdict.right, str(verdict)
    finally:
        server.close()


SMALL = """
outbox: {bytes_max: 1000000, topic_bytes_max: 100000}
spool: {segment_bytes: 1000000, bytes_max: 1000000000}
"""


def test_long_outage_goes_to_the_spool_and_comes_back_in_order(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes")
    try:
        with (
            provider(10_000) as port,
            Process(tmp_path, "run", "-c", write(tmp_path, server.url, port, SMALL)) as process,
        ):
            wait_for_more(server, process)
            server.kill()
            time.sleep(4 * dose(1))
            server.start()
            behind = 40_000 * dose(1)
            wait_for_more(server, process, behind, 60)
            stop(process)
        verdict = verdict_of(server)
        print(f"\noutage over the memory's bounds: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        server.close()


def test_one_refused_topic_goes_to_the_spool_and_stops_nobody(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        with provider(10_000) as port, server.client() as client:
            client.set(NAMES[0], "no stream")
            with Process(tmp_path, "run", "-c", write(tmp_path, server.url, port, SMALL)) as process:
                others = NAMES[1:]
                process.until(lambda: client.xlen(NAMES[1]) > 2000, 20)
                assert "Redis refuses this topic" in process.text
                client.delete(NAMES[0])
                process.until(lambda: client.type(NAMES[0]) == "stream" and client.xlen(NAMES[0]) > 3000, 30)
                stop(process)
        verdict = verdict_of(server)
        print(f"\none refused topic, {len(others)} others: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        server.close()


def spool_state(server: RedisServer) -> str:
    """What was said last of the spool; by the status topic, for the log writes a few of the same and counts the rest.

    A spool that finds room by letting go of its own old segments recovers, and fills that room too: it goes to and fro.
    """
    with server.client() as client:
        codes = [json.loads(fields["data"]).get("code", "") for _, fields in client.xrevrange("status.t")]
    return next((code for code in codes if code in ("spool_degraded", "spool_recovered")), "")


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "6m") -> Iterator[Path]:
    """A tmpfs of its own."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return path


def test_full_disk_of_the_relay_stops_nothing_and_is_said(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        with provider() as port, small_disk(tmp_path / "disk") as disk:
            extra = f"spool: {{dir: {disk}, segment_bytes: 500000, bytes_max: 2000000}}"
            with Process(tmp_path, "run", "-c", write(tmp_path, server.url, port, extra)) as process:
                for _ in range(dose(2)):
                    wait_for_more(server, process)
                    filler = fill(disk)
                    process.until(lambda: spool_state(server) == "spool_degraded", 20)
                    wait_for_more(server, process, 5000)
                    filler.unlink()
                    process.until(lambda: spool_state(server) == "spool_recovered", 3)
                stop(process)
        verdict = verdict_of(server)
        print(f"\ndisk of the relay full x {dose(2)}: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        server.close()


def refusing(server: RedisServer) -> bool:
    with server.client() as client, contextlib.suppress(redis.ResponseError):
        client.set("probe", "1")
        return False
    return True


def test_full_disk_of_the_server_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        server = RedisServer("--appendonly", "yes", "--dir", str(disk))
        try:
            with provider(2_000) as port, Process(tmp_path, "run", "-c", write(tmp_path, server.url, port)) as process:
                for _ in range(dose(2)):
                    wait_for_more(server, process)
                    filler = fill(disk)
                    process.until(lambda: refusing(server), 20)
                    time.sleep(0.3)
                    filler.unlink()
                    wait_for_more(server, process, 1000)
                assert "MISCONF" in process.text
                stop(process)
            verdict = verdict_of(server)
            print(f"\ndisk of the server full x {dose(2)}: {verdict}")
            assert verdict.right and verdict.gaps == 0, str(verdict)
        finally:
            server.close()


# -- the controls: what every library does by default must fail here ------------------------------------------------


def test_control_a_plain_writer_fails_the_same_checks(tmp_path: Path) -> None:
    """redis-py as it comes and `*` ids: a kill loses silently, a reply that is cut off stores twice."""
    server = RedisServer()
    try:
        with provider() as port:
            for _ in range(3):
                process = naive(port, server.url)
                before = length(server)
                end = time.monotonic() + 15
                while length(server) < before + 1000:
                    assert time.monotonic() < end and process.poll() is None
                    time.sleep(0.02)
                process.kill()
                process.wait()
        verdict = verdict_of(server)
        print(f"\ncontrol, kill -9: {verdict}")
        assert verdict.lost > 0, str(verdict)
    finally:
        server.close()


def naive(port: int, url: str) -> "subprocess.Popen[bytes]":
    script = str(Path(__file__).with_name("naive.py"))
    return subprocess.Popen([sys.executable, script, str(port), url], start_new_session=True)


async def test_control_a_plain_writer_stores_twice(tmp_path: Path) -> None:
    server = RedisServer()
    proxy = Proxy(server.port, match=b"XADD")
    calls = 0

    def fault() -> str | None:
        nonlocal calls
        calls += 1
        return "cut" if calls % 50 == 0 else None

    proxy.fault = fault
    process = None
    try:
        with provider() as port:
            async with anyio.create_task_group() as tasks:
                await tasks.start(proxy.run)
                process = naive(port, proxy.url)
                with anyio.fail_after(20):
                    while proxy.faults < 5:  # noqa: ASYNC110 -- another process makes the calls
                        await anyio.sleep(0.02)
                process.kill()
                process.wait()
                tasks.cancel_scope.cancel()
        verdict = verdict_of(server)
        print(f"\ncontrol, replies cut off: {verdict}")
        assert verdict.twice > 0, str(verdict)
    finally:
        if process is not None:
            process.kill()
            process.wait()
        server.close()


def test_control_without_a_spool_a_lost_server_leaves_gaps(tmp_path: Path) -> None:
    """The same kill as above, the spool off: what is lost is said, and it is lost."""
    server = RedisServer()
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port, "spool: {enabled: false}")
            with Process(tmp_path, "run", "-c", config) as process:
                wait_for_more(server, process, 500)
                server.kill()
                server.start()
                wait_for_more(server, process, 500)
                stop(process)
        verdict = verdict_of(server)
        print(f"\ncontrol, no spool: {verdict}")
        assert verdict.gaps > 0 and verdict.right, str(verdict)
    finally:
        server.close()
