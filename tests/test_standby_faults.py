"""Active and standby under load: the writer is killed, or frozen and woken, again and again. A checker sees it all.

RELAY_TEST_DOSE multiplies how often; the control keeps no ring and must fail.
"""

import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest
from checker import Verdict, check, streams
from pairs import Node, pair
from servers import RedisServer
from sinks import dose
from test_faults import NAMES, PRODUCT_NAMES, provider

pytestmark = pytest.mark.fault

RATE = float(os.environ.get("RELAY_TEST_RATE", "4000"))
LEASE = 0.6
TRADES = f"trades: [{', '.join(PRODUCT_NAMES)}]"


def newest(server: RedisServer) -> str:
    """The newest entry of a busy topic."""
    with server.client() as client:
        return next((fields["data"] for _, fields in client.xrevrange(NAMES[0], count=1)), "")


def run_of(body: str) -> str:
    return body.partition('"run":')[2].partition(",")[0]


def takeover_secs(server: RedisServer, before: str, began: float) -> float:
    """Wait for the first entry of another run; give the time since `began`."""
    with server.client() as client:
        while True:
            found = client.xrevrange(NAMES[0], count=1)
            now = time.monotonic()
            if found and run_of(found[0][1]["data"]) != before:
                return now - began
            assert now - began < 20, "nobody took over"
            time.sleep(0.002)


def told(kind: str, secs: list[float], verdict: Verdict) -> None:
    p50, most = statistics.median(secs), max(secs)
    print(f"\n{kind} x {len(secs)}: takeover p50 {p50:.3f} s, max {most:.3f} s at a lease of {LEASE} s; {verdict}")


def verdict_of(server: RedisServer) -> Verdict:
    return check(streams(server.url, NAMES))


def is_right(verdict: Verdict, secs: list[float]) -> None:
    assert verdict.right and verdict.gaps == 0, str(verdict)
    assert statistics.median(secs) < LEASE and max(secs) < LEASE + 1.0, secs


def other(nodes: tuple[Node, Node], node: Node) -> Node:
    return nodes[1] if node is nodes[0] else nodes[0]


def test_kill_of_the_writer_leaves_neither_hole_nor_repeat(tmp_path: Path) -> None:
    server, secs = RedisServer(), []
    try:
        with provider(RATE) as port, pair(tmp_path, server, port, TRADES, lease=LEASE) as nodes:
            writer = nodes[0]
            for _ in range(dose(10)):
                time.sleep(random.random() * LEASE)
                before = run_of(newest(server))
                began = time.monotonic()
                writer.kill()
                secs.append(takeover_secs(server, before, began))
                writer.start()
                writer.until_ready()
                writer = other(nodes, writer)
            other(nodes, writer).stop()
            writer.stop()
        verdict = verdict_of(server)
        told("kill -9 of the writer", secs, verdict)
        is_right(verdict, secs)
    finally:
        server.close()


def test_writer_that_wakes_writes_nothing_and_stands_by(tmp_path: Path) -> None:
    server, secs = RedisServer(), []
    try:
        with provider(RATE) as port, pair(tmp_path, server, port, TRADES, lease=LEASE) as nodes:
            writer = nodes[0]
            for _ in range(dose(10)):
                time.sleep(random.random() * LEASE)
                before = run_of(newest(server))
                began = time.monotonic()
                writer.send(signal.SIGSTOP)
                secs.append(takeover_secs(server, before, began))
                time.sleep(random.random() * LEASE)
                said = writer.text.count("superseded: ")
                writer.send(signal.SIGCONT)
                found = writer.until_ready()
                assert found["epoch"] == other(nodes, writer).standby()["epoch"]
                assert writer.text.count("superseded: ") == said + 1
                writer = other(nodes, writer)
            other(nodes, writer).stop()
            writer.stop()
            assert "not accounted for" not in nodes[0].text + nodes[1].text, "the laws of conservation hold"
        verdict = verdict_of(server)
        told("SIGSTOP and SIGCONT of the writer", secs, verdict)
        is_right(verdict, secs)
    finally:
        server.close()


def test_control_without_the_ring_fails(tmp_path: Path) -> None:
    server = RedisServer()
    try:
        with (
            provider(RATE) as port,
            pair(tmp_path, server, port, TRADES, lease=LEASE, script="without_ring.py") as nodes,
        ):
            before = run_of(newest(server))
            began = time.monotonic()
            nodes[0].kill()
            secs = [takeover_secs(server, before, began)]
            nodes[1].stop()
        verdict = verdict_of(server)
        told("control", secs, verdict)
        with pytest.raises(AssertionError):
            is_right(verdict, secs)
        assert verdict.missing > 0, "the suite sees what a standby without a ring loses"
    finally:
        server.close()
