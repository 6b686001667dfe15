"""Active and standby on a cluster under load: nodes are killed or hang, and the writer with them.

RELAY_TEST_DOSE multiplies how often. Controls: `test_standby_faults`, `test_cluster_faults`.
"""

import random
import time
from pathlib import Path

import pytest
from clusters import Cluster
from pairs import pair
from sinks import dose
from test_cluster_faults import flows, verdict_of
from test_faults import NAMES, provider
from test_standby_faults import LEASE, TRADES, writer_of

from relay.sink.slots import SLOTS, slot_of

pytestmark = pytest.mark.fault

ALONE = next(name for name in NAMES if slot_of(name) < SLOTS // 4)
"""A topic on the one node of four that holds none of the relay's own keys: a takeover needs nothing of it."""


def test_nodes_and_the_writer_go_together(tmp_path: Path) -> None:
    """In turn the lease's node: killed, hung, killed with the writer; then another node, killed with the writer."""
    cluster = Cluster(primaries=4, replicas=4)
    homes = {cluster.owner(slot_of(f"relay:{key}")) for key in ("lease:t", "active:t", "epoch", "topics")}
    assert cluster.owner(slot_of(ALONE)) not in homes
    rounds = dose(4)
    try:
        with provider(2000) as port, pair(tmp_path, cluster, port, TRADES, lease=LEASE, ring=20) as nodes:
            for number in range(rounds):
                writer = writer_of(nodes)
                flows(cluster)
                time.sleep(random.random() * LEASE)
                home = cluster.owner(slot_of("relay:lease:t"))
                match number % 4:
                    case 0:
                        cluster.kill(home)
                    case 1:
                        cluster.hang(home)
                    case 2:
                        writer.kill()
                        cluster.kill(home)
                        writer.start()
                    case 3:
                        writer.kill()
                        cluster.kill(cluster.owner(slot_of(ALONE)))
                        writer.start()
                flows(cluster)
                cluster.until(cluster.whole, 60)
            writer = writer_of(nodes)
            nodes[writer is nodes[0]].stop()
            writer.stop()
            texts = nodes[0].text + nodes[1].text
        verdict = verdict_of(cluster)
        print(f"\nnodes of a cluster killed or hung, half of the times with the writer, {rounds} times: {verdict}")
        assert texts.count("taken over: this node writes") >= 1 + rounds // 4
        assert texts.count("taking over: waits for a node") >= rounds // 4
        assert "not accounted for" not in texts, "the laws of conservation hold"
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        cluster.close()


def test_takeover_waits_no_longer_than_its_ring(tmp_path: Path) -> None:
    """A node that has no successor holds up its own topics alone, once the ring's time is over."""
    cluster = Cluster(primaries=4, replicas=0)
    try:
        away = cluster.owner(slot_of(ALONE))
        others = [name for name in NAMES if cluster.owner(slot_of(name)) is not away]
        home = cluster.owner(slot_of(others[0]))
        with provider(2000) as port, pair(tmp_path, cluster, port, TRADES, lease=LEASE, ring=3) as nodes:

            def newest() -> str:
                return str(home.call("XREVRANGE", others[0], "+", "-", "COUNT", 1))

            nodes[0].kill()
            away.kill()
            began, before = time.monotonic(), newest()
            nodes[1].until(lambda found: found["role"] == "active")
            took = time.monotonic() - began
            assert 3 <= took < 3 + 2 * LEASE + 3, took
            nodes[1].until(lambda found: newest() != before)
            assert "taking over: waits for a node" in nodes[1].text
    finally:
        cluster.close()
