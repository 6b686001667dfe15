"""Canary keys of several shapes go through a relay that is lied to, refused, redirected and echoed; none comes out.

What is searched: everything printed at DEBUG, the command lines, every key and stream in Redis, every file under the
state folder but the one that must hold the rotated refresh token.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
import pytest
import redis
from feeds import http, http_server
from relays import ROOT, Process, until
from servers import RedisServer

from relay import records
from relay.journal import read_records, runs_of
from relay.simulator.script import Scripted, close, expect, refuse, scripted, send

CANARIES = {
    "COINAPI": "6c5d0a52-6a0e-4c0b-9d1e-0f4b6a1f2c11",
    "TICKATLAS": 'tk_canary two words "quoted" it\'s \\back',
    "API": "canary-api&b=c%d?e/f#g:h",
    "USER": "q83vEjRWeJq83+7/3J0vCanaryUserKeyEjRWeJq83vEjRWeJq+/==",
    "SECRET": "canary client secret/with+signs=",
    "REFRESH": "rt.canary/refresh+one==",
    "TICKET": "canary-ticket-in-a-query",
    "REDIS": "canary p@ss:word/with#signs",
}
FRESH = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnktYWNjZXNzIn0.c2lnbmF0dXJl"
ROTATED = "second+rotated.canary/two=="
ALL = (*CANARIES.values(), FRESH, ROTATED)


def spelled(canary: str) -> set[bytes]:
    """Forms in which a canary could be found; written apart from relay.redaction."""
    once = json.dumps(canary)[1:-1]
    found = {canary, once, json.dumps(once)[1:-1], quote(canary), quote(canary, safe=""), quote_plus(canary)}
    found |= {repr(canary)[1:-1], canary[: len(canary) // 2 + 4], " ".join(canary.split())}
    return {one.encode() for one in found}


def leaks(place: str, data: bytes) -> list[str]:
    found = []
    for canary in ALL:
        for one in spelled(canary):
            at = data.find(one)
            if at >= 0:
                found.append(f"{place}: {canary!r} as {data[max(0, at - 120) : at + 80]!r}")
                break
    return found


# -- servers that give away what they were told ------------------------------------------------------------------------


def echo(message: Any) -> str:
    return json.dumps(message) if not isinstance(message, str) else message


def broken(message: Any) -> str:
    return "{" + echo(message)


def cut(message: Any) -> str:
    return "x" * 960 + echo(message)


def tickatlas_error(code: str) -> Any:
    return lambda message: {"type": "error", "code": code, "message": f"you said {echo(message)} and {message['key']}"}


def etoro_refusal(message: Any) -> Mapping[str, Any]:
    said = message["data"]
    return {"id": message["id"], "success": False, "operation": "Authenticate", "errorCode": f"E {said['apiKey']}",
            "errorMessage": f"no such keys: {said['userKey']} {echo(message)}"}  # fmt: skip


def aries_error(message: Any) -> Mapping[str, Any]:
    token = message["payload"]["body"]["token"]
    return {"type": "event", "payload": {"action": "error", "error": f"bad thing {token} in {echo(message)}"}}


CONFIG = """
name: t
state_dir: state
redis: {{url: "{redis}", password: "${{REDIS}}"}}
log: {{level: debug}}
journal: {{dir: state/journal}}
providers:
  coinapi:
    url: {coinapi}
    api_key: ${{COINAPI}}
    trades: [BITSTAMP_SPOT_BTC_USD]
  tickatlas:
    url: {tickatlas}
    api_key: ${{TICKATLAS}}
    quotes: [EURUSD]
  etoro:
    url: {etoro}
    rest_url: {rest}
    api_key: ${{API}}
    user_key: ${{USER}}
    quotes: [AAPL]
  header:
    type: etoro
    url: {header}
    rest_url: {rest}/away
    dialect: header
    query: {{ticket: "${{TICKET}}"}}
    api_key: ${{API}}
    user_key: ${{USER}}
    quotes: [TSLA, '1001']
  moved:
    type: etoro
    url: {moved}
    dialect: header
    metadata: false
    fallback_secs: 0
    api_key: ${{API}}
    user_key: ${{USER}}
    quotes: [MSFT]
  aries:
    url: {aries}
    rest_url: {rest}
    client_id: app
    client_secret: ${{SECRET}}
    refresh_token: ${{REFRESH}}
    quotes: [NVDA]
"""


class Rest:
    """Answers REST calls with an echo of what was asked; redirects what begins with /away to another origin."""

    def __init__(self, other: str) -> None:
        self.other = other
        self.heads: list[bytes] = []
        self.tokens = 0

    def __call__(self, head: bytes) -> bytes:
        self.heads.append(head)
        path = head.split(b" ")[1]
        if path.startswith(b"/away"):
            return http(302, Location=f"http://{self.other}/?key={quote(CANARIES['USER'])}")
        if b"oauth2" in path:
            self.tokens += 1
            if self.tokens == 1:
                said = {"error": f"try again, {CANARIES['SECRET']}, with {CANARIES['REFRESH']}"}
                return http(503, json.dumps(said).encode(), Retry_After="0")
            granted = {"access_token": FRESH, "refresh_token": ROTATED, "expires_in": 3600}
            return http(200, json.dumps(granted).encode())
        return http(500, b"<html>you sent " + head + b"</html>")


def cmdlines(pid: int) -> Iterator[tuple[str, bytes]]:
    """Command lines of a process and of its children."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, line = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(folder.name) == pid or int(status.rpartition(")")[2].split()[1]) == pid:
            yield f"cmdline of {folder.name}", line


def stored(url: str, password: str) -> Iterator[tuple[str, bytes]]:
    """Everything in Redis."""
    with redis.Redis.from_url(url, password=password) as client:
        for key in client.keys("*"):
            yield "a key's name", key
            kind = client.type(key)
            where = f"{kind!r} {key!r}"
            if kind == b"stream":
                for _, fields in client.xrange(key):
                    yield where, b" ".join((*fields.keys(), *fields.values()))
            elif kind == b"hash":
                yield where, b" ".join(item for pair in client.hgetall(key).items() for item in pair)
            elif kind == b"string":
                yield where, client.get(key) or b""
            else:
                raise AssertionError(f"a kind of key that this test does not read: {where}")


async def ran(folder: Path, *args: str, stdin: bytes = b"", **environ: str) -> bytes:
    """Run a command of the relay to its end; give all it printed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")} | {"PYTHONPATH": str(ROOT)} | environ
    done = await anyio.run_process(
        [sys.executable, "-m", "relay", *args], input=stdin, cwd=folder, env=env, check=False
    )
    return done.stdout + done.stderr


def recorded(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Everything in the journal, unpacked."""
    for run in runs_of([folder], lambda text: None):
        for file in run.files:
            for record in read_records(file.path, lambda text: None):
                yield f"journal {record.do} {record.conn}", bytes(record.data)
                yield f"journal {record.do} {record.conn}", records.frame_of(record, 0).data


def scripts(other: str) -> dict[str, list[Sequence[Any]]]:
    key = CANARIES
    keys = f"{key['API']} {key['USER']} {key['TICKET']}"
    return {
        "coinapi": [
            [refuse(503, body=f"your key is {key['COINAPI']}".encode())],
            [expect(), send("[" + key["COINAPI"]), send("x" * 980 + key["COINAPI"]), close(1011, key["COINAPI"])],
        ],
        "tickatlas": [
            [expect(), send(broken), send(cut), send(echo), send(tickatlas_error("invalid_key"))],
            [expect(), send(tickatlas_error("odd")), close(1011, key["TICKATLAS"])],
        ],
        "etoro": [[expect(), send(broken), send(cut), send(echo), send(etoro_refusal)]],
        "header": [
            [refuse(503, body=keys.encode())],
            [expect(), send("{" + keys), send({"type": "error", "errorCode": key["API"], "errorMessage": keys})],
        ],
        "moved": [[refuse(302, {"Location": f"{other}?key={quote(key['USER'])}"})]],
        "aries": [[], [expect(), send(broken), send(aries_error), send(f"[{ROTATED} {FRESH}"), close(1011, FRESH)]],
    }


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    server = RedisServer("--requirepass", CANARIES["REDIS"])
    yield server
    server.close()


@pytest.mark.fault  # a dozen processes at DEBUG: 8 s and more
async def test_no_canary_leaves_the_relay(guarded: RedisServer, tmp_path: Path) -> None:
    found: list[str] = []
    searched = 0

    def search(place: str, data: bytes) -> None:
        nonlocal searched
        searched += len(data)
        found.extend(leaks(place, data))

    async with AsyncExitStack() as stack:
        thief = await stack.enter_async_context(scripted([]))
        stolen: list[bytes] = []
        other = await stack.enter_async_context(http_server(lambda head: stolen.append(head) or http(200, b"{}")))  # type: ignore[func-returns-value]
        rest = Rest(other)
        place = await stack.enter_async_context(http_server(rest))
        servers: dict[str, Scripted] = {}
        for name, acts in scripts(thief.url).items():
            servers[name] = await stack.enter_async_context(scripted(*acts))
        urls = {name: server.url for name, server in servers.items()}
        (tmp_path / "relay.yaml").write_text(CONFIG.format(redis=guarded.url, rest=f"http://{place}", **urls))
        env = {name: value for name, value in CANARIES.items()}
        with Process(tmp_path, "run", "--log-level", "debug", **env) as relay:
            wanted = {"coinapi": 2, "tickatlas": 2, "etoro": 1, "header": 2, "moved": 1, "aries": 2}
            try:
                await until(lambda: all(servers[name].finished >= count for name, count in wanted.items()), 20)
                await until(lambda: "another origin" in relay.text and "E ***" in relay.text, 10)
                await until(lambda: any(head.startswith(b"GET /away") for head in rest.heads), 10)
            except TimeoutError:
                raise AssertionError(f"{ {n: s.finished for n, s in servers.items()} }\n{relay.text}") from None
            assert relay.process.poll() is None
            for where, line in cmdlines(relay.process.pid):
                search(where, line)
            for args in (
                ("tail", "*", "--since", "all", "--no-follow"),
                ("tail", "*", "--since", "all", "--no-follow", "--json"),
            ):
                printed = await ran(tmp_path, *args, **env)
                assert b"refused" in printed, "tail logs in with the password of the configuration"
                search(" ".join(args), printed)
            search("tail, wrong password", await ran(tmp_path, "tail", "*", "--no-follow", **env | {"REDIS": "canary"}))
            assert relay.stop(signal.SIGTERM) == 0, relay.text
            search("output of relay run", relay.text.encode())
        for where, data in stored(guarded.url, CANARIES["REDIS"]):
            search(where, data)
        assert thief.connects == 0 and not stolen, "a redirect to another origin is not followed"
        assert any(b"x-api-key" in head for head in rest.heads) and rest.tokens == 2

    frames = "".join(json.dumps({"dir": "in", "frame": "{" + canary}) + "\n" for canary in ALL[:4])
    for args in (
        ("check",),
        ("check", "--json"),
        ("journal", "ls", "state/journal"),
        ("journal", "cat", "state/journal"),
    ):
        printed = await ran(tmp_path, *args, **env)
        assert printed
        search(" ".join(args), printed)
    search(
        "normalize",
        await ran(tmp_path, "normalize", "-c", "relay.yaml", "tickatlas", "-", stdin=frames.encode(), **env),
    )
    replayed = await ran(tmp_path, "replay", "state/journal", **env)
    assert replayed
    search("replay", replayed)
    (tmp_path / "wrong.yaml").write_text((tmp_path / "relay.yaml").read_text().replace("quotes: [", "quotez: ["))
    search("a wrong config", await ran(tmp_path, "check", "-c", "wrong.yaml", **env))
    for path in sorted((tmp_path / "state").rglob("*")):
        if path.is_file():
            search(str(path), path.read_bytes())
    for where, data in recorded(tmp_path / "state" / "journal"):
        search(where, data)
    kept = [one for one in found if one.startswith(str(tmp_path / "state" / "providers" / "aries.json"))]
    assert len(kept) == 1 and ROTATED in kept[0], "the rotated refresh token alone is kept, and there alone"
    assert (tmp_path / "state" / "providers" / "aries.json").stat().st_mode & 0o777 == 0o600
    assert not set(found) - set(kept), "\n".join(one for one in found if one not in kept)
    assert searched > 20_000


def test_the_search_finds_what_is_there() -> None:
    for canary in ALL:
        for one in (
            canary,
            json.dumps({"a": canary}),
            f"/?key={quote(canary, safe='')}",
            canary[: len(canary) // 2 + 4],
        ):
            assert leaks("here", b"before " + one.encode() + b" behind"), one
    assert not leaks("here", b"nothing of the kind")
