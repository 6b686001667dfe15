"""Which error asks for which delay: the one place that decides when a session is tried again.

At once the first time, then full jitter up to the provider's cap; reset only by a healthy period, never by a mere
connect. Pure: time and jitter are handed in.
"""

from dataclasses import dataclass
from typing import Literal

from relay.errors import SessionError

HEALTHY_SECS = 30.0
"""A session that carried data this long proves that trying again at once is polite."""
SLOW_SECS = 60.0
"""Least wait of a slow retry where the provider's sheet names none."""


@dataclass(frozen=True)
class Policy:
    """How one provider wants to be reconnected to. All in seconds."""

    first_secs: float = 1.0
    cap_secs: float = 60.0
    slow_secs: float = SLOW_SECS


@dataclass(frozen=True)
class Decision:
    """What follows from the end of a session: stop for good, or wait `delay_secs` and try again."""

    kind: Literal["retry", "slow", "fatal", "until", "joined", "replaced"]
    """`joined` and `replaced`: another session of the connection is there already, after a rollover that was complete,
    or before it was."""
    delay_secs: float
    attempt: int


class Backoff:
    """State of one connection's retries. Not shared, not thread-safe."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.attempt = 0
        self._slow_since: float | None = None
        self._slow_tries = 0

    def healthy(self) -> None:
        """The session was authenticated, carried data and lived for HEALTHY_SECS: start from zero next time."""
        self.attempt = 0
        self._slow_since = None
        self._slow_tries = 0

    def next(self, error: SessionError | None, *, jitter: float, now_secs: float, now_ns: int) -> Decision:
        """Decide about the end of a session.

        `error` None: it ended without one (a plain close). `jitter`: from [0, 1). `now_secs` is monotonic, `now_ns`
        wall time (only for `until`).
        """
        action = "retry" if error is None else error.action
        self.attempt += 1
        if action == "fatal":
            return Decision("fatal", 0.0, self.attempt)
        if action == "until" and error is not None and error.until_ns is not None:
            wait = max(0.0, (error.until_ns - now_ns) / 1e9)
            return Decision("until", wait + jitter * 30.0, self.attempt)
        if action == "slow" and error is not None:
            if self._slow_since is None:
                self._slow_since = now_secs
            if error.limit_secs is not None and now_secs - self._slow_since >= error.limit_secs:
                return Decision("fatal", 0.0, self.attempt)
            self._slow_tries += 1
            least = error.wait_secs if error.wait_secs is not None else self.policy.slow_secs
            return Decision("slow", least * (1.0 + 0.25 * jitter), self.attempt)
        self._slow_since = None
        ceiling = min(self.policy.cap_secs, self.policy.first_secs * 2.0 ** min(self.attempt - 2, 30))
        least = (error.wait_secs or 0.0) if error is not None else 0.0
        if self.attempt == 1:
            return Decision("retry", least, self.attempt)
        # full jitter, but never a delay so small that it makes a tight loop of two
        return Decision("retry", max(least, ceiling * max(jitter, 0.1)), self.attempt)
