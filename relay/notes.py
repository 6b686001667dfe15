"""What is noted and said of sessions when they begin and end, whether what they give is published or not."""

from relay.errors import SessionError
from relay.feed import Lane
from relay.lifecycle import Told
from relay.provider_state import Note, Running
from relay.retry import Decision
from relay.rollover import label_of


def opened(bridge: Running, feed: Lane, now_ns: int) -> None:
    """Note that a session is open."""
    state = bridge.providers[feed.name]
    text = "connected, to take over" if any(label_of(key) == feed.label for key in state.live) else "connected"
    state.live[feed.key] = True
    state.notes[feed.label] = Note(now_ns)
    if bridge.recorder is not None:
        bridge.recorder.session_opened(feed, now_ns)
    bridge.event("info", text, provider=feed.name, connection=feed.label)


def closed(
    bridge: Running,
    feed: Lane,
    error: SessionError | None,
    code: int | None,
    reason: str,
    decision: Decision | None,
    now_ns: int,
) -> bool:
    """Note that a session ended, or could not begin. Gives whether it was open."""
    was_open = bridge.providers[feed.name].live.pop(feed.key, False)
    if bridge.recorder is not None:
        bridge.recorder.session_closed(feed, error, code, reason, decision, now_ns)
    return was_open


def told(bridge: Running, feed: Lane, told: Told, decision: Decision | None, now_ns: int) -> None:
    """Say why it ended and what follows; nothing where that is a planned stop."""
    if decision is None:
        return
    state = bridge.providers[feed.name]
    text, level = bridge.redactor.text(told.text), told.level
    if not told.goes_on:
        due_ns = None if decision.kind == "fatal" else now_ns + int(decision.delay_secs * 1e9)
        state.notes[feed.label] = Note(now_ns, text, due_ns)
        if decision.kind == "fatal":
            state.stopped[feed.label], level = text, "error"
    what_next = {"next": told.action} if told.action else {}
    bridge.event(level, text, provider=feed.name, connection=feed.label, **what_next)
