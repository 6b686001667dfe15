"""One configured provider at run time, and the running relay as those see it who only show it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from relay.config import Config, ProviderConfig
from relay.feed import Feed, SharedLimits
from relay.intake import Intake, Source
from relay.outbox import Outbox
from relay.providers.base import Planned, Shared
from relay.redaction import Redactor
from relay.sink import Sink
from relay.vitals import Vitals


class Note(NamedTuple):
    """The last change of a connection: when it came, why, and when the next try is due (None: no try, or it is up)."""

    since_ns: int
    why: str = ""
    next_ns: int | None = None


class ProviderState:
    """One configured provider. A reload may change `config`, `options` and `plans`; the rest lives as long as it."""

    def __init__(
        self, config: ProviderConfig, options: Any, source: Source, shared: Shared, limits: SharedLimits
    ) -> None:
        """`options` are what its sessions get: those of the config, pointed at the simulator where it plays."""
        self.config, self.options, self.source, self.shared, self.limits = config, options, source, shared, limits
        self.plans: dict[str, Planned] = {planned.label: planned for planned in config.connections}
        self.feeds: list[Feed] = []
        self.live: dict[str, bool] = {}  # connection label -> a session is open and has carried data
        self.stopped: dict[str, str] = {}  # connection label -> why it will not be tried again
        self.notes: dict[str, Note] = {}


class Running(Protocol):
    """What metrics and overview read of a bridge."""

    @property
    def config(self) -> Config: ...
    @property
    def run(self) -> int: ...
    @property
    def clock(self) -> Callable[[], int]: ...
    @property
    def providers(self) -> Mapping[str, ProviderState]: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def sink(self) -> Sink: ...
    @property
    def intake(self) -> Intake: ...
    @property
    def vitals(self) -> Vitals: ...
    @property
    def server(self) -> object | None: ...
    @property
    def redis_url(self) -> str: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def recorder(self) -> Any: ...
    @property
    def keeping(self) -> Any: ...
    @property
    def standby(self) -> Any: ...
    @property
    def redactor(self) -> Redactor: ...
    @property
    def event(self) -> Callable[..., None]: ...
    def is_ready(self) -> tuple[bool, str]: ...
    def feeds_live(self) -> tuple[int, int]: ...
