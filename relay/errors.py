"""The exception tree of the relay.

RelayError                 base; the message names provider, channel and symbol where known
  ConfigError              the configuration cannot be used; a list of problems with their places; exit code 78
  SessionError             the session must end; carries code, text and the wanted action
    HandshakeRefused       the provider refused the connection or the login
    SubscribeRefused       the provider refused the subscriptions and cannot go on
    SequenceGap            numbers are missing and only a new session can heal it
    SessionStale           nothing came for too long
  SinkError                Redis refused or is away; the class names the reaction
  JournalError             a recording cannot be written or read; carries file and record
  EmbeddedError            the bundled server cannot be started

Only `retry.py` decides what follows from a SessionError, only `cli/` prints and exits. A broken frame is no
exception: it is a `reject` message among a provider's outputs.
"""

from typing import Literal

Action = Literal["retry", "slow", "fatal", "until"]
"""What a session's end asks for: retry (backoff), slow (minutes), fatal (never again), until (a time)."""


class RelayError(Exception):
    """Base of everything the relay raises on purpose."""


class Problem:
    """One thing wrong in a configuration file: where it stands, its path in the document, what was expected."""

    __slots__ = ("column", "file", "line", "path", "text")

    def __init__(self, file: str, line: int, column: int, path: str, text: str) -> None:
        self.file, self.line, self.column, self.path, self.text = file, line, column, path, text

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.path + ': ' if self.path else ''}{self.text}"

    def __repr__(self) -> str:
        return f"Problem({str(self)!r})"


class ConfigError(RelayError):
    """The configuration cannot be used. `problems` holds every problem found, in file order."""

    exit_code = 78  # EX_CONFIG of sysexits.h

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class SessionError(RelayError):
    """The session must end.

    `code`: the provider's own code or ours (`auth_timeout`), for the `status` message. `text`: one readable line.
    `action`: what should follow. `until_ns`: not before this time (ns since 1970 UTC), with action `until`; with
    action `slow`, `limit_secs` bounds how long slow retries go on before the refusal counts as fatal (None: for ever),
    `wait_secs` is the least wait before the next try.
    """

    def __init__(
        self,
        text: str,
        *,
        code: str = "",
        action: Action = "retry",
        until_ns: int | None = None,
        wait_secs: float | None = None,
        limit_secs: float | None = None,
    ) -> None:
        super().__init__(text)
        self.text, self.code, self.action = text, code, action
        self.until_ns, self.wait_secs, self.limit_secs = until_ns, wait_secs, limit_secs


class HandshakeRefused(SessionError):
    """The provider refused the connection or the login."""


class SubscribeRefused(SessionError):
    """The provider refused subscriptions in a way that this session cannot survive."""


class SequenceGap(SessionError):
    """Numbers are missing that only a new session can bring back."""


class SessionStale(SessionError):
    """Nothing came for longer than the connection may be silent."""


class SinkError(RelayError):
    """Redis refused or is away."""


class SpoolError(RelayError):
    """The spool must not be used: another process has it, or a newer relay wrote it."""


class SpoolUnusable(SpoolError):
    """The disk lets no spool be."""


class JournalError(RelayError):
    """A recording cannot be written or read."""


class EmbeddedError(RelayError):
    """The bundled server cannot be started; the text says how to get one."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the first error of a group, whatever it is wrapped in."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
