"""Opens Redis for commands that read it, by redis-py, from every address that `redis.url` takes: one server, a cluster,
a service under Sentinel. Reads may be retried, so redis-py's own ways round a failover are taken as they are.

The relay's writing does not come by here: its one connection is in `relay.sink`.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    RedisClusterException,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from relay.targets import Target, shown, target_of

if TYPE_CHECKING:
    from relay.config import RedisConfig

LOOK_SECS = 0.05
"""Over a cluster nothing can wait for several topics at once: they are looked at this often."""
AWAY = (OSError, ConnectionError, TimeoutError, RedisClusterException, ClusterDownError, AskError, TryAgainError)
"""What a pipeline gives in the place of a reply of a node that is away, or whose slot is on the move."""
ONCE = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
"""For sentinels: where one does not answer the next one does."""
PLAIN: dict[str, Any] = {"decode_responses": False, "legacy_responses": False}


def login_of(settings: "RedisConfig") -> dict[str, Any]:
    """Give the options that a config has beside the address: logins, and certificates where it is TLS."""
    found = {
        "username": settings.username,
        "password": settings.password,
        "sentinel_username": settings.sentinel_username,
        "sentinel_password": settings.sentinel_password,
    }
    if settings.url.startswith("rediss"):
        found |= {
            "ssl_ca_certs": settings.ca_file,
            "ssl_certfile": settings.cert_file,
            "ssl_keyfile": settings.key_file,
        }
    return {name: value for name, value in found.items() if value}


def opened(url: str, options: Mapping[str, Any]) -> Any:
    """Give a client for an address; its replies are bytes. Raises: ValueError, what redis-py does."""
    own, of_sentinels = _parted(options)
    target = _target(url)
    if target is None:
        return redis.Redis.from_url(url, **PLAIN, **own)
    own = _of(target) | own
    if target.kind == "cluster":
        node: Any = redis.cluster.ClusterNode
        nodes = [node(host, port) for host, port in target.hosts]
        try:
            return redis.RedisCluster(startup_nodes=nodes, require_full_coverage=False, **PLAIN, **own)
        except RedisClusterException as error:
            raise ConnectionError(str(error)) from error
    tls = {name: value for name, value in own.items() if name.startswith("ssl")}
    make: Any = _Sentinels
    sentinels = make(target.hosts, sentinel_kwargs=tls | of_sentinels | {**ONCE, "retry": Retry(NoBackoff(), 0)})
    return sentinels.master_for(target.service, db=target.database, **PLAIN, **own)


def opened_async(url: str, options: Mapping[str, Any]) -> Any:
    """See `opened`; nothing is connected yet."""
    own, of_sentinels = _parted(options)
    target = _target(url)
    if target is None:
        return redis.asyncio.Redis.from_url(url, **PLAIN, **own)
    own = _of(target) | own
    if target.kind == "cluster":
        own.pop("retry", None)  # over a cluster it is what follows a failover
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.hosts]
        return redis.asyncio.RedisCluster(startup_nodes=nodes, require_full_coverage=False, **PLAIN, **own)
    tls = {name: value for name, value in own.items() if name.startswith("ssl")}
    make: Any = _AsyncSentinels
    once = {**ONCE, "retry": redis.asyncio.retry.Retry(NoBackoff(), 0)}
    sentinels = make(list(target.hosts), sentinel_kwargs=tls | of_sentinels | once)
    return sentinels.master_for(target.service, db=target.database, **PLAIN, **own)


class _Sentinels(redis.sentinel.Sentinel):
    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            raise _unknown(self.sentinels, service_name) from error


class _AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    async def discover_master(self, service_name: str) -> Any:
        try:
            return await super().discover_master(service_name)
        except AsyncMasterNotFoundError as error:
            raise _unknown(self.sentinels, service_name) from error


def _unknown(sentinels: list[Any], service: str) -> ConnectionError:
    """Say it in one line; redis-py's own text is all of its objects."""
    places = [one.connection_pool.connection_kwargs for one in sentinels]
    hosts = ", ".join(shown((place["host"], place["port"])) for place in places)
    return ConnectionError(f"no sentinel of {hosts} tells who the primary of {service!r} is (away, login, or its name)")


async def close(client: Any) -> None:
    """Close a client of `opened_async`, and those of the sentinels that it asked."""
    await client.aclose()
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        await sentinel.aclose()


def _target(url: str) -> Target | None:
    try:
        return target_of(url)
    except ValueError as error:
        raise ValueError(f"the address of Redis {error}") from None


def _parted(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part options into those of the servers and those of the sentinels."""
    head = "sentinel_"
    own = {name: value for name, value in options.items() if not name.startswith(head)}
    return own, {name.removeprefix(head): value for name, value in options.items() if name.startswith(head)}


def _of(target: Target) -> dict[str, Any]:
    found = {"username": target.username, "password": target.password, "ssl": target.tls}
    return {name: value for name, value in found.items() if value}


# -- what XREAD does, over a cluster too ---------------------------------------------------------------------------


def newer(client: Any, places: Mapping[Any, Any], count: int, block_ms: int | None) -> dict[Any, Any]:
    """Read what streams have behind their places: name to entries. `block_ms`: how long to wait for the first."""
    if not isinstance(client, redis.RedisCluster):
        return client.xread(dict(places), count=count, block=block_ms) or {}
    until = time.monotonic() + (block_ms or 0) / 1000
    while True:
        pipe: Any = client.pipeline()  # type: ignore[no-untyped-call]
        for name, entry_id in places.items():
            pipe.execute_command("XRANGE", name, _behind(entry_id), "+", "COUNT", count)
        found = _whole(places, pipe.execute(raise_on_error=False))
        if found or time.monotonic() >= until:
            return found
        time.sleep(LOOK_SECS)


async def newer_async(client: Any, places: Mapping[str, str], count: int) -> dict[Any, Any]:
    """See `newer`; it does not wait."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return await client.execute_command("XREAD", "COUNT", count, "STREAMS", *places, *places.values()) or {}
    pipe = client.pipeline()
    for name, entry_id in places.items():
        pipe.execute_command("XRANGE", name, _behind(entry_id), "+", "COUNT", count)
    return _whole(places, await pipe.execute(raise_on_error=False))


def _behind(entry_id: str | bytes) -> str:
    return f"({entry_id.decode() if isinstance(entry_id, bytes) else entry_id}"


def _whole(places: Mapping[Any, Any], replies: list[Any]) -> dict[Any, Any]:
    """Put replies together as XREAD does. A node that is away holds up only its own, unless all are."""
    failed = [reply for reply in replies if isinstance(reply, Exception)]
    refused = [one for one in failed if not isinstance(one, AWAY)]
    if refused or (failed and len(failed) == len(replies)):
        raise (refused or failed)[0]
    names = (name.encode() if isinstance(name, str) else name for name in places)
    return {
        name: reply for name, reply in zip(names, replies, strict=True) if reply and not isinstance(reply, Exception)
    }
