"""Who a feed tells what happens, and what it counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.errors import SessionError
from relay.providers.base import Frame, Output, Provider, ProviderSpec, Reply, Request, Send
from relay.retry import Decision


class Lane:
    """What handlers are told of a session: whose it is. A feed is its own first lane, its second one serves rollovers.

    `label` is the connection's, `key` the session's: the label, with a mark on the second lane.
    """

    def __init__(self, name: str, label: str, key: str, spec: ProviderSpec, stats: "FeedStats") -> None:
        self.name, self.label, self.key, self.spec, self.stats = name, label, key, spec, stats


class Handler(Protocol):
    """Who gets what the sessions give: the bridge. Its methods are called in the order in which things happened.

    An error that it raises is not the session's: it ends `Feed.run`.
    """

    @property
    def frame(self) -> Callable[[Lane], Callable[[Frame], object]] | None:
        """Called for each batch of frames; what it gives is called with each frame before that is decoded (the
        journal). None: nobody listens."""

    @property
    def asked(self) -> Callable[[Lane, str, int, tuple[Any, ...]], None] | None:
        """Called before a provider is asked anything else, with the method's name, the time and what is handed in
        besides (the journal); None: nobody listens."""

    @property
    def full(self) -> bool:
        """True: the feeds stop reading until `room` returns. Looked at once a batch of frames."""

    async def room(self) -> None:
        """Wait until it is not full any more."""

    def session_opened(self, feed: Lane, provider: Provider, now_ns: int) -> None: ...
    def outputs(self, feed: Lane, outputs: Sequence[Output], now_ns: int) -> None:
        """Take outputs; never empty. Hot."""

    def batch_end(self, feed: Lane) -> None:
        """Nothing more comes at once: flush."""

    async def turn(self) -> None:
        """Let the other tasks go on; more frames wait."""

    def sent(self, feed: Lane, send: Send | Request) -> None:
        """Called right before it goes out."""

    def replied(self, feed: Lane, reply: Reply, now_ns: int) -> None:
        """Called before the provider gets the answer."""

    def settled(self, feed: Lane) -> None:
        """Called when the provider has taken an answer, before anything that follows from it goes out: what must
        outlive the process (a rotated token) is saved now."""

    def session_closed(
        self,
        feed: Lane,
        error: SessionError | None,
        code: int | None,
        reason: str,
        decision: Decision | None,
        now_ns: int,
    ) -> None:
        """A session ended, or could not be opened. `decision` None: it was stopped on purpose."""

    def joined(self, feed: Lane) -> bool:
        """Tell whether the second one of two sessions of a connection has brought all that the first one brings."""


@dataclass
class FeedStats:
    """Counts over all sessions of a feed; plain ints, read at any time."""

    frames: int = 0
    bytes: int = 0
    gave: int = 0
    """Frames that gave at least one message or reject."""
    useless: int = 0
    """Known frames that gave nothing, as the providers count them."""
    internal: int = 0
    """Faults of the provider's code, each told as a reject or as the session's end."""
    ending: int = 0
    """Frames whose reading ended their session: neither mapped nor useless nor rejected."""
    sent: int = 0
    requests: int = 0
    connects: int = 0
    """Tries to connect."""
    opened: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Ends by code: a closed list of ours (close_1006, http_429, silence ...) and the providers' own codes."""

    def count_end(self, code: str) -> None:
        # provider codes come from outside: the 65th kind and later are one
        key = code if code in self.ended or len(self.ended) < 64 else "other"
        self.ended[key] = self.ended.get(key, 0) + 1
