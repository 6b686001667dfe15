"""Addresses: which are this machine, which secrets stand in one, how one may be shown."""

import ipaddress
from urllib.parse import unquote, urlsplit


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


def passwords_in(url: str) -> list[str]:
    """Give the password of an address as it is written and as it is meant."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return []
    return list(dict.fromkeys((password, unquote(password)))) if password else []
