"""When a session is tried again: at once, then politely, never in a tight loop, never for ever when it is fatal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import HandshakeRefused, SessionError
from relay.retry import SLOW_SECS, Backoff, Decision, Policy

JITTER = st.floats(0, 1, exclude_max=True)


def decide(backoff: Backoff, error: SessionError | None = None, jitter: float = 0.5, now: float = 0.0) -> Decision:
    return backoff.next(error, jitter=jitter, now_secs=now, now_ns=int(now * 1e9))


def test_first_at_once_then_doubling_up_to_the_cap() -> None:
    backoff = Backoff(Policy(first_secs=1, cap_secs=8))
    decisions = [decide(backoff, SessionError("x")) for _ in range(7)]
    assert [one.delay_secs for one in decisions] == [0, 0.5, 1, 2, 4, 4, 4]
    assert [one.attempt for one in decisions] == [1, 2, 3, 4, 5, 6, 7]
    assert {one.kind for one in decisions} == {"retry"}


def test_a_plain_close_counts_too() -> None:
    backoff = Backoff(Policy())
    assert [decide(backoff).delay_secs for _ in range(3)] == [0, 0.5, 1]


def test_only_health_resets() -> None:
    backoff = Backoff(Policy())
    for _ in range(5):
        decide(backoff)
    assert decide(backoff).delay_secs > 1
    backoff.healthy()
    assert decide(backoff) == Decision("retry", 0.0, 1)


@given(st.lists(JITTER, min_size=2, max_size=2000), st.floats(0.1, 10), st.floats(10, 600))
def test_delays_stay_between_a_tenth_and_the_cap(jitters: list[float], first: float, cap: float) -> None:
    backoff = Backoff(Policy(first_secs=first, cap_secs=cap))
    delays = [decide(backoff, jitter=jitter).delay_secs for jitter in jitters]
    assert delays[0] == 0
    assert all(first * 0.1 <= delay <= cap for delay in delays[1:])


def test_a_wait_that_the_provider_asks_for_holds_from_the_first_time() -> None:
    backoff = Backoff(Policy())
    assert decide(backoff, SessionError("busy", wait_secs=7)).delay_secs == 7
    assert decide(backoff, SessionError("busy", wait_secs=7)).delay_secs == 7


def test_fatal_is_the_end() -> None:
    assert decide(Backoff(Policy()), HandshakeRefused("no key", action="fatal")).kind == "fatal"


def test_slow_waits_minutes_and_becomes_fatal_at_its_limit() -> None:
    backoff = Backoff(Policy())
    error = SessionError("refused", action="slow", wait_secs=100, limit_secs=300)
    kinds = [decide(backoff, error, jitter=0, now=now).kind for now in (1000, 1100, 1299, 1300)]
    assert kinds == ["slow", "slow", "slow", "fatal"]
    assert decide(Backoff(Policy()), error, jitter=0.999).delay_secs == pytest.approx(125, rel=0.01)


def test_slow_without_figures_goes_on_for_ever() -> None:
    backoff = Backoff(Policy())
    error = SessionError("refused", action="slow")
    decisions = [decide(backoff, error, jitter=0, now=day * 86_400.0) for day in range(1000)]
    assert {(one.kind, one.delay_secs) for one in decisions} == {("slow", SLOW_SECS)}


def test_the_limit_of_slow_counts_from_the_first_slow_after_health() -> None:
    backoff = Backoff(Policy())
    error = SessionError("refused", action="slow", limit_secs=300)
    assert decide(backoff, error, now=0).kind == "slow"
    backoff.healthy()
    assert decide(backoff, error, now=1000).kind == "slow"
    assert decide(backoff, error, now=1300).kind == "fatal"


@given(JITTER, st.integers(-(10**12), 10**12))
def test_until_is_never_before_its_time(jitter: float, ahead_ns: int) -> None:
    error = SessionError("quota", action="until", until_ns=2 * 10**12 + ahead_ns)
    decision = decide(Backoff(Policy()), error, jitter=jitter, now=2000)
    assert decision.kind == "until"
    assert max(0, ahead_ns) / 1e9 <= decision.delay_secs <= max(0, ahead_ns) / 1e9 + 30


def test_until_without_a_time_is_a_retry() -> None:
    assert decide(Backoff(Policy()), SessionError("quota", action="until")).kind == "retry"
