"""Keeps every open page current: the latest values at once, then what changed, never more than it can take.

A page that is slow to read is conflated: it has a set of rows that changed since it took the last ones, whose size is
bounded by the number of rows, and gets their newest values when it takes again. Nobody waits for it.
"""

import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec

from relay.dashboard.rows import Row
from relay.dashboard.state import Board

CLIENTS_MAX = 64
"""Pages open at one time; more are refused."""
ROWS_A_MESSAGE = 1_000
NEWS_MAX = 400
"""Items of the looked-at row that wait for a page; the oldest go first."""
HEARTBEAT_SECS = 1.0
"""A page that hears nothing for a few of these says that it has lost the dashboard."""
HEALTH_SECS = 0.5

History = Callable[[Row], Awaitable[list[list[Any]]]]


class Client:
    """One open page."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(16)
        self.pending: set[int] = set()
        self.gone: set[int] = set()
        self.known: dict[int, int] = {}  # row -> version of its description that the page has
        self.health = self.accounts = self.rate = -1
        self.notice = 0
        self.detail: int | None = None
        self.ask = False  # the detail's history is to be sent
        self.news: deque[list[Any]] = deque(maxlen=NEWS_MAX)
        self.wake = anyio.Event()


class Hub:
    """All open pages."""

    def __init__(self, board: Board, now_ns: Callable[[], int], history: History, hello: dict[str, Any]) -> None:
        self.board, self._now_ns, self._history, self._hello = board, now_ns, history, hello
        self.clients: dict[str, Client] = {}
        self._health = self._accounts = -1  # none yet, as a new page has none
        self._health_body = self._accounts_body = b""
        self._health_ns = self._rate_count = 0
        self._rate_ns = now_ns()
        self.rate = 0

    def open(self) -> Client | None:
        """Take a new page in; None: there are too many."""
        if len(self.clients) >= CLIENTS_MAX:
            return None
        client = Client()
        client.pending.update(self.board.rows)
        self.clients[client.token] = client
        return client

    def close(self, client: Client) -> None:
        """Let a page go."""
        self.clients.pop(client.token, None)
        self._watched()

    def watch(self, token: str, row: int | None) -> bool:
        """Let a page look at a row, or at none; False: there is no such page."""
        client = self.clients.get(token)
        if client is None:
            return False
        client.detail, client.ask = row, row is not None
        client.news.clear()
        self._watched()
        client.wake.set()
        return True

    def _watched(self) -> None:
        self.board.watched = frozenset(c.detail for c in self.clients.values() if c.detail is not None)

    def changed(self) -> None:
        """Hand on what the board has taken since the last call."""
        board, clients = self.board, self.clients.values()
        now = self._now_ns()
        if now - self._rate_ns >= 1_000_000_000:
            rate = (board.messages - self._rate_count) / ((now - self._rate_ns) / 1e9)
            self.rate, self._rate_count, self._rate_ns = round(rate), board.messages, now
        if board.health_dirty and now - self._health_ns >= HEALTH_SECS * 1e9:
            board.health_dirty, self._health_ns = False, now
            self._health += 1
            self._health_body = msgspec.json.encode(board.overview(now))
        if board.accounts_dirty:
            board.accounts_dirty = False
            self._accounts += 1
            self._accounts_body = msgspec.json.encode(list(board.account_items.values()))
        dirty, gone, news = board.dirty, board.removed, board.news
        board.dirty, board.removed, board.news = set(), set(), []
        for client in clients:
            client.pending |= dirty
            if gone:
                client.gone |= gone & client.known.keys()
                client.pending -= gone
            if client.detail is not None:
                client.news.extend(what for row, what in news if row == client.detail)
            if self._has(client):
                client.wake.set()

    def _has(self, client: Client) -> bool:
        return bool(
            client.pending
            or client.gone
            or client.news
            or self._asked(client)
            or client.health != self._health
            or client.notice != self.board.notice_count
            or client.accounts != self._accounts
        )

    def _asked(self, client: Client) -> bool:
        """Whether a history is to be read that can be read; else it waits until Redis is back."""
        return client.ask and not self.board.redis_why

    def hello(self, client: Client) -> bytes:
        """Give the first event of a page."""
        return _event({**self._hello, "client": client.token, "now": self._now_ns() // 1_000_000})

    async def next(self, client: Client) -> bytes:
        """Wait for news, at most for a heartbeat, and give them as one event."""
        if not self._has(client):
            client.wake = anyio.Event()
            with anyio.move_on_after(HEARTBEAT_SECS):
                await client.wake.wait()
        detail = None
        if self._asked(client) and client.detail is not None:
            client.ask = False
            client.news.clear()
            row = self.board.rows.get(client.detail)
            asked = client.detail
            items = await self._history(row) if row is not None else []
            if client.detail == asked:
                detail = {"row": asked, "items": items}
        return self._take(client, detail)

    def _take(self, client: Client, detail: dict[str, Any] | None) -> bytes:
        board = self.board
        parts = [b'"now":%d' % (self._now_ns() // 1_000_000)]
        if client.gone:
            parts.append(b'"gone":' + msgspec.json.encode(sorted(client.gone)))
            for id in client.gone:
                client.known.pop(id, None)
            client.gone = set()
        if client.pending:
            taken = list(client.pending)[:ROWS_A_MESSAGE]
            if len(taken) == len(client.pending):
                client.pending = set()
            else:
                client.pending.difference_update(taken)
            rows = [row for id in taken if (row := board.rows.get(id)) is not None]
            new = [row for row in rows if client.known.get(row.id) != row.version]
            if new:
                parts.append(b'"about":' + msgspec.json.encode([row.about() for row in new]))
                client.known.update((row.id, row.version) for row in new)
            parts.append(b'"rows":[' + b",".join([row.encoded() for row in rows]) + b"]")
        if client.health != self._health:
            client.health = self._health
            parts.append(b'"health":' + self._health_body)
        if client.rate != self.rate:
            client.rate = self.rate
            parts.append(b'"rate":%d' % self.rate)
        if client.notice != board.notice_count:
            fresh = [notice for notice in board.notices if notice["n"] > client.notice]
            client.notice = board.notice_count
            parts.append(b'"notices":' + msgspec.json.encode(fresh))
        if client.accounts != self._accounts and board.accounts:
            parts.append(b'"accounts":' + self._accounts_body)
        client.accounts = self._accounts
        if detail is not None:
            parts.append(b'"detail":' + msgspec.json.encode(detail))
        if client.news:
            parts.append(b'"news":' + msgspec.json.encode([client.detail, list(client.news)]))
            client.news.clear()
        return b"data: {" + b",".join(parts) + b"}\n\n"


def _event(fields: dict[str, Any]) -> bytes:
    return b"retry: 1000\ndata: " + msgspec.json.encode(fields) + b"\n\n"
