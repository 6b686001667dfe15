"""Records of a journal to numbered messages again: the same intake, providers and clock, so the same bytes. Pure.

One `Replay` is one run of one relay. `apply` takes records in their order and hands each message to `put`, with the
number, the id and the time that it had. Statuses that Redis (or the disk) caused are not made again; their numbers are
left out, so that all others keep theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from relay import lifecycle, records
from relay.errors import JournalError, SessionError
from relay.intake import Intake, Source
from relay.normalizer import Entry, Normalizer
from relay.providers.base import Output, Provider, ProviderSpec, Subscription
from relay.records import Changed, Ended, Header, Lost, Record, Withheld
from relay.retry import Decision
from relay.rollover import SECOND, label_of
from relay.times import iso
from relay.topics import Topics

FAULTS_MAX = 20
"""As in a live session: different faults of a provider's tick told in one session."""


class ReplayTopic:
    """A topic of the recorded relay, by its live name. `target` and `wanted` belong to whoever takes the messages."""

    __slots__ = (
        "before", "contiguous", "full", "kind", "last_id", "name", "provider", "relay", "seq", "target", "wanted",
    )  # fmt: skip

    def __init__(self, relay: str, name: str, kind: str, provider: str, last_id: str | None = None) -> None:
        self.relay, self.name, self.kind, self.provider, self.last_id = relay, name, kind, provider, last_id
        self.seq = 0
        self.full = self.contiguous = False
        self.before: bytes | None = None
        self.target: Any = None
        self.wanted: bool | None = None


Put = Callable[[ReplayTopic, str, bytes], None]
Tell = Callable[[str], None]


class _Session:
    """One connection's provider object and what is known of its life."""

    __slots__ = ("conn", "ended", "label", "open", "provider", "source", "told", "why")

    def __init__(self, conn: str, source: Source, label: str, provider: Provider | None) -> None:
        self.conn, self.source, self.label, self.provider = conn, source, label, provider
        self.open = self.ended = False
        self.told: set[str] = set()
        self.why = "a fault in the provider's code"


class Replay:
    """One run. `put` gets every message, `tell` one line about whatever is not as it was.

    `set_aside(topic, first, last)` is told numbers that are left out. Raises: JournalError where today's code cannot
    take the recorded configuration.
    """

    def __init__(
        self,
        header: Header,
        specs: Mapping[str, ProviderSpec],
        put: Put,
        tell: Tell,
        set_aside: Callable[[ReplayTopic, int, int], None] | None = None,
    ) -> None:
        self.header, self.run = header, header.run
        self.topics: dict[str, ReplayTopic] = {}
        self.add = put
        self.frames = self.ignored = self.withheld = self.lost = 0
        self._tell, self._set_aside = tell, set_aside
        self._specs = specs
        self._earlier = dict(header.earlier)
        self._note_topics()
        names = Topics(header.relay, header.templates, header.prefix)
        self.intake = Intake(names, self, header.run, merge=header.merge)
        self._sources: dict[str, Source] = {}
        self._plans: dict[str, Sequence[Subscription]] = {}
        self._sessions: dict[str, _Session] = {}
        self._unknown: set[str] = set()
        for name, section in header.providers.items():
            self._source(name, section)
        if header.file > 1:
            self._broken("the beginning of this run is not here")

    # -- the outbox that the intake sees

    def topic(self, name: str, kind: str, provider: str) -> ReplayTopic:
        """Get the topic of this name, made when it is new."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = ReplayTopic(self.header.relay, name, kind, provider, self._earlier.get(name))
            before = self.header.before.get(name)
            topic.before = before.encode() if before is not None else None
        return topic

    # -- beginning

    def _note_topics(self) -> None:
        for name, (kind, provider, seq) in self.header.topics.items():
            self.topic(name, kind, provider).seq = seq

    def _source(self, name: str, section: records.ProviderHeader) -> None:
        header = self.header
        spec = self._specs.get(section.type)
        if spec is None:
            self._tell(f"{name}: there is no provider {section.type!r} any more; its records are passed over")
            return
        known = {key: value for key, value in section.options.items() if key in spec.options.__struct_fields__}
        gone = sorted(set(section.options) - set(known))
        if gone:
            self._tell(f"{name}: options that are no longer known are left out: {', '.join(gone)}")
        try:
            options = msgspec.convert(known, spec.options)
        except (msgspec.ValidationError, ValueError) as error:
            raise JournalError(f"{name}: its recorded options cannot be used with this version: {error}") from None
        shared = spec.shared(options, section.account)
        shared.book_snapshot_every = section.book_snapshot_every
        load = getattr(shared, "load_state", None)
        if load is not None and section.state:
            try:
                load(section.state)
            except (ValueError, KeyError, TypeError) as error:
                self._tell(f"{name}: its recorded state cannot be used: {error!r}")
        origin: Any = section.origin
        names = None if section.prefix is None else Topics(header.relay, header.templates, section.prefix)
        self._sources[name] = self.intake.source(name, spec, shared, section.subscriptions, origin=origin, names=names)
        self._plan(name, section.connections)

    def next_file(self, header: Header) -> None:
        """Go on with a later file of the same run."""
        earlier, self.header = self.header, header
        before = earlier.file
        if header.format > 1:
            self._reloaded(earlier, header)
        if header.file == before + 1:
            return
        missing = f"file {before + 1}" if header.file == before + 2 else f"files {before + 1} to {header.file - 1}"
        self._broken(f"{missing} of this run not here")

    def _reloaded(self, earlier: Header, header: Header) -> None:
        """Follow a reload of the live relay: providers and connections come and go between two files."""
        for name, section in earlier.providers.items():
            later = header.providers.get(name)
            if name in self._sources and (later is None or later.since != section.since):
                self.intake.leave(self._sources.pop(name))
                for conn in [conn for conn in self._sessions if conn.startswith(f"{name}/")]:
                    del self._sessions[conn]
        for name, section in header.providers.items():
            was = earlier.providers.get(name)
            if was is None or was.since != section.since:
                self._source(name, section)
            elif name in self._sources:
                self._plan(name, section.connections)

    def _plan(self, name: str, connections: Sequence[records.Connection]) -> None:
        for connection in connections:
            for key in (connection.label, connection.label + SECOND):
                self._plans[f"{name}/{key}"] = connection.subscriptions

    def _broken(self, why: str) -> None:
        """Records are missing before the current file: number on as it says, and do not trust any session's state."""
        self._note_topics()
        self._sessions.clear()
        for source in self._sources.values():
            source.sessions.clear()
            source.rollovers.clear()
        if self.header.open:
            names = ", ".join(self.header.open[:5])
            self._tell(f"{why}: sessions in progress are joined in their middle ({names})")
        else:
            self._tell(why)

    # -- records

    def apply(self, record: Record, now_ns: int) -> None:
        """Do again what a record says. HOT for `in`."""
        do = record.do
        if do == "in":
            session = self._sessions.get(record.conn)
            if session is None:
                session = self._join(record.conn, now_ns)
                if session is None:
                    return
            self.frames += 1
            provider = session.provider
            if session.ended or provider is None:
                self.ignored += 1
                self._once(f"{session.conn}: today's code ends this session at {iso(now_ns)} or before: {session.why}")
                return
            frame = records.frame_of(record, now_ns)
            try:
                outputs = provider.receive(frame)
                provider.to_send()
            except SessionError as error:
                self._end(session, error)
                self._drain(session, provider)
                return
            except Exception as error:
                outputs = (self._fault(session, provider, error, frame.data),)
                self._drain(session, provider)
            if outputs:
                self.intake.take(session.source, session.label, outputs, now_ns)
            return
        try:
            self._other(do, record, now_ns)
        except msgspec.MsgspecError as error:
            self._once(f"a record {do!r} cannot be read ({error}); it is passed over")

    def _other(self, do: str, record: Record, now_ns: int) -> None:
        match do:
            case "out" | "begun":
                return
            case "watch":
                self.intake.watch(now_ns)
            case "stopped":
                lifecycle.stopped(self.intake, now_ns)
            case "aside" | "withheld":
                self._aside(record)
            case "lost":
                lost = records.data_of(record, Lost)
                self.lost += lost.records
                self._tell(
                    f"{lost.records} records could not be written at the time ({lost.why}); what follows may differ"
                )
            case "subscriptions":
                changed = records.data_of(record, Changed)
                if changed.provider in self._sources:
                    plans = {one.label: one.subscriptions for one in changed.connections}
                    source = self._sources[changed.provider]
                    lifecycle.resubscribed(self.intake, source, changed.subscriptions or (), plans)
            case "made":
                self._made(record)
            case "opened" | "tick" | "reply" | "subscribe" | "unsubscribe" | "closing" | "closed":
                session = self._sessions.get(record.conn) or self._join(record.conn, now_ns)
                if session is not None:
                    self._live(do, session, record, now_ns)
            case _:
                self._once(f"records {do!r} are of a later version; they are passed over")

    def _live(self, do: str, session: _Session, record: Record, now_ns: int) -> None:
        provider = session.provider
        match do:
            case "opened":
                session.open = True
                lifecycle.opened(self.intake, session.source, session.label, now_ns)
                self._ask(session, now_ns, "opened", now_ns)
            case "tick":
                self._ask(session, now_ns, "tick", now_ns)
            case "reply":
                self._ask(session, now_ns, "replied", records.reply_of(record), now_ns)
            case "subscribe" | "unsubscribe":
                self._ask(session, now_ns, do, records.data_of(record, Changed).subscriptions or [], now_ns)
            case "closing" if provider is not None:
                try:
                    last: Sequence[Output] = provider.closed(now_ns)
                except SessionError:
                    last = ()
                except Exception as error:
                    last = (self._fault(session, provider, error, None),)
                self._give(session, last, now_ns)
                self._drain(session, provider)
            case "closed":
                self._closed(session, records.data_of(record, Ended), now_ns)

    def _made(self, record: Record) -> None:
        source, label = self._place(record.conn)
        if source is None:
            return
        wanted = records.data_of(record, Changed).subscriptions
        self._make(record.conn, source, label, self._plans.get(record.conn, ()) if wanted is None else wanted)

    def _make(self, conn: str, source: Source, label: str, wanted: Sequence[Subscription]) -> _Session:
        session = self._sessions[conn] = _Session(conn, source, label, None)
        try:
            session.provider = source.spec.session(source.shared.options, wanted, source.shared)
            session.provider.connect()
        except Exception as error:  # the live relay met it too, and the record of the end says so
            if not isinstance(error, SessionError):
                self._once(f"{conn}: {type(error).__name__}: {error}")
        return session

    def _join(self, conn: str, now_ns: int) -> _Session | None:
        """Begin a session whose opening is not in the recording."""
        source, label = self._place(conn)
        if source is None:
            return None
        self._tell(f"{conn}: this session was open before the recording begins; what it knew is missing")
        session = self._make(conn, source, label, self._plans.get(conn, ()))
        session.open = True
        source.sessions.setdefault(label_of(label), label)
        if session.provider is not None:
            try:
                session.provider.opened(now_ns)
            except Exception as error:
                self._once(f"{conn}: {type(error).__name__}: {error}")
            self._drain(session, session.provider)
        return session

    def _place(self, conn: str) -> tuple[Source | None, str]:
        name, _, label = conn.partition("/")
        return self._sources.get(name), label

    def _closed(self, session: _Session, ended: Ended, now_ns: int) -> None:
        error = SessionError(ended.text, code=ended.error_code) if ended.error else None
        kind: Any = ended.kind
        decision = Decision(kind, ended.delay_secs, ended.attempt) if kind is not None else None
        was_open = session.open
        lifecycle.closed(
            self.intake,
            session.source,
            session.label,
            was_open,
            error,
            ended.code,
            ended.reason,
            decision,
            now_ns,
        )
        del self._sessions[session.conn]

    def _aside(self, record: Record) -> None:
        data = records.data_of(record, Withheld)
        self._pass_over(self.intake.status_topic, data.status)
        for name, seq in data.rejects.items():
            self._pass_over(self.topic(name, "deadletter", record.conn.partition("/")[0]), seq)
        if record.do == "withheld":
            self.withheld += 1
            source, _ = self._place(record.conn)
            if source is not None and data.ids is not None:
                source.shared._counter = data.ids

    def _pass_over(self, topic: ReplayTopic, seq: int) -> None:
        """Leave out the numbers of a topic up to one."""
        if seq > topic.seq:
            if self._set_aside is not None:
                self._set_aside(topic, topic.seq + 1, seq)
            topic.seq = seq

    # -- one question to a provider, as the live session asks it

    def _ask(self, session: _Session, now_ns: int, question: str, *given: Any) -> None:
        provider = session.provider
        if session.ended or provider is None:
            return
        try:
            outputs = getattr(provider, question)(*given)
        except SessionError as error:
            self._end(session, error)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if told not in session.told and len(session.told) < FAULTS_MAX:
                session.told.add(told)
                self._give(session, (self._fault(session, provider, error, None),), now_ns)
            if question in ("opened", "subscribe", "unsubscribe"):
                session.ended = True
        else:
            self._give(session, outputs, now_ns)
        self._drain(session, provider)

    def _give(self, session: _Session, outputs: Sequence[Output], now_ns: int) -> None:
        if outputs:
            self.intake.take(session.source, session.label, outputs, now_ns)

    def _drain(self, session: _Session, provider: Provider) -> None:
        try:
            provider.to_send()
        except Exception:
            session.ended = True

    def _end(self, session: _Session, error: SessionError) -> None:
        session.ended, session.why = True, error.text

    def _fault(self, session: _Session, provider: Provider, error: Exception, data: bytes | None) -> Any:
        kind = type(error).__name__
        if len(session.told) < FAULTS_MAX:
            session.told.add(kind)
        return lifecycle.fault(provider, error, data)

    def _once(self, text: str) -> None:
        if text not in self._unknown:
            self._unknown.add(text)
            self._tell(text)


class FramesReplay:
    """Frames of one provider that somebody else recorded, without a journal's other records."""

    def __init__(self, relay: str, normalizer: Normalizer, put: Put) -> None:
        self.relay, self.normalizer, self._put = relay, normalizer, put
        self.topics: dict[str, ReplayTopic] = {}
        self.frames = self.ended = 0
        self._session: object = None

    def apply(self, data: bytes, binary: bool, session: object, now_ns: int) -> None:
        """Take one frame; another `session` than the last one's begins a new session."""
        normalizer = self.normalizer
        entries: list[Entry] = []
        if session != self._session:
            entries += normalizer.close(now_ns)
            self._session = session
        self.frames += 1
        found, error = normalizer.frame(data, now_ns, binary=binary)
        self.ended += error is not None
        for entry in entries + found:
            topic = self.topics.get(entry.topic)
            if topic is None:
                kind = normalizer.collector.topics[entry.topic].kind
                topic = self.topics[entry.topic] = ReplayTopic(self.relay, entry.topic, kind, normalizer.source.name)
            self._put(topic, entry.id, entry.body)
