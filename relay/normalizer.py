"""Frames of one provider to numbered messages, without IO: for `relay normalize`, replays of frames files and tests.

It drives the same provider, identity and numbering code as the live relay. A provider's sessions follow one another;
`shared` lives through all of them.
"""

import contextlib
from typing import Any, NamedTuple

from relay import model
from relay.errors import SessionError
from relay.intake import Intake, Source
from relay.providers.base import Frame, Options, Output, ProviderSpec, Subscription
from relay.redaction import Redactor
from relay.topics import Topics


class Entry(NamedTuple):
    """One numbered message: its topic, entry id and bytes."""

    topic: str
    id: str
    body: bytes


class _Topic:
    __slots__ = ("before", "contiguous", "full", "kind", "last_id", "name", "seq")

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.seq = 0
        self.full = self.contiguous = False
        self.before: bytes | None = None
        self.last_id: str | None = None


class Collector:
    """An outbox that keeps the order over all topics and never fills."""

    def __init__(self) -> None:
        self.topics: dict[str, _Topic] = {}
        self.entries: list[Entry] = []

    def topic(self, name: str, kind: str, provider: str) -> _Topic:
        if name not in self.topics:
            self.topics[name] = _Topic(name, kind)
        return self.topics[name]

    def add(self, topic: Any, entry_id: str, body: bytes) -> None:
        self.entries.append(Entry(topic.name, entry_id, body))

    def drain(self) -> list[Entry]:
        out, self.entries = self.entries, []
        return out


def everything(spec: ProviderSpec) -> list[Subscription]:
    """Subscriptions that take every symbol of every channel (`*`), for frames without a configuration."""
    return [
        Subscription(channel, "*", param)
        for channel, declared in spec.channels.items()
        for param in (declared.allowed if declared.params and declared.allowed else ("",))
    ]


class Normalizer:
    """One provider, its sessions in a row."""

    def __init__(
        self,
        spec: ProviderSpec,
        options: Options,
        subscriptions: list[Subscription] | None = None,
        *,
        name: str = "",
        run: int = 0,
        account: str = "main",
        topics: Topics | None = None,
        merge: bool = True,
        origin: model.Origin | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """`subscriptions` None: every symbol counts as subscribed."""
        self.spec, self.options = spec, options
        self.collector = Collector()
        self.shared = spec.shared(options, account)
        self.intake = Intake(topics or Topics("relay"), self.collector, run, merge=merge, redactor=redactor)
        self.source: Source = self.intake.source(name or spec.name, spec, self.shared, subscriptions, origin=origin)
        self.subscriptions = everything(spec) if subscriptions is None else subscriptions
        self.session: Any = None
        self.frames = self.useless = self.rejected = 0

    def open(self, now_ns: int) -> list[Entry]:
        """Begin a session; the one before it, if any, is closed first."""
        entries = self.close(now_ns)
        self.session = self.spec.session(self.options, self.subscriptions, self.shared)
        self.intake.opened(self.source, "1")
        self._take(self.session.opened(now_ns), now_ns)
        return entries + self.collector.drain()

    def close(self, now_ns: int) -> list[Entry]:
        """End the session, if there is one."""
        if self.session is not None:
            # a provider may ask here for a wait before the next session; without a connection there is none
            with contextlib.suppress(SessionError):
                self._take(self.session.closed(now_ns), now_ns)
            self.useless += self.session.useless
            self.session = None
            self.intake.closed(self.source, "1")
        return self.collector.drain()

    def frame(self, data: bytes, now_ns: int, *, binary: bool = False) -> tuple[list[Entry], SessionError | None]:
        """Feed one frame, beginning a session where there is none; an ended session is told and left."""
        entries: list[Entry] = []
        if self.session is None:
            entries += self.open(now_ns)
        self.frames += 1
        error: SessionError | None = None
        try:
            self._take(self.session.receive(Frame(now_ns, data, binary)), now_ns)
            self.session.to_send()
        except SessionError as ended:
            error = ended
            self._take(getattr(ended, "outputs", ()), now_ns)
            entries += self.collector.drain()
            entries += self.close(now_ns)
        entries += self.collector.drain()
        return entries, error

    def overheard(self, data: bytes, now_ns: int) -> list[Entry]:
        """Take note of what a client sent on a recording; only answers to it are understood by it."""
        heard = getattr(self.spec.session, "overheard", None)
        if heard is None:
            return []
        entries = self.open(now_ns) if self.session is None else []
        self.session.overheard(data)
        return entries + self.collector.drain()

    def _take(self, outputs: Any, now_ns: int) -> None:
        taken: list[Output] = list(outputs)
        if taken:
            self.intake.take(self.source, "1", taken, now_ns)
