"""Shards as `relay run --shards` and `--shard` start them: real processes, killed, reloaded, dealt anew."""

import contextlib
import json
import os
import random
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from checker import Verdict, check, streams
from clusters import Cluster
from relays import Process, config_of, relay_of, until
from servers import RedisServer
from sinks import dose
from test_faults import NAMES, provider, write

from relay.cli._config import load_config
from relay.embedded import _is_alive
from relay.shards import deal, sharded
from relay.supervisor import named

SIMULATED = """
name: t
http: {{enabled: true, port: 0}}
redis: {{port: 24000}}
simulator: {{rate: 40}}
providers:
  coinbase: {{simulate: true, trades: [{products}]}}
  binance: {{simulate: true, trades: [BTCUSDT, ETHBTC], quotes: [BTCUSDT]}}
  tickatlas: {{simulate: true, quotes: [EURUSD]}}
"""
FEW = "BTC-USD, ETH-USD, SOL-USD, XRP-USD, LTC-USD, ADA-USD"


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


def page(folder: Path) -> str:
    return (folder / ".relay" / "http_url").read_text().strip()


def owners(url: str) -> dict[str, str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return {name: json.loads(text)["relay"] for name, text in client.hgetall("relay:topics").items()}


def bodies(url: str, topic: str) -> list[dict[str, Any]]:
    with redis.Redis.from_url(url) as client:
        return [json.loads(fields[b"data"]) for _, fields in client.xrange(topic)]


def shards_of(folder: Path) -> dict[int, dict[str, Any]]:
    return {shard["number"]: shard for shard in get(f"{page(folder)}/status.json?limit=0")["shards"]}


def all_ready(folder: Path, count: int) -> bool:
    with contextlib.suppress(OSError, ValueError):  # its address is not written yet
        return sum(bool(shard.get("ready")) for shard in shards_of(folder).values()) == count
    return False


def test_two_shards_are_one_relay(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(SIMULATED.format(products=FEW))
    dealt = deal(load_config(str(file)), 2)
    names = set(dealt.homes)
    assert set(dealt.homes.values()) == {1, 2}
    with Process(tmp_path, "run", "--shards", "2") as process:
        process.until(lambda: all_ready(tmp_path, 2), 20)
        url = (tmp_path / ".relay" / "redis_url").read_text().strip()
        process.until(lambda: names <= set(owners(url)), 20)
        for topic, owner in owners(url).items():
            if topic in dealt.homes:
                assert owner == f"t-{dealt.homes[topic]}", topic
        assert {"status.t-1", "status.t-2"} <= set(owners(url))
        # one page
        found = get(f"{page(tmp_path)}/status.json?limit=1000&sort=name")
        assert names <= {topic["name"] for topic in found["topics"]}
        assert found["topics"] == sorted(found["topics"], key=lambda topic: topic["name"])
        assert {"coinbase", "binance", "tickatlas"} == {provider["name"] for provider in found["providers"]}
        with urllib.request.urlopen(f"{page(tmp_path)}/metrics") as answer:
            text = answer.read().decode()
        assert 'relay_shard_up{shard="1"} 1.0' in text
        assert text.count("# TYPE relay_messages_published_total") == 1
        assert 'relay_messages_published_total{provider="coinbase",shard="2"}' in text
        with urllib.request.urlopen(f"{page(tmp_path)}/readyz") as answer:
            assert answer.status == 200
        # one is killed, the other one goes on
        pids = {number: shard["pid"] for number, shard in shards_of(tmp_path).items()}
        runs = {topic: bodies(url, topic)[-1]["run"] for topic in names}
        os.kill(pids[1], signal.SIGKILL)
        process.until(lambda: all_ready(tmp_path, 2) and shards_of(tmp_path)[1]["starts"] == 2, 20)
        assert shards_of(tmp_path)[2]["pid"] == pids[2]
        mine = {topic for topic, shard in dealt.homes.items() if shard == 1}
        process.until(lambda: all(bodies(url, topic)[-1]["run"] != runs[topic] for topic in mine), 20)
        for topic in names:
            entries = bodies(url, topic)
            again = [one["reason"] for one in entries if one.get("event") == "gap"]
            assert again == (["relay_down"] if topic in mine else []), topic
            if topic not in mine:
                assert {one["run"] for one in entries} == {runs[topic]}
        # new symbols come to the shard to which they are dealt
        file.write_text(SIMULATED.format(products=FEW + ", DOT-USD, LINK-USD, DOGE-USD"))
        later = deal(load_config(str(file)), 2)
        assert all(later.homes[name] == shard for name, shard in dealt.homes.items())
        process.process.send_signal(signal.SIGHUP)
        process.until(lambda: set(later.homes) <= set(owners(url)), 20)
        assert all(owners(url)[name] == f"t-{shard}" for name, shard in later.homes.items())
        # a wrong one is refused by the supervisor, whole
        file.write_text("providers: {nobody: {}}")
        process.process.send_signal(signal.SIGHUP)
        process.until(lambda: "configuration refused" in process.text)
        pids = {number: shard["pid"] for number, shard in shards_of(tmp_path).items()}
        os.kill(pids[1], signal.SIGTERM)  # as systemd does: all processes of the unit, the supervisor among them
        assert process.stop(signal.SIGTERM, 15) == 0, process.text
        assert {f"t-{number}" for number in pids} <= {
            json.loads(line).get("shard") for line in process.text.splitlines() if '"event": "stopped"' in line
        }, "each has drained"
        assert not any(_is_alive(pid) for pid in pids.values())
        assert "another relay owns" not in process.text
        assert "not accounted for" not in process.text
        lines = [line for line in process.text.splitlines() if line.startswith("{")]
        assert {"t-1", "t-2"} <= {json.loads(line).get("shard") for line in lines}


class SoonHung(Process):
    COMMAND = (sys.executable, str(Path(__file__).with_name("soon_hung.py")))


@pytest.mark.fault
def test_a_shard_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(SIMULATED.format(products=FEW))
    with SoonHung(tmp_path, "run", "--shards", "2") as process:
        process.until(lambda: all_ready(tmp_path, 2), 20)
        pids = {number: shard["pid"] for number, shard in shards_of(tmp_path).items()}
        os.kill(pids[1], signal.SIGSTOP)
        process.until(lambda: '"event": "shard hangs"' in process.text, 20)
        process.until(lambda: all_ready(tmp_path, 2) and shards_of(tmp_path)[1]["starts"] == 2, 20)
        assert shards_of(tmp_path)[2]["pid"] == pids[2] and process.text.count("shard hangs") == 1
        assert not _is_alive(pids[1])
        assert process.stop(signal.SIGTERM, 15) == 0, process.text


@pytest.mark.fault
def test_shards_end_with_their_supervisor(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(SIMULATED.format(products=FEW))
    with Process(tmp_path, "run", "--shards", "2") as process:
        process.until(lambda: all_ready(tmp_path, 2), 20)
        pids = [shard["pid"] for shard in shards_of(tmp_path).values()]
        process.process.kill()
        process.process.wait()
        deadline = time.monotonic() + 12
        while any(_is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "they outlive it"
            time.sleep(0.05)


@pytest.mark.fault
def test_other_numbers_of_shards_take_topics_over_without_a_hole(redis_url: str, tmp_path: Path) -> None:
    """One process, 2, 3, and 2 again: topics change hands, each time behind a gap that says what was missed."""
    with provider(rate=1000) as port:
        config = write(tmp_path, redis_url, port)
        for number, args in enumerate(([], ["--shards", "2"], ["--shards", "3"], ["--shards", "2"]), 1):
            with Process(tmp_path, "run", "-c", config, *args) as process:
                process.until(
                    lambda number=number: all(
                        len({body["run"] for body in bodies(redis_url, name)[-400:]}) >= min(number, 2)
                        and body_count(redis_url, name, number)
                        for name in NAMES
                    ),
                    20,
                )
                count = int(args[1]) if args else 0
                if count:
                    dealt = deal(load_config(config), count)
                    assert all(owners(redis_url)[name] == f"t-{dealt.homes[name]}" for name in NAMES)
                assert process.stop(signal.SIGTERM, 15) == 0
                assert "another relay owns" not in process.text, process.text
    verdict = check(streams(redis_url, NAMES))
    assert verdict.right, str(verdict)
    assert verdict.reasons == {"relay_down": 3 * len(NAMES)}


def body_count(url: str, name: str, runs: int) -> bool:
    """Whether a topic has data of so many runs."""
    return len({body["run"] for body in bodies(url, name) if body["type"] == "trade"}) >= runs


@pytest.mark.anyio
@pytest.mark.fault
async def test_a_topic_of_a_living_sibling_is_refused_loudly(redis_url: str, tmp_path: Path) -> None:
    """Two layouts at one time are a mistake: the second one says so and writes none of what the first one holds."""
    text = f"redis: {{url: '{redis_url}'}}\nproviders:\n  coinbase: {{simulate: true, trades: [{FEW}]}}\n"
    whole = config_of(text, tmp_path)
    async with relay_of(sharded(whole, 1, 1, "f")) as first:
        await until(lambda: len(first.bridge.outbox.topics) > 6)
        async with relay_of(sharded(whole, 2, 2, "f")) as second:
            await until(lambda: second.said("belongs to the relay 'relay-1': it runs"), 15)
            assert not second.said("taken from their former owner")
            with anyio.fail_after(5):
                while first.bridge.outbox.entries():  # noqa: ASYNC110 -- what is waited for happens in the sink
                    await anyio.sleep(0.01)
        assert not [topic for topic in first.bridge.outbox.blocked()]


@pytest.mark.fault
def test_what_a_former_layout_had_not_sent_is_sent_before_its_topics_change_hands(tmp_path: Path) -> None:
    """Redis is away while three shards run; their spools go to Redis before two shards write their topics."""
    server = RedisServer()
    try:
        with provider(rate=500) as port:
            config = write(tmp_path, server.url, port)
            with Process(tmp_path, "run", "--shards", "3", "-c", config) as process:
                process.until(lambda: body_count_all(server, 1), 20)
                server.signal(signal.SIGSTOP)
                process.until(lambda: "Redis is away" in process.text, 20)
                process.until(spooled(tmp_path, 100_000))
                assert process.stop(signal.SIGTERM, 20) == 0
                server.signal(signal.SIGCONT)
            for runs in (2, 3):
                with Process(tmp_path, "run", "--shards", "2", "-c", config) as process:
                    process.until(lambda runs=runs: body_count_all(server, runs), 20)
                    assert process.stop(signal.SIGTERM, 15) == 0
                    assert "another relay owns" not in process.text
        verdict = check(streams(server.url, NAMES))
        assert verdict.right, str(verdict)
        assert set(verdict.reasons) == {"relay_down"}
    finally:
        server.close()


def spooled(folder: Path, more: int) -> Any:
    """A condition: the spools have grown by so many bytes."""

    def size() -> int:
        return sum(path.stat().st_size for path in (folder / "state" / "spool").glob("*/*.spool"))

    before = size()
    return lambda: size() > before + more


def body_count_all(server: RedisServer, runs: int) -> bool:
    return all(body_count(server.url, name, runs) for name in NAMES)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--shard", "3/2"], 2, "there is no shard 3 of 2"),
        (["--shard", "two"], 2, "write its number and how many there are"),
        (["--shards", "2", "--shard", "1/2"], 2, "give one of the two"),
        (["--shards", "0"], 2, "0 is not in the range"),
        (["--shard", "1/2"], 78, "one embedded server cannot be shared between hosts"),
        (["--shards", "2", "-c", "long.yaml"], 78, "too long for 2 shards"),
    ],
)
def test_wrong_use_is_said_in_a_line(tmp_path: Path, args: list[str], code: int, said: str) -> None:
    (tmp_path / "relay.yaml").write_text("providers: {coinbase: {simulate: true, trades: [BTC-USD]}}")
    (tmp_path / "long.yaml").write_text(
        f"name: {'n' * 31}\nproviders: {{coinbase: {{simulate: true, trades: [BTC-USD]}}}}"
    )
    with Process(tmp_path, "run", *args) as process:
        assert process.process.wait(20) == code
        assert said in process.text
        assert "Traceback" not in process.text


@pytest.mark.fault
def test_a_second_supervisor_of_the_same_relay_ends_with_a_line(redis_url: str, tmp_path: Path) -> None:
    text = f"redis: {{url: '{redis_url}'}}\nspool: {{enabled: false}}\n"
    text += f"providers:\n  coinbase: {{simulate: true, trades: [{FEW}]}}\n"
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "relay.yaml").write_text(text)
    with Process(first, "run", "--shards", "2") as one:
        one.until(lambda: one.text.count('"connected"') == 2, 20)
        with Process(second, "run", "--shards", "2") as two:
            assert two.process.wait(20) == 1
            assert "already runs" in two.text
            assert "none of the 2 shards can start" in two.text
        assert one.stop(signal.SIGTERM, 15) == 0


def test_lines_of_shards_are_named() -> None:
    assert named("r-1", "relay 0.1") == "r-1 | relay 0.1"
    assert json.loads(named("r-1", '{"event": "x"}')) == {"shard": "r-1", "event": "x"}
    assert named("r-1", "{}") == "r-1 | {}"


@pytest.mark.fault
def test_topics_change_hands_in_a_cluster_too(tmp_path: Path) -> None:
    """2 shards, 3, and 2 again over three primaries: each topic lies on a node of its own."""
    cluster = Cluster(3, 0)
    try:
        with provider(rate=1000) as port, cluster.client() as client:

            def entries() -> dict[str, list[tuple[str, bytes]]]:
                return {name: [(i.decode(), f[b"data"]) for i, f in client.xrange(name)] for name in NAMES}

            def runs() -> int:
                """Runs of which every topic has data."""
                trades = [[json.loads(body) for _, body in found] for found in entries().values()]
                return min(len({one["run"] for one in found if one["type"] == "trade"}) for found in trades)

            config = write(tmp_path, cluster.url, port)
            for number, count in enumerate(("2", "3", "2"), 1):
                with Process(tmp_path, "run", "-c", config, "--shards", count) as process:
                    process.until(lambda number=number: runs() >= number, 30)
                    assert process.stop(signal.SIGTERM, 15) == 0, process.text[-2000:]
                    assert "another relay owns" not in process.text, process.text
            verdict = check(entries())
        assert verdict.right, str(verdict)
        assert verdict.reasons == {"relay_down": 2 * len(NAMES)}
    finally:
        cluster.close()


@pytest.mark.fault
def test_each_shard_has_a_standby_on_another_host(redis_url: str, tmp_path: Path) -> None:
    """Two hosts with two shards each: one shard dies, then the whole host; the other one goes on without a hole."""
    with provider(rate=1000) as port:
        for host in "ab":
            (tmp_path / host).mkdir()
            extra = "http: {enabled: true, port: 0}\nstandby: {enabled: true}"
            write(tmp_path / host, redis_url, port, extra)
        a, b = tmp_path / "a", tmp_path / "b"

        def said(host: Path) -> str:
            with contextlib.suppress(OSError, ValueError):
                with urllib.request.urlopen(f"{(host / 'state' / 'http_url').read_text().strip()}/readyz") as answer:
                    return answer.read().decode().strip()
            return ""

        def roles(host: Path) -> dict[int, str]:
            url = (host / "state" / "http_url").read_text().strip()
            return {one["number"]: one.get("role", "") for one in get(f"{url}/status.json?limit=0")["shards"]}

        with Process(a, "run", "--shards", "2") as first, Process(b, "run", "--shards", "2") as second:
            first.until(lambda: {said(a), said(b)} in ({"ready", "standby"}, {"ready"}), 40)
            first.until(
                lambda: sorted([*roles(a).values(), *roles(b).values()]) == ["active"] * 2 + ["standby"] * 2, 20
            )
            host = a if "active" in roles(a).values() else b
            other = b if host is a else a
            number = next(number for number, role in roles(host).items() if role == "active")
            url = (host / "state" / "http_url").read_text().strip()
            pid = {one["number"]: one["pid"] for one in get(f"{url}/status.json?limit=0")["shards"]}[number]
            os.kill(pid, signal.SIGKILL)
            first.until(lambda: roles(other)[number] == "active", 20)
            first.until(lambda: said(host) in ("ready", "standby") and said(other) == "ready", 40)
            (first if host is a else second).process.kill()
            last = second if host is a else first
            last.until(lambda: set(roles(other).values()) == {"active"}, 20)
            before = sum(len(bodies(redis_url, name)) for name in NAMES)
            last.until(lambda: sum(len(bodies(redis_url, name)) for name in NAMES) > before + 500, 20)
            assert last.stop(signal.SIGTERM, 20) == 0
        verdict = check(streams(redis_url, NAMES))
        print(f"\na shard, then a host: {verdict}")
        assert verdict.right, str(verdict)
        assert verdict.gaps == 0, str(verdict)


# -- killed under load -------------------------------------------------------------------------------------------


def verdicts(url: str, ours: set[str]) -> tuple[Verdict, Verdict]:
    """Of the topics of the killed one, and of all others."""
    return check(streams(url, sorted(ours))), check(streams(url, sorted(set(NAMES) - ours)))


@pytest.mark.fault
def test_kill_of_a_shard_touches_no_topic_of_another(tmp_path: Path) -> None:
    server = RedisServer()
    rounds = dose(10)
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port, "http: {enabled: true, port: 0}")
            with killed(tmp_path / "four", config, ["--shards", "4"], rounds, server) as ours:
                pass
        victims, others = verdicts(server.url, ours)
        print(f"\nkill -9 of one of 4 shards x {rounds}: its topics {victims}; the others {others}")
        assert 0 < len(ours) < len(NAMES)
        assert victims.right, str(victims)
        assert victims.reasons["relay_down"] >= rounds * len(ours), "every round was under load"
        assert others.right, str(others)
        assert others.gaps == 0, str(others)
        assert others.data > 1000
    finally:
        server.close()


@pytest.mark.fault
def test_control_kill_of_one_process_for_all_touches_every_topic(tmp_path: Path) -> None:
    """The control: the same look at one process finds gaps where the other test finds none."""
    server = RedisServer()
    try:
        with provider() as port:
            config = write(tmp_path, server.url, port, "http: {enabled: true, port: 0}")
            with killed(tmp_path / "one", config, ["--shards", "1"], 2, server) as ours:
                pass
        assert ours == set(NAMES)
        _, others = verdicts(server.url, set(NAMES[:5]))
        assert others.gaps > 0
    finally:
        server.close()


@contextlib.contextmanager
def killed(folder: Path, config: str, args: list[str], rounds: int, server: RedisServer) -> Iterator[set[str]]:
    """Kill the last shard so many times under load, then stop all; gives its topics."""
    folder.mkdir()
    count = int(args[1])
    dealt = deal(load_config(config), count)
    ours = {name for name in NAMES if dealt.homes[name] == count}
    state = Path(config).parent / "state"
    with Process(folder, "run", "-c", config, *args) as process:
        process.until(lambda: (state / "http_url").exists(), 20)
        url = (state / "http_url").read_text().strip()

        def shards() -> dict[int, dict[str, Any]]:
            return {shard["number"]: shard for shard in get(f"{url}/status.json?limit=0")["shards"]}

        def latest(name: str) -> int:
            with server.client() as client:
                entries = client.xrevrange(name, count=1)
            return int(json.loads(entries[0][1]["data"])["run"]) if entries else 0

        for _ in range(rounds):
            process.until(lambda: all(map(latest, NAMES)) and all(s.get("ready") for s in shards().values()), 30)
            time.sleep(random.random() * 0.3)
            before = {name: latest(name) for name in ours}
            os.kill(shards()[count]["pid"], signal.SIGKILL)
            process.until(lambda before=before: all(latest(name) > before[name] for name in ours), 30)
        yield ours
        assert process.stop(signal.SIGTERM, 15) == 0, process.text[-3000:]
        assert "another relay owns" not in process.text
        assert "not accounted for" not in process.text
