"""Everything breaks at once: relays, server, the wire between, the provider, at random and on top of each other.

What a suite of one fault each cannot see: a restart in the midst of healing, a stop while the server sleeps, a server
that loses all while the relay is away. RELAY_TEST_SEED plays one sequence again, RELAY_TEST_DOSE plays more of them.
The controls are those of test_faults.
"""

import contextlib
import heapq
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from checker import Verdict, check, streams
from clusters import Cluster
from relays import ROOT, Process
from servers import RedisServer
from sinks import dose
from test_cluster_faults import flows
from test_cluster_faults import verdict_of as cluster_verdict
from test_faults import NAMES, Provider, Switch, faulty, length, write

from relay.sink.slots import slot_of

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("timed")]

SECS = 15.0
"""How long things break."""
RATE = 4000.0
PROVIDERS_FAULTS = (
    "drop", "close", "storm", "refuse", "hang", "stall", "mute", "slow", "garbage", "jump", "repeat", "resend",
)  # fmt: skip
"""Not `reorder`: what is late counts as missing. Not `reset`: while the relay is down it looks like repeats."""

Fault = Callable[[], Callable[[], object]]
"""Breaks something; gives what mends it."""


class Relay:
    """One relay's process."""

    def __init__(self, folder: Path, redis_url: str, port: int, extra: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.config = folder, write(folder, redis_url, port, extra.format(folder=folder))
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.process = Process(self.folder, "run", "-c", self.config)
        self.starts += 1

    def kill(self) -> Callable[[], object]:
        self.process.process.kill()
        self.process.process.wait()
        return self.start

    def stop(self) -> Callable[[], object]:
        self.process.process.send_signal(signal.SIGTERM)

        def start() -> None:
            self.ended()
            self.start()

        return start

    def ended(self) -> None:
        """It was asked to end, and does."""
        # one that has only just begun has nothing to say goodbye to
        assert self.process.process.wait(12) in (0, -signal.SIGTERM), self.process.text[-3000:]
        assert "not accounted for" not in self.process.text, "the laws of conservation hold"

    def freeze(self) -> Callable[[], object]:
        self.process.process.send_signal(signal.SIGSTOP)
        return lambda: self.process.process.send_signal(signal.SIGCONT)

    def faults(self) -> list[Fault]:
        return [self.kill, self.stop, self.freeze]


class Server(RedisServer):
    """The server, and what it may do."""

    def __init__(self) -> None:
        super().__init__("--appendonly", "yes", "--appendfsync", "everysec")

    def die(self) -> Callable[[], object]:
        self.kill()
        return self.start

    def lose_all(self) -> Callable[[], object]:
        self.kill()
        shutil.rmtree(Path(self.folder, "appendonlydir"), ignore_errors=True)
        return self.start

    def freeze(self) -> Callable[[], object]:
        self.signal(signal.SIGSTOP)
        return lambda: self.signal(signal.SIGCONT)

    def flush(self) -> Callable[[], object]:
        with contextlib.suppress(redis.RedisError), self.client(socket_timeout=2) as client:
            client.flushall()
        return lambda: None

    def faults(self) -> list[Fault]:
        return [self.die, self.lose_all, self.freeze, self.flush]


class Wire(Switch):
    """What leads to the server."""

    def snap(self) -> Callable[[], object]:
        self.cut()
        return lambda: None

    def unplug(self) -> Callable[[], object]:
        target, self.target = self.target, 1
        self.cut()

        def plug() -> None:
            self.target = target

        return plug

    def faults(self) -> list[Fault]:
        return [self.snap, self.unplug]


def bent(provider: Provider, chance: random.Random) -> list[Fault]:
    def bend() -> Callable[[], object]:
        provider.play(chance.choice(PROVIDERS_FAULTS))
        return lambda: provider.play("none")

    return [bend]


def broken(parts: dict[str, list[Fault]], chance: random.Random, secs: float = SECS) -> list[str]:
    """Break one part after the other, whether the others are whole or not; mend all. Gives what happened when."""
    log: list[str] = []
    mends: list[tuple[float, str, Callable[[], object]]] = []
    begun, next_at = time.monotonic(), 0.0
    while mends or time.monotonic() < begun + secs:
        now = time.monotonic()
        whole = [part for part in parts if all(part != name for _, name, _ in mends)]
        if now < begun + secs and now >= next_at and whole:
            part = chance.choice(whole)
            fault = chance.choice(parts[part])
            log.append(f"{now - begun:.2f} {part}: {fault.__name__}")
            heapq.heappush(mends, (now + chance.choice((0.0, 0.2, 0.7, 2.0)), part, fault()))
            next_at = time.monotonic() + chance.expovariate(2.0)
        while mends and mends[0][0] <= time.monotonic():
            _, part, mend = heapq.heappop(mends)
            mend()
            log.append(f"{time.monotonic() - begun:.2f} {part} is whole")
        time.sleep(0.01)
    return log


def grown(server: RedisServer, more: int = 500, seconds: float = 60) -> None:
    """Wait until data flows into the server."""
    before, end = length(server), time.monotonic() + seconds
    while length(server) < before + more:
        assert time.monotonic() < end, "nothing is written any more"
        time.sleep(0.05)


def shaken(cluster: Cluster, chance: random.Random) -> list[Fault]:
    """What happens to a cluster: slots move, primaries die or hang until they have a successor, or come back empty."""

    def move() -> None:
        slot = slot_of(chance.choice(NAMES))
        home = cluster.owner(slot)
        cluster.move(slot, chance.choice([node for node in cluster.primaries() if node is not home]))

    def lose() -> None:
        node = chance.choice(cluster.primaries())
        node.kill()
        node.start()

    def done(what: Callable[[], object]) -> Fault:
        def fault() -> Callable[[], object]:
            what()
            return lambda: cluster.until(cluster.whole, 60)

        return fault

    def kill() -> None:
        cluster.kill(chance.choice(cluster.primaries()))

    def hang() -> None:
        cluster.hang(chance.choice(cluster.primaries()))

    return [done(move), done(kill), done(hang), done(lose)]


def is_right(verdict: Verdict, seed: int, log: list[str], *relays: Relay) -> None:
    print(f"\nseed {seed}, {len(log)} events, {[relay.starts for relay in relays]} starts: {verdict}")
    assert verdict.right, f"{verdict}\n" + "\n".join(log)


@contextlib.contextmanager
def served() -> Iterator[tuple[Server, Wire]]:
    with contextlib.closing(Server()) as server, contextlib.closing(Wire(server.port)) as wire:
        yield server, wire


@contextlib.contextmanager
def told(log: list[str], *relays: Relay) -> Iterator[None]:
    """End the relays; where something went wrong, tell the story."""
    try:
        yield
    except BaseException:
        print(*log, *(relay.process.text[-6000:] for relay in relays), sep="\n")
        raise
    finally:
        for relay in relays:
            relay.process.__exit__()


def seeds(count: int = 2) -> list[int]:
    given = os.environ.get("RELAY_TEST_SEED")
    return [int(given)] if given else list(range(1, 1 + dose(count)))


@pytest.mark.parametrize("seed", seeds())
def test_one_relay_loses_nothing_that_it_accepted(seed: int, tmp_path: Path) -> None:
    chance, log = random.Random(seed), []
    with faulty(RATE) as provider, served() as (server, wire):
        relay = Relay(tmp_path, wire.url, provider.port)
        with told(log, relay):
            grown(server)
            parts = {"relay": relay.faults(), "server": server.faults(), "wire": wire.faults()}
            log += broken(parts | {"provider": bent(provider, chance)}, chance)
            grown(server)
            grown(server)
            relay.stop()
            relay.ended()
            is_right(check(streams(server.url, NAMES)), seed, log, relay)


@pytest.mark.parametrize("seed", seeds(1))
def test_recording_gives_again_what_was_published(seed: int, tmp_path: Path) -> None:
    """Whatever broke, but a relay that was killed: the last 0.1 s before that are in no recording."""
    chance, log = random.Random(seed), []
    with faulty(RATE) as provider, served() as (server, wire):
        relay = Relay(tmp_path, wire.url, provider.port, "journal: {{dir: {folder}/journal}}")
        with told(log, relay):
            grown(server)
            parts = {"relay": [relay.stop, relay.freeze], "server": server.faults(), "wire": wire.faults()}
            log += broken(parts | {"provider": bent(provider, chance)}, chance)
            grown(server)
            grown(server)
            relay.stop()
            relay.ended()
            replay = [*Process.COMMAND, "replay", str(tmp_path / "journal"), "--diff", "--url", server.url]
            found = subprocess.run(
                replay, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
            )
            print(f"\nseed {seed}, {len(log)} events, {relay.starts} starts: {found.stdout.decode()[-1000:]}")
            assert found.returncode == 0, found.stderr.decode()


STANDBY = "standby: {{enabled: true, lease_secs: 0.6, ring_secs: 10}}"


@pytest.mark.parametrize("seed", seeds())
def test_two_nodes_hand_over_without_a_hole_or_a_repeat(seed: int, tmp_path: Path) -> None:
    """Both nodes break too, at times together. What no node has heard is said; the rest is stored once."""
    chance, log = random.Random(seed), []
    with faulty(RATE) as provider, served() as (server, wire):
        nodes = [Relay(tmp_path / name, wire.url, provider.port, STANDBY) for name in ("a", "b")]
        with told(log, *nodes):
            grown(server)
            parts = {f"node {node.folder.name}": node.faults() for node in nodes}
            parts |= {"server": server.faults(), "wire": wire.faults(), "provider": bent(provider, chance)}
            log += broken(parts, chance)
            grown(server)
            grown(server)
            for node in nodes:
                node.stop()
                node.ended()
            is_right(check(streams(server.url, NAMES)), seed, log, *nodes)


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("count", [1, 2])
def test_cluster_loses_nothing_that_was_accepted(count: int, seed: int, tmp_path: Path) -> None:
    """One relay, or two nodes, on a cluster that is shaken."""
    chance, log = random.Random(seed), []
    with faulty(2000) as provider, contextlib.closing(Cluster()) as cluster:
        extra = STANDBY if count == 2 else ""
        relays = [Relay(tmp_path / str(number), cluster.url, provider.port, extra) for number in range(count)]
        with told(log, *relays):
            flows(cluster)
            parts = {f"relay {relay.folder.name}": relay.faults() for relay in relays}
            parts |= {"cluster": shaken(cluster, chance), "provider": bent(provider, chance)}
            log += broken(parts, chance)
            flows(cluster)
            flows(cluster)
            for relay in relays:
                relay.stop()
                relay.ended()
            is_right(cluster_verdict(cluster), seed, log, *relays)


@pytest.mark.parametrize("how", ["cut off", "asleep"])
def test_writer_is_superseded_though_redis_has_lost_the_epoch(how: str, tmp_path: Path) -> None:
    """It is away while Redis loses all, another node takes over and dies. Its turn is over all the same."""
    with faulty(RATE) as provider, served() as (server, wire), contextlib.closing(Wire(server.port)) as other_wire:
        nodes = [
            Relay(tmp_path / name, one.url, provider.port, STANDBY) for name, one in (("a", wire), ("b", other_wire))
        ]
        with told([], *nodes):
            grown(server)
            with server.client() as client:
                pid = int(client.hget("relay:active:t", "pid"))
            writer, other = sorted(nodes, key=lambda node: node.process.process.pid != pid)
            time.sleep(2)  # the other one may take over from here on
            mend = writer.freeze() if how == "asleep" else (wire if writer is nodes[0] else other_wire).unplug()
            server.flush()
            grown(server, 4000)
            other.kill()
            mend()
            grown(server, 4000)
            writer.stop()
            writer.ended()
            verdict = check(streams(server.url, NAMES))
            print(f"\n{how}: {verdict}")
            assert verdict.right, str(verdict)
