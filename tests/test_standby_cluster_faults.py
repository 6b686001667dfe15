"""Active and standby on a cluster under load: the node that holds the lease is killed or hangs, and the writer with it.

RELAY_TEST_DOSE multiplies how often. Controls: `test_standby_faults`, `test_cluster_faults`.
"""

import random
import time
from pathlib import Path

import pytest
from clusters import Cluster
from pairs import Node, pair
from sinks import dose
from test_cluster_faults import length, verdict_of
from test_faults import PRODUCT_NAMES, provider
from test_standby_faults import writer_of

from relay.sink.slots import slot_of

pytestmark = pytest.mark.fault

TRADES = f"trades: [{', '.join(PRODUCT_NAMES)}]"
LEASE = 0.6


def flows(cluster: Cluster, nodes: tuple[Node, Node]) -> None:
    """Wait until every topic's node is up and data goes to them."""
    before = length(cluster)
    end = time.monotonic() + 60
    while not length(cluster) > before + 500:
        assert time.monotonic() < end, "nothing is written: " + nodes[0].text[-2000:] + nodes[1].text[-2000:]
        time.sleep(0.05)


def test_lease_survives_its_node_and_the_writer(tmp_path: Path) -> None:
    """In turn: the lease's node is killed; it hangs; it is killed and the writer with it; the writer alone."""
    cluster = Cluster()
    rounds = dose(4)
    try:
        with provider(2000) as port, pair(tmp_path, cluster, port, TRADES, lease=LEASE, ring=20) as nodes:
            for number in range(rounds):
                writer = writer_of(nodes)
                flows(cluster, nodes)
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
                        writer.start()
                flows(cluster, nodes)
                cluster.until(cluster.whole, 60)
            writer = writer_of(nodes)
            nodes[writer is nodes[0]].stop()
            writer.stop()
            texts = nodes[0].text + nodes[1].text
        verdict = verdict_of(cluster)
        print(f"\nthe node of the lease killed or hung, the writer killed, {rounds} times: {verdict}")
        assert texts.count("taken over: this node writes") >= 1 + rounds // 4
        assert "not accounted for" not in texts, "the laws of conservation hold"
        assert verdict.right and verdict.gaps == 0, str(verdict)
    finally:
        cluster.close()
