"""A live run, recorded, gives the same bytes when it is replayed: every provider, with everything that goes wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import yaml
from click.testing import CliRunner, Result
from relays import config_of, relay_of, until
from servers import RedisServer

from relay.__main__ import main
from relay.normalizer import Normalizer
from relay.providers import PROVIDERS
from relay.simulator.faults import Faults

ROOT = Path(__file__).resolve().parents[1]
FRAMES = ROOT.parent / "shared" / "frames"
SECRET = 'se"cret-canary/1'
MORE: dict[str, Any] = {
    "aries": {"orders": True} if "orders" in PROVIDERS["aries"].options.__struct_fields__ else {},
    "etoro": {"orders": True},
}
"""Beside what the shipped relay.yaml subscribes to: accounts, which are recorded when asked."""
ELSE = {"simulate": True, "quotes": ["BTC/USD"], "trades": ["BTC/USD"]}
"""For a provider that the shipped relay.yaml does not run."""

Entries = dict[str, list[tuple[str, bytes]]]


def streams(url: str, pattern: str = "*") -> Entries:
    """All streams: name to (id, bytes)."""
    with redis.Redis.from_url(url) as client:
        return {
            key.decode(): [(entry_id.decode(), fields[b"data"]) for entry_id, fields in client.xrange(key)]
            for key in client.keys(pattern)
            if client.type(key) == b"stream"
        }


def replay(*args: object) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, args)])


class Recorded:
    """A run that was recorded: its folder, what it published, the server that holds it."""

    def __init__(self, folder: Path, url: str, live: Entries) -> None:
        self.folder, self.url, self.live = folder, url, live

    def of(self, provider: str) -> dict[str, list[tuple[str, bytes]]]:
        """What one provider published, by topic."""
        mark = f'"provider":"{provider}"'.encode()
        found = {name: [e for e in entries if mark in e[1][:200]] for name, entries in self.live.items()}
        return {name: entries for name, entries in found.items() if entries}


def record(folder: Path, url: str, providers: dict[str, Any], more: str = "") -> Recorded:
    text = yaml.safe_dump(
        {
            "name": "t",
            "merge": True,
            "redis": {"url": url},
            "simulator": {"rate": 200},
            "providers": providers,
        }
    )
    config = config_of(f"journal: {{dir: {folder}/journal, flush_ms: 20, accounts: true, {more}}}\n{text}", folder)

    async def live() -> None:
        async with relay_of(config) as running:
            bridge = running.bridge

            def counts(name: str) -> Any:
                return bridge.providers[name].source.counts

            def opened(name: str) -> int:
                return min(feed.stats.opened for feed in bridge.providers[name].feeds)

            await until(lambda: all(counts(name).published > 20 for name in providers), 15)
            faults = Faults(jump_every=7, repeat_every=11, garbage_every=5, binary_garbage_every=9)
            bridge.simulator.set_faults(faults)
            await until(lambda: all(counts(name).rejects > 3 for name in providers))
            bridge.simulator.set_faults(Faults(close_after=(3, 1012), connections=50))
            await until(lambda: all(opened(name) > 1 for name in providers))
            bridge.simulator.set_faults(Faults(garbage_every=20))
            bridge.simulator.drop()
            before = {name: counts(name).published for name in providers}
            await until(lambda: all(counts(name).published > before[name] + 20 for name in providers), 15)

    anyio.run(live)
    return Recorded(folder / "journal", url, streams(url))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def recorded(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One run of every provider against its simulated side: gaps, garbage, repeats, hang-ups, cuts."""
    shipped = yaml.safe_load((ROOT / "relay.yaml").read_text())["providers"]
    sections = {name: {**shipped.get(name, ELSE), **MORE.get(name, {})} for name in PROVIDERS}
    sections["tickatlas"] = {**sections["tickatlas"], "interval_ms": {"quotes": 50}}  # thinned: published by time
    return record(tmp_path_factory.mktemp("recorded"), server.url, sections)


@pytest.fixture(scope="module")
def replayed(recorded: Recorded) -> list[Entries]:
    """What two replays into prefixes of their own gave, by live topic names."""
    out = []
    for prefix in ("replay.one.", "replay.two."):
        result = replay(recorded.folder, "--url", recorded.url, "--into", prefix)
        assert result.exit_code == 0, result.output
        out.append({name.removeprefix(prefix): found for name, found in streams(recorded.url, f"{prefix}*").items()})
    return out


@pytest.mark.parametrize("provider", PROVIDERS)
def test_replay_gives_the_bytes_of_the_live_run(provider: str, recorded: Recorded, replayed: list[Entries]) -> None:
    live = recorded.of(provider)
    kinds = {json.loads(body)["type"] for entries in live.values() for _, body in entries}
    assert kinds >= {"status", "reject"} and len(kinds) > 2, "the run had something of everything"
    mark = f'"provider":"{provider}"'.encode()
    for again in replayed:
        for name, entries in live.items():
            assert [e for e in again.get(name, []) if mark in e[1][:200]] == entries, name


def test_replay_gives_no_more_and_no_less_than_the_live_run(recorded: Recorded, replayed: list[Entries]) -> None:
    assert replayed[0] == replayed[1] == recorded.live


@pytest.mark.parametrize("chunk", [7, 500])
def test_what_was_published_does_not_differ(
    recorded: Recorded, replayed: list[Entries], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.cli._replay_compare.CHUNK", chunk)
    result = replay(recorded.folder, "--diff", "--url", recorded.url)
    assert result.exit_code == 0, result.output
    count = sum(map(len, recorded.live.values()))
    assert f"{count:,} same, 0 changed, 0 missing, 0 new" in result.output


def test_lines_are_the_messages_in_their_order(recorded: Recorded) -> None:
    result = replay(recorded.folder, "--stdout", "--topics", "--only", "status.*")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    (status,) = (name for name in recorded.live if name.endswith("status.t"))
    assert [(one["id"], one["message"]) for one in found] == [(i, json.loads(b)) for i, b in recorded.live[status]]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_replay_from_the_middle_knows_what_came_before(provider: str, recorded: Recorded) -> None:
    entries = max(recorded.of(provider).items(), key=lambda item: len(item[1]))
    name, middle = entries[0], json.loads(entries[1][len(entries[1]) // 2][1])["ts_recv"]
    wanted = [body for _, body in entries[1] if json.loads(body)["ts_recv"] >= middle]
    at = f"{middle}"
    result = replay(recorded.folder, "--stdout", "--from", at, "--only", name, "--provider", provider)
    assert result.stdout_bytes.splitlines() == wanted
    result = replay(recorded.folder, "--stdout", "--to", at, "--only", name, "--provider", provider)
    assert result.stdout_bytes.splitlines() == [body for _, body in entries[1][: -len(wanted)]]


def test_one_prefix_holds_one_replay(recorded: Recorded, replayed: list[Entries]) -> None:
    result = replay(recorded.folder, "--url", recorded.url, "--into", "replay.one.")
    assert result.exit_code == 1 and "--replace" in result.output
    assert replay(recorded.folder, "--url", recorded.url, "--into", "replay.one.", "--replace").exit_code == 0
    assert sum(map(len, streams(recorded.url, "replay.one.*").values())) == sum(map(len, recorded.live.values()))


def test_replace_deletes_replays_alone(recorded: Recorded) -> None:
    result = replay(recorded.folder, "--url", recorded.url, "--into", "sim.", "--replace")
    assert result.exit_code == 1 and "replay." in result.output
    assert streams(recorded.url, "sim.*") == recorded.live


@pytest.mark.fault
def test_as_live_writes_what_is_missing_with_a_warning(recorded: Recorded) -> None:
    other = RedisServer()
    try:
        for _ in range(2):
            result = replay(recorded.folder, "--url", other.url, "--as-live")
            assert result.exit_code == 0 and "WARNING" in result.output
        assert streams(other.url) == recorded.live
        assert "were there already" in result.output
        with other.client() as client:
            client.set("sim.relay:lease:t", "somebody else", px=60_000)
            result = replay(recorded.folder, "--url", other.url, "--as-live")
            assert result.exit_code == 1 and "already runs" in result.output
    finally:
        other.close()


def test_streams_play_into_a_prefix(recorded: Recorded) -> None:
    result = replay("--from-stream", "sim.quotes.*", "--url", recorded.url, "--into", "replay.streams.")
    assert result.exit_code == 0, result.output
    quotes = {name: entries for name, entries in recorded.live.items() if name.startswith("sim.quotes.")}
    prefix = "replay.streams."
    assert {n.removeprefix(prefix): e for n, e in streams(recorded.url, f"{prefix}*").items()} == quotes


def test_difference_is_told_by_topic_and_field(recorded: Recorded, server: RedisServer) -> None:
    name, entries = next((n, e) for n, e in recorded.of("coinapi").items() if "trades." in n)
    bent, lost, *_ = [i for i, (_, body) in enumerate(entries) if b'"type":"trade"' in body]
    with redis.Redis.from_url(recorded.url) as client:
        changed = json.loads(entries[bent][1])
        changed["price"] = "1.50"
        gone = entries[lost][0]
        kept = [
            (i, json.dumps(changed, separators=(",", ":")).encode() if i == entries[bent][0] else b)
            for i, b in entries
            if i != gone
        ]
        kept.append((f"{entries[-1][0].split('-')[0]}-{10**9}", entries[-1][1]))
        saved = client.dump(name)
        client.delete(name)
        for entry_id, body in kept:
            client.xadd(name, {"data": body}, id=entry_id)
        result = replay(recorded.folder, "--diff", "--url", recorded.url, "--json", "--only", name)
        client.restore(name, 0, saved, replace=True)
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["differs"]
    topic = report["topics"][name]
    assert (topic["changed"], topic["missing"], topic["new"]) == (1, 1, 1)
    assert topic["fields"] == {"price": 1}


def lines_of(recorded: Recorded, file: Path) -> list[str]:
    """What `relay tail --json --topics` wrote of the live run."""
    everything = ("*", "--since", "all", "--no-follow", "--json", "--topics")
    result = CliRunner().invoke(main, ["tail", *everything, "--url", recorded.url])
    names = {json.loads(line)["topic"] for line in result.stdout.splitlines()}
    assert result.exit_code == 0 and names == set(recorded.live)
    file.write_bytes(result.stdout_bytes)
    return result.stdout.splitlines()


@pytest.mark.parametrize(("chunk", "waiting"), [(7, 50_000), (500, 20)])
def test_lines_of_a_file_do_not_differ(
    recorded: Recorded, tmp_path: Path, chunk: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.cli._replay_compare.CHUNK", chunk)
    monkeypatch.setattr("relay.cli._replay_compare.WAITING_MAX", waiting)
    file = tmp_path / "published.jsonl"
    lines = lines_of(recorded, file)
    file.write_text("\n".join(lines[::-1] + lines[:100]))  # in any order, some twice
    result = replay(recorded.folder, "--diff", "--against", file)
    assert result.exit_code == 0, result.output
    assert f"{len(lines):,} same, 0 changed, 0 missing, 0 new" in result.output
    file.write_bytes(replay(recorded.folder, "--stdout", "--topics").stdout_bytes)
    result = replay(recorded.folder, "--diff", "--against", file, "--only", "*.trades.*")
    assert result.exit_code == 0 and " same, 0 changed, 0 missing, 0 new" in result.output


def test_difference_from_a_file_is_told(recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "published.jsonl"
    lines = lines_of(recorded, file)
    trades = [number for number, line in enumerate(lines) if '"type":"trade"' in line]
    bent, lost = trades[0], trades[-1]
    name = json.loads(lines[bent])["topic"]
    price = json.loads(lines[bent])["message"]["price"]
    changed = lines[bent].replace(f'"price":"{price}"', '"price":"1.50"')
    gone = lines[lost].replace(json.loads(lines[lost])["topic"], "sim.trades.GONE")
    kept = [changed if number == bent else line for number, line in enumerate(lines) if number != lost]
    file.write_text("\n".join([*kept, gone]))
    result = replay(recorded.folder, "--diff", "--against", file, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["differs"]
    totals = report["totals"]
    assert (totals["changed"], totals["missing"], totals["new"]) == (1, 1, 1)
    assert report["topics"][name]["fields"] == {"price": 1}
    assert report["topics"]["sim.trades.GONE"]["missing"] == 1


def test_frames_are_compared_with_what_they_gave_before(tmp_path: Path) -> None:
    frame = '{"t": %s, "frame": "{\\"type\\":\\"trade\\",\\"symbol_id\\":\\"KRAKEN_SPOT_BTC_USD\\",\\"sequence\\":%d,'
    frame += '\\"time_exchange\\":\\"2026-01-01T00:00:00Z\\",\\"uuid\\":\\"u%d\\",\\"price\\":%d,\\"size\\":1}"}\n'
    frames, before = tmp_path / "coinapi.jsonl", tmp_path / "before.jsonl"
    frames.write_text("".join(frame % (1.5 + n, n, n, 100 + n) for n in range(3)))
    before.write_bytes(replay(frames, "--stdout", "--topics").stdout_bytes)
    assert before.read_text().count('"type":"trade"') == 3
    result = replay(frames, "--diff", "--against", before)
    assert result.exit_code == 0 and "0 changed, 0 missing, 0 new" in result.output
    before.write_text(
        before.read_text() + before.read_text().splitlines()[-1].replace('-3"', '-4"').replace("102", "7")
    )
    result = replay(frames, "--diff", "--against", before)
    assert result.exit_code == 1 and "1 missing" in result.output
    frames.write_text(frames.read_text().replace('"t"', '"x"'))
    result = replay(frames, "--diff", "--against", before)
    assert result.exit_code == 2 and "times" in result.output


def test_file_that_holds_no_published_lines_is_told(recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "published.jsonl"
    good = '{"topic":"a","id":"1-1","message":{}}\n'
    for bad in ("{}", '{"topic":"a","id":"x","message":{}}', "nonsense"):
        file.write_text(f"{good}\n{bad}\n")
        result = replay(recorded.folder, "--diff", "--against", file)
        assert result.exit_code == 1 and "published.jsonl:3: not a line" in result.output, result.output


def test_recording_plays_as_a_provider(recorded: Recorded, redis_url: str, tmp_path: Path) -> None:
    from relay.simulator.playback import Playback
    from relay.simulator.server import Simulator

    section = {"coinapi": {**yaml.safe_load((ROOT / "relay.yaml").read_text())["providers"]["coinapi"]}}
    del section["coinapi"]["simulate"]

    async def live() -> int:
        async with Simulator(["coinapi"], play={"coinapi": Playback(recorded.folder, speed=0)}) as simulator:
            section["coinapi"] |= {"url": simulator.url("coinapi"), "api_key": "k" * 8}
            config = config_of(
                yaml.safe_dump({"name": "p", "redis": {"url": redis_url}, "providers": section}), tmp_path
            )
            async with relay_of(config) as running:
                counts = running.bridge.providers["coinapi"].source.counts
                wanted = sum(len(entries) for entries in recorded.of("coinapi").values()) // 2
                await until(lambda: counts.published + counts.repeats + counts.rejects > wanted)
                return int(counts.published)

    assert anyio.run(live) > 20


def test_secrets_never_reach_the_recording(redis_url: str, tmp_path: Path) -> None:
    from relay.simulator.server import Simulator

    async def live() -> None:
        async with Simulator(["coinapi", "tickatlas"], rate=100) as simulator:
            text = f"""
name: t
redis: {{url: {redis_url}}}
journal: {{dir: {tmp_path}/journal, flush_ms: 20}}
providers:
  coinapi: {{url: "{simulator.url("coinapi")}", api_key: "${{KEY}}", trades: [BITSTAMP_SPOT_BTC_USD]}}
  tickatlas: {{url: "{simulator.url("tickatlas")}", api_key: "${{KEY}}", quotes: [EURUSD], auth_field: both}}
"""
            async with relay_of(config_of(text, tmp_path, KEY=SECRET)) as running:
                providers = running.bridge.providers.values()
                await until(lambda: all(state.source.counts.published > 5 for state in providers))

    anyio.run(live)
    result = CliRunner().invoke(main, ["journal", "cat", "--all", str(tmp_path / "journal")])
    assert result.exit_code == 0 and '"do":"out"' in result.stdout
    assert "canary" not in result.stdout and "***" in result.stdout


@pytest.mark.parametrize("asked", [True, False])
def test_accounts_are_recorded_only_when_asked(asked: bool, redis_url: str, tmp_path: Path) -> None:
    section = {"simulate": True, "quotes": ["TSLA"], "orders": True}
    config = config_of(
        yaml.safe_dump(
            {
                "name": "t",
                "redis": {"url": redis_url},
                "simulator": {"rate": 100},
                "journal": {"dir": str(tmp_path / "journal"), "accounts": asked},
                "providers": {"etoro": section, "coinbase": {"simulate": True, "trades": ["BTC-USD"]}},
            }
        ),
        tmp_path,
    )

    async def live() -> None:
        async with relay_of(config) as running:
            bridge = running.bridge
            await until(
                lambda: len(streams(redis_url, "sim.orders.*")) > 0 and len(streams(redis_url, "sim.quotes.*")) > 0
            )
            bridge.simulator.set_faults(Faults(garbage_every=5))
            await until(lambda: all(state.source.counts.rejects > 3 for state in bridge.providers.values()))

    anyio.run(live)
    live_streams = streams(redis_url)
    text = CliRunner().invoke(main, ["journal", "cat", "--all", str(tmp_path / "journal")]).stdout
    orders = [json.loads(body)["order_id"] for _, body in live_streams["sim.orders.main"]]
    assert all((order in text) == asked for order in orders)
    assert replay(tmp_path / "journal", "--url", redis_url, "--into", "replay.a.").exit_code == 0
    again = {n.removeprefix("replay.a."): e for n, e in streams(redis_url, "replay.a.*").items()}
    if not asked:
        del live_streams["sim.orders.main"]
        # what came over the account's connection and was rejected is not kept either; the others have their numbers
        rejects = live_streams.pop("sim.deadletter.t")
        assert 0 < len(again["sim.deadletter.t"]) < len(rejects)
        assert set(again.pop("sim.deadletter.t")) < set(rejects)
    assert again == live_streams
    result = replay(tmp_path / "journal", "--diff", "--url", redis_url)
    assert result.exit_code == 0 and "0 changed, 0 missing, 0 new" in result.output, result.output
    assert ("accounts were not recorded" in result.output) is not asked


@pytest.mark.skipif(not FRAMES.is_dir(), reason=f"{FRAMES} is absent: the recordings are not part of this repository")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_frames_of_others_replay(provider: str) -> None:
    from relay.cli._common import frames_input, plain_options

    path = FRAMES / f"{provider}.jsonl"
    spec = PROVIDERS[provider]
    normalizer = Normalizer(spec, plain_options(spec), None)
    wanted = 0
    session: object = None
    with path.open() as source:
        for frame in frames_input(source):
            if frame.session != session:
                wanted += len(normalizer.close(frame.t_ns or 1))
                session = frame.session
            wanted += len(normalizer.frame(frame.data, frame.t_ns or 1, binary=frame.binary)[0])
    result = replay(path, "--stdout")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == wanted > 0
    assert replay(path, "--stdout").stdout == result.stdout, "twice the same"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "Name recordings"),
        (("x", "--from-stream", "y"), "Name recordings"),
        (("x", "--stdout", "--diff"), "exclude each other"),
        (("x", "--speed", "fast"), "--speed"),
        (("x", "--into", "", "--stdout"), "--into"),
        (("x", "--into", "a b"), "--into"),
        (("x", "--step"), "terminal"),
        (("x", "--stdout", "--replace"), "--replace"),
        (("x", "--against", __file__), "--against"),
        (("x", "--diff", "--against", "/no/such"), "does not exist"),
    ],
)
def test_wrong_usage_is_told(args: tuple[str, ...], complaint: str) -> None:
    result = replay(*args)
    assert result.exit_code == 2 and complaint in result.output


def test_what_is_no_recording_is_told(tmp_path: Path) -> None:
    result = replay(tmp_path / "nothing", "--stdout")
    assert result.exit_code == 1 and "no such file" in result.output
    result = replay(tmp_path, "--stdout")
    assert result.exit_code == 1 and "no recording" in result.output


def test_topics_of_readable_lines_are_no_option() -> None:
    result = CliRunner().invoke(main, ["tail", "quotes.*", "--topics"])
    assert result.exit_code == 2 and "--json" in result.output


def test_numbers_that_are_left_out_are_left_out_of_their_run_alone() -> None:
    """Statuses that Redis caused have numbers of one run; the same numbers of another run are compared."""
    from relay.cli._replay_compare import DiffTarget
    from relay.replay import ReplayTopic

    bodies = [
        (f"{run}-{seq}", b'{"type":"status","ts_recv":%d,"run":%d,"seq":%d}' % (run * 10**6 + seq, run, seq))
        for run in (1, 2)
        for seq in (1, 2)
    ]

    class Published:
        def wants(self, name: str, body: bytes) -> bool:
            return True

        def names(self) -> list[str]:
            return ["status.t"]

        def entries(self, name: str, start_ms: int, end_ms: int) -> list[tuple[str, bytes]]:
            return [one for one in bodies if start_ms <= int(one[0].split("-")[0]) <= end_ms]

        def first_kept(self, name: str) -> None:
            return None

        def close(self) -> None:
            return None

    target = DiffTarget(Published(), {1: True, 2: True})
    topic = ReplayTopic("t", "status.t", "status", "")
    target.set_aside(1, topic, 2, 2)
    target.take([(topic, *one) for one in bodies if one[0] != "1-2"])
    anyio.run(target.finish)
    report = target.difference.plain()["totals"]
    assert (report["same"], report["missing"], report["new"]) == (3, 0, 0)
