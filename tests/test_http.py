"""Metrics, health and status of a running relay, over its own HTTP."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from relays import Running, config_of, relay_of, until

from relay.errors import ConfigError, RelayError
from relay.http import HttpServer
from relay.metrics import METRICS, PROCESS, registry_of, table
from relay.simulator.faults import Faults
from relay.simulator.server import Simulator

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
name: t
redis: {{url: {redis}}}
http: {{enabled: true, port: 0, hosts: [relay.test]}}
providers:
  coinapi:
    url: {url}
    api_key: key-canary-1
    trades: [BITSTAMP_SPOT_BTC_USD, KRAKEN_SPOT_ETH_EUR]
    quotes: [BITSTAMP_SPOT_BTC_USD]
"""


@asynccontextmanager
async def watched(redis_url: str, folder: Path, **kwargs: Any) -> AsyncIterator[tuple[Running, httpx2.AsyncClient]]:
    async with Simulator(["coinapi"], rate=200, **kwargs) as simulator:
        config = config_of(CONFIG.format(redis=redis_url, url=simulator.url("coinapi")), folder)
        async with relay_of(config) as running:
            assert running.bridge.http is not None
            async with httpx2.AsyncClient(base_url=running.bridge.http.url) as client:
                yield running, client


def samples(text: str) -> dict[str, float]:
    return {
        f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


async def test_scrape_tells_what_the_relay_has_done(redis_url: str, tmp_path: Path) -> None:
    faults = Faults(garbage_every=20, jump_every=50)
    async with watched(redis_url, tmp_path, faults=faults) as (running, client):
        counts = running.bridge.providers["coinapi"].source.counts
        await until(lambda: counts.gaps > 1 and counts.rejects > 1 and running.bridge.sink.stats.entries > 50)
        answer = await client.get("/metrics")
        found = samples(answer.text)
    assert answer.headers["content-type"].startswith("text/plain")
    one = "connection=1,provider=coinapi"
    assert found[f"relay_connection_up{{{one}}}"] == found[f"relay_sessions_opened_total{{{one}}}"] == 1
    assert found[f"relay_frames_received_total{{{one}}}"] > 50 < found[f"relay_received_bytes_total{{{one}}}"]
    assert found["relay_messages_made_total{provider=coinapi}"] > 50
    assert found["relay_messages_numbered_total{channel=trades,provider=coinapi}"] > 20
    assert found["relay_gaps_total{provider=coinapi}"] > 1 <= found["relay_missing_messages_total{provider=coinapi}"]
    assert sum(v for k, v in found.items() if k.startswith("relay_rejects_total")) > 1
    assert found["relay_redis_up{}"] == found["relay_ready{}"] == 1
    assert found["relay_redis_call_seconds_count{}"] == found["relay_redis_batch_entries_count{}"] > 0
    assert found["relay_redis_batch_entries_sum{}"] == found["relay_entries_stored_total{}"]
    assert found["relay_receipt_to_stored_seconds_count{}"] > 50
    assert found["relay_event_to_receipt_seconds_count{provider=coinapi}"] > 0
    assert found["relay_conservation_messages{provider=coinapi}"] == found["relay_conservation_entries{}"] == 0
    assert found["relay_last_message_timestamp_seconds{provider=coinapi}"] > 1.7e9
    assert "key-canary-1" not in answer.text
    assert not re.search("BTC|ETH", answer.text), "no symbol in a label"


async def test_every_metric_has_help_and_is_declared(redis_url: str, tmp_path: Path) -> None:
    async with watched(redis_url, tmp_path) as (running, client):
        await until(lambda: running.bridge.sink.stats.entries > 5)
        text = (await client.get("/metrics")).text
        assert {family.name for family in registry_of(running.bridge).collect()}
    declared = {name.removesuffix("_total") for name in (*METRICS, *PROCESS)}
    for family in text_string_to_metric_families(text):
        assert family.name.removesuffix("_total") in declared, family.name
        assert len(family.documentation) > 10, family.name


def test_every_metric_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in table().splitlines():
        assert row in readme, f"paste what `python -m relay.metrics` prints: {row}"


async def test_health_and_readiness_follow_the_relay(redis_url: str, tmp_path: Path) -> None:
    async with watched(redis_url, tmp_path) as (running, client):
        bridge = running.bridge
        await until(lambda: bridge.is_ready()[0])
        assert [(await client.get(path)).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
        await bridge.providers["coinapi"].feeds[0].stop()
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "no feed is live\n")
        assert (await client.get("/healthz")).status_code == 200, "a provider's outage restarts nobody"
        assert (await client.post("/healthz")).status_code == 405
        assert (await client.get("/nothing")).status_code == 404


async def test_foreign_host_names_get_nothing(redis_url: str, tmp_path: Path) -> None:
    async with watched(redis_url, tmp_path) as (running, client):
        assert running.bridge.http is not None
        port = running.bridge.http.port

        async def asked(host: str) -> int:
            return (await client.get("/status.json", headers={"host": host})).status_code

        for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "RELAY.test:80"):
            assert await asked(host) == 200, host
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil", "0.0.0.0"):
            assert await asked(host) == 400, host


async def test_status_document_pages_sorts_and_filters(redis_url: str, tmp_path: Path) -> None:
    async with watched(redis_url, tmp_path) as (running, client):
        await until(lambda: running.bridge.sink.stats.entries > 30)
        found = (await client.get("/status.json")).json()
        (provider,) = found["providers"]
        assert (provider["name"], provider["connections"][0]["state"]) == ("coinapi", "up")
        assert found["redis"]["state"] == "flowing" and found["ready"]
        names = [topic["name"] for topic in found["topics"]]
        assert names == sorted(names) and "trades.BTC-USD" in names
        trade = next(topic for topic in found["topics"] if topic["name"] == "trades.BTC-USD")
        assert trade["last"]["type"] in ("trade", "status") and trade["count"] >= trade["last"]["seq"] > 0
        part = (await client.get("/status.json?filter=TRADES&limit=1&offset=1&sort=count")).json()
        assert (len(part["topics"]), part["topics_matching"], part["topics_total"]) == (1, 2, len(names))
        assert part["topics"][0]["kind"] == "trades"
        for wrong in ("limit=x", "sort=nothing", "offset=-1"):
            assert (await client.get(f"/status.json?{wrong}")).status_code == 400
        assert "key-canary-1" not in json.dumps(found)


async def test_nothing_listens_unless_asked(redis_url: str, tmp_path: Path) -> None:
    config = config_of(CONFIG.format(redis=redis_url, url="ws://127.0.0.1:9/").replace("enabled: true, ", ""), tmp_path)
    async with relay_of(config) as running:
        assert running.bridge.http is None


async def test_taken_port_ends_the_start_with_one_line(redis_url: str, tmp_path: Path) -> None:
    async with watched(redis_url, tmp_path) as (running, _):
        assert running.bridge.http is not None
        text = CONFIG.format(redis=redis_url, url="ws://127.0.0.1:9/")
        config = config_of(text.replace("port: 0", f"port: {running.bridge.http.port}"), tmp_path / "b")
        with pytest.raises(RelayError, match="http: .* cannot be had: .*change `http.port`"):
            HttpServer(config.http, None)  # type: ignore[arg-type]


def test_rates_are_those_of_the_last_second_whoever_asks() -> None:
    from relay.vitals import Rates

    now = [100.0]
    rates = Rates(lambda: now[0])
    assert rates.of({"a": 5})("a") is None
    now[0] += 1.0
    assert rates.of({"a": 15})("a") == 10.0
    now[0] += 0.1
    assert rates.of({"a": 16})("a") == pytest.approx(10.0), "a second asker does not shorten the time"
    now[0] += 0.9
    assert rates.of({"a": 25, "b": 3})("b") == 3.0
    now[0] += 60.0
    assert rates.of({"a": 99})("a") is None, "too long ago to be a rate"


def test_histogram_counts_like_prometheus() -> None:
    from relay.histogram import Histogram

    histogram = Histogram((1.0, 2.0))
    for value, weight in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 4)):
        histogram.add(value, weight)
    assert histogram.buckets() == [("1.0", 3), ("2.0", 4), ("+Inf", 8)]
    assert (histogram.count, histogram.total) == (8, 40.0)
    assert (histogram.quantile(0.25), histogram.quantile(0.5), histogram.quantile(0.99)) == (1.0, 2.0, 2.0)
    assert Histogram().quantile(0.5) is None


async def test_minute_is_summed_up_in_one_line(redis_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("relay.overview.SUMMARY_SECS", 0.0)
    async with watched(redis_url, tmp_path) as (running, _):
        await until(lambda: any(line[2].get("messages", 0) > 20 for line in running.lines))
    level, text, fields = next(line for line in running.lines if line[2].get("messages", 0) > 20)
    assert (level, text) == ("info", "in the last minute")
    assert fields["connections"] == "1/1" and fields["redis"] == "flowing" and fields["per_second"] > 0
    assert "gaps" not in fields, "what is well is not said"


def test_names_for_the_host_check_are_names(tmp_path: Path) -> None:
    text = "http: {{enabled: true, hosts: [{name}]}}\nproviders: {{coinbase: {{simulate: true, trades: [BTC-USD]}}}}\n"
    for name in ("relay", "'*.example.com'", "'*'", "10.0.0.1"):
        assert config_of(text.format(name=name), tmp_path).http.hosts == (name.strip("'"),)
    for name in ("'a*.example'", "'http://x/'", "'two words'", "''"):
        with pytest.raises(ConfigError, match="http.hosts"):
            config_of(text.format(name=name), tmp_path)
