"""Checks of `redis:` and of the address it names."""

import re
from urllib.parse import urlsplit

from relay.config.addresses import is_loopback
from relay.config.structs import EMBEDDED, RedisConfig
from relay.config.values import Reader

_SCHEMES = ("redis", "rediss", "unix")
_LATER = {
    "redis+cluster": "a cluster", "rediss+cluster": "a cluster",
    "redis+sentinel": "Sentinel", "rediss+sentinel": "Sentinel",
}  # fmt: skip
_EXTERNAL_ONLY = ("username", "password", "password_file", "ca_file", "cert_file", "key_file")
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

    try:
        parts = urlsplit(redis.url)
        port = parts.port
    except ValueError:
        return refuse("is no address; write redis://host:6379/0")
    scheme = parts.scheme
    if scheme in _LATER:
        return refuse(
            f"{scheme}:// ({_LATER[scheme]}) is not supported yet; name one server, as in redis://host:6379/0"
        )
    if scheme not in _SCHEMES:
        return refuse("must be `embedded`, or begin with redis://, rediss:// (TLS) or unix://")
    if parts.fragment or (parts.query and not (scheme == "unix" and re.fullmatch(r"db=\d+", parts.query))):
        return refuse("has options behind '?' or '#', which are not taken; the database is the path, as in /0")
    if scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            return refuse("needs the absolute path of the socket, as in unix:///run/redis.sock")
    elif not parts.hostname:
        return refuse(f"names no host; write {scheme}://host:6379/0")
    elif port == 0 or not (parts.path.strip("/").isdecimal() or parts.path in ("", "/")):
        return refuse(f"must end with a port and the number of the database, as in {scheme}://host:6379/0")
    for name, here in (("username", parts.username), ("password", parts.password)):
        if here and getattr(redis, name):
            node = reader.at(f"redis.{name}:", f"redis.{name}_file:")
            reader.refuse(node, f"redis.{name}", "stands in `url` too; give it in one place")
    if parts.password:
        node = reader.at("redis.url")
        if node is not None and not node.expands:
            reader.problems.warn(
                node, "redis.url", "holds a password as it is; put it in the environment: ${REDIS_URL}"
            )
    if scheme != "rediss":
        for name in _TLS:
            if getattr(redis, name):
                reader.refuse(
                    reader.at(f"redis.{name}:"), f"redis.{name}", "needs an address that begins with rediss://"
                )
    if scheme == "redis" and not is_loopback(parts.hostname or ""):
        text = "is not encrypted; take rediss:// unless the network between is yours"
        reader.problems.warn(reader.at("redis.url"), "redis.url", text)
