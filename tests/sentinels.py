"""A service under Sentinel on loopback: servers, the sentinels that watch them, and failovers of every kind.

Servers ask their clients for PASSWORD and the sentinels for one of their own, so that a sentinel can be shut out of a
server that goes on serving everybody else.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from servers import RedisServer, binary, free_port

SERVICE, PASSWORD, SENTINELS_PASSWORD = "the-service", "pw-servers", "pw-sentinels"
DOWN_MS, FAILOVER_MS = 500, 1500
ACL = f"user default on >{PASSWORD} ~* &* +@all\nuser watcher on >watch ~* &* +@all\n"


def wait(condition: Callable[[], Any], what: str, seconds: float = 90.0) -> None:
    """Sentinels that were not served in time by a busy machine do nothing for 30 s (TILT)."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Sentinel:
    """One sentinel; `primary` as it is at the start."""

    def __init__(self, primary: RedisServer, quorum: int) -> None:
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="relay-test-sentinel-")
        config = Path(self.folder.name, "sentinel.conf")
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder.name}\n"
            f"requirepass {SENTINELS_PASSWORD}\nsentinel sentinel-pass {SENTINELS_PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {quorum}\n"
            f"sentinel auth-user {SERVICE} watcher\nsentinel auth-pass {SERVICE} watch\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\nsentinel failover-timeout {SERVICE} {FAILOVER_MS}\n"
            f"sentinel parallel-syncs {SERVICE} 2\n"
        )
        with Path(self.folder.name, "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary(), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.client: Any = redis.Redis(port=self.port, password=SENTINELS_PASSWORD, decode_responses=True)
        wait(self.client.ping, f"sentinel starts: {Path(self.folder.name, 'log').read_text()[-1000:]}")

    @property
    def primary(self) -> int:
        """The port that it names."""
        return int(self.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def monitor(self, server: RedisServer) -> None:
        """Name another server, as an operator may by hand."""
        self.client.execute_command("SENTINEL", "REMOVE", SERVICE)
        self.client.execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", server.port, 1)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


class Service:
    """Servers, the first of which is the primary at the start, and their sentinels."""

    def __init__(self, servers: int = 3, sentinels: int = 3) -> None:
        self.servers: list[RedisServer] = []
        self.sentinels: list[Sentinel] = []
        try:
            for number in range(servers):
                options = ("--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0", "--repl-timeout", "5")
                if number:
                    options += ("--replicaof", f"127.0.0.1 {self.servers[0].port}")
                file = tempfile.NamedTemporaryFile("w", prefix="relay-test-acl-", delete=False)
                with file:
                    file.write(ACL)
                self.servers.append(RedisServer(*options, "--aclfile", file.name))
            for _ in range(sentinels):
                self.sentinels.append(Sentinel(self.servers[0], sentinels // 2 + 1))
            self.settle()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}"

    def server(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    @property
    def primary(self) -> RedisServer:
        """The server that the most sentinels name."""
        named = [sentinel.primary for sentinel in self.sentinels]
        return self.server(max(set(named), key=named.count))

    def client(self, server: RedisServer | None = None) -> Any:
        return (server or self.primary).client(password=PASSWORD)

    @property
    def direct(self) -> str:
        """The address of the primary of this moment."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.primary.port}/0"

    def others(self) -> list[RedisServer]:
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def settle(self) -> None:
        """Wait until every server has its part and all sentinels know the same."""
        wait(self._settled, "replicas follow, sentinels agree")

    def _settled(self) -> bool:
        if len({sentinel.primary for sentinel in self.sentinels}) > 1:
            return False
        for sentinel in self.sentinels:
            about = sentinel.client.sentinel_master(SERVICE)
            known = (about["num-slaves"], about["num-other-sentinels"])
            if about["flags"] not in ("master", {"master"}) and about.get("is_failover_in_progress"):
                return False
            if known != (len(self.servers) - 1, len(self.sentinels) - 1):
                return False
        primary = self.primary
        for server in self.servers:
            with self.client(server) as client:
                found = client.info("replication")
            if server is primary:
                if found["role"] != "master":
                    return False
            elif (found["role"], found.get("master_port"), found.get("master_link_status")) != (
                "slave",
                primary.port,
                "up",
            ):
                return False
        return True

    def cut_off_replicas(self) -> None:
        """Replicas get nothing more, though their primary lives."""
        for server in self.others():
            with self.client(server) as client:
                client.config_set("masterauth", "wrong")
                client.client_kill_filter(_type="master")

    def reconcile(self) -> None:
        """Let everybody follow again, and wait until they do."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is not None:
                server.start()
            with self.client(server) as client:
                client.config_set("masterauth", PASSWORD)
                client.acl_load()
        self.settle()

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for server in self.servers:
            Path(server.options[-1]).unlink(missing_ok=True)
            server.close()
