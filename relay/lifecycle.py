"""What the relay makes of a session's beginning and end: the same for the live relay and for a replay. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from relay.errors import SessionError
from relay.intake import Intake, Source
from relay.model import ACCOUNT_CHANNELS, Reject, Status
from relay.providers.base import Provider, Subscription, reject
from relay.retry import Decision
from relay.rollover import Rollover, label_of


class Told(NamedTuple):
    """An end in words: why, and what follows (empty: nothing, we are stopping)."""

    text: str
    action: str
    goes_on: bool = False
    """Another session of the connection is there."""
    level: str = "warning"


def opened(intake: Intake, source: Source, connection: str, now_ns: int) -> bool:
    """A WebSocket is open; the login has not begun. `connection` is the session's key.

    Gives True where it is the second one of its connection, which is to take over.
    """
    label = label_of(connection)
    speaks = source.sessions.get(label)
    if speaks is not None and speaks != connection:
        source.rollovers[label] = Rollover(source, speaks, connection, now_ns)
        text = "a second connection, which is to take over; the first one goes on"
        intake.status(source, Status(event="opened", code=label, text=text), now_ns)
        return True
    source.sessions[label] = connection
    intake.opened(source, label)
    intake.status(source, Status(event="opened", code=label), now_ns)
    return False


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
    text = _why(error, code, reason)
    key, connection = connection, label_of(connection)
    rollover: Rollover | None = source.rollovers.get(connection)
    if rollover is not None and key == rollover.old:
        return _replaced(intake, source, rollover, decision is not None and decision.kind == "joined", text, now_ns)
    if source.sessions.get(connection, key) != key:
        if rollover is not None:
            intake.not_replaced(source, connection)
        if decision is not None:
            return _not_renewed(intake, source, connection, error, text, decision, now_ns)
    else:
        source.sessions.pop(connection, None)
        intake.closed(source, connection)
    if decision is None:
        intake.status(source, Status(event="closed", code=connection, text=text), now_ns)
        return Told(text, "")
    action = _action(decision)
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


def in_words(
    error: SessionError | None, code: int | None, reason: str, decision: Decision | None, goes_on: bool
) -> Told:
    """Say why a session ended and what follows, where nothing is published; `goes_on`: another session is there."""
    if decision is None:
        return Told(_why(error, code, reason), "", goes_on)
    if decision.kind in ("joined", "replaced"):
        return Told("a new connection has taken over", "goes on", True, "info")
    return Told(_why(error, code, reason), _action(decision), goes_on)


def _why(error: SessionError | None, code: int | None, reason: str) -> str:
    return error.text if error is not None else (f"closed {code} {reason}".strip() if code else "connection lost")


def _replaced(intake: Intake, source: Source, rollover: Rollover, proven: bool, why: str, now_ns: int) -> Told:
    """The old one of two sessions ended, the new one is there."""
    label = label_of(rollover.new)
    source.sessions[label] = rollover.new
    if proven:
        text = "a new connection has taken over, the old one is closed"
    else:
        text = f"a new connection has taken over before it was ready, the old one ended: {why}"
    status = Status(event="renewed", code=label, text=f"{label}: {text}", from_ns=rollover.begun_ns, to_ns=now_ns)
    intake.status(source, status, now_ns)
    intake.replaced(source, label, proven, now_ns)
    return Told(text, "", True, "info" if proven else "warning")


def joined(source: Source, label: str) -> bool:
    """Tell whether the second one of two sessions has brought all that the first one brings."""
    rollover = source.rollovers.get(label)
    return rollover is None or bool(rollover.joined)


def _not_renewed(
    intake: Intake,
    source: Source,
    label: str,
    error: SessionError | None,
    why: str,
    decision: Decision,
    now_ns: int,
) -> Told:
    """A second connection failed; the first one goes on, nothing is missing."""
    text, action = f"a second connection to take over failed: {why}", _action(decision)
    status = Status(event="notice", code="not_renewed", text=f"{label}: {text}", action=f"the old one stays; {action}")
    if decision.kind != "fatal":
        status.until = now_ns + int(decision.delay_secs * 1e9)
    intake.status(source, status, now_ns)
    return Told(text, status.action or "", True)


def _action(decision: Decision) -> str:
    if decision.kind == "fatal":
        return "not tried again"
    return f"again in {decision.delay_secs:.{1 if decision.kind == 'retry' else 0}f} s"


def resubscribed(
    intake: Intake,
    source: Source,
    subscriptions: Sequence[Subscription],
    plans: Mapping[str, Sequence[Subscription]],
) -> None:
    """A provider subscribes to something else, dealt to its connections as `plans` says, by label."""
    intake.resubscribed(source, subscriptions)
    if len(plans) < 2:
        return
    wants = source.shared.wants
    for route in source.routes.values():
        if route is None:
            continue
        for label, dealt in plans.items():
            if any(s.channel == route.channel and wants(s, route.raw_symbol or "", route.param) for s in dealt):
                route.connection = label
                break


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
