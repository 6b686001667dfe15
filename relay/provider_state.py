"""One configured provider at run time: what the bridge holds of it, and what others show."""

from typing import Any, NamedTuple

from relay.config import ProviderConfig
from relay.feed import Feed, SharedLimits
from relay.intake import Source
from relay.providers.base import Planned, Shared


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
