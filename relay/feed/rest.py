"""The REST calls that providers ask for: bounded in time and size; an answer comes always, be it an error.

`GET file:///path` reads a file, where the provider's own options name that very path (a token that somebody else keeps
fresh). Nothing that comes over the network can ask for one.
"""

import logging
import os
import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
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


FILE_SCHEME = "file://"


def files_of(options: Any) -> frozenset[str]:
    """Give the files that a provider may ask for: what its options named `..._file` hold."""
    names = [name for name in getattr(options, "__struct_fields__", ()) if name.endswith("_file")]
    return frozenset(value for name in names if isinstance(value := getattr(options, name), str) and value)


class Rest:
    """The HTTP client of one session, made at its first call. `files`: paths that may be read (see `files_of`)."""

    def __init__(self, files: Iterable[str] = ()) -> None:
        self._files = frozenset(files)
        self._client: httpx2.AsyncClient | None = None
        self._places = anyio.CapacityLimiter(CONCURRENT_MAX)

    async def call(self, request: Request, started: Callable[[], None]) -> Reply:
        """Perform a call. `started` is called right before it goes out. Never raises for what the network does."""
        async with self._places:
            started()
            try:
                with anyio.fail_after(request.timeout_secs):
                    if request.url.startswith(FILE_SCHEME):
                        return await self._read(request)
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

    async def _read(self, request: Request) -> Reply:
        path = request.url.removeprefix(FILE_SCHEME)
        if path not in self._files or request.method != "GET":
            return Reply(request.tag, 0, error="only a file that the provider's own options name is read")
        try:
            # in a thread: the file may lie on a slow network disk
            body = await anyio.to_thread.run_sync(_content, path, request.body_bytes_max, abandon_on_cancel=True)
        except (OSError, ValueError) as error:
            return Reply(request.tag, 0, error=f"{path}: {getattr(error, 'strerror', None) or error}")
        return Reply(request.tag, 200, body)

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


def _content(path: str, bytes_max: int) -> bytes:
    """Read a whole file. Raises: OSError; ValueError for what is no plain file, or is too large."""
    # a pipe that nobody writes to must not hold the thread
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"has more than {bytes_max} bytes")
    return content


def _place(url: str) -> str:
    """A URL without what may be secret in it: no user, no query."""
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
