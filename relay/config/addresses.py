"""Addresses: which are this machine, which secrets stand in one, how one may be shown."""

import ipaddress
from urllib.parse import quote, unquote, urlsplit

from relay.targets import SCHEMES, target_of


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Give an address without its password and query, for people and logs."""
    if url.partition("://")[0] in SCHEMES:
        return _shown_target(url)
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "***"
    if not parts.scheme:
        return url
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    user = f"{parts.username or ''}:***@" if parts.password else f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{host}{port}{parts.path}"


def _shown_target(url: str) -> str:
    try:
        target = target_of(url)
    except ValueError:
        return "***"
    if target is None:
        return url
    user = quote(target.username, safe="")
    login = f"{user}:***@" if target.password else f"{user}@" if user else ""
    return target.shown.replace("://", f"://{login}", 1)


def passwords_in(url: str) -> list[str]:
    """Give the password of an address as it is written and as it is meant."""
    if url.partition("://")[0] in SCHEMES:
        login = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        password: str | None = login.partition(":")[2]
    else:
        try:
            password = urlsplit(url).password
        except ValueError:
            return []
    return list(dict.fromkeys((password, unquote(password)))) if password else []
