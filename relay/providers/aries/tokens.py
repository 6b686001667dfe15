"""The access token and what else outlives sessions and is common to the three connections.

One source of tokens: handed in (`token`), a file that somebody else refreshes (`token_file`), or the provider's own
token call with a refresh token that may be rotated at each use. One fetch at a time for all connections; a version
counts the tokens, so that three refusals of one token are one refusal.
"""

import hashlib
from typing import Any, Literal

import msgspec

from relay.providers.aries.options import REST_URL, TOKEN_PATH, AriesOptions, normal, to_symbol
from relay.providers.base import Reply, Request, Shared, Subscription, SymbolTable

SECOND = 1_000_000_000
REFRESH_BEFORE_SECS = 300
"""An access token is refreshed this long before it ends, or at 90 % of its life, whichever is later."""
LEAST_LIFE_SECS = 30
"""A token that ends sooner is not sent any more."""
FILE_FRESH_SECS = 60
"""A token file read longer ago is read again before its token is sent."""
REQUEST_SECS = 15.0
RETRY_CAP_SECS = 30
PRINTS_KEPT = 50_000
"""Prints remembered for finding repeats, two generations of it: the second copy of a print comes within seconds."""
SAME_PRINT_NS = 6 * 3600 * SECOND
"""Exchanges number their prints anew each day: equal numbers further apart are two prints."""
NAMES_MAX = 100_000
TOKEN_TAG = "token"


class TokenFailed(Exception):
    """No new token. `kind` is `refused` (a person must log in again) or `retry`; `wait_secs` is the provider's wish."""

    def __init__(self, text: str, code: str, kind: Literal["refused", "retry"], wait_secs: float | None = None) -> None:
        super().__init__(text)
        self.text, self.code, self.kind, self.wait_secs = text, code, kind, wait_secs


class Tokens:
    """The current access token of one provider section. Times are handed in."""

    def __init__(self, options: AriesOptions) -> None:
        self._options = options
        self._rest = (options.rest_url or REST_URL).rstrip("/")
        self.source: Literal["oauth", "file", "static", "none"] = (
            "oauth" if options.client_id else "file" if options.token_file else "static" if options.token else "none"
        )
        if options.simulate and self.source != "oauth":
            self.source = "static"  # the simulator takes any token; a real token file need not be there
        self._static = options.token or "simulated"
        self.refresh_token = options.refresh_token
        self.text = options.token if self.source == "oauth" else ""
        self.version = 1 if self.text else 0
        self.refused = ""
        """Why no new token will come until a person acts; empty: all is well."""
        self._got_ns = 0
        self._ends_ns: int | None = None
        self._due_ns: int | None = None
        self._busy_until_ns = 0
        self._retry_ns = 0
        self._failures = 0

    def usable(self, now_ns: int, above: int = -1) -> str | None:
        """Give the token if it can be sent now and is newer than version `above`."""
        if not self.text or self.version <= above:
            return None
        if self._ends_ns is not None and now_ns >= self._ends_ns - LEAST_LIFE_SECS * SECOND:
            return None
        if self.source == "file" and now_ns - self._got_ns > FILE_FRESH_SECS * SECOND:
            return None
        return self.text

    def due(self, now_ns: int) -> bool:
        """Tell whether the token should be refreshed by now."""
        return self._due_ns is not None and now_ns >= self._due_ns and not self.refused

    def drop(self, version: int) -> None:
        """Forget a token that the provider refused, unless a newer one is here already."""
        if version == self.version:
            self.text = ""

    def fetch(self, now_ns: int) -> Request | None:
        """Begin to get a newer token; None where that is under way, must wait, or needs no request."""
        if now_ns < self._busy_until_ns or now_ns < self._retry_ns or self.refused:
            return None
        if self.source == "static":
            self._take(self._static, None, now_ns)
            return None
        if self.source == "none":
            return None
        self._busy_until_ns = now_ns + int((REQUEST_SECS + 5) * SECOND)
        if self.source == "file":
            return Request(TOKEN_TAG, "GET", "file://" + self._options.token_file, timeout_secs=REQUEST_SECS)
        body = {
            "grant_type": "refresh_token",
            "refresh_token": self.refresh_token,
            "client_id": self._options.client_id,
        }
        if self._options.client_secret:
            body["client_secret"] = self._options.client_secret
        return Request(
            TOKEN_TAG,
            "POST",
            self._rest + TOKEN_PATH,
            {"content-type": "application/json", "accept": "application/json"},
            msgspec.json.encode(body),
            timeout_secs=REQUEST_SECS,
            body_bytes_max=1024 * 1024,
        )

    def release(self) -> None:
        """The session that fetched is gone before the answer: another one may fetch."""
        self._busy_until_ns = 0

    def replied(self, reply: Reply, now_ns: int) -> None:
        """Take the answer to a fetch. Raises: TokenFailed."""
        self._busy_until_ns = 0
        try:
            if self.source == "file":
                self._file(reply, now_ns)
            else:
                self._oauth(reply, now_ns)
        except TokenFailed as failed:
            if failed.kind == "refused":
                self.refused = failed.text
            wait = failed.wait_secs if failed.wait_secs is not None else min(2**self._failures, RETRY_CAP_SECS)
            self._failures += 1
            self._retry_ns = now_ns + int(wait * SECOND)
            raise
        self._failures = 0

    def _file(self, reply: Reply, now_ns: int) -> None:
        text = reply.body.decode("utf-8", "replace").strip()
        if text.startswith("{"):
            document = _document(reply.body)
            # its `expires_in` counts from when the file was written, which nobody tells us
            text = document.get("access_token") or document.get("token") or ""
        if reply.status != 200 or not text or not isinstance(text, str):
            why = reply.error or ("it holds no token" if reply.status == 200 else f"status {reply.status}")
            raise TokenFailed(f"the token file cannot be used: {why}", "token_file", "retry")
        self._take(text, None, now_ns)

    def _oauth(self, reply: Reply, now_ns: int) -> None:
        document = _document(reply.body)
        if reply.status == 200 and isinstance(document.get("access_token"), str) and document["access_token"]:
            rotated = document.get("refresh_token")
            if isinstance(rotated, str) and rotated:
                self.refresh_token = rotated
            seconds = document.get("expires_in")
            self._take(document["access_token"], seconds if _is_life(seconds) else None, now_ns)
            return
        said = " ".join(
            str(document[name])[:200] for name in ("error", "error_description", "message") if document.get(name)
        )
        code = str(reply.status or "unanswered")
        if reply.status in (400, 401):
            text = f"the refresh token was refused ({said or reply.status}); log in again and set refresh_token"
            raise TokenFailed(text, code, "refused")
        why = said or reply.error or ("no access_token" if reply.status == 200 else f"status {reply.status}")
        raise TokenFailed(f"the token call failed: {why}", code, "retry", _retry_after(reply))

    def _take(self, text: str, life_secs: int | None, now_ns: int) -> None:
        self.text, self._got_ns = text, now_ns
        self.version += 1
        self._ends_ns = self._due_ns = None
        if life_secs is not None:
            self._ends_ns = now_ns + life_secs * SECOND
            self._due_ns = self._ends_ns - min(REFRESH_BEFORE_SECS * SECOND, life_secs * SECOND // 10)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_life(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 100_000_000


def _retry_after(reply: Reply) -> float | None:
    text = reply.headers.get("retry-after", "").strip()
    return float(min(int(text), 3600)) if text.isascii() and text.isdecimal() else None


class Prints:
    """Remembers prints by (symbol, exchange, number), to find the copy that another stream or a snapshot brings."""

    def __init__(self) -> None:
        self._young: dict[tuple[str, str, int], int | None] = {}
        self._old: dict[tuple[str, str, int], int | None] = {}

    def repeated(self, raw: str, venue: str, number: int, ts: int | None) -> bool:
        """Tell whether this print was here before; remember it where not."""
        key = (raw, venue, number)
        for known in (self._young, self._old):
            if key in known:
                before = known[key]
                if before is None or ts is None or abs(ts - before) < SAME_PRINT_NS:
                    return True
        if len(self._young) >= PRINTS_KEPT:
            self._old, self._young = self._young, {}
        self._young[key] = ts
        return False


class Names(dict[str, "tuple[str, str]"]):
    """A symbol as on the wire to (raw symbol in normal spelling, canonical symbol); cached."""

    def __init__(self, options: AriesOptions) -> None:
        super().__init__()
        self._table = SymbolTable(to_symbol, {normal(raw): symbol for raw, symbol in options.symbols.items()})

    def __missing__(self, wire: str) -> tuple[str, str]:
        raw = normal(wire)
        found = (raw, self._table[raw][0])
        if len(self) < NAMES_MAX:
            self[wire] = found
        return found


class AriesShared(Shared):
    """What the sessions of one Aries section share."""

    def __init__(self, options: AriesOptions, account: str = "main") -> None:
        super().__init__(options, account)
        self.tokens = Tokens(options)
        self.names = Names(options)
        self.prints = Prints()
        self.old_ping = False
        """Ping in the older protocol's shape; switched once, when the newer one was refused."""
        self.ping_switched = False
        self.market_open: bool | None = None
        self.auth_refusals: dict[str, int] = {}
        """By endpoint: refused logins since the last one that was accepted."""
        self._configured = _digest(options.refresh_token)
        self._stored: dict[str, str] = {}

    def wants(self, subscription: Subscription, raw_symbol: str, param: str) -> bool:
        """As in the base class, with spellings of a symbol taken as one."""
        return super().wants(subscription._replace(raw=normal(subscription.raw)), raw_symbol, param)

    def state(self) -> dict[str, str]:
        """What must survive a restart: the rotated refresh token, bound to the configured one it came from.

        A secret: the relay stores it with mode 600, before the new access token is used. A simulated run gives back
        what it was given: it must not replace the real token.
        """
        if self.options.simulate:
            return self._stored
        rotated = self.tokens.refresh_token
        if not rotated or rotated == self.options.refresh_token:
            return {}
        return {"refresh_token": rotated, "configured": self._configured}

    def load_state(self, state: dict[str, str]) -> None:
        """Take what `state` gave in an earlier run; a refresh token that was newly configured since then wins."""
        self._stored = state
        if self.options.simulate:
            return
        if state.get("refresh_token") and state.get("configured") == self._configured:
            self.tokens.refresh_token = str(state["refresh_token"])

    def secrets(self) -> tuple[str, ...]:
        """Texts that came at run time and must never be shown or recorded."""
        return tuple(text for text in (self.tokens.text, self.tokens.refresh_token) if text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""
