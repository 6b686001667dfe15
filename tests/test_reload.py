"""Reloads: what changes comes and goes at run time, the rest keeps its sessions, what is wrong changes nothing."""

import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from relays import Process, Running, config_of, entries, relay_of, until
from test_replay import replay, streams

from relay.config import Config
from relay.errors import ConfigError
from relay.reload import compare, refused, reload
from relay.simulator.server import Simulator


def config(folder: Path, redis_url: str, *providers: str, head: str = "") -> Config:
    text = f"name: t\nredis: {{url: {redis_url}}}\nsimulator: {{rate: 200}}\n{head}providers:\n"
    return config_of(text + "".join(f"  {p}\n" for p in providers), folder)


COINBASE = "coinbase: {simulate: true, trades: [BTC-USD]}"
BITSTAMP = "coinapi: {simulate: true, trades: [BITSTAMP_SPOT_BTC_EUR]}"
BOTH = "coinapi: {simulate: true, trades: [BITSTAMP_SPOT_BTC_EUR, KRAKEN_SPOT_ETH_EUR]}"
KRAKEN = "coinapi: {simulate: true, trades: [KRAKEN_SPOT_ETH_EUR]}"


def opened(running: Running, name: str) -> list[int]:
    return [feed.stats.opened for feed in running.bridge.providers[name].feeds]


def count(url: str, topic: str) -> int:
    return len([m for _, m in entries(url, topic) if m["type"] != "status"])


def notices(url: str) -> list[dict[str, Any]]:
    return [m for _, m in entries(url, "sim.status.t") if m.get("code") in ("reloaded", "reload_refused")]


async def test_symbols_come_and_go_on_the_open_connection(redis_url: str, tmp_path: Path) -> None:
    async with relay_of(config(tmp_path, redis_url, BITSTAMP, COINBASE)) as running:
        bridge = running.bridge
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > 5 and count(redis_url, "sim.trades.BTC-USD") > 5)
        assert count(redis_url, "sim.trades.ETH-EUR") == 0
        await reload(bridge, config(tmp_path, redis_url, BOTH, COINBASE), "relay.yaml")
        await until(lambda: count(redis_url, "sim.trades.ETH-EUR") > 5)
        await reload(bridge, config(tmp_path, redis_url, KRAKEN, COINBASE), "relay.yaml")
        sub = bridge.providers["coinapi"].feeds[0].provider
        assert [s.raw for s in sub.subscriptions] == ["KRAKEN_SPOT_ETH_EUR"]  # type: ignore[union-attr]
        had, other = count(redis_url, "sim.trades.BTC-EUR"), count(redis_url, "sim.trades.ETH-EUR")
        await until(lambda: count(redis_url, "sim.trades.ETH-EUR") > other + 50)
        assert count(redis_url, "sim.trades.BTC-EUR") <= had + 5, "it is not subscribed to any more"
        assert bridge.intake.watch(bridge.clock() + 10**15) == 2, "what is gone is not stale"
        await reload(bridge, config(tmp_path, redis_url, BOTH, COINBASE), "relay.yaml")
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > had + 20)
        assert (opened(running, "coinapi"), opened(running, "coinbase")) == ([1], [1]), "every session lived on"
        assert bridge.vitals.reloads == {"applied": 3, "unchanged": 0, "refused": 0}
    gaps = [m for _, m in entries(redis_url, "sim.trades.BTC-EUR") if m.get("event") == "gap"]
    assert gaps and gaps[-1]["from_ns"] < gaps[-1]["to_ns"], "the time without it is said"
    found = [m for _, m in entries(redis_url, "sim.trades.BTC-EUR")]
    assert [m["seq"] for m in found] == list(range(1, len(found) + 1)), "one numbering over all of it"
    assert [n["text"] for n in notices(redis_url)][:2] == [
        "configuration reloaded: subscribed=1",
        "configuration reloaded: unsubscribed=1",
    ]


async def test_reconnect_after_a_reload_asks_for_what_is_wanted_now(redis_url: str, tmp_path: Path) -> None:
    async with relay_of(config(tmp_path, redis_url, BITSTAMP)) as running:
        bridge = running.bridge
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > 5)
        await reload(bridge, config(tmp_path, redis_url, KRAKEN), "relay.yaml")
        (feed,) = bridge.providers["coinapi"].feeds
        bridge.simulator.drop("coinapi")
        await until(lambda: feed.stats.opened == 2)
        had = count(redis_url, "sim.trades.BTC-EUR")
        await until(lambda: count(redis_url, "sim.trades.ETH-EUR") > 20)
        assert count(redis_url, "sim.trades.BTC-EUR") <= had


async def test_providers_come_and_go_beside_the_others(redis_url: str, tmp_path: Path) -> None:
    second = "second: {type: coinbase, simulate: true, trades: [LTC-EUR]}"
    async with relay_of(config(tmp_path, redis_url, BITSTAMP, COINBASE)) as running:
        bridge = running.bridge
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > 5)
        await reload(bridge, config(tmp_path, redis_url, BITSTAMP, second), "relay.yaml")
        assert list(bridge.providers) == ["coinapi", "second"]
        await until(lambda: count(redis_url, "sim.trades.LTC-EUR") > 5)
        assert len(bridge.simulator.sessions) == 2, "the one that is gone has hung up"
        assert opened(running, "coinapi") == [1]
        other = config(tmp_path, redis_url, BITSTAMP.replace("}", ", heartbeat: false}"), second)
        await reload(bridge, other, "relay.yaml")
        await until(lambda: bridge.providers["coinapi"].feeds[0].live)
        had = count(redis_url, "sim.trades.BTC-EUR")
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > had + 10)
        assert opened(running, "second") == [1]
        assert running.said("second") and running.said("configuration reloaded")
    assert "gap" in [m.get("event") for _, m in entries(redis_url, "sim.trades.BTC-EUR")], "a restart is no secret"
    assert [n["text"].split(": ", 1)[1] for n in notices(redis_url)] == [
        "added=second removed=coinbase",
        "restarted=coinapi",
    ]


@pytest.mark.fault
async def test_a_recording_follows_whoever_comes_and_goes(redis_url: str, tmp_path: Path) -> None:
    head = f"journal: {{dir: {tmp_path}/journal, flush_ms: 20}}\n"
    second = "second: {type: coinbase, simulate: true, quotes: [LTC-EUR], books: {full: [LTC-EUR]}}"
    etoro = "etoro: {simulate: true, api_key: x, user_key: y, quotes: ['1', '2'], connection_topics_max: 1}"
    more = etoro.replace("'2'", "'2', '3'")
    steps = [
        (COINBASE, BITSTAMP, etoro),
        (BITSTAMP, second, etoro),  # one goes, one comes
        # one comes back, one begins anew, one has more connections
        (BITSTAMP, COINBASE, second.replace("true,", "true, book_depth_max: 10,"), more),
        (BOTH, COINBASE.replace("BTC-USD", "BTC-USD, ETH-USD"), etoro.replace(", '2'", "")),
    ]
    async with relay_of(config(tmp_path, redis_url, *steps[0], head=head)) as running:
        bridge = running.bridge

        async def flowing() -> None:
            states = bridge.providers.values()
            wanted = [(state.source.counts, state.source.counts.published + 20) for state in states]
            await until(lambda: all(counts.published > least for counts, least in wanted))

        await flowing()
        for step in steps[1:]:
            await reload(bridge, config(tmp_path, redis_url, *step, head=head), "relay.yaml")
            await flowing()
        assert len(bridge.providers["etoro"].feeds) == 1
        bridge.simulator.drop()  # and each connects again, as it is planned now
        await until(lambda: all(opened(running, name)[0] > 1 for name in bridge.providers))
        await flowing()
    assert len(list((tmp_path / "journal").iterdir())) >= 4, "what there is stands in each file's header"
    live = streams(redis_url)
    result = await anyio.to_thread.run_sync(
        lambda: replay(tmp_path / "journal", "--url", redis_url, "--into", "again.")
    )
    assert result.exit_code == 0, result.output
    own = {  # what a reload says is the relay's own word, as Redis's troubles are: its number is left out
        name: [e for e in found if b'"code":"reloaded"' not in e[1]] for name, found in live.items()
    }
    assert {name.removeprefix("again."): found for name, found in streams(redis_url, "again.*").items()} == own
    assert sum(len(found) for found in own.values()) > 300


async def test_given_up_connection_is_tried_again(redis_url: str, tmp_path: Path) -> None:
    async with Simulator(["tickatlas"], rate=100, keys={"tickatlas": ["right-key"]}) as simulator:
        url = simulator.url("tickatlas")
        text = f"tickatlas: {{url: '{url}', api_key: wrong-key, auth_field: both, quotes: [EURUSD]}}"
        async with relay_of(config(tmp_path, redis_url, text)) as running:
            bridge = running.bridge
            await until(lambda: bridge.providers["tickatlas"].stopped)
            connects = simulator.stats["tickatlas"].connects
            await reload(bridge, config(tmp_path, redis_url, text), "relay.yaml")
            await until(lambda: bridge.providers["tickatlas"].stopped)
            assert simulator.stats["tickatlas"].connects > connects
            await reload(bridge, config(tmp_path, redis_url, text.replace("wrong-key", "right-key")), "relay.yaml")
            await until(lambda: count(redis_url, "quotes.EUR-USD") > 5)
            assert bridge.providers["tickatlas"].stopped == {}


def test_what_needs_a_restart_is_refused_whole_and_named(tmp_path: Path) -> None:
    old = config(tmp_path, "redis://127.0.0.1:1", COINBASE)
    for new, named in (
        (config(tmp_path, "redis://127.0.0.1:2", COINBASE), "redis: has changed, which needs a restart"),
        (config(tmp_path, "redis://127.0.0.1:1", COINBASE, head="merge: true\n"), "merge: has changed"),
        (config(tmp_path, "redis://127.0.0.1:1", COINBASE.replace("simulate: true, ", "")), "needs a restart"),
        (config(tmp_path, "redis://127.0.0.1:1", COINBASE, BITSTAMP), "relay.yaml:7:1: providers.coinapi.simulate"),
    ):
        with pytest.raises(ConfigError) as error:
            compare(old, new, "relay.yaml")
        assert named in str(error.value)
    assert not compare(old, config(tmp_path, "redis://127.0.0.1:1", COINBASE, head="log: {level: debug}\n"), "f")


async def test_refusal_changes_nothing_and_says_so(redis_url: str, tmp_path: Path) -> None:
    async with relay_of(config(tmp_path, redis_url, BITSTAMP)) as running:
        bridge = running.bridge
        await until(lambda: count(redis_url, "sim.trades.BTC-EUR") > 5)
        before = bridge.config
        with pytest.raises(ConfigError) as error:
            await reload(bridge, config(tmp_path, redis_url, BOTH, head="merge: true\n"), "relay.yaml")
        refused(bridge, error.value)
        await reload(bridge, config(tmp_path, redis_url, BITSTAMP), "relay.yaml")
        assert bridge.config == before and opened(running, "coinapi") == [1]
        assert bridge.vitals.reloads == {"applied": 0, "unchanged": 1, "refused": 1}
        await until(lambda: notices(redis_url))
    assert "merge: has changed" in notices(redis_url)[0]["text"]


def test_sighup_reads_the_file_again(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "relay.yaml"
    text = f"name: t\nredis: {{url: {redis_url}}}\nsimulator: {{rate: 100}}\nproviders:\n  "
    file.write_text(text + BITSTAMP + "\n")
    with Process(tmp_path, "run", "-c", str(file), "--log-format", "json") as relay:
        relay.until(lambda: count(redis_url, "sim.trades.BTC-EUR") > 3)
        file.write_text(text + BITSTAMP.replace("trades", "tredes") + "\n")
        relay.process.send_signal(signal.SIGHUP)
        relay.until(lambda: "the old one stays" in relay.text)
        assert f"{file}:5:" in relay.text and "providers.coinapi.tredes" in relay.text
        file.write_text(text + KRAKEN + "\n")
        relay.process.send_signal(signal.SIGHUP)
        relay.until(lambda: count(redis_url, "sim.trades.ETH-EUR") > 3)
        assert relay.text.count('"event": "connected"') == 1, "on the connection that was open"
        assert relay.stop(signal.SIGTERM) == 0
