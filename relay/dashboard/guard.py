"""Who may talk to the dashboard, and what a browser may do with what it gets.

Prices of a loopback server must not be read by any web page that the user has open. So the name by which we are called
is checked (a foreign page can point its own name at 127.0.0.1), and so is where a request comes from. The policy lets
the page load and call nothing but this server, and `require-trusted-types-for` makes the browser itself refuse to turn
text into markup: what comes from outside is only ever text.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """ASGI: refuses who may not ask, and puts the headers on every answer."""

    def __init__(self, app: App, hosts: Iterable[str]) -> None:
        """`hosts`: names by which we may be called, without port; IPv6 addresses in brackets."""
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        why = self.refusal(scope["method"], scope["headers"])

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in HEADERS}
                kept = [header for header in message.get("headers", ()) if header[0].lower() not in named]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        if not why:
            await self._app(scope, receive, with_headers)
            return
        body = f"{why}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await with_headers({"type": "http.response.start", "status": 403, "headers": headers})
        await with_headers({"type": "http.response.body", "body": body})

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Say why a request is refused; empty: it is not."""
        found: dict[str, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = found.get("host", [])
        if len(hosts) != 1 or host_of(hosts[0]) not in self._hosts:
            return "this name is not served here; --allow-host NAME allows it"
        origins = found.get("origin", [])
        if len(origins) > 1:
            return "more than one origin"
        if origins:
            parts = urlsplit(origins[0])
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != hosts[0].lower():
                return "other origins may not read this"
        elif method not in ("GET", "HEAD"):
            return "an origin is needed"
        site = found.get("sec-fetch-site", ["none"])[0]
        if site not in ("same-origin", "none") and found.get("sec-fetch-mode", [""])[0] != "navigate":
            return "other sites may not read this"
        return ""


def host_of(value: str) -> str:
    """Give the name in a Host header, lower case, without its port; empty where it is none."""
    value = value.lower()
    if value.startswith("["):
        name, bracket, port = value.partition("]")
        name += bracket
        port = port.removeprefix(":") if port.startswith(":") or not port else "x"
    else:
        name, _, port = value.partition(":")
    return name if port == "" or (port.isascii() and port.isdecimal()) else ""
