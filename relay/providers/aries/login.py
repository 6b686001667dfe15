"""The login of one connection: sent when a token is there, answered in time, renewed before the session ends."""

from collections.abc import Callable
from typing import Any

from relay.errors import HandshakeRefused
from relay.model import Status
from relay.providers.aries import wire
from relay.providers.aries.tokens import SECOND, AriesShared, TokenFailed
from relay.providers.base import Reply, Request, Send

AUTH_SECS = 10
"""The login must be answered within this."""
TOKEN_SECS = 40
"""A new connection that has no token by then is given up (another one's token call hangs)."""
FIRST_RETRY_SECS = 5
RENEW_BEFORE_SECS = 300
"""The login is renewed this long before the session ends, or at half its life where that is later."""
REFUSALS_MAX = 2
"""This many refused logins in a row, the last one with a fresh token, are final."""
FILE_WAIT_SECS = 30
LIFE_MS_MAX = 1 << 40


class Login:
    """State of the login of one session; `accepted` once it is logged in, `pending` while an answer is awaited."""

    def __init__(self, shared: AriesShared, endpoint: str, send: Callable[[Send | Request], None]) -> None:
        self._shared, self._tokens, self._endpoint, self._send = shared, shared.tokens, endpoint, send
        self.accepted = False
        self.request_id = ""
        """Of the login sent last."""
        self._sent = 0
        self._sent_ns: int | None = None  # while its answer is awaited
        self._waiting_ns: int | None = None  # since when it waits for a token
        self._above = -1  # only a token above this version will do
        self._version = 0  # of the token that was sent last
        self._fetching = False
        self._renew_ns: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a login was sent and not answered yet."""
        return self._sent_ns is not None

    def begin(self, now_ns: int, above: int = -1) -> None:
        """Send the login as soon as a token above this version is here; get one where it is not."""
        self._waiting_ns, self._above = now_ns, above
        if not self._try(now_ns):
            self._fetch(now_ns)
            self._try(now_ns)

    def wanted(self, now_ns: int) -> None:
        """The server asks for a login: send one if none is under way."""
        if self._sent_ns is None and self._waiting_ns is None:
            self.begin(now_ns)

    def renew(self, now_ns: int) -> None:
        """Log in again on this connection, with a newer token than before."""
        if self._sent_ns is None and self._waiting_ns is None:
            self.begin(now_ns, above=self._version)

    def tick(self, now_ns: int) -> None:
        """Do what is due. Raises: HandshakeRefused."""
        if self._sent_ns is not None and now_ns - self._sent_ns >= AUTH_SECS * SECOND:
            raise HandshakeRefused(f"no answer to the login within {AUTH_SECS} s", code="auth_timeout")
        if self._waiting_ns is not None:
            self._wait(now_ns, self._waiting_ns)
        elif self.accepted and self._sent_ns is None:
            if self._renew_ns is not None and now_ns >= self._renew_ns:
                self._renew_ns = None
                self.renew(now_ns)
            elif self._tokens.due(now_ns):
                if self._renew_ns is None:  # the session's own end is unknown: go by the token's
                    self.renew(now_ns)
                else:
                    self._fetch(now_ns)

    def replied(self, reply: Reply, now_ns: int) -> Status | None:
        """Take the answer to a fetch; a status where it failed and the session goes on. Raises: HandshakeRefused."""
        self._fetching = False
        try:
            self._tokens.replied(reply, now_ns)
        except TokenFailed as failed:
            if not self.accepted:
                raise HandshakeRefused(
                    failed.text,
                    code=failed.code,
                    action="fatal" if failed.kind == "refused" else "retry",
                    wait_secs=failed.wait_secs if failed.wait_secs is not None else FIRST_RETRY_SECS,
                ) from failed
            # the session lives as long as its old login does
            does = "none: the session goes on until it ends" if failed.kind == "refused" else "try again"
            return Status(event="degraded", code=failed.code, text=failed.text, action=does)
        if self._waiting_ns is not None:
            self._try(now_ns)
        return None

    def take(self, life: int | None, now_ns: int) -> int | None:
        """The login was accepted for this many ms; gives when the session ends."""
        self.accepted = True
        self._sent_ns = self._waiting_ns = None
        self._shared.auth_refusals[self._endpoint] = 0
        if life is None:
            return None
        self._renew_ns = now_ns + max(life * 1_000_000 - RENEW_BEFORE_SECS * SECOND, life * 500_000)
        return now_ns + life * 1_000_000

    def refused(self, text: str) -> None:
        """The login was refused. Raises: HandshakeRefused, always."""
        if "token is required" in text.lower():
            raise HandshakeRefused(f"the login message was not understood: {text}", code="auth_refused", action="fatal")
        refusals = self._shared.auth_refusals.get(self._endpoint, 0) + 1
        self._shared.auth_refusals[self._endpoint] = refusals
        self._tokens.drop(self._version)
        if refusals < REFUSALS_MAX:
            raise HandshakeRefused(f"{text}; trying once more with a fresh token", code="auth_refused")
        if self._tokens.source == "file":
            raise HandshakeRefused(
                f"{text}; waiting for a newer token in the file",
                code="auth_refused",
                action="slow",
                wait_secs=FILE_WAIT_SECS,
            )
        raise HandshakeRefused(f"{text}, also with a fresh token", code="auth_refused", action="fatal")

    def expired(self) -> None:
        """The session is over on the provider's side. Raises: HandshakeRefused; a new connection restores all."""
        self._tokens.drop(self._version)
        raise HandshakeRefused("the session has expired; reconnecting with a fresh token", code="authExpired")

    def closed(self) -> None:
        """The connection is gone: another session may fetch what this one waited for."""
        if self._fetching:
            self._tokens.release()
            self._fetching = False

    def _try(self, now_ns: int) -> bool:
        token = self._tokens.usable(now_ns, self._above)
        if token is None:
            return False
        self._waiting_ns, self._sent_ns = None, now_ns
        self._version = self._tokens.version
        self._sent += 1
        self.request_id = f"auth-{self._sent}"
        self._send(Send(wire.auth_request(self.request_id, token)))
        return True

    def _fetch(self, now_ns: int) -> None:
        request = self._tokens.fetch(now_ns)
        if request is not None:
            self._fetching = True
            self._send(request)

    def _wait(self, now_ns: int, since_ns: int) -> None:
        """Another connection's fetch may have brought a token, or it is time to try again."""
        if self._try(now_ns):
            return
        if self._tokens.refused:
            if not self.accepted:
                raise HandshakeRefused(self._tokens.refused, code="token_refused", action="fatal")
            self._waiting_ns = None
            return
        if not self.accepted and now_ns - since_ns >= TOKEN_SECS * SECOND:
            raise HandshakeRefused(f"no access token within {TOKEN_SECS} s", code="token_timeout")
        self._fetch(now_ns)
        self._try(now_ns)


def life_ms(data: Any) -> int | None:
    """The `expiresIn` of a session message: milliseconds, unlike OAuth's `expires_in`; None where it names none."""
    life = data.get("expiresIn") if isinstance(data, dict) else None
    if isinstance(life, bool) or not isinstance(life, int):
        return None
    return life if 0 < life < LIFE_MS_MAX else None
