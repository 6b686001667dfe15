"""What the relay makes of a session's beginning and end: the same for the live relay and for a replay. Pure."""

from typing import NamedTuple

from relay.errors import SessionError
from relay.intake import Intake, Source
from relay.model import ACCOUNT_CHANNELS, Reject, Status
from relay.providers.base import Provider, reject
from relay.retry import Decision


class Told(NamedTuple):
    """An end in words: why, and what follows (empty: nothing, we are stopping)."""

    text: str
    action: str


def opened(intake: Intake, source: Source, connection: str, now_ns: int) -> None:
    """A WebSocket is open; the login has not begun."""
    intake.opened(source, connection)
    intake.status(source, Status(event="opened", code=connection), now_ns)


def closed(
    intake: Intake,
    source: Source,
    connection: str,
    was_open: bool,
    error: SessionError | None,
    code: int | None,
    reason: str,
    decision: Decision | None,
    now_ns: int,
) -> Told:
    """A session ended, or could not begin; `decision` says what follows, None: nothing, we are stopping."""
    intake.closed(source, connection)
    text = error.text if error is not None else (f"closed {code} {reason}".strip() if code else "connection lost")
    if decision is None:
        intake.status(source, Status(event="closed", code=connection, text=text), now_ns)
        return Told(text, "")
    action = {
        "fatal": "not tried again",
        "retry": f"again in {decision.delay_secs:.1f} s",
        "slow": f"again in {decision.delay_secs:.0f} s",
        "until": f"again in {decision.delay_secs:.0f} s",
    }[decision.kind]
    status = Status(
        event="closed" if was_open else "refused",
        code=(error.code if error is not None and error.code else str(code or "") or None),
        text=f"{connection}: {text}",
        action=action,
    )
    if decision.kind != "fatal":
        status.until = now_ns + int(decision.delay_secs * 1e9)
    intake.status(source, status, now_ns)
    return Told(text, action)


def stopped(intake: Intake, now_ns: int) -> None:
    """The relay ends as planned."""
    intake.conflation.release(now_ns, all_of_them=True)
    intake.status(None, Status(event="stopped", text="relay stopped"), now_ns)


def fault(provider: Provider, error: Exception, data: bytes | None) -> Reject:
    """Turn a fault of the provider's own code into a reject; the session lives."""
    subscriptions = getattr(provider, "subscriptions", ())
    private = any(subscription.channel in ACCOUNT_CHANNELS for subscription in subscriptions)
    account = getattr(getattr(provider, "shared", None), "account", None) if private else None
    return reject("internal", f"{type(error).__name__}: {error}", data, account=account)
