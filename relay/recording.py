"""What the bridge tells the journal: every record of a run in one order, secrets masked, accounts left out.

A record is a tuple in a list; some hundred at once become lines and are handed over to the journal's thread. A record
is added before what it causes happens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from relay import __version__, model, records
from relay.config import Config, ProviderConfig
from relay.errors import SessionError
from relay.feed import Feed, Lane
from relay.intake import Intake, Source
from relay.journal import Batch, Journal
from relay.model import ACCOUNT_CHANNELS, ACCOUNT_MESSAGES
from relay.providers.base import Frame, Output, Planned, Request, Send, Shared, Subscription
from relay.records import Changed, Connection, Ended, Header, Lost, Other, ProviderHeader, Withheld, line
from relay.redaction import MASK, Redactor
from relay.retry import Decision
from relay.secrecy import secret_maps, secret_options
from relay.times import iso

BATCH_RECORDS = 256
"""Handed over at once: two batches of a fast feed. Their frames are still in the core's cache, and their lines below
the size (128 KiB) from which the C library asks the system for fresh pages: at 512 recording cost half as much again.
"""
BATCH_BYTES = 96 * 1024
IDLE_SECS = 30.0
"""How long ticks that may have done nothing wait for company."""
_TELLING: tuple[type[model.Header], ...] = (
    model.Reject,
    *ACCOUNT_MESSAGES,
)
_FRAMES = {Frame}
_VERBS = {"replied": "reply", "closed": "closing"}

Tell = Callable[[str, str, Mapping[str, Any]], None]
"""`tell("degraded" | "recovered", text, fields)`."""


class State(Protocol):
    """What the recorder needs of a configured provider at run time."""

    config: ProviderConfig
    source: Source
    shared: Shared
    feeds: list[Feed]
    plans: dict[str, Planned]


class Recorder:
    """One run's recording. `private`: feeds that carry an account which is not to be recorded."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        run: int,
        intake: Intake,
        earlier: Callable[[], Mapping[str, str]],
        topics: Callable[[], Mapping[str, Any]],
        providers: Mapping[str, Any],
        tell: Tell,
        redactor: Redactor,
    ) -> None:
        self.config, self.folder, self.run, self.intake = config, folder, run, intake
        self._earlier, self._topics, self._tell = earlier, topics, tell
        self._providers: Mapping[str, State] = providers
        self.private: set[Lane] = set()
        self._since: dict[State, int] = {}  # when each provider was taken in
        self.journal = Journal(
            folder,
            f"{config.name}.{iso(run * 1_000_000).replace('-', '').replace(':', '')}",
            config.journal,
            lost_line=lambda count, from_ns, why: line("lost", from_ns, "", Lost(count, from_ns, why)),
        )
        self._pending: list[Any] = []
        self._append = self._pending.append
        self._named = ""  # whose frames follow in `_pending`
        self._size = self._rejects = 0
        self._counted: dict[int, int] = {}  # bytes that each feed had received when they were last looked at
        self._oldest = 0.0
        self._conns: dict[Lane, str] = {}
        self._plans: dict[str, Sequence[Subscription]] = {}
        self._open: dict[str, None] = {}
        self._header: Callable[[int], bytes] | None = None
        self._redactor = redactor
        self._said = "recording"

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self, now_ns: int) -> None:
        """Begin to record: no session is open yet."""
        self._header = self._snapshot(now_ns)
        self.journal.start()
        self._append(("begun", "", now_ns, None))

    def reloading(self) -> None:
        """Providers or connections are about to come or go: what happened so far stands in the file so far."""
        self._hand_over()

    def reloaded(self, config: Config, providers: Mapping[str, Any], now_ns: int) -> None:
        """They have, and nothing has happened since: a file begins, whose header says what there is now."""
        self.config, self._providers = config, providers
        self._header = self._snapshot(now_ns)
        self._append(("begun", "", now_ns, None))

    def _learn(self) -> None:
        """Take down who there is."""
        for state in self._providers.values():
            for feed in state.feeds:
                planned = state.plans[feed.label]
                for lane in (feed, feed.second):
                    conn = f"{lane.name}/{lane.key}"
                    self._conns[lane] = conn
                    self._plans[conn] = planned.subscriptions
                    if not self.config.journal.accounts and any(
                        s.channel in ACCOUNT_CHANNELS for s in planned.subscriptions
                    ):
                        self.private.add(lane)
        for gone in self._since.keys() - set(self._providers.values()):
            del self._since[gone]

    async def run_flush(self) -> None:
        """Hand over what waits every `flush_ms`, and tell how the journal does."""
        pause = self.config.journal.flush_ms / 1000
        while True:
            await anyio.sleep(pause)
            if self._size or (self._pending and time.monotonic() - self._oldest > IDLE_SECS):
                self._hand_over()
            journal = self.journal
            if journal.state != self._said:
                self._said = journal.state
                fields = {"folder": str(self.folder), "why": journal.why, "left_out": journal.lost}
                if journal.state == "degraded":
                    self._tell("degraded", "recording stands still, the relay goes on", fields)
                elif journal.state == "recording":
                    del fields["why"]
                    self._tell("recovered", "recording goes on", fields)

    async def close(self) -> None:
        """Write what waits and close the file."""
        self._hand_over()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.journal.close)

    def turn(self, feed: Lane) -> None:
        """Called after each batch of frames: hand over when enough waits. Cheap."""
        count = feed.stats.bytes
        self._size += count - self._counted.get(id(feed.stats), 0)
        self._counted[id(feed.stats)] = count
        if len(self._pending) >= BATCH_RECORDS or self._size >= BATCH_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        pending = self._pending
        if not pending:
            return
        first_ns, last_ns = _span(pending)
        if not last_ns:  # a connection's name alone
            pending.clear()
            self._named = ""
            return
        try:
            lines, count = self._lines(pending)
        except Exception as error:  # a record that cannot be written down must not stop the relay
            lost = Lost(len(pending), first_ns, f"{type(error).__name__}: {error}"[:500])
            lines, count = line("lost", first_ns, "", lost), 1
        batch = Batch(lines, count, first_ns, last_ns, self._header)
        pending.clear()
        self._named = ""
        self._size = 0
        self._header = None
        self.journal.put(batch)
        if self.journal.wants_rotation():
            self._header = self._snapshot(batch.last_ns)

    # -- hooks ---------------------------------------------------------------------------------------------------

    def frame(self, feed: Lane) -> Callable[[Frame], object]:
        """A batch of frames begins; gives what takes each. HOT: the frames of a batch follow the connection's name."""
        conn = self._conns[feed]
        if conn != self._named:
            self._append(conn)
            self._named = conn
        return self._append

    def asked(self, feed: Lane, what: str, now_ns: int, given: tuple[Any, ...]) -> None:
        """A provider will be asked something else than a frame."""
        if what == "opened":
            return  # stands in the record of the session's beginning
        conn = f"{feed.name}/{feed.key}"
        if what == "tick":
            if not self._pending:
                self._oldest = time.monotonic()
            self._append(("tick", conn, now_ns, None))
        elif what == "replied":
            self._note("reply", conn, now_ns, given[0], len(given[0].body))
        elif what in ("subscribe", "unsubscribe"):
            self._note(what, conn, now_ns, Changed(list(given[0])))
        else:
            self._note(_VERBS.get(what, what), conn, now_ns)

    def made(self, name: str, key: str, subscriptions: Sequence[Subscription], now_ns: int) -> None:
        """A provider object is made for a connection that is about to be tried."""
        conn = f"{name}/{key}"
        same = tuple(subscriptions) == tuple(self._plans.get(conn, ()))
        self._note("made", conn, now_ns, None if same else Changed(list(subscriptions)))

    def session_opened(self, feed: Lane, now_ns: int) -> None:
        conn = f"{feed.name}/{feed.key}"
        self._open[conn] = None
        self._note("opened", conn, now_ns)

    def session_closed(
        self,
        feed: Lane,
        error: SessionError | None,
        code: int | None,
        reason: str,
        decision: Decision | None,
        now_ns: int,
    ) -> None:
        conn = f"{feed.name}/{feed.key}"
        self._open.pop(conn, None)
        ended = Ended(code=code, reason=reason)
        if error is not None:
            ended.error, ended.text, ended.error_code = True, error.text, error.code
        if decision is not None:
            ended.kind, ended.delay_secs, ended.attempt = decision.kind, decision.delay_secs, decision.attempt
        self._note("closed", conn, now_ns, ended)

    def sent(self, feed: Lane, send: Send | Request, now_ns: int) -> None:
        self._note("out", f"{feed.name}/{feed.key}", now_ns, send, 200)

    def watch(self, now_ns: int) -> None:
        """The intake looked for stale topics, and found some."""
        self._note("watch", "", now_ns)

    def stopped(self, now_ns: int) -> None:
        self._note("stopped", "", now_ns)

    def subscriptions(
        self, name: str, subscriptions: Sequence[Subscription], plans: Mapping[str, Planned], now_ns: int
    ) -> None:
        """A provider subscribes to something else from now on (`Intake.resubscribed`)."""
        self._note("subscriptions", "", now_ns, Changed(list(subscriptions), name, _connections(plans)))

    def aside(self, now_ns: int) -> None:
        """A status was published whose cause is not recorded: a replay leaves its number out."""
        self._note("aside", "", now_ns, Withheld(status=self.intake.status_topic.seq))

    def outputs(self, feed: Lane, outputs: Sequence[Output]) -> None:
        """Look at what a private feed's provider gave: what brought it is not kept where it tells of an account."""
        if not any(isinstance(output, _TELLING) for output in outputs):
            return
        last = self._pending[-1]
        if isinstance(last, Frame):
            now_ns, size = last.received_ns, len(last.data)
        elif last[0] == "reply":
            now_ns, size = last[2], len(last[3].body)
        else:
            return
        state, outbox = self._providers[feed.name], self.intake.outbox
        topics = {state.source.names.deadletter(one.account) for one in outputs if isinstance(one, model.Reject)}
        rejects = {name: outbox.topic(name, "deadletter", feed.name).seq for name in topics}
        data = Withheld(self.intake.status_topic.seq, getattr(state.shared, "_counter", None), size, rejects)
        self._pending[-1] = ("withheld", f"{feed.name}/{feed.key}", now_ns, data)

    def _note(self, do: str, conn: str, now_ns: int, data: Any = None, size: int = 100) -> None:
        if not self._pending:
            self._oldest = time.monotonic()
        self._append((do, conn, now_ns, data))
        self._size += size

    # -- records to lines ------------------------------------------------------------------------------------------

    def _lines(self, batch: Sequence[Any], *, redact: bool = False) -> tuple[bytes, int]:
        """Turn records into lines; gives their number too."""
        sound = not redact and not self._any_rejects()
        finds = _nothing if redact else self._redactor.finds
        parts: list[bytes] = []
        frames: list[Frame] = []
        conn, count = "", 0
        rest: Sequence[Any] = ("",)
        following = list(batch[1:])
        if batch[0].__class__ is str and set(map(type, following)) == _FRAMES:  # mostly: what one connection brought
            conn, frames = batch[0], following
        else:
            rest = (*batch, "")
        for record in rest:
            if record.__class__ is Frame:
                frames.append(record)
                continue
            if frames:
                if redact:
                    frames = [Frame(now_ns, self._redactor.data(data), binary) for now_ns, data, binary in frames]
                part = records.frames(conn, frames, finds, sound=sound)
                if part is None:  # a peer may give back what it was told
                    return self._lines(batch, redact=True)
                parts.append(part)
                count += len(frames)
                frames = []
            if record.__class__ is str:
                conn = record
            else:
                parts.append(records.encode_lines([self._other(*record)]))
                count += 1
        return parts[0] if len(parts) == 1 else b"".join(parts), count

    def _any_rejects(self) -> bool:
        """Tell whether a frame may have been rejected since this was asked last."""
        before, self._rejects = self._rejects, sum(s.source.counts.rejects for s in self._providers.values())
        return self._rejects != before

    def _other(self, do: str, conn: str, now_ns: int, data: Any) -> Other:
        if do == "out":
            data = self._sent(data)
        elif do == "reply":
            data = self._redactor.tree(msgspec.to_builtins(records.reply_data(data)))
        elif do == "closed":
            data = self._redactor.tree(msgspec.to_builtins(data))
        return Other(do, conn, now_ns, data)

    def _sent(self, send: Send | Request) -> dict[str, Any]:
        """What is recorded of something sent: no headers, and no secret in any spelling that the wire has for it."""
        if isinstance(send, Request):
            plain = {"tag": send.tag, "method": send.method, "url": send.url}
            body = send.body
            if body:
                plain["body"] = body.decode("utf-8", "backslashreplace")
        else:
            text = send.data if isinstance(send.data, str) else send.data.decode("utf-8", "backslashreplace")
            plain = {"frame": text}
            if isinstance(send.data, bytes):
                plain["binary"] = "yes"
        out: dict[str, Any] = self._redactor.tree(plain)
        return out

    # -- the header ------------------------------------------------------------------------------------------------

    def _snapshot(self, now_ns: int) -> Callable[[int], bytes]:
        """Take down what a replay must know at this moment; gives the maker of the header line."""
        config, redactor = self.config, self._redactor
        self._learn()
        providers = {}
        for name, state in self._providers.items():
            options = state.shared.options
            plain = msgspec.to_builtins(options)
            for secret in secret_options(type(options)):
                if plain.get(secret):
                    plain[secret] = MASK
            for secret in secret_maps(type(options)):
                plain[secret] = dict.fromkeys(plain.get(secret, ()), MASK)
            held = getattr(state.shared, "state", None)
            source = state.source
            providers[name] = ProviderHeader(
                type=state.config.spec.name,
                options=redactor.tree(plain),
                subscriptions=list(state.config.subscriptions),
                connections=_connections(state.plans),
                account=state.shared.account,
                book_snapshot_every=state.shared.book_snapshot_every,
                origin=source.origin,
                prefix=source.names.prefix if source.names is not self.intake.names else None,
                state=redactor.tree(held()) if held is not None else None,
                since=self._since.setdefault(state, now_ns),
            )
        header = Header(
            format=records.FORMAT,
            relay=config.name,
            run=self.run,
            file=0,
            version=__version__,
            prefix=self.intake.names.prefix,
            templates=dict(config.topics),
            merge=config.merge,
            accounts=config.journal.accounts,
            providers=providers,
            earlier=dict(self._earlier()) | {t.name: t.last_id for t in self._topics().values() if t.last_id},
            before={t.name: t.before.decode() for t in self._topics().values() if t.before and not t.seq},
            topics={topic.name: (topic.kind, topic.provider, topic.seq) for topic in self._topics().values()},
            open=list(self._open),
        )
        return partial(_header_line, header, now_ns)


def _connections(plans: Mapping[str, Planned]) -> list[Connection]:
    return [Connection(label, list(planned.subscriptions)) for label, planned in plans.items()]


def _header_line(header: Header, now_ns: int, number: int) -> bytes:
    header.file = number
    return line("header", now_ns, "", header)


def _nothing(data: bytes) -> bool:
    return False


def _span(pending: Sequence[Any]) -> tuple[int, int]:
    """Times of the first and the last record; 0 where there is none."""
    found = [
        next((r.received_ns if isinstance(r, Frame) else r[2] for r in order if not isinstance(r, str)), 0)
        for order in (pending, reversed(pending))
    ]
    return found[0], found[1]
