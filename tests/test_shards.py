"""Dealing topics over shards: each topic once, few moves, the same everywhere, within what providers allow."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relays import ROOT, config_of

from relay import gathered, model
from relay.config import Config, topics_of
from relay.errors import ConfigError
from relay.gathered import Standing
from relay.providers import PROVIDERS
from relay.providers.base import Limits
from relay.reload import compare
from relay.shards import Layout, deal, home, home_of, is_sibling, moved, parse, sharded, topics_by_shard

MANY = ", ".join(f"X{number:03d}-USD" for number in range(200))


def config(providers: str, more: str = "") -> Config:
    return config_of(f"{more}\nproviders:\n{providers}", Path("/tmp/none"), KEY="a-secret-key")


def coinbase(symbols: str = MANY) -> str:
    return f"  coinbase: {{trades: [{symbols}], quotes: [{symbols}]}}\n"


EVERYTHING = """
  coinapi: {simulate: true, trades: [KRAKEN_SPOT_*, KRAKEN_SPOT_BTC_EUR, BITSTAMP_SPOT_ETH_EUR], quotes: [KRAKEN_*]}
  tickatlas: {simulate: true, quotes: [EURUSD, XAUUSD], bars: {1m: [EURUSD]}}
  coinbase: {trades: [BTC-USD, ETH-USD], books: {full: [BTC-USD]}, quotes_from_books: [BTC-USD]}
  binance: {trades: [BTCUSDT, ETHBTC], quotes: [BTCUSDT], bars: {1m: [BTCUSDT]}, books: {20: [ETHBTC]}}
  aries: {simulate: true, account: aries, account_id: T, pnl: [1m], quotes: [AAPL, MSFT], trades: [MSFT]}
  etoro: {simulate: true, orders: true, quotes: [1001, GOLD]}
"""
TEMPLATES = (
    "topics: {trades: 'trades.{provider}[.{venue}].{symbol}', quotes: 'quotes.{provider}[.{venue}].{symbol}', "
    "bars: 'bars.{provider}.{interval}.{symbol}'}"
)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
def test_every_subscription_and_topic_is_dealt_exactly_once(count: int) -> None:
    whole = config(EVERYTHING, TEMPLATES)
    parts = [sharded(whole, number, count, "f") for number in range(1, count + 1)]
    for name, provider in whole.providers.items():
        dealt = [sub for part in parts if name in part.providers for sub in part.providers[name].subscriptions]
        assert Counter(dealt) == Counter(provider.subscriptions)
        planned = [
            sub
            for part in parts
            if name in part.providers
            for link in part.providers[name].connections
            for sub in link.subscriptions
        ]
        assert Counter(planned) == Counter(provider.subscriptions)
    writers = Counter(topic.name for part in parts for topic in topics_of(part))
    assert max(writers.values()) == 1
    own = {f"{kind}.{part.name}" for part in parts for kind in ("status", "deadletter")}
    assert set(writers) - {f"sim.{name}" for name in own} - own == {
        topic.name for topic in topics_of(whole) if topic.name not in ("status.relay", "deadletter.relay")
    }


@given(st.lists(st.text("ABCXYZ0189", min_size=2, max_size=8), min_size=1, max_size=60, unique=True), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_any_symbols_are_dealt_once(symbols: list[str], count: int) -> None:
    whole = config(coinbase(", ".join(f"'{symbol}-USD'" for symbol in symbols)))
    dealt = deal(whole, count)
    assert sorted(t.name for topics in topics_by_shard(whole, dealt) for t in topics) == sorted(
        t.name for t in topics_of(whole) if t.subscription
    )
    assert all(1 <= shard <= count for shard in dealt.homes.values())


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 4), (4, 5), (9, 10)])
def test_one_shard_more_takes_its_share_and_moves_nothing_else(before: int, after: int) -> None:
    whole = config(coinbase())
    old, new = deal(whole, before), deal(whole, after)
    names = moved(old, new)
    assert all(new.homes[name] == after for name in names)
    share = len(names) / len(old.homes)
    assert 0.5 / after < share < 1.6 / after, "about one part of all"


def test_shares_are_about_equal() -> None:
    loads = Counter(deal(config(coinbase()), 4).homes.values())
    assert len(loads) == 4
    assert max(loads.values()) < 1.5 * 400 / 4


@pytest.mark.fault
def test_dealing_does_not_hang_on_the_hash_seed_of_python() -> None:
    code = "from relay.shards import home; print([home(f'trades.{n}', 5) for n in range(50)])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(found) == 1


def test_dealing_is_what_it_was_in_every_release() -> None:
    """Another outcome would give topics to other shards after an upgrade: then say so in README, Changes."""
    assert [home(f"trades.{number}", 4) for number in range(12)] == [1, 2, 2, 1, 1, 1, 4, 3, 3, 1, 2, 1]


def test_what_cannot_be_parted_stays_together() -> None:
    for count in (2, 3, 5, 8):
        whole = config(EVERYTHING, TEMPLATES)
        dealt = deal(whole, count)
        holders = {name: [n for n, part in enumerate(dealt.parts) if name in part] for name in whole.providers}
        assert len(holders["coinapi"]) == 1, "one connection a key"
        assert len(holders["tickatlas"]) == 1, "two connections a key leave no room for a change-over"
        assert "allows 1 connection with" in dealt.together["coinapi"]
        prefix = "sim."
        account = {dealt.homes[f"{prefix}{kind}.aries"] for kind in ("orders", "positions", "balances", "account")}
        assert account == {dealt.homes[f"{prefix}deadletter.aries"]}
        assert len(account) == 1, "all of an account"
        assert dealt.homes["quotes.coinbase.BTC-USD"] == dealt.homes["books.coinbase.BTC-USD"], "quotes made of a book"


def test_a_pattern_goes_with_all_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = replace(PROVIDERS["coinapi"], limits=Limits())
    whole = config(
        "  coinapi: {api_key: '${KEY}', trades: [KRAKEN_SPOT_*, KRAKEN_SPOT_BTC_EUR, KRAKEN_SPOT_ETH_EUR, BITSTAMP_*], "
        "quotes: [KRAKEN_SPOT_BTC_EUR]}\n",
        "topics: {trades: 'trades.{venue}.{symbol}'}",
    )
    whole = _with(whole, "coinapi", spec=free)
    seen = set()
    for count in range(2, 12):
        dealt = deal(whole, count)
        assert not dealt.together
        pattern = dealt.patterns["trades.{venue}.{symbol}"]
        assert dealt.homes["trades.KRAKEN.BTC-EUR"] == dealt.homes["trades.KRAKEN.ETH-EUR"] == pattern
        assert home_of(dealt, "trades.KRAKEN.SOL-EUR") == pattern, "also of what nobody has seen yet"
        assert home_of(dealt, "books.KRAKEN.SOL-EUR") is None
        seen.add(dealt.homes["quotes.BTC-EUR"] == pattern)
    assert False in seen, "another channel is free to go elsewhere"


def test_sources_that_share_a_topic_share_a_shard() -> None:
    text = "  coinbase: {trades: [BTC-USDT, ETH-USDT, SOL-USDT]}\n  binance: {trades: [BTCUSDT, ETHUSDT, SOLUSDT]}\n"
    whole = config(text, "merge: true")
    for count in (2, 3, 4):
        for part in deal(whole, count).parts:
            ours = {sub.raw.replace("-", "") for sub in part.get("coinbase", ())}
            assert ours == {sub.raw for sub in part.get("binance", ())}


def test_merged_patterns_go_with_every_topic_that_they_could_write() -> None:
    whole = config(
        "  coinapi: {api_key: '${KEY}', trades: [KRAKEN_SPOT_*]}\n"
        "  coinbase: {trades: [BTC-USD, ETH-USD], quotes: [BTC-USD, ETH-USD]}\n",
        "merge: true",
    )
    for count in (2, 5, 9):
        dealt = deal(whole, count)
        assert {dealt.patterns["trades.{symbol}"]} == {dealt.homes["trades.BTC-USD"], dealt.homes["trades.ETH-USD"]}


def test_a_token_that_changes_at_each_use_stays_in_one_process() -> None:
    text = "  aries: {client_id: c, refresh_token: '${KEY}', quotes: [A, B, C, D, E, F, G, H]}\n"
    whole = config(text)
    dealt = deal(whole, 4)
    assert "refresh token" in dealt.together["aries"]
    assert sum("aries" in part for part in dealt.parts) == 1
    free = config("  aries: {token: '${KEY}', quotes: [A, B, C, D, E, F, G, H]}\n")
    assert sum("aries" in part for part in deal(free, 4).parts) > 1


def _with(whole: Config, name: str, **changes: Any) -> Config:
    import msgspec

    provider = replace(whole.providers[name], **changes)
    return msgspec.structs.replace(whole, providers=whole.providers | {name: provider})


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 8, 9, 16, 40])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_connections_of_all_shards_stay_within_what_a_key_allows(most: int, count: int) -> None:
    spec = replace(PROVIDERS["coinbase"], limits=Limits(connects=(8, 1.0), connections_max=most))
    few = ", ".join(f"Z{number}-USD" for number in range(24))  # one connection carries them
    whole = _with(config(coinbase(few)), "coinbase", spec=spec)
    parts = [sharded(whole, number, count, "f").providers.get("coinbase") for number in range(1, count + 1)]
    held = [part for part in parts if part is not None]
    planned = [len(part.connections) for part in held]
    allowed = [part.limits.connections_max or 0 for part in held]
    assert sum(allowed) <= most, "those that a shard may open at one time"
    for wanted, may in zip(planned, allowed, strict=True):
        assert wanted <= may or len(held) == 1
    if most >= 2 * count:
        assert len(held) == count
    connects = [part.limits.connects for part in held]
    assert sum(one[0] / one[1] for one in connects if one) <= 8.001


@given(st.integers(1, 200), st.floats(0.5, 600), st.integers(1, 64))
def test_divided_limits_never_sum_to_more(count: int, secs: float, parts: int) -> None:
    divided = Limits(requests=(count, secs)).divided(parts).requests
    assert divided is not None
    assert divided[0] >= 1
    assert parts * divided[0] / divided[1] <= count / secs * 1.000001


def test_too_many_planned_connections_bring_a_provider_to_one_shard() -> None:
    """400 products a shard would need more connections than its part of the limit."""
    from relay.providers.coinbase import PRODUCTS_MAX

    symbols = ", ".join(f"Y{number:05d}-USD" for number in range(PRODUCTS_MAX * 5))
    spec = replace(PROVIDERS["coinbase"], limits=Limits(connections_max=5))
    whole = _with(config(f"  coinbase: {{trades: [{symbols}]}}\n"), "coinbase", spec=spec)
    dealt = deal(whole, 2)
    assert "too few for a part" in dealt.together["coinbase"]
    assert sum("coinbase" in part for part in dealt.parts) == 1


# -- names and folders -------------------------------------------------------------------------------------------


def test_each_shard_has_names_folders_and_a_port_of_its_own() -> None:
    more = "name: prod\nspool: {dir: /spool}\njournal: {dir: /rec}\nredis: {streams_bytes_max: 4000}"
    whole = config(coinbase(), more)
    parts = [sharded(whole, number, 4, "f") for number in (1, 2, 3, 4)]
    assert [part.name for part in parts] == ["prod-1", "prod-2", "prod-3", "prod-4"]
    for values in (
        {part.state_dir for part in parts},
        {part.journal.dir for part in parts},
        {part.http.port for part in parts},
    ):
        assert len(values) == 4
    assert {part.spool.dir for part in parts} == {"/spool"}, "there each has a folder by its name"
    assert {part.redis.streams_bytes_max for part in parts} == {1000}
    assert parts[0].http.port == whole.http.port


@pytest.mark.parametrize(
    ("more", "count", "said"),
    [
        ("name: a-name-of-thirty-one-characters", 2, "too long for 2 shards"),
        ("name: a-name-of-thirty-characters-12", 10, "too long for 10 shards"),
        ("topics: {status: my.status}", 2, "must name {relay}"),
        ("topics: {deadletter: my.letters}", 2, "must name {relay}"),
        ("http: {port: 65535}", 2, "leaves no 2 ports"),
    ],
)
def test_what_cannot_be_sharded_is_refused(more: str, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sharded(config(coinbase("A-USD"), more), 1, count, "relay.yaml")


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "2/0", "a/b", "1/4/2", "-1/4", "1/65", "01/4", " 1/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        parse(text)


def test_a_shard_is_read() -> None:
    assert parse("2/4") == (2, 4)
    assert parse("64/64") == (64, 64)


def test_siblings_are_known_by_their_names() -> None:
    assert is_sibling("relay-1", "relay")
    assert is_sibling("relay-64", "relay")
    assert is_sibling("relay", "relay"), "before it was parted"
    for other in ("relay-0", "relay-x", "relay-1-2", "relays-1", "other-1", "relay-"):
        assert not is_sibling(other, "relay")
    assert not is_sibling("xrelay-1", "r.lay")


def test_simulated_and_live_stay_apart_in_every_shard() -> None:
    """A shard that happens to hold simulated providers alone must not think that nothing is live."""
    whole = config("  coinbase: {trades: [A-USD]}\n  kraken: {simulate: true, trades: [XRP/USD, A/EUR, B/EUR]}\n")
    for number in (1, 2, 3):
        part = sharded(whole, number, 3, "f")
        assert not part.all_simulated
        for topic in topics_of(part):
            assert topic.name.startswith("sim.") == (topic.provider == "kraken")


def test_layout_names_the_relay_of_a_topic() -> None:
    part = sharded(config(coinbase("A-USD, B-USD, C-USD")), 2, 3, "f")
    assert part.shard is not None
    layout = Layout(part.shard)
    for topic, shard in part.shard.dealt.homes.items():
        assert layout.home(topic) == f"relay-{shard}"
    assert layout.home("trades.nobody") is None
    assert layout.home("status.relay-2") is None


# -- reload ------------------------------------------------------------------------------------------------------


def test_a_reload_deals_what_is_new_and_moves_nothing() -> None:
    old, new = config(coinbase("A-USD, B-USD")), config(coinbase("A-USD, B-USD, C-USD, D-USD, E-USD"))
    added = []
    for number in (1, 2):
        changes = compare(sharded(old, number, 2, "f"), sharded(new, number, 2, "f"), "f")
        added += [sub for changed in changes.changed for subs in changed.added.values() for sub in subs]
        added += [sub for provider in changes.added for sub in provider.subscriptions]
    assert Counter(sub.raw for sub in added) == {"C-USD": 2, "D-USD": 2, "E-USD": 2}


def test_a_reload_may_deal_a_simulated_provider_to_a_shard_that_had_none() -> None:
    """The simulator plays it for another shard already: no shard may refuse what the others take."""
    old = config("  binance: {simulate: true, trades: [BTCUSDT]}\n")
    new = config("  binance: {simulate: true, trades: [BTCUSDT, ETHBTC, SOLUSDT, XRPUSDT, ADAUSDT, BNBUSDT]}\n")
    added = 0
    for number in (1, 2, 3):
        changes = compare(sharded(old, number, 3, "f"), sharded(new, number, 3, "f"), "f")
        added += len(changes.added)
    assert added == 2, "two shards hold it now that did not"


def test_a_reload_that_would_move_topics_is_refused_by_every_shard() -> None:
    old = config("  coinbase: {trades: [BTC-USDT, ETH-USDT, SOL-USDT, A-USDT]}\n  binance: {quotes: [BTCUSDT]}\n")
    new = config(
        "  coinbase: {trades: [BTC-USDT, ETH-USDT, SOL-USDT, A-USDT], books: {full: [BTC-USDT]},"
        " quotes_from_books: [BTC-USDT]}\n  binance: {trades: [BNBUSDT]}\n"
    )
    # a rule that gives everything a new home stands in for any edit that glues topics together
    for count in (2, 3):
        before, after = deal(old, count), deal(new, count)
        turned = replace(after, homes={name: shard % count + 1 for name, shard in after.homes.items()})
        assert moved(before, turned)
        for number in range(1, count + 1):
            import msgspec

            part = sharded(new, number, count, "f")
            assert part.shard is not None
            other = msgspec.structs.replace(part, shard=replace(part.shard, dealt=turned))
            with pytest.raises(ConfigError, match="would move to another shard"):
                compare(sharded(old, number, count, "f"), other, "f")


# -- one page for all --------------------------------------------------------------------------------------------


def document(topics: list[tuple[str, int, float]], **more: Any) -> dict[str, Any]:
    rows = [{"name": name, "count": count, "rate": rate, "stale": False} for name, count, rate in topics]
    provider = {
        "name": "p", "connections": [{"label": "1"}], "rate": 1.0, "frames_rate": 2.0, "published": 5, "gaps": 1,
        "missing": 2, "rejects": 0, "repeats": 0, "topics": len(rows), "stale": 0, "last": 7,
    }  # fmt: skip
    times = {"p50": 1.0, "p99": 2.0}
    return {
        "ready": True, "why": "ready", "run": 1, "cpu_secs": 1.0, "memory_bytes": 10, "loop_lag_ms": times,
        "receipt_to_stored_ms": times, "reloads": {"applied": 1}, "loaded": 3, "providers": [provider],
        "redis": {"state": "flowing", "calls": 1, "call_ms": times, "entries": 2, "bytes": 3, "connects": 1,
                  "errors": {"wait": 1}},
        "outbox": {"bytes": 1, "bytes_max": 2, "entries": 3, "full": False, "blocked": []},
        "topics": rows, "topics_matching": len(rows), "topics_total": len(rows),
    } | more  # fmt: skip


OWN = {
    "run": 5, "now": 6, "stopping": False, "redis_url": "redis://x", "bundled": False, "cpu_secs": 0.5,
    "memory_bytes": 1,
}  # fmt: skip


def standing(number: int, doc: dict[str, Any] | None, state: str = "up") -> Standing:
    return Standing(number, f"relay-{number}", state, 1, 1, 100 + number, "", doc)


def test_status_of_all_shards_is_one() -> None:
    one, two = document([("b", 1, 5.0), ("d", 9, 1.0)]), document([("a", 4, 9.0), ("c", 2, 3.0)])
    found = gathered.status("relay", [standing(1, one), standing(2, two)], {"sort": "rate", "limit": "3"}, OWN)
    assert [topic["name"] for topic in found["topics"]] == ["a", "b", "c"]
    assert found["topics_total"] == 4
    assert found["cpu_secs"] == 2.5
    (provider,) = found["providers"]
    assert provider["published"] == 10
    assert provider["rate"] == 2.0
    assert [link["label"] for link in provider["connections"]] == ["1:1", "2:1"]
    assert found["redis"]["errors"] == {"wait": 2}
    assert found["ready"]
    page = gathered.status("relay", [standing(1, one), standing(2, two)], {"offset": "1", "limit": "2"}, OWN)
    assert [topic["name"] for topic in page["topics"]] == ["b", "c"]


def test_one_shard_that_is_not_well_makes_all_not_ready() -> None:
    well = document([])
    assert gathered.ready([standing(1, well), standing(2, well)]) == (True, "ready")
    away = [standing(1, well), standing(2, None, "waiting")]
    assert gathered.ready(away) == (False, "shard relay-2 is not up: waiting")
    bad = [standing(1, document([], ready=False, why="no feed is live")), standing(2, well)]
    assert gathered.ready(bad) == (False, "shard relay-1: no feed is live")
    stands_by = document([], why="standby", standby={"role": "standby"})
    assert gathered.ready([standing(1, stands_by), standing(2, stands_by)]) == (True, "standby")
    assert gathered.ready([standing(1, stands_by), standing(2, well)]) == (True, "ready")
    lost = document([]) | {"redis": well["redis"] | {"state": "lost"}}
    assert gathered.status("r", [standing(1, well), standing(2, lost)], {}, OWN)["redis"]["state"] == "lost"


def test_metrics_of_all_shards_carry_their_number() -> None:
    text = '# HELP relay_x_total X.\n# TYPE relay_x_total counter\nrelay_x_total{provider="p"} 3.0\n'
    (family,) = gathered.metrics({"1": text, "2": text})
    assert family.type == "counter"
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"provider": "p", "shard": "1"}, 3.0),
        ({"provider": "p", "shard": "2"}, 3.0),
    ]


def test_every_account_channel_is_kept_together() -> None:
    assert {"orders", "positions", "balances", "account"} == model.ACCOUNT_CHANNELS
