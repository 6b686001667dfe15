"""What is bounded, end to end: a full spool, thinned quotes, memory. The real relay, a real server that goes away."""

import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from checker import check, streams
from relays import Process, Running, config_of, relay_of, until
from servers import RedisServer
from sinks import dose
from test_faults import faulty, stop, verdict_of, wait_for_more, write

from relay import stats

PRODUCTS = ["BTC-USD", "ETH-USD", "SOL-USD"]
SMALL = """
outbox: {bytes_max: 300000, topic_bytes_max: 100000}
spool: {segment_bytes: 100000, bytes_max: 1000000}
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer("--appendonly", "yes")
    yield server
    server.close()


@asynccontextmanager
async def relayed(server: RedisServer, folder: Path, providers: str, more: str = "") -> AsyncIterator[Running]:
    text = f"name: t\nredis: {{url: {server.url}, stream_length_max: 1000000}}\nproviders:\n{providers}{more}"
    async with relay_of(config_of(text, folder)) as running:
        yield running
    bridge = running.bridge
    feeds = [feed.stats for state in bridge.providers.values() for feed in state.feeds]
    counts = [state.source.counts for state in bridge.providers.values()]
    topics = bridge.outbox.topics.values()
    assert stats.differences(feeds, counts, topics, bridge.intake.beside) == {}


def found(server: RedisServer, name: str) -> list[dict[str, Any]]:
    with server.client() as client:
        return [json.loads(fields["data"]) for _, fields in client.xrange(name)]


def numbered(messages: list[dict[str, Any]]) -> None:
    """Nothing is missing in our own numbers."""
    assert [message["seq"] for message in messages] == list(range(1, len(messages) + 1))


@pytest.mark.fault
async def test_full_spool_stops_market_data_first_and_account_events_never(server: RedisServer, tmp_path: Path) -> None:
    """`block`: the sockets of market data wait when the spool is full, account events go into its reserve."""
    providers = f"""
  coinbase: {{simulate: true, trades: [{", ".join(PRODUCTS)}]}}
  aries: {{simulate: true, account_id: A1}}
"""
    async with relayed(server, tmp_path, providers, SMALL) as running:
        bridge = running.bridge
        bridge.simulator.set_rate(3000, "coinbase")
        bridge.simulator.set_rate(40, "aries")
        market, account = (bridge.providers[name].source.counts for name in ("coinbase", "aries"))
        await until(lambda: market.published > 500 and account.published > 5)
        server.kill()
        await until(lambda: bridge.keeping.spool.full, 20)
        assert running.said("the spool is full of what Redis lacks")
        await anyio.sleep(0.3)  # what was read before is dealt with
        made, orders = market.made, account.made
        await until(lambda: account.made > orders + 20)
        assert market.made == made, "the socket of market data waits"
        assert account.published == account.made and not bridge.keeping.spool.brimful
        await anyio.to_thread.run_sync(server.start)
        await until(lambda: market.made > made + 2000, 20)
        await until(lambda: bridge.sink.state == "flowing" and not bridge.outbox.full)
    names = [topic.name for topic in bridge.outbox.topics.values()]
    for name in names:
        numbered(found(server, name))
    orders_of = [m for name in names if name.startswith(("sim.orders", "sim.positions")) for m in found(server, name)]
    assert len(orders_of) > 20 and not [m for m in orders_of if m.get("event") == "gap"], "none was dropped"
    verdict = check(streams(server.url, [name for name in names if "trades." in name]))
    print(f"\nfull spool: {len(orders_of)} account events, {verdict}")
    assert verdict.right and verdict.data > 2500


@pytest.mark.fault
async def test_latest_quotes_give_way_while_there_is_no_room(server: RedisServer, tmp_path: Path) -> None:
    """`when_full: latest`: the socket is read on, each quote that gave way is counted, the newest comes through."""
    quotes = f"quotes: [{', '.join(PRODUCTS)}], when_full: {{quotes: latest}}"
    async with relayed(server, tmp_path, f"  coinbase: {{simulate: true, {quotes}}}\n", SMALL) as running:
        bridge = running.bridge
        bridge.simulator.set_rate(3000, "coinbase")
        counts = bridge.providers["coinbase"].source.counts
        await until(lambda: counts.published > 500)
        assert counts.conflated == 0, "nothing is conflated while there is room"
        server.kill()
        await until(lambda: counts.conflated > 1000, 20)
        published, made = counts.published, counts.made
        await until(lambda: counts.made > made + 1000)
        assert counts.published <= published + len(PRODUCTS), "nothing is numbered that may give way"
        await anyio.to_thread.run_sync(server.start)
        await until(lambda: counts.published > published + 500, 20)
    assert counts.made == counts.published + counts.conflated + counts.repeats + counts.held
    for product in PRODUCTS:
        messages = found(server, f"sim.quotes.{product}")
        numbered(messages)
        numbers = [message["src_seq"] for message in messages]
        assert numbers == sorted(set(numbers)) and not [m for m in messages if m["type"] == "status"]


@pytest.mark.fault
async def test_interval_thins_quotes_to_the_newest(server: RedisServer, tmp_path: Path) -> None:
    quotes = f"quotes: [{', '.join(PRODUCTS)}], interval_ms: {{quotes: 100}}"
    async with relayed(server, tmp_path, f"  coinbase: {{simulate: true, {quotes}}}\n") as running:
        bridge = running.bridge
        bridge.simulator.set_rate(1500, "coinbase")
        counts = bridge.providers["coinbase"].source.counts
        await until(lambda: counts.made > 3000)
        bridge.simulator.set_rate(0.1, "coinbase")
        await until(lambda: not counts.held)
    assert counts.conflated > 2500 and counts.made == counts.published + counts.conflated + counts.repeats
    for product in PRODUCTS:
        messages = found(server, f"sim.quotes.{product}")
        numbered(messages)
        times = [message["ts_recv"] for message in messages]
        assert 10 < len(messages) < 60
        assert all(later - earlier >= 95_000_000 for earlier, later in zip(times, times[1:], strict=False))


# -- memory: the real process, and what could fill it ---------------------------------------------------------------

MEMORY_MB = 100
SLOW_DISK = """
import os, sys, time
write = os.write
def slow(fd, data):
    time.sleep(0.02)
    return write(fd, data)
os.write = slow
from relay.__main__ import main
main()
"""


class Slow(Process):
    """`relay` on a disk that takes fifty writes a second."""

    COMMAND = (sys.executable, "-c", SLOW_DISK)


@pytest.mark.fault
@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("cause", ["redis away", "redis stopped", "huge frames", "slow disk"])
def test_memory_stays_under_its_bound(cause: str, tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes")
    extra = f"memory_mb_max: {MEMORY_MB}\nspool: {{segment_bytes: 8000000, bytes_max: 100000000}}"
    make = Slow if cause == "slow disk" else Process
    try:
        with (
            faulty(20_000) as numbered,
            make(tmp_path, "run", "-c", write(tmp_path, server.url, numbered.port, extra)) as process,
        ):
            wait_for_more(server, process)
            if cause == "redis away":
                server.kill()
            elif cause == "redis stopped":
                server.signal(signal.SIGSTOP)
            elif cause == "huge frames":
                numbered.play("flood")
            worst, end = 0.0, time.monotonic() + dose(6)
            while time.monotonic() < end:
                status = Path(f"/proc/{process.process.pid}/status").read_text()
                worst = max(worst, int(status.partition("VmRSS:")[2].split()[0]) / 1000)
                assert process.process.poll() is None, process.text
                time.sleep(0.1)
            if cause == "redis away":
                server.start()
            elif cause == "redis stopped":
                server.signal(signal.SIGCONT)
            numbered.play("none")
            wait_for_more(server, process, 20_000, 60)
            stop(process)
            assert ("memory is short" in process.text) == cause.startswith("redis"), "the bound was felt"
        verdict = verdict_of(server)
        print(f"\nmemory, {cause} for {dose(6)} s: RSS {worst:.0f} MB of {MEMORY_MB}: {verdict}")
        assert verdict.right, str(verdict)
        assert worst < MEMORY_MB
    finally:
        server.close()
