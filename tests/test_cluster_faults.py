"""A cluster under load through the whole relay: slots move and primaries are killed. A checker looks at every message.

RELAY_TEST_DOSE multiplies how often. The control, redis-py's own cluster client with `*` ids, must fail.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import redis
from checker import Verdict, check
from clusters import Cluster, Node
from relays import Process
from sinks import dose
from test_faults import NAMES, provider, stop, write

from relay.sink.slots import slot_of

pytestmark = pytest.mark.fault


def owners(cluster: Cluster) -> dict[str, Node]:
    return {name: cluster.owner(slot_of(name)) for name in NAMES}


def length(cluster: Cluster) -> int:
    """Entries in all streams; -1 while a node is away."""
    try:
        return sum(int(node.call("XLEN", name)) for name, node in owners(cluster).items())
    except redis.RedisError:
        return -1


def flows(cluster: Cluster) -> None:
    """Wait until every topic's node is up and data goes to them."""
    before = length(cluster)
    cluster.until(lambda: length(cluster) > before + 500, 60)


def verdict_of(cluster: Cluster) -> Verdict:
    verdict = Verdict()
    for name, node in owners(cluster).items():
        with redis.Redis(port=node.port) as client:
            entries = [(entry_id.decode(), fields[b"data"]) for entry_id, fields in client.xrange(name)]
        check({name: entries}, verdict)
    return verdict


def trouble(
    cluster: Cluster,
    moves: int,
    kills: int,
    flows: Callable[[], None],
    kill: Callable[[Node], Node] | None = None,
    seed: int = 9,
) -> None:
    """Move slots of topics to and fro and kill primaries, in turn; `flows` waits until data does."""
    chance = random.Random(seed)
    done = 0
    for number in range(moves):
        slot = slot_of(chance.choice(NAMES))
        home = cluster.owner(slot)
        cluster.move(slot, chance.choice([node for node in cluster.primaries() if node is not home]))
        flows()
        if (number + 1) * kills // moves > done:
            done += 1
            time.sleep(chance.random() * 0.3)
            (kill or cluster.kill)(chance.choice(cluster.primaries()))
            flows()
            cluster.until(cluster.whole, 60)
    assert done == kills


def test_slot_moves_and_kills_of_primaries_lose_nothing(tmp_path: Path) -> None:
    for number in range(dose(1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        _moves_and_kills(folder, min(20, dose(20)), min(5, dose(5)), number)


def _moves_and_kills(tmp_path: Path, moves: int, kills: int, number: int) -> None:
    cluster = Cluster()
    try:
        with provider() as port:
            with Process(tmp_path, "run", "-c", write(tmp_path, cluster.url, port)) as process:

                def written() -> None:
                    before = length(cluster)
                    process.until(lambda: length(cluster) > before + 500, 60)

                written()
                trouble(cluster, moves, kills, written, seed=number)
                stop(process)
        verdict = verdict_of(cluster)
        print(f"\ncluster {number}, {moves} slot moves and {kills} kills of primaries: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        cluster.close()


def test_primaries_that_hang_and_come_back_lose_nothing(tmp_path: Path) -> None:
    """They go on as primaries until they hear of the other one, and what they were sent meanwhile is gone."""
    hangs = dose(5)
    cluster = Cluster()
    try:
        with provider() as port:
            with Process(tmp_path, "run", "-c", write(tmp_path, cluster.url, port)) as process:

                def written() -> None:
                    before = length(cluster)
                    process.until(lambda: length(cluster) > before + 500, 60)

                written()
                trouble(cluster, hangs, hangs, written, cluster.hang)
                stop(process)
        verdict = verdict_of(cluster)
        print(f"\ncluster, {hangs} primaries stopped and continued: {verdict}")
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        cluster.close()


def test_the_control_fails(tmp_path: Path) -> None:
    cluster = Cluster()
    script = str(Path(__file__).with_name("naive.py"))
    try:
        with provider() as port:
            process = subprocess.Popen([sys.executable, script, str(port), cluster.url], start_new_session=True)
            try:
                flows(cluster)
                for _ in range(4):  # a replica that has heard everything is luck
                    trouble(cluster, dose(20), dose(5), partial(flows, cluster))
                    verdict = verdict_of(cluster)
                    if verdict.lost or verdict.twice or verdict.disorder:
                        break
            finally:
                process.kill()
                process.wait()
        print(f"\nthe control: {verdict}")
        assert verdict.lost or verdict.twice or verdict.disorder, str(verdict)
    finally:
        cluster.close()
