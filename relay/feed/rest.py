"""The REST calls that providers ask for: bounded in time and size; an answer comes always, be it an error."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import anyio

from relay.feed.connection import tls
from relay.providers.base import Reply, Request

if TYPE_CHECKING:
    import httpx2

REDIRECTS_MAX = 5
CONCURRENT_MAX = 4
"""Calls of one session at one time; more wait."""
ERROR_CHARS_MAX = 200


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class Rest:
    """The HTTP client of one session, made at its first call."""

    def __init__(self) -> None:
        self._client: httpx2.AsyncClient | None = None
        self._places = anyio.CapacityLimiter(CONCURRENT_MAX)

    async def call(self, request: Request, started: Callable[[], None]) -> Reply:
        """Perform a call. `started` is called right before it goes out. Never raises for what the network does."""
        async with self._places:
            started()
            try:
                with anyio.fail_after(request.timeout_secs):
                    return await self._call(request)
            except TimeoutError:
                text = f"{_place(request.url)}: no answer within {request.timeout_secs:g} s"
            except Exception as error:
                # the library's texts may name the whole URL, with a key in its query
                said = str(error).replace(request.url, _place(request.url))
                if urlsplit(request.url).query and urlsplit(request.url).query in said:
                    said = ""
                text = f"{_place(request.url)}: {type(error).__name__}{f': {said}' if said else ''}"
            return Reply(request.tag, 0, error=text[:ERROR_CHARS_MAX])

    async def _call(self, request: Request) -> Reply:
        client = self._open()
        url = request.url
        method = request.method
        content: bytes | None = request.body or None
        for _ in range(REDIRECTS_MAX + 1):
            async with client.stream(method, url, headers=dict(request.headers), content=content) as answer:
                location = answer.headers.get("location")
                if answer.status_code in (301, 302, 303, 307, 308) and location:
                    target = urljoin(url, location)
                    if _origin(target) != _origin(url):
                        text = f"{_place(url)}: it redirects to another origin ({_place(target)}); not followed"
                        return Reply(request.tag, 0, error=text)
                    url = target
                    if answer.status_code == 303 or (answer.status_code in (301, 302) and method == "POST"):
                        method, content = "GET", None
                    continue
                body = bytearray()
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > request.body_bytes_max:
                        text = f"{_place(url)}: an answer of more than {request.body_bytes_max} bytes"
                        return Reply(request.tag, 0, error=text)
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Reply(request.tag, answer.status_code, bytes(body), headers)
        return Reply(request.tag, 0, error=f"{_place(url)}: more than {REDIRECTS_MAX} redirects")

    def _open(self) -> "httpx2.AsyncClient":
        if self._client is None:
            import httpx2  # 0.1 s, and most providers make no call

            # its INFO lines hold whole URLs, its transport's DEBUG lines hold headers
            for name in ("httpx2", "httpcore2"):
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = httpx2.AsyncClient(verify=tls(), follow_redirects=False, timeout=None)
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _place(url: str) -> str:
    """A URL without what may be secret in it: no user, no query."""
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
