"""Asking a running relay over its HTTP, for `relay health`, `status` and `top`."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

SECS = 3.0
"""The relay answers in milliseconds; one that needs longer is not well."""


class Unreachable(Exception):
    """Nobody answers there, or it is no relay."""


def find(url: str | None, config: str) -> str:
    """Give the address to ask: the one given, that of the relay that runs here, or the config's. Ends the process."""
    if url:
        return url
    from relay.cli._common import fail, read_config

    if not Path(config).exists():
        fail(f"there is no {config}; name it with -c FILE, or the relay's address with --url")
    loaded = read_config(config)
    if not loaded.http.enabled:
        fail(f"{config} does not turn HTTP on; give it `http: {{enabled: true}}`, or name an address with --url")
    try:
        return (Path(loaded.state_dir) / "http_url").read_text().strip()
    except OSError:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(loaded.http.host, loaded.http.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{loaded.http.port}"


def ask(url: str, path: str, **query: Any) -> tuple[int, bytes]:
    """GET a page. Raises: Unreachable."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    # no proxy of the environment stands between us and this machine
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=SECS)
    wanted = {key: value for key, value in query.items() if value not in ("", None)}
    try:
        connection.request("GET", parts.path.rstrip("/") + path + (f"?{urlencode(wanted)}" if wanted else ""))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {error}") from error
    finally:
        connection.close()


def document(url: str, **query: Any) -> dict[str, Any]:
    """Get the status document. Raises: Unreachable."""
    status, body = ask(url, "/status.json", **query)
    if status != 200:
        text = body[:200].decode("utf-8", "replace").strip()
        raise Unreachable(f"{url}: HTTP {status}: {text}")
    try:
        found = json.loads(body)
    except ValueError as error:
        raise Unreachable(f"{url}: this is no relay") from error
    if not isinstance(found, dict) or "providers" not in found:
        raise Unreachable(f"{url}: this is no relay")
    return found
