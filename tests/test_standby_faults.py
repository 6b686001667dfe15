"""Active and standby under load: the writer is killed, or frozen and woken, again and again. A checker sees it all.

RELAY_TEST_DOSE multiplies how often; the control keeps no ring and must fail.
"""

import os
import random
import signal
import statistics
import time
from itertools import groupby
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


def writer_of(nodes: tuple[Node, Node]) -> Node:
    """Wait until one of the two writes and the other could take over; give the first."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [node.standby() for node in nodes]
        if all(found) and {one["role"] for one in found} == {"active", "standby"} and all(o["ready"] for o in found):
            return nodes[found[0]["role"] != "active"]
        time.sleep(0.02)
    raise AssertionError("not one writer and one standby: " + nodes[0].text[-2000:] + nodes[1].text[-2000:])


def stop_both(nodes: tuple[Node, Node]) -> None:
    """The standby first."""
    writer = writer_of(nodes)
    nodes[writer is nodes[0]].stop()
    writer.stop()


def one_writer_at_a_time(url: str) -> None:
    """A run that another one has followed never writes again."""
    for name, entries in streams(url, NAMES).items():
        runs = [run for run, _ in groupby(run_of(body.decode()) for _, body in entries)]
        assert len(runs) == len(set(runs)), (name, runs)


def test_kill_of_the_writer_leaves_neither_hole_nor_repeat(tmp_path: Path) -> None:
    server, secs = RedisServer(), []
    try:
        with provider(RATE) as port, pair(tmp_path, server, port, TRADES, lease=LEASE) as nodes:
            for _ in range(dose(10)):
                writer = writer_of(nodes)
                time.sleep(random.random() * LEASE)
                before = run_of(newest(server))
                began = time.monotonic()
                writer.kill()
                secs.append(takeover_secs(server, before, began))
                writer.start()
            stop_both(nodes)
        verdict = verdict_of(server)
        told("kill -9 of the writer", secs, verdict)
        is_right(verdict, secs)
    finally:
        server.close()


def test_writer_that_wakes_writes_nothing_and_stands_by(tmp_path: Path) -> None:
    server, secs = RedisServer(), []
    try:
        with provider(RATE) as port, pair(tmp_path, server, port, TRADES, lease=LEASE) as nodes:
            for _ in range(dose(10)):
                writer = writer_of(nodes)
                time.sleep(random.random() * LEASE)
                before = run_of(newest(server))
                began = time.monotonic()
                writer.send(signal.SIGSTOP)
                secs.append(takeover_secs(server, before, began))
                time.sleep(random.random() * LEASE)
                said = writer.text.count("superseded: ")
                writer.send(signal.SIGCONT)
                writer.until(lambda found, writer=writer, said=said: writer.text.count("superseded: ") > said)
            stop_both(nodes)
            assert "not accounted for" not in nodes[0].text + nodes[1].text, "the laws of conservation hold"
        verdict = verdict_of(server)
        told("SIGSTOP and SIGCONT of the writer", secs, verdict)
        one_writer_at_a_time(server.url)
        is_right(verdict, secs)
    finally:
        server.close()


def test_takeovers_in_the_midst_of_rollovers_leave_neither_hole_nor_repeat(tmp_path: Path) -> None:
    """Both nodes have two sessions half of the time; the writer is killed, or stopped as planned, at any instant."""
    server, secs = RedisServer(), []
    try:
        with (
            provider(RATE) as port,
            pair(tmp_path, server, port, TRADES, lease=LEASE, script="always_renewing.py") as nodes,
        ):
            for number in range(dose(6)):
                writer = writer_of(nodes)
                time.sleep(random.random() * 3 * LEASE)
                before = run_of(newest(server))
                began = time.monotonic()
                if number % 3 == 2:
                    writer.stop()
                else:
                    writer.kill()
                secs.append(takeover_secs(server, before, began))
                writer.start()
            stop_both(nodes)
            texts = nodes[0].text + nodes[1].text
        assert texts.count("the old one is closed") > dose(6), "rollovers went on all the time"
        assert "not accounted for" not in texts
        verdict = verdict_of(server)
        told("kill -9 or SIGTERM of the writer amid rollovers", secs, verdict)
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
