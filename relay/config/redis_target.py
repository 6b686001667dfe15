"""Checks of `redis:` and of the address it names."""

import re
from urllib.parse import urlsplit

from relay.config.addresses import is_loopback
from relay.config.structs import EMBEDDED, RedisConfig
from relay.config.values import Reader
from relay.targets import SCHEMES, target_of

_SCHEMES = ("redis", "rediss", "unix")
_LOGIN = ("username", "password", "password_file")
_OF_SENTINELS = tuple(f"sentinel_{name}" for name in _LOGIN)
_EXTERNAL_ONLY = (*_LOGIN, *_OF_SENTINELS, "ca_file", "cert_file", "key_file")
_EMBEDDED_ONLY = ("port", "data_dir")
_TLS = ("ca_file", "cert_file", "key_file")


def check_redis(redis: RedisConfig, reader: Reader) -> None:
    """Check the address and what goes with it."""
    if bool(redis.cert_file) != bool(redis.key_file) and not reader.wrong("redis"):
        given, other = ("cert_file", "key_file") if redis.cert_file else ("key_file", "cert_file")
        path = f"redis.{given}"
        reader.refuse(reader.at(path), path, f"goes with `{other}`, which is missing")
    if reader.wrong("redis.url"):
        return
    if redis.url == EMBEDDED:
        _warn_useless(_EXTERNAL_ONLY, "the embedded server", reader)
        return
    _warn_useless(_EMBEDDED_ONLY, "a server of your own", reader)
    _check_url(redis, reader)


def _warn_useless(names: tuple[str, ...], where: str, reader: Reader) -> None:
    for name in names:
        path = f"redis.{name}"
        if reader.given(path):
            reader.problems.warn(reader.at(f"{path}:"), path, f"has no effect with {where}")


def _check_url(redis: RedisConfig, reader: Reader) -> None:
    def refuse(text: str) -> None:
        reader.refuse(reader.at("redis.url"), "redis.url", text)

    kind = SCHEMES.get(redis.url.partition("://")[0], ("",))[0]
    if kind != "sentinel":
        _warn_useless(_OF_SENTINELS, "an address that is not redis+sentinel://", reader)
    if kind:
        try:
            target = target_of(redis.url)
        except ValueError as error:
            return refuse(str(error))
        assert target is not None
        hosts = [name for name, _ in target.hosts]
        return _check_rest(redis, reader, target.scheme, target.username, target.password, hosts)
    try:
        parts = urlsplit(redis.url)
        port = parts.port
    except ValueError:
        return refuse("is no address; write redis://host:6379/0")
    scheme = parts.scheme
    if scheme not in _SCHEMES:
        return refuse(
            "must be `embedded`, or begin with redis://, rediss:// (TLS), unix://, redis+cluster:// or redis+sentinel://"
        )
    if parts.fragment or (parts.query and not (scheme == "unix" and re.fullmatch(r"db=\d+", parts.query))):
        return refuse("has options behind '?' or '#', which are not taken; the database is the path, as in /0")
    if scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            return refuse("needs the absolute path of the socket, as in unix:///run/redis.sock")
    elif not parts.hostname:
        return refuse(f"names no host; write {scheme}://host:6379/0")
    elif port == 0 or not (parts.path.strip("/").isdecimal() or parts.path in ("", "/")):
        return refuse(f"must end with a port and the number of the database, as in {scheme}://host:6379/0")
    _check_rest(redis, reader, scheme, parts.username or "", parts.password or "", [parts.hostname or ""])


def _check_rest(
    redis: RedisConfig, reader: Reader, scheme: str, username: str, password: str, hosts: list[str]
) -> None:
    """Check what goes with the address, however many servers it names; `scheme`: that of one of them."""
    given = redis.url.partition("://")[0]
    secure = given.replace("redis", "rediss", 1) if given.startswith("redis") else "rediss"
    for name, here in (("username", username), ("password", password)):
        if here and getattr(redis, name):
            node = reader.at(f"redis.{name}:", f"redis.{name}_file:")
            reader.refuse(node, f"redis.{name}", "stands in `url` too; give it in one place")
    if password:
        node = reader.at("redis.url")
        if node is not None and not node.expands:
            reader.problems.warn(
                node, "redis.url", "holds a password as it is; put it in the environment: ${REDIS_URL}"
            )
    if scheme != "rediss":
        for name in _TLS:
            if getattr(redis, name):
                text = f"needs an address that begins with {secure}://"
                reader.refuse(reader.at(f"redis.{name}:"), f"redis.{name}", text)
    if scheme == "redis" and not all(map(is_loopback, hosts)):
        text = f"is not encrypted; take {secure}:// unless the network between is yours"
        reader.problems.warn(reader.at("redis.url"), "redis.url", text)
