"""What a configuration is once it is read: frozen structs, every default in one place.

`Settings` is everything but the providers; a new section is a struct and one line in it. A field's description is its
documentation, its type and Meta its check; `values.py` reads any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from relay.config.addresses import shown_url
from relay.errors import Problem
from relay.providers.base import Limits, Options, Planned, ProviderSpec, Subscription
from relay.secrecy import Redacted, Secret

NAME_PATTERN = r"^[a-z0-9_-]{1,32}$"
"""The relay's name, our names of providers, account labels: they stand in topics and metrics."""
EMBEDDED = "embedded"
"""The `redis.url` that asks for the bundled server."""


class RedisConfig(Redacted, Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where messages go, and how much is kept there."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, shown_url(value) if name == "url" else value) for name, value in super().__rich_repr__()]

    url: Annotated[
        str,
        Meta(
            description="`embedded` (the bundled server), `redis://host:6379/0`, `rediss://` (TLS), `unix:///path`, "
            "`redis+cluster://host:6379,host:6379` or `redis+sentinel://host:26379,host:26379/service`."
        ),
    ] = EMBEDDED
    username: Annotated[str, Meta(description="The ACL user, where the address does not name one.")] = ""
    password: Annotated[Secret, Meta(description="The password, where the address does not hold one.")] = ""
    sentinel_username: Annotated[str, Meta(description="The ACL user on the sentinels, where they have one.")] = ""
    sentinel_password: Annotated[Secret, Meta(description="The sentinels' own password; empty: they ask for none.")] = (
        ""
    )
    ca_file: Annotated[str, Meta(description="PEM file of the authority that signed the server's certificate.")] = ""
    cert_file: Annotated[str, Meta(description="PEM file of our own certificate; goes with `key_file`.")] = ""
    key_file: Annotated[str, Meta(description="PEM file of the key of `cert_file`.")] = ""
    prefix: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}$", description="Put before the name of every topic: `prod.`."),
    ] = ""
    stream_length_max: Annotated[int, Meta(ge=1, le=1_000_000_000, description="Entries kept in each stream.")] = 10_000
    retention_secs: Annotated[float, Meta(ge=0, description="Age at which entries are removed; 0: never by age.")] = 0.0
    streams_bytes_max: Annotated[
        int, Meta(ge=0, description="Memory that all streams of this relay together may take; 0: no bound.")
    ] = 1024 * 1024 * 1024
    pubsub: Annotated[bool, Meta(description="PUBLISH each message too (cluster: SPUBLISH), by its topic.")] = True
    port: Annotated[int, Meta(ge=1, le=65535, description="Embedded only: the port to take, or the next free one.")] = (
        6379
    )
    data_dir: Annotated[
        str, Meta(description="Embedded only: the server's data; empty: `redis` (simulated: `sim`) under `state_dir`.")
    ] = ""


class OutboxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What waits in memory for Redis."""

    bytes_max: Annotated[int, Meta(ge=65_536, description="All topics together.")] = 64 * 1024 * 1024
    topic_bytes_max: Annotated[int, Meta(ge=4096, description="One topic; not above `bytes_max`.")] = 16 * 1024 * 1024


class JournalConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recording of every raw frame, for `relay replay`. Off while `dir` is empty."""

    dir: Annotated[str, Meta(description="Folder of recordings, such as `.relay/journal`; empty: none.")] = ""
    rotate_bytes: Annotated[int, Meta(ge=65_536, description="Size at which a new file is begun.")] = 256 * 1024 * 1024
    rotate_secs: Annotated[float, Meta(ge=0, description="Age at which a new file is begun; 0: never by age.")] = 3600.0
    retention_bytes: Annotated[
        int, Meta(ge=0, description="Size of the folder beyond which the oldest files are deleted; 0: no bound.")
    ] = 10 * 1024 * 1024 * 1024
    retention_days: Annotated[float, Meta(ge=0, description="Age at which files are deleted; 0: never by age.")] = 7.0
    fsync: Annotated[
        Literal["never", "file", "flush"],
        Meta(description="What survives a power cut: `file`: every finished file, `flush`: all but the last moment."),
    ] = "file"
    flush_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="Longest time that a frame waits in memory to be written.")
    ] = 500
    accounts: Annotated[
        bool, Meta(description="Also record what gives orders, positions, balances and account messages.")
    ] = False


class SpoolConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Accepted messages on disk: they survive a crash, wait there for Redis, and heal it when it has lost entries."""

    enabled: Annotated[
        bool, Meta(description="Keep a spool. Where its folder cannot be written the relay says so and runs without.")
    ] = True
    dir: Annotated[
        str, Meta(description="Its folder; empty: `spool` under `state_dir`. Each Redis has its own in it.")
    ] = ""
    segment_bytes: Annotated[int, Meta(ge=4096, description="Size at which the next file is begun.")] = 32 * 1024 * 1024
    retention_secs: Annotated[
        float, Meta(ge=0, description="How long messages are kept after Redis has confirmed them, to heal it.")
    ] = 600.0
    bytes_max: Annotated[
        int, Meta(ge=65_536, description="Disk that it may take; what Redis lacks is never removed for room.")
    ] = 2 * 1024 * 1024 * 1024
    pack: Annotated[
        bool,
        Meta(
            description="Compress it (zstd): `bytes_max` lasts three to seven times as long, at 0.2 us more a message."
        ),
    ] = False
    fsync: Annotated[
        Literal["never", "interval", "always"],
        Meta(
            description="What a power cut may take: `interval`: 0.25 s, `always`: nothing; a crash takes nothing ever."
        ),
    ] = "interval"


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is written.")
    ] = "info"
    format: Annotated[Literal["auto", "text", "json"], Meta(description="`auto`: text on a terminal, JSON off it.")] = (
        "auto"
    )


class HttpConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics, health and what `relay top` shows, over HTTP. Nothing secret stands there."""

    enabled: Annotated[bool, Meta(description="Serve /metrics, /healthz, /readyz and /status.json.")] = False
    host: Annotated[
        str, Meta(description="Address to bind to; `0.0.0.0` lets other machines look, prices and all.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to bind to; 0: any free one.")] = 9464
    hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^([*]|([*][.])?[A-Za-z0-9_.:-]+)$")], ...],
        Meta(description="More names by which it may be called (Host header), such as `relay` or `*.example.com`."),
    ] = ()


class StandbyConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several relays of one name on several hosts: one writes, the others stand by and take over without a hole."""

    enabled: Annotated[
        bool, Meta(description="Stand by while another relay of this `name` writes, and take over from it.")
    ] = False
    lease_secs: Annotated[
        float, Meta(ge=0.2, le=60, description="A writer that was not heard of for so long is taken over from.")
    ] = 1.5
    ring_secs: Annotated[
        float, Meta(ge=1, le=600, description="What was received lately and is kept to go on from, by age.")
    ] = 10.0
    ring_bytes_max: Annotated[
        int,
        Meta(ge=1_048_576, description="Memory that this may take; where it covers less than a lease, no takeover."),
    ] = 64 * 1024 * 1024
    cold: Annotated[
        tuple[str, ...],
        Meta(
            description="Providers to which only the writer connects; those that allow too few connections always are."
        ),
    ] = ()

    @property
    def cover_secs(self) -> float:
        """How far back a ring reaches before its node competes: a lease, the time to notice, what was on its way."""
        return 1.25 * self.lease_secs + 0.25


class SimulatorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The built-in simulator that serves every provider with `simulate: true`."""

    rate: Annotated[float, Meta(gt=0, le=1_000_000, description="Data messages per second on each connection.")] = 10.0
    seed: Annotated[int, Meta(ge=0, description="Seed of the made-up prices: the same seed, the same walk.")] = 1
    port: Annotated[int, Meta(ge=0, le=65535, description="Port on 127.0.0.1; 0: any free one.")] = 0


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of relay.yaml but its providers."""

    name: Annotated[
        str,
        Meta(
            pattern=NAME_PATTERN,
            description="This relay's name: in `status.<name>`, `deadletter.<name>` and the ownership of topics.",
        ),
    ] = "relay"
    redis: RedisConfig = RedisConfig()
    topics: Annotated[
        dict[str, str], Meta(description="Templates of topic names by kind, where the default is not wanted.")
    ] = {}
    merge: Annotated[bool, Meta(description="Let several sources share one topic.")] = False
    state_dir: Annotated[str, Meta(description="Folder of what the relay keeps between runs.")] = ".relay"
    memory_mb_max: Annotated[
        int, Meta(ge=0, description="Memory of the process from which on it holds less of what waits; 0: no bound.")
    ] = 512
    outbox: OutboxConfig = OutboxConfig()
    journal: JournalConfig = JournalConfig()
    spool: SpoolConfig = SpoolConfig()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    standby: StandbyConfig = StandbyConfig()


@dataclass(frozen=True)
class ProviderConfig:
    """One provider section."""

    name: str
    """Our name for it."""
    spec: ProviderSpec
    options: Options
    """The provider's own struct; its repr hides secrets."""
    subscriptions: list[Subscription]
    connections: list[Planned]
    line: int
    """Line of the section in the file."""
    sharers: int = 1
    """Processes over which its subscriptions may be dealt: each gets that part of the limits."""

    @property
    def limits(self) -> Limits:
        """What the sessions of this process may use of what the provider allows."""
        return self.spec.limits.divided(self.sharers)

    @property
    def account(self) -> str:
        """Label of the account, for account topics."""
        return getattr(self.options, "account", "") or "main"


@dataclass(frozen=True)
class Dealt:
    """Which of `count` shards writes which topic (relay.shards). Shards are counted from 1."""

    count: int
    homes: Mapping[str, int]
    """Topic to shard."""
    patterns: Mapping[str, int]
    """The topics of a pattern, by their template (`trades.{symbol}`), to shard."""
    parts: tuple[Mapping[str, tuple[Subscription, ...]], ...]
    """For each shard: provider to what is subscribed to there."""
    together: Mapping[str, str]
    """Providers of which one shard holds all, and why."""


@dataclass(frozen=True)
class Shard:
    """Which part of a whole configuration a Config is."""

    number: int
    name: str
    """The whole relay's name."""
    state_dir: str
    """The whole relay's folder."""
    all_simulated: bool
    """Of the whole relay."""
    simulated_types: frozenset[str]
    """Of the whole relay: what a reload adds may be dealt to this shard."""
    dealt: Dealt


class Config(Settings, frozen=True, kw_only=True):
    """A correct configuration. `warnings`: what works and should still be looked at, in file order.

    `shard`: None where this is the whole.
    """

    providers: dict[str, ProviderConfig] = {}
    warnings: list[Problem] = []
    shard: Shard | None = None

    @property
    def simulated_types(self) -> frozenset[str]:
        """Types of the providers that the simulator plays, here or in any other shard."""
        if self.shard is not None:
            return self.shard.simulated_types
        return frozenset(p.spec.name for p in self.providers.values() if p.options.simulate)

    @property
    def all_simulated(self) -> bool:
        """Whether nothing here is live, nor in any other shard."""
        if self.shard is not None:
            return self.shard.all_simulated
        return bool(self.providers) and all(p.options.simulate for p in self.providers.values())
