"""The whole way of a message: simulator or recording, feed, provider, intake, sink, a real server; and its faults."""

import json
import os
import signal
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from relays import Process, config_of, entries, keys, relay_of, topics, until

from relay.codec import decode
from relay.simulator.faults import Faults
from relay.simulator.playback import Playback
from relay.simulator.server import Simulator

FRAMES = Path(__file__).resolve().parents[2] / "shared" / "frames"
ROOT = Path(__file__).resolve().parents[1]

COINAPI = """
name: t
redis: {{url: {redis}}}
providers:
  coinapi:
    url: {url}
    api_key: {key}
    trades: [BITSTAMP_SPOT_BTC_USD]
    quotes: [BITSTAMP_SPOT_BTC_USD]
"""


async def test_simulated_messages_arrive_numbered_without_holes(redis_url: str, tmp_path: Path) -> None:
    text = COINAPI.format(redis=redis_url, url="", key="k" * 8).replace("url: \n", "simulate: true\n")
    async with relay_of(config_of(text, tmp_path)):
        await until(lambda: len(entries(redis_url, "sim.trades.BTC-USD")) > 5)
    found = entries(redis_url, "sim.trades.BTC-USD")
    assert [m["seq"] for _, m in found] == list(range(1, len(found) + 1))
    assert all(entry_id == f"{m['ts_recv'] // 1_000_000}-{m['seq']}" for entry_id, m in found)
    assert {m["origin"] for _, m in found} == {"simulated"}
    assert all(type(decode(json.dumps(m))).__name__ in ("Trade", "Status") for _, m in found)
    assert {k for k in keys(redis_url) if not k.startswith("sim.")} == set(), "made-up prices stay under sim."


async def test_subscriber_gets_the_bytes_of_the_stream(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["coinapi"], rate=200) as simulator:
        with redis.Redis.from_url(redis_url) as client, client.pubsub() as channel:
            channel.subscribe("trades.BTC-USD")
            channel.get_message(timeout=1)
            config = config_of(COINAPI.format(redis=redis_url, url=simulator.url("coinapi"), key="k" * 8), tmp_path)
            async with relay_of(config):
                await until(lambda: len(entries(redis_url, "trades.BTC-USD")) > 20)
            heard = []
            while message := channel.get_message(timeout=0.2):
                heard.append(message["data"])
            assert heard == [fields[b"data"] for _, fields in client.xrange("trades.BTC-USD")]


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is absent: the recordings are not part of this repository")
async def test_real_recording_of_coinbase_arrives_whole(redis_url: str, tmp_path: Path) -> None:
    expected = json.loads((FRAMES / "expected_public_feeds.json").read_text())["coinbase.jsonl"]
    products = list(expected)
    play = {"coinbase": Playback(FRAMES / "coinbase.jsonl", speed=0)}
    async with Simulator(["coinbase"], play=play) as simulator:
        config = config_of(
            f"""
name: t
redis: {{url: {redis_url}}}
providers:
  coinbase:
    url: {simulator.url("coinbase")}
    quotes: [{", ".join(products)}]
    trades: [{", ".join(products)}]
""",
            tmp_path,
        )
        tickers = sum(e["ticker"] for e in expected.values())
        matches = sum(e["match"] for e in expected.values())
        async with relay_of(config) as running:
            counts = running.bridge.providers["coinbase"].source.counts
            await until(lambda: counts.published >= tickers + matches, 20)
    for product, want in expected.items():
        quotes = [m for _, m in entries(redis_url, f"quotes.{product}") if m["type"] == "quote"]
        trades = [m for _, m in entries(redis_url, f"trades.{product}") if m["type"] == "trade"]
        assert (len(quotes), len(trades)) == (want["ticker"], want["match"]), product
        assert sum((Decimal(m["size"]) for m in trades), Decimal(0)) == Decimal(want["traded"])
        sides = Counter(m["side"] for m in trades)
        assert (sides["buy"], sides["sell"]) == (want["aggressor_buys"], want["aggressor_sells"])
        numbers = [m["src_seq"] for m in trades]
        assert numbers[:1] + numbers[-1:] == ([want["first_trade_id"], want["last_trade_id"]] if numbers else [])
        gaps = [m for _, m in entries(redis_url, f"trades.{product}") if m.get("event") == "gap"]
        assert gaps == []


async def test_wrong_key_stops_that_provider_and_the_other_goes_on(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["coinapi", "tickatlas"], rate=100, keys={"tickatlas": ["right"]}) as simulator:
        text = COINAPI.format(redis=redis_url, url=simulator.url("coinapi"), key="k" * 8)
        text += f"""
  tickatlas:
    url: {simulator.url("tickatlas")}
    api_key: wrong-key-canary
    auth_field: both
    quotes: [EURUSD]
"""
        async with relay_of(config_of(text, tmp_path)) as running:
            await until(lambda: running.said("not tried again"))
            seen = len(entries(redis_url, "trades.BTC-USD"))
            await until(lambda: len(entries(redis_url, "trades.BTC-USD")) > seen + 20)
            assert running.bridge.providers["tickatlas"].stopped
        errors = [line for line in running.lines if line[0] == "error"]
        assert len(errors) == 1 and errors[0][2]["provider"] == "tickatlas"
        assert "wrong-key-canary" not in str(running.lines)
    refused = [m for _, m in entries(redis_url, "status.t") if m["type"] == "status" and m.get("code") == "invalid_key"]
    assert refused and refused[-1]["provider"] == "tickatlas" and refused[-1]["action"] == "not tried again"


async def test_garbage_lands_in_the_dead_letters_and_the_session_lives(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["coinapi"], rate=300, faults=Faults(garbage_every=10)) as simulator:
        config = config_of(COINAPI.format(redis=redis_url, url=simulator.url("coinapi"), key="k" * 8), tmp_path)
        async with relay_of(config) as running:
            await until(lambda: len(entries(redis_url, "deadletter.t")) > 5)
            feed = running.bridge.providers["coinapi"].feeds[0]
            assert feed.stats.opened == 1
    rejects = [m for _, m in entries(redis_url, "deadletter.t")]
    assert {m["type"] for m in rejects} == {"reject"}
    assert all(m["reason"] and "frame" in m for m in rejects)


async def test_lost_numbers_are_said_in_band(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["coinapi"], rate=500, faults=Faults(jump_every=20)) as simulator:
        config = config_of(COINAPI.format(redis=redis_url, url=simulator.url("coinapi"), key="k" * 8), tmp_path)

        def gaps() -> list[dict[str, Any]]:
            return [m for _, m in entries(redis_url, "trades.BTC-USD") if m.get("event") == "gap"]

        async with relay_of(config):
            await until(lambda: len(gaps()) > 2)
    known = 0
    for _, message in entries(redis_url, "trades.BTC-USD"):
        if message["type"] == "trade":
            assert known in (0, message["src_seq"] - 1), "data and gaps tile the provider's numbers"
            known = message["src_seq"]
        elif message["event"] == "gap":
            assert message["first_missing"] == known + 1
            known = message["last_missing"]


async def test_one_relay_of_a_name_and_one_writer_of_a_topic(redis_url: str, tmp_path: Path) -> None:
    from relay.sink import LeaseHeld

    async with Simulator(["coinapi"], rate=100) as simulator:
        text = COINAPI.format(redis=redis_url, url=simulator.url("coinapi"), key="k" * 8)
        async with relay_of(config_of(text, tmp_path / "a")):
            await until(lambda: topics(redis_url) >= {"trades.BTC-USD"})
            with pytest.RaisesGroup(pytest.RaisesExc(LeaseHeld, match="--takeover"), flatten_subgroups=True):
                async with relay_of(config_of(text, tmp_path / "b")) as second:
                    await until(lambda: second.bridge._stop.is_set(), 8)
            other = text.replace("name: t", "name: other")
            async with relay_of(config_of(other, tmp_path / "c")) as second:
                await until(lambda: second.said("another relay owns"))
    writers = {m["run"] for _, m in entries(redis_url, "trades.BTC-USD")}
    assert len(writers) == 1


async def test_relay_starts_without_redis_and_comes_up_with_it(tmp_path: Path) -> None:
    from servers import RedisServer

    server = RedisServer()
    try:
        server.kill()
        async with Simulator(["coinapi"], rate=100) as simulator:
            config = config_of(COINAPI.format(redis=server.url, url=simulator.url("coinapi"), key="k" * 8), tmp_path)
            async with relay_of(config) as running:
                await until(lambda: running.said("Redis is away"))
                server.start()
                await until(lambda: len(entries(server.url, "trades.BTC-USD")) > 5)
    finally:
        server.close()


# -- the process -------------------------------------------------------------------------------------------------------


def test_shipped_config_runs_from_nothing_and_keeps_its_data(tmp_path: Path) -> None:
    config = str(ROOT / "relay.yaml")
    with Process(tmp_path, "run", "-c", config) as first:
        first.until(lambda: "Redis:" in first.text, 5)
        first.until(lambda: entries(first.url, "quotes.BTC-EUR"), 5)
        first.until(lambda: entries(first.url, "quotes.BTC-USD"), 5)
        url = first.url
        code = first.stop(signal.SIGINT, 2.0)
        assert code == 0, first.text
        with pytest.raises(redis.ConnectionError):
            entries(url, "quotes.BTC-EUR")
    with Process(tmp_path, "run", "-c", config) as second:
        second.until(lambda: second.text.count("Redis:") == 2, 5)
        url = second.url  # another test may have taken the port meanwhile
        second.until(lambda: len({m["run"] for _, m in entries(url, "quotes.BTC-EUR")}) == 2, 5)
        # the simulator counts anew: nothing of it may be taken for a repeat of the first run
        second.until(lambda: len({m["run"] for _, m in entries(url, "quotes.BTC-USD") if m["type"] == "quote"}) == 2, 5)
        found = entries(url, "quotes.BTC-EUR")
        second.process.kill()
        second.process.wait()
        second_pid = second.process.pid
    ids = [tuple(map(int, entry_id.split("-"))) for entry_id, _ in found]
    assert ids == sorted(set(ids))
    gap = next(m for _, m in found if m.get("event") == "gap")
    assert gap["reason"] == "relay_down"
    left = [p for p in Path("/proc").glob("[0-9]*/environ") if _belongs(p, tmp_path, second_pid)]
    assert left == [], "kill -9 of the relay leaves no server behind"


def _belongs(environ: Path, folder: Path, pid: int) -> bool:
    import time

    end = time.monotonic() + 5
    while True:
        try:
            if str(folder) not in (environ.parent / "cmdline").read_text() or int(environ.parent.name) == os.getpid():
                return False
        except OSError:
            return False
        if time.monotonic() > end:
            return True
        time.sleep(0.05)


def test_second_signal_ends_it_now(tmp_path: Path) -> None:
    # nothing listens there: what waits cannot be drained
    text = "redis: {url: 'redis://127.0.0.1:1'}\nproviders: {coinbase: {simulate: true, quotes: [BTC-USD]}}\n"
    (tmp_path / "relay.yaml").write_text(text)
    with Process(tmp_path, "run") as process:
        process.until(lambda: "Redis is away" in process.text)
        process.process.send_signal(signal.SIGTERM)
        process.until(lambda: "stopping" in process.text)
        assert process.stop(signal.SIGTERM, 2.0) == 128 + signal.SIGTERM


def test_wrong_config_ends_with_78_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text("providers:\n  coinbase:\n    quotez: [BTC-USD]\n")
    with Process(tmp_path, "run") as process:
        assert process.process.wait(10) == 78
        assert "relay.yaml:3:5" in process.text and "quotes" in process.text
