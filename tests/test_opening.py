"""Commands that read Redis do so from a cluster and from a service under Sentinel too."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result
from clusters import Cluster
from relays import until
from sentinels import PASSWORD, SENTINELS_PASSWORD, Service
from sinks import Relay
from streams import Writer

from relay.__main__ import main
from relay.cli._replay_redis import check_place, listed
from relay.client import Client
from relay.config import RedisConfig
from relay.dashboard.reader import Reader
from relay.dashboard.state import Board, Limits
from relay.opening import login_of, newer, opened

ACL = Path(__file__).resolve().parents[1] / "deploy" / "relay.acl"
NAMES = [f"trades.T{number}" for number in range(12)]
HALF = """
redis: {{url: "{url}", sentinel_password: "{password}"}}
providers: {{kraken: {{trades: [BTC/USD]}}}}
"""


class Place:
    """A Redis of either kind: its address, a client made by redis-py, the logins that the address does not hold."""

    def __init__(self, url: str, client: Any, **login: str) -> None:
        self.url, self.client, self.login = url, client, login

    def args(self, folder: Path) -> list[str]:
        """What a command needs: the address, or a config where that does not say all."""
        if not self.login:
            return ["--url", self.url]
        path = folder / "relay.yaml"
        path.write_text(HALF.format(url=self.url, password=self.login["sentinel_password"]))
        return ["-c", str(path)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    cluster = Cluster(3, 0)
    try:
        cluster.until(cluster.whole)
        with contextlib.closing(cluster.client()) as client:
            yield Place(cluster.url, client)
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Place]:
    service = Service(servers=1, sentinels=1)
    try:
        with service.servers[0].client(password=PASSWORD) as client:
            yield Place(service.url, client, sentinel_password=SENTINELS_PASSWORD)
    finally:
        service.close()


@pytest.fixture(params=["cluster", "sentinel"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    found.client.flushall()
    return found


@pytest.fixture
def written(place: Place) -> dict[str, list[str]]:
    writer = Writer("", client=place.client)
    return {name: writer.put(name, 3) for name in NAMES}


def relay(*args: object) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


def test_tail_prints_all_topics(place: Place, written: dict[str, list[str]], tmp_path: Path) -> None:
    args = place.args(tmp_path)
    result = relay("tail", "trades.*", *args, "--since", "all", "--no-follow", "--json")
    assert result.exit_code == 0, result.output
    assert sorted(json.loads(line)["seq"] for line in result.stdout.splitlines()) == sorted([1, 2, 3] * len(NAMES))
    result = relay("tail", NAMES[0], *args, "--no-follow")
    assert result.exit_code == 0 and result.stdout == ""


def test_streams_are_replayed_and_places_looked_at(place: Place, written: dict[str, list[str]], tmp_path: Path) -> None:
    args = place.args(tmp_path)
    result = relay("replay", "--from-stream", "trades.*", *args, "--stdout", "--topics", "--speed", "max")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3 * len(NAMES)
    result = relay("replay", "--from-stream", "trades.*", *args, "--into", "replay.y.", "--speed", "max")
    assert result.exit_code == 0, (result.output, result.exception)
    assert [place.client.xlen(f"replay.y.{name}") for name in NAMES] == [3] * len(NAMES)
    with contextlib.closing(opened(place.url, place.login)) as client:
        assert set(listed(client, "")) == set(NAMES)
        assert check_place(client, "replay.x.", replace=False) == ""
        for name in NAMES:
            place.client.set(f"replay.x.{name}", "1")
        assert "holds keys already" in check_place(client, "replay.x.", replace=False)
        assert check_place(client, "replay.x.", replace=True) == ""
        assert not place.client.exists(*[f"replay.x.{name}" for name in NAMES])


async def test_dashboard_shows_what_is_there_and_what_comes(place: Place, written: dict[str, list[str]]) -> None:
    board = Board(Limits({}))
    reader = Reader(board, lambda: place.url, lists=["relay:topics"], changed=lambda: None, options={**place.login})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await until(lambda: set(reader.topics) == set(NAMES))
        assert reader.last == {name: ids[-1] for name, ids in written.items()}
        writer = Writer("", client=place.client)
        writer.ms += 60_000  # behind what the fixture has written, however soon this comes
        more = {name: writer.put(name, 2) for name in NAMES}
        await until(lambda: reader.last == {name: ids[-1] for name, ids in more.items()})
        place.client.delete(NAMES[0])
        place.client.set(NAMES[0], "no stream")
        (last,) = writer.put(NAMES[1])
        await until(lambda: reader.last[NAMES[1]] == last)
        tasks.cancel_scope.cancel()


async def test_users_of_the_acl_file_can_do_their_work_on_a_cluster(cluster: Place) -> None:
    cluster.client.flushall()
    for line in ACL.read_text().splitlines()[1:]:
        cluster.client.execute_command("ACL", "SETUSER", *line.split()[1:], target_nodes="primaries")
    relay = Relay(cluster.url, "acl", username="relay", password="change-me-relay")
    async with relay.running():
        for name in NAMES:
            relay.put(name, 3)
        await relay.drained()
    assert not re.search("NOPERM|topic_blocked|holding", str(relay.events)), relay.events
    cluster.client.flushall()
    writer = Writer("", client=cluster.client)
    ids = {writer.put(name)[0] for name in NAMES}
    for user in ("market", "market-group"):
        client = Client(cluster.url, username=user, password=f"change-me-{user}")
        assert {item.id for item in client.read_sync("trades.*", since="all", follow=False)} == ids
        found: set[str] = set()
        async with contextlib.aclosing(client.read("trades.*", since="all", via="channel")) as items:  # type: ignore[type-var]
            async for item in items:
                found.add(item.id)
                if found == ids:
                    break
        with contextlib.closing(opened(cluster.url, {"username": user, "password": f"change-me-{user}"})) as plain:
            assert sum(map(len, newer(plain, dict.fromkeys(NAMES, "0-0"), 10, None).values())) == len(NAMES)
    shared = client.share_sync("trades.*", group="g", consumer="a", since="all", follow=False)
    assert {item.id for item in shared} == ids


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+sentinel://127.0.0.1:1", "the address of Redis names no service; write redis+sentinel://host:26379"),
        ("redis+sentinel://127.0.0.1:1/s", "cannot be reached"),
        ("redis+cluster://127.0.0.1:1", "cannot be reached"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(url: str, text: str) -> None:
    for command in (("tail", "x", "--no-follow"), ("replay", "--from-stream", "x")):
        result = relay(*command, "--url", url)
        assert result.exit_code == 1 and text in result.output, (result.output, result.exception)
        assert len(result.output.splitlines()) == 1, result.output


def test_certificates_are_only_for_tls() -> None:
    given = {"ca_file": "ca", "username": "u", "sentinel_password": "p"}
    plain = {"username": "u", "sentinel_password": "p"}
    assert login_of(RedisConfig(url="redis+sentinel://a/s", **given)) == plain
    assert login_of(RedisConfig(url="rediss+sentinel://a/s", **given)) == plain | {"ssl_ca_certs": "ca"}
