"""Addresses that name several servers: those of a cluster's nodes, or of the sentinels that know a service's primary.

`redis+cluster://[user:pass@]host:port,host:port` and `redis+sentinel://[user:pass@]host:port,host:port/service[/db]`;
`rediss+...` is the same over TLS. User and password are those of the servers that hold the data. Pure.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

SCHEMES = {
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
"""Scheme to what it names, and whether it is TLS."""
PORTS = {"cluster": 6379, "sentinel": 26379}
"""Taken where the address gives no port."""

Host = tuple[str, int]


class Target(NamedTuple):
    """What an address with several servers says. `service` and `database` are of Sentinel."""

    kind: str
    tls: bool
    hosts: tuple[Host, ...]
    username: str = ""
    password: str = ""
    service: str = ""
    database: int = 0

    @property
    def scheme(self) -> str:
        """The scheme of one server of it."""
        return "rediss" if self.tls else "redis"

    def at(self, host: Host) -> str:
        """Give the address of one server, without login."""
        return f"{self.scheme}://{shown(host)}/{self.database}"

    @property
    def shown(self) -> str:
        """The whole address without login; the same for any order of the hosts."""
        hosts = ",".join(map(shown, sorted(self.hosts)))
        tail = f"/{self.service}" + (f"/{self.database}" if self.database else "") if self.service else ""
        return f"{self.scheme}+{self.kind}://{hosts}{tail}"


def shown(host: Host) -> str:
    """Give host:port as an address has it."""
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def target_of(url: str) -> Target | None:
    """Read an address; None where its scheme names one server. Raises: ValueError with the cure, without secrets."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        return None
    kind, tls = SCHEMES[scheme]
    if "?" in rest or "#" in rest:
        raise ValueError("has options behind '?' or '#', which are not taken")
    place, _, path = rest.partition("/")
    login, _, listed = place.rpartition("@")
    example = f"{scheme}://host:{PORTS[kind]},host:{PORTS[kind]}" + ("/service" if kind == "sentinel" else "")
    hosts = tuple(dict.fromkeys(_host(one.strip(), PORTS[kind], example) for one in listed.split(",")))
    username, _, password = login.partition(":")
    service, database = "", 0
    parts = path.strip("/").split("/")
    if kind == "sentinel":
        service = unquote(parts[0])
        if not service:
            raise ValueError(f"names no service; write {example}, with the name that the sentinels monitor it by")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts[1:]):
            raise ValueError(f"must end with the service and, if wanted, the number of the database: {example}/0")
        database = int(parts[1]) if len(parts) == 2 else 0
    elif parts not in ([""], ["0"]):
        raise ValueError(f"names a database, and a cluster has only one; write {example}")
    return Target(kind, tls, hosts, unquote(username), unquote(password), service, database)


def _host(text: str, port: int, example: str) -> Host:
    name, bracket, tail = text.removeprefix("[").partition("]") if text.startswith("[") else (text, "", "")
    if not bracket:
        name, colon, number = text.partition(":")
        tail = colon + number
    if not name:
        raise ValueError(f"names no host; write {example}")
    if not tail:
        return name, port
    if not (tail[0] == ":" and tail[1:].isdecimal() and 0 < int(tail[1:]) < 65_536):
        raise ValueError(f"has a host whose port is none; write {example}")
    return name, int(tail[1:])
